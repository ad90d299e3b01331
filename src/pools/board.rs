//! What is known of the marks on one server: who else uses it, and what was asked about that.

use crate::marks::{Beacon, Id, Lines, Other};
use crate::time::Time;
use std::collections::VecDeque;

/// A list of lines that is longer, in bytes, was not written by magents alone.
const LONGEST: usize = 32 * 1024;

/// One request about marks, by what its answer means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Question {
    /// Is the beacon's list the one that was read last?
    Look,
    /// The list.
    Read,
    /// A sign of life: is it there?
    Life(Id),
    /// The list was written back.
    WriteBack,
    /// Nothing follows from its answer.
    Store,
}

/// The marks of one server.
#[derive(Debug)]
pub struct Board {
    /// Who else uses it.
    pub beacon: Beacon,
    /// The beacon's list as last read.
    list: Vec<u8>,
    /// Its cas, good on one link only.
    cas: Option<u64>,
    /// What was asked and not answered, in order.
    pub asked: VecDeque<Question>,
    /// The socket's number of the link on which that was.
    pub token: usize,
    /// When the sign of life is renewed; never while the server is not used.
    pub renew_at: Time,
    /// Requests of the server when that was last done.
    pub requests: u64,
    /// The own line was appended since.
    pub has_appended: bool,
    /// The own line is taken out.
    pub is_leaving: bool,
    /// Why this server can hold no marks.
    pub refused: Option<&'static str>,
    /// The log says that copies cannot be looked after.
    pub is_told: bool,
}

impl Board {
    /// Nothing is known; `me` is this run's id.
    pub fn new(me: Id) -> Board {
        Board {
            beacon: Beacon::new(me),
            list: Vec::new(),
            cas: None,
            asked: VecDeque::new(),
            token: 0,
            renew_at: Time::NEVER,
            requests: 0,
            has_appended: false,
            is_leaving: false,
            refused: None,
            is_told: false,
        }
    }

    /// What was asked on another link is never answered, and its cas are void.
    pub fn begin(&mut self, token: usize) {
        if self.token != token {
            self.asked.clear();
            self.cas = None;
            self.token = token;
        }
    }

    /// The list is read again when it is looked at next.
    pub fn forget_list(&mut self) {
        self.cas = None;
    }

    /// True if the list is the one that was read last.
    pub fn is_known(&self, cas: u64) -> bool {
        self.cas == Some(cas)
    }

    /// The list was read; empty and without a cas if there is none.
    pub fn read(&mut self, list: &[u8], cas: Option<u64>, now: Time) {
        if list.len() > LONGEST {
            self.refused = Some("list too long");
            return;
        }
        self.list.clear();
        self.list.extend_from_slice(list);
        self.cas = cas;
        self.beacon.read(list, now);
    }

    /// True if the own line is there and says this.
    pub fn says(&self, me: Id, text: &[u8]) -> bool {
        let mut own = Lines(&self.list).iter().filter(|l| l.id == me);
        own.next().is_some_and(|line| line.text == text) && own.next().is_none()
    }

    /// The list without the lines of `gone`, and the cas to write it back with.
    pub fn without(&self, gone: impl Fn(Id) -> bool) -> Option<(Vec<u8>, u64)> {
        let mut rest = Vec::with_capacity(self.list.len());
        Lines(&self.list).keep(&mut rest, |line| !gone(line.id));
        Some((rest, self.cas?))
    }

    /// The others that use the server.
    pub fn others(&self) -> impl Iterator<Item = &Other> {
        let all = self.beacon.others().iter();
        all.filter(|other| other.is_alive == Some(true))
    }
}
