# Four words: `make demo` shows it, `make test` proves it, `make bench` measures it, `make check` keeps it tidy.
#
# Each sets up what it needs by itself: a Postgres of its own (tests/with-postgres) unless DATABASE_URL is set, which the bench
# ignores, a PgBouncer and a Prometheus (tests/with-…), and the tools of `make check` by cargo.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test newest bench check fmt sqlx tools

# nextest shows more and isolates better; without it cargo's own runner will do.
NEXTEST := $(shell cargo nextest --version >/dev/null 2>&1 && echo yes)
TARGET := $(or $(CARGO_TARGET_DIR),target)

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: ## the main job on real input; KEEP=1 leaves it running
	cargo build --locked --workspace --bins
	tests/with-postgres $(TARGET)/debug/oarlock-sandbox demo $(if $(KEEP),--keep)

test: ## every test, against a real Postgres
	cargo build --locked --workspace --all-targets
ifeq ($(NEXTEST),yes)
	tests/with-pgbouncer tests/with-prometheus tests/with-postgres cargo nextest run --locked --workspace
else
	tests/with-pgbouncer tests/with-prometheus tests/with-postgres cargo test --locked --workspace --lib --bins --tests
endif
	cargo test --locked --workspace --doc --quiet

newest: ## what matters most once more, on the newest Postgres
	cargo build --locked --workspace --all-targets
	DATABASE_URL= WITH_POSTGRES=newest tests/with-postgres cargo $(if $(NEXTEST),nextest run,test) --locked --package oarlock-tests \
		--test guarantees --test operations --test convergence --test roles --test runbook

bench: ## what it achieves beside what Postgres does at best; ONLY=ingest,drain some of it, QUICK=1 a try
	cargo build --locked --release --package oarlock-receiver --package oarlock-worker --package oarlock-sandbox
	DATABASE_URL= WITH_POSTGRES_FSYNC=on tests/with-postgres $(TARGET)/release/oarlock-sandbox bench --json $(TARGET)/bench.json \
		$(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY)) $(if $(ROUNDS),--rounds $(ROUNDS))

check: tools ## format, lints, docs, SQL, alert rules, licences, unused dependencies
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --document-private-items
	tests/with-postgres tests/check-sql
	tests/with-prometheus promtool check config deploy/prometheus/prometheus.yml
	tests/with-prometheus promtool test rules deploy/prometheus/alerts.test.yml
	cargo deny --locked --config .cargo/deny.toml check --hide-inclusion-graph -A duplicate licenses bans sources
	cargo machete --skip-target-dir

fmt: ## format everything
	cargo fmt --all

sqlx: tools ## write .sqlx anew after a change of SQL
	tests/with-postgres tests/check-sql --write

tools:
	@command -v cargo-sqlx >/dev/null || cargo install --locked sqlx-cli --version 0.9.0 --no-default-features --features postgres,rustls
	@command -v cargo-deny >/dev/null || cargo install --locked cargo-deny
	@command -v cargo-machete >/dev/null || cargo install --locked cargo-machete
