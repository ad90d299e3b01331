//! Servers of a run: they see to their links in their own time, and fail.

use super::history::{self, Kind, lossy};
use super::plan::Mode;
use super::sim::{Event, MS, Sim};
use crate::common::world::{Connect, Done, SECOND, State};

/// A server that restarts sooner than so many nanoseconds after its start is not seen to: uptimes are whole
/// seconds, and a restart is told by more than two.
const UPTIME_TELLS: u64 = 4 * SECOND;

/// How a server gets on with a link.
#[derive(Default, Debug)]
pub struct Pace {
    serve_due: bool,
    reply_due: bool,
    /// In a story: how much longer than its server's others it takes, in nanoseconds.
    lag: u64,
}

impl Sim {
    /// Nothing is wrong with any server.
    pub fn all_well(&self) -> bool {
        let mut all = self.world.servers.values();
        all.all(|s| s.state == State::Well)
    }

    /// How long a server takes for one thing.
    fn pace(&mut self, conn: usize) -> u64 {
        let port = self.world.links[&conn].port;
        if self.exact {
            let lag = self.lags.get(&port).copied().unwrap_or(0);
            return lag + self.paces[&conn].lag + 1000;
        }
        match self.world.servers[&port].state {
            State::Slow(most) => self.rng.below(most),
            _ if self.rings.is_slow(self.world.now) => self.rng.below(self.plan.timeout * MS / 8),
            _ if self.rng.often(20) => self.rng.range(MS, 20 * MS),
            _ => self.rng.range(10_000, self.plan.pace),
        }
    }

    /// The server will read a link.
    pub fn schedule_serve(&mut self, conn: usize) {
        let due = |p: &mut Pace| std::mem::replace(&mut p.serve_due, true);
        let linked = self.world.links.contains_key(&conn);
        if linked && !self.paces.get_mut(&conn).is_none_or(due) {
            let at = self.world.now + self.pace(conn);
            self.at(at, Event::Serve(conn));
        }
    }

    /// The server will write a link.
    pub fn schedule_reply(&mut self, conn: usize) {
        let due = |p: &mut Pace| std::mem::replace(&mut p.reply_due, true);
        let says = (self.world.links.get(&conn)).is_some_and(|l| !l.output.is_empty());
        if says && !self.paces.get_mut(&conn).is_none_or(due) {
            let at = self.world.now + self.pace(conn);
            self.at(at, Event::Reply(conn));
        }
    }

    fn stands_still(&self, conn: usize) -> bool {
        let link = self.world.links.get(&conn);
        link.is_none_or(|l| {
            let is_cut = self.world.cuts.contains(&(l.proxy, l.port));
            is_cut || self.world.servers[&l.port].stands_still()
        })
    }

    /// The server reads a link and does some of what stands there.
    pub fn serve(&mut self, conn: usize) -> Result<(), String> {
        if let Some(pace) = self.paces.get_mut(&conn) {
            pace.serve_due = false;
        }
        if self.stands_still(conn) {
            return Ok(());
        }
        // Piece by piece a server that takes its time would be a slow one.
        let in_pieces = !self.exact && !self.rings.is_slow(self.world.now);
        let most = match in_pieces && self.rng.often(200) {
            true => self.rng.range(1, 2000) as usize,
            false => 1 << 20,
        };
        let got_some = self.world.read_link(conn, most) > 0;
        let mut commands = match in_pieces && self.rng.often(300) {
            true => self.rng.range(1, 4),
            false => 1000,
        };
        let mut more = true;
        while commands > 0 && more {
            more = self.command(conn)?;
            commands -= 1;
        }
        let (left, fin) = {
            let out = &self.world.net.borrow().conns[conn].out;
            (!out.is_empty(), out.fin)
        };
        if left || more || (got_some && fin) {
            self.schedule_serve(conn);
        } else if !got_some && self.world.end_link(conn) {
            self.note(|| format!("c{conn} read to its end and closed by its server"));
        }
        self.schedule_reply(conn);
        Ok(())
    }

