//! A journal goes on under another program. A delete that is on its way is due once more.

use super::{Journal, Kind};
use crate::saved::{Loaded, Loader, Saved, Saver};

impl Journal {
    /// Writes it: what is due, then what a server may keep as long as the ring stays.
    pub fn save(&self, to: &mut Saver<'_>) {
        self.flush.is_some().save(to);
        self.flush_at.save(to);
        self.overflows.save(to);
        let tables = self.tables.iter().flatten();
        let sent = tables.filter(|(_, entry)| entry.kind == Kind::Sent);
        for (key, _) in sent {
            Kept::Due.save(key, to);
        }
        for (stamp, key) in self.due.iter() {
            let is_due = |e: &&super::Entry| e.stamp == *stamp && e.kind == Kind::Due;
            if self.entry(key).filter(is_due).is_some() {
                Kept::Due.save(key, to);
            }
        }
        for (stamp, key) in self.strays.iter() {
            let kind = self
                .entry(key)
                .filter(|e| e.stamp == *stamp)
                .map(|e| e.kind);
            if let Some(Kind::Stray(ring)) = kind {
                match ring < self.ring {
                    true => Kept::Due.save(key, to),
                    false => Kept::Stray.save(key, to),
                }
            }
        }
        Kept::End.save(b"", to);
    }

    /// Reads one into an empty journal.
    ///
    /// # Errors
    /// It is damaged.
    pub fn load(&mut self, from: &mut Loader<'_>) -> Loaded<()> {
        let flush = bool::load(from)?;
        self.flush_at = Saved::load(from)?;
        let overflows = Saved::load(from)?;
        loop {
            let kept = u8::load(from)?;
            if kept == Kept::End as u8 {
                break;
            }
            let key = from.bytes()?;
            match kept == Kept::Stray as u8 {
                true => self.add_stray(&key),
                false => _ = self.add(&key),
            }
        }
        if flush {
            self.mark_flush();
        }
        self.overflows = overflows;
        Ok(())
    }
}

/// What stands before a key.
#[derive(Clone, Copy)]
enum Kept {
    Due,
    Stray,
    End,
}

impl Kept {
    fn save(self, key: &[u8], to: &mut Saver<'_>) {
        (self as u8).save(to);
        if !matches!(self, Kept::End) {
            to.bytes(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handed_over(journal: &Journal, limit: usize) -> Journal {
        let mut bytes = Vec::new();
        let mut to = Saver::new(&mut bytes);
        journal.save(&mut to);
        to.finish().unwrap();
        let mut other = Journal::new(limit);
        let mut from = Loader::new(&bytes[..], bytes.len());
        other.load(&mut from).unwrap();
        other
    }

    fn due(journal: &mut Journal) -> Vec<String> {
        let next = || journal.take_due();
        std::iter::from_fn(next)
            .map(|(key, _)| String::from_utf8_lossy(&key).into_owned())
            .collect()
    }

    #[test]
    fn keys_keep_their_order_and_kind() {
        let mut journal = Journal::new(1 << 20);
        for key in ["sent", "b", "a", "gone", "b"] {
            journal.add(key.as_bytes());
        }
        journal.add_stray(b"old");
        journal.ring_changed();
        journal.add_stray(b"stray");
        let (first, _) = journal.take_due().unwrap();
        assert_eq!(*first, *b"sent");
        let stamp = journal.mark_sent(b"gone").unwrap();
        journal.synced(b"gone", stamp);
        journal.mark_flush_at(77);
        let mut other = handed_over(&journal, 1 << 20);
        assert_eq!((other.len, other.bytes), (journal.len, journal.bytes));
        assert!(other.is_due(b"sent") && !other.is_due(b"stray"));
        assert_eq!(due(&mut other), ["sent", "a", "b", "old"]);
        assert_eq!(other.take_flush_at(5), Some(77));
        other.ring_changed();
        assert_eq!(due(&mut other), ["stray"]);
    }

    #[test]
    fn a_flush_and_what_was_counted_stay() {
        let mut journal = Journal::new(200);
        for n in 0..9 {
            journal.add(format!("key{n}").as_bytes());
        }
        assert!(journal.flush_due().is_some());
        let other = handed_over(&journal, 200);
        assert!(other.flush_due().is_some() && other.len == 0);
        assert_eq!(other.overflows(), journal.overflows());
    }

    #[test]
    fn a_smaller_bound_makes_it_a_flush() {
        let mut journal = Journal::new(1 << 20);
        for n in 0..9 {
            journal.add(format!("key{n}").as_bytes());
        }
        assert!(handed_over(&journal, 200).flush_due().is_some());
    }
}
