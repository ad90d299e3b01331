//! What this magent may do with the keys that a primary shares with one partner, its backup, while
//! the primary may be away. No clock and no bytes: looks and answers come in, permissions go out.
//!
//! ```text
//!            a look lists others                  patience over, primary lost
//!   InUse ───────────────────────▶ Parked ─────────────────────────────────────┐
//!    ▲ │ ◀─────────────────────── ▲                                            ▼
//!    │ │   a look lists nobody    │                                        Announcing
//!    │ └────────────────────────────── primary lost, write late ─────────────▶ │ answered
//!    │                            │                                            ▼
//!    │ line out, none left        │ line out, others left      ┌─resume─▶ Announced ──W──▶ Replaced
//!    └─────────── Leaving ────────┘ ◀──────────────── Syncing ◀┴──────────────────────────────┘
//!                    ▲                    stop using the partner; tell
//!                    └── from Announced: the late answer came after all
//! ```
//!
//! Each step is refused where a rule forbids it, whatever the caller thinks of it. The model in
//! `tests` takes every step that is not refused, in every order.

/// What a look at the partner's list shows of one server.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Listed {
    /// A line of this magent.
    pub mine: bool,
    /// A line of another one.
    pub others: bool,
}

impl Listed {
    /// Nobody is away from the server.
    pub fn is_empty(self) -> bool {
        !self.mine && !self.others
    }
}

/// What a magent has written elsewhere and not told the server yet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub enum Debt {
    /// Nothing.
    #[default]
    None,
    /// The keys in its journal.
    Keys,
    /// What somebody else took to the grave: nobody knows the keys, so the server is flushed.
    Flush {
        /// Whoever owed it can neither write to the partner any more nor have late writes at the
        /// server.
        is_due: bool,
    },
}

/// What is asked where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Use {
    /// The primary, as ever.
    Primary,
    /// The partner in its place; keys that are written go to the journal.
    Partner,
    /// Nobody for the moment: requests wait within their deadlines, answers are held.
    Nobody,
    /// Nobody: the primary has never answered this magent, which leaves it to those who know it.
    Unknown,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Mode {
    InUse,
    Parked,
    Announcing,
    Announced,
    Replaced,
    Syncing,
    Leaving,
}

/// A write whose answer did not come in time, on a link that lives or was given up.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Late {
    None,
    /// It was sent nowhere else: its answer may still count.
    Open,
    /// The answer has come and is held.
    Answered,
    /// It counts as failed, or was sent elsewhere: what the server does with it is to be deleted.
    Void,
}

/// One magent towards one primary and one partner of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Primary {
    pub(super) mode: Mode,
    /// The last look is young enough and shows what the mode needs: nobody's line in `InUse`, this
    /// magent's own one in `Announced` and `Replaced`.
    pub(super) has_lease: bool,
    pub(super) answers: bool,
    /// It has answered in this run.
    pub(super) is_known: bool,
    /// The own line has stood for W without a break.
    pub(super) has_waited: bool,
    /// Nobody else was listed since the own line was written.
    pub(super) is_sole: bool,
    pub(super) debt: Debt,
    pub(super) late: Late,
}

impl Primary {
    /// A magent that starts; nothing is used before the first look.
    pub fn new(answers: bool) -> Primary {
        Primary {
            mode: Mode::InUse,
            has_lease: false,
            answers,
            is_known: answers,
            has_waited: false,
            is_sole: false,
            debt: Debt::None,
            late: Late::None,
        }
    }

    /// What requests do now.
    pub fn serves(&self) -> Use {
        match self.mode {
            Mode::InUse if self.has_lease && self.answers => Use::Primary,
            Mode::Replaced if self.has_lease => Use::Partner,
            _ if !self.is_known => Use::Unknown,
            _ => Use::Nobody,
        }
    }

    /// True while a line of this magent stands, as far as it knows.
    pub fn has_line(&self) -> bool {
        matches!(
            self.mode,
            Mode::Announced | Mode::Replaced | Mode::Syncing | Mode::Leaving
        )
    }

    /// True if it is used as soon as a look shows that nobody keeps it away.
    pub fn is_unseen(&self) -> bool {
        self.mode == Mode::InUse && !self.has_lease && self.answers
    }

    /// True while others' lines are waited for.
    pub fn is_parked(&self) -> bool {
        self.mode == Mode::Parked
    }

    /// True if a line has to be written.
    pub fn is_announcing(&self) -> bool {
        self.mode == Mode::Announcing
    }

    /// True in the modes in which the partner stands in, or is about to.
    pub fn stands_in(&self) -> bool {
        matches!(self.mode, Mode::Announced | Mode::Replaced)
    }

    /// True while the partner stands in.
    pub fn is_replaced(&self) -> bool {
        self.mode == Mode::Replaced
    }

    /// True while it is told what is owed, before the own line goes.
    pub fn is_syncing(&self) -> bool {
        self.mode == Mode::Syncing
    }

    /// True if the primary has answered this magent, or that does not matter.
    pub fn is_known(&self) -> bool {
        self.is_known
    }

