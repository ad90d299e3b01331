//! What can happen next.

use super::*;

impl<const N: usize> World<N> {
    /// What magent `i` uses for the key; without a rule, what it would use then.
    fn serves(&self, m: &Member) -> Use {
        let p = &m.primary;
        if !self.has(Rule::PartnerLease) && p.mode == Mode::Replaced
            || !self.has(Rule::Stop) && p.mode == Mode::Syncing && p.has_waited
            || !self.has(Rule::Leave) && p.mode == Mode::Leaving && p.has_lease && p.has_waited
        {
            return Use::Partner;
        }
        match !self.has(Rule::Lease) && p.mode == Mode::InUse && p.answers {
            true => Use::Primary,
            false => p.serves(),
        }
    }

    /// Reads and writes of clients.
    pub(super) fn clients(
        &self,
        s: &State<N>,
        i: usize,
        steps: &mut Steps<State<N>>,
    ) -> Result<(), &'static str> {
        let m = &s.members[i];
        let got = match self.serves(m) {
            Use::Primary if m.reaches => self.clients_of_primary(s, i, steps),
            // Own mirrors go before, on the same link.
            Use::Partner if !m.queue.owes_mirrors() => self.clients_of_partner(s, i, steps),
            _ => None,
        };
        if got.is_some_and(|version| version < s.acknowledged) {
            return Err("an old value was read");
        }
        if m.sending {
            let next = s.written + 1;
            let mut t = *s;
            (t.partner, t.written, t.acknowledged) = (next, next, next);
            t.members[i].sending = false;
            if self.has(Rule::OwesAgain) {
                t.members[i].primary.owes_keys();
            }
            steps.add("sent-partner", t);
        }
        Ok(())
    }

    /// What is read there.
    fn clients_of_primary(
        &self,
        s: &State<N>,
        i: usize,
        steps: &mut Steps<State<N>>,
    ) -> Option<u8> {
        let next = s.written + 1;
        if s.written < self.writes {
            let mut t = *s;
            (t.primary, t.written, t.acknowledged) = (next, next, next);
            t.members[i].queue.push(next);
            steps.add("write", t);
            if self.kinds.flying && s.members[i].write == Write::None {
                let mut t = *s;
                t.members[i].write = Write::Open;
                t.members[i].is_flying = true;
                steps.add("send", t);
            }
        }
        if s.primary > 0 {
            return Some(s.primary);
        }
        // Answers and mirrors on their way take less time than a primary that comes back.
        let is_mirroring =
            |o: &Member| !o.queue.is_empty() || o.is_flying && matches!(o.write, Write::Done(_));
        if s.partner == 0 || s.members.iter().any(is_mirroring) {
            return None;
        }
        let mut t = *s;
        t.primary = s.partner;
        steps.add("fetch", t);
        Some(s.partner)
    }

    /// What is read there.
    fn clients_of_partner(
        &self,
        s: &State<N>,
        i: usize,
        steps: &mut Steps<State<N>>,
    ) -> Option<u8> {
        let (m, next) = (&s.members[i], s.written + 1);
        if s.written < self.writes {
            let mut t = *s;
            (t.partner, t.written, t.acknowledged) = (next, next, next);
            t.members[i].primary.owes_keys();
            steps.add("write-partner", t);
        }
        let sending = s.members.iter().filter(|o| o.sending);
        let is_room = s.written + (sending.count() as u8) < self.writes;
        if self.kinds.slow && m.primary.mode == Mode::Replaced && !m.sending && is_room {
            let mut t = *s;
            t.members[i].primary.owes_keys();
            t.members[i].sending = true;
            steps.add("send-partner", t);
        }
        (s.partner > 0).then_some(s.partner)
    }

    /// Mirrors, and the look at X after each.
    pub(super) fn mirrors(&self, s: &State<N>, i: usize, steps: &mut Steps<State<N>>) {
        let m = &s.members[i];
        {
            let mut t = *s;
            if let Some(version) = t.members[i].queue.mirror(self.has(Rule::Again)) {
                t.partner = version;
                steps.add("mirror", t);
            }
        }
        {
            let mut t = *s;
            if let Some(version) = t.members[i].queue.look() {
                let is_last = t.members[i].queue.is_empty();
                let is_seen = m.reaches && m.primary.mode == Mode::InUse;
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
                steps.add(if is_seen { "look-again" } else { "doubt" }, t);
            }
        }
    }

    /// A late write is executed at some time, or lost with the link.
    pub(super) fn late_write(&self, s: &State<N>, i: usize, steps: &mut Steps<State<N>>) {
        let (m, next) = (&s.members[i], s.written + 1);
        let uses_primary = self.serves(m) == Use::Primary;
        match m.write {
            Write::Open => {
                let mut t = *s;
                (t.primary, t.written) = (next, next);
                t.members[i].write = Write::Done(next);
                steps.add("execute", t);
            }
            Write::Void(version) => {
                let mut t = *s;
                t.primary = version;
                t.members[i].write = Write::None;
                t.members[i].primary.late_answer();
                steps.add("execute", t);
            }
            Write::Done(version) if m.is_flying => {
                let mut t = *s;
                if uses_primary || !self.has(Rule::Hold) {
                    t.acknowledged = s.acknowledged.max(version);
                    t.members[i].write = Write::None;
                    t.members[i].is_flying = false;
                    t.members[i].queue.push(version);
                } else {
                    t.members[i].write = Write::Held(version);
                }
                steps.add("answer", t);
            }
            Write::Held(version) if m.is_flying && uses_primary => {
                let mut t = *s;
                t.members[i].write = Write::Owed(version);
                if !self.has(Rule::HoldLook) {
                    t.acknowledged = s.acknowledged.max(version);
                    t.members[i].write = Write::None;
                }
                t.members[i].is_flying = false;
                t.members[i].queue.push(version);
                steps.add("release", t);
            }
            Write::Done(version) => {
                let mut t = *s;
                t.members[i].primary.late_answer();
                t.members[i].write = match t.members[i].primary.late {
                    Late::Answered => Write::Held(version),
                    _ => Write::None,
                };
                steps.add("answer", t);
            }
            Write::Held(_) | Write::Owed(_) | Write::None => {}
        }
        let is_unanswered = m.write.may_be_executed() || matches!(m.write, Write::Done(_));
        if is_unanswered && !m.reaches {
            let mut t = *s;
            t.members[i].write = Write::None;
            t.members[i].is_flying = false;
            t.members[i].primary.late_gone();
            steps.add("drop", t);
        }
    }

    /// What passes, and what is lost.
    pub(super) fn time(&self, s: &State<N>, i: usize, steps: &mut Steps<State<N>>) {
        let m = &s.members[i];
        let p = &m.primary;
        if p.has_lease {
            let mut t = *s;
            t.members[i].primary.lapse();
            steps.add("lapse", t);
        }
        if p.answers && !m.reaches {
            let mut t = *s;
            t.members[i].primary.lost();
            self.skip_wait(&mut t, i, p.mode);
            steps.add("lost", t);
        }
        if p.is_announcing() {
            let mut t = *s;
            self.announce(&mut t, i);
            steps.add("announce", t);
        }
        if p.mode == Mode::Parked {
            let mut t = *s;
            t.members[i].primary.patience_over();
            self.skip_wait(&mut t, i, p.mode);
            steps.add("impatient", t);
        }
        let is_seen = |o: &Member| o.primary.mode == Mode::InUse && o.primary.has_lease;
        let old_view = parts::others(&s.members, i).any(|o| is_seen(o) || !o.queue.is_empty());
        if m.line && p.has_line() && !p.has_waited && (!old_view || !self.has(Rule::Wait)) {
            let mut t = *s;
            t.members[i].primary.waited();
            steps.add("waited", t);
        }
        {
            let mut t = *s;
            if t.members[i].primary.replace(m.queue.is_empty()) {
                if m.write == Write::Open {
                    t.written += 1;
                    t.members[i].write = Write::Void(t.written);
                }
                steps.add("replace", t);
            }
        }
    }

    /// It looks at the list.
    pub(super) fn look(&self, s: &State<N>, i: usize, steps: &mut Steps<State<N>>) {
        let m = &s.members[i];
        let p = &m.primary;
        let listed = parts::listed(&s.members, i, s.dead);
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
        steps.add("look", t);
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

    /// X answers again: the journal is told, and X is used.
    pub(super) fn back(&self, s: &State<N>, i: usize, steps: &mut Steps<State<N>>) {
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
            steps.add("tell-early", t);
        }
        let all_back = s.dead == 0
            && parts::others(&s.members, i).all(|o| !o.line || o.has_hold && o.holds_back);
        if (all_back || !self.vote) && believed.stop(is_idle) {
            let mut t = *s;
            t.members[i].primary.mode = believed.mode;
            steps.add("stop", t);
        }
        let p = &m.primary;
        if p.may_tell() && m.reaches {
            let mut t = *s;
            if p.debt == Debt::Keys || self.has(Rule::Flush) {
                t.primary = 0;
            }
            t.members[i].primary.told();
            steps.add("tell", t);
        }
        if matches!(p.debt, Debt::Flush { is_due: false }) && self.flush_is_due(s, i) {
            let mut t = *s;
            t.members[i].primary.flush_is_due();
            steps.add("due", t);
        }
        {
            let mut t = *s;
            t.members[i].primary.resume();
            steps.add("resume", t);
        }
    }

    /// Its own line goes out; one compare-and-set at a time.
    pub(super) fn take_line_out(&self, s: &State<N>, i: usize, steps: &mut Steps<State<N>>) {
        let m = &s.members[i];
        let p = &m.primary;
        if m.line && (m.exchange.is_none() || !self.has(Rule::Cas)) {
            let mut t = *s;
            let mut leaving = *p;
            // Without `Sole` it hears of no other line.
            leaving.is_sole |= !self.has(Rule::Sole);
            if leaving.leave() {
                t.members[i].primary.mode = leaving.mode;
                t.members[i].same_list |= p.late != Late::Answered;
                steps.add("leave", t);
            }
        }
        if p.mode == Mode::Leaving {
            let mut t = *s;
            let is_same = m.same_list || !self.has(Rule::Cas) || !self.has(Rule::Sole);
            if m.line && is_same {
                self.write_back(&mut t, i);
                t.members[i].line = false;
                let left = parts::listed(&t.members, i, t.dead);
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
                steps.add("left", t);
            } else {
                t.members[i].primary.not_left();
                steps.add("not-left", t);
            }
        }

        if m.stray {
            let mut t = *s;
            self.changed(&mut t);
            t.members[i].line = false;
            steps.add("stray", t);
        }
    }

    /// It takes over what somebody who is gone owed.
    pub(super) fn take_over(
        &self,
        s: &State<N>,
        i: usize,
        steps: &mut Steps<State<N>>,
    ) -> Result<(), &'static str> {
        let m = &s.members[i];
        let p = &m.primary;
        let read = Exchange::read(&s.members, i, s.dead, self.has(Rule::Gone));
        if p.may_take_over() && m.exchange.is_none() && read.is_needed() {
            let mut t = *s;
            t.members[i].exchange = Some(read);
            steps.add("see", t);
        }
        if let Some(read) = m.exchange {
            if !s.anybody_gone {
                return Err("a server is flushed though nobody died");
            }
            let mut t = *s;
            self.write_back(&mut t, i);
            parts::take_out(&mut t.members, read);
            t.dead -= s.dead.min(read.dead);
            let own = &mut t.members[i];
            if !read.is_stray {
                own.primary.taken_over();
            }
            (own.line, own.has_hold) = (true, true);
            own.holds_back = own.primary.answers || !self.vote;
            steps.add("take-over", t);
        }
        Ok(())
    }

    pub(super) fn heal(&self, s: &State<N>, i: usize, steps: &mut Steps<State<N>>) {
        let m = &s.members[i];
        // A link that is lost with a write in flight takes the server down.
        let must_be_lost = m.is_flying && m.primary.answers;
        if !m.reaches && !must_be_lost {
            let mut t = *s;
            t.members[i].reaches = true;
            t.members[i].primary.connected();
            steps.add("heal", t);
        }
    }

    /// Late writes of the dead are lost or executed.
    pub(super) fn ghosts(&self, s: &State<N>, steps: &mut Steps<State<N>>) {
        for g in (0..GHOSTS).take_while(|g| s.ghosts[*g] != 0) {
            let mut t = *s;
            t.ghosts[g] = 0;
            t.ghosts.sort_unstable_by(|a, b| b.cmp(a));
            steps.add("nobody", t);
            if s.ghosts[g] == OPEN {
                t.written = s.written + 1;
                t.primary = t.written;
            } else {
                t.primary = s.ghosts[g];
            }
            steps.add("ghost", t);
        }
    }

    pub(super) fn faults(&self, s: &State<N>, steps: &mut Steps<State<N>>) {
        let mut f = *s;
        f.faults += 1;
        for i in 0..N {
            steps.by(i);
            self.cut_or_crash(&f, i, steps);
            self.unsure_or_late(&f, i, steps);
        }
        steps.by(NOBODY);
        self.server_faults(&f, steps);
    }

    fn cut_or_crash(&self, f: &State<N>, i: usize, steps: &mut Steps<State<N>>) {
        let m = &f.members[i];
        if self.kinds.cut && m.reaches {
            let mut t = *f;
            t.members[i].reaches = false;
            steps.add("CUT", t);
        }
        if self.kinds.crash && m.queue.is_empty() {
            let mut t = *f;
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
            steps.add("CRASH", t);
        }
        if m.line && m.has_hold {
            let mut t = *f;
            t.anybody_gone = true;
            t.members[i].has_hold = false;
            if self.kinds.evict {
                steps.add("EVICT", t);
            }
            t.members[i].primary.lapse();
            if self.kinds.stall {
                steps.add("STALL", t);
            }
        }
    }

    /// A request is given up without an answer.
    fn unsure_or_late(&self, f: &State<N>, i: usize, steps: &mut Steps<State<N>>) {
        let m = &f.members[i];
        if self.kinds.unsure && m.primary.mode == Mode::Leaving && m.line && m.same_list {
            let mut t = *f;
            let own = &mut t.members[i];
            own.stray = true;
            match self.has(Rule::Unsure) {
                true => own.primary.left_or_not(),
                false => own.primary.not_left(),
            }
            steps.add("UNSURE", t);
        }
        if let Some(read) = m.exchange.filter(|e| self.kinds.unsure && !e.is_stray) {
            let mut t = *f;
            let own = &mut t.members[i];
            own.exchange = Some(Exchange {
                is_stray: true,
                ..read
            });
            if self.has(Rule::UnsureOver) {
                own.primary.taken_over_or_not();
            }
            steps.add("UNSURE", t);
        }
        let begins = self.serves(m) == Use::Primary
            && m.reaches
            && m.write == Write::None
            && f.written < self.writes;
        let goes_on = m.is_flying && !matches!(m.write, Write::Held(_));
        if self.kinds.late && (begins || goes_on) {
            let mut t = *f;
            let own = &mut t.members[i];
            own.primary.write_is_late();
            own.is_flying = false;
            if begins {
                own.write = Write::Open;
            }
            steps.add("LATE", t);
        }
    }

    fn server_faults(&self, f: &State<N>, steps: &mut Steps<State<N>>) {
        if self.kinds.stop && f.members.iter().any(|m| m.reaches) {
            let mut t = *f;
            t.members.iter_mut().for_each(|m| m.reaches = false);
            steps.add("STOP", t);
        }
        if self.kinds.restart {
            let mut t = *f;
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
            steps.add("RESTART", t);
        }
    }
}

fn add_ghost(ghosts: &mut [u8; GHOSTS], write: u8) {
    let free = ghosts.iter().position(|g| *g == 0);
    ghosts[free.expect("fewer faults than ghosts")] = write;
    ghosts.sort_unstable_by(|a, b| b.cmp(a));
}
