//! A Postgres of a test's own, which it may stop, crash, promote and fill up.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, User};
use sqlx::{Connection as _, PgConnection};
use uuid::Uuid;

use crate::PATIENCE;

/// A cluster in a directory of its own, gone when the test is over.
#[derive(Debug)]
pub struct Cluster {
    directory: PathBuf,
    port: u16,
    settings: Vec<String>,
    postmaster: Option<Child>,
}

impl Cluster {
    /// Makes one and starts it; each setting is a line of `postgresql.conf`.
    pub async fn start(settings: &[&str]) -> Self {
        let mut cluster = Self::new(settings);
        let data = cluster.data();
        run(server_command("initdb").arg("-D").arg(&data).args(INITDB));
        cluster.starts().await;
        cluster
    }

    /// Copies the primary and follows it.
    pub async fn follow(primary: &Self, settings: &[&str]) -> Self {
        let mut cluster = Self::new(settings);
        let port = primary.port.to_string();
        let arguments = ["-h", "127.0.0.1", "-p", &port, "-U", "oarlock", "--write-recovery-conf", "--checkpoint=fast"];
        run(server_command("pg_basebackup").arg("-D").arg(cluster.data()).args(arguments).arg("--no-sync"));
        cluster.starts().await;
        cluster
    }

    fn new(settings: &[&str]) -> Self {
        let directory = std::env::temp_dir().join(format!("oarlock-cluster-{}", Uuid::new_v4().simple()));
        std::fs::create_dir(&directory).expect("a directory can be made");
        if let Some(user) = server_user() {
            chown(&directory, Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("root may give it away");
        }
        let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        Self { directory, port: free_port(), settings, postmaster: None }
    }

    fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// Keeps a file where the server may read it, and nobody else; returns its path.
    pub fn keeps(&self, name: &str, text: &[u8]) -> PathBuf {
        let path = self.directory.join(name);
        std::fs::write(&path, text).expect("it can be written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("it is ours");
        if let Some(user) = server_user() {
            chown(&path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("root may give it away");
        }
        path
    }

    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    pub fn url(&self) -> String {
        format!("postgres://oarlock@{}/postgres", self.address())
    }

    /// Starts it and waits until it takes connections.
    pub async fn starts(&mut self) {
        let mut command = server_command("postgres");
        command.arg("-D").arg(self.data()).args(["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]);
        command.args(["-c", &format!("port={}", self.port), "-c", "unix_socket_directories="]);
        for setting in &self.settings {
            command.args(["-c", setting]);
        }
        let log = std::fs::File::options().create(true).append(true).open(self.log()).expect("a file can be made");
        let started = command.stderr(log.try_clone().expect("an open file")).stdout(log).spawn();
        self.postmaster = Some(started.expect("postgres starts"));
        let answers = async {
            while PgConnection::connect(&self.url()).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(tokio::time::timeout(PATIENCE, answers).await.is_ok(), "Postgres does not answer\n{}", self.logs());
    }

    /// Stops it: `SIGINT` is what an orderly restart sends, `SIGQUIT` is as good as a crash.
    pub async fn stops(&mut self, signal: Signal) {
        let Some(mut postmaster) = self.postmaster.take() else { return };
        kill(Pid::from_raw(i32::try_from(postmaster.id()).expect("a process id")), signal).expect("it runs");
        let ended = tokio::task::spawn_blocking(move || postmaster.wait());
        let ended = tokio::time::timeout(PATIENCE, ended).await;
        assert!(ended.is_ok(), "Postgres does not stop\n{}", self.logs());
    }

    /// Runs statements as the cluster's superuser, each by itself.
    pub async fn sql(&self, statements: &[&str]) {
        let mut connection = PgConnection::connect(&self.url()).await.expect("it can be reached");
        for statement in statements {
            let statement = sqlx::AssertSqlSafe((*statement).to_owned());
            sqlx::raw_sql(statement).execute(&mut connection).await.expect("the statement is right");
        }
    }

    /// Waits until a query says true.
    pub async fn until(&self, what: &str, query: &'static str) {
        let waiting = async {
            loop {
                if let Ok(mut connection) = PgConnection::connect(&self.url()).await
                    && sqlx::query_scalar::<_, bool>(query).fetch_one(&mut connection).await.unwrap_or(false)
                {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(tokio::time::timeout(PATIENCE, waiting).await.is_ok(), "in vain waited until {what}\n{}", self.logs());
    }

    fn log(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// What the server logged.
    pub fn logs(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut postmaster) = self.postmaster.take() {
            let id = Pid::from_raw(i32::try_from(postmaster.id()).expect("a process id"));
            let _ = kill(id, Signal::SIGQUIT);
            let _ = postmaster.wait();
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

const INITDB: [&str; 7] = ["-U", "oarlock", "-A", "trust", "-E", "UTF8", "--no-sync"];

/// Whom the server runs as, when we are root: it refuses to be.
fn server_user() -> Option<User> {
    let named = |name| User::from_name(name).ok().flatten();
    Uid::effective().is_root().then(|| named("postgres").or_else(|| named("nobody")).expect("there is a user nobody"))
}

fn server_command(program: &str) -> Command {
    let mut command = Command::new(find(program));
    // The working directory of the tests need not be readable for that user.
    command.current_dir("/").env_remove("PGDATA").stdin(Stdio::null());
    if let Some(user) = server_user() {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command
}

/// Where tests/with-postgres puts the server's binaries: on the PATH.
fn find(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|file| Path::is_file(file)).unwrap_or_else(
        || panic!("{program} is not on the PATH: run tests/with-postgres COMMAND, or add the directory of Postgres's server binaries"),
    )
}

fn run(command: &mut Command) {
    let output = command.output().expect("it starts");
    assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&output.stderr));
}

/// A port that nobody listens on at this moment.
fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|socket| socket.local_addr()).expect("a port is free").port()
}
