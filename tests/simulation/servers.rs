//! Model servers: they read links, answer in their own time, and fail.

use super::history::lossy;
use super::net::{Connect, Edges};
use super::plan::Mode;
use super::store::{self, SECOND, Store};
use super::world::{Event, MS, World};

/// What is wrong with a server.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum State {
    #[default]
    Well,
    /// Stopped: the kernel takes connects and bytes for it.
    Hung,
    /// Stopped, and connects hang too.
    Dark,
    /// Nobody listens; it will be back empty.
    Dead,
    /// Its answers take up to so many nanoseconds.
    Slow(u64),
    /// It can't store.
    Full,
}

/// One server.
#[derive(Default, Debug)]
pub struct Server {
    pub state: State,
    pub store: Store,
    /// In a story: how long it takes for one thing, in nanoseconds.
    pub lag: u64,
}

impl Server {
    /// Nothing is wrong with it.
    pub fn is_well(&self) -> bool {
        self.state == State::Well
    }

    /// Nobody listens.
    pub fn refuses(&self) -> bool {
        self.state == State::Dead
    }

    fn stands_still(&self) -> bool {
        matches!(self.state, State::Hung | State::Dark | State::Dead)
    }
}

/// A server's end of a link.
#[derive(Debug)]
pub struct Peer {
    pub server: usize,
    input: Vec<u8>,
    output: Vec<u8>,
    swallow: usize,
    serve_due: bool,
    reply_due: bool,
    /// In a story: how much longer than its server's others it takes, in nanoseconds.
    lag: u64,
}

impl Peer {
    /// The end of a fresh link.
    pub fn new(server: usize) -> Peer {
        Peer {
            server,
            input: Vec::new(),
            output: Vec::new(),
            swallow: 0,
            serve_due: false,
            reply_due: false,
            lag: 0,
        }
    }
}

impl World {
    /// How long a server takes for one thing.
    fn pace(&mut self, server: usize, link: u64) -> u64 {
        if self.exact {
            return self.servers[server].lag + link + 1000;
        }
        match self.servers[server].state {
            State::Slow(most) => self.rng.below(most),
            _ if self.rng.often(20) => self.rng.range(MS, 20 * MS),
            _ => self.rng.range(10_000, self.plan.pace),
        }
    }

    /// The server will read a link.
    pub fn schedule_serve(&mut self, conn: usize) {
        let Some(peer) = self.peers.get_mut(&conn) else {
            return;
        };
        let (server, lag) = (peer.server, peer.lag);
        if !std::mem::replace(&mut peer.serve_due, true) {
            let at = self.now + self.pace(server, lag);
            self.at(at, Event::Serve(conn));
        }
    }

    /// The server will write a link.
    pub fn schedule_reply(&mut self, conn: usize) {
        let Some(peer) = self.peers.get_mut(&conn) else {
            return;
        };
        let (server, lag) = (peer.server, peer.lag);
        if !peer.output.is_empty() && !std::mem::replace(&mut peer.reply_due, true) {
            let at = self.now + self.pace(server, lag);
            self.at(at, Event::Reply(conn));
        }
    }

    /// A connect comes to its end, if it does.
    pub fn connected(&mut self, conn: usize) {
        let Some(peer) = self.peers.get(&conn) else {
            return;
        };
        let server = peer.server;
        let mut net = self.net.borrow_mut();
        let c = &mut net.conns[conn];
        match self.servers[server].state {
            State::Dark => return,
            State::Dead => c.connect = Connect::Refused,
            _ => c.connect = Connect::Stands,
        }
        let refused = c.connect == Connect::Refused;
        net.edge(
            conn,
            Edges {
                readable: refused,
                writable: true,
                closed: refused,
            },
        );
        drop(net);
        if refused {
            self.peers.remove(&conn);
        }
    }

