//! What a comparison of a server with its partners finds: how many keys are the same, which are not, and
//! which are to be looked at once more.
//!
//! ```text
//!  both sides ─▶ the same: counted
//!             └▶ not the same: a doubt ─▶ a second later: both as they were: counted
//!                                         └▶ changed meanwhile: a doubt again
//! ```

use super::ServerId;
use crate::time::Time;
use std::collections::HashMap;

/// Names of keys that are kept of each finding.
const SAMPLES: usize = 20;

/// Times to live may differ by so many seconds: two, and one more since servers count whole seconds.
const TTL_DIFFERS: u64 = 3;

/// A key that is another one each time is looked at so often.
const PATIENCE: u32 = 8;

/// What a doubt takes besides its key, in bytes.
const DOUBT: usize = 256;

/// An item, as one server has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    /// The client's flags.
    pub flags: u32,
    /// When it expires, in seconds since the epoch; `None`: never.
    pub expires: Option<u64>,
    /// Length of its value in bytes, and a hash of it.
    pub value: (usize, u64),
    /// Its cas number; 0 if the server has none.
    pub cas: u64,
}

/// What a server and its partner hold of a key.
pub type Pair = [Option<Seen>; 2];

/// What is found of a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Finding {
    /// Both hold the same.
    Same,
    /// The server lacks what its partner holds.
    Missing,
    /// The partner lacks what the server holds.
    Extra,
    /// They hold different values, flags, or times to live.
    Different,
    /// It was another one whenever it was looked at.
    Changing,
    /// It cannot be compared: stale, or it cannot be asked for.
    Skipped,
}

/// All findings with their names, in the order in which they are shown.
pub const FINDINGS: [(Finding, &str); 6] = [
    (Finding::Same, "same"),
    (Finding::Missing, "missing"),
    (Finding::Extra, "extra"),
    (Finding::Different, "different"),
    (Finding::Changing, "changing"),
    (Finding::Skipped, "skipped"),
];

/// What was found so far, or at all.
#[derive(Clone, Default, Debug)]
pub struct Found {
    counts: [u64; FINDINGS.len()],
    samples: [Vec<Box<[u8]>>; FINDINGS.len()],
}

/// What a comparison changes, of the keys whose primary is the server, since a magent died that may have owed
/// their backups something.
#[derive(Clone, Copy, Debug)]
pub struct Repair {
    /// What the primary lacks it lacks for good: it has run since before the death, and holds what it should.
    pub deletes: bool,
    /// Keys that were changed on one side.
    pub mended: u64,
    /// When that last was.
    pub last: Time,
}

/// A comparison under way.
#[derive(Default, Debug)]
pub struct Verify {
    /// It mends what it finds.
    pub repair: Option<Repair>,
    /// What was found so far.
    pub found: Found,
    doubts: HashMap<Box<[u8]>, Pair>,
    bytes: usize,
    /// Partners that did not tell their keys: what the server has of theirs is compared all the same.
    pub untold: Vec<ServerId>,
}

/// A look at both sides of a key.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// When, in seconds since the epoch.
    pub at: u64,
    /// How often it was looked at before.
    pub tries: u32,
    /// It was listed by the server itself.
    pub is_own: bool,
    /// Who holds it too.
    pub partner: ServerId,
}

/// What one look at both sides says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// This was found.
    Found(Finding),
    /// Neither holds it, or not for much longer; or it is counted when its other server is listed.
    Nothing,
    /// They are to be looked at a second later.
    Doubt,
}

impl Verify {
    /// A key was looked at. What both have is counted when the partner lists it, if it does that.
    pub fn look(&mut self, key: &[u8], pair: Pair, look: &Look) -> Verdict {
        let finding = judge(&pair, look.at);
        let is_counted = match finding {
            Some(Finding::Extra) => look.is_own,
            Some(_) => !look.is_own || self.untold.contains(&look.partner),
            None => false,
        };
        let (Some(finding), true) = (finding, is_counted) else {
            self.forget(key);
            return Verdict::Nothing;
        };
        if finding == Finding::Same {
            self.forget(key);
            return self.found(finding, key);
        }
        match self.doubts.get(key) {
            Some(before) if is_unchanged(before, &pair) => {
                self.forget(key);
                self.found(finding, key)
            }
            _ if look.tries >= PATIENCE => {
                self.forget(key);
                self.found(Finding::Changing, key)
            }
            _ => {
                let old = self.doubts.insert(key.into(), pair);
                self.bytes += old.map_or(key.len() + DOUBT, |_| 0);
                Verdict::Doubt
            }
        }
    }

