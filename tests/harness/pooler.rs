//! PgBouncer in transaction mode, before the database of a test.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection as _, PgConnection};
use uuid::Uuid;

use crate::{Database, PATIENCE};

/// A PgBouncer with a few server connections for all its clients, gone when the test is over.
#[derive(Debug)]
pub struct Pooler {
    directory: PathBuf,
    database: String,
    process: Child,
}

impl Pooler {
    pub async fn start(database: &Database, servers: u32) -> Self {
        let way: PgConnectOptions = database.url().parse().expect("the harness made it");
        let name = way.get_database().expect("the harness named it").to_owned();
        let directory = std::env::temp_dir().join(format!("oarlock-pooler-{}", Uuid::new_v4().simple()));
        std::fs::create_dir(&directory).expect("a directory can be made");
        // PgBouncer makes its socket in it as a user of its own.
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o777)).expect("it is ours");
        let (host, port, user) = (way.get_host(), way.get_port(), way.get_username());
        let password = url_password(database.url()).map(|word| format!(" password={word}")).unwrap_or_default();
        let mut settings = format!(
            "[databases]\n{name} = host={host} port={port} user={user}{password} dbname={name}\n[pgbouncer]\nauth_type = any\n\
             pool_mode = transaction\ndefault_pool_size = {servers}\nmax_client_conn = 100\nunix_socket_dir = {}\n",
            directory.display()
        );
        if Uid::effective().is_root() {
            settings.push_str("user = nobody\n");
        }
        let file = directory.join("pgbouncer.ini");
        std::fs::write(&file, settings).expect("it can be written");
        let log = std::fs::File::create(directory.join("log")).expect("it can be written");
        let process = Command::new("pgbouncer")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("pgbouncer is on the PATH: run tests/with-pgbouncer COMMAND, or install it");
        let pooler = Self { directory, database: name, process };
        let answers = async {
            while PgConnection::connect_with(&pooler.way()).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(tokio::time::timeout(PATIENCE, answers).await.is_ok(), "PgBouncer does not answer\n{}", pooler.logs());
        pooler
    }

    /// As an operator would write it.
    pub fn url(&self) -> String {
        format!(
            "postgres://oarlock@localhost/{}?host={}&port=6432&statement-cache-capacity=0",
            self.database,
            self.directory.display()
        )
    }

    /// For a test that goes through it as well: what sqlx asks for by default it does not know.
    pub fn way(&self) -> PgConnectOptions {
        self.url().parse::<PgConnectOptions>().expect("a URL").extra_float_digits(None)
    }

    pub fn logs(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }
}

/// The password as it is written in the URL; the harness's own has none.
fn url_password(url: &str) -> Option<&str> {
    url.split_once("://")?.1.split_once('@')?.0.split_once(':').map(|(_, password)| password)
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(i32::try_from(self.process.id()).expect("a process id")), Signal::SIGTERM);
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
