//! The worker: turns stored alerts into actions and runs them.
//!
//! | module | what happens there |
//! |---|---|
//! | [`run`] | everything is started, and stopped |
//! | [`wake`] | a NOTIFY wakes whoever has work; the poll is the truth |
//! | [`planner`], [`plan`] | alerts become ledger entries and actions: the loop, and the decision (pure) |
//! | [`claim_loop`], [`slots`] | a destination's due actions are claimed and run, so many at a time |
//! | [`bookmark`] | where the search for either goes on |
//! | [`act`], [`memberships`] | one action: whom to call, and with what |
//! | [`jira`], [`slack`], [`paddle`] | the calls themselves |
//! | [`outcome`], [`failure`] | what came of a call |
//! | [`judge`], [`retry`] | what follows from it, for the action and its destination (pure) |
//! | [`recorder`] | results are written, many at a time |
//! | [`housekeeping`], [`metrics`] | what is old goes; what can be counted |
//! | [`doctor`], [`finding`] | what is wrong, and what to do about it |

mod http;

pub mod act;
pub mod bookmark;
pub mod claim_loop;
pub mod doctor;
pub mod failure;
pub mod finding;
pub mod housekeeping;
pub mod jira;
pub mod judge;
pub mod memberships;
pub mod metrics;
pub mod outcome;
pub mod paddle;
pub mod plan;
pub mod planner;
pub mod recorder;
pub mod retry;
pub mod run;
pub mod slack;
pub mod slots;
pub mod wake;
