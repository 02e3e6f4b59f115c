//! What is paid for now, whose account is whose, and which memberships we gave.
//!
//! Whatever is written here in the middle of an action is fenced: a worker whose claim is lost writes nothing.

use chrono::{DateTime, Utc};
use sqlx::{PgExecutor, PgPool};

use crate::claim::Claim;

/// What a customer pays for at this moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Paid {
    /// Whether any subscription entitles them.
    pub entitled: bool,
    /// The plans of the subscriptions that do.
    pub plans: Vec<String>,
}

/// A membership of a customer, as far as we know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// `group:<name>` or `organization:<id>`.
    pub target: String,
    pub account: String,
    pub state: MemberState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberState {
    /// About to be given: whether it was is not known.
    Intended,
    /// We gave it, and take it away when it is not paid for any more.
    Given,
    /// It was there before us, and stays.
    Found,
}

impl MemberState {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Intended => "intended",
            Self::Given => "given",
            Self::Found => "found",
        }
    }
}

/// The claim is not ours any more: another worker has the action, and nothing was written.
#[derive(Debug, thiserror::Error)]
#[error("the claim was lost")]
pub struct ClaimLost;

/// A write amid an action that did not happen.
#[derive(Debug, thiserror::Error)]
pub enum FencedWriteError {
    #[error(transparent)]
    Lost(#[from] ClaimLost),
    #[error("failed to write the ledger")]
    Database(#[from] sqlx::Error),
}

/// What this customer pays for now, by Postgres's clock.
///
/// # Errors
/// When the database is away.
pub async fn paid(pool: &PgPool, email: &str) -> Result<Paid, sqlx::Error> {
    let rows = sqlx::query_scalar!(
        "select plans from subscription where email = $1 and (entitled_until is null or entitled_until > clock_timestamp())",
        email
    )
    .fetch_all(pool)
    .await?;
    let entitled = !rows.is_empty();
    let mut plans: Vec<String> = rows.into_iter().flatten().collect();
    plans.sort();
    plans.dedup();
    Ok(Paid { entitled, plans })
}

/// The Jira account kept for this customer.
///
/// # Errors
/// When the database is away.
pub async fn jira_account(pool: &PgPool, email: &str) -> Result<Option<String>, sqlx::Error> {
    let row =
        sqlx::query_scalar!("select jira_account from customer where email = $1", email).fetch_optional(pool).await?;
    Ok(row.flatten())
}

/// Keeps the Jira account found for this customer; none forgets it.
///
/// # Errors
/// When the claim is lost or the database is away.
pub async fn keep_jira_account(
    pool: &PgPool,
    claim: &Claim,
    email: &str,
    account: Option<&str>,
) -> Result<(), FencedWriteError> {
    let written = sqlx::query!(
        "insert into customer (email, jira_account) select $1, $2
         where exists (select from outbox_action where id = $3 and claim_token = $4 and status = 'running')
         on conflict (email) do update set jira_account = excluded.jira_account",
        email,
        account,
        claim.id(),
        claim.token()
    )
    .execute(pool)
    .await?;
    fenced(written.rows_affected())
}

/// The memberships we know of this customer.
///
/// # Errors
/// When the database is away.
pub async fn memberships(pool: &PgPool, email: &str) -> Result<Vec<Member>, sqlx::Error> {
    let rows = sqlx::query!("select target, account, state from membership where email = $1 order by target", email)
        .fetch_all(pool)
        .await?;
    let state = |word: &str| match word {
        "given" => MemberState::Given,
        "found" => MemberState::Found,
        _ => MemberState::Intended,
    };
    Ok(rows
        .into_iter()
        .map(|row| Member { state: state(&row.state), target: row.target, account: row.account })
        .collect())
}

/// Writes down what we know of a membership.
///
/// # Errors
/// When the claim is lost or the database is away.
pub async fn keep_membership(
    pool: &PgPool,
    claim: &Claim,
    email: &str,
    membership: &Member,
) -> Result<(), FencedWriteError> {
    let written = sqlx::query!(
        "with held as (
           select from outbox_action where id = $5 and claim_token = $6 and status = 'running'
         ), known as (
           insert into customer (email) select $1 where exists (select from held) on conflict (email) do nothing
         )
         insert into membership as m (email, target, account, state) select $1, $2, $3, $4 where exists (select from held)
         on conflict (email, target) do update set account = excluded.account, state = excluded.state,
           since = case when m.state = excluded.state then m.since else clock_timestamp() end",
        email,
        membership.target,
        membership.account,
        membership.state.as_str(),
        claim.id(),
        claim.token()
    )
    .execute(pool)
    .await?;
    fenced(written.rows_affected())
}

/// Strikes out a membership that was taken away.
///
/// # Errors
/// When the claim is lost or the database is away.
pub async fn forget_membership(
    pool: &PgPool,
    claim: &Claim,
    email: &str,
    target: &str,
) -> Result<(), FencedWriteError> {
    let written = sqlx::query_scalar!(
        r#"with held as (
           select id from outbox_action where id = $3 and claim_token = $4 and status = 'running'
         ), gone as (
           delete from membership where email = $1 and target = $2 and exists (select from held)
         )
         select count(*) as "held!" from held"#,
        email,
        target,
        claim.id(),
        claim.token()
    )
    .fetch_one(pool)
    .await?;
    fenced(written.unsigned_abs())
}

