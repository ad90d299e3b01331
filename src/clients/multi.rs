//! The answer to a request with several keys: servers answer in parts and in any order, the client
//! gets the values in the order of its keys.
//!
//! ```text
//!  get a b c d      keys   a ─▶ part 0      part 0 (server 1)  VALUE a … VALUE c … END
//!                          b ─▶ part 1      part 1 (server 2)  VALUE d … END
//!                          c ─▶ part 0
//!                          d ─▶ part 1      out   VALUE a … VALUE c … VALUE d … END
//! ```
//!
//! Each key knows its part and, once that has come, where its value is in `store`. Values go out as
//! soon as those of all keys before them have. Keys beyond one portion are asked for when the
//! portion before has gone out.

mod saved;

use crate::buffer::{Queue, SHARE, Source};
use crate::protocol::{Format, Item, Reply, Status, forms};

/// No key.
const NONE: u32 = u32::MAX;

/// One key of the present portion.
#[derive(Debug)]
struct Key {
    /// The next key of the same part, or [`NONE`].
    next: u32,
    value: Value,
}

/// What is known of a key's value.
#[derive(Debug)]
enum Value {
    /// Its part is not answered.
    Pending,
    /// The key has no value.
    Absent,
    /// In the store: stream offset and length, `VALUE` line included.
    At(u64, usize),
    /// Large, and kept by itself: its memory is free as soon as it has gone out.
    Large(Box<Queue>),
}

/// The keys of one request to one server.
#[derive(Clone, Copy, Debug)]
struct Part {
    first: u32,
    last: u32,
    /// How many there are.
    keys: u32,
}

/// Where the values of a reply are kept.
struct Taken {
    /// Stream offset in the store of the first one.
    base: u64,
    /// Its offset in the reply.
    start: usize,
    /// They are in the store, all in one piece.
    is_small: bool,
}

/// Keys of a part for which there is no value.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Lacks {
    /// Their server has none.
    pub missing: u64,
    /// No server has answered.
    pub lost: u64,
}

/// An answer that comes in parts.
#[derive(Default, Debug)]
pub struct Multi {
    keys: Vec<Key>,
    parts: Vec<Part>,
    /// Parts that are not answered.
    open: usize,
    /// Small values that have come, in the order in which they came.
    store: Queue,
    /// Copied bytes of large ones.
    large_copied: usize,
    /// The first key whose value was not passed on.
    next: usize,
    /// Bytes passed on.
    emitted: usize,
    /// Bytes in the store that are not passed on.
    held: usize,
    /// More keys are to be asked, or some once more.
    more: bool,
    /// Keys to be asked once more, as numbers and names.
    again: Vec<(u32, Box<[u8]>)>,
    /// The command and what comes before the keys.
    prefix: Vec<u8>,
    /// Some server has answered.
    answered: bool,
    /// The whole line of the last error.
    failure: Vec<u8>,
}

impl Multi {
    /// Forgets everything but its memory.
    pub fn clear(&mut self) {
        self.keys.clear();
        if self.keys.capacity() > KEEP_KEYS {
            self.keys = Vec::new();
        }
        self.parts.clear();
        self.store.clear();
        self.again.clear();
        self.failure.clear();
        (self.open, self.next, self.emitted, self.held) = (0, 0, 0, 0);
        self.large_copied = 0;
        (self.more, self.answered) = (false, false);
    }

    /// Memory that it holds, in bytes, used or not.
    pub fn capacity(&self) -> usize {
        size_of::<Multi>()
            + self.keys.capacity() * size_of::<Key>()
            + self.parts.capacity() * size_of::<Part>()
            + self.store.capacity()
    }

    /// Begins another portion; the one before has gone out. `more`: it is not the last.
    pub fn begin_portion(&mut self, more: bool) {
        debug_assert!(self.open == 0 && self.next == self.keys.len());
        self.keys.clear();
        self.parts.clear();
        self.store.clear();
        self.next = 0;
        self.more = more;
    }

