//! What clients were told, and what they may therefore read.
//!
//! Every value is made of tags, one for each write it holds: `<key:number:length:filler>`. A
//! value that is foreign, torn, or holds a write twice is told by that; the number leads to
//! when its write was asked for and answered, and so to whether it is too old.
//!
//! Time here is a counter of what clients did: a write is older than another if it was answered
//! before the other was asked for.

/// Not answered yet, or never.
pub const NEVER: u64 = u64::MAX;

/// What a write does to its key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The value is its tag alone.
    Put,
    /// Its tag is added, before or behind.
    Extend,
    /// The key goes.
    Remove,
    /// A counter comes to be, unless it is there.
    Create,
    /// A number is added to a counter.
    Count,
    /// An empty value comes to be, unless there is one.
    Vivify,
}

/// One write.
#[derive(Clone, Copy, Debug)]
pub struct Write {
    pub key: usize,
    pub kind: Kind,
    pub asked: u64,
    pub answered: u64,
    pub flags: u32,
    /// It takes the key away, or may: a value that servers refuse.
    removes: bool,
    /// Removals of its key when it was asked for, if none was under way.
    removals: Option<u64>,
}

/// One key.
#[derive(Default, Debug)]
pub struct KeyState {
    /// When the last acknowledged write that replaces or removes was asked for.
    floor: u64,
    /// Extensions that were acknowledged.
    extended: Vec<u64>,
    /// Writes on their way.
    pub open: u32,
    /// Writes ever asked for.
    pub changes: u64,
    /// Of a counter: the largest number that anybody was told since it was created.
    count: u64,
    /// Of a counter: nothing can be said about it any more.
    unsure: bool,
    /// Of a counter: creations on their way.
    creating: u32,
    /// Of a counter: when the last creation was asked for.
    created: u64,
    /// Requests that an empty value may be of.
    vivified: Vec<u64>,
    /// Requests ever that may have removed it, and those of them on their way.
    removals: u64,
    removing: u32,
    /// It was stored when there had been so many removals: if there were no more, it is there.
    stored: Option<u64>,
    /// When a write of it last failed, or nobody was told what became of it.
    failed: u64,
    /// Until this virtual time writes may be on their way that nobody waits for.
    pub settles: u64,
    /// When somebody was last told of a write, in virtual time.
    told: u64,
}

/// What was known of a key when a read was sent.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub key: usize,
    asked: u64,
    floor: u64,
    extended: usize,
    count: Option<u64>,
    changes: u64,
    /// Somebody was told of a write within [`History::grace`].
    just_told: bool,
    /// Somebody holds it, nothing changes it and nothing fails: it must be found.
    pub must: Option<u64>,
}

/// All of it.
#[derive(Default, Debug)]
pub struct History {
    pub writes: Vec<Write>,
    pub keys: Vec<KeyState>,
    /// Virtual time.
    pub clock: u64,
    /// For so long after a write was answered the value before may be read.
    grace: u64,
    now: u64,
}

/// A key's name. Those from `counters` on count.
pub fn key_name(key: usize) -> String {
    format!("key{key:02}")
}

/// The number in a key's name.
pub fn key_number(name: &[u8]) -> Option<usize> {
    let digits = std::str::from_utf8(name.strip_prefix(b"key")?).ok()?;
    (digits.len() == 2).then(|| digits.parse().ok()).flatten()
}

/// The bytes that a write leaves in a value.
pub fn tag(key: usize, write: u64, length: usize) -> Vec<u8> {
    let mut t = format!("<{}:{write}:{length}:", key_name(key)).into_bytes();
    t.extend((0..length).map(|i| b'a' + ((write as usize + i) % 26) as u8));
    t.push(b'>');
    t
}

