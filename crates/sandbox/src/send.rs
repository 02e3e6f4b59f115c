//! One alert from the command line: made, signed, posted, and the answer printed.

use anyhow::bail;
use clap::Args;
use oarlock_sandbox::paddle::{Billing, BillingSigner, Classic, Sender, Signed};
use serde_json::{Value, json};

use crate::{KeyFile, Source};

/// The secret Billing's alerts are signed with unless another is given.
pub(crate) const WEBHOOK_SECRET: &str = "pdl_ntfset_sandbox_secret";

#[derive(Debug, Args)]
pub(crate) struct Send {
    /// The receiver's address.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080/paddle")]
    to: String,
    /// A name with a dot is Billing's (subscription.created), one without is Classic's (subscription_created).
    alert_name: String,
    #[arg(long, default_value = "ann@example.com")]
    email: String,
    /// The new address, for update_audience_member.
    #[arg(long)]
    new_email: Option<String>,
    /// Billing: the customer's id.
    #[arg(long, default_value = "ctm_1")]
    customer: String,
    #[arg(long)]
    subscription: Option<String>,
    /// Classic: the plan. Billing: the price.
    #[arg(long)]
    plan: Option<String>,
    #[arg(long)]
    status: Option<String>,
    /// Classic: a field. Billing: a JSON pointer (/data/custom_data) and JSON, or else text.
    #[arg(long = "field", value_name = "NAME=VALUE", value_parser = pair)]
    fields: Vec<(String, String)>,
    #[command(flatten)]
    key: KeyFile,
    #[arg(long, default_value = WEBHOOK_SECRET)]
    webhook_secret: String,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("must be NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

pub(crate) async fn run(send: Send) -> anyhow::Result<()> {
    let source = if send.alert_name.contains('.') { Source::Billing } else { Source::Classic };
    let (id, signed) = match source {
        Source::Classic => classic(&send)?,
        Source::Billing => billing(&send),
    };
    let reply = Sender::new().post(&send.to, &signed).await?;
    println!("{} {id}: {} {} ({} ms)", send.alert_name, reply.status, reply.body.trim(), reply.took.as_millis());
    if reply.status != 200 {
        bail!("Paddle would send it again: only 200 counts");
    }
    Ok(())
}

fn classic(send: &Send) -> anyhow::Result<(String, Signed)> {
    let mut alert = match &send.new_email {
        Some(new) if send.alert_name == "update_audience_member" => Classic::update_audience_member(&send.email, new),
        _ => Classic::named(&send.alert_name, &send.email),
    };
    let short =
        [("subscription_id", &send.subscription), ("subscription_plan_id", &send.plan), ("status", &send.status)];
    for (name, value) in short {
        if let Some(value) = value {
            alert = alert.field(name, value);
        }
    }
    for (name, value) in &send.fields {
        alert = alert.field(name, value);
    }
    Ok((alert.id().to_owned(), alert.signed_by(&send.key.signer()?)))
}

fn billing(send: &Send) -> (String, Signed) {
    let email = send.new_email.as_ref().unwrap_or(&send.email);
    let mut alert = Billing::named(&send.alert_name, &send.customer, email);
    if let Some(subscription) = &send.subscription {
        alert = alert.subscription(subscription);
    }
    if let Some(plan) = &send.plan {
        alert = alert.price(plan);
    }
    if let Some(status) = &send.status {
        alert = alert.status(status);
    }
    for (pointer, text) in &send.fields {
        let value: Value = serde_json::from_str(text).unwrap_or_else(|_| json!(text));
        alert = alert.set(pointer, value);
    }
    (alert.id().to_owned(), alert.signed_by(&BillingSigner::new(&send.webhook_secret)))
}
