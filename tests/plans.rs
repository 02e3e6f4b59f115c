//! The work does not grow with the table: claim, plan and record read what they work on and little else, whatever is behind it
//! and whatever Postgres believes of it.

use std::cell::Cell;

use oarlock_sandbox::Sandbox;
use oarlock_sandbox::paddle::Classic;
use oarlock_tests::{Database, Oarlock, Settings};

/// A busy season: 1,000,000 alerts that are finished, 500,000 whose action waits for its time (an end of access in some weeks, a
/// retry in some hours), 100,000 dead ones.
const HISTORY: &str = "
    set session_replication_role = replica;
    set synchronous_commit = off;
    create temporary table alert as
    select n, gen_random_uuid() as id, 'history-' || n || '@example.com' as email, now() - interval '1 hour' - n * interval '4 s' as at,
           case when n % 16 < 10 then 'done' when n % 16 < 15 then 'pending' else 'dead' end as status, n % 2 = 0 as is_end_of_access
    from generate_series(1, 1600000) n;
    insert into outbox (id, source, alert_id, alert_name, occurred_at, received_at, email, status, to_plan, finished_at, mended_payload, raw_body, raw_signature)
    select id, 'classic', 'history-' || n, 'payment_succeeded', at, at, email, status, false,
           case when status <> 'pending' then at + interval '1 s' end, '{}', '', ''
    from alert;
    insert into outbox_action (id, outbox_id, kind, email, status, outcome, attempts, due_at, run_at, last_error, created_at, finished_at)
    select gen_random_uuid(), id, case when is_end_of_access then 'jira_access' else 'slack_invite' end, email, status,
           case when status = 'done' then 'unchanged' end, case when status = 'pending' and is_end_of_access then 0 else 3 end,
           case when is_end_of_access then now() + interval '1 day' + n * interval '2 s' else at end,
           case when status = 'pending' then now() + interval '1 day' + n * interval '2 s' else at end,
           case when status <> 'done' then 'internal_error' end, at, case when status <> 'pending' then at + interval '1 s' end
    from alert;
    insert into subscription (source, subscription_id, email, plans, status, as_of)
    select 'classic', 'history-' || n, email, '{1}', 'active', at from alert where n % 4 = 0;
    insert into customer (email, jira_account, access_made_at)
    select email, 'history-' || n, at from alert where n % 4 = 0;
    insert into membership (email, target, account, state, since)
    select email, 'group:commercial-support', 'history-' || n, 'given', at from alert where n % 4 = 0;
    drop table alert;
    reset session_replication_role; reset synchronous_commit";

/// Alerts in each phase.
const ALERTS: u32 = 100;

/// Rows read for each alert, of which each has three actions: through indexes, and one after the other.
async fn reads_per_alert(oarlock: &mut Oarlock, customers: &str) -> (f64, f64) {
    sqlx::raw_sql("select pg_stat_reset()").execute(oarlock.pool()).await.expect("the statement is right");
    oarlock.start_worker().await;
    let email = |n| format!("{customers}-{n}@example.com");
    for n in 0..ALERTS {
        let alert = Classic::subscription_created(&email(n)).subscription(&format!("{customers}-{n}"));
        oarlock.paddle_sends(&alert).await;
    }
    oarlock
        .sees("everybody is in", |sandbox| {
            let members = oarlock.members("group:commercial-support");
            (0..ALERTS).all(|n| members.contains(&email(n)) && sandbox.slack().invited(&email(n)))
        })
        .await;
    let (through_indexes, in_order) = read_until_now(oarlock).await;
    let each = |rows: i64| rows as f64 / f64::from(ALERTS);
    (each(through_indexes), each(in_order))
}

/// Stops the worker, since what a backend has read it tells at its end; rows through indexes, and one after the other.
async fn read_until_now(oarlock: &mut Oarlock) -> (i64, i64) {
    let exit = oarlock.workers.remove(0).stops().await;
    assert_eq!(exit.code, Some(0), "{}", exit.output);
    oarlock
        .until(
            "the worker's backends are gone",
            "select not exists (select from pg_stat_activity where application_name = 'oarlock-worker' and datname = current_database())",
        )
        .await;
    sqlx::query_as(
        "select (select sum(idx_tup_read) from pg_stat_user_indexes)::bigint, (select sum(seq_tup_read) from pg_stat_user_tables)::bigint",
    )
    .fetch_one(oarlock.pool())
    .await
    .expect("the query is right")
}

/// Postgres knows that the tables are empty (of those it has never looked at it assumes some size), and nobody tells it otherwise
/// later.
async fn tables_are_believed_empty(oarlock: &Oarlock) {
    let tables = "outbox, outbox_action, outbox_attempt, subscription, subscription_alert, customer, membership";
    for table in tables.split(", ") {
        let statement = format!("alter table {table} set (autovacuum_enabled = false)");
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(oarlock.pool()).await.expect("the statement is right");
    }
    sqlx::raw_sql("vacuum analyze").execute(oarlock.pool()).await.expect("the statement is right");
}

