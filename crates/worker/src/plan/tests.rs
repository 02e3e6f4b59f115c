use oarlock_outbox::Source;
use oarlock_outbox::alert;
use serde_json::{Value, json};
use uuid::Uuid;

use super::*;

const ALL: Policy = Policy { routes: BTreeMap::new(), jira: true, slack: true, revoke_on_full_refund: false };

fn at(second: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_700_000_000 + second, 0).unwrap()
}

/// An alert of that number, which happened in that second.
fn alert(number: i64, name: &str, payload: &Value) -> Alert {
    let source = if name.contains('.') { Source::Billing } else { Source::Classic };
    Alert {
        id: Uuid::now_v7(),
        source,
        alert_id: number.to_string(),
        name: name.parse().ok(),
        happened_at: at(number),
        trace_parent: None,
        says: alert::read(source, name, payload),
    }
}

fn classic(number: i64, name: &str, status: &str) -> Alert {
    let payload =
        json!({"email": "ann@example.com", "subscription_id": "1", "subscription_plan_id": "7", "status": status});
    alert(number, name, &payload)
}

fn words(decision: &Decision) -> Vec<String> {
    match decision {
        Decision::Ignored => vec!["ignored".into()],
        Decision::Dead(why) => vec![format!("dead: {why}")],
        Decision::Actions(actions) => actions
            .iter()
            .map(|action| {
                let due = action.due_at.map(|due| format!(" at {}", (due - at(0)).num_seconds())).unwrap_or_default();
                let while_paid = if action.while_paid { " while paid" } else { "" };
                format!("{} {}{due}{while_paid}", action.kind, action.subject)
            })
            .collect(),
    }
}

#[track_caller]
fn check(policy: &Policy, known: &Known, alerts: &[Alert], expected: &[&[&str]]) -> Plan {
    let plan = plan(alerts, known.clone(), policy, at(1000));
    let planned: Vec<_> = plan.alerts.iter().map(|alert| words(&alert.decision)).collect();
    assert_eq!(planned, expected.iter().map(|words| words.to_vec()).collect::<Vec<_>>());
    plan
}

#[test]
fn routes() {
    let none = Known::default();
    check(
        &ALL,
        &none,
        &[classic(1, "subscription_created", "active")],
        &[&[
            "jira_invite ann@example.com while paid",
            "jira_access ann@example.com",
            "slack_invite ann@example.com while paid",
        ]],
    );
    let purchase = alert(1, "payment_succeeded", &json!({"email": "Ann@example.com"}));
    check(
        &ALL,
        &none,
        std::slice::from_ref(&purchase),
        &[&["jira_invite ann@example.com", "slack_invite ann@example.com"]],
    );
    check(&Policy { jira: false, ..ALL }, &none, std::slice::from_ref(&purchase), &[&["slack_invite ann@example.com"]]);
    check(&Policy { jira: false, slack: false, ..ALL }, &none, std::slice::from_ref(&purchase), &[&["ignored"]]);
    let routes =
        BTreeMap::from([(AlertName::PaymentSucceeded, vec![]), (AlertName::TransferPaid, vec![Kind::SlackInvite])]);
    let policy = Policy { routes, ..ALL };
    check(&policy, &none, &[purchase], &[&["ignored"]]);
    check(
        &policy,
        &none,
        &[alert(1, "transfer_paid", &json!({}))],
        &[&["dead: the alert names no e-mail address to act for"]],
    );
    check(&ALL, &none, &[alert(1, "a_new_alert", &json!({"email": "ann@example.com"}))], &[&["ignored"]]);
}

#[test]
fn what_changes_access_plans_it_whatever_the_route() {
    // Not routed, and yet: a payment that comes before the creation. Told again, it changes nothing.
    let plan = check(
        &ALL,
        &Known::default(),
        &[
            classic(1, "subscription_payment_succeeded", "active"),
            classic(2, "subscription_payment_succeeded", "active"),
            classic(3, "subscription_payment_failed", "past_due"),
        ],
        &[&["jira_access ann@example.com"], &["ignored"], &["ignored"]],
    );
    assert_eq!(plan.paid_changed, ["ann@example.com".to_owned()].into());
    let entry = &plan.subscriptions[&(Source::Classic, "1".to_owned())];
    assert_eq!((entry.as_of, entry.entitled_until), (at(3), None));
}

