//! The loader: posts alerts over connections that stay open, with as little work as can be.
//!
//! It shares the machine with what it measures, so it is no general client: a request is bytes made beforehand, and an answer is
//! read for its status and its length. At full load two threads look after the connections, as those of `pgbench` do: with a thread
//! for each, every answer would be a switch to another one, at the expense of whoever answers. On a schedule each connection is a
//! thread, which wakes up when it should. What it took is in the report.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use futures_util::future::try_join_all;
use oarlock_sandbox::paddle::Signed;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime;
use tokio::time::timeout;

use super::rig::CONNECTIONS;

/// Threads at full load.
const THREADS: usize = 2;
const TIMEOUT: Duration = Duration::from_secs(30);

/// An alert as it goes over the wire, head and body.
#[derive(Debug)]
pub(super) struct Request(Vec<u8>);

impl Request {
    pub(super) fn new(signed: &Signed) -> Self {
        let mut head = format!(
            "POST /paddle HTTP/1.1\r\nHost: bench\r\nUser-Agent: Paddle\r\nContent-Type: {}\r\nContent-Length: {}\r\n",
            signed.content_type,
            signed.body.len()
        );
        if let Some((name, value)) = &signed.header {
            head += &format!("{name}: {value}\r\n");
        }
        head += "\r\n";
        Self([head.as_bytes(), &signed.body].concat())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// A connection to the receiver.
#[derive(Debug)]
pub(super) struct Connection(TcpStream);

impl Connection {
    pub(super) fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).context("failed to connect to the receiver")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        Ok(Self(stream))
    }

    /// Posts an alert; anything but 200 is an error.
    pub(super) fn post(&mut self, request: &Request) -> anyhow::Result<()> {
        self.0.write_all(&request.0).context(POSTING)?;
        let mut answer = Answer::default();
        loop {
            let read = self.0.read(answer.room()).context(READING)?;
            if answer.is_whole_after(read)? {
                return Ok(());
            }
        }
    }

    /// The same connection, for a thread that looks after several.
    fn shared(self) -> anyhow::Result<Shared> {
        self.0.set_nonblocking(true)?;
        Ok(Shared(tokio::net::TcpStream::from_std(self.0)?))
    }
}

/// A connection that is not waited for alone.
#[derive(Debug)]
struct Shared(tokio::net::TcpStream);

impl Shared {
    /// Posts an alert; anything but 200 is an error.
    async fn post(&mut self, request: &Request) -> anyhow::Result<()> {
        self.0.write_all(&request.0).await.context(POSTING)?;
        let mut answer = Answer::default();
        loop {
            let read = timeout(TIMEOUT, self.0.read(answer.room())).await.context(READING)?.context(READING)?;
            if answer.is_whole_after(read)? {
                return Ok(());
            }
        }
    }
}

const POSTING: &str = "failed to post an alert";
const READING: &str = "failed to read the answer to an alert";

/// As much of an answer as has been read.
#[derive(Debug)]
struct Answer {
    /// An answer has some hundred bytes.
    buffer: [u8; 2048],
    filled: usize,
}

impl Default for Answer {
    fn default() -> Self {
        Self { buffer: [0; 2048], filled: 0 }
    }
}

impl Answer {
    /// Where to read what comes next.
    fn room(&mut self) -> &mut [u8] {
        &mut self.buffer[self.filled..]
    }

    /// Whether it is whole with what was read now; anything but 200 is an error, and so is an end before it.
    fn is_whole_after(&mut self, read: usize) -> anyhow::Result<bool> {
        ensure!(read > 0, "a connection was closed instead of an answer");
        self.filled += read;
        match answer_of(&self.buffer[..self.filled]) {
            Some((status, _)) if status != 200 => bail!("an alert was answered {status}"),
            Some((_, length)) => Ok(self.filled >= length),
            None => Ok(false),
        }
    }
}

/// Status, and the length of head and body together, once the head is there.
fn answer_of(answer: &[u8]) -> Option<(u16, usize)> {
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let text = std::str::from_utf8(&answer[..head]).ok()?;
    let status = text.get(9..12)?.parse().ok()?;
    let body = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    Some((status, head + 4 + body.unwrap_or(0)))
}

/// Posts all alerts, as many at a time as there are connections, each as soon as the one before it is answered. Returns how
/// long that took.
pub(super) fn closed_loop(address: SocketAddr, requests: &[Request]) -> anyhow::Result<Duration> {
    let mut connections = connect(address)?.into_iter();
    let shares: Vec<Vec<_>> =
        (0..THREADS).map(|_| connections.by_ref().take(CONNECTIONS / THREADS).collect()).collect();
    let (next, started) = (AtomicUsize::new(0), Instant::now());
    on_threads(shares, |share| {
        let posting = share.into_iter().map(async |connection| {
            let mut connection = connection.shared()?;
            while let Some(request) = requests.get(next.fetch_add(1, Ordering::Relaxed)) {
                connection.post(request).await?;
            }
            anyhow::Ok(())
        });
        runtime::Builder::new_current_thread().enable_all().build()?.block_on(try_join_all(posting))
    })?;
    Ok(started.elapsed())
}

/// Posts all alerts on a schedule that a slow receiver does not slow down. Returns how long after it was due each was
/// answered, in no order: a stall counts in full for each alert that was due in it.
pub(super) fn open_loop(address: SocketAddr, requests: &[Request], per_second: u32) -> anyhow::Result<Vec<Duration>> {
    let connections = connect(address)?;
    let (next, started) = (AtomicUsize::new(0), Instant::now() + Duration::from_millis(20));
    let latencies = on_threads(connections, |mut connection| {
        let mut latencies = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(request) = requests.get(number) else { return Ok(latencies) };
            let due = started + Duration::from_secs_f64(number as f64 / f64::from(per_second));
            thread::sleep(due.saturating_duration_since(Instant::now()));
            connection.post(request)?;
            latencies.push(due.elapsed());
        }
    })?;
    Ok(latencies.concat())
}

fn connect(address: SocketAddr) -> anyhow::Result<Vec<Connection>> {
    (0..CONNECTIONS).map(|_| Connection::open(address)).collect()
}

/// Runs `work` on a thread for each of `each`, all at once; what they brought.
fn on_threads<T: Send, R: Send>(each: Vec<T>, work: impl Fn(T) -> anyhow::Result<R> + Sync) -> anyhow::Result<Vec<R>> {
    let work = &work;
    thread::scope(|scope| {
        let threads: Vec<_> = each.into_iter().map(|one| scope.spawn(move || work(one))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow!("a thread of the loader panicked"))?)
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_ends_where_its_length_says() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nx: y\r\n\r\nOk\n";
        assert_eq!(answer_of(answer), Some((200, answer.len())));
        assert_eq!(answer_of(&answer[..20]), None);
        assert_eq!(answer_of(b"HTTP/1.1 503 Service Unavailable\r\n\r\n"), Some((503, 36)));
    }
}
