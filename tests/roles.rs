//! The four roles: each can do its work, which every other test shows by running under them, and nothing more: everything else
//! is tried here, and refused.

use oarlock_sandbox::Fault;
use oarlock_sandbox::paddle::Classic;
use oarlock_tests::{Database, Oarlock, Settings};
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};

const ANN: &str = "ann@example.com";

/// A role that may connect to a migrated database.
struct Role {
    name: &'static str,
    connection: PgConnection,
}

impl Role {
    async fn connect(oarlock: &Oarlock, name: &'static str) -> Self {
        let connection = PgConnection::connect(&oarlock.database.url_as(name)).await.expect("the role may connect");
        Self { name, connection }
    }

    /// Whether it may: the statement is run, and undone.
    async fn may(&mut self, statement: &str) -> bool {
        let mut transaction = self.connection.begin().await.expect("the database is there");
        let run = sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut *transaction).await;
        transaction.rollback().await.expect("the database is there");
        let code = run.err().and_then(|error| Some(error.as_database_error()?.code()?.into_owned()));
        match code.as_deref() {
            Some("42501") => false,
            // Nothing to do with rights: a row of defaults is no row that the table takes.
            None | Some("23502" | "23514") => true,
            Some(code) => panic!("{} {statement}: {code}", self.name),
        }
    }
}

/// What a role may do with each table and view, tried column by column; one line each, without those it may do nothing with.
async fn rights(oarlock: &Oarlock, name: &'static str) -> Vec<String> {
    let relations: Vec<(String, bool, Vec<String>)> = sqlx::query_as(
        "select c.relname::text, c.relkind = 'v', array_agg(a.attname::text order by a.attnum)
         from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
         where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'v') group by 1, 2 order by 1",
    )
    .fetch_all(oarlock.pool())
    .await
    .expect("the query is right");
    assert!(relations.len() > 12);
    let mut role = Role::connect(oarlock, name).await;
    let mut rights = Vec::new();
    for (relation, is_view, columns) in relations {
        let mut may = Vec::new();
        let by_column = [
            ("select", "select {column} from {relation} limit 0"),
            ("insert", "insert into {relation} ({column}) values (default)"),
            ("update", "update {relation} set {column} = default where false"),
        ];
        // None of the views can be written to.
        for (verb, statement) in by_column.into_iter().take(if is_view { 1 } else { 3 }) {
            let mut allowed = Vec::new();
            for column in &columns {
                if role.may(&statement.replace("{relation}", &relation).replace("{column}", column)).await {
                    allowed.push(column.as_str());
                }
            }
            if allowed.len() == columns.len() {
                may.push(verb.to_owned());
            } else if !allowed.is_empty() {
                may.push(format!("{verb} ({})", allowed.join(" ")));
            }
        }
        if !is_view {
            for (verb, statement) in
                [("delete", "delete from {relation} where false"), ("truncate", "truncate {relation} cascade")]
            {
                if role.may(&statement.replace("{relation}", &relation)).await {
                    may.push(verb.to_owned());
                }
            }
        }
        if !may.is_empty() {
            rights.push(format!("{relation}: {}", may.join(", ")));
        }
    }
    rights
}

#[tokio::test]
async fn each_role_has_its_rights_and_no_others() {
    let oarlock = Settings::default().receivers(0).workers(0).start().await;
    assert_eq!(
        rights(&oarlock, "oarlock_receiver").await,
        [
            "_sqlx_migrations: select",
            "outbox: select (id source alert_id), \
             insert (id source alert_id alert_name occurred_at email subscription_id trace_parent raw_body raw_signature mended_payload)",
        ]
    );
    assert_eq!(
        rights(&oarlock, "oarlock_worker").await,
        [
            "_sqlx_migrations: select",
            "access: select",
            "access_rule: select, insert, delete",
            "billing_customer: select, insert, update",
            "classic_address_change: select, insert",
            "customer: select, insert, update",
            "destination: select, update",
            "membership: select, insert, update, delete",
            "outbox: select (id source alert_id alert_name occurred_at received_at email subscription_id status to_plan last_error \
             finished_at trace_parent raw_body mended_payload), update (email status to_plan last_error finished_at), delete",
            "outbox_action: select, insert, update",
            "outbox_attempt: select, insert",
            "subscription: select, insert, update",
            "subscription_alert: select, insert",
        ]
    );
    assert_eq!(
        rights(&oarlock, "oarlock_operator").await,
        [
            "_sqlx_migrations: select",
            "access: select",
            "access_rule: select",
            "billing_customer: select",
            "classic_address_change: select",
            "customer: select",
            "dead_letter: select",
            "destination: select, update (paused_until paused_reason actions_per_minute)",
            "membership: select",
            "outbox: select (id source alert_id alert_name occurred_at received_at email subscription_id status to_plan last_error \
             finished_at trace_parent), update (status)",
            "outbox_action: select, update (status run_at)",
            "outbox_attempt: select",
            "subscription: select",
            "subscription_alert: select",
        ]
    );
}

