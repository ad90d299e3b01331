//! One connection: its input that is not answered yet, and its answers that are not sent yet.

use super::Entrance;
use super::document::{Document, Form};
use super::http::{self, Refusal};
use super::pages;
use super::task::Task;
use super::text::{self, Asked, Follows};
use crate::buffer::Queue;
use crate::net::{Conn, Socket};
use crate::pools::Merged;
use crate::protocol::Format;
use crate::proxy::Proxy;
use crate::work::{REPORT, Work};
use std::time::{Duration, Instant};

/// Bytes that may wait to be answered: one line of text, or one head of HTTP.
const MAX_INPUT: usize = http::MAX_HEAD;

/// While more bytes of answers than this wait to be sent, no more is made. One report may be longer.
const MAX_OUT: usize = 64 * 1024;

/// Bytes written to one session in one turn.
const MAX_WRITE: usize = 256 * 1024;

/// Units of work for one request: a change is logged, which is a system call.
const ANSWER: usize = 10;

/// Somebody at a terminal may think for so long.
const TEXT_IDLE: Duration = Duration::from_secs(600);

/// A monitor that asks less often connects anew. Counted from one whole request to the next, so that nobody holds a
/// place by sending a byte now and then.
const HTTP_IDLE: Duration = Duration::from_secs(75);

/// Who takes nothing of an answer for so long is closed.
const STALLED: Duration = Duration::from_secs(30);

/// After the last answer the other side gets so long to close first: unread bytes would reset the
/// connection, and the reset may overtake the answer.
const LINGER: Duration = Duration::from_secs(1);

/// What it speaks. Who spoke HTTP once never gives a command: a web page could.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Speaks {
    /// It has sent no line yet.
    Nothing,
    Text,
    Http,
    /// Something else, in which a browser may have been made to wrap lines that look like commands: TLS, STUN.
    Other,
}

impl Speaks {
    /// What a session speaks whose first line this is.
    fn of(line: &[u8]) -> Speaks {
        let is_typed = |b: &u8| !b.is_ascii_control() || matches!(b, b'\t' | b'\r');
        if http::is_first_line(line) {
            Speaks::Http
        } else if line.iter().all(is_typed) {
            Speaks::Text
        } else {
            Speaks::Other
        }
    }
}

/// How it ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ending {
    Open,
    /// What it sent is still answered.
    AfterInput,
    /// Nothing more is answered but what it is in the middle of.
    AfterAnswers,
    /// Until then the other side may close first.
    Lingering(Instant),
    Dead,
}

/// One connection.
#[derive(Debug)]
pub struct Session<S> {
    conn: Conn<S>,
    peer: String,
    through: Entrance,
    speaks: Speaks,
    input: Vec<u8>,
    /// `input` was looked at and holds no whole request.
    is_looked_at: bool,
    task: Task,
    out: Queue,
    ending: Ending,
    /// It has sent a whole request.
    has_asked: bool,
    /// When it connected, or last sent a whole request.
    asked_at: Instant,
    /// Since when it is owed something and took nothing of it.
    owed_since: Option<Instant>,
}

impl<S: Socket> Session<S> {
    /// Somebody has connected.
    pub fn new(io: S, through: Entrance, now: Instant) -> Session<S> {
        let conn = Conn::new(io);
        Session {
            peer: conn.peer(),
            conn,
            through,
            speaks: Speaks::Nothing,
            input: Vec::new(),
            is_looked_at: true,
            task: Task::Nothing,
            out: Queue::new(),
            ending: Ending::Open,
            has_asked: false,
            asked_at: now,
            owed_since: None,
        }
    }

    /// True once it has sent a whole request.
    pub fn has_asked(&self) -> bool {
        self.has_asked
    }

    /// When it connected, or last sent a whole request.
    pub fn asked_at(&self) -> Instant {
        self.asked_at
    }

    /// An event of its socket.
    pub fn note(&mut self, readable: bool, writable: bool, closed: bool) {
        self.conn.note(readable, writable, closed);
    }

