//! Somebody at the door who is up to no good, beside clients of the proxy: they don't feel it, the door answers afterwards, and nothing
//! is left of it.

use super::common::Client;
use super::common::magent::free_port;
use super::common::probe::assert_one_of;
use super::common::{Magent, Memcached, Probe, noise, pause_of, raise_descriptors, wait_for};
use super::http;
use super::{DOOR, with_door};
use socket2::{Domain, Socket, Type};
use std::collections::VecDeque;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long each attack goes on.
const WINDOW: Duration = Duration::from_millis(700);

const GET: &str = "get small\r\n";
const VALUE: &str = "VALUE small 0 5\r\nvvvvv\r\nEND\r\n";

/// More sessions than there are places.
const CROWD: usize = 40;

const METRICS: &str = "GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n";

/// What somebody does to the door at a port until it is over.
struct Attack {
    port: u16,
    over: AtomicBool,
}

impl Attack {
    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    /// A connection that may end at any time, of which no call takes long. A few KB wait to be read at most.
    fn knock(&self) -> TcpStream {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.set_recv_buffer_size(4096).expect("SO_RCVBUF");
        // Its port is free again at once: there are thousands.
        socket.set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
        let door = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        socket.connect(&door.into()).expect("the door is open");
        let stream = TcpStream::from(socket);
        let moment = Some(Duration::from_millis(10));
        stream.set_read_timeout(moment).expect("a timeout");
        stream.set_write_timeout(moment).expect("a timeout");
        stream
    }

    /// Sends the same on connections of its own, again and again, and reads what comes.
    fn repeat(&self, bytes: &[u8]) {
        while self.goes_on() {
            let mut stream = self.knock();
            let _ = stream.write_all(bytes);
            while self.goes_on() && matches!(stream.read(&mut [0; 65536]), Ok(1..)) {}
        }
    }

    /// Asks for much, and takes a byte of it now and then.
    fn slow_readers(&self) {
        let many = (METRICS.to_string() + "stats proxy\n").repeat(50);
        let mut crowd: Vec<TcpStream> = (0..CROWD).map(|_| self.knock()).collect();
        while self.goes_on() {
            for stream in &mut crowd {
                let _ = stream.write(many.as_bytes());
                if !matches!(stream.read(&mut [0]), Ok(1)) {
                    *stream = self.knock();
                }
            }
        }
    }

    /// Heads that come a byte at a time.
    fn slow_heads(&self) {
        let mut crowd: Vec<TcpStream> = (0..CROWD).map(|_| self.knock()).collect();
        for byte in METRICS.as_bytes().iter().take(METRICS.len() - 1).cycle() {
            for stream in &mut crowd {
                if stream.write(&[*byte]).is_err() {
                    *stream = self.knock();
                }
            }
            if !self.goes_on() {
                return;
            }
            pause_of(Duration::from_millis(1));
        }
    }

    fn garbage(&self) {
        self.repeat(&noise(1 << 20));
    }

    /// They connect, a thousand at a time, and ask nothing.
    fn a_thousand_connections(&self) {
        while self.goes_on() {
            let mut crowd = Vec::new();
            while crowd.len() < 1000 && self.goes_on() {
                crowd.push(self.knock());
            }
        }
    }

    /// All places are held by those who ask something, and others come right behind.
    fn who_asks_and_stays(&self) {
        let mut crowd = VecDeque::new();
        while self.goes_on() {
            let mut stream = self.knock();
            let _ = stream.write(b"x\n");
            crowd.push_back(stream);
            if crowd.len() > 2 * CROWD {
                crowd.pop_front();
            }
        }
    }

    fn huge_heads(&self) {
        let fields = "X-Field: value\r\n".repeat(1 << 16);
        self.repeat(format!("GET / HTTP/1.1\r\n{fields}").as_bytes());
    }

    /// Some of a request, and then nothing, or the end.
    fn half_requests(&self) {
        let mut held = Vec::new();
        for len in (1..METRICS.len()).cycle() {
            if !self.goes_on() {
                return;
            }
            let mut stream = self.knock();
            let _ = stream.write(&METRICS.as_bytes()[..len]);
            held.push(stream);
            if held.len() > CROWD {
                held.clear();
            }
        }
    }

    /// All that costs much, asked as fast as it is answered.
    fn floods(&self) {
        let pages = ["/metrics", "/stats.json", "/page.json", "/"];
        let heads = pages.map(|p| format!("GET {p} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"));
        self.repeat((heads.concat().repeat(20) + "GET / HTTP/1.0\r\n\r\n").as_bytes());
    }

    fn floods_of_text(&self) {
        let lines = "stats servers\nstats settings\nconfig\nclients\nslow\nhot\nhelp\n";
        self.repeat((lines.repeat(50) + "quit\n").as_bytes());
    }

