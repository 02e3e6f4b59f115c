//! Alerts to post: distinct, with all the fields Paddle sends, signed with the sandbox's 4096-bit key.
//!
//! A signature costs over a hundred times what verifying it does, so Classic's are made once, on all cores, and kept beside
//! the key. Billing's are signed when they are asked for, which is cheap and must be: they are good for minutes.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::Context;
use aws_lc_rs::digest;
use oarlock_sandbox::paddle::{Billing, BillingSigner, Classic, ClassicAlert, ClassicSigner, Signed, cache_directory};
use serde_json::json;

use super::post::Request;
use crate::send;

/// Part of the file's name: another one is signed when the alerts are made differently.
const VERSION: u32 = 1;

/// Signed Classic alerts, as requests. Each is of another customer, and asks for one invitation to Slack.
#[derive(Debug)]
pub(super) struct Corpus {
    pub(super) classic: Vec<Request>,
}

impl Corpus {
    /// Reads `count` alerts, and signs what is missing.
    pub(super) fn load(signer: &ClassicSigner, count: usize) -> anyhow::Result<Self> {
        let path = file(signer);
        let mut bodies = if path.exists() { read(&path, count)? } else { Vec::new() };
        if bodies.len() < count {
            eprintln!("signing {} alerts, once …", count - bodies.len());
            bodies.extend(sign(signer, bodies.len(), count));
            write(&path, &bodies).with_context(|| format!("failed to write the corpus {}", path.display()))?;
        }
        let request = |body: Vec<u8>| {
            Request::new(&Signed { body, content_type: "application/x-www-form-urlencoded", header: None })
        };
        Ok(Self { classic: bodies.into_iter().map(request).collect() })
    }

    /// As many alerts of Billing, signed now.
    pub(super) fn billing(count: usize) -> Vec<Request> {
        let signer = BillingSigner::new(send::WEBHOOK_SECRET);
        let alert = |number: usize| {
            Billing::transaction_completed(&format!("ctm_01bench{number:017}"))
                .subscription(&format!("sub_01bench{number:017}"))
                .set("/data/custom_data", json!({ "team": hex(8), "campaign": hex(24), "referrer": hex(48) }))
        };
        (0..count).map(|number| Request::new(&alert(number).signed_by(&signer))).collect()
    }
}

/// What a shop passes through differs in every alert, and does not compress.
fn alert(number: usize) -> ClassicAlert {
    let passthrough = json!({ "team": hex(8), "campaign": hex(24), "cart": hex(64), "referrer": hex(96) });
    Classic::payment_succeeded(&format!("bench-{number}@example.com"))
        .field("checkout_id", &format!("{number}-chre{}-{}", hex(7), hex(5)))
        .field("customer_name", &format!("Zoë Müller {number}"))
        .field("ip", &format!("192.0.2.{}", number % 256))
        .field("order_id", &format!("{}-{number}", 4_000_000 + number))
        .field("passthrough", &passthrough.to_string())
        .field("receipt_url", &format!("https://my.paddle.com/receipt/{}-{number}/{}", 4_000_000 + number, hex(16)))
}

fn hex(bytes: usize) -> String {
    (0..bytes).map(|_| format!("{:02x}", rand::random::<u8>())).collect()
}

fn sign(signer: &ClassicSigner, from: usize, to: usize) -> Vec<Vec<u8>> {
    let threads = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let numbers: Vec<usize> = (from..to).collect();
    thread::scope(|scope| {
        let parts: Vec<_> = numbers
            .chunks(numbers.len().div_ceil(threads))
            .map(|part| scope.spawn(|| part.iter().map(|n| alert(*n).signed_by(signer).body).collect::<Vec<_>>()))
            .collect();
        parts.into_iter().flat_map(|part| part.join().expect("signing does not panic")).collect()
    })
}

/// One file for each key: with another one the signatures are wrong.
fn file(signer: &ClassicSigner) -> PathBuf {
    let key = digest::digest(&digest::SHA256, signer.public_key_pem().as_bytes());
    let key: String = key.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    cache_directory().join(format!("bench-alerts-v{VERSION}-{key}"))
}

/// A body a line: a form has no line breaks.
fn read(path: &Path, most: usize) -> anyhow::Result<Vec<Vec<u8>>> {
    let content = fs::read(path).with_context(|| format!("failed to read the corpus {}", path.display()))?;
    let bodies = content.split(|byte| *byte == b'\n').filter(|body| !body.is_empty());
    Ok(bodies.take(most).map(<[u8]>::to_vec).collect())
}

/// Beside its place and then into it, so that a bench that is broken off leaves no half a corpus.
fn write(path: &Path, bodies: &[Vec<u8>]) -> anyhow::Result<()> {
    let draft = path.with_extension(format!("new-{}", std::process::id()));
    fs::write(&draft, bodies.join(&b'\n'))?;
    fs::rename(draft, path)?;
    Ok(())
}
