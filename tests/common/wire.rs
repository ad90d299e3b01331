//! A wire between magents and a server: bytes pass as they come. A test cuts one magent off, holds back what
//! one says, or makes all of it slow, and sees what came, read by read.
//!
//! [`Relay`](super::Relay) knows requests and answers; a wire knows whose bytes they are. All magents are told the
//! same address, so they are about the same server.

use super::time::pause_of;
use super::{Magent, Memcached, wait_for};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Which way bytes go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    ToServer,
    ToMagent,
}

/// What was read from a magent at once.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// The connection; they count from 0.
    pub link: usize,
    /// When.
    pub at: Instant,
    /// All of it.
    pub text: String,
}

/// Bytes that wait, and what comes behind them on their link.
#[derive(Clone)]
struct Hold {
    /// Whose; `None`: everybody's.
    pid: Option<u32>,
    way: Way,
    /// What a chunk must contain.
    what: &'static str,
}

#[derive(Default)]
struct State {
    is_over: bool,
    /// The process whose connections do not pass.
    cut: Option<u32>,
    held: Vec<Hold>,
    /// Directions of links that wait.
    waiting: usize,
    /// How long each chunk takes to the server.
    delay: Duration,
    /// The sockets to a magent and to the server.
    links: Vec<(TcpStream, TcpStream)>,
    chunks: Vec<Chunk>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// One server as all magents reach it.
pub struct Wire {
    /// `127.0.0.1:PORT`, as magents are told it.
    pub name: String,
    end: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl Wire {
    /// To `server`.
    pub fn to(server: &Memcached) -> Wire {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let end = listener.local_addr().expect("its address");
        let shared = Arc::new(Shared::default());
        let (theirs, server) = (shared.clone(), server.name.clone());
        let acceptor = std::thread::spawn(move || accept(&listener, &server, &theirs));
        Wire {
            name: end.to_string(),
            end,
            shared,
            acceptor: Some(acceptor),
        }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.shared.lock());
        self.shared.changed.notify_all();
    }

    /// Nothing of this magent passes from now on.
    pub fn cut(&self, magent: &Magent) {
        let pid = magent.pid();
        self.change(|state| {
            state.cut = Some(pid);
            let cut = state.links.iter().filter(|(near, _)| is_of(near, pid));
            cut.for_each(shut);
        });
    }

    /// All passes again.
    pub fn mend(&self) {
        self.change(|state| state.cut = None);
    }

    /// What a magent says and contains this is held, and what follows on the same link.
    pub fn hold(&self, magent: &Magent, what: &'static str) {
        self.hold_of(Some(magent.pid()), Way::ToServer, what);
    }

    /// What the server answers is held.
    pub fn hold_answers(&self) {
        self.hold_of(None, Way::ToMagent, "");
    }

    fn hold_of(&self, pid: Option<u32>, way: Way, what: &'static str) {
        self.change(|state| state.held.push(Hold { pid, way, what }));
    }

    /// Waits until something is held on so many links.
    #[track_caller]
    pub fn wait_held(&self, links: usize) {
        wait_for(&format!("{links} links that are held"), || {
            (self.shared.lock().waiting >= links).then_some(())
        });
    }

    /// All that is held of one magent goes on.
    pub fn release(&self, magent: &Magent) {
        let pid = Some(magent.pid());
        self.change(|state| state.held.retain(|hold| hold.pid != pid));
    }

    /// All that is held goes on.
    pub fn release_all(&self) {
        self.change(|state| state.held.clear());
    }

    /// Each chunk takes so long to the server.
    pub fn slow(&self, delay: Duration) {
        self.change(|state| state.delay = delay);
    }

    /// How many chunks came so far.
    pub fn count(&self) -> usize {
        self.shared.lock().chunks.len()
    }

    /// All that came since there were `from` of them, also what is held.
    pub fn chunks(&self, from: usize) -> Vec<Chunk> {
        self.shared.lock().chunks[from..].to_vec()
    }

