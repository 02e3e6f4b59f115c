//! Results are written, guarded by the token.
//!
//! What is written, and what follows for others, is a function of the schema: `outbox_record` in `migrations/0001_outbox.sql`.

use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::claim::Claim;
use crate::{Kind, PgPool};

/// An action's run, over.
#[derive(Debug)]
pub struct Finished {
    claim: Claim,
    verdict: Verdict,
    attempt: Option<Attempt>,
}

/// What becomes of the action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Done, and what was done.
    Done(&'static str),
    /// To be tried again after that time.
    Retry { after: Duration, error: String },
    /// To be tried again after that time, and not due before it: a person has to act first.
    Postponed { after: Duration, error: String },
    /// Handed back after that time as if it had not been claimed: a pause or a stop uses no attempt.
    HandedBack { after: Duration, error: Option<String> },
    /// Handed back because the configuration is wrong, which uses no attempt: not before the destination's pause is over,
    /// and later with each time, so that one action that is wrong by itself does not keep all others from being tried.
    StoodBack { error: String },
    /// Dead, and why.
    Dead(String),
    /// Dead, since all attempts are used up, and what the last one said. What followed this one but came late is not.
    UsedUp(String),
}

/// What was tried, for the history.
#[derive(Debug, Clone)]
pub struct Attempt {
    pub started: Instant,
    pub ended: Instant,
    pub http_status: Option<u16>,
    /// None when it succeeded.
    pub error: Option<String>,
}

impl Finished {
    /// Ends a claim; without an attempt if nobody was called.
    pub fn new(claim: Claim, verdict: Verdict, attempt: Option<Attempt>) -> Self {
        Self { claim, verdict, attempt }
    }

    pub fn kind(&self) -> Kind {
        self.claim.kind
    }

    /// The same end of the same claim, with another verdict: for one that Postgres does not take.
    #[must_use]
    pub fn instead(self, verdict: Verdict) -> Self {
        Self { verdict, attempt: None, ..self }
    }

    pub fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    pub fn action_id(&self) -> Uuid {
        self.claim.id()
    }
}

/// Writes results, all or none; returns the actions whose claim was lost, for which nothing was written.
///
/// What was tied to an action at its claim shares its end.
///
/// # Errors
/// When nothing was written. Giving the same results again is right.
pub async fn record(pool: &PgPool, results: &[Finished]) -> Result<Vec<Uuid>, sqlx::Error> {
    let ids: Vec<Uuid> = results.iter().map(Finished::action_id).collect();
    let verdicts: Vec<&Verdict> = results.iter().map(Finished::verdict).collect();
    let attempts: Vec<Option<&Attempt>> = results.iter().map(|result| result.attempt.as_ref()).collect();
    let is_in_vain =
        |result: &&Finished| result.kind() == Kind::PaddleCustomer && !matches!(result.verdict, Verdict::Done(_));
    let now = Instant::now();
    let milliseconds = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    let recorded = sqlx::query_scalar!(
        r#"select outbox_record($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) as "recorded!""#,
        &ids,
        &results.iter().map(|result| result.claim.token()).collect::<Vec<_>>(),
        &verdicts.iter().map(|verdict| verdict.status()).collect::<Vec<_>>() as _,
        &verdicts.iter().map(|verdict| verdict.outcome()).collect::<Vec<_>>() as _,
        &verdicts.iter().map(|verdict| verdict.error()).collect::<Vec<_>>() as _,
        &verdicts.iter().map(|verdict| milliseconds(verdict.delay())).collect::<Vec<_>>(),
        &verdicts.iter().map(|verdict| verdict.is_counted()).collect::<Vec<_>>(),
        &attempts
            .iter()
            .map(|tried| tried.map(|tried| milliseconds(now.duration_since(tried.started))))
            .collect::<Vec<_>>() as _,
        &attempts
            .iter()
            .map(|tried| tried.map(|tried| milliseconds(tried.ended.duration_since(tried.started))))
            .collect::<Vec<_>>() as _,
        &attempts.iter().map(|tried| tried.and_then(|tried| tried.http_status.map(i32::from))).collect::<Vec<_>>() as _,
        &attempts.iter().map(|tried| tried.and_then(|tried| tried.error.as_deref())).collect::<Vec<_>>() as _,
        &verdicts.iter().map(|verdict| matches!(verdict, Verdict::StoodBack { .. })).collect::<Vec<_>>(),
        &verdicts.iter().map(|verdict| matches!(verdict, Verdict::Postponed { .. })).collect::<Vec<_>>(),
        &verdicts.iter().map(|verdict| matches!(verdict, Verdict::UsedUp(_))).collect::<Vec<_>>(),
        &results.iter().filter(is_in_vain).map(Finished::action_id).collect::<Vec<_>>(),
    )
    .fetch_one(pool)
    .await?;
    Ok(ids.into_iter().filter(|id| !recorded.contains(id)).collect())
}

/// How many of the last attempts before this one failed with just this error, of as many as `most` that are looked at.
///
/// # Errors
/// When the database is away.
pub async fn failed_alike(pool: &PgPool, claim: &Claim, error: &str, most: u32) -> Result<u32, sqlx::Error> {
    let before = claim.attempt.saturating_sub(1).min(most);
    let alike = sqlx::query_scalar!(
        r#"select count(*) as "alike!" from (select error from outbox_attempt where action_id = $1 order by id desc limit $2) a where error = $3"#,
        claim.id(),
        i64::from(before),
        error
    )
    .fetch_one(pool)
    .await?;
    Ok(u32::try_from(alike).unwrap_or(most))
}

/// Whether the claim is still the one that holds; asked without waiting for whoever has its row.
///
/// # Errors
/// When the database is away.
pub async fn is_still_claimed(pool: &PgPool, result: &Finished) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select exists (select from outbox_action where id = $1 and claim_token = $2 and status = 'running') as "is_still_claimed!""#,
        result.claim.id(),
        result.claim.token()
    )
    .fetch_one(pool)
    .await
}

impl Verdict {
    fn status(&self) -> &'static str {
        match self {
            Self::Done(_) => "done",
            Self::Retry { .. } | Self::Postponed { .. } | Self::HandedBack { .. } | Self::StoodBack { .. } => "pending",
            Self::Dead(_) | Self::UsedUp(_) => "dead",
        }
    }

    /// Whether it uses an attempt.
    fn is_counted(&self) -> bool {
        !matches!(self, Self::HandedBack { .. } | Self::StoodBack { .. })
    }

    fn outcome(&self) -> Option<&str> {
        match self {
            Self::Done(outcome) => Some(outcome),
            Self::Retry { .. }
            | Self::Postponed { .. }
            | Self::HandedBack { .. }
            | Self::StoodBack { .. }
            | Self::Dead(_)
            | Self::UsedUp(_) => None,
        }
    }

    fn error(&self) -> Option<&str> {
        match self {
            Self::Done(_) => None,
            Self::Retry { error, .. }
            | Self::Postponed { error, .. }
            | Self::StoodBack { error }
            | Self::Dead(error)
            | Self::UsedUp(error) => Some(error),
            Self::HandedBack { error, .. } => error.as_deref(),
        }
    }

    fn delay(&self) -> Duration {
        match self {
            Self::Retry { after, .. } | Self::Postponed { after, .. } | Self::HandedBack { after, .. } => *after,
            Self::Done(_) | Self::StoodBack { .. } | Self::Dead(_) | Self::UsedUp(_) => Duration::ZERO,
        }
    }
}