#[test]
fn a_removal_ahead_waits_in_the_outbox() {
    let cancelled = |date: &str| {
        alert(
            2,
            "subscription_cancelled",
            &json!({"email": "ann@example.com", "subscription_id": "1", "status": "deleted", "cancellation_effective_date": date}),
        )
    };
    let ahead = (at(5000)).format("%Y-%m-%d %H:%M:%S").to_string();
    check(
        &ALL,
        &Known::default(),
        &[classic(1, "subscription_updated", "active"), cancelled(&ahead)],
        &[&["jira_access ann@example.com"], &["jira_access ann@example.com", "jira_access ann@example.com at 5000"]],
    );
    check(&ALL, &Known::default(), &[cancelled("2020-01-01")], &[&["jira_access ann@example.com"]]);
}

#[test]
fn a_billing_alert_waits_for_its_address() {
    let payload = json!({"data": {"id": "sub_1", "status": "active", "customer_id": "ctm_1", "items": [{"price": {"id": "pri_1"}}]}});
    let created = alert(1, "subscription.created", &payload);
    let plan = check(&ALL, &Known::default(), std::slice::from_ref(&created), &[&["paddle_customer ctm_1"]]);
    assert!(plan.subscriptions.is_empty(), "nothing is applied before the address is known");
    let address = Address { email: "ann@example.com".to_owned(), as_of: at(0), told_by: None };
    let known = Known { addresses: [("ctm_1".to_owned(), address)].into(), ..Known::default() };
    let plan = check(
        &ALL,
        &known,
        std::slice::from_ref(&created),
        &[&[
            "jira_invite ann@example.com while paid",
            "jira_access ann@example.com",
            "slack_invite ann@example.com while paid",
        ]],
    );
    assert_eq!(plan.alerts[0].email.as_deref(), Some("ann@example.com"));
    // Told by an alert of the same batch.
    let told = alert(0, "customer.created", &json!({"data": {"id": "ctm_1", "email": "ann@example.com"}}));
    let plan = plan_of(&[told, created]);
    assert_eq!(plan.subscriptions.len(), 1);
    // Who is not acted for is not looked up.
    check(
        &ALL,
        &Known::default(),
        &[alert(1, "address.created", &json!({"data": {"customer_id": "ctm_1"}}))],
        &[&["ignored"]],
    );
    let nobody = alert(1, "transaction.completed", &json!({"data": {"customer_id": null}}));
    check(&ALL, &Known::default(), &[nobody], &[&["dead: the alert names no e-mail address to act for"]]);
}

fn plan_of(alerts: &[Alert]) -> Plan {
    plan(alerts, Known::default(), &ALL, at(1000))
}

#[test]
fn a_new_address_evaluates_both() {
    let changed =
        alert(5, "update_audience_member", &json!({"old_customer_email": "a@x.org", "new_customer_email": "b@x.org"}));
    let plan = check(&ALL, &Known::default(), &[changed], &[&["jira_access b@x.org", "jira_access a@x.org"]]);
    assert_eq!(plan.address_changes.len(), 1);
    // A subscription that turns up under another address is lost to the old one.
    let moved =
        alert(2, "subscription_updated", &json!({"email": "new@x.org", "subscription_id": "1", "status": "active"}));
    check(
        &ALL,
        &Known::default(),
        &[classic(1, "subscription_updated", "active"), moved],
        &[&["jira_access ann@example.com"], &["jira_access new@x.org", "jira_access ann@example.com"]],
    );
}

#[test]
fn a_full_refund_ends_access_only_where_configured() {
    let refunded = |kind: &str| {
        let payload =
            json!({"email": "ann@example.com", "subscription_id": "1", "status": "active", "refund_type": kind});
        [classic(1, "subscription_updated", "active"), alert(2, "subscription_payment_refunded", &payload)]
    };
    let ends = |policy: &Policy, kind: &str| {
        let plan = plan(&refunded(kind), Known::default(), policy, at(1000));
        plan.subscriptions[&(Source::Classic, "1".to_owned())].entitled_until
    };
    let revoke = Policy { revoke_on_full_refund: true, ..ALL };
    assert_eq!(ends(&ALL, "full"), None);
    assert_eq!(ends(&revoke, "full"), Some(at(2)));
    assert_eq!(ends(&revoke, "partial"), None);
}

