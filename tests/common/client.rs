//! A client like a person at telnet, but with deadlines.

use super::{DEADLINE, show};
use socket2::{Domain, SockRef, Socket, Type};
use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The lines of one `stats`: names and values.
pub type Stats = BTreeMap<String, String>;

/// One of its numbers.
#[track_caller]
pub fn number(all: &Stats, name: &str) -> u64 {
    let value = all.get(name);
    let value = value.unwrap_or_else(|| panic!("no {name} in {all:#?}"));
    let number = value.parse();
    number.unwrap_or_else(|_| panic!("{name} is {value}"))
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// One connection. What it reads it keeps until it is asked for.
pub struct Client {
    stream: Stream,
    unread: Vec<u8>,
    eof: bool,
    /// How long one read may take.
    pub deadline: Duration,
}

impl Client {
    /// To 127.0.0.1. The port is free again at once after it, so that a test may open thousands.
    #[track_caller]
    pub fn tcp(port: u16) -> Client {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
        stream.set_nodelay(true).expect("TCP_NODELAY");
        SockRef::from(&stream)
            .set_linger(Some(Duration::ZERO))
            .expect("SO_LINGER");
        Client::over(Stream::Tcp(stream))
    }

    /// The same with a receive buffer of a few KB, so that the other side's writes get stuck in
    /// the middle of whatever they write.
    #[track_caller]
    pub fn narrow(port: u16) -> Client {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.set_recv_buffer_size(4096).expect("SO_RCVBUF");
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        socket.connect(&to.into()).expect("a connection");
        socket.set_tcp_nodelay(true).expect("TCP_NODELAY");
        Client::over(Stream::Tcp(socket.into()))
    }

    /// To a Unix socket.
    #[track_caller]
    pub fn unix(path: &Path) -> Client {
        Client::over(Stream::Unix(
            UnixStream::connect(path).expect("a connection"),
        ))
    }

    fn over(stream: Stream) -> Client {
        let client = Client {
            stream,
            unread: Vec::new(),
            eof: false,
            deadline: DEADLINE,
        };
        let timeout = Some(DEADLINE);
        match &client.stream {
            Stream::Tcp(s) => s.set_write_timeout(timeout),
            Stream::Unix(s) => s.set_write_timeout(timeout),
        }
        .expect("a write timeout");
        client
    }

    /// Sends everything.
    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Client {
        self.try_send(bytes.as_ref())
            .expect("magent takes what is sent");
        self
    }

    /// Sends everything; an error if the other side has closed.
    pub fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.stream {
            Stream::Tcp(s) => s.write_all(bytes),
            Stream::Unix(s) => s.write_all(bytes),
        }
    }

    /// Sends from a thread, so that the other side may answer before it has read everything.
    pub fn send_aside(&self, bytes: Vec<u8>) -> JoinHandle<()> {
        let mut sender: Box<dyn Write + Send> = match &self.stream {
            Stream::Tcp(s) => Box::new(s.try_clone().expect("a second handle")),
            Stream::Unix(s) => Box::new(s.try_clone().expect("a second handle")),
        };
        std::thread::spawn(move || sender.write_all(&bytes).expect("magent takes what is sent"))
    }

    /// A second handle of the same connection, for a thread that only sends.
    pub fn second_handle(&self) -> Client {
        let stream = match &self.stream {
            Stream::Tcp(s) => Stream::Tcp(s.try_clone().expect("a second handle")),
            Stream::Unix(s) => Stream::Unix(s.try_clone().expect("a second handle")),
        };
        Client::over(stream)
    }

    /// "No more from me", as `printf … | nc` says it.
    pub fn half_close(&mut self) -> &mut Client {
        let _ = match &self.stream {
            Stream::Tcp(s) => s.shutdown(Shutdown::Write),
            Stream::Unix(s) => s.shutdown(Shutdown::Write),
        };
        self
    }

    /// Reads once; false at the deadline or the end.
    fn fill(&mut self, end: Instant) -> bool {
        let left = end
            .saturating_duration_since(Instant::now())
            .max(Duration::from_millis(1));
        let mut chunk = [0; 65536];
        let got = match &mut self.stream {
            Stream::Tcp(s) => s
                .set_read_timeout(Some(left))
                .and_then(|()| s.read(&mut chunk)),
            Stream::Unix(s) => s
                .set_read_timeout(Some(left))
                .and_then(|()| s.read(&mut chunk)),
        };
        match got {
            Ok(0) => self.eof = true,
            Ok(n) => self.unread.extend_from_slice(&chunk[..n]),
            Err(e) if e.kind() == ErrorKind::Interrupted => return true,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return false;
            }
            Err(_) => self.eof = true,
        }
        !self.eof
    }

    /// Reads until `whole` says how many bytes are wanted; at the end, or the deadline, what
    /// there is and false.
    fn read_while(&mut self, mut whole: impl FnMut(&[u8]) -> Option<usize>) -> (Vec<u8>, bool) {
        let end = Instant::now() + self.deadline;
        loop {
            if let Some(n) = whole(&self.unread) {
                return (self.unread.drain(..n).collect(), true);
            }
            if self.eof || !self.fill(end) {
                if self.eof && whole(&self.unread).is_some() {
                    continue;
                }
                return (std::mem::take(&mut self.unread), false);
            }
        }
    }

    #[track_caller]
    fn must_read(&mut self, what: &str, whole: impl FnMut(&[u8]) -> Option<usize>) -> Vec<u8> {
        let (bytes, ok) = self.read_while(whole);
        let how = if self.eof {
            "the connection closed"
        } else {
            "nothing more came"
        };
        assert!(
            ok,
            "wanted {what}, but {how} after {} bytes: {}",
            bytes.len(),
            show(&bytes)
        );
        bytes
    }

    /// Exactly `n` bytes.
    #[track_caller]
    pub fn read_exact(&mut self, n: usize) -> Vec<u8> {
        self.must_read(&format!("{n} bytes"), |b| (b.len() >= n).then_some(n))
    }

    /// Takes `n` bytes and keeps none of them.
    #[track_caller]
    pub fn skip_exact(&mut self, n: usize) {
        let mut left = n;
        while left > 0 {
            let some = self.must_read("bytes", |b| (!b.is_empty()).then(|| b.len().min(left)));
            left -= some.len();
        }
    }

    /// One line with its end.
    #[track_caller]
    pub fn read_line(&mut self) -> Vec<u8> {
        self.must_read("a line", |b| {
            b.iter().position(|&c| c == b'\n').map(|i| i + 1)
        })
    }

    /// Everything up to and with `end`.
    #[track_caller]
    pub fn read_until(&mut self, end: &[u8]) -> Vec<u8> {
        let mut from = 0;
        self.must_read(&show(end), |b| {
            let at = b[from..]
                .windows(end.len())
                .position(|w| w == end)
                .map(|i| from + i + end.len());
            from = b.len().saturating_sub(end.len() - 1);
            at
        })
    }

    /// Everything until `whole` is true of it, or the connection ends, or the deadline is over;
    /// true if one of the first two.
    pub fn read_until_true(&mut self, mut whole: impl FnMut(&[u8]) -> bool) -> (Vec<u8>, bool) {
        let (bytes, ok) = self.read_while(|b| whole(b).then_some(b.len()));
        (bytes, ok || self.eof)
    }

    /// Everything that is owed now: a no-op is sent behind it, and its answer ends it.
    #[track_caller]
    pub fn read_until_quiet(&mut self) -> Vec<u8> {
        self.send("mn\r\n");
        let mut all = self.read_until(b"MN\r\n");
        all.truncate(all.len() - 4);
        all
    }

    /// Takes what has arrived in the kernel by now, and keeps none of it; how much that was.
    pub fn take_now(mut self) -> (Client, usize) {
        let Stream::Tcp(stream) = &mut self.stream else {
            panic!("over TCP");
        };
        stream.set_nonblocking(true).expect("O_NONBLOCK");
        let (mut taken, mut chunk) = (self.unread.len(), [0; 65536]);
        while let Ok(n @ 1..) = stream.read(&mut chunk) {
            taken += n;
        }
        stream.set_nonblocking(false).expect("no O_NONBLOCK");
        self.unread.clear();
        (self, taken)
    }

    /// Everything until the connection ends, which it must.
    #[track_caller]
    pub fn read_to_end(&mut self) -> Vec<u8> {
        let end = Instant::now() + self.deadline;
        while !self.eof && self.fill(end) {}
        let bytes = std::mem::take(&mut self.unread);
        assert!(self.eof, "the connection stays open after {}", show(&bytes));
        bytes
    }

    /// Exactly these bytes come next.
    #[track_caller]
    pub fn expect(&mut self, answer: impl AsRef<[u8]>) -> &mut Client {
        let answer = answer.as_ref();
        let (got, _) = self.read_while(|b| {
            // What differs need not be waited for.
            let same = b.iter().zip(answer).all(|(x, y)| x == y);
            (!same || b.len() >= answer.len()).then(|| b.len().min(answer.len()))
        });
        assert!(
            got == answer,
            "wanted {}\n   got {}",
            show(answer),
            show(&got)
        );
        self
    }

    /// `request` is answered with `answer`.
    #[track_caller]
    pub fn ask(&mut self, request: impl AsRef<[u8]>, answer: impl AsRef<[u8]>) -> &mut Client {
        self.send(request).expect(answer)
    }

    /// One line is answered with one line.
    #[track_caller]
    pub fn ask_line(&mut self, request: impl AsRef<[u8]>) -> String {
        let line = self.send(request).read_line();
        String::from_utf8_lossy(&line).trim_end().to_string()
    }

    /// Stores a value.
    #[track_caller]
    pub fn set(&mut self, key: &str, value: impl AsRef<[u8]>) -> &mut Client {
        let value = value.as_ref();
        let head = format!("set {key} 0 0 {}\r\n", value.len());
        self.ask([head.as_bytes(), value, b"\r\n"].concat(), "STORED\r\n")
    }

    /// A plain get; `None` if the key is absent.
    #[track_caller]
    pub fn get(&mut self, key: &str) -> Option<Vec<u8>> {
        let line = self.send(format!("get {key}\r\n")).read_line();
        if line == b"END\r\n" {
            return None;
        }
        let text = String::from_utf8_lossy(&line).into_owned();
        let size = text
            .trim_end()
            .strip_prefix(&format!("VALUE {key} "))
            .and_then(|t| t.split(' ').nth(1)?.parse().ok());
        let size: usize = size.unwrap_or_else(|| panic!("get {key} was answered {text:?}"));
        let value = self.read_exact(size);
        self.expect("\r\nEND\r\n");
        Some(value)
    }

    /// `STAT name value` lines up to `END`.
    #[track_caller]
    pub fn stats(&mut self, request: &str) -> Stats {
        self.send(request);
        let mut all = Stats::new();
        loop {
            let line = String::from_utf8_lossy(&self.read_line())
                .trim_end()
                .to_string();
            if line == "END" {
                return all;
            }
            let field = line.strip_prefix("STAT ").and_then(|l| l.split_once(' '));
            let (name, value) =
                field.unwrap_or_else(|| panic!("{request:?} was answered {line:?}"));
            all.insert(name.to_string(), value.to_string());
        }
    }

    /// Resets the connection, whatever is on its way.
    pub fn vanish(self) {}
}
