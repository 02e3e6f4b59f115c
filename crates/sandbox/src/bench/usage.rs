//! What something costs: processor time, memory, WAL, commits. Linux tells the first two in /proc.

use std::fs;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Serialize;
use sqlx::PgPool;
use tokio::time::sleep;

use super::database::Database;

/// The unit of times in /proc: the kernel shows hundredths of a second, whatever its own clock does.
const TICKS_PER_SECOND: f64 = 100.0;

/// What one process has used in its life.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Used {
    pub(super) program: &'static str,
    pub(super) cpu_seconds: f64,
    /// Resident memory at its highest.
    pub(super) peak_mib: Option<f64>,
}

/// What some alerts cost.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Cost {
    pub(super) what: &'static str,
    pub(super) alerts: usize,
    pub(super) seconds: f64,
    pub(super) wal_bytes_per_alert: f64,
    pub(super) commits_per_alert: f64,
    /// The programs, Postgres with all its processes, and this one: loader and stand-ins.
    pub(super) used: Vec<Used>,
}

/// Reads the counters now, to be compared later.
#[derive(Debug)]
pub(super) struct Meter {
    pool: PgPool,
    before: Counters,
}

#[derive(Debug, Clone, Copy)]
struct Counters {
    wal_bytes: i64,
    commits: i64,
    postgres_seconds: f64,
    bench_seconds: f64,
}

impl Meter {
    pub(super) async fn start(database: &Database) -> anyhow::Result<Self> {
        let pool = database.pool().clone();
        let before = Counters::read(&pool).await?;
        Ok(Self { pool, before })
    }

    /// The programs have ended: only then does Postgres know of all their commits.
    pub(super) async fn stop(
        self,
        what: &'static str,
        alerts: usize,
        took: Duration,
        programs: Vec<Used>,
    ) -> anyhow::Result<Cost> {
        let left = "select count(*) from pg_stat_activity where datname = current_database() and application_name like 'oarlock-%'";
        while sqlx::query_scalar::<_, i64>(left).fetch_one(&self.pool).await? > 0 {
            sleep(Duration::from_millis(20)).await;
        }
        let (before, after) = (self.before, Counters::read(&self.pool).await?);
        let mut used = programs;
        let of = |program, cpu_seconds| Used { program, cpu_seconds, peak_mib: None };
        used.push(of("postgres", after.postgres_seconds - before.postgres_seconds));
        used.push(of("bench", after.bench_seconds - before.bench_seconds));
        Ok(Cost {
            what,
            alerts,
            seconds: took.as_secs_f64(),
            wal_bytes_per_alert: (after.wal_bytes - before.wal_bytes) as f64 / alerts as f64,
            commits_per_alert: (after.commits - before.commits) as f64 / alerts as f64,
            used,
        })
    }
}

impl Counters {
    async fn read(pool: &PgPool) -> anyhow::Result<Self> {
        let (wal_bytes, commits, backend): (i64, i64, i32) = sqlx::query_as(
            "select pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint, xact_commit, pg_backend_pid()
             from pg_stat_database where datname = current_database()",
        )
        .fetch_one(pool)
        .await
        .context("failed to read Postgres's counters")?;
        let server = Times::of(&backend.to_string())?.parent;
        let bench_seconds = Times::of("self")?.own;
        Ok(Self { wal_bytes, commits, postgres_seconds: server_seconds(server)?, bench_seconds })
    }
}

/// The server with all its processes, those that have ended as well.
fn server_seconds(server: u32) -> anyhow::Result<f64> {
    let times = Times::of(&server.to_string())?;
    let mut seconds = times.own + times.ended_children;
    for entry in fs::read_dir("/proc")? {
        let Some(process) = entry?.file_name().to_str().filter(|name| name.parse::<u32>().is_ok()).map(str::to_owned)
        else {
            continue;
        };
        // One that ends in this moment is the server's as an ended child a moment later.
        if let Some(times) = Times::of(&process).ok().filter(|times| times.parent == server) {
            seconds += times.own;
        }
    }
    Ok(seconds)
}

/// What a process of this machine has used so far.
pub(super) fn of(program: &'static str, process: u32) -> anyhow::Result<Used> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
    let Some(peak_kib) = peak else { bail!("{program} has ended by itself") };
    let peak_kib: f64 = peak_kib;
    Ok(Used { program, cpu_seconds: Times::of(&process.to_string())?.own, peak_mib: Some(peak_kib / 1024.0) })
}

/// Processor time in seconds, user and system.
#[derive(Debug, Clone, Copy)]
struct Times {
    parent: u32,
    own: f64,
    ended_children: f64,
}

impl Times {
    fn of(process: &str) -> anyhow::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
        Self::read(&stat).with_context(|| format!("/proc/{process}/stat is not as expected"))
    }

    /// proc_pid_stat(5): the name, which may hold anything, is in parentheses; the fields after it count from 3.
    fn read(stat: &str) -> Option<Self> {
        let (_, rest) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let seconds = |field: usize| Some(fields.get(field - 3)?.parse::<f64>().ok()? / TICKS_PER_SECOND);
        Some(Self {
            parent: fields.get(4 - 3)?.parse().ok()?,
            own: seconds(14)? + seconds(15)?,
            ended_children: seconds(16)? + seconds(17)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_a_process_with_an_odd_name() {
        let times = Times::read("7 (a) b) S 3 7 7 0 -1 4194560 1 0 0 0 150 50 20 30 20 0 1 0").unwrap();
        assert_eq!((times.parent, times.own, times.ended_children), (3, 2.0, 0.5));
    }
}