    /// One request, if one is whole.
    fn command(&mut self, conn: usize) -> Result<bool, String> {
        let Some(done) = self.world.do_one(conn) else {
            return Ok(false);
        };
        let Some(link) = self.world.links.get_mut(&conn) else {
            return Ok(false);
        };
        link.output.put(&done.answer);
        let port = link.port;
        self.note(|| {
            let (line, data) = (done.words.join(" "), lossy(&done.data));
            format!("s{port} c{conn} <- {line} {data}: {}", lossy(&done.answer))
        });
        let applied = self
            .created(port, &done)
            .and_then(|()| self.apply(port, &done));
        applied.map_err(|why| format!("s{port} c{conn}: {why}"))?;
        Ok(true)
    }

    /// A key that its backup holds is not created once more on its primary, as long as magent
    /// cannot know better than to ask.
    fn created(&mut self, port: u16, done: &Done) -> Result<(), String> {
        let (verb, answer) = (&done.words[0][..], &done.answer);
        let created = match verb {
            "add" => answer.starts_with(b"STORED"),
            "ms" => answer.starts_with(b"HD") && done.words.iter().any(|w| w == "ME"),
            "mg" => answer.starts_with(b"VA 0 ") && lossy(answer).contains(" W"),
            "ma" => done.words.iter().any(|w| w == "N0") && answer.ends_with(b"\r\n0\r\n"),
            _ => false,
        };
        let plan = &self.plan;
        let known = plan.creations
            && plan.mode != Mode::Many
            && plan.warm > 0
            && !plan.habits.expire
            && !plan.mad;
        let key = done
            .words
            .get(1)
            .and_then(|w| history::key_number(w.as_bytes()));
        let (Some(key), true) = (key, created && known) else {
            return Ok(());
        };
        // A value that was done anywhere before is magent's own copy.
        if let Some((_, write)) = history::tags(&done.data).unwrap_or_default().first() {
            if !self.created.insert(*write) || self.applied_anywhere(*write) {
                return Ok(());
            }
        } else if verb == "add" {
            // So may be a counter's.
            return Ok(());
        } else if verb == "ma" && !self.created.insert(counted_by(done)) {
            // It went to the backup when the primary did not answer in time, and is run late.
            return Ok(());
        }
        let (primary, backup) = self.place(key);
        let Some(backup) = backup.filter(|_| port == primary) else {
            return Ok(());
        };
        // One that is known to be away, or was when the request came, is not asked.
        let now = self.world.now;
        let is_known = now < self.away + self.plan.window();
        if is_known || self.world.servers[&backup].state != State::Well {
            return Ok(());
        }
        let held = self.world.servers[&backup].store.get(&done.words[1], now);
        match held.is_some() && self.history.is_there(key, now) {
            true => Err(format!(
                "{verb} created {}, which its backup holds",
                done.words[1]
            )),
            false => Ok(()),
        }
    }

    fn applied_anywhere(&self, write: u64) -> bool {
        let mut ports = self.plan.ports();
        ports.any(|p| self.applied.contains_key(&(p, write)))
    }

    /// Counts a write that was done: never twice on one server.
    fn apply(&mut self, port: u16, done: &Done) -> Result<(), String> {
        let creates = |w: &String| w == "ME" || w == "Me";
        let write = match &done.words[0][..] {
            // An add may be magent's own copy.
            "ms" if done.words.iter().any(creates) => None,
            "set" | "replace" | "append" | "prepend" | "cas" | "ms" => {
                let stored = [&b"STORED"[..], b"HD"]
                    .iter()
                    .any(|w| done.answer.starts_with(w));
                let tags = history::tags(&done.data).unwrap_or_default();
                (stored && tags.len() == 1).then(|| tags[0].1)
            }
            // The delta of a count is its write's number and one.
            "incr" | "ma" => {
                let write = counted_by(done);
                let known = (self.history.writes.get(write as usize))
                    .is_some_and(|w| w.kind == Kind::Count);
                if !known {
                    return Err(format!("nobody asked for {:?}", done.words));
                }
                let counted = done.answer.starts_with(b"VA") || done.answer[0].is_ascii_digit();
                // One that was made has its first value.
                let made = done.words[0] == "ma" && done.answer.ends_with(b"\r\n0\r\n");
                (counted && !made).then_some(write)
            }
            _ => None,
        };
        let Some(write) = write else { return Ok(()) };
        let n = self.applied.entry((port, write)).or_default();
        *n += 1;
        match n {
            1 => Ok(()),
            _ => Err(format!("write {write} was done {n} times on one server")),
        }
    }

