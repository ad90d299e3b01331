//! The roles exchanged: the backup X misses mirrors, the primary Y is in use all the time, lines about X
//! stand on Y. One key, and some magents, each with the real [`Backup`].
//!
//! Checked in each state: if nobody is listed, nothing is under way and no loss is as yet
//! unannounced, X holds Y's value or nothing. That is what is read when Y dies now.

use super::explore::{Key, Model, NOBODY, Steps};
use super::parts::{self, Exchange, Packed, Queue};
use crate::marks::backup::{Backup, Mode, Write};
use crate::marks::primary::Debt;

/// Rules without which an old copy stands unlisted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    /// Look again after a mirror.
    Again,
    /// Nobody tells while a late mirror of its own may be executed.
    Drain,
    /// A flush for the dead waits until their late mirrors were executed or are lost.
    Settle,
    /// A line that is taken over means a flush.
    Flush,
    /// The list is appended to, or written back by compare-and-set.
    Cas,
    /// A flush for the dead waits until they cannot write to Y any more.
    FlushWait,
    /// Who journals writes to Y with a lease only.
    Lease,
    /// X is read only while nobody is listed.
    All,
    /// Mirrors begin again behind the deletes of the journal.
    Order,
    /// Who missed a mirror writes a line, even if X never answered it.
    Announce,
}

pub const RULES: [Rule; 10] = [
    Rule::Again,
    Rule::Drain,
    Rule::Settle,
    Rule::Flush,
    Rule::Cas,
    Rule::FlushWait,
    Rule::Lease,
    Rule::All,
    Rule::Order,
    Rule::Announce,
];

/// The world, and what is left out of it.
#[derive(Clone, Copy, Debug)]
pub struct World<const N: usize> {
    pub writes: u8,
    pub faults: u8,
    pub without: Option<Rule>,
}

#[derive(Clone, Copy)]
struct Member {
    backup: Backup,
    line: bool,
    has_hold: bool,
    reaches: bool,
    /// X has answered it.
    is_known: bool,
    /// Mirrors under way (positive), or to be looked after (negative).
    queue: Queue,
    /// Mirrors that were given up, and may be executed: a bit for each version.
    late: u16,
    exchange: Option<Exchange>,
}

impl Member {
    fn new(reaches: bool) -> Member {
        Member {
            backup: Backup::new(),
            line: false,
            has_hold: true,
            reaches,
            is_known: reaches,
            queue: Queue::default(),
            late: 0,
            exchange: None,
        }
    }

    /// Mirrors under way may be executed at any time from now on.
    fn give_up(&mut self) {
        self.late |= self.queue.give_up();
    }
}

impl parts::Member for Member {
    fn pack(&self) -> u64 {
        let debt = match self.backup.debt {
            Debt::None => 0,
            Debt::Keys => 1,
            Debt::Flush { is_due } => 2 + u64::from(is_due),
        };
        let mut packed = Packed::default();
        packed.put(self.backup.mode as u64, 2);
        packed.put(debt, 2);
        packed.put_flags(&[
            self.backup.has_lease,
            self.line,
            self.has_hold || !self.line,
            self.reaches,
            self.is_known,
        ]);
        packed.put(u64::from(self.late), 8);
        packed.put_queue(&self.queue);
        packed.put_exchange(self.exchange);
        packed.0
    }

    fn exchange(&mut self) -> &mut Option<Exchange> {
        &mut self.exchange
    }

    fn has_line(&self) -> bool {
        self.line
    }

    fn line(&mut self) -> &mut bool {
        &mut self.line
    }

    fn has_hold(&self) -> bool {
        self.has_hold
    }
}

#[derive(Clone, Copy)]
pub struct State<const N: usize> {
    primary: u8,
    backup: u8,
    members: [Member; N],
    dead: u8,
    /// Late mirrors of the dead: a bit for each version.
    ghosts: u16,
    written: u8,
    faults: u8,
}

impl<const N: usize> World<N> {
    fn has(&self, rule: Rule) -> bool {
        self.without != Some(rule)
    }

    fn changed(&self, s: &mut State<N>) {
        if self.has(Rule::Cas) {
            s.members.iter_mut().for_each(|m| m.exchange = None);
        }
    }

    fn write_back(&self, s: &mut State<N>, i: usize) {
        let read = s.members[i].exchange.take();
        self.changed(s);
        if let Some(read) = read.filter(|_| !self.has(Rule::Cas)) {
            parts::overwrite(&mut s.members, i, read);
        }
    }