    /// The first chunk since there were `from` that contains this.
    #[track_caller]
    pub fn wait_chunk(&self, from: usize, what: &str) -> Chunk {
        wait_for(&format!("{what:?} to come"), || {
            let state = self.shared.lock();
            let mut chunks = state.chunks[from..].iter();
            chunks.find(|c| c.text.contains(what)).cloned()
        })
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.change(|state| {
            state.is_over = true;
            state.links.iter().for_each(shut);
        });
        // Wakes the acceptor.
        let _ = TcpStream::connect(self.end);
        self.acceptor.take().map(JoinHandle::join);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("a wire's state")
    }
}

fn shut((near, far): &(TcpStream, TcpStream)) {
    let _ = near.shutdown(Shutdown::Both);
    let _ = far.shutdown(Shutdown::Both);
}

fn accept(listener: &TcpListener, server: &str, shared: &Arc<Shared>) {
    while let Ok((near, _)) = listener.accept() {
        let mut state = shared.lock();
        if state.is_over {
            return;
        }
        if state.cut.is_some_and(|pid| is_of(&near, pid)) {
            continue;
        }
        let Ok(far) = TcpStream::connect(server) else {
            continue;
        };
        let _ = near.set_nodelay(true);
        let _ = far.set_nodelay(true);
        let link = state.links.len();
        for way in [Way::ToServer, Way::ToMagent] {
            let passage = Passage {
                shared: shared.clone(),
                link,
                way,
                near: handle(&near),
                far: handle(&far),
                owned: BTreeMap::new(),
            };
            std::thread::spawn(move || passage.run());
        }
        state.links.push((near, far));
    }
}

fn handle(of: &TcpStream) -> TcpStream {
    of.try_clone().expect("a second handle")
}

/// One way of one link.
struct Passage {
    shared: Arc<Shared>,
    link: usize,
    way: Way,
    near: TcpStream,
    far: TcpStream,
    /// Whether processes have the other end, as far as it was asked.
    owned: BTreeMap<u32, bool>,
}

impl Passage {
    fn run(mut self) {
        let (mut from, mut into) = match self.way {
            Way::ToServer => (handle(&self.near), handle(&self.far)),
            Way::ToMagent => (handle(&self.far), handle(&self.near)),
        };
        let mut bytes = vec![0; 1 << 16];
        while let Ok(len @ 1..) = from.read(&mut bytes) {
            self.wait(&bytes[..len]);
            if into.write_all(&bytes[..len]).is_err() {
                break;
            }
        }
        let _ = into.shutdown(Shutdown::Write);
    }

    /// Notes a chunk, and waits as long as it takes and is held.
    fn wait(&mut self, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let shared = self.shared.clone();
        let mut state = shared.lock();
        if self.way == Way::ToServer {
            let (link, at, text) = (self.link, Instant::now(), text.clone());
            state.chunks.push(Chunk { link, at, text });
            let delay = state.delay;
            drop(state);
            pause_of(delay);
            state = shared.lock();
        }
        if self.is_held(&state, &text) {
            state.waiting += 1;
            while self.is_held(&state, &text) {
                state = shared.changed.wait(state).expect("a wire's state");
            }
            state.waiting -= 1;
        }
    }

    fn is_held(&mut self, state: &State, text: &str) -> bool {
        let way = self.way;
        let held = state.held.iter();
        let mut held = held.filter(|h| h.way == way && text.contains(h.what));
        !state.is_over && held.any(|h| h.pid.is_none_or(|pid| self.is_owned_by(pid)))
    }

    fn is_owned_by(&mut self, pid: u32) -> bool {
        let near = &self.near;
        *self.owned.entry(pid).or_insert_with(|| is_of(near, pid))
    }
}

/// True if a process holds the other end of a connection that was accepted here.
fn is_of(near: &TcpStream, pid: u32) -> bool {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let end = |address: std::io::Result<SocketAddr>| {
        address.map_or(String::new(), |a| format!("0100007F:{:04X}", a.port()))
    };
    let ends = [end(near.peer_addr()), end(near.local_addr())];
    let inode = table.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_it = words.get(1..3)? == ends;
        is_it.then(|| words.get(9).map(|w| w.to_string()))?
    });
    let link = format!("socket:[{}]", inode.unwrap_or_default());
    let files = std::fs::read_dir(format!("/proc/{pid}/fd"));
    let mut names = files.into_iter().flatten().flatten();
    names.any(|f| std::fs::read_link(f.path()).is_ok_and(|to| to.to_string_lossy() == link))
}
