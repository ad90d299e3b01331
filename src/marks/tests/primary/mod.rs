//! One key, its primary X, its partner Y, and some magents, each with the real [`Primary`].
//!
//! The servers, the list, holds and time are modelled; who may do what is what [`Primary`] says. Time
//! has no numbers: a wait ends when nobody can hold an older view, which is what W >= lease + the
//! time of a mirror stands for.
//!
//! Checked: no read returns a version older than the last one that was acknowledged, and X is never
//! flushed for somebody else while nobody died, stood still or lost its hold. A rule that is left out
//! is one lie about the world to [`Primary`], or one answer of it that is not listened to.
//!
//! Magents are interchangeable, so the numbers in a trace are places, not persons.

mod steps;

use super::explore::{Key, Model, NOBODY, Steps};
use super::parts::{self, Exchange, Packed, Queue};
use crate::marks::primary::{Debt, Late, Listed, Mode, Primary, Use};

/// Rules without which something old is read, or somebody living is flushed for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    /// Look again after a mirror.
    Again,
    /// In doubt the mirrored key is deleted.
    Doubt,
    /// X is used with a lease only.
    Lease,
    /// Y is used in X's place with a lease only.
    PartnerLease,
    /// W passes between announcing and using Y.
    Wait,
    /// X is used only while nobody is listed.
    All,
    /// Y is not used between telling and taking the line out.
    Stop,
    /// Who announces again waits again.
    WaitAgain,
    /// A flush for the dead waits until they cannot write to Y any more.
    FlushWait,
    /// Nobody tells while a late write of its own to X may be executed.
    Drain,
    /// Nobody tells while a write of its own to Y is under way.
    PartnerDrain,
    /// A flush for the dead waits until their late writes were executed or are lost.
    Settle,
    /// The list is appended to, or written back by compare-and-set.
    Cas,
    /// A line that is taken over means a flush.
    Flush,
    /// Only lines whose hold is gone are taken over.
    Gone,
    /// A late answer counts only if no other line came since.
    Sole,
    /// Nobody uses Y while a request that takes its own line out is under way.
    Leave,
    /// Who does not know whether such a request was executed writes its line anew.
    Unsure,
    /// What is written to Y is journaled when it is sent and again when it is answered.
    OwesAgain,
    /// A late answer is let out when its mirror was looked after.
    LateLook,
    /// Answers of X that come while others are listed are held until nobody is.
    Hold,
    /// And are let out then when their mirrors were looked after.
    HoldLook,
    /// Who does not know whether it took a line over announces again, and owes a flush.
    UnsureOver,
}

pub const RULES: [Rule; 23] = [
    Rule::Again,
    Rule::Doubt,
    Rule::Lease,
    Rule::PartnerLease,
    Rule::Wait,
    Rule::All,
    Rule::Stop,
    Rule::WaitAgain,
    Rule::FlushWait,
    Rule::Drain,
    Rule::PartnerDrain,
    Rule::Settle,
    Rule::Cas,
    Rule::Flush,
    Rule::Gone,
    Rule::Sole,
    Rule::Leave,
    Rule::Unsure,
    Rule::OwesAgain,
    Rule::LateLook,
    Rule::Hold,
    Rule::HoldLook,
    Rule::UnsureOver,
];

impl Rule {
    /// Few kinds of faults that show what happens without it.
    pub fn is_shown_by(self) -> Kinds {
        let none = NO_KINDS;
        let late = Kinds { late: true, ..none };
        match self {
            Rule::Again => Kinds {
                restart: true,
                ..none
            },
            Rule::Doubt => Kinds {
                cut: true,
                restart: true,
                ..none
            },
            Rule::PartnerLease | Rule::FlushWait => Kinds {
                evict: true,
                ..late
            },
            Rule::PartnerDrain => Kinds { slow: true, ..late },
            Rule::Cas | Rule::Settle | Rule::Flush => Kinds {
                crash: true,
                ..late
            },
            Rule::UnsureOver => Kinds {
                crash: true,
                unsure: true,
                ..late
            },
            Rule::Unsure => Kinds {
                unsure: true,
                ..late
            },
            Rule::OwesAgain => Kinds {
                slow: true,
                early: true,
                ..late
            },
            Rule::Hold | Rule::HoldLook => Kinds {
                flying: true,
                ..late
            },
            Rule::LateLook => Kinds {
                restart: true,
                ..late
            },
            _ => late,
        }
    }
}

