//! The answers of several servers to one `stats`, merged into one: what can be added up is added up.

use crate::buffer::Queue;
use crate::clients::write_stats;
use crate::protocol::Format;
use std::collections::HashMap;

/// Longest list of keys in bytes, in all: memcached's own bound for one.
const MAX_KEYS: usize = 2 * 1024 * 1024;

/// Longest answer of one server with names and numbers, in bytes. memcached's are below 80 KB, but for
/// `stats sizes` of very many sizes.
const MAX_NAMES: usize = 256 * 1024;

/// Most names: more than all slab classes have. What servers make up beyond that would make a long turn.
const MAX_ENTRIES: usize = 8 * 1024;

/// The name of a slab class or the like that has none.
const NO_CLASS: u64 = u64::MAX;

/// What stands behind a name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    /// magent's own, whatever servers say.
    Own(String),
    /// What is known so far.
    Number(u64),
    /// What the first server said that had no number.
    Text(Box<[u8]>),
}

/// One name.
#[derive(Debug)]
struct Entry {
    name: Box<[u8]>,
    class: u64,
    value: Value,
}

/// Names and values, merged.
#[derive(Default, Debug)]
pub struct Names {
    entries: Vec<Entry>,
    places: HashMap<Box<[u8]>, usize>,
    /// No others are taken.
    closed: bool,
    bytes: usize,
}

/// What servers have said so far.
#[derive(Debug)]
pub enum Totals {
    /// Names and values.
    Names(Names),
    /// The lines of `stats cachedump`; so many more are wanted.
    Keys(Vec<u8>, usize),
}

/// What becomes of the numbers of several servers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rule {
    Sum,
    /// An age, or a switch.
    Largest,
    /// A time without which 0 is meant.
    Smallest,
    /// Settings, which are the same everywhere.
    First,
}

impl Rule {
    fn of(name: &[u8]) -> Rule {
        match name.rsplit(|b| *b == b':').next().unwrap_or(name) {
            b"age" | b"age_hot" | b"age_warm" | b"hash_power_level" => Rule::Largest,
            b"hash_is_expanding" | b"slab_reassign_running" | b"lru_crawler_running" => {
                Rule::Largest
            }
            b"evicted_time" => Rule::Smallest,
            b"chunk_size" | b"chunks_per_page" => Rule::First,
            _ => Rule::Sum,
        }
    }

    fn apply(self, so_far: u64, more: u64) -> u64 {
        match self {
            Rule::Sum => so_far.saturating_add(more),
            Rule::Largest => so_far.max(more),
            Rule::Smallest if so_far == 0 || more == 0 => so_far.max(more),
            Rule::Smallest => so_far.min(more),
            Rule::First => so_far,
        }
    }
}

/// The slab class in `items:5:number` and `5:used_chunks`, the size in `96`.
fn class_of(name: &[u8]) -> u64 {
    let name = name.strip_prefix(b"items:").unwrap_or(name);
    let class = name.split(|b| *b == b':').next().unwrap_or(name);
    number(class).unwrap_or(NO_CLASS)
}

fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// The lines of a text that begin with `start`, without it and without their ends.
fn lines<'a>(text: &'a [u8], start: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    let lines = text.split(|b| *b == b'\n');
    let lines = lines.filter_map(move |line| line.strip_prefix(start));
    lines.map(|line| line.strip_suffix(b"\r").unwrap_or(line))
}

