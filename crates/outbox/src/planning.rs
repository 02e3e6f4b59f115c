//! Alerts become ledger entries and actions, in one transaction and without a call to anyone.
//!
//! [`take`] locks a batch of alerts and reads what the ledger holds about them; the caller decides, purely; [`Batch::commit`]
//! writes what was decided. One worker plans at a time: alerts of one customer concern each other in too many ways (several
//! subscriptions, changes of address) to be planned side by side, and planning calls nobody, so it is quick.

use std::collections::{BTreeSet, HashMap, HashSet};

use chrono::{DateTime, Utc};
use serde_json::Value;
use uuid::Uuid;

use crate::access::{Address, AddressChange, Told};
use crate::alert::{self, Alert, Status};
use crate::claim::{AlertRef, Claim, Terms};
use crate::names::from_schema;
use crate::pool::{PgPool, Transaction};
use crate::{Destination, Kind, Source, interval, ledger, received};

/// Alerts under lock, with what is known about them.
#[derive(Debug)]
pub struct Batch {
    transaction: Transaction,
    /// Postgres's clock.
    pub now: DateTime<Utc>,
    /// In the order they arrived.
    pub alerts: Vec<Alert>,
    pub known: Known,
}

/// A subscription by its source and number.
pub type Key = (Source, String);

/// What the ledger holds about the alerts' subscriptions and customers, and about others that they concern.
#[derive(Debug, Clone, Default)]
pub struct Known {
    pub subscriptions: HashMap<Key, Subscription>,
    /// All that was told of each of them.
    pub told: HashMap<Key, Vec<Told>>,
    /// Billing's customer ids with their addresses.
    pub addresses: HashMap<String, Address>,
    /// All changes that lead on from an address that was told of one of them.
    pub address_changes: Vec<AddressChange>,
}

/// A subscription as the ledger holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    pub email: Option<String>,
    /// Classic: the address that the alerts name.
    pub told_email: Option<String>,
    pub customer_id: Option<String>,
    pub plans: Vec<String>,
    pub status: Status,
    pub entitled_until: Option<DateTime<Utc>>,
    pub as_of: DateTime<Utc>,
}

