//! A server that does what a script says: late, half, double or wrong answers, or none.

use super::time::look_within;
use super::{DEADLINE, wait_for};
use socket2::SockRef;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// Between two looks at whether the test is over, in a read that waits.
const LOOK: Duration = Duration::from_millis(20);

/// The answer to `version`: of a server that is asked nothing about marks, which scripts do not know.
const VERSION: &str = "VERSION 1.6.12\r\n";

#[derive(Default)]
struct Seen {
    requests: Mutex<Vec<Vec<u8>>>,
    /// Probes that were answered.
    probes: AtomicUsize,
    /// One handle of each link, but of those that were reset.
    links: Mutex<Vec<Option<TcpStream>>>,
    over: AtomicBool,
}

/// What a test opens, and a script waits for or looks at; or the other way round.
pub struct Gate(Arc<AtomicBool>);

impl Gate {
    /// A closed one; a handle for either side.
    pub fn new() -> (Gate, Gate) {
        let open = Arc::new(AtomicBool::new(false));
        (Gate(open.clone()), Gate(open))
    }

    /// For good.
    pub fn open(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// True once either side has opened it.
    pub fn is_open(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// A listener on a port of its own; each connection runs the script in a thread.
pub struct Fake {
    /// `127.0.0.1:PORT`.
    pub name: String,
    /// Its port.
    pub port: u16,
    seen: Arc<Seen>,
    acceptor: Option<JoinHandle<()>>,
}

/// One connection of a [`Fake`], as its script sees it.
pub struct FakeLink {
    stream: TcpStream,
    unread: Vec<u8>,
    seen: Arc<Seen>,
    /// Counts connections from 0.
    pub number: usize,
    /// It ends by a reset, not by an end of stream.
    resets: bool,
}

impl Fake {
    /// Runs `script` on each connection once the handshake (`version`, `stats`) was answered.
    /// When it returns, the connection closes.
    pub fn start(script: impl Fn(&mut FakeLink) + Send + Sync + 'static) -> Fake {
        Fake::raw(move |link| {
            if link.handshake() {
                script(link);
            }
        })
    }

    /// Answers every request with what `answer` says, for ever.
    pub fn answering<A: AsRef<[u8]>>(answer: impl Fn(&[u8]) -> A + Send + Sync + 'static) -> Fake {
        Fake::start(move |link| {
            while let Some(request) = link.request() {
                link.send(answer(&request));
            }
        })
    }

    /// The same, but a request that begins with `start`, and what comes behind it on its link, is
    /// answered once the gate is open.
    pub fn holding<A: AsRef<[u8]>>(
        start: &'static str,
        answer: impl Fn(&[u8]) -> A + Send + Sync + 'static,
    ) -> (Fake, Gate) {
        let (gate, theirs) = Gate::new();
        let fake = Fake::start(move |link| {
            while let Some(request) = link.request() {
                if request.starts_with(start.as_bytes()) {
                    link.wait_open(&theirs);
                }
                link.send(answer(&request));
            }
        });
        (fake, gate)
    }

    /// Runs `script` on each connection from its first byte on.
    pub fn raw(script: impl Fn(&mut FakeLink) + Send + Sync + 'static) -> Fake {
        Fake::listen(Ipv4Addr::LOCALHOST, script)
    }

    /// [`Fake::answering`] on one port of every loopback address: as many servers as a test names.
    pub fn crowd(answer: impl Fn(&[u8]) -> Vec<u8> + Send + Sync + 'static) -> Fake {
        Fake::listen(Ipv4Addr::UNSPECIFIED, move |link| {
            if link.handshake() {
                while let Some(request) = link.request() {
                    link.send(answer(&request));
                }
            }
        })
    }

    fn listen(on: Ipv4Addr, script: impl Fn(&mut FakeLink) + Send + Sync + 'static) -> Fake {
        let listener = TcpListener::bind((on, 0)).expect("a port");
        let port = listener.local_addr().expect("its number").port();
        let seen = Arc::new(Seen::default());
        let theirs = seen.clone();
        let acceptor = std::thread::spawn(move || accept(listener, theirs, script));
        Fake {
            name: format!("127.0.0.1:{port}"),
            port,
            seen,
            acceptor: Some(acceptor),
        }
    }

    /// Every request so far (without the handshake), in order: its line, and its data if any.
    pub fn requests(&self) -> Vec<Vec<u8>> {
        self.seen.requests.lock().expect("requests").clone()
    }

    /// How many requests began with `start`.
    pub fn count(&self, start: &str) -> usize {
        self.requests()
            .iter()
            .filter(|r| r.starts_with(start.as_bytes()))
            .count()
    }

    /// Waits until `n` requests began with `start`.
    #[track_caller]
    pub fn wait_count(&self, start: &str, n: usize) {
        wait_for(&format!("{n} × {start}"), || {
            (self.count(start) >= n).then_some(())
        });
    }

    /// Probes that were answered by [`FakeLink::head`] and [`FakeLink::request`].
    pub fn probes(&self) -> usize {
        self.seen.probes.load(Ordering::Relaxed)
    }

    /// How many connections there were so far.
    pub fn links(&self) -> usize {
        self.seen.links.lock().expect("links").len()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.seen.over.store(true, Ordering::Relaxed);
        for link in self.seen.links.lock().expect("links").iter().flatten() {
            let _ = link.shutdown(Shutdown::Both);
        }
        // Wakes the acceptor.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        self.acceptor.take().map(JoinHandle::join);
    }
}

fn accept(
    listener: TcpListener,
    seen: Arc<Seen>,
    script: impl Fn(&mut FakeLink) + Send + Sync + 'static,
) {
    let script = Arc::new(script);
    while let Ok((stream, _)) = listener.accept() {
        if seen.over.load(Ordering::Relaxed) {
            return;
        }
        let number = {
            let mut links = seen.links.lock().expect("links");
            links.push(Some(stream.try_clone().expect("a second handle")));
            links.len() - 1
        };
        let _ = stream.set_nodelay(true);
        let _ = stream.set_read_timeout(Some(LOOK));
        let mut link = FakeLink {
            stream,
            unread: Vec::new(),
            seen: seen.clone(),
            number,
            resets: false,
        };
        let script = script.clone();
        std::thread::spawn(move || {
            script(&mut link);
            if !link.resets {
                let _ = link.stream.shutdown(Shutdown::Both);
            }
        });
    }
}

impl FakeLink {
    /// Reads more; false at the end of the connection or of the test.
    fn fill(&mut self) -> bool {
        let mut chunk = [0; 65536];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return false,
                Ok(n) => {
                    self.unread.extend_from_slice(&chunk[..n]);
                    return true;
                }
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if self.seen.over.load(Ordering::Relaxed) {
                        return false;
                    }
                }
                Err(_) => return false,
            }
        }
    }

