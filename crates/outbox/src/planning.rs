//! Alerts become ledger entries and actions, in one transaction and without a call to anyone.
//!
//! [`take`] locks a batch of alerts and the ledger entries they concern; the caller decides, purely; [`Batch::commit`] writes
//! what was decided. Two workers never take the same alert, nor work on the same subscription at a time.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::{PgPool, Postgres, Transaction};
use uuid::Uuid;

use crate::access::Subscription;
use crate::alert::{self, Alert, NewAddress, Status};
use crate::{Kind, Source, ledger};

/// Alerts under lock, with what is known about them.
#[derive(Debug)]
pub struct Batch {
    transaction: Transaction<'static, Postgres>,
    /// Postgres's clock.
    pub now: DateTime<Utc>,
    /// In the order they arrived.
    pub alerts: Vec<Alert>,
    pub known: Known,
}

/// What the ledger holds about the alerts' subscriptions and customers.
#[derive(Debug, Clone, Default)]
pub struct Known {
    pub subscriptions: HashMap<(Source, String), Subscription>,
    /// Billing's customer ids with their addresses.
    pub addresses: HashMap<String, String>,
}

/// What is to be written.
#[derive(Debug, Default)]
pub struct Plan {
    pub alerts: Vec<PlannedAlert>,
    pub subscriptions: HashMap<(Source, String), Subscription>,
    pub new_addresses: Vec<(NewAddress, DateTime<Utc>)>,
    /// Customers for whom what is paid for changed.
    pub paid_changed: Vec<String>,
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
}

/// Takes up to `limit` alerts that are not planned yet, the oldest first; none if there are none.
///
/// # Errors
/// When the database is away.
pub async fn take(pool: &PgPool, limit: i64) -> Result<Option<Batch>, sqlx::Error> {
    let mut transaction = pool.begin().await?;
    let rows = sqlx::query!(
        r#"
        select id, source, alert_id, alert_name, coalesce(occurred_at, received_at) as "happened_at!", payload,
               clock_timestamp() as "now!"
        from outbox where to_plan order by id limit $1 for update skip locked
        "#,
        limit
    )
    .fetch_all(&mut *transaction)
    .await?;
    let Some(now) = rows.first().map(|row| row.now) else { return Ok(None) };
    let alerts: Vec<Alert> = rows
        .into_iter()
        .map(|row| {
            let source = source(&row.source);
            Alert {
                says: alert::read(source, &row.alert_name, &row.payload),
                id: row.id,
                source,
                alert_id: row.alert_id,
                name: row.alert_name.parse().ok(),
                happened_at: row.happened_at,
            }
        })
        .collect();
    let known = known(&mut transaction, &alerts).await?;
    Ok(Some(Batch { transaction, now, alerts, known }))
}

/// Reads the ledger, under a lock for each subscription: two alerts about a new one must not both find nothing.
async fn known(transaction: &mut Transaction<'static, Postgres>, alerts: &[Alert]) -> Result<Known, sqlx::Error> {
    let (sources, ids): (Vec<&str>, Vec<&str>) = alerts
        .iter()
        .filter_map(|alert| Some((alert.source.as_str(), alert.says.subscription.as_ref()?.id.as_str())))
        .unzip();
    let customers: Vec<&str> = alerts.iter().filter_map(|alert| alert.says.customer_id.as_deref()).collect();
    let mut known = Known::default();
    if !ids.is_empty() {
        sqlx::query!(
            r#"
            select pg_advisory_xact_lock(key)
            from (select distinct hashtextextended(source || ' ' || id, 0) as key from unnest($1::text[], $2::text[]) as k (source, id) order by 1) keys
            "#,
            &sources as _,
            &ids as _
        )
        .fetch_all(&mut **transaction)
        .await?;
        let rows = sqlx::query!(
            r#"
            select s.* from subscription s
            join (select distinct source, id from unnest($1::text[], $2::text[]) as k (source, id)) k on s.source = k.source and s.subscription_id = k.id
            "#,
            &sources as _,
            &ids as _
        )
        .fetch_all(&mut **transaction)
        .await?;
        for row in rows {
            let subscription = Subscription {
                email: row.email,
                customer_id: row.customer_id,
                plans: row.plans,
                status: Status::parse(&row.status).expect("the schema allows these alone"),
                entitled_until: row.entitled_until,
                as_of: row.as_of,
                as_of_alert: row.as_of_alert,
                old_status: row.old_status.as_deref().and_then(Status::parse),
                email_as_of: row.email_as_of,
            };
            known.subscriptions.insert((source(&row.source), row.subscription_id), subscription);
        }
    }
    if !customers.is_empty() {
        let rows = sqlx::query!(
            "select customer_id, email from billing_customer where customer_id = any($1::text[])",
            &customers as _
        )
        .fetch_all(&mut **transaction)
        .await?;
        known.addresses = rows.into_iter().map(|row| (row.customer_id, row.email)).collect();
    }
    Ok(known)
}

