//! USR2: another program takes over in the same process, and nobody notices.

mod common;
#[path = "upgrade/daemon.rs"]
mod daemon;
#[path = "upgrade/load.rs"]
mod load;
#[path = "upgrade/refused.rs"]
mod refused;
#[path = "upgrade/servers.rs"]
mod servers;
#[path = "upgrade/states.rs"]
mod states;

use common::{Magent, Memcached};

/// Another file with the same program: what a build anew would be. `MAGENT_OTHER_BUILD` is one that really is
/// another; then both take turns.
const ANOTHER: &str = "now=${NEW%new}magent; other=${MAGENT_OTHER_BUILD:-$REAL}
    size=$(stat -c %s \"$REAL\")
    if head -c \"$size\" \"$now\" 2>/dev/null | cmp -s - \"$REAL\"; then cp \"$other\" \"$NEW\"; else cp \"$REAL\" \"$NEW\"; fi
    date +%N >> \"$NEW\"";

/// One magent before fresh primaries and backups, from a program that may be replaced.
struct Farm {
    magent: Magent,
    primaries: Vec<Memcached>,
    backups: Vec<Memcached>,
}

impl Farm {
    fn new(primaries: usize, backups: usize, options: &[&str]) -> Farm {
        let start = |n: usize| -> Vec<Memcached> { (0..n).map(|_| Memcached::start()).collect() };
        let (primaries, backups) = (start(primaries), start(backups));
        let mut args = Vec::new();
        primaries.iter().for_each(|p| args.extend(["-s", &p.name]));
        backups.iter().for_each(|b| args.extend(["-b", &b.name]));
        args.extend(options);
        Farm {
            magent: Magent::replaceable(&args),
            primaries,
            backups,
        }
    }

    /// Another program takes over.
    #[track_caller]
    fn change(&self) {
        self.magent.replace_program(ANOTHER);
        assert!(self.magent.upgrade(), "{}", self.magent.log());
    }
}

/// Of each change so far that the log tells: from the last answer of the program before to the first of the
/// next one, in milliseconds.
fn pauses(log: &str) -> Vec<f64> {
    let all = log.lines().filter_map(|line| {
        let (_, rest) = line.split_once(" from the last answer ")?;
        rest.split_once(" ms")?.0.parse().ok()
    });
    all.collect()
}
