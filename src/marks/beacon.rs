//! Who else uses a server: the beacon, a list with a line for each magent, and a sign of life besides,
//! which each renews. A line whose sign of life is gone is a death.

use super::bytes::Process;
use super::lines::{Id, Lines};
use super::times::{ALONE_AFTER, WAIT};
use crate::time::Time;
use std::fmt::{self, Display, Formatter};

/// Magents of one server that are kept account of; more are there, and nothing else is said of them.
const MOST: usize = 64;

/// What a magent says of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Presence {
    /// Where it runs.
    pub process: Process,
    /// The hash of its rings: others can only be compared with equal ones.
    pub rings: u64,
}

impl Presence {
    /// What its line says behind the id.
    pub fn text(&self) -> String {
        format!(
            "{} {} {:016x}",
            self.process.host, self.process.pid, self.rings
        )
    }

    fn parse(text: &[u8]) -> Option<Presence> {
        let mut words = std::str::from_utf8(text).ok()?.split(' ');
        let presence = Presence {
            process: Process {
                host: words.next()?.to_string(),
                pid: words.next()?.parse().ok()?,
            },
            rings: u64::from_str_radix(words.next()?, 16).ok()?,
        };
        words.next().is_none().then_some(presence)
    }
}

/// Another magent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Other {
    /// Its run.
    pub id: Id,
    /// What it says of itself, if that can be read.
    pub presence: Option<Presence>,
    /// Its sign of life was there when last asked for; `None`: not asked yet.
    pub is_alive: Option<bool>,
}

impl Display for Other {
    /// For people: host and process, or the id.
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        match &self.presence {
            Some(p) => write!(f, "{} {}", p.process.host, p.process.pid),
            None => self.id.fmt(f),
        }
    }
}

/// What one server's beacon shows.
#[derive(Debug)]
pub struct Beacon {
    me: Id,
    others: Vec<Other>,
    /// When a foreign line was new, or its magent alive.
    seen: Option<Time>,
    has_line: bool,
}

impl Beacon {
    /// Nothing was seen yet.
    pub fn new(me: Id) -> Beacon {
        Beacon {
            me,
            others: Vec::new(),
            seen: None,
            has_line: false,
        }
    }

    /// The list was read; empty if there is none.
    pub fn read(&mut self, list: &[u8], now: Time) {
        self.has_line = false;
        let before = std::mem::take(&mut self.others);
        for line in Lines(list).iter() {
            if line.id == self.me {
                self.has_line = true;
                continue;
            }
            let known = before.iter().find(|o| o.id == line.id);
            if known.is_none() {
                self.seen = Some(now);
            }
            // What it says of itself changes with its rings.
            self.keep(Other {
                id: line.id,
                presence: Presence::parse(line.text),
                is_alive: known.and_then(|o| o.is_alive),
            });
        }
    }

    fn keep(&mut self, other: Other) {
        let is_new = self.others.iter().all(|o| o.id != other.id);
        if is_new && self.others.len() < MOST {
            self.others.push(other);
        }
    }

    /// Another one's sign of life was asked for.
    pub fn asked(&mut self, id: Id, is_there: bool, now: Time) {
        if let Some(other) = self.others.iter_mut().find(|o| o.id == id) {
            other.is_alive = Some(is_there);
            if is_there {
                self.seen = Some(now);
            }
        }
    }

    /// True if the own line is missing: it was never written, or a flush took it away.
    pub fn lacks_line(&self) -> bool {
        !self.has_line
    }

    /// True while others use the server, or did until a moment ago.
    pub fn is_shared(&self, now: Time) -> bool {
        self.seen.is_some_and(|seen| now.since(seen) < ALONE_AFTER)
    }

    /// W: nobody has to be waited for by a magent that is alone.
    pub fn wait(&self, now: Time) -> u64 {
        if self.is_shared(now) { WAIT } else { 0 }
    }

