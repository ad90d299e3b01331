//! A queue in blocks: it never moves what it holds to grow, and gives its memory back as it
//! empties.

use std::collections::VecDeque;

/// Members of one block.
const BLOCK: usize = 1024;

/// A first-in first-out queue.
#[derive(Debug)]
pub struct Blocks<T> {
    /// None of them is empty.
    blocks: VecDeque<VecDeque<T>>,
}

impl<T> Default for Blocks<T> {
    fn default() -> Self {
        Blocks {
            blocks: VecDeque::new(),
        }
    }
}

impl<T> Blocks<T> {
    /// True if it has no member.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// The oldest member.
    pub fn front(&self) -> Option<&T> {
        self.blocks.front()?.front()
    }

    /// All members, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.blocks.iter().flatten()
    }

    /// Adds a member.
    pub fn push_back(&mut self, member: T) {
        match self.blocks.back_mut() {
            Some(block) if block.len() < BLOCK => block.push_back(member),
            _ => self.blocks.push_back(VecDeque::from([member])),
        }
    }

    /// Takes the oldest member.
    pub fn pop_front(&mut self) -> Option<T> {
        let block = self.blocks.front_mut()?;
        let member = block.pop_front();
        if block.is_empty() {
            self.blocks.pop_front();
        }
        member
    }

    /// Takes over what another has.
    pub fn append(&mut self, other: &mut Blocks<T>) {
        self.blocks.append(&mut other.blocks);
    }

    /// Drops the newest, about `count` of them.
    pub fn drop_last(&mut self, count: usize) {
        let mut dropped = 0;
        while dropped < count {
            let Some(block) = self.blocks.pop_back() else {
                break;
            };
            dropped += block.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_in_first_out_over_many_blocks() {
        let mut queue = Blocks::default();
        let mut next = 0;
        for i in 0..5 * BLOCK {
            queue.push_back(i);
            if i % 3 == 0 {
                assert_eq!(queue.front(), Some(&next));
                assert_eq!(queue.pop_front(), Some(next));
                next += 1;
            }
        }
        let mut other = Blocks::default();
        other.append(&mut queue);
        assert!(queue.is_empty());
        let rest: Vec<usize> = std::iter::from_fn(|| other.pop_front()).collect();
        assert_eq!(rest, (next..5 * BLOCK).collect::<Vec<_>>());
        assert!(other.is_empty() && other.front().is_none());
    }

    #[test]
    fn the_newest_are_dropped_in_pieces() {
        let mut queue = Blocks::default();
        (0..3 * BLOCK).for_each(|i| queue.push_back(i));
        let mut pieces = 0;
        while !queue.is_empty() {
            queue.drop_last(BLOCK / 2);
            pieces += 1;
        }
        assert_eq!(pieces, 3);
    }
}
