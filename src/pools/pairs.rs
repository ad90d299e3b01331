//! A primary and one of the backups that may stand in for it: what this magent may do with the keys that
//! they share, and the requests for those that wait until that is known.

use super::board::Board;
use super::{Losses, ServerId};
use crate::marks::times::{RENEW, TimedPrimary, WAIT};
use crate::marks::{Backup, Debt, Id};
use crate::protocol::{Item, Reply, Status};
use crate::slab::Slab;
use crate::time::{SECOND, Time};
use std::collections::VecDeque;

use super::pending::{Answered, Pending};
use crate::buffer::Source;

/// A hold that was written so long ago is relied on, in nanoseconds; it lives 10 s.
const HOLD: u64 = 5 * SECOND;

/// Another magent that keeps the primary away.
#[derive(Debug)]
pub struct Holder {
    /// Its run.
    pub id: Id,
    /// What its hold says: the primary answers it; `None`: not known.
    pub answers: Option<bool>,
    /// The cas of its hold, and since when that is the same.
    renewed: (u64, Time),
    /// Where it runs, for people; empty if that is not known.
    pub title: String,
    /// Since when its hold was not there.
    gone_since: Option<Time>,
}

impl Holder {
    /// Its hold was there, with this cas, or not.
    pub fn asked(&mut self, hold: Option<(bool, String, u64)>, now: Time) {
        match hold {
            Some((answers, title, cas)) => {
                (self.answers, self.title) = (Some(answers), title);
                self.gone_since = None;
                if self.renewed.0 != cas {
                    self.renewed = (cas, now);
                }
            }
            None => {
                self.answers = None;
                self.gone_since.get_or_insert(now);
            }
        }
    }

    /// True if its hold was there when it was asked for last, so that a look tells whether it is another one.
    pub fn is_read(&self) -> bool {
        self.gone_since.is_none() && self.renewed.0 > 0
    }

    /// Its hold is there and has this cas. False if it is not the one that was read.
    pub fn stands(&mut self, cas: u64) -> bool {
        let stands = self.renewed.0 == cas;
        if stands {
            self.gone_since = None;
        }
        stands
    }

    /// The primary answers it, and it will take its line out. The hold of one that has died says for up to
    /// 10 s more what it said last.
    pub fn agrees(&self, now: Time) -> bool {
        self.answers == Some(true) && now.since(self.renewed.1) < 2 * RENEW
    }

    /// It has not renewed its hold for so long that it has died, or stands still. A hold that is
    /// written behind its line, or was evicted, is there again sooner.
    pub fn is_gone(&self, now: Time) -> bool {
        self.gone_since
            .is_some_and(|since| now.since(since) > RENEW)
    }
}

/// A request about the partner's list that is on its way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// The own line is written.
    Announce,
    /// It is taken out; what is left then.
    Leave(Vec<u8>),
    /// Lines of the dead are exchanged for it; what is there then.
    TakeOver(Vec<u8>),
}

/// A write that was answered when nobody knew whether its answer counts.
#[derive(Debug)]
pub struct Held {
    pub request: Pending,
    /// Where its bytes begin in the queue of the pair's shelf.
    pub at: u64,
    /// Its link and its number there.
    pub asked_on: (usize, u64),
    reply: Vec<u8>,
    line: usize,
    status: Status,
    items: Vec<Item>,
}

impl Held {
    /// The answer to a request whose bytes begin at `at`.
    pub fn new(request: Pending, at: u64, asked_on: (usize, u64), reply: &Reply<'_>) -> Held {
        let mut bytes = Vec::with_capacity(reply.len);
        let range = reply.at..reply.at + reply.len;
        reply.source.copy_to(range, &mut bytes);
        Held {
            request,
            at,
            asked_on,
            reply: bytes,
            line: reply.line,
            status: reply.status,
            items: reply.items.to_vec(),
        }
    }

    /// As it was answered; its request stands on the shelf `link`.
    pub fn answered<'a>(&'a self, link: usize, reply: &'a Reply<'a>) -> Answered<'a> {
        Answered {
            link,
            at: self.at,
            asked_on: self.asked_on,
            request: &self.request,
            reply,
        }
    }

    /// The answer.
    pub fn reply(&self) -> Reply<'_> {
        Reply {
            source: Source::Slice(&self.reply),
            at: 0,
            len: self.reply.len(),
            line: self.line,
            status: self.status,
            items: &self.items,
        }
    }
}

/// One magent towards one primary and one partner of it. With the roles exchanged it is about a backup that may
/// have missed mirrors: that is in the primary's place, and its primary has the list.
#[derive(Debug)]
pub struct Pair {
    pub primary: ServerId,
    pub partner: ServerId,
    /// The primary as lines name it.
    pub about: Vec<u8>,
    /// What may be done.
    pub rules: TimedPrimary,
    /// The same where the roles are exchanged; then `rules` says nothing.
    pub backup: Option<Backup>,
    /// Others that keep the primary away.
    pub others: Vec<Holder>,
    /// What is being done to the list.
    pub change: Option<Change>,
    /// What the own hold says and when it was written.
    pub hold: Option<(bool, Time)>,
    /// Nothing more is asked of the partner in the primary's place.
    pub closes: bool,
    /// The primary is being told what it missed while the partner stands in.
    pub is_told: bool,
    /// When the partner stopped standing in.
    pub syncing_since: Time,
    /// Since this magent last used the primary others may have used the partner.
    pub is_doubtful: bool,
    /// When the primary was probed, since others keep it away.
    pub probed: Option<Time>,
    /// Requests that wait, oldest first.
    pub parked: VecDeque<Losses>,
    /// Answers that wait; their requests came before those.
    pub held: VecDeque<Held>,
    /// A link without a socket in whose queue their bytes stand.
    pub shelf: Option<usize>,
    /// No pool has it any more.
    pub is_over: bool,
    /// On the list of pairs that are to be looked after.
    pub listed: bool,
}