#[tokio::test]
async fn functions_are_for_whom_they_are_meant() {
    let oarlock = Settings::default().receivers(0).workers(0).start().await;
    let nobody = "'01890000-0000-7000-8000-000000000000'";
    let calls = [
        ("replay", format!("select replay({nobody})")),
        ("replay_dead_letters", "select replay_dead_letters()".to_owned()),
        ("discard", format!("select discard({nobody}, 'a reason')")),
        (
            "reconcile",
            format!("do $$ begin perform reconcile({nobody}); exception when no_data_found then null; end $$"),
        ),
        (
            "forget",
            "do $$ begin perform forget('nobody@example.com'); exception when no_data_found then null; end $$"
                .to_owned(),
        ),
        ("alerts_with_other_content", "select alerts_with_other_content('{}', '{}', '{}', '{}', '{}')".to_owned()),
        ("grant_to_roles", "select grant_to_roles()".to_owned()),
    ];
    let mut table = Vec::new();
    for name in ["oarlock_receiver", "oarlock_worker", "oarlock_operator", "oarlock_owner"] {
        let mut role = Role::connect(&oarlock, name).await;
        for (function, call) in &calls {
            if role.may(call).await {
                table.push(format!("{name} {function}"));
            }
        }
    }
    let everything = calls.iter().map(|(function, _)| format!("oarlock_owner {function}"));
    let expected = [
        "oarlock_receiver alerts_with_other_content",
        // It could as well update the rows by itself.
        "oarlock_worker replay",
        "oarlock_worker replay_dead_letters",
        "oarlock_operator replay",
        "oarlock_operator replay_dead_letters",
        "oarlock_operator discard",
        "oarlock_operator reconcile",
        "oarlock_operator forget",
    ];
    assert_eq!(table, expected.into_iter().map(str::to_owned).chain(everything).collect::<Vec<_>>());
}

#[tokio::test]
async fn nobody_but_the_owner_changes_the_schema() {
    let oarlock = Settings::default().receivers(0).workers(0).start().await;
    let owners = [
        "create table more (id int)",
        "create function more() returns int language sql as 'select 1'",
        "alter table outbox add column more int",
        "alter table outbox disable trigger outbox_revive",
        "drop view dead_letter",
    ];
    let nobodys = ["create role more", "set session_replication_role = replica", "copy destination to program 'true'"];
    for name in ["oarlock_receiver", "oarlock_worker", "oarlock_operator"] {
        let mut role = Role::connect(&oarlock, name).await;
        for statement in owners.iter().chain(&nobodys) {
            assert!(!role.may(statement).await, "{name}: {statement}");
        }
    }
    let mut owner = Role::connect(&oarlock, "oarlock_owner").await;
    for statement in owners {
        assert!(owner.may(statement).await, "{statement}");
    }
    for statement in nobodys {
        assert!(!owner.may(statement).await, "{statement}");
    }
}

/// Functions that run as the owner act on the owner's tables, whatever the caller's search_path holds.
#[tokio::test]
async fn nobody_lends_the_owner_tables_of_his_own() {
    let oarlock = Settings::default().without("jira").start().await;
    oarlock.slack().fail(Fault::slack_error("user_disabled"));
    oarlock.paddle_sends(&Classic::payment_succeeded(ANN)).await;
    oarlock.settles().await;
    let mut operator = Role::connect(&oarlock, "oarlock_operator").await;
    let trap = "create temp table outbox_action (id uuid, outbox_id uuid, status text, last_error text);
                insert into pg_temp.outbox_action select id, outbox_id, status, last_error from public.outbox_action;
                create temp view outbox as select * from pg_temp.outbox_action;
                select discard(id, 'a trap') from pg_temp.outbox_action";
    sqlx::raw_sql(trap).execute(&mut operator.connection).await.unwrap();
    assert_eq!(oarlock.actions().await, ["slack_invite discarded"]);
    assert_eq!(oarlock.value::<String>("select status from outbox").await, "done");
}

/// Whoever has operated with one role alone gets the others later.
#[tokio::test]
async fn roles_may_come_after_the_tables() {
    let oarlock = Settings::default().one_role().workers(0).start().await;
    let may_look = async |pool: &PgPool| sqlx::query("select id from outbox").execute(pool).await.is_ok();
    // As if the roles had not been there.
    oarlock.sets_up("drop owned by oarlock_operator").await;
    assert!(!may_look(oarlock.database.operator()).await);
    oarlock.sets_up("select grant_to_roles()").await;
    assert!(may_look(oarlock.database.operator()).await);
}

/// A program that may not migrate says so, and serves as soon as somebody has.
#[tokio::test]
async fn without_the_owner_nothing_is_migrated() {
    let oarlock = Settings::default().set("OARLOCK_DATABASE__MIGRATE", "true").prepare(Database::create().await).await;
    let receiver = oarlock.spawn("oarlock-receiver", &[]);
    receiver
        .says("that it may not", |line| line["error"].as_str().is_some_and(|error| error.contains("permission denied")))
        .await;
    assert_eq!(receiver.admin("/readyz").await.0, 503);
    assert_eq!(oarlock.spawn("oarlock-worker", &["migrate"]).ends().await.code, Some(0));
    receiver.ready().await;
}
