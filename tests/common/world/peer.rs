//! Clients as most tests need them: they send, take, ask, leave.

use super::World;
use super::net::{Connect, Edges, End, Shared};
use std::collections::BTreeMap;

/// A client's end of a connection.
#[derive(Clone)]
pub struct Peer {
    net: Shared,
    conn: usize,
}

impl Peer {
    /// True once magent has closed the connection.
    pub fn is_closed(&self) -> bool {
        self.net.borrow().conns[self.conn].gone
    }

    /// What has arrived and was not taken yet.
    pub fn arrived(&self) -> usize {
        self.net.borrow().conns[self.conn].out.len()
    }

    /// Sends nothing more.
    pub fn end(&self) {
        self.net.borrow_mut().fin(self.conn);
    }

    /// magent has more than there is room for.
    pub fn is_full(&self) -> bool {
        self.net.borrow().conns[self.conn].out.starved
    }

    /// magent is told that there is room.
    pub fn may_write(&self) {
        self.net.borrow_mut().edge(self.conn, Edges::WRITABLE);
    }

    /// Room for so many bytes is there already: memory of the test's, not of magent's.
    pub fn reserve(&self, bytes: usize) {
        self.net.borrow_mut().conns[self.conn].out.reserve(bytes);
    }

    /// Takes no more than so many bytes until they are taken out.
    pub fn narrow(self, room: usize) -> Peer {
        self.net.borrow_mut().conns[self.conn].out.cap = room;
        self
    }

    /// Takes everything from now on, and only counts it.
    pub fn sink(&self) {
        self.net.borrow_mut().conns[self.conn].out.sink = true;
    }

    /// Bytes that it has taken.
    pub fn taken(&self) -> u64 {
        self.net.borrow().conns[self.conn].out.consumed
    }
}

impl World {
    /// A client of a proxy's listener, with so much room; `None` if it was turned away.
    pub fn connect_client(&mut self, proxy: usize, listener: usize, cap: usize) -> Option<usize> {
        let clock = self.clock();
        let proxy_of = self.nodes[proxy].proxy.as_mut()?;
        let token = proxy_of.admit(listener).ok()?;
        let conn = (self.net.borrow_mut()).open(proxy, token, cap, Connect::Stands);
        let net = self.net.clone();
        let mut end = Some(End { net, conn });
        (self.around)(&mut || {
            if let Some(end) = end.take() {
                proxy_of.accepted(token, end, listener, clock);
            }
        });
        Some(conn)
    }

    /// A client of proxy 0's first listener that takes all it gets; `None` if it was turned away.
    pub fn try_client(&mut self) -> Option<Peer> {
        let conn = self.connect_client(0, 0, usize::MAX)?;
        let net = self.net.clone();
        Some(Peer { net, conn })
    }

    /// A client that takes all it gets.
    #[track_caller]
    pub fn client(&mut self) -> Peer {
        self.try_client().expect("a place for a client")
    }

    /// The same, and it has taken so many answers that it may have 1024 requests in flight.
    #[track_caller]
    pub fn old_client(&mut self) -> Peer {
        let peer = self.client();
        for _ in 0..6 {
            assert_eq!(self.ask(&peer, "mn\r\n"), "MN\r\n");
        }
        peer
    }

    /// The same of another listener.
    #[track_caller]
    pub fn connect(&mut self, listener: usize) -> Peer {
        self.connect_to(0, listener)
    }

    /// The same of another proxy's.
    #[track_caller]
    pub fn connect_to(&mut self, proxy: usize, listener: usize) -> Peer {
        let conn = self.connect_client(proxy, listener, usize::MAX);
        Peer {
            net: self.net.clone(),
            conn: conn.expect("a place for a client"),
        }
    }

    /// What a client sends; nothing happens before the next turn.
    pub fn send(&mut self, peer: &Peer, bytes: impl AsRef<[u8]>) {
        self.net.borrow_mut().put(peer.conn, bytes.as_ref());
    }

    /// Sends, and lets everything happen that follows from it; what the client got.
    pub fn ask(&mut self, peer: &Peer, bytes: impl AsRef<[u8]>) -> String {
        self.send(peer, bytes);
        self.step();
        self.take_text(peer)
    }

    /// A client goes away.
    pub fn leave(&mut self, peer: Peer) {
        self.net.borrow_mut().close(peer.conn, false);
        self.step();
    }

    /// A client is gone at once, with what it sent and was not read, whatever it is owed.
    pub fn reset(&mut self, peer: Peer) {
        self.net.borrow_mut().sever(peer.conn);
        self.step();
    }

    /// A client sends nothing more, and takes what it is owed.
    pub fn end(&mut self, peer: &Peer) {
        peer.end();
        self.step();
    }

    /// Takes out what has arrived; magent sees that there is room.
    pub fn take(&mut self, peer: &Peer) -> Vec<u8> {
        let mut all = Vec::new();
        self.take_into(peer, &mut all);
        all
    }

    /// [`World::take`] into memory of the caller's.
    pub fn take_into(&mut self, peer: &Peer, into: &mut Vec<u8>) {
        self.take_some(peer, usize::MAX, into);
    }

    /// Takes out up to so many bytes; returns how many.
    pub fn take_some(&mut self, peer: &Peer, most: usize, into: &mut Vec<u8>) -> usize {
        self.net.borrow_mut().take(peer.conn, most, into)
    }

    /// [`World::take`] as text.
    pub fn take_text(&mut self, peer: &Peer) -> String {
        String::from_utf8_lossy(&self.take(peer)).into_owned()
    }

    /// Takes everything, however narrow the client is.
    pub fn take_all(&mut self, peer: &Peer) -> Vec<u8> {
        let mut all = Vec::new();
        while peer.arrived() > 0 {
            self.take_into(peer, &mut all);
            self.step();
        }
        all
    }

    /// The value of a key, as magent tells it; nothing for a miss or an error.
    pub fn get(&mut self, peer: &Peer, key: &str) -> Option<String> {
        let answer = self.ask(peer, format!("get {key}\r\n"));
        let rest = answer.strip_prefix("VALUE ")?;
        rest.split("\r\n").nth(1).map(str::to_string)
    }

    /// `STAT` lines of any `stats`, for a client of their own.
    pub fn stats(&mut self, request: &str) -> BTreeMap<String, String> {
        let peer = self.client();
        let text = self.ask(&peer, request);
        self.leave(peer);
        let lines = text.lines().filter_map(|l| l.strip_prefix("STAT "));
        lines
            .filter_map(|l| l.split_once(' '))
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect()
    }

    /// A number of `stats proxy`.
    #[track_caller]
    pub fn stat(&mut self, name: &str) -> u64 {
        let all = self.stats("stats proxy\r\n");
        let value = all.get(name).and_then(|v| v.parse().ok());
        value.unwrap_or_else(|| panic!("no number {name} in stats proxy: {all:?}"))
    }

    /// One field of `stats servers`, or any other `stats`, as this client is told it.
    #[track_caller]
    pub fn stat_for(&mut self, peer: &Peer, which: &str, name: &str) -> String {
        let answer = self.ask(peer, format!("stats {which}\r\n"));
        let prefix = format!("STAT {name} ");
        let line = answer.lines().find_map(|l| l.strip_prefix(&prefix));
        line.unwrap_or_else(|| panic!("no {name} in\n{answer}"))
            .to_string()
    }
}