    /// All others that are listed.
    pub fn others(&self) -> &[Other] {
        &self.others
    }

    /// Those that died: listed, and without a sign of life.
    pub fn dead(&self) -> impl Iterator<Item = &Other> {
        self.others.iter().filter(|o| o.is_alive == Some(false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::marks::push_line;
    use crate::time::SECOND;

    const ME: Id = Id(1);
    const IT: Id = Id(0x7f3a_9c0d_12e4_5b66);

    fn presence(rings: u64) -> Presence {
        let host = "web1".to_string();
        Presence {
            process: Process { host, pid: 4711 },
            rings,
        }
    }

    fn list(ids: &[Id]) -> Vec<u8> {
        let mut list = Vec::new();
        for id in ids {
            push_line(&mut list, *id, presence(0xabc).text().as_bytes());
        }
        list
    }

    #[test]
    fn a_magent_that_is_alone_waits_for_nobody() {
        let mut beacon = Beacon::new(ME);
        assert!(beacon.lacks_line());
        beacon.read(&list(&[ME]), Time(0));
        assert!(!beacon.lacks_line() && !beacon.is_shared(Time(0)));
        assert_eq!(beacon.wait(Time(0)), 0);
        beacon.read(b"", Time(1));
        assert!(beacon.lacks_line());
    }

    #[test]
    fn another_one_is_reckoned_with_until_it_is_gone_for_a_while() {
        let mut beacon = Beacon::new(ME);
        beacon.read(&list(&[ME, IT]), Time(0));
        assert_eq!(beacon.wait(Time(0)), WAIT);
        // An old line alone is no life.
        let later = Time(9 * SECOND);
        beacon.read(&list(&[ME, IT]), later);
        beacon.asked(IT, true, later);
        assert!(beacon.is_shared(Time(18 * SECOND)));
        beacon.asked(IT, false, Time(18 * SECOND));
        assert!(!beacon.is_shared(Time(19 * SECOND)));
        let dead: Vec<_> = beacon.dead().map(|o| o.id).collect();
        assert_eq!(dead, [IT]);
        assert_eq!(beacon.others()[0].presence, Some(presence(0xabc)));
        // Taken out, and back under another id: another magent.
        beacon.read(&list(&[ME]), Time(20 * SECOND));
        assert_eq!(beacon.dead().count(), 0);
        beacon.read(&list(&[ME, Id(3)]), Time(20 * SECOND));
        assert!(beacon.is_shared(Time(20 * SECOND)));
    }

    #[test]
    fn a_line_that_changes_is_another_ring_of_the_same_magent() {
        let mut beacon = Beacon::new(ME);
        beacon.read(&list(&[ME, IT]), Time(0));
        beacon.asked(IT, true, Time(0));
        assert_eq!(beacon.others()[0].is_alive, Some(true));
        let mut changed = Vec::new();
        push_line(&mut changed, IT, presence(0xabd).text().as_bytes());
        beacon.read(&changed, Time(1));
        assert_eq!(beacon.others()[0].presence, Some(presence(0xabd)));
        assert_eq!(beacon.others()[0].is_alive, Some(true));
    }

    #[test]
    fn lists_of_any_length_and_content_are_bounded() {
        let mut beacon = Beacon::new(ME);
        let many: Vec<_> = (10..1000).map(Id).collect();
        let mut all = list(&many);
        all.extend(b"7f3a9c0d12e45b66 \xff\xff x\n7f3a9c0d12e45b66 a b c d\nnoise");
        beacon.read(&all, Time(0));
        assert_eq!(beacon.others().len(), MOST);
        assert!(beacon.is_shared(Time(0)));
        beacon.read(
            b"7f3a9c0d12e45b66 a b c d\n7f3a9c0d12e45b66 a 1 2\n",
            Time(0),
        );
        assert_eq!(beacon.others().len(), 1);
        assert_eq!(beacon.others()[0].presence, None);
    }
}
