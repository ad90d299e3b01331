//! Model servers: they read links, do one request after the other, answer, and fail.

use super::World;
use super::net::{Connect, Edges, Pipe};
use super::store::Store;
use super::wire;

/// Requests of a handshake; more of them are probes.
const GREETINGS: usize = 2;

/// What is wrong with a server.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum State {
    #[default]
    Well,
    /// It greets new links, and answers nothing else that it reads.
    Silent,
    /// For who paces it: things take up to so many nanoseconds.
    Slow(u64),
    /// It cannot store.
    Full,
    /// Stopped: the kernel takes connects and bytes for it.
    Hung,
    /// Stopped, and connects hang too.
    Dark,
    /// Nobody listens; its links were closed.
    Gone,
}

/// One server, named by its port.
#[derive(Default, Debug)]
pub struct Server {
    pub state: State,
    pub store: Store,
    /// Requests that it read, those of a handshake and probes left out.
    pub asked: usize,
    /// Probes that it read.
    pub probes: usize,
}

impl Server {
    /// It reads and answers nothing.
    pub fn stands_still(&self) -> bool {
        matches!(self.state, State::Hung | State::Dark | State::Gone)
    }
}

/// A server's end of a link.
#[derive(Debug)]
pub struct Link {
    pub proxy: usize,
    pub port: u16,
    /// Read and not understood yet.
    input: Pipe,
    /// Not written yet.
    pub output: Pipe,
    /// Bytes of a refused value that are still to come.
    swallow: usize,
    greetings: usize,
    /// Requests that came on it, those of a handshake left out.
    pub requests: usize,
}

/// A request that a server has done.
#[derive(Debug)]
pub struct Done {
    pub words: Vec<String>,
    pub data: Vec<u8>,
    pub answer: Vec<u8>,
}

impl Link {
    pub(super) fn new(proxy: usize, port: u16) -> Link {
        Link {
            proxy,
            port,
            input: Pipe::default(),
            output: Pipe::default(),
            swallow: 0,
            greetings: 0,
            requests: 0,
        }
    }
}

impl World {
    /// Links of a server, the oldest first.
    pub fn links_of(&self, port: u16) -> Vec<usize> {
        let own = self.links.iter().filter(|(_, l)| l.port == port);
        own.map(|(conn, _)| *conn).collect()
    }

    /// Links of a server that magent holds.
    pub fn open_links(&self, port: u16) -> usize {
        let net = self.net.borrow();
        let held = self.links_of(port).into_iter();
        held.filter(|conn| !net.conns[*conn].gone).count()
    }

    /// Requests that reached a server's living links.
    pub fn requests(&self, port: u16) -> usize {
        let own = self.links_of(port).into_iter();
        own.map(|conn| self.links[&conn].requests).sum()
    }

    /// A server changes; one that goes takes its links along, and keeps what it holds.
    pub fn become_state(&mut self, port: u16, state: State) {
        let server = self.servers.entry(port).or_default();
        server.state = state;
        server.store.full = state == State::Full;
        if state == State::Gone {
            for conn in self.links_of(port) {
                self.drop_link(conn, false);
            }
        }
    }

    /// A server closes a link.
    pub fn drop_link(&mut self, conn: usize, reset: bool) {
        self.links.remove(&conn);
        self.net.borrow_mut().close(conn, reset);
    }

    /// A connect comes to its end, if it does.
    pub fn connected(&mut self, conn: usize) {
        let Some(link) = self.links.get(&conn) else {
            return;
        };
        let connect = match self.servers[&link.port].state {
            State::Dark => return,
            _ if self.cuts.contains(&(link.proxy, link.port)) => return,
            State::Gone => Connect::Refused,
            _ => Connect::Stands,
        };
        let refused = connect == Connect::Refused;
        let mut net = self.net.borrow_mut();
        net.conns[conn].connect = connect;
        net.edge(conn, if refused { Edges::ALL } else { Edges::WRITABLE });
        drop(net);
        if refused {
            self.links.remove(&conn);
        }
    }

    /// A server reads up to `most` bytes of a link; returns how many.
    pub fn read_link(&mut self, conn: usize, most: usize) -> usize {
        let Some(link) = self.links.get_mut(&conn) else {
            return 0;
        };
        let mut bytes = std::mem::take(&mut self.scratch);
        bytes.clear();
        let n = self.net.borrow_mut().take(conn, most, &mut bytes);
        link.input.put(&bytes);
        self.scratch = bytes;
        n
    }

