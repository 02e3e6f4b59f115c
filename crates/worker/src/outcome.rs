//! What a call that worked came to: the counterpart of [`crate::failure`].

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
