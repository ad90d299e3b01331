//! A ketama ring: sorted points, each owned by a server; a key belongs to the first point at or
//! after its hash.
//!
//! ```text
//! starts   [ 0 | 3 | 3 | 5 | … ]        one per bucket of the hash's top bits
//!            │           ╲
//! points   [ p,s  p,s  p,s  p,s  p,s … first again ]
//! ```
//!
//! Points are MD5 bytes and so spread evenly: with about two of them in a bucket a lookup reads
//! one cache line of `starts` and one, seldom two, of `points`.

/// A ring, ready for lookups. See the module's picture.
#[derive(Clone, Debug)]
pub struct Ring {
    /// `point << 32 | server`, ascending; behind them the first server again, for hashes beyond
    /// the last point. Point and server share a word so that they share a cache line.
    points: Vec<u64>,
    /// For each bucket the index of the first point that is not before the bucket.
    starts: Vec<u32>,
    /// Bits to shift a hash down by to get its bucket.
    shift: u32,
}

impl Ring {
    /// A ring of `(point, server)`; equal points are won by the smaller server number. `None`
    /// without a point.
    pub fn new(points: impl Iterator<Item = (u32, u32)>) -> Option<Ring> {
        let mut points: Vec<u64> = points.map(|(p, s)| (p as u64) << 32 | s as u64).collect();
        points.sort_unstable();
        let first = *points.first()?;
        let bits = (points.len() / 2).max(2).next_power_of_two().ilog2();
        let shift = 32 - bits;
        let start = |bucket: u64| points.partition_point(|&p| p >> 32 < bucket << shift) as u32;
        let starts = (0..1 << bits).map(start).collect();
        points.push((u32::MAX as u64) << 32 | (first & u32::MAX as u64));
        Some(Ring {
            points,
            starts,
            shift,
        })
    }

    /// The server of the first point at or after `hash`, wrapping around.
    pub fn server(&self, hash: u32) -> u32 {
        let start = self.starts[(hash >> self.shift) as usize] as usize;
        let wanted = (hash as u64) << 32;
        let run = &self.points[start..];
        // The last entry is not before any hash, so there always is one.
        run.iter().find(|&&p| p >= wanted).map_or(0, |&p| p as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the ring must do, said plainly.
    fn slow(points: &[(u32, u32)], hash: u32) -> u32 {
        let after = points.iter().filter(|p| p.0 >= hash).min();
        after.or(points.iter().min()).expect("not empty").1
    }

    #[test]
    fn lookups_agree_with_the_definition() {
        let mut seed = 1u32;
        let mut random = || {
            seed = seed.wrapping_mul(1664525).wrapping_add(1013904223);
            seed ^ seed >> 15
        };
        for n in [1usize, 2, 3, 4, 5, 40, 1000] {
            let mut points: Vec<_> = (0..n).map(|_| (random(), random() % 7)).collect();
            // Twice the same point, and both ends.
            points.extend([(points[0].0, 9), (0, 3), (u32::MAX, 5), (u32::MAX, 2)]);
            for points in [&points[..n + 1], &points[..]] {
                let ring = Ring::new(points.iter().copied()).expect("points");
                let exact = points
                    .iter()
                    .flat_map(|p| [p.0, p.0.wrapping_add(1), p.0.wrapping_sub(1)]);
                let hashes: Vec<u32> = exact
                    .chain((0..500).map(|_| random()))
                    .chain([0, u32::MAX])
                    .collect();
                for h in hashes {
                    assert_eq!(ring.server(h), slow(points, h), "{h} of {n}");
                }
            }
        }
    }

    #[test]
    fn no_points_no_ring() {
        assert!(Ring::new(std::iter::empty()).is_none());
    }
}