impl Pair {
    /// A pair of which nothing is known.
    pub fn new(primary: ServerId, partner: ServerId) -> Pair {
        Pair {
            primary,
            partner,
            about: Vec::new(),
            rules: TimedPrimary::new(),
            backup: None,
            others: Vec::new(),
            change: None,
            hold: None,
            closes: false,
            is_told: false,
            syncing_since: Time(0),
            is_doubtful: false,
            probed: None,
            parked: VecDeque::new(),
            held: VecDeque::new(),
            shelf: None,
            is_over: false,
            listed: false,
        }
    }

    /// One about a backup that may have missed mirrors of a primary.
    pub fn of_backup(backup: ServerId, primary: ServerId) -> Pair {
        Pair {
            backup: Some(Backup::new()),
            ..Pair::new(backup, primary)
        }
    }

    /// True while a line of this magent stands, as far as it knows.
    pub fn has_line(&self) -> bool {
        match &self.backup {
            Some(backup) => backup.has_line(),
            None => self.rules.has_line(),
        }
    }

    /// What this magent owes the server that is away.
    pub fn debt(&self) -> Debt {
        match &self.backup {
            Some(backup) => backup.debt(),
            None => self.rules.debt(),
        }
    }

    /// True if another program must go on with it: a line may stand, or something is owed.
    pub fn owes(&self) -> bool {
        let is_announcing = match &self.backup {
            Some(backup) => backup.is_announcing(),
            None => self.rules.is_announcing() || self.rules.has_late_write(),
        };
        is_announcing || self.has_line() || self.is_doubtful || self.debt() != Debt::None
    }

    /// Goes on with what another program owed.
    pub fn restore(&mut self, debt: Debt, is_late: bool, now: Time) {
        self.syncing_since = now;
        match &mut self.backup {
            Some(backup) => backup.restore(debt),
            None => self.rules.step(now, |rules| rules.restore(debt, is_late)),
        }
    }

    /// True while it may be away, or a line about it is written.
    pub fn is_busy(&mut self, now: Time) -> bool {
        if let Some(backup) = &self.backup {
            return backup.has_line() || backup.is_announcing() || !self.others.is_empty();
        }
        let rules = self.rules.at(now, WAIT);
        rules.has_line() || rules.is_announcing() || rules.is_parked()
    }

    /// True if this magent or another one may write to the partner in the primary's place, or has done so.
    pub fn is_kept_away(&self) -> bool {
        self.has_line() || self.rules.is_announcing() || !self.others.is_empty()
    }

    /// True if something waits for what becomes of it.
    pub fn is_awaited(&self) -> bool {
        !self.parked.is_empty() || !self.held.is_empty()
    }

    /// True if the own hold was written so lately that it stands.
    pub fn has_hold(&self, now: Time) -> bool {
        self.hold.is_some_and(|(_, at)| now.since(at) < HOLD)
    }

    /// Those of them that have died, or stand still.
    pub fn gone(&self, now: Time) -> Vec<Id> {
        let gone = self.others.iter().filter(|o| o.is_gone(now));
        gone.map(|o| o.id).collect()
    }

    /// Who keeps the primary away besides this magent, for people.
    pub fn keepers(&self) -> impl Iterator<Item = String> {
        self.others.iter().map(|o| match o.title.is_empty() {
            true => o.id.to_string(),
            false => o.title.clone(),
        })
    }

    /// Requests and answers that wait.
    pub fn waiting(&self) -> usize {
        let parked = self.parked.iter().map(|l| l.pending.len());
        parked.sum::<usize>() + self.held.len()
    }

    /// Who keeps the primary away besides this magent, as the list says: whether this magent does, and others.
    pub fn see_others(&mut self, board: &Board, me: Id) -> (bool, bool) {
        let (mut mine, mut seen) = (false, 0);
        for line in board.away.lines().iter().filter(|l| l.text == self.about) {
            if line.id == me {
                mine = true;
                continue;
            }
            let known = self.others.iter().position(|o| o.id == line.id);
            let at = known.unwrap_or_else(|| {
                self.others.push(Holder {
                    id: line.id,
                    answers: None,
                    renewed: (0, Time(0)),
                    title: String::new(),
                    gone_since: None,
                });
                self.others.len() - 1
            });
            if at >= seen {
                self.others.swap(at, seen);
                seen += 1;
            }
        }
        self.others.truncate(seen);
        (mine, seen > 0)
    }

    /// True if a write that was sent to the primary waits to go to the partner.
    pub fn has_lost_writes(&self) -> bool {
        let is_lost = |l: &Losses| l.was_asked() && l.pending.iter().any(Pending::writes);
        self.parked.iter().any(is_lost)
    }
}

/// All pairs.
pub type Pairs = Slab<Pair>;