    /// The server writes some of what it has to say.
    pub fn reply(&mut self, conn: usize) {
        if let Some(pace) = self.paces.get_mut(&conn) {
            pace.reply_due = false;
        }
        if self.stands_still(conn) {
            return;
        }
        let len = self.world.links[&conn].output.len();
        let most = match !self.exact && self.rng.often(300) {
            true => self.rng.range(1, len as u64 + 1) as usize,
            false => len,
        };
        let wrote = self.world.write_link(conn, most) > 0;
        if self.world.links[&conn].output.is_empty() {
            self.schedule_serve(conn);
        } else if wrote {
            self.schedule_reply(conn);
        }
    }

    /// Something goes wrong, if it is time for it.
    pub fn fault(&mut self) {
        if self.ending {
            return;
        }
        if self.plan.reloads && self.rest.is_none() && self.runs(0) && self.rng.often(200) {
            self.note_fault("the configuration is read again".into());
            self.world.reload(self.plan.config_of(&self.rings.now));
        }
        let single = self.plan.mode == Mode::Single;
        if single && !self.calm {
            return self.after(50 * MS, 500 * MS, Event::Fault);
        }
        let ports = self.plan.ports();
        let server = self.rng.range(ports.start.into(), ports.end.into()) as u16;
        self.epoch += 1;
        self.calm = false;
        if self.plan.magents > 1 {
            let is_over = self.rng.often(400);
            self.fail_magent(server);
            if is_over {
                return self.after(100 * MS, 4 * SECOND, Event::Fault);
            }
        }
        if self.world.servers[&server].state == State::Well {
            if self.plan.long_stops && self.rng.often(400) {
                self.stop_long(server);
            } else {
                let longest = if single { 20 } else { 70 };
                let short = self.rng.range(10 * MS, 3 * SECOND);
                let long = self.rng.range(SECOND, longest * SECOND);
                let length = if self.rng.often(700) { short } else { long };
                self.fail(server, length);
            }
            if self.plan.magents > 1 && self.rng.often(300) {
                let magent = self.rng.below(self.plan.magents as u64) as usize;
                self.after(50 * MS, 3 * SECOND, Event::Kill(magent));
            }
        }
        self.after(100 * MS, 4 * SECOND, Event::Fault);
    }

    /// An operator takes a server out of use.
    pub fn drain(&mut self, server: u16) {
        let done = self.world.proxy().drain_server(&name(server));
        assert!(done.is_ok() || self.plan.moves, "{done:?}");
        if done.is_ok() {
            self.note_fault(format!("s{server} is drained"));
            self.drained.insert(server);
        }
    }

    /// An operator uses a server again.
    pub fn end_drain(&mut self, server: u16) {
        if self.drained.remove(&server) {
            self.note_fault(format!("s{server} is used again"));
            self.healed = self.world.now;
            let done = self.world.proxy().end_drain(&name(server));
            // It may have left the configuration meanwhile.
            assert!(done.is_ok() || self.plan.moves, "{done:?}");
        }
    }

    fn fail(&mut self, server: u16, length: u64) {
        let may_drain = self.plan.drains && self.rest.is_none();
        if may_drain && self.rng.often(300) && !self.drained.contains(&server) {
            self.drain(server);
            return self.after(length, length + 1, Event::EndDrain(server));
        }
        let most = self.plan.timeout * MS * 3 / 2;
        let state = match self.rng.below(12) {
            0..=2 => State::Gone,
            3..=5 => State::Hung,
            6 => State::Dark,
            7..=8 => State::Slow(self.rng.range(MS, most)),
            9 if self.plan.mad => State::Full,
            9 => State::Hung,
            _ => return self.cut(server),
        };
        self.note_fault(format!("for {} ms:", length / MS));
        self.become_state(server, state);
        self.after(length, length + 1, Event::Heal(server));
    }

    /// A server stops for longer than anybody waits for what it was sent. Its links may be reset
    /// meanwhile; it still does what it has received.
    fn stop_long(&mut self, server: u16) {
        let length = self.rng.range(31 * SECOND, 45 * SECOND);
        self.note_fault(format!("for {} ms:", length / MS));
        self.become_state(server, State::Hung);
        self.after(length, length + 1, Event::Heal(server));
        if self.rng.often(300) {
            self.after(MS, length, Event::Sever(server));
        }
    }

