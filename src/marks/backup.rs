//! What this magent may do with the keys of one primary while their backup may lack mirrors. The
//! roles are exchanged: the server that is away is the backup, the list stands on the primary,
//! which is in use all the time.
//!
//! ```text
//!   Mirroring ──missed──▶ Announcing ──answered──▶ Journaling ──told──▶ Behind ──line out──▶ Mirroring
//!       │                     ▲                      ▲   │ line gone      │ missed
//!       └── took over a line ─┼──────────────────────┘   ▼                ▼
//!                             └────────────────────── Announcing ◀────────┘
//! ```
//!
//! Nobody waits for anybody here: each tells what it missed, mirrors again behind that, and takes
//! its own line out. Whoever missed nothing goes on mirroring. A backup that is listed is not read.

use super::primary::{Debt, Listed};

/// What becomes of a write that the primary has to answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Write {
    /// It is mirrored.
    Mirror,
    /// Its key goes to the journal.
    Journal,
    /// It waits: nobody else could know yet that the backup will lack it.
    Wait,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Mode {
    Mirroring,
    Announcing,
    Journaling,
    Behind,
}

/// One magent towards one backup of one primary.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Backup {
    pub(super) mode: Mode,
    /// The last look is young enough and shows the own line.
    pub(super) has_lease: bool,
    pub(super) debt: Debt,
}

impl Backup {
    /// A magent that starts.
    pub fn new() -> Backup {
        Backup {
            mode: Mode::Mirroring,
            has_lease: false,
            debt: Debt::None,
        }
    }

    /// What becomes of writes now.
    pub fn takes(&self) -> Write {
        match self.mode {
            Mode::Mirroring => Write::Mirror,
            Mode::Behind if self.has_lease => Write::Mirror,
            Mode::Journaling if self.has_lease => Write::Journal,
            _ => Write::Wait,
        }
    }

    /// True while a line of this magent stands, as far as it knows.
    pub fn has_line(&self) -> bool {
        matches!(self.mode, Mode::Journaling | Mode::Behind)
    }

    /// True if a line has to be written.
    pub fn is_announcing(&self) -> bool {
        self.mode == Mode::Announcing
    }

    /// What it owes the backup.
    pub fn debt(&self) -> Debt {
        self.debt
    }

    /// A mirror did not get there, or may be executed at any later time.
    pub fn missed(&mut self) {
        self.owes_keys();
        if matches!(self.mode, Mode::Mirroring | Mode::Behind) {
            (self.mode, self.has_lease) = (Mode::Announcing, false);
        }
    }

    /// Another program goes on where its line may stand: it writes that anew.
    pub fn restore(&mut self, debt: Debt) {
        (self.mode, self.has_lease, self.debt) = (Mode::Announcing, false, debt);
        self.lost();
    }

    /// A key went to the journal.
    pub fn owes_keys(&mut self) {
        if self.debt == Debt::None {
            self.debt = Debt::Keys;
        }
    }

    /// The line was written, and the look behind it shows this.
    pub fn announced(&mut self, listed: Listed) {
        if self.mode == Mode::Announcing && listed.mine {
            (self.mode, self.has_lease) = (Mode::Journaling, true);
        }
    }

    /// A look at the primary's list was answered.
    pub fn looked(&mut self, listed: Listed) {
        match self.mode {
            Mode::Announcing => {}
            // A line that a lost link carried to the primary after all, or one that stands twice.
            Mode::Mirroring if listed.mine => (self.mode, self.has_lease) = (Mode::Behind, true),
            Mode::Mirroring => {}
            _ if listed.mine => self.has_lease = true,
            Mode::Journaling => (self.mode, self.has_lease) = (Mode::Announcing, false),
            // Told already, and held for dead since: nothing is owed.
            Mode::Behind => (self.mode, self.has_lease) = (Mode::Mirroring, false),
        }
    }

    /// The last look is older than the lease.
    pub fn lapse(&mut self) {
        self.has_lease = false;
    }

    /// True if the backup may be told what is owed: deletes, or `flush_all`. `is_drained`: nothing
    /// that was sent to it before can still be executed.
    pub fn may_tell(&self, is_drained: bool) -> bool {
        self.mode == Mode::Journaling && is_drained && self.debt != Debt::Flush { is_due: false }
    }

    /// All that was owed is sent: mirrors follow on the same link.
    pub fn told(&mut self) {
        if self.mode == Mode::Journaling {
            (self.mode, self.debt) = (Mode::Behind, Debt::None);
        }
    }

    /// True if the own line may be taken out, when the deletes are answered.
    pub fn may_take_out(&self) -> bool {
        self.mode == Mode::Behind
    }

    /// The own line was taken out by compare-and-set.
    pub fn taken_out(&mut self) {
        (self.mode, self.has_lease) = (Mode::Mirroring, false);
    }

    /// True if lines of magents that are gone may be exchanged for the own one.
    pub fn may_take_over(&self) -> bool {
        self.mode != Mode::Announcing
    }

    /// They were, by compare-and-set. Mirrors that are under way must be answered before the flush.
    pub fn taken_over(&mut self) {
        (self.mode, self.has_lease) = (Mode::Journaling, true);
        self.debt = Debt::Flush { is_due: false };
    }

    /// W has passed since the exchange, and the backup has answered for long enough to have
    /// executed all that the dead sent it.
    pub fn flush_is_due(&mut self) {
        if let Debt::Flush { is_due } = &mut self.debt {
            *is_due = true;
        }
    }

    /// The backup is lost: what was due may be executed late by somebody else again.
    pub fn lost(&mut self) {
        if let Debt::Flush { is_due } = &mut self.debt {
            *is_due = false;
        }
    }
}

impl Default for Backup {
    fn default() -> Backup {
        Backup::new()
    }
}
