//! What a failed call means, and so what happens to its action next.

use std::time::Duration;

/// A call that did not do what it should have.
///
/// `detail` is for operators (`last_error`) and for logs: a vendor's code and message, never a token or a body, and no e-mail
/// address, which [`Failure::new`] takes out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Failure {
    pub meaning: Meaning,
    /// The status of the answer that decided; none when there was no answer.
    pub http_status: Option<u16>,
    detail: String,
}

/// The classes of failure, each with its own consequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// May go better next time: retried on the schedule, not before `retry_after`.
    Transient { retry_after: Option<Duration> },
    /// The account is there, but no look-up proves which one it is: hidden, or a search that is late. Tried again.
    NotShown,
    /// Somebody, perhaps this customer, has yet to accept an invitation before another can be made: tried again after hours.
    InvitationPending,
    /// Asked to slow down: the whole destination pauses that long, and no attempt is used.
    RateLimited { retry_after: Duration },
    /// Wrong for every customer alike until somebody mends it: the destination pauses, and no attempt is used.
    Configuration,
    /// The same, because a group or an organization is not there, though Jira is and lets us look.
    TargetGone,
    /// Will never work for this customer: dead at once.
    Permanent,
    /// The account behind the identity we kept is no longer there: look again; dead if that finds nobody.
    AccountGone,
    /// A code nobody has met: retried a few times, then dead.
    Unknown,
}

impl Failure {
    /// The longest detail kept, in characters.
    const LONGEST: usize = 300;

    pub fn new(meaning: Meaning, http_status: Option<u16>, detail: impl AsRef<str>) -> Self {
        let detail = without_addresses(detail.as_ref()).chars().take(Self::LONGEST).collect();
        Self { meaning, http_status, detail }
    }

    pub fn detail(&self) -> &str {
        &self.detail
    }
}

/// Leaves out whatever holds an `@`: a vendor's message quotes the address it was given.
pub(crate) fn without_addresses(text: &str) -> String {
    // A control character would be refused by Postgres (NUL) or garble a log.
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let is_break =
        |c: char| c.is_whitespace() || matches!(c, '"' | '<' | '>' | '(' | ')' | '[' | ']' | ',' | ';' | ':');
    let mut clean = String::new();
    for word in text.split_inclusive(is_break) {
        let bare = word.trim_end_matches(is_break);
        if bare.contains('@') || bare.to_ascii_lowercase().contains("%40") {
            // An address may have one inside: o'brien@example.com.
            let (begins, ends) = (bare.starts_with('\''), bare.ends_with('\''));
            let quote = |is_there: bool| if is_there { "'" } else { "" };
            clean.extend([quote(begins), "(address)", quote(ends), &word[bare.len()..]]);
        } else {
            clean.push_str(word);
        }
    }
    clean.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detail_never_holds_an_address() {
        let said = |text: &str| Failure::new(Meaning::Permanent, Some(400), text).detail().to_owned();
        assert_eq!(
            said("Cannot add user 'ann@example.com' to group 'support'"),
            "Cannot add user '(address)' to group 'support'"
        );
        assert_eq!(said("bad email:ann@example.com, sorry"), "bad email:(address), sorry");
        assert_eq!(said("no user 'o'brien@example.com', nor mo'@example.com"), "no user '(address)', nor (address)");
        assert_eq!(said("GET /user?query=ann%40example.com failed"), "GET (address) failed");
        assert_eq!(said("two\n lines, a\0nul"), "two lines, a nul");
        assert_eq!(said(&"x".repeat(1000)).len(), 300);
    }
}