    /// Another part. Returns its number.
    pub fn add_part(&mut self) -> u32 {
        self.parts.push(Part {
            first: NONE,
            last: NONE,
            keys: 0,
        });
        self.open += 1;
        self.parts.len() as u32 - 1
    }

    /// The next key of the client's request is in this part.
    #[inline]
    pub fn add_key(&mut self, part: u32) {
        let number = self.keys.len() as u32;
        self.keys.push(Key {
            next: NONE,
            value: Value::Pending,
        });
        self.put_in(part, number);
    }

    /// Puts a key that is known into a part, behind those that are in it.
    pub fn put_in(&mut self, part: u32, number: u32) {
        let part = &mut self.parts[part as usize];
        match part.last {
            NONE => part.first = number,
            last => self.keys[last as usize].next = number,
        }
        part.last = number;
        part.keys += 1;
        self.keys[number as usize].next = NONE;
    }

    /// A part was answered. `line` is what the server was asked.
    pub fn answer(&mut self, part: u32, line: &[u8], reply: &Reply<'_>) -> Lacks {
        self.take(part, line, reply, |_, _| false)
    }

    /// The same for a part whose missing keys may be elsewhere: each of them becomes a part of its
    /// own, for which `ask` is called with its number and the key.
    pub fn answer_found(
        &mut self,
        part: u32,
        line: &[u8],
        reply: &Reply<'_>,
        mut ask: impl FnMut(u32, &[u8]),
    ) {
        let mut missing = Vec::new();
        self.take(part, line, reply, |number, key| {
            missing.push((number, key));
            true
        });
        for (number, key) in missing {
            let part = self.add_part();
            self.put_in(part, number);
            ask(part, key);
        }
    }

    /// A part will not be answered where it was asked: each of its keys becomes a part of its own.
    pub fn split(&mut self, part: u32, line: &[u8], mut ask: impl FnMut(u32, &[u8])) {
        let mut number = self.parts[part as usize].first;
        self.open -= 1;
        forms::each_key_of_many(line, |key| {
            let Some(next) = self.keys.get(number as usize).map(|k| k.next) else {
                return;
            };
            let part = self.add_part();
            self.put_in(part, number);
            ask(part, key);
            number = next;
        });
    }

    /// There was no memory for a part: its keys will be asked once more.
    pub fn ask_again(&mut self, part: u32, line: &[u8]) {
        let mut number = self.parts[part as usize].first;
        self.open -= 1;
        self.prefix.clear();
        self.prefix.extend_from_slice(forms::before_keys(line));
        forms::each_key_of_many(line, |key| {
            if let Some(known) = self.keys.get(number as usize) {
                self.again.push((number, key.into()));
                number = known.next;
            }
        });
        // The first one is what the client waits for.
        self.again.sort_unstable_by_key(|(number, _)| *number);
    }

    /// A part failed: its keys are misses. `failure` is the line for a client that gets nothing at
    /// all.
    pub fn fail(&mut self, part: u32, failure: &[u8]) -> Lacks {
        self.open -= 1;
        self.failure.clear();
        self.failure.extend_from_slice(failure);
        let (mut lost, mut number) = (0, self.parts[part as usize].first);
        while let Some(key) = self.keys.get_mut(number as usize) {
            key.value = Value::Absent;
            number = key.next;
            lost += 1;
        }
        Lacks { missing: 0, lost }
    }

