//! The load generator: one thread, many clients, each of which sends a batch of requests, waits
//! for all its answers, checks each byte of them, and sends the next.
//!
//! ```text
//! idle ──send batch──▶ waiting ──last answer──▶ idle, or at once the next batch
//! ```

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::socket::{setsockopt, sockopt};

use crate::Result;
use crate::data::{Data, STORED, parse_key, parse_number, random};

/// A run in which nothing is answered for so long has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Room for one read; larger answers take several.
const READ: usize = 256 * 1024;

/// What clients ask.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// A get of so many keys, at most 64.
    Get(usize),
    /// A set.
    Set,
}

/// What one run does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Work {
    /// What is asked.
    pub op: Op,
    /// How many clients ask it.
    pub clients: usize,
    /// How many requests a client sends at once.
    pub depth: usize,
    /// Bytes of a value.
    pub size: usize,
}

/// What one run saw.
pub struct Sample {
    /// Requests sent and answered.
    pub requests: u64,
    /// From the first byte sent to the last received.
    pub time: Duration,
    /// From a batch's sending to each of its answers, in nanoseconds.
    pub latency: Histogram<u64>,
    /// The generator's own processor time.
    pub own: Duration,
}

/// Connected clients.
pub struct Load<'a> {
    work: Work,
    data: &'a Data,
    poll: Poll,
    clients: Vec<Client>,
    seed: u64,
    input: Vec<u8>,
    output: Vec<u8>,
}

struct Client {
    io: TcpStream,
    /// What the socket would not take yet.
    unsent: Vec<u8>,
    /// How much of that went out since.
    unsent_from: usize,
    sent_at: Instant,
    answers: Answers,
}

/// Where in its batch of answers a client is.
#[derive(Default)]
struct Answers {
    /// The number of the batch's first key; the others follow it.
    first: usize,
    /// Answers still to come.
    owed: usize,
    /// Answers complete.
    done: usize,
    /// Which keys of the current answer came, by bit: a proxy may answer in any order.
    seen: u64,
    /// The value that is being read: its number and how many bytes of it came.
    value: Option<(usize, usize)>,
    /// The start of a line whose end has not come.
    line: Vec<u8>,
}

impl<'a> Load<'a> {
    /// Connects all clients to `to`. Each is served once, so that it costs what a client costs.
    pub fn connect(to: SocketAddr, work: Work, data: &'a Data) -> Result<Load<'a>> {
        assert_eq!(work.size, data.size, "the data has the work's size");
        let mut load = Load {
            work,
            data,
            poll: Poll::new()?,
            clients: Vec::with_capacity(work.clients),
            seed: 0x2545_f491_4f6c_dd1d,
            input: vec![0; READ],
            output: Vec::new(),
        };
        for _ in 0..work.clients {
            load.add_client(to)?;
        }
        Ok(load)
    }

    fn add_client(&mut self, to: SocketAddr) -> Result<()> {
        let mut io = std::net::TcpStream::connect(to)?;
        io.set_nodelay(true)?;
        io.set_read_timeout(Some(PATIENCE))?;
        // A reset instead of a farewell: ten thousand ports in TIME_WAIT would be missed.
        let linger = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        setsockopt(&io, sockopt::Linger, &linger)?;
        io.write_all(b"get bench:none\r\n")?;
        let mut answer = [0; 5];
        io.read_exact(&mut answer)
            .map_err(|e| format!("a new client's first get: {e}"))?;
        if answer != *b"END\r\n" {
            return Err(format!("a new client's first get: {}", answer.escape_ascii()).into());
        }
        io.set_nonblocking(true)?;
        let mut io = TcpStream::from_std(io);
        let token = Token(self.clients.len());
        let both = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut io, token, both)?;
        self.clients.push(Client {
            io,
            unsent: Vec::new(),
            unsent_from: 0,
            sent_at: Instant::now(),
            answers: Answers::default(),
        });
        Ok(())
    }