    /// The server reads a link and does some of what stands there.
    pub fn serve(&mut self, conn: usize) -> Result<(), String> {
        let Some(peer) = self.peers.get_mut(&conn) else {
            return Ok(());
        };
        peer.serve_due = false;
        let server = peer.server;
        if self.servers[server].stands_still() {
            return Ok(());
        }
        let most = if !self.exact && self.rng.often(200) {
            self.rng.range(1, 2000) as usize
        } else {
            1 << 20
        };
        let bytes = self.net.borrow_mut().peer_read(conn, most);
        let got_some = !bytes.is_empty();
        if let Some(peer) = self.peers.get_mut(&conn) {
            peer.input.extend_from_slice(&bytes);
        }
        let mut commands = if !self.exact && self.rng.often(300) {
            self.rng.range(1, 4)
        } else {
            1000
        };
        let mut more = true;
        while commands > 0 && more {
            more = self.command(conn)?;
            commands -= 1;
        }
        let left = self.net.borrow().conns[conn].out.len() > 0;
        if left || more {
            self.schedule_serve(conn);
        } else if !got_some {
            self.input_ended(conn);
        } else if self.net.borrow().conns[conn].out.fin {
            self.schedule_serve(conn);
        }
        self.schedule_reply(conn);
        Ok(())
    }

    /// magent sends nothing more on this link: what is answered goes out, then it is closed.
    fn input_ended(&mut self, conn: usize) {
        let fin = self.net.borrow().conns[conn].out.fin;
        let done = self.peers.get(&conn).is_some_and(|p| p.output.is_empty());
        if fin && done {
            self.note(|| format!("c{conn} read to its end and closed by its server"));
            self.peers.remove(&conn);
            self.net.borrow_mut().peer_close(conn, false);
        }
    }

    /// One command, if one is whole.
    fn command(&mut self, conn: usize) -> Result<bool, String> {
        let Some(peer) = self.peers.get_mut(&conn) else {
            return Ok(false);
        };
        if peer.swallow > 0 {
            let n = peer.swallow.min(peer.input.len());
            peer.input.drain(..n);
            peer.swallow -= n;
            if peer.swallow > 0 {
                return Ok(false);
            }
        }
        let Some(n) = peer.input.iter().position(|b| *b == b'\n') else {
            return Ok(false);
        };
        let line = peer.input[..n].strip_suffix(b"\r").unwrap_or(b"?");
        let line = std::str::from_utf8(line).map_err(|_| format!("c{conn}: {}", lossy(line)))?;
        let line = line.to_string();
        let data = store::data_after(&line)?;
        let server = peer.server;
        let len = data.unwrap_or(0);
        let here = peer.input.len() - n - 1;
        // memcached refuses what is too large when it has seen the line.
        let early = len > store::ITEM_MAX + 2 && here < len;
        if here < len && !early {
            return Ok(false);
        }
        let now = self.now;
        let value = if early {
            peer.swallow = len - here;
            let value = vec![0; len - 2];
            peer.input.clear();
            value
        } else {
            let value = peer.input[n + 1..n + 1 + len.saturating_sub(2)].to_vec();
            let end = &peer.input[n + 1 + value.len()..n + 1 + len];
            if data.is_some() && end != b"\r\n" {
                return Err(format!("{line}: no line end behind the value"));
            }
            peer.input.drain(..n + 1 + len);
            value
        };
        let before = peer.output.len();
        let s = &mut self.servers[server];
        s.store.full = s.state == State::Full;
        s.store
            .at(now)
            .run(&line, &value, &self.history.writes, &mut peer.output)
            .map_err(|e| format!("s{server} c{conn}: {e}"))?;
        let answer = lossy(&peer.output[before..]);
        self.note(|| format!("s{server} c{conn} <- {line} {}: {answer:?}", lossy(&value)));
        Ok(true)
    }