fn source(word: &str) -> Source {
    word.parse().expect("the schema allows these alone")
}

impl Batch {
    /// Writes the plan and lets go of the alerts.
    ///
    /// # Errors
    /// When nothing was written: every alert is as it was before.
    pub async fn commit(mut self, plan: &Plan) -> Result<(), sqlx::Error> {
        let transaction = &mut self.transaction;
        if !plan.subscriptions.is_empty() {
            write_subscriptions(transaction, &plan.subscriptions).await?;
        }
        for (address, happened_at) in &plan.new_addresses {
            write_address(transaction, address, *happened_at).await?;
        }
        if !plan.paid_changed.is_empty() {
            let mut emails = plan.paid_changed.clone();
            emails.sort();
            emails.dedup();
            sqlx::query!(
                "insert into customer (email, paid_changed_at) select email, clock_timestamp() from unnest($1::text[]) as c (email) order by email
                 on conflict (email) do update set paid_changed_at = excluded.paid_changed_at",
                &emails
            )
            .execute(&mut **transaction)
            .await?;
        }
        write_actions(transaction, &plan.alerts, self.now).await?;
        write_alerts(transaction, &plan.alerts).await?;
        self.transaction.commit().await
    }

    /// Marks one alert that cannot be planned and lets go of the others.
    ///
    /// # Errors
    /// When nothing was written.
    pub async fn bury(mut self, alert: Uuid, reason: &str) -> Result<(), sqlx::Error> {
        let planned = PlannedAlert { id: alert, email: None, decision: Decision::Dead(reason.to_owned()) };
        write_alerts(&mut self.transaction, &[planned]).await?;
        self.transaction.commit().await
    }
}

async fn write_subscriptions(
    transaction: &mut Transaction<'static, Postgres>,
    subscriptions: &HashMap<(Source, String), Subscription>,
) -> Result<(), sqlx::Error> {
    let mut rows: Vec<_> = subscriptions.iter().collect();
    rows.sort_by_key(|(key, _)| *key);
    sqlx::query!(
        r#"
        insert into subscription as held
          (source, subscription_id, email, customer_id, plans, status, entitled_until, as_of, as_of_alert, old_status, email_as_of)
        select source, id, email, customer_id, array(select jsonb_array_elements_text(plans::jsonb)), status, entitled_until, as_of, as_of_alert, old_status, email_as_of
        from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::timestamptz[], $8::timestamptz[], $9::text[], $10::text[], $11::timestamptz[])
          as new (source, id, email, customer_id, plans, status, entitled_until, as_of, as_of_alert, old_status, email_as_of)
        on conflict (source, subscription_id) do update set
          -- An address that changed while this was being decided is newer than what was read.
          email = case when held.email_as_of > excluded.email_as_of then held.email else excluded.email end,
          email_as_of = greatest(held.email_as_of, excluded.email_as_of),
          customer_id = excluded.customer_id, plans = excluded.plans, status = excluded.status, entitled_until = excluded.entitled_until,
          as_of = excluded.as_of, as_of_alert = excluded.as_of_alert, old_status = excluded.old_status
        "#,
        &rows.iter().map(|((source, _), _)| source.as_str()).collect::<Vec<_>>() as _,
        &rows.iter().map(|((_, id), _)| id.as_str()).collect::<Vec<_>>() as _,
        &rows.iter().map(|(_, s)| s.email.as_deref()).collect::<Vec<_>>() as _,
        &rows.iter().map(|(_, s)| s.customer_id.as_deref()).collect::<Vec<_>>() as _,
        // Postgres has no arrays of arrays of different lengths.
        &rows.iter().map(|(_, s)| Value::from(s.plans.clone()).to_string()).collect::<Vec<_>>(),
        &rows.iter().map(|(_, s)| s.status.as_str()).collect::<Vec<_>>() as _,
        &rows.iter().map(|(_, s)| s.entitled_until).collect::<Vec<_>>() as _,
        &rows.iter().map(|(_, s)| s.as_of).collect::<Vec<_>>(),
        &rows.iter().map(|(_, s)| s.as_of_alert.as_str()).collect::<Vec<_>>() as _,
        &rows.iter().map(|(_, s)| s.old_status.map(Status::as_str)).collect::<Vec<_>>() as _,
        &rows.iter().map(|(_, s)| s.email_as_of).collect::<Vec<_>>(),
    )
    .execute(&mut **transaction)
    .await
    .map(drop)
}

