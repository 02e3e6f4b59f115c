//! What a call that worked came to: the counterpart of [`crate::failure`].

use crate::failure::Failure;

/// What inviting somebody came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InviteOutcome {
    Invited,
    /// Invited or a member before this call; the vendor says so.
    AlreadyInvited,
}

/// What adding somebody came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Added {
    Now,
    Already,
}

/// What removing somebody came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    Now,
    NotThere,
}

/// What one read-only check of a vendor found, for `oarlock-worker doctor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at, such as `jira: service desk 3`.
    pub what: String,
    /// What is there; or what is wrong and what to do about it.
    pub result: Result<String, String>,
}

impl Finding {
    pub(crate) fn new(what: impl Into<String>, result: Result<String, Failure>) -> Self {
        Self { what: what.into(), result: result.map_err(|failure| failure.detail().to_owned()) }
    }
}