    /// It was written while it was looked at. True if that has happened too often.
    pub fn is_changing(&mut self, key: &[u8], tries: u32) -> bool {
        let is_over = tries >= PATIENCE;
        if is_over {
            self.forget(key);
            self.found(Finding::Changing, key);
        }
        is_over
    }

    /// It begins anew.
    pub fn begin_anew(&mut self) {
        let repair = self.repair;
        *self = Verify {
            repair,
            ..Verify::default()
        };
    }

    /// It cannot be compared.
    pub fn skipped(&mut self, key: &[u8]) {
        self.forget(key);
        self.found(Finding::Skipped, key);
    }

    fn forget(&mut self, key: &[u8]) {
        if self.doubts.remove(key).is_some() {
            self.bytes -= key.len() + DOUBT;
        }
    }

    fn found(&mut self, finding: Finding, key: &[u8]) -> Verdict {
        let (at, found) = (finding as usize, &mut self.found);
        found.counts[at] += 1;
        if finding != Finding::Same && found.samples[at].len() < SAMPLES {
            found.samples[at].push(key.into());
        }
        Verdict::Found(finding)
    }

    /// Bytes that it holds of keys that are to be looked at again.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Found {
    /// How many keys were found to be so.
    pub fn count(&self, finding: Finding) -> u64 {
        self.counts[finding as usize]
    }

    /// Some of these keys.
    pub fn samples(&self, finding: Finding) -> &[Box<[u8]>] {
        &self.samples[finding as usize]
    }
}

/// What both sides come to; `None`: there is nothing to compare.
fn judge(pair: &Pair, now: u64) -> Option<Finding> {
    let expires_soon = |seen: &Seen| {
        seen.expires
            .is_some_and(|at| at <= now.saturating_add(TTL_DIFFERS))
    };
    match pair {
        [None, None] => None,
        [None, Some(seen)] | [Some(seen), None] if expires_soon(seen) => None,
        [None, Some(_)] => Some(Finding::Missing),
        [Some(_), None] => Some(Finding::Extra),
        [Some(a), Some(b)] if is_alike(a, b) => Some(Finding::Same),
        [Some(_), Some(_)] => Some(Finding::Different),
    }
}

fn is_alike(a: &Seen, b: &Seen) -> bool {
    let lives_alike = match (a.expires, b.expires) {
        (Some(a), Some(b)) => a.abs_diff(b) <= TTL_DIFFERS,
        (a, b) => a == b,
    };
    lives_alike && a.flags == b.flags && a.value == b.value
}