/// What is to be written.
#[derive(Debug, Default)]
pub struct Plan {
    pub alerts: Vec<PlannedAlert>,
    /// Entries that are new or different.
    pub subscriptions: HashMap<Key, Subscription>,
    pub told: Vec<(Key, Told)>,
    pub address_changes: Vec<AddressChange>,
    pub addresses: HashMap<String, Address>,
    /// Customers for whom what is paid for changed.
    pub paid_changed: BTreeSet<String>,
    /// Customers whose subscription belongs to another address now.
    pub former_owners: BTreeSet<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedAlert {
    pub id: Uuid,
    /// The customer's address, where it is known by now.
    pub email: Option<String>,
    pub decision: Decision,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// There is nothing to do.
    Ignored,
    /// It cannot be planned, and why.
    Dead(String),
    /// What is to be done; not empty. After a look-up of the address the alert is planned again.
    Actions(Vec<NewAction>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewAction {
    pub kind: Kind,
    /// The customer's address; for a look-up of it, Billing's customer id.
    pub subject: String,
    /// At once if none.
    pub due_at: Option<DateTime<Utc>>,
    /// Only while a subscription pays, whenever it is run.
    pub while_paid: bool,
    /// It may be written as claimed, if its customer has nothing else open.
    pub begins: bool,
}

/// Takes up to `limit` alerts that are not planned yet, the oldest first, of those that came after the alert `after` if that is
/// given; none if there are none. It waits for no lock for long: what somebody holds up is for them to end, meanwhile there is
/// other work, and who replays by SQL, and locks in another order, is not the one to give way.
///
/// # Errors
/// When the database is away.
pub async fn take(pool: &PgPool, limit: usize, after: Option<Uuid>) -> Result<Option<Batch>, sqlx::Error> {
    // Whoever falls silent in the middle must not keep the others from planning. A plan need not wait for the disk: nobody is
    // called before a claim is committed, which comes after it in the log. The lock is forget()'s too (migrations/0002_roles.sql).
    let mut transaction = pool
        .begin_with(
            "set local idle_in_transaction_session_timeout = '30s'; set local synchronous_commit = off;
             select pg_advisory_xact_lock(x'6f61726c6f636b01'::bigint);
             set local lock_timeout = '300ms'",
        )
        .await?;
    let rows = sqlx::query!(
        r#"
        select id, source, alert_id, alert_name, coalesce(occurred_at, received_at) as "happened_at!", raw_body, mended_payload, trace_parent,
               clock_timestamp() as "now!"
        from outbox where to_plan and id > $2 order by id limit $1 for update skip locked
        "#,
        i64::try_from(limit).unwrap_or(i64::MAX),
        after.unwrap_or(Uuid::nil())
    )
    .fetch_all(&mut *transaction)
    .await?;
    let Some(now) = rows.first().map(|row| row.now) else { return Ok(None) };
    let alerts: Vec<Alert> = rows
        .into_iter()
        .map(|row| {
            let source = from_schema(&row.source);
            Alert {
                says: alert::read(
                    source,
                    &row.alert_name,
                    &received::payload_of(source, &row.raw_body, row.mended_payload),
                ),
                id: row.id,
                source,
                alert_id: row.alert_id,
                name: row.alert_name.parse().ok(),
                happened_at: row.happened_at,
                trace_parent: row.trace_parent.and_then(|parent| parent.parse().ok()),
            }
        })
        .collect();
    let known = known(&mut transaction, &alerts).await?;
    Ok(Some(Batch { transaction, now, alerts, known }))
}

async fn known(transaction: &mut Transaction, alerts: &[Alert]) -> Result<Known, sqlx::Error> {
    let (sources, ids): (Vec<&str>, Vec<&str>) = alerts
        .iter()
        .filter_map(|alert| Some((alert.source.as_str(), alert.says.subscription.as_ref()?.id.as_str())))
        .unzip();
    let mut customers: Vec<&str> = alerts.iter().filter_map(|alert| alert.says.customer_id.as_deref()).collect();
    let (mut old_emails, mut new_emails) = (Vec::new(), Vec::new());
    for alert in alerts {
        if let Some(alert::NewAddress::Classic { old, new }) = &alert.says.new_address {
            old_emails.push(old.as_str());
            new_emails.push(new.as_str());
        }
    }
    let mut known = Known::default();
    if sources.is_empty() && old_emails.is_empty() && customers.is_empty() {
        return Ok(known);
    }
    known.subscriptions = subscriptions(transaction, (&sources, &ids), &old_emails, &customers).await?;
    if !known.subscriptions.is_empty() {
        known.told = told(transaction, known.subscriptions.keys()).await?;
    }
    let emails: Vec<&str> = alerts
        .iter()
        .filter(|alert| alert.says.subscription.is_some())
        .filter_map(|alert| alert.says.email.as_deref())
        .chain(known.subscriptions.values().filter_map(|subscription| subscription.told_email.as_deref()))
        .chain(old_emails.iter().copied())
        // From where a change leads that only this batch tells of, another may have led on before.
        .chain(new_emails.iter().copied())
        .collect();
    known.address_changes = address_changes(transaction, &emails).await?;
    // A subscription may have moved to another customer than the one this batch names.
    customers.extend(known.subscriptions.values().filter_map(|subscription| subscription.customer_id.as_deref()));
    customers.extend(known.told.values().flatten().filter_map(|told| told.customer_id.as_deref()));
    if !customers.is_empty() {
        let rows = sqlx::query!(
            "select customer_id, email, as_of, told_by from billing_customer where customer_id = any($1::text[])",
            &customers as _
        )
        .fetch_all(&mut **transaction)
        .await?;
        for row in rows {
            let address = Address { email: row.email, as_of: row.as_of, told_by: row.told_by };
            known.addresses.insert(row.customer_id, address);
        }
    }
    Ok(known)
}

/// Those with these keys, those that belong to these addresses of Classic or did once and were led on, and those of these customers
/// of Billing.
async fn subscriptions(
    transaction: &mut Transaction,
    (sources, ids): (&[&str], &[&str]),
    old_emails: &[&str],
    customers: &[&str],
) -> Result<HashMap<Key, Subscription>, sqlx::Error> {
    // Row by row: by the source alone, which an index begins with, one would read them all. And an address may have had several
    // owners in turn.
    let rows = sqlx::query!(
        r#"
        select source as "source!", subscription_id as "subscription_id!", email, told_email, customer_id, plans as "plans!",
               status as "status!", entitled_until, as_of as "as_of!"
        from (
          select s.* from unnest($1::text[], $2::text[]) as k (source, id) cross join lateral (
            select * from subscription where source = k.source and subscription_id = k.id offset 0) s
          union
          select s.* from (
            with recursive passed (email) as (
              select unnest($3::text[]) collate "C"
              union
              select change.old_email from passed join classic_address_change change on change.new_email = passed.email)
            select email from passed) as old cross join lateral (
            select * from subscription where email = old.email union select * from subscription where told_email = old.email offset 0) s
          where s.source = 'classic'
          union
          select s.* from unnest($4::text[]) as customer (id) cross join lateral (
            select * from subscription where customer_id = customer.id offset 0) s
          where s.source = 'billing') as concerned
        "#,
        sources as _,
        ids as _,
        old_emails as _,
        customers as _
    )
    .fetch_all(&mut **transaction)
    .await?;
    let read = rows.into_iter().map(|row| {
        let subscription = Subscription {
            email: row.email,
            told_email: row.told_email,
            customer_id: row.customer_id,
            plans: row.plans,
            status: status(&row.status),
            entitled_until: row.entitled_until,
            as_of: row.as_of,
        };
        ((from_schema(&row.source), row.subscription_id), subscription)
    });
    Ok(read.collect())
}

async fn told(
    transaction: &mut Transaction,
    keys: impl Iterator<Item = &Key>,
) -> Result<HashMap<Key, Vec<Told>>, sqlx::Error> {
    let (sources, ids): (Vec<&str>, Vec<&str>) = keys.map(|(source, id)| (source.as_str(), id.as_str())).unzip();
    let rows = sqlx::query!(
        r#"
        select t.source, t.subscription_id, t.alert_id, t.happened_at, t.status, t.old_status, t.plans, t.ends, t.full_refund, t.email,
               t.customer_id
        from unnest($1::text[], $2::text[]) as k (source, id) cross join lateral (
          select * from subscription_alert where source = k.source and subscription_id = k.id offset 0) t
        "#,
        &sources as _,
        &ids as _
    )
    .fetch_all(&mut **transaction)
    .await?;
    let mut told: HashMap<Key, Vec<Told>> = HashMap::new();
    for row in rows {
        told.entry((from_schema(&row.source), row.subscription_id)).or_default().push(Told {
            alert_id: row.alert_id,
            happened_at: row.happened_at,
            status: status(&row.status),
            old_status: row.old_status.as_deref().map(status),
            plans: row.plans,
            ends: row.ends,
            full_refund: row.full_refund,
            email: row.email,
            customer_id: row.customer_id,
        });
    }
    Ok(told)
}

/// All changes of address that begin at one of these, or go on from where such a one ends.
async fn address_changes(transaction: &mut Transaction, emails: &[&str]) -> Result<Vec<AddressChange>, sqlx::Error> {
    if emails.is_empty() {
        return Ok(Vec::new());
    }
    sqlx::query_as!(
        AddressChange,
        r#"
        with recursive chain as (
          select * from classic_address_change where old_email = any($1::text[])
          union
          select next.* from chain join classic_address_change next on next.old_email = chain.new_email
        )
        select alert_id as "alert_id!", happened_at as "happened_at!", old_email as "old!", new_email as "new!" from chain
        "#,
        emails as _
    )
    .fetch_all(&mut **transaction)
    .await
}

fn status(word: &str) -> Status {
    Status::parse(word).expect("the schema allows these alone")
}

impl Plan {
    /// Whom its actions call, and how many there are of each.
    pub fn destinations(&self) -> HashMap<Destination, usize> {
        let mut destinations = HashMap::new();
        for (_, action) in self.actions() {
            *destinations.entry(action.kind.destination()).or_default() += 1;
        }
        destinations
    }

    /// Marks what may be begun with the plan itself: as many actions of each destination as there is `room` for that are due at
    /// once, of each customer the first at most, and none that one call is to do together with others.
    pub fn begin(&mut self, mut room: HashMap<Destination, usize>) {
        if room.values().all(|room| *room == 0) {
            return;
        }
        let mut alike: HashMap<(Kind, String), usize> = HashMap::new();
        for (_, action) in self.actions() {
            *alike.entry((action.kind, action.subject.clone())).or_default() += 1;
        }
        let mut served = HashSet::new();
        for alert in &mut self.alerts {
            let Decision::Actions(actions) = &mut alert.decision else { continue };
            for action in actions {
                let destination = action.kind.destination();
                let is_first = served.insert((destination, action.subject.clone()));
                let is_alone = alike.get(&(action.kind, action.subject.clone())) == Some(&1);
                let Some(room) = room.get_mut(&destination).filter(|room| **room > 0) else { continue };
                if is_first && is_alone && action.due_at.is_none() {
                    action.begins = true;
                    *room -= 1;
                }
            }
        }
    }

    /// All actions, with the alerts they are of.
    fn actions(&self) -> impl Iterator<Item = (Uuid, &NewAction)> {
        self.alerts.iter().flat_map(|alert| {
            let actions = match &alert.decision {
                Decision::Actions(actions) => actions.as_slice(),
                Decision::Ignored | Decision::Dead(_) => &[],
            };
            actions.iter().map(|action| (alert.id, action))
        })
    }
}

impl Batch {
    /// Writes the plan and lets go of the alerts; returns the claims of what is begun with it.
    ///
    /// # Errors
    /// When nothing was written (every alert is as it was before), or that is not known.
    pub async fn commit(mut self, plan: &Plan, terms: &Terms) -> Result<Vec<Claim>, sqlx::Error> {
        let transaction = &mut self.transaction;
        for change in &plan.address_changes {
            write_address_change(transaction, change).await?;
        }
        for (customer_id, address) in &plan.addresses {
            ledger::keep_address(&mut **transaction, customer_id, address).await?;
        }
        if !plan.addresses.is_empty() {
            let customers: Vec<&str> = plan.addresses.keys().map(String::as_str).collect();
            sqlx::query!("select answer_look_ups($1)", &customers as _).execute(&mut **transaction).await?;
        }
        let actions: Vec<_> = plan.actions().map(|(alert, action)| (Uuid::now_v7(), alert, action)).collect();
        let token = Uuid::new_v4();
        let begun = write(transaction, plan, &actions, self.now, token, terms).await?;
        if !plan.former_owners.is_empty() {
            let former_owners: Vec<&str> = plan.former_owners.iter().map(String::as_str).collect();
            sqlx::query!("select invitations_follow($1)", &former_owners as _).fetch_one(&mut **transaction).await?;
        }
        if !plan.paid_changed.is_empty() {
            // By itself, when the ledger is written and the customers' rows are locked.
            let customers: Vec<&str> = plan.paid_changed.iter().map(String::as_str).collect();
            sqlx::query!("select invite_the_owed($1)", &customers as _).execute(&mut **transaction).await?;
        }
        self.transaction.commit().await?;
        let alert = |id| {
            let alert = self.alerts.iter().find(|alert| alert.id == id).expect("an action is of an alert of the batch");
            AlertRef { id, source: alert.source, alert_id: alert.alert_id.clone(), trace_parent: alert.trace_parent }
        };
        let begun = actions.into_iter().filter(|(id, ..)| begun.contains(id));
        Ok(begun.map(|(id, of, action)| Claim::of_new(id, token, action, alert(of))).collect())
    }
}

/// Marks an alert that cannot be planned, unless that was done meanwhile.
///
/// # Errors
/// When the database is away.
pub async fn bury(pool: &PgPool, alert: Uuid, reason: &str) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "update outbox set to_plan = false, status = 'dead', last_error = $2, finished_at = clock_timestamp() where id = $1 and to_plan",
        alert,
        reason
    )
    .execute(pool)
    .await
    .map(drop)
}

async fn write_address_change(transaction: &mut Transaction, change: &AddressChange) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "insert into classic_address_change (alert_id, happened_at, old_email, new_email) values ($1, $2, $3, $4) on conflict do nothing",
        change.alert_id,
        change.happened_at,
        change.old,
        change.new
    )
    .execute(&mut **transaction)
    .await
    .map(drop)
}