    /// Somebody between magent and a server resets all its links.
    pub fn sever_links(&mut self, server: u16) {
        self.note_fault(format!("all links of s{server} are reset on their way"));
        for conn in self.world.links_of(server) {
            self.sever(conn);
        }
    }

    fn sever(&mut self, conn: usize) {
        self.world.net.borrow_mut().sever(conn);
        if !self.stands_still(conn) {
            self.after(10_000, 300 * MS, Event::Late(conn));
        }
    }

    /// A server does all that it has received of a link that magent has given up.
    pub fn run_late(&mut self, conn: usize) -> Result<(), String> {
        if self.stands_still(conn) {
            return Ok(());
        }
        self.world.read_link(conn, usize::MAX);
        while self.command(conn)? {}
        self.world.write_link(conn, usize::MAX);
        if self.world.end_link(conn) {
            self.note(|| format!("c{conn} done late and closed by its server"));
        }
        Ok(())
    }

    /// Something is wrong with a server from now on.
    pub fn become_state(&mut self, server: u16, state: State) {
        if state == State::Well {
            return self.heal(server);
        }
        self.note_fault(format!("s{server} becomes {state:?}"));
        if state == State::Gone {
            self.cut_links(server);
        }
        self.world.become_state(server, state);
    }

    /// All links of a server are closed by it.
    pub fn cut_links(&mut self, server: u16) {
        for conn in self.world.links_of(server) {
            let reset = self.rng.often(500);
            self.world.drop_link(conn, reset);
        }
    }

    /// In a story: these links take so many milliseconds longer, the others do not.
    pub fn lag_links(&mut self, links: &[usize], ms: u64) {
        for (conn, pace) in &mut self.paces {
            pace.lag = if links.contains(conn) { ms * MS } else { 0 };
        }
    }

    /// A link is closed, or gets nonsense, and the server lives.
    fn cut(&mut self, server: u16) {
        let links = self.world.links_of(server);
        if links.is_empty() {
            return;
        }
        let conn = self.rng.pick(&links);
        self.healed = self.world.now;
        if self.plan.mad && self.rng.often(500) {
            if let Some(link) = self.world.links.get_mut(&conn) {
                link.output.put(b"NONSENSE\r\n");
            }
            self.note_fault(format!("s{server} c{conn} speaks nonsense"));
            return self.schedule_reply(conn);
        }
        if self.plan.long_stops && self.rng.often(500) {
            self.note_fault(format!("c{conn} of s{server} is reset on its way"));
            return self.sever(conn);
        }
        self.note_fault(format!("s{server} closes c{conn}"));
        let reset = self.rng.often(500);
        self.world.drop_link(conn, reset);
    }

    /// The server is well again; a stopped one goes on with what it finds.
    pub fn heal(&mut self, server: u16) {
        let was = self.world.servers[&server].state;
        if was == State::Well {
            return;
        }
        self.world.become_state(server, State::Well);
        self.epoch += 1;
        self.note_fault(format!("s{server} was {was:?} and is well"));
        self.healed = self.world.now;
        if was == State::Gone {
            let now = self.world.now;
            let store = &mut self.world.servers.entry(server).or_default().store;
            self.unseen_restart |= now < store.started + UPTIME_TELLS;
            store.restart(now);
        }
        for conn in self.world.links_of(server) {
            let (connect, gone) = {
                let c = &self.world.net.borrow().conns[conn];
                (c.connect, c.gone)
            };
            if connect == Connect::Pending {
                self.after(20_000, MS, Event::Connected(conn));
            }
            // Its threads wake in any order.
            if gone && self.plan.long_stops && !self.exact {
                self.after(10_000, 800 * MS, Event::Late(conn));
                continue;
            }
            self.schedule_serve(conn);
            self.schedule_reply(conn);
        }
    }
}

/// A server as magent names it.
fn name(server: u16) -> String {
    format!("127.0.0.1:{server}")
}

/// The number of the write that an `incr` or `ma` does: its delta is one more.
fn counted_by(done: &Done) -> u64 {
    let flag = |w: &String| w.strip_prefix('D')?.parse().ok();
    let delta: Option<u64> = match &done.words[0][..] {
        "incr" => done.words[2].parse().ok(),
        _ => done.words[2..].iter().find_map(flag),
    };
    delta.unwrap_or(1).wrapping_sub(1)
}
