//! Clients that write and read through several magents for as long as a test takes. Nothing older than what was
//! acknowledged may be read through any of them.

use super::time::think;
use super::{Magent, Memcached, wait_for};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

/// Longer than any story lasts in which a magent stands still.
const PATIENCE: Duration = Duration::from_secs(20);

/// Asks a backup who keeps primaries away.
const LIST: &str = "mg AG1hZ2VudC9h b v\r\n";

/// One key.
#[derive(Clone, Copy, Default)]
struct Written {
    /// What was last acknowledged.
    floor: u64,
    /// How many writes were.
    count: usize,
}

#[derive(Default)]
struct Shared {
    is_over: AtomicBool,
    /// Of the key that is written through each magent.
    written: Mutex<Vec<Written>>,
    reads: AtomicUsize,
    old: Mutex<Vec<String>>,
}

/// One client per magent: it writes a key of its own, `k0` through the first one, and reads all of them.
#[derive(Default)]
pub struct Watch {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

impl Watch {
    /// One more magent.
    pub fn add(&mut self, magent: &Magent) {
        let at = {
            let mut written = self.shared.written();
            written.push(Written::default());
            written.len() - 1
        };
        let (shared, port) = (self.shared.clone(), magent.port);
        let client = std::thread::spawn(move || use_one(&shared, at, port));
        self.clients.push(client);
    }

    /// What was last acknowledged of each key.
    pub fn floors(&self) -> Vec<u64> {
        let written = self.shared.written();
        written.iter().map(|key| key.floor).collect()
    }

    /// How many values were read so far.
    pub fn reads(&self) -> usize {
        self.shared.reads.load(Ordering::Relaxed)
    }

    /// Waits until a write that was sent from now on is acknowledged through a magent.
    #[track_caller]
    pub fn wait_written(&self, at: usize) {
        let count = || self.shared.written()[at].count;
        let before = count();
        wait_for(&format!("a write through magent {at}"), || {
            // The first one may be on its way already.
            (count() > before + 1).then_some(())
        });
    }

    /// Reads a key once through a magent that may do nothing before `meanwhile` is over.
    pub fn read_across(&self, magent: &Magent, at: usize, meanwhile: impl FnOnce()) {
        let mut link = None;
        self.shared
            .read(&mut link, magent.port, at, "late reader", meanwhile);
    }

    /// Ends the clients. Nothing old was read, and something was.
    #[track_caller]
    pub fn end(mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        for client in std::mem::take(&mut self.clients) {
            client.join().expect("a client");
        }
        let old = self.shared.old.lock().expect("old values");
        println!("{} values read, {} old", self.reads(), old.len());
        assert!(old.is_empty(), "{:?}", &old[..old.len().min(5)]);
        assert!(self.reads() > 100, "{} values read", self.reads());
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
    }
}

/// Writes the key of one magent, and reads all keys through it.
fn use_one(shared: &Shared, at: usize, port: u16) {
    let (mut link, mut n) = (None, 0u64);
    let name = format!("magent {at}");
    while !shared.is_over.load(Ordering::Relaxed) {
        think();
        n += 1;
        let set = format!("set k{at} 0 0 {}\r\n{n}\r\n", n.to_string().len());
        let answer = ask(&mut link, port, &set, || ());
        if answer.is_some_and(|lines| lines[0] == "STORED") {
            let key = &mut shared.written()[at];
            *key = Written {
                floor: n,
                count: key.count + 1,
            };
        }
        let count = shared.written().len();
        for key in 0..count {
            shared.read(&mut link, port, key, &name, || ());
        }
    }
}

impl Shared {
    fn written(&self) -> MutexGuard<'_, Vec<Written>> {
        self.written.lock().expect("what was written")
    }

    fn read(&self, link: &mut Link, port: u16, key: usize, name: &str, meanwhile: impl FnOnce()) {
        let floor = self.written()[key].floor;
        let Some(lines) = ask(link, port, &format!("mg k{key} v\r\n"), meanwhile) else {
            return;
        };
        let value = lines.get(1).and_then(|v| v.parse::<u64>().ok());
        self.reads
            .fetch_add(usize::from(value.is_some()), Ordering::Relaxed);
        if value.is_some_and(|value| value < floor) {
            let old = format!("k{key} through {name}: {value:?} after {floor}");
            self.old.lock().expect("old values").push(old);
        }
    }
}

/// A connection that may break, since its magent is killed.
type Link = Option<BufReader<TcpStream>>;