    /// Takes over the values of a part; `keep` decides for each missing key whether it stays open.
    fn take<'a>(
        &mut self,
        part: u32,
        line: &'a [u8],
        reply: &Reply<'_>,
        mut keep: impl FnMut(u32, &'a [u8]) -> bool,
    ) -> Lacks {
        self.open -= 1;
        if !matches!(reply.status, Status::Done | Status::Absent) {
            let first = reply.source.slice(reply.at..reply.at + reply.line).to_vec();
            self.open += 1;
            return self.fail(part, &first);
        }
        self.answered = true;
        let mut missing = 0;
        let Part { first, keys, .. } = self.parts[part as usize];
        let values = reply.values();
        let store = Taken {
            base: self.store.end(),
            start: values.start,
            is_small: values.len() < SHARE,
        };
        if store.is_small {
            self.store.push(reply.source, values.clone());
        }
        self.held += values.len();
        let mut number = first;
        // Values come in the order of the keys: where there are as many, nothing is missing.
        if reply.items.len() == keys as usize {
            for item in reply.items {
                number = self.take_value(number, item, reply, &store);
            }
            return Lacks::default();
        }
        forms::multi_keys(line, reply, |key, item| {
            if let Some(item) = item {
                number = self.take_value(number, item, reply, &store);
            } else if let Some(known) = self.keys.get_mut(number as usize) {
                let this = std::mem::replace(&mut number, known.next);
                if !keep(this, key) {
                    known.value = Value::Absent;
                    missing += 1;
                }
            }
        });
        Lacks { missing, lost: 0 }
    }

    /// The value of one key. Returns the number of the next key of its part.
    #[inline]
    fn take_value(&mut self, number: u32, item: &Item, reply: &Reply<'_>, taken: &Taken) -> u32 {
        let Some(known) = self.keys.get_mut(number as usize) else {
            return NONE;
        };
        let from = reply.at + item.at;
        let range = from..from + item.bytes();
        known.value = if taken.is_small {
            Value::At(taken.base + (from - taken.start) as u64, range.len())
        } else if range.len() < SHARE {
            let at = self.store.end();
            self.store.push(reply.source, range.clone());
            Value::At(at, range.len())
        } else {
            let mut large = Box::new(Queue::new());
            large.push(reply.source, range);
            self.large_copied += large.own_bytes();
            Value::Large(large)
        };
        known.next
    }

    /// Passes on the values that are next. Adjacent ones go in one piece.
    pub fn emit(&mut self, out: &mut Queue) {
        let mut run: Option<(u64, usize)> = None;
        while let Some(key) = self.keys.get_mut(self.next) {
            match (&mut key.value, &mut run) {
                (Value::Pending, _) => break,
                (Value::Absent, _) => {}
                (Value::At(at, len), Some((from, long))) if *from + *long as u64 == *at => {
                    *long += *len;
                }
                (Value::At(at, len), _) => {
                    let before = run.replace((*at, *len));
                    self.pass_on(before, out);
                }
                (Value::Large(large), _) => {
                    let large = std::mem::take(large);
                    self.pass_on(run.take(), out);
                    out.push(Source::Queue(&large, large.start()), 0..large.len());
                    self.emitted += large.len();
                    self.held -= large.len();
                    self.large_copied -= large.own_bytes();
                }
            }
            self.next += 1;
        }
        self.pass_on(run, out);
        if self.next == self.keys.len() {
            self.store.clear();
        }
    }

    fn pass_on(&mut self, run: Option<(u64, usize)>, out: &mut Queue) {
        if let Some((at, len)) = run {
            out.push(Source::Queue(&self.store, at), 0..len);
            self.emitted += len;
            self.held -= len;
        }
    }

    /// Ends the answer, once all values were passed on.
    pub fn finish(&mut self, format: Format, out: &mut Queue) {
        if self.answered || self.failure.is_empty() {
            out.push_slice(b"END\r\n");
        } else {
            super::answer::write_line(format, &self.failure, out);
        }
    }

    /// How many keys a part has.
    pub fn keys_in(&self, part: u32) -> usize {
        self.parts.get(part as usize).map_or(0, |p| p.keys as usize)
    }

    /// Takes the keys that are to be asked once more.
    pub fn take_again(&mut self) -> Vec<(u32, Box<[u8]>)> {
        std::mem::take(&mut self.again)
    }