/// What may go wrong, and what may be switched besides.
#[derive(Clone, Copy, Debug)]
pub struct Kinds {
    /// The link between a magent and X is cut, and heals at any time.
    pub cut: bool,
    /// X stops, and goes on at any time.
    pub stop: bool,
    /// X comes back empty.
    pub restart: bool,
    /// A magent is replaced by a new one; its line stays.
    pub crash: bool,
    /// A magent stands still until its hold is gone.
    pub stall: bool,
    /// A hold is lost though its magent lives.
    pub evict: bool,
    /// A write to X is not answered in time.
    pub late: bool,
    /// A link to Y is lost while a list is written back; the request may be executed late.
    pub unsure: bool,
    /// Writes to X take their time. No fault.
    pub flying: bool,
    /// Writes to Y take their time. No fault.
    pub slow: bool,
    /// Deletes are told while Y is still used. No fault.
    pub early: bool,
}

/// Nothing goes wrong.
pub const NO_KINDS: Kinds = Kinds {
    cut: false,
    stop: false,
    restart: false,
    crash: false,
    stall: false,
    evict: false,
    late: false,
    unsure: false,
    flying: false,
    slow: false,
    early: false,
};

impl Kinds {
    pub const ALL: Kinds = Kinds {
        cut: true,
        stop: true,
        restart: true,
        crash: true,
        stall: true,
        evict: true,
        late: true,
        unsure: true,
        // On its own: there would be too many states.
        flying: false,
        slow: true,
        early: true,
    };
}

/// The world, and what is left out of it.
#[derive(Clone, Copy, Debug)]
pub struct World<const N: usize> {
    pub writes: u8,
    pub faults: u8,
    pub kinds: Kinds,
    pub without: Option<Rule>,
    /// Nobody stops using Y before every hold says that X answers. Peace, not truth.
    pub vote: bool,
    /// Who finds its line gone and has a journal announces again. Peace, not truth.
    pub announces_again: bool,
    /// Who was never answered by X writes no line about it. Peace, not truth.
    pub unknown_is_silent: bool,
}

/// Late writes of the dead: never more than faults.
const GHOSTS: usize = 3;

/// A write to X that is not answered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Write {
    None,
    /// Not executed; it was sent nowhere else, so it may still take its place in the order.
    Open,
    /// Not executed; of a version that something newer may have followed elsewhere.
    Void(u8),
    /// Executed as this version; its answer is under way.
    Done(u8),
    /// Its answer is held.
    Held(u8),
    /// It is let out when its mirror was looked after.
    Owed(u8),
}

impl Write {
    fn may_be_executed(self) -> bool {
        matches!(self, Write::Open | Write::Void(_))
    }

    fn pack(self) -> u64 {
        let (kind, version) = match self {
            Write::None => (0, 0),
            Write::Open => (1, 0),
            Write::Void(v) => (2, v),
            Write::Done(v) => (3, v),
            Write::Held(v) => (4, v),
            Write::Owed(v) => (5, v),
        };
        kind | u64::from(version) << 3
    }
}

#[derive(Clone, Copy)]
pub struct Member {
    primary: Primary,
    /// Its line stands in the list.
    line: bool,
    /// Its hold is there, and says that X answers.
    has_hold: bool,
    holds_back: bool,
    /// X and it reach each other.
    reaches: bool,
    write: Write,
    queue: Queue,
    /// A write to Y is under way.
    sending: bool,
    exchange: Option<Exchange>,
    /// The write to X is not late, as yet.
    is_flying: bool,
    /// The list has not changed since the look whose cas it would use to take its line out.
    same_list: bool,
    /// A request that takes its line out was given up, and is executed if the list is still the same.
    stray: bool,
}

impl Member {
    fn new(reaches: bool) -> Member {
        Member {
            primary: Primary::new(reaches),
            line: false,
            has_hold: true,
            holds_back: true,
            reaches,
            write: Write::None,
            queue: Queue::default(),
            sending: false,
            is_flying: false,
            exchange: None,
            same_list: false,
            stray: false,
        }
    }

    /// Whoever cannot wait any more for X to be in use counts what is under way there as late.
    fn note_late(&mut self) {
        let may_wait = matches!(self.primary.mode, Mode::InUse | Mode::Parked);
        if self.is_flying && !may_wait {
            self.is_flying = false;
            self.primary.write_is_late();
            if matches!(self.write, Write::Held(_)) {
                self.primary.late_answer();
            }
        }
    }

    fn forget_void_answer(&mut self) {
        let is_good = self.is_flying || self.primary.late == Late::Answered;
        if matches!(self.write, Write::Held(_)) && !is_good {
            self.write = Write::None;
        }
    }
}

