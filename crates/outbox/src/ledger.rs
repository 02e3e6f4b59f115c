//! What is paid for now, whose account is whose, and which memberships we gave.
//!
//! Whatever is written here in the middle of an action is fenced: a worker whose claim is lost writes nothing. But for the address of a
//! customer of Billing ([`keep_address`]): the newest one wins, whoever writes it.

use sqlx::PgExecutor;

use crate::access::Address;
use crate::claim::Claim;
use crate::names::from_schema;
use crate::{MemberState, PgPool};

/// A membership of a customer, as far as we know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// `group:<name>` or `organization:<id>`.
    pub target: String,
    pub account: String,
    pub state: MemberState,
}

/// A write amid an action that did not happen.
#[derive(Debug, thiserror::Error)]
pub enum FencedWriteError {
    /// The claim is not ours any more: another worker has the action.
    #[error("the claim was lost")]
    ClaimLost,
    #[error("failed to write the ledger")]
    Database(#[from] sqlx::Error),
}

/// The plans this customer pays for now, by Postgres's clock; none if nothing is paid for.
///
/// # Errors
/// When the database is away.
pub async fn paid(pool: &PgPool, email: &str) -> Result<Option<Vec<String>>, sqlx::Error> {
    let rows = sqlx::query_scalar!(
        "select plans from subscription where email = $1 and (entitled_until is null or entitled_until > clock_timestamp())",
        email
    )
    .fetch_all(pool)
    .await?;
    if rows.is_empty() {
        return Ok(None);
    }
    let mut plans: Vec<String> = rows.into_iter().flatten().collect();
    plans.sort();
    plans.dedup();
    Ok(Some(plans))
}

/// Whether this customer had a subscription and has none any more that pays. Whom the ledger does not know has not left: a
/// payment may come before its subscription.
///
/// # Errors
/// When the database is away.
pub async fn has_left(pool: &PgPool, email: &str) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select (exists (select from subscription where email = $1)
                   or exists (select from customer where email = $1 and paid_changed_at is not null))
              and not exists (select from subscription where email = $1 and (entitled_until is null or entitled_until > clock_timestamp()))
              as "has_left!""#,
        email
    )
    .fetch_one(pool)
    .await
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

/// Keeps the Jira account found for this customer.
///
/// # Errors
/// When the claim is lost or the database is away.
pub async fn keep_jira_account(
    pool: &PgPool,
    claim: &Claim,
    email: &str,
    account: &str,
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

/// Whether Slack Connect sent this customer an invitation that can still be accepted: it expires after 14 days
/// (trailhead.salesforce.com/content/learn/modules/slack-connect/use-slack-to-work-with-people-outside-your-organization).
///
/// # Errors
/// When the database is away.
pub async fn has_slack_invitation(pool: &PgPool, email: &str) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select exists (select from customer where email = $1 and slack_invited_at > clock_timestamp() - interval '14 days')
              as "has_invitation!""#,
        email
    )
    .fetch_one(pool)
    .await
}

/// Notes that Slack Connect has just sent this customer an invitation.
///
/// # Errors
/// When the claim is lost or the database is away.
pub async fn keep_slack_invitation(pool: &PgPool, claim: &Claim, email: &str) -> Result<(), FencedWriteError> {
    let written = sqlx::query!(
        "insert into customer (email, slack_invited_at) select $1, clock_timestamp()
         where exists (select from outbox_action where id = $2 and claim_token = $3 and status = 'running')
         on conflict (email) do update set slack_invited_at = excluded.slack_invited_at",
        email,
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
    let members =
        rows.into_iter().map(|row| Member { target: row.target, account: row.account, state: from_schema(&row.state) });
    Ok(members.collect())
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

/// What we know of the same membership of the same account under other addresses: one person may have two.
///
/// # Errors
/// When the database is away.
pub async fn same_account(pool: &PgPool, email: &str, member: &Member) -> Result<Vec<MemberState>, sqlx::Error> {
    let states = sqlx::query_scalar!(
        "select state from membership where target = $1 and account = $2 and email <> $3",
        member.target,
        member.account,
        email
    )
    .fetch_all(pool)
    .await?;
    Ok(states.iter().map(|word| from_schema(word)).collect())
}

/// Whether the same membership of the same account is being taken away under another address at this moment.
///
/// # Errors
/// When the database is away.
pub async fn is_leaving_elsewhere(pool: &PgPool, email: &str, member: &Member) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select exists (
             select from membership m
             join outbox_action a on a.destination = 'jira' and a.subject = m.email and a.status = 'running'
             where m.target = $1 and m.account = $2 and m.email <> $3 and m.state = 'leaving') as "is_leaving!""#,
        member.target,
        member.account,
        email
    )
    .fetch_one(pool)
    .await
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

/// Notes that the customer's memberships are what is paid for, and sees to it that they are looked at again when that ends: the
/// action for it may never have been planned, or may have been run before its time.
///
/// # Errors
/// When the claim is lost or the database is away.
pub async fn access_made(pool: &PgPool, claim: &Claim, email: &str) -> Result<(), FencedWriteError> {
    let written = sqlx::query_scalar!(
        r#"
        with claim as materialized (
          select outbox_id from outbox_action where id = $2 and claim_token = $3 and status = 'running'
        ), made as (
          insert into customer (email, access_made_at) select $1, clock_timestamp() from claim
          on conflict (email) do update set access_made_at = excluded.access_made_at
          returning email
        ), ending as (
          insert into outbox_action (id, outbox_id, kind, email, due_at, run_at)
          select gen_random_uuid(), claim.outbox_id, 'jira_access', $1, paid.until, paid.until
          from claim, (select distinct entitled_until as until from subscription where email = $1 and entitled_until > clock_timestamp()) paid
          where not exists (
            select from outbox_action a
            where a.subject = $1 and a.kind = 'jira_access' and a.status = 'pending' and a.due_at = paid.until offset 0)
        )
        select count(*) as "count!" from made
        "#,
        email,
        claim.id(),
        claim.token()
    )
    .fetch_one(pool)
    .await?;
    fenced(written.unsigned_abs())
}

fn fenced(rows: u64) -> Result<(), FencedWriteError> {
    if rows == 0 { Err(FencedWriteError::ClaimLost) } else { Ok(()) }
}

/// Keeps the address of a Billing customer, unless a newer one is known.
///
/// # Errors
/// When the database is away.
pub async fn keep_address(
    executor: impl PgExecutor<'_>,
    customer_id: &str,
    address: &Address,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        r#"
        insert into billing_customer as held (customer_id, email, as_of, told_by) values ($1, $2, $3, $4)
        on conflict (customer_id) do update
        set email = excluded.email, as_of = excluded.as_of, told_by = excluded.told_by, learnt_at = excluded.learnt_at
        where (held.as_of, coalesce(held.told_by, '') collate "C") <= (excluded.as_of, coalesce(excluded.told_by, '') collate "C")
        "#,
        customer_id,
        address.email,
        address.as_of,
        address.told_by
    )
    .execute(executor)
    .await
    .map(drop)
}

/// Whether a look-up has its answer already: the address was learnt after the look-up was meant to be made.
///
/// # Errors
/// When the database is away.
pub async fn is_looked_up(pool: &PgPool, claim: &Claim) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"select exists (
             select from billing_customer c join outbox_action a on a.customer_id = c.customer_id
             where a.id = $1 and c.learnt_at >= a.due_at) as "is_looked_up!""#,
        claim.id()
    )
    .fetch_one(pool)
    .await
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
