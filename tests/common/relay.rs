//! A server between a magent and a real memcached: it notes what is asked, and holds requests back while a
//! test does something else.

use super::fake::FakeLink;
use super::{Fake, Memcached, wait_for};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};

/// What a relay holds back: requests that begin so, and what comes behind them on their link.
type Held = Arc<Mutex<Option<&'static str>>>;

/// One server as one magent reaches it.
pub struct Relay {
    fake: Fake,
    /// `127.0.0.1:PORT`.
    pub name: String,
    held: Held,
    /// Requests that wait.
    waiting: Arc<Mutex<usize>>,
}

impl Relay {
    /// In front of `server`.
    pub fn new(server: &Memcached) -> Relay {
        let (held, waiting) = (Held::default(), Arc::new(Mutex::new(0)));
        let (port, theirs, count) = (server.port, held.clone(), waiting.clone());
        let fake = Fake::raw(move |link| {
            forward(link, port, &theirs, &count);
        });
        let name = fake.name.clone();
        Relay {
            fake,
            name,
            held,
            waiting,
        }
    }

    /// Holds requests that begin so.
    pub fn hold(&self, start: &'static str) {
        *self.held.lock().expect("what is held") = Some(start);
    }

    /// Waits until one is held.
    #[track_caller]
    pub fn wait_held(&self) {
        wait_for("a request that is held", || {
            (*self.waiting.lock().expect("a count") > 0).then_some(())
        });
    }

    /// Lets all go on.
    pub fn release(&self) {
        *self.held.lock().expect("what is held") = None;
    }

    /// What was asked so far, but what concerns magents' own keys, and how it began.
    pub fn requests(&self) -> Vec<String> {
        let all = self.fake.requests().into_iter();
        let text = all.map(|r| String::from_utf8_lossy(&r).into_owned());
        let is_own = |r: &String| r.contains(" AG1hZ2VudC9") || r.contains("warmup");
        text.filter(|r| !is_own(r) && *r != "version\r\n" && *r != "stats\r\n")
            .collect()
    }

    /// Waits until what was asked since `from` is `want`: a request for each, `#` stands for a number.
    #[track_caller]
    pub fn wait_asked(&self, from: usize, want: &[&str]) {
        let mut last = Vec::new();
        let found = super::time::look_within(super::DEADLINE, || {
            last = self.requests().split_off(from);
            let is_same = |(got, want): (&String, &&str)| numbers_hidden(got, want);
            let all = last.len() >= want.len() && last.iter().zip(want).all(is_same);
            all.then_some(())
        });
        assert!(
            found.is_some(),
            "{} was asked {last:?}, not {want:?}",
            self.name
        );
    }
}

/// True if both are the same where `want` has no `#`, and there a number stands.
fn numbers_hidden(got: &str, want: &str) -> bool {
    let Some((before, behind)) = want.split_once('#') else {
        return got == want;
    };
    let rest = got
        .strip_prefix(before)
        .and_then(|r| r.strip_suffix(behind));
    rest.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

fn forward(link: &mut FakeLink, port: u16, held: &Held, waiting: &Mutex<usize>) -> Option<()> {
    let mut server = TcpStream::connect(("127.0.0.1", port)).ok()?;
    let mut answers = BufReader::new(server.try_clone().ok()?);
    loop {
        let request = link.request_or_probe()?;
        let is_held = || {
            let held = held.lock().expect("what is held");
            held.is_some_and(|start| request.starts_with(start.as_bytes()))
        };
        if is_held() {
            *waiting.lock().expect("a count") += 1;
            link.wait(|| !is_held());
            *waiting.lock().expect("a count") -= 1;
        }
        server.write_all(&request).ok()?;
        link.send(read_answer(&mut answers, &request)?);
    }
}

/// One whole answer; `None` if the server is gone.
fn read_answer(server: &mut BufReader<TcpStream>, request: &[u8]) -> Option<Vec<u8>> {
    let is_list = [&b"get"[..], b"stats", b"lru_crawler"]
        .iter()
        .any(|s| request.starts_with(s));
    let mut answer = Vec::new();
    loop {
        let from = answer.len();
        server
            .read_until(b'\n', &mut answer)
            .ok()
            .filter(|n| *n > 0)?;
        let text = String::from_utf8_lossy(&answer[from..]).into_owned();
        let words: Vec<&str> = text.split_whitespace().collect();
        let value = match words.first().copied() {
            Some("VA") => words.get(1),
            Some("VALUE") => words.get(3),
            _ => None,
        };
        if let Some(len) = value {
            let mut data = vec![0; len.parse::<usize>().ok()? + 2];
            server.read_exact(&mut data).ok()?;
            answer.extend(data);
        }
        if !is_list || matches!(words.first(), Some(&("END" | "ERROR" | "SERVER_ERROR"))) {
            return Some(answer);
        }
    }
}