    fn flush_is_due(&self, s: &State<N>, i: usize) -> bool {
        let writes = self.has(Rule::FlushWait)
            && parts::others(&s.members, i)
                .any(|o| !o.line && o.backup.has_line() && o.backup.has_lease);
        let late = self.has(Rule::Settle)
            && (s.ghosts != 0 || parts::others(&s.members, i).any(|o| !o.line && o.late != 0));
        !writes && !late
    }

    fn clients(&self, s: &State<N>, i: usize, steps: &mut Steps<State<N>>) {
        let b = &s.members[i].backup;
        if s.written < self.writes {
            let takes = match b.takes() {
                Write::Wait if !self.has(Rule::Lease) && b.mode == Mode::Journaling => {
                    Write::Journal
                }
                Write::Wait if !self.has(Rule::Lease) && b.mode == Mode::Behind => Write::Mirror,
                takes => takes,
            };
            let mut t = *s;
            t.written += 1;
            t.primary = t.written;
            match takes {
                Write::Mirror => {
                    t.members[i].queue.push(t.written);
                    steps.add("write", t);
                }
                Write::Journal => {
                    t.members[i].backup.owes_keys();
                    steps.add("write-journal", t);
                }
                Write::Wait => {}
            }
        }
    }

    /// Mirrors, and the look at Y after each.
    fn mirrors(&self, s: &State<N>, i: usize, steps: &mut Steps<State<N>>) {
        let m = &s.members[i];
        let b = &m.backup;
        let mut t = *s;
        let next = &mut t.members[i].queue;
        if let Some(version) = next.mirror(self.has(Rule::Again)).filter(|_| m.reaches) {
            t.backup = version;
            steps.add("mirror", t);
        }
        let mut t = *s;
        if let Some(version) = t.members[i].queue.look() {
            if t.members[i].queue.is_empty() && s.primary != version {
                t.backup = 0;
            }
            steps.add("look-again", t);
        }
        let is_silent = !m.is_known && !self.has(Rule::Announce);
        if !m.reaches && matches!(b.mode, Mode::Mirroring | Mode::Behind) {
            let mut t = *s;
            t.members[i].give_up();
            if !is_silent {
                t.members[i].backup.missed();
            }
            t.members[i].backup.lost();
            steps.add("miss", t);
        }
        for version in (1..8).filter(|v| m.late >> v & 1 == 1) {
            let mut t = *s;
            t.members[i].late &= !(1 << version);
            if !m.reaches {
                steps.add("drop", t);
            }
            t.backup = version;
            steps.add("execute", t);
        }
    }

    /// Time passes, and it looks at the list.
    fn time(&self, s: &State<N>, i: usize, steps: &mut Steps<State<N>>) {
        let m = &s.members[i];
        let b = &m.backup;
        if b.is_announcing() {
            let mut t = *s;
            self.changed(&mut t);
            (t.members[i].line, t.members[i].has_hold) = (true, true);
            let listed = parts::listed(&t.members, i, t.dead);
            t.members[i].backup.announced(listed);
            steps.add("announce", t);
        }
        if b.has_lease {
            let mut t = *s;
            t.members[i].backup.lapse();
            steps.add("lapse", t);
        }
        let mut t = *s;
        t.members[i]
            .backup
            .looked(parts::listed(&s.members, i, s.dead));
        t.members[i].has_hold |= m.line;
        steps.add("look", t);
    }

    /// X is told the journal, and the line goes out.
    fn back(&self, s: &State<N>, i: usize, steps: &mut Steps<State<N>>) {
        let m = &s.members[i];
        let b = &m.backup;
        if m.reaches && b.may_tell(m.late == 0 || !self.has(Rule::Drain)) {
            let mut t = *s;
            let is_told = self.has(Rule::Order) && (b.debt == Debt::Keys || self.has(Rule::Flush));
            if is_told {
                t.backup = 0;
            }
            t.members[i].backup.told();
            steps.add("tell", t);
        }
        if b.debt == (Debt::Flush { is_due: false }) && self.flush_is_due(s, i) {
            let mut t = *s;
            t.members[i].backup.flush_is_due();
            steps.add("due", t);
        }
        if m.line && b.may_take_out() {
            let mut t = *s;
            self.write_back(&mut t, i);
            t.members[i].line = false;
            t.members[i].backup.taken_out();
            steps.add("out", t);
        }
    }