/// The writes whose tags make up a value.
pub fn tags(mut value: &[u8]) -> Result<Vec<(usize, u64)>, String> {
    let mut found = Vec::new();
    while !value.is_empty() {
        let torn = || format!("torn value at {:?}", lossy(&value[..value.len().min(60)]));
        let end = value.iter().position(|b| *b == b'>').ok_or_else(torn)?;
        let words: Vec<&[u8]> = value[..end].splitn(4, |b| *b == b':').collect();
        let number = |w: &[u8]| -> Option<u64> { std::str::from_utf8(w).ok()?.parse().ok() };
        let parsed = (|| {
            let key = key_number(words.first()?.strip_prefix(b"<")?)?;
            Some((key, number(words.get(1)?)?, number(words.get(2)?)? as usize))
        })();
        let (key, write, length) = parsed.ok_or_else(torn)?;
        let whole = tag(key, write, length);
        value = value.strip_prefix(&whole[..]).ok_or_else(torn)?;
        found.push((key, write));
    }
    Ok(found)
}

/// Bytes for people.
pub fn lossy(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes).into_owned();
    if text.len() > 200 && text.is_char_boundary(200) {
        return format!("{}… ({} bytes)", &text[..200], bytes.len());
    }
    text
}

impl History {
    /// So many keys.
    pub fn new(keys: usize, grace: u64) -> History {
        History {
            grace,
            keys: (0..keys).map(|_| KeyState::default()).collect(),
            ..History::default()
        }
    }

    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    /// A client sends a write; returns its number.
    pub fn ask(&mut self, key: usize, kind: Kind, flags: u32) -> u64 {
        self.ask_for(key, kind, flags, kind == Kind::Remove)
    }

    /// A client sends a write that may take the key away.
    pub fn ask_for(&mut self, key: usize, kind: Kind, flags: u32, removes: bool) -> u64 {
        let asked = self.tick();
        let number = self.writes.len() as u64;
        let state = &mut self.keys[key];
        self.writes.push(Write {
            key,
            kind,
            asked,
            answered: NEVER,
            flags,
            removes,
            removals: (state.removing == 0).then_some(state.removals),
        });
        state.removals += u64::from(removes);
        state.removing += u32::from(removes);
        if kind == Kind::Vivify {
            state.vivified.push(number);
        }
        state.open += 1;
        state.changes += 1;
        if kind == Kind::Create {
            state.creating += 1;
            state.created = asked;
        }
        number
    }

    /// A client was told what became of a write. One that failed may be on its way until
    /// `settles`.
    pub fn answer(&mut self, write: u64, done: bool, failed: Option<u64>) {
        let now = self.tick();
        let w = &mut self.writes[write as usize];
        w.answered = now;
        let state = &mut self.keys[w.key];
        state.told = self.clock;
        state.open -= 1;
        state.removing -= u32::from(w.removes);
        if let Some(settles) = failed {
            // What fails may leave the key deleted.
            state.removals += 1;
            state.failed = now;
            state.settles = state.settles.max(settles);
        }
        let stores = matches!(w.kind, Kind::Put | Kind::Create);
        if done && stores && w.removals.is_some_and(|n| n == state.removals) {
            state.stored = w.removals;
        }
        match w.kind {
            Kind::Put | Kind::Remove if done => state.floor = state.floor.max(w.asked),
            Kind::Extend if done => state.extended.push(write),
            Kind::Create => {
                state.count = 0;
                state.creating -= 1;
            }
            _ => {}
        }
    }

    /// Nobody will be told what became of a write; it may be on its way until `settles`.
    pub fn abandon(&mut self, write: u64, settles: u64) {
        let now = self.tick();
        let w = &self.writes[write as usize];
        let state = &mut self.keys[w.key];
        state.open -= 1;
        state.removing -= u32::from(w.removes);
        state.failed = now;
        state.settles = state.settles.max(settles);
        state.unsure |= w.kind == Kind::Create;
    }

    /// A client was told `OK` to a `flush_all` asked for at `asked`.
    pub fn flushed(&mut self, asked: u64) {
        self.tick();
        for key in &mut self.keys {
            key.floor = key.floor.max(asked);
            key.unsure = true;
            key.removals += 1;
        }
    }

    /// Everything may change now: somebody asks for `flush_all`.
    pub fn flushing(&mut self, settles: u64) -> u64 {
        for key in &mut self.keys {
            key.changes += 1;
            key.removals += 1;
            key.settles = key.settles.max(settles);
            key.unsure = true;
        }
        self.tick()
    }