#[test]
fn every_documented_alert_has_the_promised_route() {
    use Kind::{JiraAccess, JiraInvite, SlackInvite};
    let promised: [(&[Kind], &[&str]); 3] = [
        (
            &[JiraInvite, JiraAccess, SlackInvite],
            &["subscription_created", "subscription.created", "subscription.activated", "subscription.trialing"],
        ),
        (&[JiraInvite, SlackInvite], &["payment_succeeded", "transaction.completed"]),
        (
            &[JiraAccess],
            &[
                "subscription_cancelled",
                "subscription_updated",
                "subscription.canceled",
                "subscription.updated",
                "subscription.paused",
                "subscription.resumed",
                "subscription.past_due",
                "update_audience_member",
                "customer.updated",
            ],
        ),
    ];
    for name in AlertName::ALL {
        let expected =
            promised.iter().find(|(_, names)| names.contains(&name.as_str())).map_or(&[][..], |(kinds, _)| kinds);
        assert_eq!(default_route(*name), expected, "{name}");
    }
}

/// docs/configuration.md has the default routes.
#[test]
fn the_routes_are_as_documented() {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md");
    let text = std::fs::read_to_string(file).unwrap();
    let words = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let mut documented: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for row in text.split("\n## [routes]\n").nth(1).unwrap().lines().filter(|line| line.starts_with("| `")) {
        let [_, alerts, kinds, _] = row.split('|').collect::<Vec<_>>()[..] else { panic!("{row}") };
        documented.extend(words(alerts).into_iter().map(|alert| (alert, words(kinds))));
    }
    let in_words =
        |name: &AlertName| default_route(*name).iter().map(|kind| kind.as_str().to_owned()).collect::<Vec<_>>();
    let real = AlertName::ALL.iter().map(|name| (name.as_str().to_owned(), in_words(name)));
    assert_eq!(documented, real.filter(|(_, kinds)| !kinds.is_empty()).collect());
}

#[test]
fn of_each_customer_the_first_action_begins_at_once_if_it_is_alone() {
    let action =
        |kind, who: &str, due_at| NewAction { kind, subject: who.to_owned(), due_at, while_paid: false, begins: false };
    let planned = |actions| PlannedAlert { id: Uuid::now_v7(), email: None, decision: Decision::Actions(actions) };
    let begun = |most| {
        let mut plan = Plan {
            alerts: vec![
                planned(vec![
                    action(Kind::JiraInvite, "ann", None),
                    action(Kind::JiraAccess, "ann", None),
                    action(Kind::SlackInvite, "ann", None),
                ]),
                planned(vec![action(Kind::SlackInvite, "bob", None), action(Kind::JiraInvite, "bob", None)]),
                planned(vec![action(Kind::SlackInvite, "bob", None), action(Kind::JiraAccess, "cid", Some(at(2000)))]),
                planned(vec![action(Kind::JiraInvite, "dan", None)]),
            ],
            ..Plan::default()
        };
        plan.begin([(Destination::Jira, most), (Destination::Slack, 10)].into());
        let actions = plan.alerts.into_iter().flat_map(|alert| match alert.decision {
            Decision::Actions(actions) => actions,
            Decision::Ignored | Decision::Dead(_) => Vec::new(),
        });
        let begun = actions.filter(|action| action.begins);
        begun.map(|action| format!("{} {}", action.kind, action.subject)).collect::<Vec<_>>()
    };
    // One call invites Bob to Slack for both alerts; Cid's time has not come.
    assert_eq!(begun(10), ["jira_invite ann", "slack_invite ann", "jira_invite bob", "jira_invite dan"]);
    assert_eq!(begun(1), ["jira_invite ann", "slack_invite ann"]);
    assert_eq!(begun(0), ["slack_invite ann"]);
}
