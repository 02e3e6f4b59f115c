use super::*;

fn at(second: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_600_000_000 + second, 0).unwrap()
}

fn told(second: i64, number: &str, status: Status) -> Told {
    Told {
        alert_id: number.to_owned(),
        happened_at: at(second),
        status,
        old_status: None,
        plans: vec!["7".to_owned()],
        ends: None,
        full_refund: false,
        email: Some("ann@example.com".to_owned()),
        customer_id: None,
    }
}

fn from(old: Status, told: Told) -> Told {
    Told { old_status: Some(old), ..told }
}

fn cancelled(second: i64, number: &str, ends: i64) -> Told {
    Told { ends: Some(at(ends)), ..told(second, number, Status::Cancelled) }
}

/// However they arrive, and however often, the standing is the same.
#[track_caller]
fn check(alerts: &[Told], status: Status, entitled_until: Option<i64>) {
    let refs: Vec<&Told> = alerts.iter().collect();
    permutations(refs, &mut |order| {
        let mut arrived: Vec<Told> = order.iter().map(|told| (*told).clone()).collect();
        arrived.extend(alerts.first().cloned());
        let standing = standing(&arrived, false).unwrap();
        assert_eq!((standing.status, standing.entitled_until), (status, entitled_until.map(at)), "{order:#?}");
    });
}

#[test]
fn the_newest_decides() {
    use Status::{Active, PastDue, Paused, Trialing};
    check(&[told(1, "1", Trialing), told(2, "2", Active)], Active, None);
    check(&[told(1, "1", Active), told(2, "2", PastDue)], PastDue, None);
    check(&[told(1, "1", Active), told(2, "2", Paused)], Paused, Some(2));
    check(&[told(1, "1", Active), told(2, "2", Paused), told(3, "3", Paused)], Paused, Some(2));
    check(&[told(1, "1", Active), told(2, "2", Paused), told(3, "3", Active)], Active, None);
}

#[test]
fn cancellations() {
    use Status::{Active, Cancelled, Paused};
    check(&[told(1, "1", Active), cancelled(2, "2", 100)], Cancelled, Some(100));
    // No later one moves an end later, and an earlier one counts whenever it arrives.
    check(&[told(1, "1", Active), cancelled(2, "2", 100), cancelled(3, "3", 200)], Cancelled, Some(100));
    check(&[told(1, "1", Active), cancelled(2, "2", 200), cancelled(3, "3", 100)], Cancelled, Some(100));
    check(&[told(1, "1", Active), cancelled(2, "2", 100), told(3, "3", Cancelled)], Cancelled, Some(100));
    // Renewed in between, cancelled again.
    check(&[cancelled(2, "2", 100), told(3, "3", Active)], Active, None);
    check(&[cancelled(2, "2", 100), told(3, "3", Active), cancelled(4, "4", 200)], Cancelled, Some(200));
    // What was paused gets no access back by being cancelled.
    check(&[told(1, "1", Active), told(2, "2", Paused), cancelled(3, "3", 100)], Cancelled, Some(2));
    check(&[told(1, "1", Active), told(2, "2", Paused), told(3, "3", Cancelled)], Cancelled, Some(2));
    // An end that nobody named gives way to the first one that is named, and to no other after it.
    let undated = told(2, "2", Cancelled);
    check(std::slice::from_ref(&undated), Cancelled, Some(2));
    check(&[undated.clone(), told(3, "3", Cancelled)], Cancelled, Some(2));
    check(&[undated.clone(), cancelled(3, "3", 100)], Cancelled, Some(100));
    check(&[undated.clone(), cancelled(3, "3", 100), cancelled(4, "4", 200)], Cancelled, Some(100));
    check(&[undated, told(3, "3", Paused), cancelled(4, "4", 100)], Cancelled, Some(2));
}

#[test]
fn within_a_moment_the_chain_decides_before_the_number() {
    use Status::{Active, PastDue, Paused};
    check(&[from(Paused, told(5, "20", PastDue)), from(PastDue, told(5, "10", Active))], Active, None);
    check(&[told(5, "9", Paused), told(5, "10", Active)], Active, None);
    check(&[told(5, "9", Active), told(5, "10", Paused)], Paused, Some(5));
    // There and back and away, all within a second: only one order leaves no link out.
    let there = from(Active, told(5, "3", PastDue));
    let back = from(PastDue, told(5, "2", Active));
    let away = from(Active, told(5, "1", Paused));
    check(&[told(1, "0", Active), there, back, away], Paused, Some(5));
}

#[test]
fn what_is_left_out_is_kept() {
    let silent = Told { plans: Vec::new(), email: None, ..told(2, "2", Status::Active) };
    let standing = standing(&[silent, told(1, "1", Status::Active)], false).unwrap();
    assert_eq!((standing.plans, standing.email), (vec!["7".to_owned()], Some(("ann@example.com".to_owned(), at(1)))));
}

#[test]
fn a_full_refund_ends_access_where_configured() {
    let refunded = Told { full_refund: true, ..told(2, "2", Status::Active) };
    let until =
        |ends_access| standing(&[told(1, "1", Status::Active), refunded.clone()], ends_access).unwrap().entitled_until;
    assert_eq!((until(false), until(true)), (None, Some(at(2))));
}

#[test]
fn an_address_leads_on() {
    let change = |second: i64, old: &str, new: &str| AddressChange {
        alert_id: second.to_string(),
        happened_at: at(second),
        old: old.to_owned(),
        new: new.to_owned(),
    };
    let changes = [change(9, "b", "c"), change(5, "a", "b"), change(7, "x", "y")];
    assert_eq!(address_now("a", at(1), &changes), "c");
    assert_eq!(address_now("a", at(6), &changes), "a", "a newer alert still names it");
    assert_eq!(address_now("x", at(1), &changes), "y");
    let and_back = [change(2, "a", "b"), change(3, "b", "a"), change(4, "a", "c")];
    assert_eq!(address_now("a", at(1), &and_back), "c");
}