    /// It takes over what somebody who is gone owed.
    fn take_over(&self, s: &State<N>, i: usize, steps: &mut Steps<State<N>>) {
        let m = &s.members[i];
        let b = &m.backup;
        let read = Exchange::read(&s.members, i, s.dead, true);
        if m.reaches && b.may_take_over() && m.exchange.is_none() && read.is_needed() {
            let mut t = *s;
            t.members[i].exchange = Some(read);
            steps.add("see", t);
        }
        if let Some(read) = m.exchange {
            let mut t = *s;
            self.write_back(&mut t, i);
            parts::take_out(&mut t.members, read);
            t.dead -= s.dead.min(read.dead);
            let own = &mut t.members[i];
            own.give_up();
            own.backup.taken_over();
            (own.line, own.has_hold) = (true, true);
            steps.add("take-over", t);
        }
    }

    fn faults(&self, s: &State<N>, steps: &mut Steps<State<N>>) {
        let mut f = *s;
        f.faults += 1;
        for i in 0..N {
            steps.by(i);
            let m = &s.members[i];
            if m.reaches {
                let mut t = f;
                t.members[i].reaches = false;
                steps.add("CUT", t);
            }
            if m.queue.is_empty() && !m.backup.is_announcing() {
                let mut t = f;
                t.dead += u8::from(m.line);
                t.ghosts |= m.late;
                for o in &mut t.members {
                    o.exchange = o.exchange.filter(|e| !e.names(i));
                }
                t.members[i] = Member::new(m.reaches);
                steps.add("CRASH", t);
            }
            if m.line && m.has_hold {
                let mut t = f;
                t.members[i].has_hold = false;
                steps.add("EVICT", t);
                t.members[i].backup.lapse();
                steps.add("STALL", t);
            }
        }
        steps.by(NOBODY);
        if s.members.iter().any(|m| m.reaches) {
            let mut t = f;
            t.members.iter_mut().for_each(|m| m.reaches = false);
            steps.add("STOP", t);
        }
        // X comes back empty: all links were lost.
        let mut t = f;
        (t.backup, t.ghosts) = (0, 0);
        for m in &mut t.members {
            if m.queue.owes_mirrors() {
                m.give_up();
                m.backup.missed();
            }
            m.late = 0;
        }
        steps.add("RESTART", t);
    }
}

impl<const N: usize> Model for World<N> {
    type State = State<N>;

    fn start(&self) -> State<N> {
        State {
            primary: 0,
            backup: 0,
            members: [Member::new(true); N],
            dead: 0,
            ghosts: 0,
            written: 0,
            faults: 0,
        }
    }

    fn sorted(&self, state: &State<N>) -> (State<N>, Key) {
        let mut s = *state;
        let mut key = [0; 4];
        key[1..=N].copy_from_slice(&parts::sort(&mut s.members));
        let mut rest = Packed(u64::from(s.ghosts));
        for part in [s.primary, s.backup, s.dead, s.written, s.faults] {
            rest.put(u64::from(part), 4);
        }
        key[0] = rest.0;
        (s, key)
    }

    fn steps(&self, s: &State<N>, steps: &mut Steps<State<N>>) -> Result<(), &'static str> {
        let members = &s.members;
        let is_lagging = |m: &Member| match m.backup.mode {
            Mode::Announcing => true,
            Mode::Journaling => !m.line && !m.backup.has_lease && self.has(Rule::Lease),
            Mode::Mirroring | Mode::Behind => false,
        };
        let is_quiet = !members.iter().any(|m| !m.queue.is_empty() || is_lagging(m));
        let is_read = match self.has(Rule::All) {
            true => s.dead == 0 && !members.iter().any(|m| m.line),
            false => !members.iter().all(|m| m.line),
        };
        if is_quiet && is_read && s.backup > 0 && s.backup != s.primary {
            return Err("an old copy stands unlisted");
        }
        for i in 0..N {
            steps.by(i);
            self.clients(s, i, steps);
            self.mirrors(s, i, steps);
            self.time(s, i, steps);
            self.back(s, i, steps);
            self.take_over(s, i, steps);
            if !s.members[i].reaches {
                let mut t = *s;
                t.members[i].reaches = true;
                t.members[i].is_known = true;
                steps.add("heal", t);
            }
        }
        steps.by(NOBODY);
        for version in (1..8).filter(|v| s.ghosts >> v & 1 == 1) {
            let mut t = *s;
            t.ghosts &= !(1 << version);
            steps.add("nobody", t);
            t.backup = version;
            steps.add("ghost", t);
        }
        if s.faults < self.faults {
            self.faults(s, steps);
        }
        Ok(())
    }

    fn is_home(&self, s: &State<N>) -> bool {
        let is_well = |m: &Member| m.backup.takes() == Write::Mirror && m.reaches && !m.line;
        s.dead == 0 && s.members.iter().all(is_well)
    }
}