    /// What a page of somebody else's may make a browser send.
    fn web_pages(&self) {
        let port = self.port;
        let commands = "stats reset\r\nkill 0\r\nkill 1\r\nlog debug\r\nserver NAME drain\r\n";
        let head = format!(
            "POST / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nOrigin: http://evil.example\r\n\
             Content-Type: text/plain\r\nContent-Length: {}\r\n\r\n{commands}",
            commands.len()
        );
        let foreign =
            format!("GET /page.json HTTP/1.1\r\nHost: evil.example:{port}\r\n\r\n{commands}");
        let hello = [TLS, b"\n", commands.as_bytes()].concat();
        for bytes in [head.as_bytes(), foreign.as_bytes(), &hello].iter().cycle() {
            if !self.goes_on() {
                return;
            }
            let mut stream = self.knock();
            let _ = stream.write_all(bytes);
            while self.goes_on() && matches!(stream.read(&mut [0; 4096]), Ok(1..)) {}
        }
    }
}

/// Ends an attack, also where the test fails.
struct End<'a>(&'a Attack);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}

/// How a TLS session begins.
const TLS: &[u8] = &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];

/// An attack and its name.
type Named = (&'static str, fn(&Attack));

const ATTACKS: [Named; 10] = [
    ("slow readers", Attack::slow_readers),
    ("heads byte by byte", Attack::slow_heads),
    ("garbage", Attack::garbage),
    ("1,000 connections", Attack::a_thousand_connections),
    ("places taken by askers", Attack::who_asks_and_stays),
    ("huge heads", Attack::huge_heads),
    ("half requests", Attack::half_requests),
    ("floods of HTTP", Attack::floods),
    ("floods of text", Attack::floods_of_text),
    ("web pages of others", Attack::web_pages),
];

fn descriptors(magent: &Magent) -> usize {
    let all = fs::read_dir(format!("/proc/{}/fd", magent.pid()));
    all.expect("its descriptors").count()
}

/// An operator who connects is answered, whoever else is there.
#[track_caller]
fn answers(magent: &Magent, port: u16) {
    magent.operator().ask("nonsense\n", "ERROR nonsense\r\n");
    Client::tcp(port).ask("nonsense\n", "ERROR nonsense\r\n");
    assert_eq!(http::get(&mut Client::tcp(port), "/healthz").status, 200);
}

#[test]
fn clients_do_not_feel_what_is_done_to_the_door() {
    raise_descriptors(2000);
    let (server, bare) = (Memcached::start(), Memcached::start());
    let port = free_port();
    let door = format!("127.0.0.1:{port}");
    let options = [&DOOR[..], &["--admin", &door, "-m", "64m"]].concat();
    let magent = Magent::farm(&[&server.name], &[], &options);
    for memcached in [&server, &bare] {
        memcached.client().set("small", "vvvvv");
    }
    magent.client().ask(GET, VALUE);
    let (before, memory) = (descriptors(&magent), magent.memory("VmRSS"));
    for (name, attack) in ATTACKS {
        println!("{name}:");
        let measure = || {
            let probes = [magent.port, bare.port].map(|p| Probe::start(p, GET, VALUE));
            let somebody = Attack {
                port,
                over: AtomicBool::new(false),
            };
            std::thread::scope(|scope| {
                scope.spawn(|| attack(&somebody));
                let _end = End(&somebody);
                let seen = Probe::both_for(WINDOW, probes);
                answers(&magent, port);
                seen
            })
        };
        assert_one_of(measure, |through, bare| through.is_fair(bare));
        answers(&magent, port);
        wait_for("those who came to be forgotten", || {
            (descriptors(&magent) <= before).then_some(())
        });
    }
    let longest = magent.stat("longest_turn_us");
    assert!(longest <= 10_000, "a turn took {longest} µs");
    let held = magent.memory("VmHWM").saturating_sub(memory);
    assert!(held < 16 << 20, "{held} bytes");
    let log = magent.log();
    assert!(
        !log.contains("warn operator "),
        "somebody changed something: {log}"
    );
    // Nothing is left that the loop runs for.
    let polls = magent.stat("polls");
    super::common::measure_for(Duration::from_millis(200));
    let more = magent.stat("polls") - polls;
    assert!(more < 200, "{more} turns of which nobody has anything");
}

/// A browser may be made to speak TLS or STUN, with lines in it that somebody else has chosen.
#[test]
fn who_begins_with_anything_but_text_gives_no_commands() {
    let magent = with_door(&[]);
    let stun = [0, 3, 0, 80, 0x21, 0x12, 0xa4, 0x42];
    for begins in [TLS, &stun, b"\x7f", b"\0"] {
        for commands in ["\nlog debug\nkill 0\n", "log debug\nkill 0\n"] {
            let mut client = magent.operator();
            client.send([begins, commands.as_bytes()].concat());
            assert_eq!(client.read_to_end(), b"ERROR this is no text\r\n");
        }
    }
    assert!(!magent.log().contains("warn operator "));
}
