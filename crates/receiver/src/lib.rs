//! The receiver: verifies Paddle's alerts, stores them in the outbox, answers 200.
//!
//! | module | what happens there |
//! |---|---|
//! | [`run`] | the listeners are opened, served and closed |
//! | `request` | each request has an id, a place in a trace, and a span |
//! | [`webhook`] | a request becomes an answer |
//! | [`body`] | a body is read, as far as there is room |
//! | [`signature`] | a body is proved to be Paddle's |
//! | [`intake`] | verified alerts are committed, many at a time |
//! | [`metrics`] | what is counted |
//!
//! It calls nobody but Postgres, and does nothing of what an alert asks for: that is the worker's.

mod request;

pub mod body;
pub mod intake;
pub mod metrics;
pub mod run;
pub mod signature;
pub mod webhook;