    /// Keeps all clients busy for `time`, then waits for the last answers.
    pub fn run(&mut self, time: Duration) -> Result<Sample> {
        let own = own_time()?;
        let start = Instant::now();
        let end = start + time;
        let mut latency = Histogram::new_with_bounds(1, 60_000_000_000, 3)?;
        for n in 0..self.clients.len() {
            self.send_batch(n, Instant::now())?;
        }
        let mut busy = self.clients.len();
        let mut events = Events::with_capacity(1024);
        while busy > 0 {
            if let Err(e) = self.poll.poll(&mut events, Some(PATIENCE)) {
                if e.kind() == ErrorKind::Interrupted {
                    continue;
                }
                return Err(e.into());
            }
            if events.is_empty() {
                return Err(format!("{busy} clients without an answer for {PATIENCE:?}").into());
            }
            for event in &events {
                let n = event.token().0;
                if event.is_writable() {
                    self.clients[n].flush()?;
                }
                if event.is_readable() && self.receive(n, &mut latency)? {
                    let now = Instant::now();
                    if now < end {
                        self.send_batch(n, now)?;
                    } else {
                        busy -= 1;
                    }
                }
            }
        }
        Ok(Sample {
            requests: latency.len(),
            time: start.elapsed(),
            latency,
            own: own_time()? - own,
        })
    }

    /// Lets each client send one batch, one client after the other.
    pub fn serve_each(&mut self) -> Result<()> {
        let mut latency = Histogram::new(3)?;
        let mut events = Events::with_capacity(1024);
        for n in 0..self.clients.len() {
            self.send_batch(n, Instant::now())?;
            while !self.receive(n, &mut latency)? {
                self.poll.poll(&mut events, Some(PATIENCE))?;
                if events.is_empty() {
                    return Err(format!("no answer for {PATIENCE:?}").into());
                }
                self.clients[n].flush()?;
            }
        }
        Ok(())
    }

    fn send_batch(&mut self, n: usize, now: Instant) -> Result<()> {
        let first = random(&mut self.seed) as usize % self.data.count;
        self.output.clear();
        for i in 0..self.work.depth {
            match self.work.op {
                Op::Get(keys) => self.data.push_get(&mut self.output, first + i * keys, keys),
                Op::Set => self
                    .data
                    .push_set(&mut self.output, (first + i) % self.data.count),
            }
        }
        let client = &mut self.clients[n];
        client.answers.first = first;
        client.answers.owed = self.work.depth;
        client.answers.done = 0;
        client.sent_at = now;
        let sent = write_some(&mut client.io, &self.output)?;
        client.unsent.extend_from_slice(&self.output[sent..]);
        Ok(())
    }

    /// Reads what client `n` was sent; true if that was the last of its batch.
    fn receive(&mut self, n: usize, latency: &mut Histogram<u64>) -> Result<bool> {
        let client = &mut self.clients[n];
        loop {
            let len = match client.io.read(&mut self.input) {
                Ok(0) => return Err("the connection was closed".into()),
                Ok(len) => len,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Err(e.into()),
            };
            let before = client.answers.done;
            client
                .answers
                .check(self.work.op, self.data, &self.input[..len])?;
            let answered = (client.answers.done - before) as u64;
            if answered > 0 {
                let waited = client.sent_at.elapsed().as_nanos() as u64;
                latency.saturating_record_n(waited.max(1), answered);
            }
            if client.answers.owed == 0 {
                return Ok(answered > 0);
            }
            if len < self.input.len() {
                return Ok(false);
            }
        }
    }
}

impl Client {
    fn flush(&mut self) -> Result<()> {
        if !self.unsent.is_empty() {
            self.unsent_from += write_some(&mut self.io, &self.unsent[self.unsent_from..])?;
            if self.unsent_from == self.unsent.len() {
                self.unsent.clear();
                self.unsent_from = 0;
            }
        }
        Ok(())
    }
}

