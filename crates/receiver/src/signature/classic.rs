//! Classic: RSA with SHA-1 over PHP's serialization of the form's fields.
//!
//! <https://developer.paddle.com/webhook-reference/verifying-webhooks>: take `p_signature` (base64) out of the decoded
//! fields, sort the others by name, cast each to a string, `serialize()`, verify. All fields are signed, known or not.
//!
//! All of it in bytes, from the body as it came (see [`form`]).

use std::io::Write;

use aws_lc_rs::rsa::PublicEncryptingKey;
use aws_lc_rs::signature::{ParsedPublicKey, RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use oarlock_outbox::received::form::{self, Field};
use oarlock_outbox::received::{Malformed, NewAlert};
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject;

use super::Refusal;

/// The vendor's public keys: one, or several while they are changed.
#[derive(Debug)]
pub(super) struct PublicKeys(Vec<ParsedPublicKey>);

impl PublicKeys {
    pub(super) fn new(texts: &[String]) -> Result<Self, Vec<String>> {
        let (mut keys, mut problems) = (Vec::new(), Vec::new());
        for (at, text) in texts.iter().enumerate() {
            // A PEM text in an environment variable often has its line breaks written out.
            let text = text.replace("\\n", "\n");
            let found: Result<Vec<_>, _> = SubjectPublicKeyInfoDer::pem_slice_iter(text.as_bytes()).collect();
            let parsed = found.ok().filter(|found| !found.is_empty()).and_then(|found| {
                found
                    .iter()
                    .map(|der| {
                        // Of a size that can verify anything, which the parser does not ask for.
                        PublicEncryptingKey::from_der(der.as_ref()).ok()?;
                        ParsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY, der.as_ref()).ok()
                    })
                    .collect::<Option<Vec<_>>>()
            });
            match parsed {
                Some(parsed) => keys.extend(parsed),
                None => problems.push(format!(
                    "paddle.classic.public_keys (or public_key_files), entry {}: not an RSA public key of 2048 to 8192 bits in PEM, as Paddle shows under Developer Tools, Public Key",
                    at + 1
                )),
            }
        }
        if problems.is_empty() { Ok(Self(keys)) } else { Err(problems) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn verify(&self, body: Bytes, says_json: bool) -> Result<NewAlert, Refusal> {
        // A notification of Billing whose header was lost is no broken form, and not Classic's to be configured for.
        if says_json {
            return Err(Refusal::NoSignature);
        }
        let mut fields = form::decode(&body);
        let at = fields.iter().position(|(name, _)| name.as_ref() == form::SIGNATURE);
        if self.is_empty() {
            // What has no signature is a stranger's, whatever is configured.
            return Err(if at.is_some() { Refusal::NotConfigured } else { Refusal::NoSignature });
        }
        if !body.contains(&b'=') {
            return Err(Refusal::NotAForm);
        }
        let at = at.ok_or(Refusal::NoSignature)?;
        check_names(&fields)?;
        let (_, signature) = fields.remove(at);
        let signature = String::from_utf8(signature.into_owned()).map_err(|_| Refusal::NotASignature)?;
        let bytes = STANDARD.decode(&signature).map_err(|_| Refusal::NotASignature)?;
        let message = serialize(&fields);
        if !self.0.iter().any(|key| key.verify_sig(&message, &bytes).is_ok()) {
            return Err(Refusal::WrongSignature);
        }
        Ok(NewAlert::classic(&fields, signature, body.clone())?)
    }
}

/// Refuses names of which two readers could make different things.
fn check_names(sorted: &[Field<'_>]) -> Result<(), Refusal> {
    if sorted.iter().any(|(name, _)| is_ambiguous(name)) {
        return Err(Refusal::AmbiguousName);
    }
    // PHP keeps the last, others the first.
    if sorted.windows(2).any(|pair| pair[0].0 == pair[1].0) {
        return Err(Malformed::DuplicateName.into());
    }
    Ok(())
}

/// PHP turns `7` into a number, `a.b` and `a b` into `a_b`, `a[b]` into an array, and drops an empty name.
fn is_ambiguous(name: &[u8]) -> bool {
    let is_number = |text: &str| text.parse::<i64>().is_ok_and(|number| number.to_string() == text);
    let is_integer = || std::str::from_utf8(name).is_ok_and(is_number);
    name.is_empty() || name.iter().any(|byte| matches!(byte, b'.' | b' ' | b'[')) || is_integer()
}

/// `a:<count>:{s:<bytes>:"<name>";s:<bytes>:"<value>";…}`, sorted by name; lengths are of bytes, nothing is escaped.
fn serialize(sorted: &[Field<'_>]) -> Vec<u8> {
    let mut out = format!("a:{}:{{", sorted.len()).into_bytes();
    for (name, value) in sorted {
        for part in [name, value] {
            write!(out, "s:{}:\"", part.len()).expect("a Vec takes everything");
            out.extend_from_slice(part);
            out.extend_from_slice(b"\";");
        }
    }
    out.push(b'}');
    out
}

#[cfg(test)]
mod tests;
