//! A TCP forwarder in the place of a load balancer or a floating address: it leads to one server, until it is switched.

use std::future::pending;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{self, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A forwarder on an address of its own.
#[derive(Debug)]
pub struct Switch {
    address: SocketAddr,
    target: Arc<Mutex<SocketAddr>>,
    /// Whoever sends this next gets nothing more, but for the answer to it perhaps.
    last_word: Arc<Mutex<Option<LastWord>>>,
    /// What was connected before the newest cut is to end.
    cuts: watch::Sender<()>,
    /// What was connected before the newest of these is to fall silent.
    silences: watch::Sender<()>,
    accepting: JoinHandle<()>,
}

#[derive(Debug, Clone, Copy)]
struct LastWord {
    word: &'static str,
    is_answered: bool,
}

impl Switch {
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("it listens");
        let target = Arc::new(Mutex::new(target));
        let last_word = Arc::default();
        let (cuts, silences) = (watch::Sender::new(()), watch::Sender::new(()));
        let accepting = tokio::spawn({
            let (target, last_word) = (Arc::clone(&target), Arc::clone(&last_word));
            let (cuts, silences) = (cuts.clone(), silences.clone());
            async move {
                while let Ok((from, _)) = listener.accept().await {
                    let target = *target.lock().expect("nobody panics with it");
                    let last_word = Arc::clone(&last_word);
                    let (mut cut, mut silence) = (cuts.subscribe(), silences.subscribe());
                    tokio::spawn(async move {
                        // Whoever cannot be led on is hung up on, as by a load balancer without a server.
                        let (mut from, Ok(mut to)) = (from, TcpStream::connect(target).await) else { return };
                        tokio::select! {
                            _ = forward(&mut from, &mut to, &last_word) => {}
                            _ = cut.changed() => {}
                            // Both ends stay open, and hear nothing any more.
                            _ = silence.changed() => drop(cut.changed().await),
                        }
                    });
                }
            }
        });
        Self { address, target, last_word, cuts, silences, accepting }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Leads new connections there; those there are stay.
    pub fn leads_to(&self, target: SocketAddr) {
        *self.target.lock().expect("nobody panics with it") = target;
    }

    /// The connection over which this is sent next falls silent behind the answer, and stays open.
    pub fn falls_silent_after(&self, word: &'static str) {
        *self.last_word.lock().expect("nobody panics with it") = Some(LastWord { word, is_answered: true });
    }

    /// The connection over which this is sent next falls silent before the answer, and stays open.
    pub fn falls_silent_at(&self, word: &'static str) {
        *self.last_word.lock().expect("nobody panics with it") = Some(LastWord { word, is_answered: false });
    }

    /// All connections fall silent, and stay open: as if what lies on the way had forgotten them.
    pub fn forgets(&self) {
        self.silences.send_replace(());
    }

    /// Cuts all connections.
    pub fn cuts(&self) {
        self.cuts.send_replace(());
    }
}

/// Forwards both ways until one side hangs up.
async fn forward(from: &mut TcpStream, to: &mut TcpStream, last_word: &Mutex<Option<LastWord>>) -> io::Result<()> {
    let (mut asked, mut answered) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    let mut said = None;
    loop {
        tokio::select! {
            read = from.read(&mut asked) => match read? {
                0 => return Ok(()),
                length => {
                    let says = |last: &mut LastWord| asked[..length].windows(last.word.len()).any(|part| part == last.word.as_bytes());
                    said = said.or(last_word.lock().expect("nobody panics with it").take_if(says));
                    to.write_all(&asked[..length]).await?;
                }
            },
            read = to.read(&mut answered) => match read? {
                0 => return Ok(()),
                length => {
                    if said.is_none_or(|last| last.is_answered) {
                        from.write_all(&answered[..length]).await?;
                    }
                    if said.is_some() {
                        pending::<()>().await;
                    }
                }
            },
        }
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cuts();
    }
}
