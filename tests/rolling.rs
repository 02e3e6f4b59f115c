//! Both programs are replaced one by one while alerts keep coming: nobody who calls or is called notices.

use std::collections::BTreeMap;
use std::time::Duration;

use oarlock_tests::{Load, Settings};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_refuses_nothing_and_does_nothing_twice() {
    let mut oarlock = Settings::default().receivers(2).workers(2).start().await;
    let load = Load::start(&oarlock, 8, Duration::from_millis(10));
    for _ in 0..4 {
        load.goes_on(40).await;
        // Nobody has taken it off the list: who connects to it finds it closed, and goes to the other one.
        let exit = oarlock.receivers.remove(0).stops().await;
        assert_eq!(exit.code, Some(0), "{}", exit.output);
        oarlock.start_receiver().await;
        load.receivers_are(&oarlock.receivers);
        load.goes_on(40).await;
        let exit = oarlock.workers.remove(0).stops().await;
        assert_eq!(exit.code, Some(0), "{}", exit.output);
        oarlock.start_worker().await;
    }
    let told = load.stops().await;
    println!("{}", told.summary());
    assert!(told.refused.is_empty() && told.broken.is_empty(), "{}", told.summary());
    assert!(told.closed_while_idle <= 4 * 8, "more than the connections there were: {}", told.summary());

    oarlock.settles().await;
    let rows: BTreeMap<String, i64> =
        sqlx::query_as("select email, count(*) from outbox where status = 'done' group by email")
            .fetch_all(oarlock.pool())
            .await
            .map(|rows| rows.into_iter().collect())
            .expect("the query is right");
    let once = |emails: &[String]| emails.iter().map(|email| (email.clone(), 1)).collect::<BTreeMap<String, i64>>();
    assert_eq!(rows, once(&told.accepted));
    assert_eq!(oarlock.calls_to_slack(), once(&told.accepted));
    assert!(told.accepted.iter().all(|email| oarlock.jira().invited(email) == 1));
}