/// Notes that the customer's memberships are what is paid for.
///
/// # Errors
/// When the claim is lost or the database is away.
pub async fn access_made(pool: &PgPool, claim: &Claim, email: &str) -> Result<(), FencedWriteError> {
    let written = sqlx::query!(
        "insert into customer (email, access_made_at) select $1, clock_timestamp()
         where exists (select from outbox_action where id = $2 and claim_token = $3 and status = 'running')
         on conflict (email) do update set access_made_at = excluded.access_made_at",
        email,
        claim.id(),
        claim.token()
    )
    .execute(pool)
    .await?;
    fenced(written.rows_affected())
}

fn fenced(rows: u64) -> Result<(), FencedWriteError> {
    if rows == 0 { Err(ClaimLost.into()) } else { Ok(()) }
}

/// Keeps the address of a Billing customer, learnt at that time or (none) just now, unless a newer one is known.
///
/// # Errors
/// When the database is away.
pub async fn keep_address(
    executor: impl PgExecutor<'_>,
    customer_id: &str,
    email: &str,
    as_of: Option<DateTime<Utc>>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into billing_customer as held (customer_id, email, as_of) values ($1, $2, coalesce($3, clock_timestamp()))
         on conflict (customer_id) do update set email = excluded.email, as_of = excluded.as_of where held.as_of <= excluded.as_of",
        customer_id,
        email,
        as_of
    )
    .execute(executor)
    .await
    .map(drop)
}

/// Whether the address of the customer that a look-up is for was learnt after the look-up was meant to be made.
///
/// # Errors
/// When the database is away.
pub async fn is_answered(pool: &PgPool, claim: &Claim) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select exists (
             select from billing_customer c join outbox_action a on a.customer_id = c.customer_id
             where a.id = $1 and c.as_of >= a.due_at) as "is_answered!""#,
        claim.id()
    )
    .fetch_one(pool)
    .await
}

/// An address as the ledger keeps it, lower-cased; none if it is none that can be acted for.
pub fn usable_address(text: &str) -> Option<String> {
    crate::received::email(text)
}

/// Writes down which plan gives which membership, for the view `access`.
///
/// # Errors
/// When the database is away.
pub async fn keep_rules(pool: &PgPool, rules: &[(String, String)]) -> Result<(), sqlx::Error> {
    let (plans, targets): (Vec<&str>, Vec<&str>) =
        rules.iter().map(|(plan, target)| (plan.as_str(), target.as_str())).unzip();
    let mut transaction = pool.begin().await?;
    sqlx::query!(
        "delete from access_rule r where not exists (
           select from unnest($1::text[], $2::text[]) as new (plan, target) where new.plan = r.plan and new.target = r.target)",
        &plans as _,
        &targets as _
    )
    .execute(&mut *transaction)
    .await?;
    sqlx::query!(
        "insert into access_rule (plan, target) select * from unnest($1::text[], $2::text[]) on conflict do nothing",
        &plans as _,
        &targets as _
    )
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await
}
