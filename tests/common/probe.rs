//! A well-behaved client beside others that are not: small requests, one after another, and how
//! long each took.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{measure_for, pause_of, show};

/// Between two requests, so that a stall meets as many of them as it is long.
const PAUSE: Duration = Duration::from_millis(1);

/// Between two looks at whether the measurement is over.
const LOOK: Duration = Duration::from_millis(10);

/// Nobody minds this, however fast a bare memcached is.
const NOBODY_MINDS: Duration = Duration::from_millis(20);

/// Everybody minds this, however slow the whole machine is.
const EVERYBODY_MINDS: Duration = Duration::from_millis(250);

/// Tries of a measurement: a fault shows each time, a busy machine does not.
const TRIES: usize = 3;

/// Asks from its start until its end, on a connection and in a thread of its own.
pub struct Probe {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Duration>>,
}

/// What a [`Probe`] saw, shortest first.
pub struct Latencies(Vec<Duration>);

impl Probe {
    /// Sends `request` to 127.0.0.1 again and again; each must be answered with `answer`.
    pub fn start(port: u16, request: &str, answer: &str) -> Probe {
        let over = Arc::new(AtomicBool::new(false));
        let (request, answer) = (request.to_string(), answer.to_string());
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
        stream.set_nodelay(true).expect("TCP_NODELAY");
        stream.set_read_timeout(Some(LOOK)).expect("a timeout");
        let is_over = over.clone();
        let thread = std::thread::spawn(move || {
            let mut all = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                let began = Instant::now();
                stream.write_all(request.as_bytes()).expect("it is read");
                read(&mut stream, answer.as_bytes(), &is_over);
                // One that is not answered yet counts with what it took so far.
                all.push(began.elapsed());
                pause_of(PAUSE);
            }
            all
        });
        Probe { over, thread }
    }

    /// What the one that goes through magent and the one that goes past it see in a window.
    pub fn both_for(window: Duration, probes: [Probe; 2]) -> (Latencies, Latencies) {
        measure_for(window);
        let [through, past] = probes.map(Probe::end);
        (through, past)
    }

    /// Ends, also in the middle of a request.
    pub fn end(self) -> Latencies {
        self.over.store(true, Ordering::Relaxed);
        let mut all = self.thread.join().expect("every answer is right");
        all.sort();
        Latencies(all)
    }
}

fn read(stream: &mut TcpStream, answer: &[u8], is_over: &AtomicBool) {
    let (mut got, mut chunk) = (Vec::new(), [0; 4096]);
    while got.len() < answer.len() && !is_over.load(Ordering::Relaxed) {
        match stream.read(&mut chunk) {
            Ok(0) => panic!("the connection closed"),
            Ok(n) => got.extend_from_slice(&chunk[..n]),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(e) => panic!("{e}"),
        }
        assert!(answer.starts_with(&got), "a probe got {}", show(&got));
    }
}

impl Latencies {
    /// Answers.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The longest.
    pub fn worst(&self) -> Duration {
        self.0.last().copied().unwrap_or_default()
    }

    /// 999 of 1,000 took no longer.
    pub fn p999(&self) -> Duration {
        let at = self.0.len() - 1 - self.0.len() / 1000;
        self.0[at]
    }

    /// True if those who went through magent fared about as those who went past it, `bare`.
    pub fn is_fair(&self, bare: &Latencies) -> bool {
        self.p999() <= (10 * bare.p999()).clamp(NOBODY_MINDS, EVERYBODY_MINDS)
    }
}

impl std::fmt::Display for Latencies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            return write!(f, "no answers");
        }
        let ms = |d: Duration| d.as_secs_f64() * 1000.0;
        let (count, p999, worst) = (self.count(), ms(self.p999()), ms(self.worst()));
        write!(
            f,
            "{count} answers, p99.9 {p999:.1} ms, worst {worst:.1} ms"
        )
    }
}

/// `measure` gives what a client saw through magent and past it; in one of a few tries the former
/// must be no worse than a small multiple of the latter.
#[track_caller]
pub fn assert_fair(measure: impl FnMut() -> (Latencies, Latencies)) {
    assert_one_of(measure, |through, bare| through.is_fair(bare));
}

/// The same with another rule.
#[track_caller]
pub fn assert_one_of(
    mut measure: impl FnMut() -> (Latencies, Latencies),
    is_good: impl Fn(&Latencies, &Latencies) -> bool,
) {
    let mut seen = Vec::new();
    for _ in 0..TRIES {
        let (through, bare) = measure();
        let line = format!("through magent {through}; past it {bare}");
        println!("{line}");
        if is_good(&through, &bare) {
            return;
        }
        seen.push(line);
    }
    panic!("in {TRIES} tries:\n{}", seen.join("\n"));
}
