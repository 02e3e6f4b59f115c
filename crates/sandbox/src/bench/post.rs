//! The loader: posts alerts over connections that stay open, with as little work as can be.
//!
//! It shares the machine with what it measures, so it is no general client: a request is bytes made beforehand, an answer
//! is read for its status and its length, and each connection is a thread that writes once and reads once. That is two
//! system calls and two switches an alert, some 20 µs of processor time; what it really took is in the report.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use oarlock_sandbox::paddle::Signed;

use super::rig::CONNECTIONS;

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
pub(super) struct Connection {
    stream: TcpStream,
    /// An answer has some hundred bytes.
    buffer: [u8; 2048],
}

impl Connection {
    pub(super) fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).context("failed to connect to the receiver")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        Ok(Self { stream, buffer: [0; 2048] })
    }

    /// Posts an alert; anything but 200 is an error.
    pub(super) fn post(&mut self, request: &Request) -> anyhow::Result<()> {
        self.stream.write_all(&request.0).context("failed to post an alert")?;
        match self.status().context("failed to read the answer to an alert")? {
            200 => Ok(()),
            status => bail!("an alert was answered {status}"),
        }
    }

    /// Reads one answer to its end.
    fn status(&mut self) -> io::Result<u16> {
        let mut filled = 0;
        loop {
            match self.stream.read(&mut self.buffer[filled..])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => filled += read,
            }
            let answer = &self.buffer[..filled];
            if let Some((status, length)) = answer_of(answer)
                && filled >= length
            {
                return Ok(status);
            }
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
    let next = AtomicUsize::new(0);
    let took = on_every_connection(address, |connection| {
        while let Some(request) = requests.get(next.fetch_add(1, Ordering::Relaxed)) {
            connection.post(request)?;
        }
        Ok(())
    })?;
    Ok(took.0)
}

/// Posts all alerts on a schedule that a slow receiver does not slow down. Returns how long after it was due each was
/// answered, in no order: a stall counts in full for each alert that was due in it.
pub(super) fn open_loop(address: SocketAddr, requests: &[Request], per_second: u32) -> anyhow::Result<Vec<Duration>> {
    let next = AtomicUsize::new(0);
    let started = Instant::now() + Duration::from_millis(20);
    let (_, latencies) = on_every_connection(address, |connection| {
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
    Ok(latencies.into_iter().flatten().collect())
}

/// Runs `work` on every connection at once; how long that took without the connecting, and what each brought.
fn on_every_connection<T: Send>(
    address: SocketAddr,
    work: impl Fn(&mut Connection) -> anyhow::Result<T> + Sync,
) -> anyhow::Result<(Duration, Vec<T>)> {
    let connections: Vec<_> = (0..CONNECTIONS).map(|_| Connection::open(address)).collect::<Result<_, _>>()?;
    let (work, started) = (&work, Instant::now());
    thread::scope(|scope| {
        let threads: Vec<_> =
            connections.into_iter().map(|mut connection| scope.spawn(move || work(&mut connection))).collect();
        let results: Result<Vec<T>, _> = threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow!("a thread of the loader panicked"))?)
            .collect();
        results.map(|results| (started.elapsed(), results))
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
