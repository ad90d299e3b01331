//! What is shown of refills and comparisons.

use super::Pools;
use super::refill::Progress;
use super::verify::{FINDINGS, Found};
use crate::time::{SECOND, Time};

/// How a server is filled with what it lacks, or was.
#[derive(Clone, Debug)]
pub struct RefillFigures {
    /// `running`, `waiting`, `done`, `partial`, `none`, `off`, `unsupported`, or `other partners`.
    pub state: &'static str,
    /// It tells its keys, as far as is known.
    pub lists_keys: bool,
    /// Of the one under way or the last one.
    pub progress: Option<Progress>,
    /// Keys that are listed and not looked at yet.
    pub to_go: usize,
    /// When it began, or was over: seconds since the epoch.
    pub since: u64,
}

impl RefillFigures {
    /// True if it is filled, or waits for that.
    pub fn is_wanted(&self) -> bool {
        matches!(self.state, "running" | "waiting")
    }

    /// What can be counted, under the names of `stats servers`; nothing if there was none.
    pub fn numbers(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let numbers = self.progress.map(|p| {
            [
                ("refill_since", self.since),
                ("refill_listed", p.listed),
                ("refill_copied", p.copied),
                ("refill_there", p.there),
                ("refill_gone", p.gone),
                ("refill_skipped", p.skipped),
                ("refill_bytes", p.bytes),
                ("refill_to_go", self.to_go as u64),
            ]
        });
        numbers.into_iter().flatten()
    }
}

/// What came of a comparison.
#[derive(Clone, Debug)]
pub struct Verified {
    /// What was listed, and when it was over.
    pub progress: Progress,
    /// What was found.
    pub found: Found,
    /// How many keys it changed, if it repairs.
    pub mended: Option<u64>,
    /// Why it did not come to its end.
    pub failure: Option<&'static str>,
}

/// How a server is compared with its partners, or was.
#[derive(Clone, Debug)]
pub struct VerifyFigures {
    /// `running`, `repairing`, `waiting`, `done`, `partial`, or why it did not come to its end.
    pub state: &'static str,
    /// When it began, or was over: seconds since the epoch.
    pub since: u64,
    /// Keys that are listed and not looked at yet, or to be looked at again.
    pub to_go: usize,
    /// What was found.
    pub result: Verified,
}

impl VerifyFigures {
    /// What can be counted, by its name.
    pub fn numbers(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let found = &self.result.found;
        let findings = FINDINGS.map(|(finding, name)| (name, found.count(finding)));
        let listed = self.result.progress.listed;
        let all = [("since", self.since), ("listed", listed)];
        let to_go = [("to_go", self.to_go as u64)];
        let mended = self.result.mended.map(|n| ("mended", n));
        all.into_iter().chain(findings).chain(to_go).chain(mended)
    }
}

impl<S> Pools<S> {
    /// A time of the proxy's clock, in seconds since the epoch.
    pub(super) fn unix_of(&self, time: Time) -> u64 {
        self.start_unix + time.0 / SECOND
    }
}
