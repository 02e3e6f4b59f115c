use oarlock_sandbox::Fault;

use crate::{Caller, sandbox};

#[tokio::test]
async fn a_customer_is_looked_up() {
    let sandbox = sandbox().await;
    let worker = Caller::bearer(sandbox.paddle_url(), "pdl_sdbx_apikey_sandbox");
    assert_eq!(worker.get("/customers/ctm_1").await.0, 404);
    sandbox.paddle().set_customer("ctm_1", "ann@example.com");
    let (status, answer) = worker.get("/customers/ctm_1").await;
    assert_eq!((status, answer["data"]["email"].as_str()), (200, Some("ann@example.com")));
    assert!(answer["meta"]["request_id"].is_string());
    let (status, answer) = Caller::bearer(sandbox.paddle_url(), "old").get("/customers/ctm_1").await;
    assert_eq!((status, answer["error"]["code"].as_str()), (403, Some("forbidden")));
    sandbox.paddle().fail(Fault::status(429).times(1));
    assert_eq!(worker.get("/customers/ctm_1").await.1["error"]["code"], "too_many_requests");
}
