//! Boxes that busy clients borrow and give back, so that none is allocated anew.

use super::active::{Active, Arriving};
use super::multi::Multi;
use crate::buffer::Queue;
use crate::protocol::Request;

/// Boxes that busy clients, arriving values and waiting answers borrow, so that none is allocated
/// anew.
#[derive(Default, Debug)]
#[allow(clippy::vec_box)] // The boxes are what is lent.
pub struct Spares {
    actives: Vec<Box<Active>>,
    arriving: Vec<Box<Arriving>>,
    queues: Vec<Box<Queue>>,
    multis: Vec<Box<Multi>>,
    /// Memory that all of them hold.
    bytes: usize,
}

/// Capacity that the `partial` of a spare keeps, in bytes: what is left of a read that held many
/// requests.
pub const KEEP_PARTIAL: usize = 32 * 1024;

/// Memory that spares may hold, in bytes: enough for thousands of clients that are busy at once
/// with little.
const MAX_SPARES: usize = 8 * 1024 * 1024;

/// Puts a spare back on its list while there is room for it.
macro_rules! give {
    ($spares:ident.$list:ident, $item:expr, $bytes:expr) => {
        let bytes = $bytes;
        if $spares.bytes + bytes <= MAX_SPARES {
            $spares.bytes += bytes;
            $spares.$list.push($item);
        }
    };
}

impl Spares {
    pub(super) fn active(&mut self) -> Box<Active> {
        let Some(active) = self.actives.pop() else {
            return Box::default();
        };
        self.bytes -= active.capacity();
        active
    }

    pub(super) fn give_active(&mut self, active: Box<Active>) {
        give!(self.actives, active, active.capacity());
    }

    /// An empty place for the value of `request`, of which so many bytes are still to come.
    pub fn arriving(&mut self, request: &Request, line: usize, missing: usize) -> Box<Arriving> {
        let Some(mut value) = self.arriving.pop() else {
            return Box::new(Arriving {
                request: *request,
                line,
                missing,
                bytes: Queue::new(),
            });
        };
        self.bytes -= size_of::<Arriving>() + value.bytes.capacity();
        (value.request, value.line, value.missing) = (*request, line, missing);
        value
    }

    /// Takes one back; what it holds is forgotten.
    pub fn give_arriving(&mut self, mut value: Box<Arriving>) {
        value.bytes.clear();
        let bytes = size_of::<Arriving>() + value.bytes.capacity();
        give!(self.arriving, value, bytes);
    }

    pub(super) fn queue(&mut self) -> Box<Queue> {
        let Some(queue) = self.queues.pop() else {
            return Box::default();
        };
        self.bytes -= size_of::<Queue>() + queue.capacity();
        queue
    }

    pub(super) fn give_queue(&mut self, mut queue: Box<Queue>) {
        queue.clear();
        let bytes = size_of::<Queue>() + queue.capacity();
        give!(self.queues, queue, bytes);
    }

    /// The place for the answer to a request with several keys.
    pub fn multi(&mut self) -> Box<Multi> {
        let Some(multi) = self.multis.pop() else {
            return Box::default();
        };
        self.bytes -= multi.capacity();
        multi
    }

    pub(super) fn give_multi(&mut self, mut multi: Box<Multi>) {
        multi.clear();
        give!(self.multis, multi, multi.capacity());
    }
}
