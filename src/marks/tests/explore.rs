//! All states that a model can get into, breadth first, so that what is found is shortest.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

/// A state in a few words: equal states have equal keys, and no others have.
pub type Key = [u64; 4];

/// A step that is none of a magent's.
pub const NOBODY: usize = 9;

/// One step from a state.
struct Move<S> {
    name: &'static str,
    who: u8,
    to: S,
}

impl<S> Move<S> {
    /// Faults have names in capitals. A way home may not rest on one.
    fn is_fault(&self) -> bool {
        self.name.starts_with(|c: char| c.is_ascii_uppercase())
    }
}

/// The steps from one state.
pub struct Steps<S> {
    all: Vec<Move<S>>,
    who: u8,
}

impl<S> Steps<S> {
    /// What is added now are steps of this magent, or of [`NOBODY`].
    pub fn by(&mut self, who: usize) {
        self.who = who as u8;
    }

    /// One step more.
    pub fn add(&mut self, name: &'static str, to: S) {
        let who = self.who;
        self.all.push(Move { name, who, to });
    }
}

/// What may happen, and what must not.
pub trait Model {
    type State: Copy;

    fn start(&self) -> Self::State;

    /// The same state with interchangeable magents in order, and its key.
    fn sorted(&self, state: &Self::State) -> (Self::State, Key);

    /// Appends all steps from `state`; an error is a promise that does not hold.
    fn steps(
        &self,
        state: &Self::State,
        steps: &mut Steps<Self::State>,
    ) -> Result<(), &'static str>;

    /// All is well again.
    fn is_home(&self, state: &Self::State) -> bool;
}

/// The end of an exploration.
#[derive(Debug)]
pub enum Outcome {
    /// Every state was looked at. `homeless`: the way to one from which none leads home.
    Whole {
        states: usize,
        homeless: Option<String>,
    },
    /// A promise does not hold, and how it came to that.
    Broken {
        promise: &'static str,
        states: usize,
        trace: String,
    },
    /// There are more states than this.
    TooMany,
}

/// Fowler's hash over whole words: keys are no secrets.
#[derive(Default)]
struct Words(u64);

impl Hasher for Words {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 29)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }
}

/// A key that hashes as words.
#[derive(PartialEq, Eq)]
struct Packed(Key);

impl std::hash::Hash for Packed {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.iter().for_each(|word| state.write_u64(*word));
    }
}

/// How a state was first reached.
struct Came {
    from: u32,
    name: &'static str,
    who: u8,
}

/// Looks at all states of `model`, at most `limit`. With `home` also whether a way without faults
/// leads home from each.
pub fn explore<M: Model>(model: &M, limit: usize, home: bool) -> Outcome {
    let mut number: HashMap<Packed, u32, BuildHasherDefault<Words>> = HashMap::default();
    let (start, key) = model.sorted(&model.start());
    number.insert(Packed(key), 0);
    // States that are still to be looked at.
    let mut open = VecDeque::from([(start, key)]);
    let mut came = vec![Came {
        from: 0,
        name: "",
        who: 0,
    }];
    let mut ways: Vec<(u32, u32)> = Vec::new();
    let mut homes = Vec::new();
    let mut steps = Steps {
        all: Vec::new(),
        who: 0,
    };
    let mut at = 0;
    while let Some((state, own)) = open.pop_front() {
        if home && model.is_home(&state) {
            homes.push(at);
        }
        if let Err(promise) = model.steps(&state, &mut steps) {
            return Outcome::Broken {
                promise,
                states: came.len(),
                trace: trace(&came, at),
            };
        }
        for step in steps.all.drain(..) {
            let (to, key) = model.sorted(&step.to);
            if key == own {
                continue;
            }
            let next = match number.entry(Packed(key)) {
                Entry::Occupied(known) => *known.get(),
                Entry::Vacant(new) => {
                    let next = came.len() as u32;
                    new.insert(next);
                    open.push_back((to, key));
                    came.push(Came {
                        from: at,
                        name: step.name,
                        who: step.who,
                    });
                    next
                }
            };
            if home && !step.is_fault() {
                ways.push((at, next));
            }
        }
        if came.len() > limit {
            return Outcome::TooMany;
        }
        at += 1;
    }
    let lost = home.then(|| homeless(came.len(), &homes, &ways)).flatten();
    Outcome::Whole {
        states: came.len(),
        homeless: lost.map(|lost| trace(&came, lost)),
    }
}

/// The first state from which none of `ways` leads to one of `homes`.
fn homeless(states: usize, homes: &[u32], ways: &[(u32, u32)]) -> Option<u32> {
    // Who leads to each state: a list in one piece, by where each state's part of it begins.
    let mut begins = vec![0u32; states + 1];
    ways.iter().for_each(|way| begins[way.1 as usize] += 1);
    let mut sum = 0;
    for begin in &mut begins {
        sum += *begin;
        *begin = sum;
    }
    let mut from = vec![0u32; ways.len()];
    for way in ways {
        let begin = &mut begins[way.1 as usize];
        *begin -= 1;
        from[*begin as usize] = way.0;
    }
    let mut is_good = vec![false; states];
    let mut open = homes.to_vec();
    while let Some(state) = open.pop() {
        let state = state as usize;
        if !is_good[state] {
            is_good[state] = true;
            open.extend(&from[begins[state] as usize..begins[state + 1] as usize]);
        }
    }
    is_good.iter().position(|good| !good).map(|at| at as u32)
}

fn trace(came: &[Came], at: u32) -> String {
    let mut at = at as usize;
    let mut names = Vec::new();
    while at > 0 {
        names.push(format!("{}{}", came[at].name, came[at].who));
        at = came[at].from as usize;
    }
    names.reverse();
    names.join(" ")
}