/// The answer's lines; a value is a line of its own.
fn ask(link: &mut Link, port: u16, request: &str, meanwhile: impl FnOnce()) -> Option<Vec<String>> {
    let mut stream = match link.take() {
        Some(stream) => stream,
        None => {
            let stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
            let _ = stream.set_read_timeout(Some(PATIENCE));
            let _ = stream.set_nodelay(true);
            BufReader::new(stream)
        }
    };
    stream.get_mut().write_all(request.as_bytes()).ok()?;
    meanwhile();
    let (mut all, mut wanted) = (Vec::new(), 1);
    while all.len() < wanted {
        let mut line = String::new();
        if stream.read_line(&mut line).ok()? == 0 {
            return None;
        }
        wanted += usize::from(line.starts_with("VA "));
        all.push(line.trim_end().to_string());
    }
    *link = Some(stream);
    Some(all)
}

/// Two magents before a primary and a backup, watched.
pub struct Scene {
    /// The clients.
    pub watch: Watch,
    /// Those that were not killed.
    pub magents: Vec<Magent>,
    /// All keys are its.
    pub primary: Memcached,
    /// Stands in for it, and has the list of who keeps it away.
    pub backup: Memcached,
    /// What magents call the two servers.
    pub names: [String; 2],
    options: Vec<String>,
}

impl Scene {
    /// Magents that reach fresh servers directly.
    pub fn new(options: &[&str]) -> Scene {
        let servers = [Memcached::start(), Memcached::start()];
        let names = servers.each_ref().map(|s| s.name.clone());
        Scene::of(servers, names, options)
    }

    /// Magents that reach a primary and a backup under these names.
    pub fn of(servers: [Memcached; 2], names: [String; 2], options: &[&str]) -> Scene {
        let [primary, backup] = servers;
        let mut scene = Scene {
            watch: Watch::default(),
            magents: Vec::new(),
            primary,
            backup,
            names,
            options: options.iter().map(|o| o.to_string()).collect(),
        };
        scene.add();
        scene.add();
        wait_for("both to know each other and write", || {
            let names = &scene.names;
            let is_met = |m: &Magent| {
                let is_there = |name| m.server(name).contains_key("other_magents");
                names.iter().all(|name| is_there(name))
            };
            let is_written = scene.watch.floors().iter().all(|n| *n > 0);
            (is_written && scene.magents.iter().all(is_met)).then_some(())
        });
        scene
    }

    /// One more magent.
    pub fn add(&mut self) {
        let options: Vec<&str> = self.options.iter().map(String::as_str).collect();
        let [primary, backup] = &self.names;
        let magent = Magent::farm(&[primary], &[backup], &options);
        self.watch.add(&magent);
        self.magents.push(magent);
    }

    /// Kills the first magent.
    pub fn kill_first(&mut self) {
        drop(self.magents.remove(0));
    }

    /// Waits until the primary is lost to all, and the backup stands in.
    #[track_caller]
    pub fn wait_replaced(&self) {
        for magent in &self.magents {
            magent.wait_state(&self.names[0], "down");
        }
        for at in 0..self.magents.len() {
            self.watch.wait_written(at);
        }
    }

    /// How many lines the backup's list has.
    pub fn lines(&self) -> usize {
        let mut client = self.backup.client();
        let answer = client.ask_line(LIST);
        let len = answer.strip_prefix("VA ").map_or(0, |len| {
            len.parse::<usize>()
                .unwrap_or_else(|_| panic!("a length in {answer:?}"))
        });
        let list = client.read_exact(len);
        list.iter().filter(|b| **b == b'\n').count()
    }

    /// Waits until nobody keeps the primary away, and it holds what was written last.
    #[track_caller]
    pub fn wait_used(&self) {
        let floors = self.watch.floors();
        let mut client = self.primary.client();
        let mut holds = |at: usize, floor: u64| {
            let value = client.get(&format!("k{at}")).unwrap_or_default();
            let value = String::from_utf8_lossy(&value).parse::<u64>();
            value.unwrap_or(0) >= floor
        };
        wait_for("the primary to be used again", || {
            let is_fresh = floors.iter().enumerate().all(|(at, n)| holds(at, *n));
            let is_kept = |m: &Magent| m.server(&self.names[0]).contains_key("kept_away_by");
            (is_fresh && self.lines() == 0 && !self.magents.iter().any(is_kept)).then_some(())
        });
    }

    /// How often the primary and the backup were flushed.
    pub fn flushes(&self) -> [u64; 2] {
        [&self.primary, &self.backup].map(|server| server.stat("cmd_flush"))
    }

    /// The end: all magents use the primary, no line is left, and nothing old was read.
    #[track_caller]
    pub fn end(self) {
        self.wait_used();
        for magent in &self.magents {
            let state = &magent.server(&self.names[0])["state"];
            assert_ne!(state, "down", "{}", magent.log());
        }
        self.watch.end();
    }
}
