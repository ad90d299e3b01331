//! What both models are made of.

use crate::marks::primary::Listed;

/// Mirrors and looks of one magent that are under way, and a few more.
const MOST: usize = 5;

/// Versions that are to be mirrored (positive), or were and are to be looked after (negative).
#[derive(Clone, Copy, Default)]
pub struct Queue([i8; MOST]);

impl Queue {
    pub fn is_empty(&self) -> bool {
        self.0[0] == 0
    }

    pub fn owes_mirrors(&self) -> bool {
        self.0.iter().any(|v| *v > 0)
    }

    pub fn push(&mut self, version: u8) {
        let free = self.0.iter().position(|v| *v == 0);
        self.0[free.expect("a longer queue")] = version as i8;
    }

    /// The next one is mirrored; a look follows if there shall be one.
    pub fn mirror(&mut self, look: bool) -> Option<u8> {
        let at = self.0.iter().position(|v| *v > 0)?;
        let version = self.0[at];
        self.0[at] = -version;
        if !look {
            self.remove(at);
        }
        Some(version as u8)
    }

    /// The look that is next.
    pub fn look(&mut self) -> Option<u8> {
        let version = (self.0[0] < 0).then(|| self.0[0].unsigned_abs())?;
        self.remove(0);
        Some(version)
    }

    /// Takes out what is to be mirrored: a bit for each version.
    pub fn give_up(&mut self) -> u16 {
        let all = std::mem::take(&mut self.0);
        let looks = all.iter().filter(|v| **v < 0).enumerate();
        looks.for_each(|(at, v)| self.0[at] = *v);
        let mirrors = all.iter().filter(|v| **v > 0);
        mirrors.fold(0, |bits, v| bits | 1 << v)
    }

    fn remove(&mut self, at: usize) {
        self.0.copy_within(at + 1.., at);
        self.0[MOST - 1] = 0;
    }
}

/// A list that was read, and is written back without the lines of those that are gone.
#[derive(Clone, Copy)]
pub struct Exchange {
    /// Places of those whose lines go.
    pub gone: u8,
    /// Places of all who were listed.
    pub all: u8,
    /// Lines of magents that are no more.
    pub dead: u8,
    /// The link was lost meanwhile: who sent it does not learn what becomes of it.
    pub is_stray: bool,
}

impl Exchange {
    /// Member `i` reads the list. Without `spares` it takes the line of everybody for one that is gone.
    pub fn read<M: Member>(members: &[M], i: usize, dead: u8, spares: bool) -> Exchange {
        let mask = |is_in: &dyn Fn(usize, &M) -> bool| {
            let all = members.iter().enumerate();
            all.fold(0, |mask, (j, m)| mask | u8::from(is_in(j, m)) << j)
        };
        Exchange {
            gone: mask(&|j, m| j != i && m.has_line() && !(m.has_hold() && spares)),
            all: mask(&|_, m| m.has_line()),
            dead,
            is_stray: false,
        }
    }

    pub fn is_needed(&self) -> bool {
        self.gone != 0 || self.dead != 0
    }

    pub fn names(&self, i: usize) -> bool {
        (self.gone | self.all) >> i & 1 == 1
    }

    /// The same when who was at `order[i]` is at `i`.
    fn moved(self, order: &[usize]) -> Exchange {
        let moved = |mask: u8| {
            let there = order.iter().enumerate();
            there.fold(0, |new, (to, from)| new | (mask >> from & 1) << to)
        };
        Exchange {
            gone: moved(self.gone),
            all: moved(self.all),
            ..self
        }
    }
}

/// Small numbers in one word. A [`Member`] puts its exchange last.
#[derive(Default)]
pub struct Packed(pub u64);

impl Packed {
    pub fn put(&mut self, value: u64, bits: u32) {
        assert!(value < 1 << bits, "a larger field");
        self.0 = self.0 << bits | value;
    }

    pub fn put_flags(&mut self, flags: &[bool]) {
        flags.iter().for_each(|flag| self.put(u64::from(*flag), 1));
    }

    pub fn put_queue(&mut self, queue: &Queue) {
        for v in queue.0 {
            self.put(u64::from(v < 0) << 4 | u64::from(v.unsigned_abs()), 5);
        }
    }

    pub fn put_exchange(&mut self, exchange: Option<Exchange>) {
        let e = exchange.unwrap_or(Exchange {
            gone: 0,
            all: 0,
            dead: 0,
            is_stray: false,
        });
        self.put_flags(&[exchange.is_some(), e.is_stray]);
        for part in [e.gone, e.all, e.dead] {
            self.put(u64::from(part), 3);
        }
    }
}

/// What a packed member says of the places of others, which a sort changes.
const PLACES: u64 = 0x1f8;

/// A magent of a model.
pub trait Member: Copy {
    fn pack(&self) -> u64;
    fn exchange(&mut self) -> &mut Option<Exchange>;
    /// Its line stands in the list.
    fn has_line(&self) -> bool;
    fn line(&mut self) -> &mut bool;
    fn has_hold(&self) -> bool;
}

/// All but member `i`.
pub fn others<M>(members: &[M], i: usize) -> impl Iterator<Item = &M> + Clone {
    let among = members.iter().enumerate();
    among.filter(move |(j, _)| *j != i).map(|(_, m)| m)
}

/// What member `i` sees in the list.
pub fn listed<M: Member>(members: &[M], i: usize, dead: u8) -> Listed {
    Listed {
        mine: members[i].has_line(),
        others: dead > 0 || others(members, i).any(|o| o.has_line()),
    }
}

/// Member `i`, which read `read`, writes the list back without compare-and-set: what was appended since
/// is lost.
pub fn overwrite<M: Member>(members: &mut [M], i: usize, read: Exchange) {
    for (j, m) in members.iter_mut().enumerate() {
        *m.line() &= j == i || read.all >> j & 1 == 1;
    }
}

/// The lines of those that are gone are taken out.
pub fn take_out<M: Member>(members: &mut [M], read: Exchange) {
    for (j, m) in members.iter_mut().enumerate() {
        *m.line() &= read.gone >> j & 1 == 0;
    }
}

/// Puts interchangeable magents in order; what each is packed to.
pub fn sort<M: Member, const N: usize>(members: &mut [M; N]) -> [u64; N] {
    let packed = members.map(|m| m.pack());
    if packed.is_sorted_by_key(|word| word & !PLACES) {
        return packed;
    }
    let mut order: [usize; N] = std::array::from_fn(|i| i);
    order.sort_by_key(|i| packed[*i] & !PLACES);
    let before = *members;
    for (m, from) in members.iter_mut().zip(order) {
        *m = before[from];
        let exchange = m.exchange();
        *exchange = exchange.map(|e| e.moved(&order));
    }
    members.map(|m| m.pack())
}