    /// The server writes some of what it has to say.
    pub fn reply(&mut self, conn: usize) {
        let Some(peer) = self.peers.get_mut(&conn) else {
            return;
        };
        peer.reply_due = false;
        let server = peer.server;
        if self.servers[server].stands_still() {
            return;
        }
        let n = if !self.exact && self.rng.often(300) {
            self.rng.range(1, peer.output.len() as u64 + 1) as usize
        } else {
            peer.output.len()
        };
        let n = self.net.borrow_mut().peer_write(conn, &peer.output[..n]);
        peer.output.drain(..n);
        if peer.output.is_empty() {
            self.schedule_serve(conn);
        } else if n > 0 {
            self.schedule_reply(conn);
        }
    }

    /// Links of a server.
    pub fn links_of(&self, server: usize) -> Vec<usize> {
        let of = |(conn, peer): (&usize, &Peer)| (peer.server == server).then_some(*conn);
        self.peers.iter().filter_map(of).collect()
    }

    /// Something goes wrong, if it is time for it.
    pub fn fault(&mut self) {
        if self.ending {
            return;
        }
        let single = self.plan.mode == Mode::Single;
        if single && !self.calm {
            return self.after(50 * MS, 500 * MS, Event::Fault);
        }
        let server = self.rng.below(self.servers.len() as u64) as usize;
        self.epoch += 1;
        self.calm = false;
        if self.servers[server].is_well() {
            let longest = if single { 20 } else { 70 };
            let short = self.rng.range(10 * MS, 3 * SECOND);
            let long = self.rng.range(SECOND, longest * SECOND);
            let length = if self.rng.often(700) { short } else { long };
            self.fail(server, length);
        }
        self.after(100 * MS, 4 * SECOND, Event::Fault);
    }

    fn fail(&mut self, server: usize, length: u64) {
        let most = self.plan.timeout * MS * 3 / 2;
        let state = match self.rng.below(12) {
            0..=2 => State::Dead,
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

    /// Something is wrong with a server from now on.
    pub fn become_state(&mut self, server: usize, state: State) {
        if state == State::Well {
            return self.heal(server);
        }
        self.note_fault(format!("s{server} becomes {state:?}"));
        self.servers[server].state = state;
        if state == State::Dead {
            self.cut_links(server);
        }
    }

    /// All links of a server are closed by it.
    pub fn cut_links(&mut self, server: usize) {
        for conn in self.links_of(server) {
            self.drop_link(conn);
        }
    }

    /// In a story: these links take so many milliseconds longer, the others do not.
    pub fn lag_links(&mut self, links: &[usize], ms: u64) {
        for (conn, peer) in &mut self.peers {
            peer.lag = if links.contains(conn) { ms * MS } else { 0 };
        }
    }

    fn drop_link(&mut self, conn: usize) {
        self.peers.remove(&conn);
        let reset = self.rng.often(500);
        self.net.borrow_mut().peer_close(conn, reset);
    }

    /// A link is closed, or gets nonsense, and the server lives.
    fn cut(&mut self, server: usize) {
        let links = self.links_of(server);
        if links.is_empty() {
            return;
        }
        let conn = self.rng.pick(&links);
        self.healed = self.now;
        if self.plan.mad && self.rng.often(500) {
            if let Some(peer) = self.peers.get_mut(&conn) {
                peer.output.extend_from_slice(b"NONSENSE\r\n");
            }
            self.note_fault(format!("s{server} c{conn} speaks nonsense"));
            return self.schedule_reply(conn);
        }
        self.note_fault(format!("s{server} closes c{conn}"));
        self.drop_link(conn);
    }

    /// The server is well again; a stopped one goes on with what it finds.
    pub fn heal(&mut self, server: usize) {
        let was = std::mem::take(&mut self.servers[server].state);
        if was == State::Well {
            return;
        }
        self.epoch += 1;
        self.note_fault(format!("s{server} was {was:?} and is well"));
        self.healed = self.now;
        if was == State::Dead {
            self.servers[server].store.restart(self.now);
        }
        for conn in self.links_of(server) {
            if self.net.borrow().conns[conn].connect == Connect::Pending {
                self.after(20_000, MS, Event::Connected(conn));
            }
            self.schedule_serve(conn);
            self.schedule_reply(conn);
        }
    }
}
