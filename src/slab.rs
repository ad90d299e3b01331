//! A table whose keys say if they are stale.

/// Entries in reused places. A key holds the place and how often it was reused, so a key of
/// an entry that left finds nobody.
#[derive(Debug)]
pub struct Slab<T> {
    entries: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
    len: usize,
    /// Generation of a new place: higher than that of any place that was given back.
    first: u32,
}

/// An empty table keeps at most so many places.
const KEEP: usize = 4096;

/// Bits of a key that hold the generation; the rest of the upper half is the owner's.
const GENERATION: u32 = (1 << 28) - 1;

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Slab {
            entries: Vec::new(),
            free: Vec::new(),
            len: 0,
            first: 0,
        }
    }
}

impl<T> Slab<T> {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The key that the next [`Slab::insert`] will use.
    pub fn next_key(&self) -> usize {
        match self.free.last() {
            Some(&i) => key(i, self.entries[i as usize].0),
            None => key(self.entries.len() as u32, self.first),
        }
    }

    /// Puts an entry in; returns its key.
    pub fn insert(&mut self, value: T) -> usize {
        self.len += 1;
        match self.free.pop() {
            Some(i) => {
                let entry = &mut self.entries[i as usize];
                entry.1 = Some(value);
                key(i, entry.0)
            }
            None => {
                self.entries.push((self.first, Some(value)));
                key(self.entries.len() as u32 - 1, self.first)
            }
        }
    }

    /// The entry with this key, unless it left.
    #[inline]
    pub fn get(&self, key: usize) -> Option<&T> {
        match self.entries.get(key & 0xffff_ffff) {
            Some((g, Some(value))) if *g as usize == (key >> 32) => Some(value),
            _ => None,
        }
    }

    /// The entry with this key, unless it left.
    #[inline]
    pub fn get_mut(&mut self, key: usize) -> Option<&mut T> {
        match self.entries.get_mut(key & 0xffff_ffff) {
            Some((g, Some(value))) if *g as usize == (key >> 32) => Some(value),
            _ => None,
        }
    }

    /// Two different entries at once.
    pub fn get_two(&mut self, a: usize, b: usize) -> Option<(&mut T, &mut T)> {
        let places = [a & 0xffff_ffff, b & 0xffff_ffff];
        let [x, y] = self.entries.get_disjoint_mut(places).ok()?;
        if x.0 as usize != a >> 32 || y.0 as usize != b >> 32 {
            return None;
        }
        Some((x.1.as_mut()?, y.1.as_mut()?))
    }

    /// Takes an entry out; its key finds nobody from now on.
    pub fn remove(&mut self, key: usize) -> Option<T> {
        let entry = self.entries.get_mut(key & 0xffff_ffff)?;
        if entry.0 as usize != key >> 32 {
            return None;
        }
        let value = entry.1.take()?;
        entry.0 = (entry.0 + 1) & GENERATION;
        self.free.push((key & 0xffff_ffff) as u32);
        self.len -= 1;
        if self.len == 0 && self.entries.len() > KEEP {
            self.give_back();
        }
        Some(value)
    }

    /// Gives the memory of an empty table back.
    fn give_back(&mut self) {
        let most = self.entries.iter().map(|e| e.0).max();
        self.first = most.unwrap_or(self.first);
        self.entries = Vec::new();
        self.free = Vec::new();
    }

    /// How many places there are, used or not.
    pub fn places(&self) -> usize {
        self.entries.len()
    }

    /// The key of the entry in this place, if there is one.
    pub fn key_at(&self, place: usize) -> Option<usize> {
        let entry = self.entries.get(place)?;
        entry.1.is_some().then(|| key(place as u32, entry.0))
    }

    /// All entries.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.entries.iter().filter_map(|e| e.1.as_ref())
    }

    /// All entries.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.entries.iter_mut().filter_map(|e| e.1.as_mut())
    }

    /// All keys.
    pub fn keys(&self) -> impl Iterator<Item = usize> {
        self.entries
            .iter()
            .enumerate()
            .filter(|(_, e)| e.1.is_some())
            .map(|(i, e)| key(i as u32, e.0))
    }
}

fn key(index: u32, generation: u32) -> usize {
    (generation as usize) << 32 | index as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_somebody_who_left_finds_nobody() {
        let mut s = Slab::default();
        let next = s.next_key();
        let a = s.insert("a");
        assert_eq!(a, next);
        assert_eq!(s.remove(a), Some("a"));
        let next = s.next_key();
        let b = s.insert("b");
        assert_eq!(b, next);
        assert_eq!((s.get(a), s.get(b)), (None, Some(&"b")));
        assert_eq!(s.remove(a), None);
        assert_eq!(s.keys().collect::<Vec<_>>(), [b]);
        assert_eq!(s.len(), 1);
    }

    #[test]
    fn an_empty_table_gives_its_memory_back_and_still_knows_who_left() {
        let mut s = Slab::default();
        let all: Vec<usize> = (0..=KEEP).map(|i| s.insert(i)).collect();
        for k in &all {
            s.remove(*k);
        }
        assert_eq!(s.entries.capacity(), 0);
        let next = s.next_key();
        assert_eq!(s.insert(7), next);
        assert_eq!((s.get(all[0]), s.get(next)), (None, Some(&7)));
    }
}
