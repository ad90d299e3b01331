//! What is known of the marks on one server: who else uses it, whom it stands in for, and what was asked
//! about that.

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
    /// The same without the lines of magents that died.
    DropDead,
    /// Nothing follows from its answer.
    Store,
    /// The sign of life, on a server that has refused something: does it take it now?
    Trial,
    /// Is the list of who is away the one that was read last? Asked at this time.
    LookAway(Time),
    /// That list, asked for at this time.
    ReadAway(Time),
    /// The same behind the line that is written for this pair.
    Announced(usize, Time),
    /// That list without the line of this pair.
    Left(usize, Time),
    /// That list with this pair's line for those of the dead.
    TakenOver(usize, Time),
    /// A magent's hold on its line about the primary of this pair.
    Hold(usize, Id),
    /// Is that hold the one that was read last?
    LookHold(usize, Id),
}

impl Question {
    /// When a lease counts from that its answer grants.
    fn asked_at(&self) -> Option<Time> {
        match *self {
            Question::LookAway(at) | Question::ReadAway(at) => Some(at),
            Question::Announced(_, at) | Question::Left(_, at) | Question::TakenOver(_, at) => {
                Some(at)
            }
            _ => None,
        }
    }

    /// It is about the beacon.
    fn is_of_beacon(&self) -> bool {
        matches!(
            self,
            Question::Look
                | Question::Read
                | Question::Life(_)
                | Question::WriteBack
                | Question::DropDead
        )
    }
}

/// The list of the servers that a server stands in for, as last read.
#[derive(Debug)]
pub struct Away {
    text: Vec<u8>,
    /// Its cas, good on one link only; `None`: there is no list.
    cas: Option<u64>,
    /// It was read on this link.
    is_read: bool,
    /// When it is looked at next; never while nobody uses what it is about.
    pub look_at: Time,
    /// When it was last wanted.
    pub used_at: Time,
    /// Requests of the servers that it is about when that was last seen.
    pub uses: u64,
    /// Since when a link is being opened for the next look.
    pub waits_since: Option<Time>,
}

impl Away {
    fn new() -> Away {
        Away {
            text: Vec::new(),
            cas: None,
            is_read: false,
            look_at: Time::NEVER,
            used_at: Time(0),
            uses: 0,
            waits_since: None,
        }
    }

    /// Its lines.
    pub fn lines(&self) -> Lines<'_> {
        Lines(&self.text)
    }

    /// True if it is known what it was.
    pub fn is_read(&self) -> bool {
        self.is_read
    }

    /// True if the list is the one that was read last.
    pub fn is_known(&self, cas: u64) -> bool {
        self.is_read && self.cas == Some(cas)
    }

    /// The cas to write it back with.
    pub fn cas(&self) -> Option<u64> {
        self.cas.filter(|_| self.is_read)
    }

    /// It is this now. False if magents alone did not write it.
    pub fn set(&mut self, text: &[u8], cas: Option<u64>) -> bool {
        if text.len() > LONGEST {
            return false;
        }
        self.text.clear();
        self.text.extend_from_slice(text);
        (self.cas, self.is_read) = (cas, true);
        true
    }

    /// It has changed, nobody knows how: it is read again before it is written back.
    pub fn forget(&mut self) {
        self.is_read = false;
    }
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
    /// Whom it stands in for.
    pub away: Away,
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
    /// So it is because the server is not used, until it is again.
    pub is_resting: bool,
    /// How often the sign of life was renewed since the server was last used.
    pub unused: u32,
    /// The list was read in this run; there was none the first time.
    is_met: bool,
    pub was_empty: bool,
    /// Of a primary: since when a magent is known to have died that used one of its backups.
    pub bereft_since: Option<Time>,
    /// A repair of what somebody owed did not come to its end: the own line is to stay when this magent ends.
    pub is_unrepaired: bool,
    /// Nobody knows whether lines of the dead were taken out: the link was lost.
    pub may_have_dropped: bool,
    /// Why this server can hold no marks.
    pub refused: Option<&'static str>,
    /// The log says that copies cannot be looked after.
    pub is_told: bool,
}

/// [`Board::refused`] of a server that answered an error. It may have been full.
pub const REFUSED: &str = "refused";

impl Board {
    /// Nothing is known; `me` is this run's id.
    pub fn new(me: Id) -> Board {
        Board {
            beacon: Beacon::new(me),
            list: Vec::new(),
            cas: None,
            away: Away::new(),
            asked: VecDeque::new(),
            token: 0,
            renew_at: Time::NEVER,
            requests: 0,
            has_appended: false,
            is_leaving: false,
            is_resting: false,
            unused: 0,
            is_met: false,
            was_empty: false,
            bereft_since: None,
            is_unrepaired: false,
            may_have_dropped: false,
            refused: None,
            is_told: false,
        }
    }

    /// What was asked on another link is never answered, and its cas are void. True if it is another.
    pub fn begin(&mut self, token: usize) -> bool {
        let is_other = self.token != token;
        if is_other {
            self.may_have_dropped |= self.asked.contains(&Question::DropDead);
            self.asked.clear();
            self.cas = None;
            self.away.forget();
            self.token = token;
        }
        is_other
    }

    /// Since when an answer about who is away has been awaited on the link of this socket, if there is one.
    pub fn waits_since(&self, token: Option<usize>) -> Option<Time> {
        match token {
            Some(token) if token == self.token => self.asked.iter().find_map(Question::asked_at),
            _ => self.away.waits_since,
        }
    }

    /// How many looks at who is away are not answered.
    pub fn looks(&self) -> usize {
        self.asked.iter().filter(|q| q.asked_at().is_some()).count()
    }

    /// True if the beacon was read on this link, and is not being looked at.
    pub fn knows_others(&self) -> bool {
        !self.beacon.lacks_line() && !self.asks_for_beacon()
    }

    /// True while an answer about the beacon is awaited.
    pub fn asks_for_beacon(&self) -> bool {
        self.asked.iter().any(Question::is_of_beacon)
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
        if !std::mem::replace(&mut self.is_met, true) {
            self.was_empty = list.is_empty();
        }
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