    /// The command and what comes before the keys.
    pub fn prefix(&self) -> &[u8] {
        &self.prefix
    }

    /// Whether other portions follow.
    pub fn set_more(&mut self, more: bool) {
        self.more = more;
    }

    /// True if nothing of the portion is open but keys to be asked once more.
    pub fn waits_to_ask_again(&self) -> bool {
        self.open == 0 && !self.again.is_empty()
    }

    /// Puts back keys that could not be asked now.
    pub fn put_back(&mut self, keys: impl Iterator<Item = (u32, Box<[u8]>)>) {
        self.again.extend(keys);
        self.again.sort_unstable_by_key(|(number, _)| *number);
    }

    /// The portion has gone out, and others follow.
    pub fn is_between_portions(&self) -> bool {
        self.more && self.open == 0 && self.again.is_empty() && self.next == self.keys.len()
    }

    /// True if nothing more is to come from servers.
    pub fn is_done(&self) -> bool {
        !self.more && self.open == 0 && self.again.is_empty()
    }

    /// Parts that are not answered.
    pub fn open(&self) -> usize {
        self.open
    }

    /// True if some server has answered.
    pub fn is_answered(&self) -> bool {
        self.answered
    }

    /// Bytes of values that are there and not passed on.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Copied bytes that it holds.
    pub fn copied(&self) -> usize {
        let again = self.again.iter().map(|(_, key)| key.len());
        self.store.own_bytes() + self.large_copied + again.sum::<usize>()
    }

    /// Bytes passed on so far.
    pub fn emitted(&self) -> usize {
        self.emitted
    }
}