    /// A server does one request of a link, if one is whole; what it says to that is the
    /// caller's. Whatever magent may not send is a panic.
    pub fn do_one(&mut self, conn: usize) -> Option<Done> {
        let link = self.links.get_mut(&conn)?;
        let swallowed = link.input.take(link.swallow).len();
        link.swallow -= swallowed;
        if link.swallow > 0 {
            return None;
        }
        let bad = |why: String, bytes: &[u8]| -> ! {
            let some = &bytes[..bytes.len().min(300)];
            panic!("c{conn} of {}: {why}: {}", link.port, some.escape_ascii())
        };
        let bytes = link.input.bytes();
        let head = wire::head(bytes).unwrap_or_else(|why| bad(why, bytes))?;
        let server = self.servers.get_mut(&link.port)?;
        server.store.now = self.now;
        let (mut request, len) = head;
        let words = |w: &wire::Wire<'_>| {
            let text = |w: &&[u8]| String::from_utf8_lossy(w).into_owned();
            w.words.iter().map(text).collect::<Vec<String>>()
        };
        let mut answer = Vec::new();
        // memcached refuses what it has no room for when it has seen the line.
        let refusal = len.and_then(|n| server.store.refuses(&request, n));
        if let (Some(why), Some(n)) = (refusal, len) {
            answer.extend_from_slice(why);
            answer.extend_from_slice(b"\r\n");
            let done = Done {
                words: words(&request),
                data: Vec::new(),
                answer,
            };
            let line = request.len;
            link.input.take(line);
            link.swallow = n + 2;
            let here = link.input.take(n + 2).len();
            link.swallow -= here;
            (server.asked, link.requests) = (server.asked + 1, link.requests + 1);
            return Some(done);
        }
        if let Some(n) = len {
            request = (request.with_data(bytes, n)).unwrap_or_else(|why| bad(why, bytes))?;
        }
        let greets = matches!(request.words[..], [b"version" | b"stats"]);
        server.store.answer(&request, &mut answer);
        let done = Done {
            words: words(&request),
            data: request.data.to_vec(),
            answer,
        };
        let len = request.len;
        link.input.take(len);
        match greets {
            true => {
                link.greetings += 1;
                server.probes += usize::from(link.greetings > GREETINGS);
            }
            false => (server.asked, link.requests) = (server.asked + 1, link.requests + 1),
        }
        Some(done)
    }

    /// A server does up to `most` requests of a link and keeps what it says for
    /// [`World::write_link`]; false if there was none.
    pub fn do_some(&mut self, conn: usize, most: usize) -> bool {
        for n in 0..most {
            let Some(done) = self.do_one(conn) else {
                return n > 0;
            };
            let Some(link) = self.links.get_mut(&conn) else {
                return true;
            };
            let silent = self.servers[&link.port].state == State::Silent;
            let greets = done.words.len() == 1 && matches!(&done.words[0][..], "version" | "stats");
            if !silent || (greets && link.greetings <= GREETINGS) {
                link.output.put(&done.answer);
            }
        }
        true
    }

    /// A server writes up to `most` bytes of what it has to say; returns how many.
    pub fn write_link(&mut self, conn: usize, most: usize) -> usize {
        let Some(link) = self.links.get_mut(&conn) else {
            return 0;
        };
        let bytes = link.output.bytes();
        let n = bytes.len().min(most);
        let n = self.net.borrow_mut().put(conn, &bytes[..n]);
        link.output.take(n).len()
    }

    /// A server sends nothing more on a link, and reads on.
    pub fn fin_link(&mut self, conn: usize) {
        self.net.borrow_mut().fin(conn);
    }

    /// Closes a link whose magent sends nothing more, when all that it sent is answered.
    pub fn end_link(&mut self, conn: usize) -> bool {
        let done = {
            let c = &self.net.borrow().conns[conn];
            c.out.fin && c.out.is_empty()
        };
        let ends = done && self.links.get(&conn).is_some_and(|l| l.output.is_empty());
        if ends {
            self.drop_link(conn, false);
        }
        ends
    }

    /// Servers that answer at once do so; false if nothing moved.
    pub fn serve(&mut self) -> bool {
        let mut moved = false;
        let links: Vec<usize> = self.links.keys().copied().collect();
        for conn in links {
            let link = &self.links[&conn];
            let cut = self.cuts.contains(&(link.proxy, link.port));
            if cut || self.servers[&link.port].stands_still() {
                continue;
            }
            moved |= self.read_link(conn, usize::MAX) > 0;
            let most = self.jumble.as_mut().map_or(usize::MAX, |r| r.index(4));
            let did = self.do_some(conn, most);
            let wrote = self.write_link(conn, usize::MAX) > 0;
            moved |= did || wrote || (most == 0 && !self.links[&conn].input.is_empty());
            if most > 0 && !did {
                moved |= self.end_link(conn);
            }
        }
        moved
    }

    /// Somebody else asks a server for something, past magent.
    pub fn ask_past(&mut self, port: u16, request: &[u8]) -> Vec<u8> {
        let (head, data) = wire::head(request).expect("a request").expect("all of it");
        let whole = match data {
            Some(n) => head
                .with_data(request, n)
                .expect("data")
                .expect("all of it"),
            None => head,
        };
        let mut answer = Vec::new();
        let server = self.servers.get_mut(&port).expect("a server");
        server.store.answer(&whole, &mut answer);
        answer
    }

    /// A server sends bytes of its own accord, on its newest link: the answers that it owes.
    pub fn serve_late(&mut self, port: u16, bytes: &[u8]) {
        let conn = *self.links_of(port).last().expect("a link to this server");
        self.net.borrow_mut().put(conn, bytes);
        self.step();
    }

    /// The same with `count` values of `len` bytes that take no memory.
    pub fn serve_void(&mut self, port: u16, key: &str, len: usize, count: usize) {
        let conn = *self.links_of(port).last().expect("a link to this server");
        for _ in 0..count {
            let mut net = self.net.borrow_mut();
            net.put(conn, format!("VALUE {key} 0 {len}\r\n").as_bytes());
            net.put_void(conn, len);
            net.put(conn, b"\r\nEND\r\n");
        }
        self.step();
    }

    /// A server closes all its links.
    pub fn close_links(&mut self, port: u16) {
        for conn in self.links_of(port) {
            self.drop_link(conn, false);
        }
        self.step();
    }
}