    /// One line with its end; `None` at the end.
    pub fn line(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(i) = self.unread.iter().position(|&b| b == b'\n') {
                return Some(self.unread.drain(..=i).collect());
            }
            if !self.fill() {
                return None;
            }
        }
    }

    /// Exactly `n` bytes; `None` at the end.
    pub fn read(&mut self, n: usize) -> Option<Vec<u8>> {
        while self.unread.len() < n {
            if !self.fill() {
                return None;
            }
        }
        Some(self.unread.drain(..n).collect())
    }

    /// Lets the kernel take little before the script reads it.
    pub fn narrow(&self) {
        let socket = SockRef::from(&self.stream);
        socket.set_recv_buffer_size(16 << 10).expect("SO_RCVBUF");
    }

    /// Answers `version` and `stats`, as every link begins; false if the link ended.
    pub fn handshake(&mut self) -> bool {
        for answer in [VERSION, "STAT pid 1\r\nSTAT uptime 100000\r\nEND\r\n"] {
            if self.line().is_none() {
                return false;
            }
            self.send(answer);
        }
        true
    }

    /// The next line that is no probe; those are answered.
    fn asked(&mut self) -> Option<Vec<u8>> {
        loop {
            let line = self.line()?;
            if line != b"version\r\n" {
                return Some(line);
            }
            self.seen.probes.fetch_add(1, Ordering::Relaxed);
            self.send(VERSION);
        }
    }

    /// The next request's line only; its data is left to [`FakeLink::read`]. Probes are answered.
    pub fn head(&mut self) -> Option<Vec<u8>> {
        let line = self.asked()?;
        self.seen
            .requests
            .lock()
            .expect("requests")
            .push(line.clone());
        Some(line)
    }

    /// The next request, with its data block if it has one; `None` at the end. Probes are answered.
    pub fn request(&mut self) -> Option<Vec<u8>> {
        let mut request = self.asked()?;
        if let Some(data) = data_len(&request) {
            request.extend(self.read(data)?);
        }
        self.seen
            .requests
            .lock()
            .expect("requests")
            .push(request.clone());
        Some(request)
    }

    /// The next request, with its data block if it has one, probes and handshake included; `None` at the end.
    pub fn request_or_probe(&mut self) -> Option<Vec<u8>> {
        let mut request = self.line()?;
        if let Some(data) = data_len(&request) {
            request.extend(self.read(data)?);
        }
        let mut requests = self.seen.requests.lock().expect("requests");
        requests.push(request.clone());
        Some(request)
    }

    /// Sends bytes; an end of the link is for the next read to find.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref());
    }

    /// The same; false at the end of the link.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).is_ok()
    }

    /// Whatever comes next; `None` at the end.
    pub fn bytes(&mut self) -> Option<Vec<u8>> {
        if self.unread.is_empty() && !self.fill() {
            return None;
        }
        Some(std::mem::take(&mut self.unread))
    }

    /// Whatever has come by now, without waiting for more.
    pub fn bytes_so_far(&mut self) -> Vec<u8> {
        let mut chunk = [0; 65536];
        while let Ok(n @ 1..) = self.stream.read(&mut chunk) {
            self.unread.extend_from_slice(&chunk[..n]);
        }
        std::mem::take(&mut self.unread)
    }

    /// A second handle of the connection, for a thread that only sends.
    pub fn sender(&self) -> TcpStream {
        self.stream.try_clone().expect("a second handle")
    }

    /// The link ends by a reset when the script returns.
    pub fn reset(&mut self) {
        SockRef::from(&self.stream)
            .set_linger(Some(Duration::ZERO))
            .expect("SO_LINGER");
        // The socket lives as long as one handle of it does.
        self.seen.links.lock().expect("links")[self.number] = None;
        self.resets = true;
    }

    /// Says nothing more until the other side closes or the test is over.
    pub fn silence(&mut self) {
        while self.fill() {
            self.unread.clear();
        }
    }

    /// Waits until the test opens the gate.
    pub fn wait_open(&self, gate: &Gate) {
        self.wait(|| gate.is_open());
    }

    /// Waits for a condition that the test sets, for answers that must come late.
    pub fn wait(&self, condition: impl Fn() -> bool) {
        let is_over = || self.seen.over.load(Ordering::Relaxed);
        look_within(DEADLINE, || (condition() || is_over()).then_some(()));
    }
}

/// What a server that holds nothing answers.
pub fn empty(request: &[u8]) -> &'static str {
    match request.get(..3) {
        Some(b"set" | b"add") => "STORED\r\n",
        Some(b"get") => "END\r\n",
        Some(b"mg " | b"me ") => "EN\r\n",
        Some(b"ms " | b"md ") => "HD\r\n",
        Some(b"del" | b"tou") => "NOT_FOUND\r\n",
        Some(b"flu") => "OK\r\n",
        _ => "ERROR\r\n",
    }
}

/// Bytes of data behind a storage command's line, with their line end.
pub fn data_len(line: &[u8]) -> Option<usize> {
    let text = String::from_utf8_lossy(line);
    let words: Vec<&str> = text.split_whitespace().collect();
    let at = match *words.first()? {
        "set" | "add" | "replace" | "append" | "prepend" | "cas" => 4,
        "ms" => 2,
        _ => return None,
    };
    Some(words.get(at)?.parse::<usize>().ok()? + 2)
}