#[tokio::test]
async fn a_large_table_behind_the_work_is_not_read() {
    let mut oarlock = Settings::default().workers(0).start().await;
    tables_are_believed_empty(&oarlock).await;
    let (through_indexes, in_order) = reads_per_alert(&mut oarlock, "before").await;
    println!("empty: {through_indexes} rows an alert through indexes, {in_order} in order");

    sqlx::raw_sql(HISTORY).execute(oarlock.pool()).await.expect("the statement is right");
    let stale = reads_per_alert(&mut oarlock, "stale").await;
    println!("with statistics of empty tables: {} rows an alert through indexes, {} in order", stale.0, stale.1);

    sqlx::raw_sql("analyze").execute(oarlock.pool()).await.expect("the statement is right");
    let fresh = reads_per_alert(&mut oarlock, "fresh").await;
    println!("with statistics of today: {} rows an alert through indexes, {} in order", fresh.0, fresh.1);

    let done: i64 =
        oarlock.value("select count(*) from outbox_action where status = 'done' and email not like 'history%'").await;
    assert_eq!(done, 3 * 3 * i64::from(ALERTS));
    for (through_indexes, in_order) in [stale, fresh] {
        assert!(
            through_indexes < 300.0 && in_order < 300.0,
            "{through_indexes} and {in_order} rows were read for each alert"
        );
    }
}

/// The plans of a worker's first day, when the tables are empty, are kept until Postgres has statistics.
#[tokio::test]
async fn a_worker_that_started_with_empty_tables_reads_no_more_later() {
    const FIRST: i64 = 20;
    const BACKLOG: i64 = 3_000;
    let mut oarlock = Settings::default().workers(0).without("JIRA").start().await;
    tables_are_believed_empty(&oarlock).await;
    oarlock.start_worker().await;
    let insert = |from: i64, to: i64| {
        let pool = oarlock.pool().clone();
        async move {
            sqlx::query(
                "with alerts as (
                   insert into outbox (id, source, alert_id, alert_name, email, raw_body, raw_signature)
                   select gen_random_uuid(), 'classic', n, 'payment_succeeded', n || '@example.com',
                          convert_to('email=' || n || '%40example.com', 'UTF8'), ''
                   from generate_series($1, $2) n)
                 select pg_notify('oarlock', 'outbox')",
            )
            .bind(from)
            .bind(to)
            .execute(&pool)
            .await
            .expect("the statement is right")
        }
    };
    let invited =
        |last: i64| move |sandbox: &Sandbox| (1..=last).all(|n| sandbox.slack().invited(&format!("{n}@example.com")));
    for number in 1..=FIRST {
        insert(number, number).await;
        oarlock.sees("each is invited", invited(number)).await;
    }
    sqlx::raw_sql("select pg_stat_reset()").execute(oarlock.pool()).await.expect("the statement is right");
    insert(FIRST + 1, FIRST + BACKLOG).await;
    oarlock.sees("all are invited", invited(FIRST + BACKLOG)).await;
    let (through_indexes, _) = read_until_now(&mut oarlock).await;
    let each = through_indexes / BACKLOG;
    println!("after a start with empty tables: {each} rows an alert through indexes");
    assert!(each < 150, "{each} rows were read for each alert");
}

/// So many alerts, one after the other, of as many customers.
async fn has_come(oarlock: &Oarlock, backlog: i64) {
    sqlx::query(
        "insert into outbox (id, source, alert_id, alert_name, received_at, email, raw_body, raw_signature)
         select gen_random_uuid(), 'classic', n, 'payment_succeeded', now() - (20000 - n) * interval '1 ms', n || '@example.com',
                convert_to('email=' || n || '%40example.com', 'UTF8'), ''
         from generate_series(1, $1) n",
    )
    .bind(backlog)
    .execute(oarlock.pool())
    .await
    .expect("the statement is right");
}

/// What is written together is found row by row: not each row by comparing it with all the others.
#[tokio::test]
async fn a_large_batch_is_not_compared_with_itself() {
    const BACKLOG: i64 = 1_000;
    const COMPARED_AT_MOST: u64 = 1_000;
    let database = Database::create().await;
    // Postgres tells the worker what it has done for it, and the worker tells it in its log.
    let explained = [
        "session_preload_libraries]=auto_explain",
        "auto_explain.log_min_duration]=0",
        "auto_explain.log_analyze]=on",
        "auto_explain.log_timing]=off",
        "auto_explain.log_nested_statements]=on",
        "auto_explain.log_level]=notice",
        // Or Postgres 16 and later would write addresses into the log.
        "auto_explain.log_parameter_max_length]=0",
    ];
    let url = explained.iter().fold(database.url().to_owned(), |url, option| format!("{url}&options[{option}"));
    let settings = Settings::default().database_url(url).workers(0).without("JIRA").set("RUST_LOG", "info");
    let mut oarlock = settings.set("OARLOCK_WORKER__CONCURRENCY", "128").start_on(database).await;
    has_come(&oarlock, BACKLOG).await;
    oarlock.start_worker().await;
    oarlock.settles().await;
    let exit = oarlock.workers.remove(0).stops().await;
    let counts = |what: &'static str| {
        exit.output.split(what).skip(1).map(|rest| {
            let digits = rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
            digits.parse::<u64>().expect("a number")
        })
    };
    let [written, compared] =
        ["rows=", "Rows Removed by Join Filter: "].map(|what| counts(what).max().unwrap_or_default());
    println!("{written} rows at most in a step, {compared} pairs of rows compared in vain");
    assert!(written >= 100 && exit.output.contains("Query Text: select outbox_record"), "{}", exit.output);
    assert!(compared <= COMPARED_AT_MOST, "{compared} pairs of rows were compared in vain\n{}", exit.output);
}