impl Names {
    /// These names and no others, in this order.
    pub fn closed(all: impl IntoIterator<Item = (&'static str, Value)>) -> Names {
        let mut names = Names::default();
        for (name, value) in all {
            names.push(name.as_bytes(), value);
        }
        names.closed = true;
        names
    }

    fn push(&mut self, name: &[u8], value: Value) {
        let text = match &value {
            Value::Own(text) => text.len(),
            Value::Text(text) => text.len(),
            Value::Number(_) => 0,
        };
        self.bytes +=
            2 * name.len() + text + size_of::<Entry>() + size_of::<(usize, usize, usize)>();
        self.places.insert(name.into(), self.entries.len());
        self.entries.push(Entry {
            name: name.into(),
            class: class_of(name),
            value,
        });
    }

    fn take(&mut self, name: &[u8], value: &[u8]) {
        let Some(place) = self.places.get(name) else {
            if !self.closed && self.entries.len() < MAX_ENTRIES {
                let value = number(value).map_or_else(|| Value::Text(value.into()), Value::Number);
                self.push(name, value);
            }
            return;
        };
        let known = &mut self.entries[*place].value;
        match (&known, number(value)) {
            (Value::Number(n), Some(more)) => {
                *known = Value::Number(Rule::of(name).apply(*n, more));
            }
            (Value::Number(0), None) => *known = Value::Text(value.into()),
            _ => {}
        }
    }

    /// Each name with its value: class by class, otherwise in the order in which they came.
    fn into_lines(mut self) -> Vec<(Box<[u8]>, Vec<u8>)> {
        self.entries.sort_by_key(|e| e.class);
        let mut classes: Vec<u64> = self.entries.iter().map(|e| e.class).collect();
        classes.dedup();
        let classes = classes.iter().filter(|c| **c != NO_CLASS).count();
        let line = |entry: Entry| {
            let value = match entry.value {
                // A class of several servers is one.
                _ if &*entry.name == b"active_slabs" => classes.to_string().into_bytes(),
                Value::Own(text) => text.into_bytes(),
                Value::Number(n) => n.to_string().into_bytes(),
                Value::Text(text) => text.into(),
            };
            (entry.name, value)
        };
        self.entries.into_iter().map(line).collect()
    }
}

/// What whoever asked gets.
#[derive(Debug)]
pub enum Merged {
    /// Names and values.
    Lines(Vec<(Box<[u8]>, Vec<u8>)>),
    /// Lines as they are.
    Raw(Vec<u8>),
}

impl Merged {
    /// Appends it as an answer of this format.
    pub fn write(&self, format: Format, out: &mut Queue) {
        match self {
            Merged::Lines(lines) => write_stats(format, lines, out),
            Merged::Raw(lines) => {
                out.push_slice(lines);
                out.push_slice(b"END\r\n");
            }
        }
    }
}

impl Totals {
    /// At most so many keys; 0: all.
    pub fn keys(most: u32) -> Totals {
        let most = if most == 0 { usize::MAX } else { most as usize };
        Totals::Keys(Vec::new(), most)
    }

    /// Takes one server's answer.
    pub fn add(&mut self, answer: &[u8]) {
        match self {
            Totals::Names(names) => {
                for line in lines(answer, b"STAT ") {
                    let mut words = line.splitn(2, |b| *b == b' ');
                    let name = words.next().unwrap_or_default();
                    names.take(name, words.next().unwrap_or_default());
                }
            }
            Totals::Keys(all, left) => {
                // Of a key that begins with a zero byte, as magents' own do, nothing is told.
                let keys = lines(answer, b"ITEM ").filter(|key| !key.starts_with(b" ["));
                for key in keys {
                    if *left == 0 || all.len() + key.len() > MAX_KEYS {
                        break;
                    }
                    *left -= 1;
                    all.extend_from_slice(b"ITEM ");
                    all.extend_from_slice(key);
                    all.extend_from_slice(b"\r\n");
                }
            }
        }
    }

    /// The longest answer of one server that is looked at, in bytes.
    pub fn longest(&self) -> usize {
        match self {
            Totals::Names(_) => MAX_NAMES,
            Totals::Keys(..) => MAX_KEYS,
        }
    }

