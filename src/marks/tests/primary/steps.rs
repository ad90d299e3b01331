//! What can happen next.

use super::*;

impl<const N: usize> World<N> {
    pub(super) fn member(
        &self,
        s: &State<N>,
        i: usize,
        steps: &mut Vec<Move<State<N>>>,
    ) -> Result<(), &'static str> {
        let mut step = |name: &'static str, to: State<N>| {
            steps.push(Move {
                name,
                who: i as u8,
                is_fault: name.as_bytes()[0].is_ascii_uppercase(),
                to,
            });
        };
        let m = &s.members[i];
        let p = &m.primary;
        let listed = self.listed(s, i);
        let next = s.written + 1;

        // ---- clients
        let mut serves = p.serves();
        if !self.has(Rule::Lease) && p.mode == Mode::InUse && p.answers {
            serves = Use::Primary;
        }
        if !self.has(Rule::PartnerLease) && p.mode == Mode::Replaced
            || !self.has(Rule::Stop) && p.mode == Mode::Syncing && p.has_waited
            || !self.has(Rule::Leave) && p.mode == Mode::Leaving && p.has_lease && p.has_waited
        {
            serves = Use::Partner;
        }
        let mut got = None;
        // Answers and mirrors on their way take less time than a primary that comes back.
        let is_mirroring =
            |o: &Member| !o.queue.is_empty() || o.is_flying && matches!(o.write, Write::Done(_));
        if serves == Use::Primary && m.reaches {
            if s.written < self.writes {
                let mut t = *s;
                (t.primary, t.written, t.acknowledged) = (next, next, next);
                t.members[i].queue.push(next);
                step("write", t);
                if self.kinds.flying && m.write == Write::None {
                    let mut t = *s;
                    t.members[i].write = Write::Open;
                    t.members[i].is_flying = true;
                    step("send", t);
                }
            }
            if s.primary > 0 {
                got = Some(s.primary);
            } else if s.partner > 0 && !self.all(s).any(is_mirroring) {
                got = Some(s.partner);
                let mut t = *s;
                t.primary = s.partner;
                step("fetch", t);
            }
        }
        // Own mirrors go before, on the same link.
        if serves == Use::Partner && !m.queue.owes_mirrors() {
            if s.written < self.writes {
                let mut t = *s;
                (t.partner, t.written, t.acknowledged) = (next, next, next);
                t.members[i].primary.owes_keys();
                step("write-partner", t);
            }
            let sending = s.members.iter().filter(|o| o.sending);
            if self.kinds.slow
                && p.mode == Mode::Replaced
                && !m.sending
                && s.written + (sending.count() as u8) < self.writes
            {
                let mut t = *s;
                t.members[i].primary.owes_keys();
                t.members[i].sending = true;
                step("send-partner", t);
            }
            if s.partner > 0 {
                got = Some(s.partner);
            }
        }
        if got.is_some_and(|version| version < s.acknowledged) {
            return Err("an old value was read");
        }
        if m.sending {
            let mut t = *s;
            (t.partner, t.written, t.acknowledged) = (next, next, next);
            t.members[i].sending = false;
            if self.has(Rule::OwesAgain) {
                t.members[i].primary.owes_keys();
            }
            step("sent-partner", t);
        }

        // ---- mirrors, and the look at X after each
        {
            let mut t = *s;
            if let Some(version) = t.members[i].queue.mirror(self.has(Rule::Again)) {
                t.partner = version;
                step("mirror", t);
            }
        }
        {
            let mut t = *s;
            if let Some(version) = t.members[i].queue.look() {
                let is_last = t.members[i].queue.is_empty();
                let is_seen = m.reaches && p.mode == Mode::InUse;
                let is_wrong = match is_seen {
                    true => s.primary != version,
                    false => self.has(Rule::Doubt),
                };
                if is_last && is_wrong {
                    t.partner = 0;
                }
                if m.write == Write::Owed(version) {
                    t.members[i].write = Write::None;
                    if is_seen && s.primary == version {
                        t.acknowledged = s.acknowledged.max(version);
                    }
                }
                step(if is_seen { "look-again" } else { "doubt" }, t);
            }
        }

        // ---- late writes: executed at some time, or lost with the link
        match m.write {
            Write::Open => {
                let mut t = *s;
                (t.primary, t.written) = (next, next);
                t.members[i].write = Write::Done(next);
                step("execute", t);
            }
            Write::Void(version) => {
                let mut t = *s;
                t.primary = version;
                t.members[i].write = Write::None;
                t.members[i].primary.late_answer();
                step("execute", t);
            }
            Write::Done(version) if m.is_flying => {
                let mut t = *s;
                if serves == Use::Primary || !self.has(Rule::Hold) {
                    t.acknowledged = s.acknowledged.max(version);
                    t.members[i].write = Write::None;
                    t.members[i].is_flying = false;
                    t.members[i].queue.push(version);
                } else {
                    t.members[i].write = Write::Held(version);
                }
                step("answer", t);
            }
            Write::Held(version) if m.is_flying && serves == Use::Primary => {
                let mut t = *s;
                t.members[i].write = Write::Owed(version);
                if !self.has(Rule::HoldLook) {
                    t.acknowledged = s.acknowledged.max(version);
                    t.members[i].write = Write::None;
                }
                t.members[i].is_flying = false;
                t.members[i].queue.push(version);
                step("release", t);
            }
            Write::Done(version) => {
                let mut t = *s;
                t.members[i].primary.late_answer();
                t.members[i].write = match t.members[i].primary.late {
                    Late::Answered => Write::Held(version),
                    _ => Write::None,
                };
                step("answer", t);
            }
            Write::Held(_) | Write::Owed(_) | Write::None => {}
        }
        let is_unanswered = m.write.may_be_executed() || matches!(m.write, Write::Done(_));
        if is_unanswered && !m.reaches {
            let mut t = *s;
            t.members[i].write = Write::None;
            t.members[i].is_flying = false;
            t.members[i].primary.late_gone();
            step("drop", t);
        }

        // ---- time, loss, looks
        if p.has_lease {
            let mut t = *s;
            t.members[i].primary.lapse();
            step("lapse", t);
        }
        if p.answers && !m.reaches {
            let mut t = *s;
            t.members[i].primary.lost();
            self.skip_wait(&mut t, i, p.mode);
            step("lost", t);
        }
        if p.is_announcing() {
            let mut t = *s;
            self.announce(&mut t, i);
            step("announce", t);
        }
        {
            let mut t = *s;
            let seen = match p.has_line() {
                false if !self.has(Rule::All) => Listed::default(),
                _ => listed,
            };
            let own = &mut t.members[i];
            let has_reason = self.announces_again || p.late != Late::None || !p.answers;
            if !has_reason && p.has_line() && !listed.mine && p.mode != Mode::Leaving {
                own.primary = Primary {
                    mode: Mode::Parked,
                    has_lease: false,
                    debt: Debt::None,
                    ..own.primary
                };
            } else {
                own.primary.looked(seen);
            }
            if m.line {
                (own.has_hold, own.holds_back) = (true, p.answers || !self.vote);
            }
            self.skip_wait(&mut t, i, p.mode);
            step("look", t);
        }
        if p.mode == Mode::Parked {
            let mut t = *s;
            t.members[i].primary.patience_over();
            self.skip_wait(&mut t, i, p.mode);
            step("impatient", t);
        }
        let is_seen = |o: &Member| o.primary.mode == Mode::InUse && o.primary.has_lease;
        let old_view = self.others(s, i).any(|o| is_seen(o) || !o.queue.is_empty());
        if m.line && p.has_line() && !p.has_waited && (!old_view || !self.has(Rule::Wait)) {
            let mut t = *s;
            t.members[i].primary.waited();
            step("waited", t);
        }
        {
            let mut t = *s;
            if t.members[i].primary.replace(m.queue.is_empty()) {
                if m.write == Write::Open {
                    t.written = next;
                    t.members[i].write = Write::Void(next);
                }
                step("replace", t);
            }
        }
        self.returning(s, i, &mut step)
    }

    /// Without `WaitAgain`, whoever was parked goes on to Y as soon as its line stands.
    fn skip_wait(&self, t: &mut State<N>, i: usize, before: Mode) {
        let p = &t.members[i].primary;
        if !self.has(Rule::WaitAgain) && before == Mode::Parked && p.is_announcing() {
            self.announce(t, i);
            t.members[i].primary.waited();
            t.members[i].primary.replace(true);
        }
    }

    fn returning(
        &self,
        s: &State<N>,
        i: usize,
        step: &mut impl FnMut(&'static str, State<N>),
    ) -> Result<(), &'static str> {
        let m = &s.members[i];
        // What [`Primary`] is told of late writes at X and of writes to Y.
        let mut believed = m.primary;
        if !self.has(Rule::Drain) {
            believed.late = Late::None;
        }
        let is_idle = !m.sending && !m.queue.owes_mirrors() || !self.has(Rule::PartnerDrain);
        if self.kinds.early && believed.may_tell_early() && m.reaches {
            let mut t = *s;
            t.primary = 0;
            t.members[i].primary.told();
            step("tell-early", t);
        }
        let all_back = s.dead == 0
            && self
                .others(s, i)
                .all(|o| !o.line || o.has_hold && o.holds_back);
        if (all_back || !self.vote) && believed.stop(is_idle) {
            let mut t = *s;
            t.members[i].primary.mode = believed.mode;
            step("stop", t);
        }
        let p = &m.primary;
        if p.may_tell() && m.reaches {
            let mut t = *s;
            if p.debt == Debt::Keys || self.has(Rule::Flush) {
                t.primary = 0;
            }
            t.members[i].primary.told();
            step("tell", t);
        }
        if matches!(p.debt, Debt::Flush { is_due: false }) && self.flush_is_due(s, i) {
            let mut t = *s;
            t.members[i].primary.flush_is_due();
            step("due", t);
        }
        {
            let mut t = *s;
            t.members[i].primary.resume();
            step("resume", t);
        }

        // ---- the own line goes out; one compare-and-set at a time
        if m.line && (m.exchange.is_none() || !self.has(Rule::Cas)) {
            let mut t = *s;
            let mut leaving = *p;
            // Without `Sole` it hears of no other line.
            leaving.is_sole |= !self.has(Rule::Sole);
            if leaving.leave() {
                t.members[i].primary.mode = leaving.mode;
                t.members[i].same_list |= p.late != Late::Answered;
                step("leave", t);
            }
        }
        if p.mode == Mode::Leaving {
            let mut t = *s;
            let is_same = m.same_list || !self.has(Rule::Cas) || !self.has(Rule::Sole);
            if m.line && is_same {
                self.write_back(&mut t, i);
                t.members[i].line = false;
                let left = self.listed(&t, i);
                if t.members[i].primary.left(left) {
                    let Write::Held(version) = m.write else {
                        panic!("an answer that never came counts");
                    };
                    t.members[i].write = Write::Owed(version);
                    if !self.has(Rule::LateLook) {
                        t.acknowledged = s.acknowledged.max(version);
                        t.members[i].write = Write::None;
                    }
                    t.members[i].queue.push(version);
                }
                step("left", t);
            } else {
                t.members[i].primary.not_left();
                step("not-left", t);
            }
        }

        if m.stray {
            let mut t = *s;
            self.changed(&mut t);
            t.members[i].line = false;
            step("stray", t);
        }

        // ---- a debt is taken over
        let mut read = Exchange {
            gone: 0,
            all: 0,
            dead: s.dead,
            is_stray: false,
        };
        for (j, o) in s.members.iter().enumerate() {
            read.all |= u8::from(o.line) << j;
            let is_gone = j != i && o.line && (!o.has_hold || !self.has(Rule::Gone));
            read.gone |= u8::from(is_gone) << j;
        }
        if p.may_take_over() && m.exchange.is_none() && (read.is_needed()) {
            let mut t = *s;
            t.members[i].exchange = Some(read);
            step("see", t);
        }
        if let Some(read) = m.exchange {
            if !s.anybody_gone {
                return Err("a server is flushed though nobody died");
            }
            let mut t = *s;
            self.write_back(&mut t, i);
            for (j, o) in t.members.iter_mut().enumerate() {
                o.line &= read.gone >> j & 1 == 0;
            }
            t.dead -= s.dead.min(read.dead);
            let own = &mut t.members[i];
            if !read.is_stray {
                own.primary.taken_over();
            }
            (own.line, own.has_hold) = (true, true);
            own.holds_back = own.primary.answers || !self.vote;
            step("take-over", t);
        }
        Ok(())
    }

    pub(super) fn faults(&self, s: &State<N>, steps: &mut Vec<Move<State<N>>>) {
        let mut step = |name: &'static str, who: usize, to: State<N>| {
            steps.push(Move {
                name,
                who: who as u8,
                is_fault: true,
                to,
            });
        };
        let mut f = *s;
        f.faults += 1;
        for i in 0..N {
            let m = &s.members[i];
            if self.kinds.cut && m.reaches {
                let mut t = f;
                t.members[i].reaches = false;
                step("CUT", i, t);
            }
            if self.kinds.crash && m.queue.is_empty() {
                let mut t = f;
                t.anybody_gone = true;
                t.dead += u8::from(m.line);
                match m.write {
                    Write::Open => add_ghost(&mut t.ghosts, OPEN),
                    Write::Void(version) => add_ghost(&mut t.ghosts, version),
                    _ => {}
                }
                for o in &mut t.members {
                    o.exchange = o.exchange.filter(|e| !e.names(i));
                }
                t.members[i] = Member::new(m.reaches);
                if !self.unknown_is_silent {
                    t.members[i].primary.know();
                }
                step("CRASH", i, t);
            }
            if m.line && m.has_hold {
                let mut t = f;
                t.anybody_gone = true;
                t.members[i].has_hold = false;
                if self.kinds.evict {
                    step("EVICT", i, t);
                }
                t.members[i].primary.lapse();
                if self.kinds.stall {
                    step("STALL", i, t);
                }
            }
            if self.kinds.unsure && m.primary.mode == Mode::Leaving && m.line && m.same_list {
                let mut t = f;
                let own = &mut t.members[i];
                own.stray = true;
                match self.has(Rule::Unsure) {
                    true => own.primary.left_or_not(),
                    false => own.primary.not_left(),
                }
                step("UNSURE", i, t);
            }
            if let Some(read) = m.exchange.filter(|e| self.kinds.unsure && !e.is_stray) {
                let mut t = f;
                let own = &mut t.members[i];
                own.exchange = Some(Exchange {
                    is_stray: true,
                    ..read
                });
                if self.has(Rule::UnsureOver) {
                    own.primary.taken_over_or_not();
                }
                step("UNSURE", i, t);
            }
            let may_write = m.primary.serves() == Use::Primary
                || !self.has(Rule::Lease) && m.primary.mode == Mode::InUse && m.primary.answers;
            let begins =
                may_write && m.reaches && m.write == Write::None && s.written < self.writes;
            let goes_on = m.is_flying && !matches!(m.write, Write::Held(_));
            if self.kinds.late && (begins || goes_on) {
                let mut t = f;
                let own = &mut t.members[i];
                own.primary.write_is_late();
                own.is_flying = false;
                if begins {
                    own.write = Write::Open;
                }
                step("LATE", i, t);
            }
        }
        if self.kinds.stop && s.members.iter().any(|m| m.reaches) {
            let mut t = f;
            t.members.iter_mut().for_each(|m| m.reaches = false);
            step("STOP", NOBODY as usize, t);
        }
        if self.kinds.restart {
            let mut t = f;
            t.primary = 0;
            t.ghosts = [0; GHOSTS];
            for m in &mut t.members {
                if m.write.may_be_executed() || matches!(m.write, Write::Done(_)) {
                    m.write = Write::None;
                    m.is_flying = false;
                    m.primary.late_gone();
                }
                if m.primary.answers && m.reaches {
                    m.primary.connected();
                }
            }
            step("RESTART", NOBODY as usize, t);
        }
    }
}

fn add_ghost(ghosts: &mut [u8; GHOSTS], write: u8) {
    let free = ghosts.iter().position(|g| *g == 0);
    ghosts[free.expect("fewer faults than ghosts")] = write;
    ghosts.sort_unstable_by(|a, b| b.cmp(a));
}