/// Moves subscriptions to a customer's new address, unless they have learnt a newer one.
async fn write_address(
    transaction: &mut Transaction<'static, Postgres>,
    address: &NewAddress,
    happened_at: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    match address {
        NewAddress::Classic { old, new } => {
            sqlx::query!(
                "update subscription set email = $2, email_as_of = $3 where source = 'classic' and email = $1 and email_as_of <= $3",
                old,
                new,
                happened_at
            )
            .execute(&mut **transaction)
            .await?;
        }
        NewAddress::Billing { customer_id, email } => {
            ledger::keep_address(&mut **transaction, customer_id, email, Some(happened_at)).await?;
            sqlx::query!(
                "update subscription set email = $2, email_as_of = $3 where source = 'billing' and customer_id = $1 and email_as_of <= $3",
                customer_id,
                email,
                happened_at
            )
            .execute(&mut **transaction)
            .await?;
        }
    }
    Ok(())
}

async fn write_actions(
    transaction: &mut Transaction<'static, Postgres>,
    alerts: &[PlannedAlert],
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    let mut rows = Vec::new();
    for alert in alerts {
        if let Decision::Actions(actions) = &alert.decision {
            rows.extend(actions.iter().map(|action| (alert.id, action)));
        }
    }
    if rows.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        r#"
        insert into outbox_action (id, outbox_id, kind, email, customer_id, due_at, run_at, while_paid)
        select id, outbox_id, kind,
               case when kind <> 'paddle_customer' then subject end, case when kind = 'paddle_customer' then subject end,
               coalesce(due_at, $7), coalesce(due_at, $7), while_paid
        from unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::timestamptz[], $6::bool[])
          as new (id, outbox_id, kind, subject, due_at, while_paid)
        "#,
        &rows.iter().map(|_| Uuid::now_v7()).collect::<Vec<_>>(),
        &rows.iter().map(|(alert, _)| *alert).collect::<Vec<_>>(),
        &rows.iter().map(|(_, action)| action.kind.as_str()).collect::<Vec<_>>() as _,
        &rows.iter().map(|(_, action)| action.subject.as_str()).collect::<Vec<_>>() as _,
        &rows.iter().map(|(_, action)| action.due_at).collect::<Vec<_>>() as _,
        &rows.iter().map(|(_, action)| action.while_paid).collect::<Vec<_>>(),
        now,
    )
    .execute(&mut **transaction)
    .await
    .map(drop)
}

async fn write_alerts(
    transaction: &mut Transaction<'static, Postgres>,
    alerts: &[PlannedAlert],
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        r#"
        update outbox o
        set to_plan = false, email = coalesce(new.email, o.email), status = new.status, last_error = new.error,
            finished_at = case when new.status <> 'pending' then clock_timestamp() end
        from unnest($1::uuid[], $2::text[], $3::text[], $4::text[]) as new (id, email, status, error)
        where o.id = new.id
        "#,
        &alerts.iter().map(|alert| alert.id).collect::<Vec<_>>(),
        &alerts.iter().map(|alert| alert.email.as_deref()).collect::<Vec<_>>() as _,
        &alerts
            .iter()
            .map(|alert| match alert.decision {
                Decision::Ignored => "ignored",
                Decision::Dead(_) => "dead",
                Decision::Actions(_) => "pending",
            })
            .collect::<Vec<_>>() as _,
        &alerts
            .iter()
            .map(|alert| match &alert.decision {
                Decision::Dead(reason) => Some(reason.as_str()),
                Decision::Ignored | Decision::Actions(_) => None,
            })
            .collect::<Vec<_>>() as _,
    )
    .execute(&mut **transaction)
    .await
    .map(drop)
}