/// A list at rest keeps room for this many keys.
const KEEP_KEYS: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::reply::{Progress, Scan};
    use crate::protocol::{Item, Verb};

    /// Calls `f` with `text` as the reply to `line`.
    fn with_reply(line: &[u8], text: &[u8], f: impl FnOnce(&Reply<'_>)) {
        let mut scan = Scan::default();
        let Progress::Whole { used, line, status } = scan.feed(Verb::Get, line, text) else {
            panic!("{}", text.escape_ascii());
        };
        assert_eq!(used, text.len());
        let items: Vec<Item> = scan.items.clone();
        f(&Reply {
            source: Source::Slice(text),
            at: 0,
            len: used,
            line,
            status,
            items: &items,
        });
    }

    fn answer(multi: &mut Multi, part: u32, line: &str, text: &str) {
        with_reply(line.as_bytes(), text.as_bytes(), |reply| {
            multi.answer(part, line.as_bytes(), reply);
        });
    }

    fn out(multi: &mut Multi, out: &mut Queue) -> String {
        multi.emit(out);
        let mut bytes = Vec::new();
        Source::Queue(out, out.start()).copy_to(0..out.len(), &mut bytes);
        String::from_utf8(bytes).unwrap()
    }

    /// Keys alternate between two parts.
    fn two_parts(keys: usize) -> Multi {
        let mut multi = Multi::default();
        multi.begin_portion(false);
        let parts = [multi.add_part(), multi.add_part()];
        (0..keys).for_each(|i| multi.add_key(parts[i % 2]));
        multi
    }

    #[test]
    fn values_go_out_in_the_order_of_the_keys() {
        let mut multi = two_parts(4);
        let mut queue = Queue::new();
        answer(
            &mut multi,
            1,
            "get b d\r\n",
            "VALUE b 0 1\r\nB\r\nVALUE d 0 1\r\nD\r\nEND\r\n",
        );
        assert_eq!(out(&mut multi, &mut queue), "");
        assert!(multi.held() > 0 && !multi.is_done());
        answer(&mut multi, 0, "get a c\r\n", "VALUE c 0 1\r\nC\r\nEND\r\n");
        let all = "VALUE b 0 1\r\nB\r\nVALUE c 0 1\r\nC\r\nVALUE d 0 1\r\nD\r\n";
        assert_eq!(out(&mut multi, &mut queue), all);
        assert!(multi.is_done());
        assert_eq!(
            (multi.held(), multi.emitted(), multi.copied()),
            (0, all.len(), 0)
        );
    }

    #[test]
    fn a_key_named_twice_has_two_values() {
        let mut multi = Multi::default();
        let part = multi.add_part();
        (0..3).for_each(|_| multi.add_key(part));
        let a = "VALUE a 0 1\r\nA\r\n";
        let text = format!("{a}{a}END\r\n");
        answer(&mut multi, 0, "get a b a\r\n", &text);
        assert_eq!(out(&mut multi, &mut Queue::new()), a.repeat(2));
    }

    #[test]
    fn what_one_server_lacks_another_may_have() {
        let mut multi = two_parts(3);
        let line = b"get a c\r\n";
        let mut asked = Vec::new();
        with_reply(line, b"VALUE a 0 1\r\nA\r\nEND\r\n", |reply| {
            multi.answer_found(0, line, reply, |part, key| asked.push((part, key.to_vec())));
        });
        assert_eq!(asked, [(2, b"c".to_vec())]);
        answer(&mut multi, 1, "get b\r\n", "END\r\n");
        assert!(!multi.is_done());
        answer(&mut multi, 2, "get c\r\n", "VALUE c 0 1\r\nC\r\nEND\r\n");
        let all = "VALUE a 0 1\r\nA\r\nVALUE c 0 1\r\nC\r\n";
        assert_eq!(out(&mut multi, &mut Queue::new()), all);
        assert!(multi.is_done());
    }

    #[test]
    fn only_if_every_part_failed_is_the_answer_an_error() {
        for (other, end) in [
            ("END\r\n", "END\r\n"),
            ("SERVER_ERROR x\r\n", "SERVER_ERROR x\r\n"),
        ] {
            let mut multi = two_parts(3);
            assert_eq!(multi.fail(0, b"SERVER_ERROR down\r\n").lost, 2);
            answer(&mut multi, 1, "get b\r\n", other);
            assert!(multi.is_done());
            let mut queue = Queue::new();
            multi.emit(&mut queue);
            multi.finish(Format::Text, &mut queue);
            assert_eq!(out(&mut multi, &mut queue), end);
        }
    }

    #[test]
    fn keys_without_memory_are_asked_again_and_keep_their_place() {
        let mut multi = two_parts(4);
        multi.ask_again(0, b"get a c\r\n");
        answer(&mut multi, 1, "get b d\r\n", "VALUE b 0 1\r\nB\r\nEND\r\n");
        assert!(multi.waits_to_ask_again() && !multi.is_done());
        let again = multi.take_again();
        let part = multi.add_part();
        again
            .iter()
            .for_each(|(number, _)| multi.put_in(part, *number));
        answer(
            &mut multi,
            part,
            "get a c\r\n",
            "VALUE a 0 1\r\nA\r\nEND\r\n",
        );
        let all = "VALUE a 0 1\r\nA\r\nVALUE b 0 1\r\nB\r\n";
        assert_eq!(out(&mut multi, &mut Queue::new()), all);
        assert!(multi.is_done());
    }

    #[test]
    fn a_part_that_is_lost_is_split() {
        let mut multi = two_parts(3);
        let mut asked = Vec::new();
        multi.split(0, b"get a c\r\n", |part, key| {
            asked.push((part, key.to_vec()))
        });
        assert_eq!(asked, [(2, b"a".to_vec()), (3, b"c".to_vec())]);
        answer(&mut multi, 3, "get c\r\n", "VALUE c 0 1\r\nC\r\nEND\r\n");
        answer(&mut multi, 1, "get b\r\n", "END\r\n");
        multi.fail(2, b"SERVER_ERROR down\r\n");
        assert_eq!(out(&mut multi, &mut Queue::new()), "VALUE c 0 1\r\nC\r\n");
        assert!(multi.is_done() && multi.is_answered());
    }
}
