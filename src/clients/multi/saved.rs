//! An answer in parts under another program: its client has not taken what is there, or keys of it are still to
//! be asked.

use super::{Key, Multi, NONE, Value};
use crate::buffer::{Queue, SHARE, Source};
use crate::saved::{Damaged, Loaded, Loader, Saved, Saver, load_all, save_all};

/// Nothing of it is at a server: of the keys that were not passed on each has its value, has none, or is
/// to be asked once more.
impl Saved for Multi {
    fn save(&self, to: &mut Saver<'_>) {
        self.next.save(to);
        let rest = &self.keys[self.next..];
        rest.len().save(to);
        for key in rest {
            match &key.value {
                Value::Pending => 0u8.save(to),
                Value::Absent => 1u8.save(to),
                Value::At(at, len) => {
                    2u8.save(to);
                    let range = *at..*at + *len as u64;
                    to.pieces(*len, |put| self.store.for_each(range, put));
                }
                Value::Large(large) => {
                    2u8.save(to);
                    large.save(to);
                }
            }
        }
        self.emitted.save(to);
        self.more.save(to);
        save_all(to, self.again.iter());
        self.prefix.save(to);
        self.answered.save(to);
        self.failure.save(to);
    }

    fn load(from: &mut Loader<'_>) -> Loaded<Multi> {
        let mut multi = Multi {
            next: Saved::load(from)?,
            ..Multi::default()
        };
        let absent = || Key {
            next: NONE,
            value: Value::Absent,
        };
        multi.keys.resize_with(multi.next, absent);
        for _ in 0..usize::load(from)? {
            let value = match u8::load(from)? {
                0 => Value::Pending,
                1 => Value::Absent,
                2 => multi.keep(Queue::load(from)?),
                n => return Err(Damaged(format!("value {n}"))),
            };
            multi.keys.push(Key { next: NONE, value });
        }
        multi.emitted = Saved::load(from)?;
        multi.more = Saved::load(from)?;
        multi.again = load_all(from, Saved::load)?;
        multi.prefix = Saved::load(from)?;
        multi.answered = Saved::load(from)?;
        multi.failure = Saved::load(from)?;
        let mut numbers = multi.again.iter().map(|(number, _)| *number as usize);
        if numbers.any(|number| number >= multi.keys.len()) {
            return Err(Damaged(
                "a key to be asked again is none of its request".into(),
            ));
        }
        Ok(multi)
    }
}

impl Multi {
    /// Keeps a value that was loaded.
    fn keep(&mut self, value: Queue) -> Value {
        let len = value.len();
        self.held += len;
        if len >= SHARE {
            self.large_copied += len;
            return Value::Large(Box::new(value));
        }
        let at = self.store.end();
        self.store.push(Source::Queue(&value, 0), 0..len);
        Value::At(at, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_goes_on_where_it_was() {
        let mut multi = Multi::default();
        multi.begin_portion(true);
        let part = multi.add_part();
        (0..4).for_each(|_| multi.add_key(part));
        multi.ask_again(part, b"get a b c d\r\n");
        let large = vec![b'x'; 2 * SHARE];
        multi.keys[0].value = Value::Absent;
        multi.keys[1].value = multi.keep_bytes(b"VALUE b 0 1\r\nB\r\n");
        multi.keys[3].value = multi.keep_bytes(&large);
        multi.again.retain(|(number, _)| *number == 2);
        multi.answered = true;
        multi.emit(&mut Queue::new());

        let mut bytes = Vec::new();
        let mut to = Saver::new(&mut bytes);
        multi.save(&mut to);
        to.finish().unwrap();
        let mut other = Multi::load(&mut Loader::new(&bytes[..], bytes.len())).unwrap();
        let seen = |m: &Multi| (m.held(), m.emitted(), m.next, m.again.clone(), m.open());
        assert_eq!(seen(&other), seen(&multi));
        assert!(other.waits_to_ask_again() && other.is_answered());

        let again = other.take_again();
        let part = other.add_part();
        again
            .iter()
            .for_each(|(number, _)| other.put_in(part, *number));
        other.fail(part, b"SERVER_ERROR down");
        let mut out = Queue::new();
        other.emit(&mut out);
        assert_eq!(out.len(), large.len());
        assert!(other.is_between_portions() && other.held() == 0);
    }

    impl Multi {
        fn keep_bytes(&mut self, bytes: &[u8]) -> Value {
            let mut queue = Queue::new();
            queue.push_slice(bytes);
            self.keep(queue)
        }
    }
}