fn write_some(io: &mut TcpStream, bytes: &[u8]) -> Result<usize> {
    let mut sent = 0;
    while sent < bytes.len() {
        match io.write(&bytes[sent..]) {
            Ok(n) => sent += n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => break,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(sent)
}

impl Answers {
    /// Goes on through the batch's answers with the bytes of one read.
    fn check(&mut self, op: Op, data: &Data, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            bytes = match self.value {
                Some((n, got)) => self.check_value(data, n, got, bytes)?,
                None => self.check_line(op, data, bytes)?,
            };
        }
        Ok(())
    }

    /// Compares as much of value `n` as came; returns what follows.
    fn check_value<'b>(
        &mut self,
        data: &Data,
        n: usize,
        got: usize,
        bytes: &'b [u8],
    ) -> Result<&'b [u8]> {
        let value = data.value(n);
        let part = bytes.len().min(value.len().saturating_sub(got));
        let (body, rest) = bytes.split_at(part);
        let end = got + part;
        // The line end counts as the value's last two bytes.
        let close = &b"\r\n"[end.saturating_sub(value.len())..];
        let tail = if end < value.len() {
            0
        } else {
            rest.len().min(close.len())
        };
        if body != &value[got.min(value.len())..end.min(value.len())]
            || rest[..tail] != close[..tail]
        {
            return Err(format!("key {n}: wrong bytes at {got} of its value").into());
        }
        let got = end + tail;
        self.value = (got < value.len() + 2).then_some((n, got));
        Ok(&rest[tail..])
    }

    fn check_line<'b>(&mut self, op: Op, data: &Data, bytes: &'b [u8]) -> Result<&'b [u8]> {
        let Some(end) = bytes.iter().position(|&b| b == b'\n') else {
            self.line.extend_from_slice(bytes);
            return Ok(&[]);
        };
        let (line, rest) = bytes.split_at(end + 1);
        if self.line.is_empty() {
            self.take_line(op, data, line)?;
        } else {
            let mut whole = std::mem::take(&mut self.line);
            whole.extend_from_slice(line);
            self.take_line(op, data, &whole)?;
            whole.clear();
            self.line = whole;
        }
        Ok(rest)
    }

    fn take_line(&mut self, op: Op, data: &Data, line: &[u8]) -> Result<()> {
        let unexpected = || format!("an answer that was not asked for: {}", line.escape_ascii());
        if self.owed == 0 {
            return Err(unexpected().into());
        }
        let Op::Get(keys) = op else {
            if line != STORED {
                return Err(unexpected().into());
            }
            self.next();
            return Ok(());
        };
        let all = u64::MAX >> (64 - keys);
        if line == b"END\r\n" {
            if self.seen != all {
                return Err(format!("keys are missing: {:b} of {all:b} came", self.seen).into());
            }
            self.next();
            return Ok(());
        }
        let n = parse_value_line(line, data.size).ok_or_else(unexpected)?;
        let first = self.first + self.done * keys;
        let place = (n + data.count - first % data.count) % data.count;
        if n >= data.count || place >= keys || self.seen & (1 << place) != 0 {
            return Err(unexpected().into());
        }
        self.seen |= 1 << place;
        self.value = Some((n, 0));
        Ok(())
    }

    fn next(&mut self) {
        self.seen = 0;
        self.owed -= 1;
        self.done += 1;
    }
}

/// The key's number in `VALUE bench:00000001 0 SIZE\r\n`.
fn parse_value_line(line: &[u8], size: usize) -> Option<usize> {
    let (n, rest) = parse_key(line.strip_prefix(b"VALUE ")?)?;
    let digits = rest.strip_prefix(b" 0 ")?.strip_suffix(b"\r\n")?;
    (parse_number(digits)? == size).then_some(n)
}

/// Processor time of this process so far.
fn own_time() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let micros = |t: nix::sys::time::TimeVal| t.tv_sec() as u64 * 1_000_000 + t.tv_usec() as u64;
    Ok(Duration::from_micros(
        micros(usage.user_time()) + micros(usage.system_time()),
    ))
}
