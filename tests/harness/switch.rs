//! A TCP forwarder in the place of a load balancer or a floating address: it leads to one server, until it is switched.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A forwarder on an address of its own.
#[derive(Debug)]
pub struct Switch {
    address: SocketAddr,
    target: Arc<Mutex<SocketAddr>>,
    /// What was connected before the newest cut is to end.
    cuts: watch::Sender<()>,
    accepting: JoinHandle<()>,
}

impl Switch {
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("it listens");
        let target = Arc::new(Mutex::new(target));
        let cuts = watch::Sender::new(());
        let accepting = tokio::spawn({
            let (target, cuts) = (Arc::clone(&target), cuts.clone());
            async move {
                while let Ok((mut from, _)) = listener.accept().await {
                    let target = *target.lock().expect("nobody panics with it");
                    let mut cut = cuts.subscribe();
                    tokio::spawn(async move {
                        // Whoever cannot be led on is hung up on, as by a load balancer without a server.
                        let Ok(mut to) = TcpStream::connect(target).await else { return };
                        tokio::select! {
                            _ = copy_bidirectional(&mut from, &mut to) => {}
                            _ = cut.changed() => {}
                        }
                    });
                }
            }
        });
        Self { address, target, cuts, accepting }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Leads new connections there; those there are stay.
    pub fn leads_to(&self, target: SocketAddr) {
        *self.target.lock().expect("nobody panics with it") = target;
    }

    /// Cuts all connections.
    pub fn cuts(&self) {
        self.cuts.send_replace(());
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cuts();
    }
}