/// After an outage there are more dead letters than Postgres has statistics of.
#[tokio::test]
async fn a_replay_of_many_reads_each_by_itself() {
    const DEAD: i64 = 3_000;
    let oarlock = Settings::default().workers(0).start().await;
    tables_are_believed_empty(&oarlock).await;
    let mut connection = oarlock.pool().acquire().await.expect("there is a connection");
    sqlx::query(
        "with alerts as (
           insert into outbox (id, source, alert_id, alert_name, email, status, to_plan, finished_at, mended_payload, raw_body, raw_signature)
           select gen_random_uuid(), 'classic', n, 'payment_succeeded', n || '@example.com', 'dead', false, now(), '{}', '', ''
           from generate_series(1, $1) n
           returning id, email)
         insert into outbox_action (id, outbox_id, kind, email, status, last_error, finished_at)
         select gen_random_uuid(), id, 'slack_invite', email, 'dead', 'internal_error', now() from alerts",
    )
    .bind(DEAD)
    .execute(&mut *connection)
    .await
    .expect("the statement is right");
    for statement in [
        "select pg_stat_force_next_flush()",
        "select pg_stat_reset()",
        "update outbox_action set status = 'pending' where status = 'dead' and destination = 'slack'",
        "select pg_stat_force_next_flush()",
    ] {
        sqlx::raw_sql(statement).execute(&mut *connection).await.expect("the statement is right");
    }
    let read = "select sum(idx_tup_read)::bigint from pg_stat_user_indexes";
    let read: i64 = sqlx::query_scalar(read).fetch_one(&mut *connection).await.expect("the query is right");
    assert_eq!(oarlock.value::<i64>("select count(*) from outbox where status = 'pending'").await, DEAD);
    println!("replayed: {} rows each through indexes", read / DEAD);
    assert!((DEAD..20 * DEAD).contains(&read), "{read} rows were read");
}

/// Until a snapshot is let go, Postgres keeps the index entries of all that was planned and claimed since it was taken. Whoever
/// looks for work from the beginning each time walks over all of them each time.
#[tokio::test]
async fn a_snapshot_that_is_held_open_does_not_slow_the_work() {
    const BACKLOG: i64 = 5_000;
    let settings = Settings::default().workers(0).without("JIRA").set("OARLOCK_WORKER__POLL_INTERVAL", "10s");
    let mut oarlock = settings.start().await;
    has_come(&oarlock, BACKLOG).await;
    let mut report = oarlock.pool().begin().await.expect("there is a connection");
    sqlx::raw_sql(
        "set transaction isolation level repeatable read; select count(*) from destination; select pg_stat_reset()",
    )
    .execute(&mut *report)
    .await
    .expect("the statements are right");
    oarlock.start_worker().await;
    // Without looking into the database, which would read as well.
    let invited = Cell::new(0);
    let all_invited = |sandbox: &Sandbox| {
        while sandbox.slack().invited(&format!("{}@example.com", invited.get() + 1)) {
            invited.set(invited.get() + 1);
        }
        invited.get() == BACKLOG
    };
    oarlock.sees("all are invited", all_invited).await;
    let (through_indexes, _) = read_until_now(&mut oarlock).await;
    report.rollback().await.expect("it is still held");

    let done: i64 = oarlock.value("select count(*) from outbox_action where status = 'done'").await;
    assert_eq!(done, BACKLOG);
    let each = through_indexes / BACKLOG;
    println!("under a snapshot: {each} rows an alert through indexes");
    assert!(each < 150, "{each} rows were read for each alert");
}

/// The order of the system's language changes with its libraries. An index made by the old one then no longer finds what it has, and
/// what is there once may be inserted again.
#[tokio::test]
async fn no_index_hangs_on_the_systems_sort_order() {
    let oarlock = Settings::default().workers(0).receivers(0).start().await;
    let compared = "
        select i.indexrelid::regclass::text || ': ' || coalesce(c.collname, '')
        from pg_index i cross join lateral unnest(i.indcollation) as compared (by) left join pg_collation c on c.oid = compared.by
        where i.indrelid = any ('{outbox, outbox_action, outbox_attempt, subscription, subscription_alert, classic_address_change,
                                  billing_customer, customer, membership, access_rule, destination}'::regclass[])
          and compared.by <> 0";
    let compared: Vec<String> =
        sqlx::query_scalar(compared).fetch_all(oarlock.pool()).await.expect("the query is right");
    assert!(compared.len() > 20 && compared.iter().all(|index| index.ends_with(": C")), "{compared:#?}");
}