    /// Answers what it asked, as far as there is work and room. True if it asks for a reload.
    pub fn serve(
        &mut self,
        number: usize,
        proxy: &mut Proxy<S>,
        work: &mut Work,
        now: Instant,
    ) -> bool {
        if self.is_to_be_told() {
            work.count(REPORT);
            self.has_asked = true;
            self.task = Task::Document(Document::bare(Form::Twemproxy, proxy.snapshot()));
            self.ending = Ending::AfterAnswers;
        }
        let mut asks_for_reload = false;
        while !work.is_done() && self.out.len() < MAX_OUT {
            if self.task.has_more() {
                self.task.go_on(proxy, &mut self.out, work);
            } else if !self.may_ask() {
                break;
            } else if !self.is_looked_at {
                self.is_looked_at = true;
                self.take_request(number, proxy, work, now);
                asks_for_reload |= matches!(self.task, Task::Reload);
            } else if !self.read(work) {
                break;
            }
        }
        self.write(work, now);
        self.end(now);
        asks_for_reload
    }

    /// True for a connection to `--twemproxy-stats` that was not told yet: it need not ask.
    fn is_to_be_told(&self) -> bool {
        self.through == Entrance::Twemproxy && !self.has_asked
    }

    /// True if its next request may be answered.
    fn may_ask(&self) -> bool {
        let is_open = matches!(self.ending, Ending::Open | Ending::AfterInput);
        is_open && matches!(self.task, Task::Nothing)
    }

    /// Reads once; false if there is nothing to be read.
    fn read(&mut self, work: &mut Work) -> bool {
        if self.ending != Ending::Open || !self.conn.is_readable() {
            return false;
        }
        let mut bytes = [0; MAX_INPUT];
        let room = MAX_INPUT - self.input.len();
        match self.conn.read(&mut bytes[..room]) {
            Ok(Some(0)) => self.ending = Ending::AfterInput,
            Ok(Some(n)) => {
                work.count_call(n);
                self.input.extend_from_slice(&bytes[..n]);
                self.is_looked_at = false;
            }
            Ok(None) => return false,
            Err(_) => self.ending = Ending::Dead,
        }
        true
    }

    /// Answers the request at the front of the input, if that is whole.
    fn take_request(&mut self, number: usize, proxy: &mut Proxy<S>, work: &mut Work, now: Instant) {
        let line_end = self.input.iter().position(|b| *b == b'\n');
        if let (Speaks::Nothing, Some(end)) = (self.speaks, line_end) {
            self.speaks = Speaks::of(&self.input[..end]);
        }
        let used = match self.speaks {
            Speaks::Http => http::head_len(&self.input),
            Speaks::Text | Speaks::Other | Speaks::Nothing => line_end.map(|end| end + 1),
        };
        let Some(used) = used else {
            if self.input.len() == MAX_INPUT {
                self.refuse_length();
            }
            return;
        };
        let request: Vec<u8> = self.input.drain(..used).collect();
        self.is_looked_at = self.input.is_empty();
        (self.has_asked, self.asked_at) = (true, now);
        work.count(ANSWER);
        match self.speaks {
            Speaks::Http => {
                let is_tcp = self.through == Entrance::Tcp;
                let (task, stays) = pages::answer(&request, is_tcp, proxy, &mut self.out, work);
                self.task = task;
                if !stays {
                    self.ending = Ending::AfterAnswers;
                }
            }
            Speaks::Other => self.refuse("this is no text"),
            Speaks::Text | Speaks::Nothing => {
                let line = String::from_utf8_lossy(&request);
                let asked = Asked {
                    number,
                    peer: &self.peer,
                    line: &line,
                };
                match text::answer(&asked, proxy, &mut self.out, work) {
                    Follows::Task(task) => self.task = task,
                    Follows::Close => self.ending = Ending::AfterAnswers,
                }
            }
        }
    }