    /// A client sends a read.
    pub fn look(&mut self, key: usize, must: Option<u64>) -> Seen {
        let asked = self.tick();
        let state = &self.keys[key];
        let sure = !state.unsure && state.creating == 0;
        Seen {
            key,
            asked,
            floor: state.floor,
            extended: state.extended.len(),
            count: sure.then_some(state.count),
            changes: state.changes,
            just_told: self.clock < state.told + self.grace,
            must: must.filter(|_| state.open == 0),
        }
    }

    /// Nothing was asked of the key's value since it was looked at.
    pub fn unchanged(&self, seen: &Seen) -> bool {
        self.keys[seen.key].changes == seen.changes
    }

    /// Some write of it may have been done on one of its servers only, if both were away at once: it failed,
    /// and nothing that replaces it was acknowledged since.
    pub fn is_doubtful(&self, key: usize) -> bool {
        let state = &self.keys[key];
        state.failed > state.floor
    }

    /// The key was stored, and nothing that was asked for since can have taken it away.
    pub fn is_there(&self, key: usize, now: u64) -> bool {
        let state = &self.keys[key];
        let removed = state.removing > 0 || state.stored != Some(state.removals);
        !removed && now > state.settles
    }

    /// An empty value, or one that was empty and extended, which holds no number.
    fn check_empty(&self, seen: &Seen, strict: bool) -> Result<(), String> {
        let answered = |w: &u64| self.writes[*w as usize].answered;
        let last = self.keys[seen.key].vivified.iter().map(answered).max();
        match last {
            None => Err(format!("no value to extend in {}", key_name(seen.key))),
            Some(at) if strict && !seen.just_told && at < seen.floor => Err(format!(
                "stale: {} is empty, and was written at {} before it was read at {}",
                key_name(seen.key),
                seen.floor,
                seen.asked
            )),
            Some(_) => Ok(()),
        }
    }

    /// Promises 1 and 3, and with `strict` 4, for a value that a client reads.
    pub fn check(
        &self,
        seen: &Seen,
        flags: Option<u32>,
        value: &[u8],
        strict: bool,
    ) -> Result<(), String> {
        let key = seen.key;
        let found = tags(value)?;
        let mut base = None;
        for (i, (of, write)) in found.iter().enumerate() {
            let Some(w) = self.writes.get(*write as usize) else {
                return Err(format!("{}: write {write} of nobody", key_name(key)));
            };
            if *of != key || w.key != key {
                return Err(format!("foreign value: {} for {key}", lossy(value)));
            }
            if found[..i].iter().any(|(_, other)| other == write) {
                return Err(format!("write {write} twice in {}", lossy(value)));
            }
            match w.kind {
                Kind::Put if base.is_none() => base = Some((*write, *w)),
                Kind::Extend => {}
                _ => return Err(format!("two values in one: {}", lossy(value))),
            }
        }
        let Some((number, base)) = base else {
            return self.check_empty(seen, strict);
        };
        if flags.is_some_and(|f| f != base.flags) {
            return Err(format!(
                "{}: flags {flags:?} of write {number}, not {}",
                key_name(key),
                base.flags
            ));
        }
        if !strict || seen.just_told {
            return Ok(());
        }
        if base.answered < seen.floor {
            return Err(format!(
                "stale: {} holds write {number}, answered at {}, but a write or delete asked for \
                 at {} was acknowledged before it was read at {}",
                key_name(key),
                base.answered,
                seen.floor,
                seen.asked
            ));
        }
        for write in &self.keys[key].extended[..seen.extended] {
            let w = &self.writes[*write as usize];
            if base.answered < w.asked && !found.iter().any(|(_, other)| other == write) {
                return Err(format!(
                    "stale: {} lacks the acknowledged write {write}",
                    key_name(key)
                ));
            }
        }
        Ok(())
    }

    /// The same for a counter. Without `strict` any number is good.
    pub fn check_count(&mut self, seen: &Seen, number: u64, strict: bool) -> Result<(), String> {
        let state = &mut self.keys[seen.key];
        if state.created > seen.asked || state.unsure {
            return Ok(());
        }
        if let (true, Some(count)) = (strict && !seen.just_told, seen.count) {
            if number < count {
                return Err(format!(
                    "stale: {} counts {number}, but {count} was told before it was read",
                    key_name(seen.key)
                ));
            }
            state.count = state.count.max(number);
        }
        Ok(())
    }
}
