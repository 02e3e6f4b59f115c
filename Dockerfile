# One image per program: docker build --target receiver|worker|sandbox .
# Needs neither BuildKit nor a network beyond crates.io, and other base images can be named with --build-arg.
ARG BUILD_IMAGE=rust:1.95-bookworm
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian12

# All manifests, and an empty program in place of every source: what this stage hands on changes only when a dependency
# does, so that the next stage's build of the dependencies is cached while the code changes.
FROM ${BUILD_IMAGE} AS skeleton
WORKDIR /src
COPY . .
RUN mkdir /skeleton \
    && find . \( -name Cargo.toml -o -name Cargo.lock -o -path './.cargo/config.toml' \) -exec cp --parents {} /skeleton \; \
    && find . \( -name lib.rs -o -name main.rs -o -name build.rs \) -exec cp --parents {} /skeleton \; \
    && find /skeleton -name '*.rs' -exec sh -c 'echo "fn main() { }" > "$1"' sh {} \;

FROM ${BUILD_IMAGE} AS build
WORKDIR /src
COPY --from=skeleton /skeleton .
RUN cargo build --release --locked --package oarlock-receiver --package oarlock-worker
COPY . .
# Cargo compares times, and the empty programs are newer than the sources that replace them.
RUN find crates -name '*.rs' -exec touch {} + \
    && cargo build --release --locked --package oarlock-receiver --package oarlock-worker \
    && install -D --target-directory=/out target/release/oarlock-receiver target/release/oarlock-worker

# What the programs run on. A file /etc/oarlock/oarlock.toml is found without being named.
FROM ${RUNTIME_IMAGE} AS runtime
ARG VERSION=unreleased
ARG REVISION=unknown
LABEL org.opencontainers.image.source="https://github.com/oarlock/oarlock" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
WORKDIR /etc/oarlock
# By number, so that Kubernetes can see that it is not root.
USER 65532:65532

FROM runtime AS receiver
LABEL org.opencontainers.image.title="oarlock-receiver" \
      org.opencontainers.image.description="Verifies Paddle's alerts, stores them in the outbox, answers 200"
COPY --from=build /out/oarlock-receiver /usr/local/bin/
EXPOSE 8080 8081
# There is no shell and no client: the program asks itself.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["/usr/local/bin/oarlock-receiver", "health"]
ENTRYPOINT ["/usr/local/bin/oarlock-receiver"]

FROM runtime AS worker
LABEL org.opencontainers.image.title="oarlock-worker" \
      org.opencontainers.image.description="Plans and runs the Jira and Slack actions of the outbox"
COPY --from=build /out/oarlock-worker /usr/local/bin/
EXPOSE 8082
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["/usr/local/bin/oarlock-worker", "health"]
ENTRYPOINT ["/usr/local/bin/oarlock-worker"]

# For trying out, never for production: built apart, so that nothing it needs can change the two programs above.
FROM build AS sandbox-build
RUN cargo build --release --locked --package oarlock-sandbox \
    && install -D --target-directory=/out target/release/oarlock-sandbox

FROM runtime AS sandbox
LABEL org.opencontainers.image.title="oarlock-sandbox" \
      org.opencontainers.image.description="Stand-ins for Paddle, Jira and Slack. For development only"
COPY --from=sandbox-build /out/oarlock-sandbox /usr/local/bin/
EXPOSE 9000
ENTRYPOINT ["/usr/local/bin/oarlock-sandbox"]
CMD ["serve", "--listen", "0.0.0.0:9000"]