/// Writes what follows from each alert; returns the actions that are claimed. One statement, since on a busy machine a round trip
/// to Postgres takes a millisecond.
///
/// An action is written as claimed under the terms of [`crate::claim::claim`], as far as they are simple: its destination is
/// neither paused nor being tried again nor paced, and nothing else is open for the customer, whom the call could be for as well.
async fn write(
    transaction: &mut Transaction,
    plan: &Plan,
    actions: &[(Uuid, Uuid, &NewAction)],
    now: DateTime<Utc>,
    token: Uuid,
    terms: &Terms,
) -> Result<Vec<Uuid>, sqlx::Error> {
    let (alerts, told) = (&plan.alerts, &plan.told);
    let subscriptions: Vec<_> = plan.subscriptions.iter().collect();
    let paid_changed: Vec<&str> = plan.paid_changed.iter().map(String::as_str).collect();
    sqlx::query_scalar!(
        r#"
        with subscriptions as (
          insert into subscription
            (source, subscription_id, email, told_email, customer_id, plans, status, entitled_until, as_of)
          select source, id, email, told_email, customer_id, array(select jsonb_array_elements_text(plans::jsonb)), status, entitled_until, as_of
          from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::timestamptz[], $9::timestamptz[])
            as new (source, id, email, told_email, customer_id, plans, status, entitled_until, as_of)
          on conflict (source, subscription_id) do update set
            email = excluded.email, told_email = excluded.told_email, customer_id = excluded.customer_id, plans = excluded.plans,
            status = excluded.status, entitled_until = excluded.entitled_until, as_of = excluded.as_of
        ), told as (
          insert into subscription_alert
            (source, subscription_id, alert_id, happened_at, status, old_status, plans, ends, full_refund, email, customer_id)
          select source, id, alert_id, happened_at, status, old_status, array(select jsonb_array_elements_text(plans::jsonb)), ends, full_refund, email, customer_id
          from unnest($10::text[], $11::text[], $12::text[], $13::timestamptz[], $14::text[], $15::text[], $16::text[], $17::timestamptz[], $18::bool[], $19::text[], $20::text[])
            as new (source, id, alert_id, happened_at, status, old_status, plans, ends, full_refund, email, customer_id)
          on conflict do nothing
        ), customers as (
          insert into customer (email, paid_changed_at) select email, clock_timestamp() from unnest($21::text[]) as new (email) order by email
          on conflict (email) do update set paid_changed_at = excluded.paid_changed_at
        ), planned as materialized (
          select new.*, may_begin
                        and exists (select from destination d
                                    where d.name = new.destination and (d.paused_until is null or d.paused_until <= clock_timestamp())
                                      and not d.probing and d.actions_per_minute is null)
                        and not exists (select from outbox_action a where a.subject = new.subject and a.status in ('pending', 'running') offset 0)
                        as begins
          from unnest($22::uuid[], $23::uuid[], $24::text[], $25::text[], $26::timestamptz[], $27::bool[], $28::text[], $29::bool[])
            as new (id, outbox_id, kind, subject, due_at, while_paid, destination, may_begin)
        ), actions as (
          insert into outbox_action (id, outbox_id, kind, email, customer_id, due_at, while_paid, status, attempts, run_at, claim_token, claimed_by)
          select id, outbox_id, kind,
                 case when kind <> 'paddle_customer' then subject end, case when kind = 'paddle_customer' then subject end,
                 coalesce(due_at, $30), while_paid,
                 case when begins then 'running' else 'pending' end, case when begins then 1 else 0 end,
                 case when begins then clock_timestamp() + $31 else greatest(due_at, $30) end,
                 case when begins then $32::uuid end, case when begins then $33 end
          from planned
          returning id, status
        ), alerts as (
          update outbox o
          set to_plan = false, email = coalesce(new.email, o.email), status = new.status, last_error = new.error,
              finished_at = case when new.status <> 'pending' then clock_timestamp() end
          from unnest($34::uuid[], $35::text[], $36::text[], $37::text[]) as new (id, email, status, error)
          where o.id = any (array[new.id])
        )
        -- A claim is on disk before anybody is called; a plan that is lost is only made again.
        select id from actions
        where status = 'running' and set_config('synchronous_commit', 'on', true) = 'on'
        "#,
        &subscriptions.iter().map(|((source, _), _)| source.as_str()).collect::<Vec<_>>() as _,
        &subscriptions.iter().map(|((_, id), _)| id.as_str()).collect::<Vec<_>>() as _,
        &subscriptions.iter().map(|(_, s)| s.email.as_deref()).collect::<Vec<_>>() as _,
        &subscriptions.iter().map(|(_, s)| s.told_email.as_deref()).collect::<Vec<_>>() as _,
        &subscriptions.iter().map(|(_, s)| s.customer_id.as_deref()).collect::<Vec<_>>() as _,
        // Postgres has no arrays of arrays of different lengths.
        &subscriptions.iter().map(|(_, s)| Value::from(s.plans.clone()).to_string()).collect::<Vec<_>>(),
        &subscriptions.iter().map(|(_, s)| s.status.as_str()).collect::<Vec<_>>() as _,
        &subscriptions.iter().map(|(_, s)| s.entitled_until).collect::<Vec<_>>() as _,
        &subscriptions.iter().map(|(_, s)| s.as_of).collect::<Vec<_>>(),
        &told.iter().map(|((source, _), _)| source.as_str()).collect::<Vec<_>>() as _,
        &told.iter().map(|((_, id), _)| id.as_str()).collect::<Vec<_>>() as _,
        &told.iter().map(|(_, t)| t.alert_id.as_str()).collect::<Vec<_>>() as _,
        &told.iter().map(|(_, t)| t.happened_at).collect::<Vec<_>>(),
        &told.iter().map(|(_, t)| t.status.as_str()).collect::<Vec<_>>() as _,
        &told.iter().map(|(_, t)| t.old_status.map(Status::as_str)).collect::<Vec<_>>() as _,
        &told.iter().map(|(_, t)| Value::from(t.plans.clone()).to_string()).collect::<Vec<_>>(),
        &told.iter().map(|(_, t)| t.ends).collect::<Vec<_>>() as _,
        &told.iter().map(|(_, t)| t.full_refund).collect::<Vec<_>>(),
        &told.iter().map(|(_, t)| t.email.as_deref()).collect::<Vec<_>>() as _,
        &told.iter().map(|(_, t)| t.customer_id.as_deref()).collect::<Vec<_>>() as _,
        &paid_changed as _,
        &actions.iter().map(|(id, ..)| *id).collect::<Vec<_>>(),
        &actions.iter().map(|(_, alert, _)| *alert).collect::<Vec<_>>(),
        &actions.iter().map(|(.., action)| action.kind.as_str()).collect::<Vec<_>>() as _,
        &actions.iter().map(|(.., action)| action.subject.as_str()).collect::<Vec<_>>() as _,
        &actions.iter().map(|(.., action)| action.due_at).collect::<Vec<_>>() as _,
        &actions.iter().map(|(.., action)| action.while_paid).collect::<Vec<_>>(),
        &actions.iter().map(|(.., action)| action.kind.destination().as_str()).collect::<Vec<_>>() as _,
        &actions.iter().map(|(.., action)| action.begins).collect::<Vec<_>>(),
        now,
        interval(terms.lease),
        token,
        terms.worker,
        &alerts.iter().map(|alert| alert.id).collect::<Vec<_>>(),
        &alerts.iter().map(|alert| alert.email.as_deref()).collect::<Vec<_>>() as _,
        &alerts.iter().map(|alert| alert.decision.status()).collect::<Vec<_>>() as _,
        &alerts.iter().map(|alert| alert.decision.error()).collect::<Vec<_>>() as _
    )
    .fetch_all(&mut **transaction)
    .await
}

impl Decision {
    /// The alert's status from here on.
    fn status(&self) -> &'static str {
        match self {
            Self::Ignored => "ignored",
            Self::Dead(_) => "dead",
            Self::Actions(_) => "pending",
        }
    }

    fn error(&self) -> Option<&str> {
        match self {
            Self::Dead(reason) => Some(reason),
            Self::Ignored | Self::Actions(_) => None,
        }
    }
}