    /// A request that is too long has no end that could be looked for.
    fn refuse_length(&mut self) {
        match self.speaks {
            Speaks::Http => {
                http::refuse(Refusal::TooLong, None, &mut self.out);
                self.ending = Ending::AfterAnswers;
            }
            Speaks::Text | Speaks::Other | Speaks::Nothing => self.refuse("line too long"),
        }
    }

    /// Says what is wrong, and that is the end.
    fn refuse(&mut self, why: &str) {
        text::say(&Err(why.into()), &mut self.out);
        self.ending = Ending::AfterAnswers;
    }

    fn write(&mut self, work: &mut Work, now: Instant) {
        let at = self.out.start();
        let mut written = 0;
        if !self.out.is_empty() && self.conn.is_writable() {
            match self.conn.write(&self.out, at, MAX_WRITE) {
                Ok((bytes, _)) => written = bytes,
                Err(_) => self.ending = Ending::Dead,
            }
            work.count_write(written);
            self.out.release(at + written as u64);
        }
        self.owed_since = match (self.out.is_empty(), written) {
            (true, _) => None,
            (false, 0) => self.owed_since.or(Some(now)),
            (false, _) => Some(now),
        };
    }

    /// Closes it in order, once it is to end and is owed nothing.
    fn end(&mut self, now: Instant) {
        let is_answered = self.out.is_empty() && matches!(self.task, Task::Nothing);
        let is_last = match self.ending {
            Ending::AfterInput => self.is_looked_at,
            Ending::AfterAnswers => true,
            Ending::Lingering(_) => return self.swallow(),
            Ending::Open | Ending::Dead => false,
        };
        if is_answered && is_last {
            self.ending = match self.conn.shutdown_write() {
                Ok(()) if !self.conn.has_ended() => Ending::Lingering(now + LINGER),
                _ => Ending::Dead,
            };
        }
    }

    /// Throws away what comes behind the last answer.
    fn swallow(&mut self) {
        if self.conn.is_readable()
            && !matches!(self.conn.read(&mut [0; MAX_INPUT]), Ok(Some(1..) | None))
        {
            self.ending = Ending::Dead;
        }
    }

    /// Delivers what servers said to its `stats`.
    pub fn reported(&mut self, report: &Merged) {
        if matches!(self.task, Task::Report) {
            self.task = Task::Nothing;
            report.write(Format::Text, &mut self.out);
        }
    }

    /// Answers its `reload`, if it waits for one.
    pub fn reloaded(&mut self, result: Result<(), &str>) {
        if matches!(self.task, Task::Reload) {
            self.task = Task::Nothing;
            text::say(&result.map_err(str::to_string), &mut self.out);
        }
    }

    /// True if it is gone, or its time is over.
    pub fn is_over(&self, now: Instant) -> bool {
        self.ending == Ending::Dead || self.deadline().is_some_and(|at| at <= now)
    }

    fn deadline(&self) -> Option<Instant> {
        if let Some(since) = self.owed_since {
            return Some(since + STALLED);
        }
        match (self.ending, &self.task) {
            (Ending::Lingering(until), _) => Some(until),
            (_, Task::Nothing) if self.speaks == Speaks::Http => Some(self.asked_at + HTTP_IDLE),
            (_, Task::Nothing) => Some(self.asked_at + TEXT_IDLE),
            _ => None,
        }
    }

    /// How long nothing is to be done for it unless an event comes.
    pub fn wait(&self, now: Instant) -> Option<Duration> {
        if self.can_go_on() {
            return Some(Duration::ZERO);
        }
        self.deadline().map(|at| at.saturating_duration_since(now))
    }

    fn can_go_on(&self) -> bool {
        if matches!(self.ending, Ending::Lingering(_)) {
            return self.conn.is_readable();
        }
        if self.is_to_be_told() {
            return true;
        }
        let reads = self.ending == Ending::Open && self.conn.is_readable();
        let answers = self.task.has_more() || self.may_ask() && (!self.is_looked_at || reads);
        let writes = !self.out.is_empty() && self.conn.is_writable();
        writes || self.out.len() < MAX_OUT && answers
    }
}