    /// True while a late write may be executed at the primary.
    pub fn has_late_write(&self) -> bool {
        self.late != Late::None
    }

    /// What it owes the primary.
    pub fn debt(&self) -> Debt {
        self.debt
    }

    /// True if the primary answers this magent: what its hold says.
    pub fn answers(&self) -> bool {
        self.answers
    }

    // ---- what happens at the primary

    /// The primary is lost to this magent.
    pub fn lost(&mut self) {
        self.answers = false;
        self.flush_waits();
        match self.mode {
            Mode::InUse | Mode::Parked => self.announce(),
            // The line has stood all the time: if W was over it still is.
            Mode::Syncing => self.mode = Mode::Announced,
            Mode::Announcing | Mode::Announced | Mode::Replaced | Mode::Leaving => {}
        }
    }

    /// A magent that is alone takes the primary from nobody, be it answered by it or not.
    pub fn know(&mut self) {
        self.is_known = true;
    }

    /// It answers, on a link that has just begun: looks of before say nothing about it.
    pub fn connected(&mut self) {
        (self.answers, self.is_known) = (true, true);
        if self.mode == Mode::InUse {
            self.has_lease = false;
        }
    }

    /// Another program goes on where its line may stand: it writes that anew, and waits W again. `is_late`:
    /// a write may still be executed at the primary.
    pub fn restore(&mut self, debt: Debt, is_late: bool) {
        (self.debt, self.is_known) = (debt, true);
        self.late = match is_late {
            true => Late::Void,
            false => Late::None,
        };
        self.announce();
    }

    /// A write is not answered in time and would go elsewhere now.
    pub fn write_is_late(&mut self) {
        self.late = Late::Open;
        self.owes_keys();
        if matches!(self.mode, Mode::InUse | Mode::Parked) {
            self.announce();
        }
    }

    /// The late write was answered after all.
    pub fn late_answer(&mut self) {
        self.late = match self.late {
            Late::Open => Late::Answered,
            _ => Late::None,
        };
    }

    /// The late write can no longer be executed and will never be answered.
    pub fn late_gone(&mut self) {
        self.late = Late::None;
    }

    // ---- what the partner's list shows

    /// A look was answered. True if it grants a lease.
    pub fn looked(&mut self, listed: Listed) -> bool {
        self.is_sole &= !listed.others;
        match self.mode {
            // The answer that is under way decides.
            Mode::Announcing | Mode::Leaving => return false,
            // Nothing is used until the line is out.
            Mode::Syncing if listed.mine => return false,
            // A line that a lost link carried to the partner after all.
            Mode::InUse | Mode::Parked if listed.mine => self.listed(),
            Mode::InUse if listed.others => {
                (self.mode, self.has_lease) = (Mode::Parked, false);
            }
            Mode::InUse => self.has_lease = true,
            Mode::Parked if listed.others => {}
            Mode::Parked if self.answers => (self.mode, self.has_lease) = (Mode::InUse, true),
            Mode::Parked => self.announce(),
            _ if listed.mine => self.has_lease = true,
            // Held for dead, or the list was lost.
            _ if self.debt != Debt::None || self.late != Late::None || !self.answers => {
                self.announce();
            }
            _ => {
                self.mode = Mode::Parked;
                (self.has_lease, self.has_waited) = (false, false);
            }
        }
        self.has_lease
    }

    /// The line was written, and the look behind it shows this.
    pub fn announced(&mut self, listed: Listed) {
        if self.mode == Mode::Announcing && listed.mine {
            self.listed();
            self.is_sole = !listed.others;
        }
    }

    /// The last look is older than the lease.
    pub fn lapse(&mut self) {
        self.has_lease = false;
    }

    /// Patience is over: others keep away from a primary that answers this magent.
    pub fn patience_over(&mut self) {
        if self.mode == Mode::Parked {
            self.announce();
        }
    }

    // ---- to the partner

    /// W is over since the line was written.
    pub fn waited(&mut self) {
        self.has_waited |= self.has_line();
    }

    /// Goes to the partner; `is_clean`: own mirrors there are answered, doubtful copies are deleted.
    pub fn replace(&mut self, is_clean: bool) -> bool {
        let may = self.mode == Mode::Announced && self.has_lease && self.has_waited && is_clean;
        if may {
            self.mode = Mode::Replaced;
            self.late = match self.late {
                Late::Open | Late::Void => Late::Void,
                Late::Answered | Late::None => Late::None,
            };
        }
        may
    }

    /// The primary lacks what is written to the partner: its key goes to the journal when it is sent,
    /// and again when it is answered. Told in between, the primary might be written to (by one whose
    /// line is only on its way) before the partner is.
    pub fn owes_keys(&mut self) {
        if self.debt == Debt::None {
            self.debt = Debt::Keys;
        }
    }

    /// True if the answer of the late write counts: nobody else was listed, and no debt was taken
    /// over, so nobody has used the partner. The line goes out with the cas of the look that was sent
    /// with it.
    pub fn may_withdraw(&self) -> bool {
        self.mode == Mode::Announced
            && self.answers
            && self.has_lease
            && self.is_sole
            && self.debt == Debt::Keys
            && self.late == Late::Answered
    }

