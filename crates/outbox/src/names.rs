//! The closed sets both programs speak of: generations, alert names, action kinds, destinations.

use std::fmt;
use std::str::FromStr;

/// A word that is not one of a closed set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{word:?} is not one of: {known}")]
pub struct Unknown {
    word: String,
    known: String,
}

/// A word of a column whose values the schema holds to a closed set.
pub(crate) fn from_schema<T: FromStr<Err = Unknown>>(word: &str) -> T {
    word.parse().expect("the schema allows these alone")
}

macro_rules! closed_set {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$vdoc])* $variant),+ }

        impl $name {
            /// Every member, in the order of the definition.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word for it in SQL, configuration and metrics.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = Unknown;
            fn from_str(word: &str) -> Result<Self, Unknown> {
                Self::ALL.iter().copied().find(|m| m.as_str() == word).ok_or_else(|| Unknown {
                    word: word.to_owned(),
                    known: Self::ALL.iter().map(|m| m.as_str()).collect::<Vec<_>>().join(", "),
                })
            }
        }
    };
}

closed_set! {
    /// Which generation of Paddle an alert comes from.
    Source {
        /// Form-encoded, RSA-signed alerts.
        Classic = "classic",
        /// JSON notifications, HMAC-signed.
        Billing = "billing",
    }
}

closed_set! {
    /// What can be done for a customer.
    Kind {
        /// Makes the customer able to file requests at the service desk.
        JiraInvite = "jira_invite",
        /// Makes the customer's memberships what is paid for at the moment it runs.
        JiraAccess = "jira_access",
        /// Invites the customer to the Slack workspace or channel.
        SlackInvite = "slack_invite",
        /// Looks up the e-mail address of a Billing customer; planned by need, never by a route.
        PaddleCustomer = "paddle_customer",
    }
}

closed_set! {
    /// Whom an action calls. Each has its own claim loop, concurrency and pause.
    Destination {
        Jira = "jira",
        Slack = "slack",
        Paddle = "paddle",
    }
}

closed_set! {
    /// How a membership came to be, and where it is going.
    MemberState {
        /// About to be given: whether it was is not known.
        Intended = "intended",
        /// We gave it, and take it away when it is not paid for any more.
        Given = "given",
        /// About to be taken away: whether it was is not known.
        Leaving = "leaving",
        /// It was there before us, and stays.
        Found = "found",
    }
}

impl Kind {
    /// Whom this kind of action calls. The schema's generated column `outbox_action.destination` says the same.
    pub const fn destination(self) -> Destination {
        match self {
            Self::JiraInvite | Self::JiraAccess => Destination::Jira,
            Self::SlackInvite => Destination::Slack,
            Self::PaddleCustomer => Destination::Paddle,
        }
    }
}

closed_set! {
    /// Every alert name the vendor documents (Billing's as in `EventName` of @paddle/paddle-node-sdk 3.10), of Billing those that
    /// concern a customer: the closed list for metrics and for the keys of `[routes]`.
    AlertName {
        SubscriptionCreated = "subscription_created",
        SubscriptionUpdated = "subscription_updated",
        SubscriptionCancelled = "subscription_cancelled",
        SubscriptionPaymentSucceeded = "subscription_payment_succeeded",
        SubscriptionPaymentFailed = "subscription_payment_failed",
        SubscriptionPaymentRefunded = "subscription_payment_refunded",
        PaymentSucceeded = "payment_succeeded",
        PaymentRefunded = "payment_refunded",
        LockerProcessed = "locker_processed",
        PaymentDisputeCreated = "payment_dispute_created",
        PaymentDisputeClosed = "payment_dispute_closed",
        HighRiskTransactionCreated = "high_risk_transaction_created",
        HighRiskTransactionUpdated = "high_risk_transaction_updated",
        TransferCreated = "transfer_created",
        TransferPaid = "transfer_paid",
        NewAudienceMember = "new_audience_member",
        UpdateAudienceMember = "update_audience_member",
        InvoicePaid = "invoice_paid",
        InvoiceSent = "invoice_sent",
        InvoiceOverdue = "invoice_overdue",
        BillingSubscriptionCreated = "subscription.created",
        BillingSubscriptionActivated = "subscription.activated",
        BillingSubscriptionTrialing = "subscription.trialing",
        BillingSubscriptionUpdated = "subscription.updated",
        BillingSubscriptionCanceled = "subscription.canceled",
        BillingSubscriptionPaused = "subscription.paused",
        BillingSubscriptionResumed = "subscription.resumed",
        BillingSubscriptionPastDue = "subscription.past_due",
        BillingSubscriptionImported = "subscription.imported",
        BillingTransactionCompleted = "transaction.completed",
        BillingCustomerCreated = "customer.created",
        BillingCustomerUpdated = "customer.updated",
        BillingCustomerImported = "customer.imported",
        BillingAddressCreated = "address.created",
        BillingAddressImported = "address.imported",
        BillingAddressUpdated = "address.updated",
        BillingAdjustmentCreated = "adjustment.created",
        BillingAdjustmentUpdated = "adjustment.updated",
        BillingBusinessCreated = "business.created",
        BillingBusinessImported = "business.imported",
        BillingBusinessUpdated = "business.updated",
        BillingPaymentMethodDeleted = "payment_method.deleted",
        BillingPaymentMethodSaved = "payment_method.saved",
        BillingTransactionBilled = "transaction.billed",
        BillingTransactionCanceled = "transaction.canceled",
        BillingTransactionCreated = "transaction.created",
        BillingTransactionPaid = "transaction.paid",
        BillingTransactionPastDue = "transaction.past_due",
        BillingTransactionPaymentFailed = "transaction.payment_failed",
        BillingTransactionReady = "transaction.ready",
        BillingTransactionRevised = "transaction.revised",
        BillingTransactionUpdated = "transaction.updated",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_parses_back() {
        for name in AlertName::ALL {
            assert_eq!(name.as_str().parse::<AlertName>().unwrap(), *name);
        }
        let error = "jira_invit".parse::<Kind>().unwrap_err().to_string();
        assert!(error.contains("jira_invite"), "{error}");
    }
}
