//! A steady load: alerts of ever new customers, over connections that are kept, each repeated until it is answered 200.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use oarlock_sandbox::paddle::{Classic, ClassicSigner, Signed};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::{Oarlock, PATIENCE};

/// Alerts under way. They are posted to whichever receiver is there, as by a load balancer.
#[derive(Debug)]
pub struct Load {
    receivers: Arc<Mutex<Vec<String>>>,
    told: watch::Sender<Told>,
    stopping: Arc<AtomicBool>,
    streams: JoinSet<()>,
}

/// What was answered so far.
#[derive(Debug, Clone, Default)]
pub struct Told {
    /// Whose alerts were answered 200.
    pub accepted: Vec<String>,
    /// How often each other status was the answer.
    pub refused: BTreeMap<u16, usize>,
    /// Refusals that do not say when to come again.
    pub without_retry_after: usize,
    /// Connections that were found closed before anything of an answer came, having been idle: HTTP's way to end one.
    pub closed_while_idle: usize,
    /// Whatever else became of a request: no answer, or half of one.
    pub broken: Vec<String>,
}

enum Answer {
    Status { status: u16, retry_after: bool },
    NotConnected,
    ClosedWhileIdle,
    Broken(io::Error),
}

impl Load {
    /// So many connections, each with an alert at every `pace`.
    pub fn start(oarlock: &Oarlock, streams: usize, pace: Duration) -> Self {
        let receivers = oarlock.receivers.iter().map(crate::Process::address).collect();
        let mut load = Self {
            receivers: Arc::new(Mutex::new(receivers)),
            told: watch::Sender::default(),
            stopping: Arc::default(),
            streams: JoinSet::new(),
        };
        for stream in 0..streams {
            let (signer, receivers) = (oarlock.signer.clone(), Arc::clone(&load.receivers));
            let (told, stopping) = (load.told.clone(), Arc::clone(&load.stopping));
            load.streams.spawn(async move {
                let mut client = Client { receivers, next: stream, connection: None };
                let mut ticks = tokio::time::interval(pace);
                let mut number = 0;
                while !stopping.load(Ordering::Relaxed) {
                    ticks.tick().await;
                    number += 1;
                    client.delivers(&format!("s{stream}n{number}@example.com"), &signer, pace, &told).await;
                }
            });
        }
        load
    }

    /// Leads new connections to these alone.
    pub fn receivers_are<'p>(&self, receivers: impl IntoIterator<Item = &'p crate::Process>) {
        *self.receivers.lock().expect("nobody panics with it") =
            receivers.into_iter().map(crate::Process::address).collect();
    }

    pub fn told(&self) -> Told {
        self.told.borrow().clone()
    }

    /// Waits until what was answered is as described.
    pub async fn until(&self, what: &str, condition: impl Fn(&Told) -> bool) {
        let mut told = self.told.subscribe();
        let waiting = told.wait_for(|told| condition(told));
        let found = matches!(tokio::time::timeout(PATIENCE, waiting).await, Ok(Ok(_)));
        assert!(found, "in vain waited until {what}: {:?}", self.told().summary());
    }

    /// Waits until so many more alerts were answered 200.
    pub async fn goes_on(&self, more: usize) {
        let enough = self.told().accepted.len() + more;
        self.until(&format!("{more} more alerts are accepted"), |told| told.accepted.len() >= enough).await;
    }

    /// Ends when every alert that was begun is answered 200.
    pub async fn stops(mut self) -> Told {
        self.stopping.store(true, Ordering::Relaxed);
        let ending = async { while self.streams.join_next().await.is_some() {} };
        let ended = tokio::time::timeout(PATIENCE, ending).await;
        assert!(ended.is_ok(), "some alert is never accepted: {:?}", self.told().summary());
        self.told()
    }
}

impl Told {
    /// Without the customers, who are many.
    pub fn summary(&self) -> String {
        let Self { accepted, refused, without_retry_after, closed_while_idle, broken } = self;
        format!(
            "{} accepted, refused: {refused:?} ({without_retry_after} without Retry-After), {closed_while_idle} closed while idle, broken: {broken:?}",
            accepted.len()
        )
    }
}

/// One connection at a time, kept as long as the receiver keeps it.
struct Client {
    receivers: Arc<Mutex<Vec<String>>>,
    next: usize,
    connection: Option<TcpStream>,
}

impl Client {
    async fn delivers(&mut self, email: &str, signer: &ClassicSigner, pause: Duration, told: &watch::Sender<Told>) {
        let alert = Classic::payment_succeeded(email).signed_by(signer);
        loop {
            let answer = self.posts(&alert).await;
            told.send_modify(|told| match &answer {
                Answer::Status { status: 200, .. } => told.accepted.push(email.to_owned()),
                Answer::Status { status, retry_after } => {
                    *told.refused.entry(*status).or_default() += 1;
                    told.without_retry_after += usize::from(!retry_after);
                }
                Answer::NotConnected => {}
                Answer::ClosedWhileIdle => told.closed_while_idle += 1,
                Answer::Broken(error) => told.broken.push(error.to_string()),
            });
            match answer {
                Answer::Status { status: 200, .. } => return,
                Answer::ClosedWhileIdle => {}
                _ => tokio::time::sleep(pause).await,
            }
        }
    }

    async fn posts(&mut self, alert: &Signed) -> Answer {
        let kept = self.connection.take().filter(|connection| {
            // Closed since the last answer: then there is something to read, namely its end.
            matches!(connection.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
        });
        let is_kept = kept.is_some();
        let mut connection = match kept {
            Some(connection) => connection,
            None => {
                let receiver = {
                    let receivers = self.receivers.lock().expect("nobody panics with it");
                    self.next += 1;
                    receivers[self.next % receivers.len()].clone()
                };
                match TcpStream::connect(receiver).await {
                    Ok(connection) => connection,
                    Err(_) => return Answer::NotConnected,
                }
            }
        };
        let mut read = Vec::new();
        match exchange(&mut connection, alert, &mut read).await {
            Ok((answer, stays)) => {
                self.connection = stays.then_some(connection);
                answer
            }
            Err(_) if is_kept && read.is_empty() => Answer::ClosedWhileIdle,
            Err(error) => Answer::Broken(error),
        }
    }
}

/// Returns the answer and whether the connection stays open.
async fn exchange(connection: &mut TcpStream, alert: &Signed, read: &mut Vec<u8>) -> io::Result<(Answer, bool)> {
    let mut request = format!(
        "POST /paddle HTTP/1.1\r\nHost: receiver\r\nContent-Type: {}\r\nContent-Length: {}\r\n\r\n",
        alert.content_type,
        alert.body.len()
    )
    .into_bytes();
    request.extend(&alert.body);
    connection.write_all(&request).await?;
    let end = loop {
        if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        if connection.read_buf(read).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    };
    let head = String::from_utf8_lossy(&read[..end]).to_lowercase();
    let value = |name: &str| head.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()));
    let length: usize = value("content-length").and_then(|length| length.parse().ok()).unwrap_or_default();
    while read.len() < end + length {
        if connection.read_buf(read).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
    Ok((Answer::Status { status, retry_after: value("retry-after").is_some() }, value("connection") != Some("close")))
}
