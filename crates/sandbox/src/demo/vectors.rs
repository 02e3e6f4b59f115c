//! Alerts that Paddle itself made and signed, published as test vectors: `tests/vectors/README.md` names the sources.

use oarlock_sandbox::paddle::{BillingSigner, Signed};

/// The published key of the account all the Classic vectors come from.
pub(super) const PUBLIC_KEY: &str =
    include_str!("../../../../tests/vectors/classic/subscription_created/public_key.pem");

/// A Classic alert, byte for byte as it was posted.
#[derive(Debug)]
pub(super) struct ClassicVector {
    pub(super) name: &'static str,
    body: &'static [u8],
}

macro_rules! classic {
    ($name:literal) => {
        ClassicVector {
            name: $name,
            body: include_bytes!(concat!("../../../../tests/vectors/classic/", $name, "/body.txt")),
        }
    };
}

pub(super) const GENUINE: [ClassicVector; 4] = [
    classic!("subscription_created"),
    classic!("subscription_updated"),
    classic!("subscription_payment_succeeded"),
    classic!("subscription_cancelled"),
];

/// Its amounts were edited after it was signed.
pub(super) const EDITED: ClassicVector = classic!("payment_refunded");

impl ClassicVector {
    pub(super) fn signed(&self) -> Signed {
        Signed { body: self.body.to_owned(), content_type: "application/x-www-form-urlencoded", header: None }
    }
}

/// A Billing event with its header and the secret, which was revoked when it was published.
#[derive(Debug)]
pub(super) struct BillingVector {
    pub(super) name: &'static str,
    /// Whom it is about: the event does not say the address.
    pub(super) customer: &'static str,
    body: &'static [u8],
    header: &'static str,
    secret: &'static str,
}

pub(super) const BILLING: BillingVector = BillingVector {
    name: "subscription.activated",
    customer: "ctm_01h84v23zmwr31xrza37s6mtwe",
    body: include_bytes!("../../../../tests/vectors/billing/subscription.activated/body.txt"),
    header: include_str!("../../../../tests/vectors/billing/subscription.activated/paddle_signature_header.txt"),
    secret: include_str!("../../../../tests/vectors/billing/subscription.activated/secret.txt"),
};

impl BillingVector {
    pub(super) fn secret(&self) -> &'static str {
        self.secret.trim()
    }

    /// As Paddle signed it, in 2023.
    pub(super) fn as_it_was(&self) -> Signed {
        self.with(self.header.trim())
    }

    /// The same bytes, signed now as Paddle would.
    pub(super) fn signed_now(&self) -> Signed {
        self.with(&BillingSigner::new(self.secret()).sign(self.body))
    }

    fn with(&self, header: &str) -> Signed {
        let header = Some(("Paddle-Signature", header.to_owned()));
        Signed { body: self.body.to_owned(), content_type: "application/json", header }
    }
}