impl parts::Member for Member {
    fn pack(&self) -> u64 {
        let p = &self.primary;
        // What does not matter makes no other state.
        let may_be_good = matches!(p.late, Late::Open | Late::Answered);
        let is_sole = p.is_sole && may_be_good;
        let same_list = self.same_list && (is_sole || self.stray || p.mode == Mode::Leaving);
        let debt = match p.debt {
            Debt::None => 0,
            Debt::Keys => 1,
            Debt::Flush { is_due } => 2 + u64::from(is_due),
        };
        let mut packed = Packed::default();
        packed.put(p.mode as u64, 3);
        packed.put(debt, 2);
        packed.put(p.late as u64, 2);
        packed.put(self.write.pack(), 7);
        packed.put_flags(&[
            p.has_lease,
            p.answers,
            p.is_known,
            p.has_waited,
            is_sole,
            self.line,
            self.has_hold || !self.line,
            self.holds_back || !self.line,
            self.reaches,
            self.sending,
            same_list,
            self.stray,
            self.is_flying,
        ]);
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
    /// What X and Y hold; 0 is nothing.
    primary: u8,
    partner: u8,
    members: [Member; N],
    /// Lines of magents that are no more.
    dead: u8,
    /// Their late writes: 0 none, else the version or `OPEN`.
    ghosts: [u8; GHOSTS],
    written: u8,
    acknowledged: u8,
    faults: u8,
    /// Somebody died, stood still or lost its hold.
    anybody_gone: bool,
}

const OPEN: u8 = 15;

impl<const N: usize> State<N> {
    /// All but the members in one word.
    fn pack(&self) -> u64 {
        let mut packed = Packed::default();
        for part in [
            self.primary,
            self.partner,
            self.dead,
            self.written,
            self.acknowledged,
            self.faults,
            self.ghosts[0],
            self.ghosts[1],
            self.ghosts[2],
            u8::from(self.anybody_gone),
        ] {
            packed.put(u64::from(part), 4);
        }
        packed.0
    }
}

impl<const N: usize> World<N> {
    fn has(&self, rule: Rule) -> bool {
        self.without != Some(rule)
    }

    /// The list has changed: every compare-and-set under way will fail.
    fn changed(&self, s: &mut State<N>) {
        for m in &mut s.members {
            (m.same_list, m.stray) = (false, false);
            if self.has(Rule::Cas) {
                m.exchange = None;
            }
        }
    }

    /// Magent `i` writes the list back. Without compare-and-set that loses what was appended since.
    fn write_back(&self, s: &mut State<N>, i: usize) {
        let read = s.members[i].exchange.take();
        self.changed(s);
        if let Some(read) = read.filter(|_| !self.has(Rule::Cas)) {
            parts::overwrite(&mut s.members, i, read);
        }
    }

    /// What magent `i` had to announce stands in the list.
    fn announce(&self, s: &mut State<N>, i: usize) {
        self.changed(s);
        let m = &mut s.members[i];
        (m.line, m.has_hold, m.same_list) = (true, true, true);
        m.holds_back = m.primary.answers || !self.vote;
        let listed = parts::listed(&s.members, i, s.dead);
        s.members[i].primary.announced(listed);
    }

    /// True if nobody whose line is gone can do anything any more that a flush would have to undo.
    fn flush_is_due(&self, s: &State<N>, i: usize) -> bool {
        let writes = self.has(Rule::FlushWait)
            && parts::others(&s.members, i)
                .any(|o| !o.line && o.primary.has_line() && o.primary.has_lease);
        let late = self.has(Rule::Settle)
            && (s.ghosts[0] != 0
                || parts::others(&s.members, i)
                    .any(|o| !o.line && (o.write.may_be_executed() || o.sending)));
        !writes && !late
    }
}

impl<const N: usize> Model for World<N> {
    type State = State<N>;

    fn start(&self) -> State<N> {
        let mut member = Member::new(true);
        member.primary.looked(Listed::default());
        State {
            primary: 0,
            partner: 0,
            members: [member; N],
            dead: 0,
            ghosts: [0; GHOSTS],
            written: 0,
            acknowledged: 0,
            faults: 0,
            anybody_gone: false,
        }
    }

    fn sorted(&self, state: &State<N>) -> (State<N>, Key) {
        let mut state = *state;
        for m in &mut state.members {
            m.note_late();
            m.forget_void_answer();
        }
        let mut key = [0; 4];
        key[1..=N].copy_from_slice(&parts::sort(&mut state.members));
        key[0] = state.pack();
        (state, key)
    }

    fn steps(&self, s: &State<N>, steps: &mut Steps<State<N>>) -> Result<(), &'static str> {
        for i in 0..N {
            steps.by(i);
            self.clients(s, i, steps)?;
            self.mirrors(s, i, steps);
            self.late_write(s, i, steps);
            self.time(s, i, steps);
            self.look(s, i, steps);
            self.back(s, i, steps);
            self.take_line_out(s, i, steps);
            self.take_over(s, i, steps)?;
            self.heal(s, i, steps);
        }
        steps.by(NOBODY);
        self.ghosts(s, steps);
        if s.faults < self.faults {
            self.faults(s, steps);
        }
        Ok(())
    }

    fn is_home(&self, s: &State<N>) -> bool {
        s.dead == 0
            && s.members
                .iter()
                .all(|m| m.primary.serves() == Use::Primary && m.reaches && !m.line)
    }
}