    // ---- back to the primary

    /// True if the journal may be told now, while the partner is still used in the primary's
    /// place: a key that is written again is journaled again.
    pub fn may_tell_early(&self) -> bool {
        self.mode == Mode::Replaced
            && self.debt == Debt::Keys
            && self.answers
            && self.late == Late::None
    }

    /// Stops using the partner. `is_idle`: everything of this magent there is answered.
    pub fn stop(&mut self, is_idle: bool) -> bool {
        let may = matches!(self.mode, Mode::Announced | Mode::Replaced)
            && self.answers
            && self.late == Late::None
            && is_idle;
        if may {
            (self.mode, self.has_lease) = (Mode::Syncing, false);
        }
        may
    }

    /// True if the primary may be told what is owed: deletes, or `flush_all`.
    pub fn may_tell(&self) -> bool {
        self.mode == Mode::Syncing
            && self.answers
            && matches!(self.debt, Debt::Keys | Debt::Flush { is_due: true })
    }

    /// All keys that were owed, or the flush, were told and answered.
    pub fn told(&mut self) {
        if self.mode == Mode::Syncing || self.debt == Debt::Keys {
            self.debt = Debt::None;
        }
    }

    /// It cannot be told after all (a refused flush): the partner goes on.
    pub fn resume(&mut self) {
        if self.mode == Mode::Syncing {
            self.mode = Mode::Announced;
        }
    }

    /// True if the own line may be taken out, with the cas of any look.
    pub fn may_take_out(&self) -> bool {
        self.mode == Mode::Syncing && self.debt == Debt::None
    }

    /// A compare-and-set that takes the own line out is sent. Until it is answered nobody knows
    /// whether the line stands, so the partner is not used whatever happens.
    pub fn leave(&mut self) -> bool {
        let may = self.may_withdraw() || self.may_take_out();
        if may {
            (self.mode, self.has_lease) = (Mode::Leaving, false);
        }
        may
    }

    /// The line is out. True if the late answer is good, once it was mirrored and the primary was
    /// seen to hold it still: it may have restarted, or been told something, since it answered.
    pub fn left(&mut self, listed: Listed) -> bool {
        let is_good = self.late == Late::Answered;
        if is_good {
            (self.late, self.debt) = (Late::None, Debt::None);
        }
        self.has_lease = listed.is_empty();
        self.mode = match listed.is_empty() {
            true => Mode::InUse,
            false => Mode::Parked,
        };
        (self.has_waited, self.is_sole) = (false, false);
        if !self.answers || self.debt != Debt::None {
            self.announce();
        }
        is_good
    }

    /// The list had changed, so the line stands, or somebody else has taken it out: looks will say.
    /// A late answer is void.
    pub fn not_left(&mut self) {
        self.mode = match self.late == Late::None && self.answers {
            true => Mode::Syncing,
            false => Mode::Announced,
        };
        self.is_sole = false;
        self.void_answer();
    }

    /// The partner's link was lost before the answer. The request may be executed at any later
    /// time, unless the list is changed before.
    pub fn left_or_not(&mut self) {
        self.void_answer();
        self.announce();
    }

    // ---- the debts of the dead

    /// True if lines of magents that are gone may be exchanged for the own one.
    pub fn may_take_over(&self) -> bool {
        self.answers && matches!(self.mode, Mode::Parked | Mode::Announced | Mode::Replaced)
    }

    /// They were, by compare-and-set.
    pub fn taken_over(&mut self) {
        self.debt = Debt::Flush { is_due: false };
        if matches!(self.mode, Mode::InUse | Mode::Parked) {
            self.listed();
        }
    }

    /// The partner's link was lost before the answer, and the request may be executed at any later time.
    /// Announcing changes the list, so that it is not.
    pub fn taken_over_or_not(&mut self) {
        self.debt = Debt::Flush { is_due: false };
        self.announce();
    }

    /// W has passed since the exchange, and the primary has answered for long enough to have
    /// executed all that the dead sent it.
    pub fn flush_is_due(&mut self) {
        // Before the own line stands nobody knows whether the exchange was made.
        if let (true, Debt::Flush { is_due }) = (self.has_line(), &mut self.debt) {
            *is_due = true;
        }
    }

    /// The key is deleted, as if the answer had never come.
    fn void_answer(&mut self) {
        if self.late == Late::Answered {
            self.late = Late::None;
        }
    }

    fn flush_waits(&mut self) {
        if let Debt::Flush { is_due } = &mut self.debt {
            *is_due = false;
        }
    }

    fn announce(&mut self) {
        // Who was never answered knows of no outage: it may be its own link that is missing.
        if self.is_known {
            self.mode = Mode::Announcing;
            (self.has_lease, self.has_waited, self.is_sole) = (false, false, false);
            self.flush_waits();
        }
    }

    fn listed(&mut self) {
        self.mode = Mode::Announced;
        (self.has_lease, self.has_waited, self.is_sole) = (true, false, false);
    }
}