fn is_unchanged(before: &Pair, now: &Pair) -> bool {
    before.iter().zip(now).all(|sides| match sides {
        (None, None) => true,
        (Some(a), Some(b)) => a.cas == b.cas && is_alike(a, b),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000_000;

    fn item(value: u64) -> Option<Seen> {
        Some(Seen {
            flags: 5,
            expires: None,
            value: (3, value),
            cas: value,
        })
    }

    fn lives(mut item: Option<Seen>, seconds: u64) -> Option<Seen> {
        if let Some(seen) = &mut item {
            seen.expires = Some(NOW + seconds);
        }
        item
    }

    fn look(at: u64, tries: u32, is_own: bool) -> Look {
        Look {
            at,
            tries,
            is_own,
            partner: 7,
        }
    }

    #[test]
    fn what_differs_is_counted_when_it_is_still_so_a_second_later() {
        let mut flags = item(1);
        if let Some(seen) = &mut flags {
            seen.flags = 6;
        }
        for (pair, finding) in [
            ([None, item(1)], Finding::Missing),
            ([item(1), item(2)], Finding::Different),
            ([item(1), flags], Finding::Different),
            (
                [lives(item(1), 100), lives(item(1), 104)],
                Finding::Different,
            ),
            ([lives(item(1), 100), item(1)], Finding::Different),
        ] {
            let mut verify = Verify::default();
            assert_eq!(
                verify.look(b"k", pair, &look(NOW, 0, false)),
                Verdict::Doubt
            );
            assert!(verify.bytes() > 0);
            let second = verify.look(b"k", pair, &look(NOW + 1, 1, false));
            assert_eq!(second, Verdict::Found(finding), "{pair:?}");
            assert_eq!((verify.found.count(finding), verify.bytes()), (1, 0));
            assert_eq!(verify.found.samples(finding), [Box::from(&b"k"[..])]);
        }
    }

    #[test]
    fn what_is_alike_or_about_to_go_is_no_doubt() {
        let mut other_cas = item(1);
        if let Some(seen) = &mut other_cas {
            seen.cas = 9;
        }
        for (pair, verdict) in [
            ([item(1), other_cas], Verdict::Found(Finding::Same)),
            (
                [lives(item(1), 100), lives(item(1), 103)],
                Verdict::Found(Finding::Same),
            ),
            ([None, None], Verdict::Nothing),
            ([lives(item(1), 3), None], Verdict::Nothing),
            ([None, lives(item(1), 3)], Verdict::Nothing),
        ] {
            let verdict_now = Verify::default().look(b"k", pair, &look(NOW, 0, false));
            assert_eq!(verdict_now, verdict, "{pair:?}");
        }
    }

    #[test]
    fn what_changes_between_the_looks_is_a_new_doubt_until_patience_ends() {
        let mut verify = Verify::default();
        for tries in 0..PATIENCE {
            let pair = [item(u64::from(tries)), item(99)];
            assert_eq!(
                verify.look(b"k", pair, &look(NOW, tries, false)),
                Verdict::Doubt
            );
        }
        let last = verify.look(b"k", [item(98), item(99)], &look(NOW, PATIENCE, false));
        assert_eq!(last, Verdict::Found(Finding::Changing));
        assert_eq!(verify.bytes(), 0);
        // It went on, and was mirrored in the end.
        assert_eq!(
            verify.look(b"l", [item(1), item(2)], &look(NOW, 0, false)),
            Verdict::Doubt
        );
        let same = verify.look(b"l", [item(2), item(2)], &look(NOW, 1, false));
        assert_eq!(same, Verdict::Found(Finding::Same));
        assert!(!verify.is_changing(b"m", PATIENCE - 1));
        assert!(verify.is_changing(b"m", PATIENCE));
        assert_eq!(
            (verify.found.count(Finding::Changing), verify.bytes()),
            (2, 0)
        );
    }

    #[test]
    fn a_key_is_counted_once_whoever_lists_it() {
        let mut verify = Verify::default();
        for (pair, is_own) in [
            ([item(1), item(1)], true),
            ([item(1), item(2)], true),
            ([None, item(2)], true),
            ([item(1), None], false),
        ] {
            assert_eq!(
                verify.look(b"k", pair, &look(NOW, 0, is_own)),
                Verdict::Nothing
            );
        }
        assert_eq!(
            verify.look(b"k", [item(1), None], &look(NOW, 0, true)),
            Verdict::Doubt
        );
        let extra = verify.look(b"k", [item(1), None], &look(NOW, 1, true));
        assert_eq!(extra, Verdict::Found(Finding::Extra));
        // Whoever does not list cannot be asked what else it has.
        verify.untold.push(7);
        let same = verify.look(b"k", [item(1), item(1)], &look(NOW, 0, true));
        assert_eq!(same, Verdict::Found(Finding::Same));
    }

    #[test]
    fn few_names_are_kept() {
        let mut verify = Verify::default();
        for i in 0..100 {
            verify.skipped(format!("k{i}").as_bytes());
        }
        assert_eq!(verify.found.count(Finding::Skipped), 100);
        assert_eq!(verify.found.samples(Finding::Skipped).len(), SAMPLES);
    }
}
