//! The body of a request is read, as far as there is room.
//!
//! Anybody may post, and what has not come in full cannot be verified. So how much all of them together can make the receiver
//! hold is bounded: what is small has room always, so that no alert of the usual size is refused for the sake of large ones;
//! what is larger shares the rest.

use std::pin::pin;
use std::sync::Arc;

use actix_web::error::PayloadError;
use actix_web::web::Payload;
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes that each request may hold in any case: several times an alert of the usual size.
const SMALL: usize = 16 * 1024;

/// Bytes beyond that, of all requests together.
const SHARED: usize = 32 * 1024 * 1024;

/// Room for what of bodies is not small.
#[derive(Debug, Clone)]
pub struct Room {
    /// In kilobytes.
    shared: Arc<Semaphore>,
    most: usize,
}

/// A body, and the room that it takes.
#[derive(Debug)]
pub struct Body {
    pub bytes: Bytes,
    pub room: Option<OwnedSemaphorePermit>,
}

/// Why a body was not read.
#[derive(Debug, thiserror::Error)]
pub enum Unread {
    #[error("it is longer than a body may be")]
    TooLarge,
    #[error("too many large bodies are being read")]
    NoRoom,
    #[error(transparent)]
    BrokeOff(#[from] PayloadError),
}

impl Room {
    /// For bodies of `most` bytes at most. There is room for one of them in any case.
    pub fn new(most: usize) -> Self {
        Self { shared: Arc::new(Semaphore::new(kilobytes(SHARED.max(most)))), most }
    }

    /// Bytes of a body, at most.
    pub fn most(&self) -> usize {
        self.most
    }

    /// Reads a body of which `announced` bytes are announced.
    ///
    /// # Errors
    /// When it is too long, breaks off, or finds no room.
    pub async fn read(&self, payload: Payload, announced: Option<usize>) -> Result<Body, Unread> {
        if announced.is_some_and(|announced| announced > self.most) {
            return Err(Unread::TooLarge);
        }
        let mut payload = pin!(payload);
        // What is announced need not come.
        let mut bytes = Vec::with_capacity(announced.unwrap_or(SMALL).min(SMALL));
        let (mut room, mut length, mut has_room) = (None, 0, true);
        while let Some(part) = payload.next().await {
            let part = part?;
            length += part.len();
            if length > self.most {
                return Err(Unread::TooLarge);
            }
            if length > bytes.capacity() && has_room {
                let capacity = length.max(2 * bytes.capacity()).min(self.most.max(SMALL));
                has_room = self.extend(&mut room, capacity.saturating_sub(SMALL));
                if has_room {
                    bytes.reserve_exact(capacity - bytes.len());
                } else {
                    (bytes, room) = (Vec::new(), None);
                }
            }
            // The rest is read all the same, and let go: who still sends may not hear the answer.
            if has_room {
                bytes.extend_from_slice(&part);
            }
        }
        if has_room { Ok(Body { bytes: bytes.into(), room }) } else { Err(Unread::NoRoom) }
    }

    /// Extends the room of one body, if there is as much.
    fn extend(&self, room: &mut Option<OwnedSemaphorePermit>, bytes: usize) -> bool {
        let held = room.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = u32::try_from(kilobytes(bytes).saturating_sub(held)).unwrap_or(u32::MAX);
        match (Arc::clone(&self.shared).try_acquire_many_owned(more), room) {
            (Ok(more), Some(room)) => room.merge(more),
            (Ok(more), none) => *none = Some(more),
            (Err(_), _) => return false,
        }
        true
    }
}

fn kilobytes(bytes: usize) -> usize {
    bytes.div_ceil(1024)
}