    /// About how much memory they hold, in bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Totals::Names(names) => names.bytes,
            Totals::Keys(all, _) => all.len(),
        }
    }

    /// What came of it.
    pub fn finish(self) -> Merged {
        match self {
            Totals::Names(names) => Merged::Lines(names.into_lines()),
            Totals::Keys(all, _) => Merged::Raw(all),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(mut totals: Totals, answers: &[&str]) -> String {
        answers.iter().for_each(|a| totals.add(a.as_bytes()));
        match totals.finish() {
            Merged::Raw(all) => String::from_utf8(all).expect("text"),
            Merged::Lines(all) => {
                let text = |b: &[u8]| String::from_utf8(b.to_vec()).expect("text");
                let line = |(name, value): (Box<[u8]>, Vec<u8>)| text(&name) + " " + &text(&value);
                all.into_iter().map(line).collect::<Vec<_>>().join("\n")
            }
        }
    }

    #[test]
    fn numbers_of_a_class_are_added_up_and_ages_are_not() {
        let one = "STAT items:2:number 3\r\nSTAT items:2:age 70\r\nSTAT items:2:evicted_time 9\r\n\
                   STAT items:11:number 1\r\nEND\r\n";
        let two = "STAT items:1:number 5\r\nSTAT items:2:number 4\r\nSTAT items:2:age 60\r\n\
                   STAT items:2:evicted_time 0\r\nEND\r\n";
        let three = "STAT items:2:evicted_time 4\r\nEND\r\n";
        assert_eq!(
            merged(Totals::Names(Names::default()), &[one, two, three]),
            "items:1:number 5\nitems:2:number 7\nitems:2:age 70\nitems:2:evicted_time 4\n\
             items:11:number 1"
        );
    }

    #[test]
    fn slab_classes_of_several_servers_are_one() {
        let one = "STAT 1:chunk_size 96\r\nSTAT 1:used_chunks 2\r\nSTAT active_slabs 1\r\n\
                   STAT total_malloced 1048576\r\nEND\r\n";
        let two = "STAT 1:chunk_size 96\r\nSTAT 1:used_chunks 1\r\nSTAT 3:chunk_size 152\r\n\
                   STAT active_slabs 2\r\nSTAT total_malloced 2097152\r\nEND\r\n";
        assert_eq!(
            merged(Totals::Names(Names::default()), &[one, two]),
            "1:chunk_size 96\n1:used_chunks 3\n3:chunk_size 152\nactive_slabs 2\n\
             total_malloced 3145728"
        );
    }

    #[test]
    fn sizes_are_in_order_and_a_word_is_said_once() {
        let all = [
            "STAT 160 1\r\nEND\r\n",
            "STAT 96 2\r\nSTAT 160 2\r\nEND\r\n",
        ];
        assert_eq!(merged(Totals::Names(Names::default()), &all), "96 2\n160 3");
        let off = "STAT sizes_status disabled\r\nEND\r\n";
        let all = merged(Totals::Names(Names::default()), &[off, off]);
        assert_eq!(all, "sizes_status disabled");
    }

    #[test]
    fn a_closed_list_takes_no_names_and_keeps_its_own() {
        let list = || {
            Totals::Names(Names::closed([
                ("pid", Value::Own("7".into())),
                ("libevent", Value::Number(0)),
                ("bytes", Value::Number(0)),
                ("store_no_memory", Value::Number(2)),
            ]))
        };
        let answer = "STAT pid 1\r\nSTAT bytes 5\r\nSTAT libevent 2.1 stable\r\nSTAT new 1\r\n\
                      STAT store_no_memory 1\r\nEND\r\n";
        assert_eq!(
            merged(list(), &[answer, answer]),
            "pid 7\nlibevent 2.1 stable\nbytes 10\nstore_no_memory 4"
        );
        let nobody = merged(list(), &[]);
        assert_eq!(nobody, "pid 7\nlibevent 0\nbytes 0\nstore_no_memory 2");
    }

    #[test]
    fn nonsense_and_what_does_not_fit_does_no_harm() {
        let large = u64::MAX.to_string();
        let odd = format!("STAT\r\nSTAT a\r\nSTAT  b\r\nVALUE x\r\nSTAT n {large}\r\nEND\r\n");
        let all = merged(Totals::Names(Names::default()), &[&odd, &odd]);
        assert_eq!(all, format!("a \n b\nn {large}"));
    }

    #[test]
    fn made_up_names_have_an_end() {
        let mut all = Totals::Names(Names::default());
        for server in 0..5 {
            let lines = (0..5000).map(|i| format!("STAT {server}x{i} 1\r\n"));
            all.add(lines.collect::<String>().as_bytes());
        }
        let Merged::Lines(lines) = all.finish() else {
            panic!("no names");
        };
        assert_eq!(lines.len(), MAX_ENTRIES);
    }

    #[test]
    fn of_keys_there_are_no_more_than_asked_for() {
        let one = "ITEM a [1 b; 0 s]\r\nITEM b [1 b; 0 s]\r\nEND\r\n";
        let two = "ITEM c [1 b; 0 s]\r\nITEM d [1 b; 0 s]\r\nEND\r\n";
        let keys = |most| merged(Totals::keys(most), &[one, two]);
        assert_eq!(
            keys(3),
            "ITEM a [1 b; 0 s]\r\nITEM b [1 b; 0 s]\r\nITEM c [1 b; 0 s]\r\n"
        );
        assert_eq!(keys(0).lines().count(), 4);
        let mut long = Totals::keys(0);
        let line = format!("ITEM {} [1 b; 0 s]\r\n", "k".repeat(240));
        (0..3).for_each(|_| long.add(line.repeat(4000).as_bytes()));
        assert!((MAX_KEYS - 300..=MAX_KEYS + 8).contains(&long.bytes()));
    }
}
