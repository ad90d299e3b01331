//! `flush_all` with a delay: each server counts it by its own clock, so it is passed on as it is.

mod common;

use common::fake::empty;
use common::farm::{Farm, ask_until_down, quick, wait_back};
use common::time::pause_until;
use common::{Client, Fake, Gate, Magent, Memcached, pause_of, wait_for};
use std::thread::scope;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

fn unix_now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.expect("a time").as_secs()
}

#[test]
fn servers_are_sent_the_delay_that_the_client_sent() {
    let fakes: Vec<Fake> = (0..3).map(|_| Fake::answering(empty)).collect();
    let list: Vec<&str> = fakes.iter().map(|f| f.name.as_str()).collect();
    let magent = Magent::farm(&list[..2], &list[2..], &quick(&[]));
    let mut client = magent.client();
    let far = (unix_now() + 5_000_000).to_string();
    let delays = ["1", "2", "60", "2592000", "2592001", &far];
    for delay in delays {
        client.ask(format!("flush_all {delay}\r\n"), "OK\r\n");
    }
    // And of who wants no answer.
    client.ask("flush_all 7 noreply\r\nmn\r\n", "MN\r\n");
    let wanted = delays.iter().chain(&["7"]);
    let wanted: Vec<String> = wanted.map(|d| format!("flush_all {d}\r\n")).collect();
    for fake in &fakes {
        fake.wait_count("flush_all", wanted.len());
        let got = fake.requests();
        let got: Vec<_> = got.iter().map(|r| String::from_utf8_lossy(r)).collect();
        assert_eq!(got, wanted, "{}", fake.name);
    }
}

/// A binary client's delay too: its four bytes are the number.
#[test]
fn a_binary_flush_passes_its_delay_on() {
    let fake = Fake::answering(empty);
    let magent = Magent::farm(&[&fake.name], &[], &quick(&[]));
    let mut client = magent.client();
    let flush = |delay: u32| {
        let mut request = vec![0x80, 0x08, 0, 0, 4, 0, 0, 0, 0, 0, 0, 4];
        request.extend([0; 12]);
        request.extend(delay.to_be_bytes());
        request
    };
    for delay in [3, 100] {
        let answer = client.send(flush(delay)).read_exact(24);
        assert_eq!(answer[6..8], [0, 0], "its status");
    }
    let got = fake.requests().concat();
    let got = String::from_utf8_lossy(&got);
    assert_eq!(got, "flush_all 3\r\nflush_all 100\r\n");
}

/// memcached's second has begun at another time than magent's: what is set when the second is
/// over survives, whenever in a second all that happens.
#[test]
fn what_is_set_after_the_delay_survives() {
    const FARMS: u32 = 15;
    // A tenth more than the delay: memcached's clock ticks beside the thread that serves.
    const OVER: Duration = Duration::from_millis(1100);
    // No timeouts, however busy the machine is.
    let patient = ["--timeout", "20000", "--connect-timeout", "20000"];
    let farms: Vec<Farm> = (0..FARMS).map(|_| Farm::new(1, 0, &patient)).collect();
    let alone = Memcached::start();
    let survives = |mut client: Client, begin: Instant| {
        pause_until(begin);
        client.ask("flush_all 1\r\n", "OK\r\n");
        pause_of(OVER);
        client.set("k", "x");
        // Its clock ticks once more meanwhile.
        pause_of(OVER);
        client.get("k").is_some()
    };
    let begin = Instant::now();
    scope(|s| {
        // Each begins in another fifteenth of a second.
        let at = |i| begin + Duration::from_secs(1) * i / FARMS;
        let all = (0..).zip(&farms);
        let all = all.map(|(i, farm)| s.spawn(move || survives(farm.magent.client(), at(i))));
        let all: Vec<_> = all.collect();
        let control = s.spawn(|| survives(alone.client(), begin));
        assert!(control.join().expect("a control"), "memcached alone");
        let all = all.into_iter().map(|t| t.join().expect("a farm"));
        let lost = all.filter(|survived| !survived).count();
        assert_eq!(lost, 0, "of {FARMS} values");
    });
}

/// A server that is away is told the time at which it ends, since it is told later.
#[test]
fn a_server_that_was_away_is_told_the_absolute_time() {
    let (gate, theirs) = Gate::new();
    let away = Fake::raw(move |link| {
        let asleep = link.number == 0 || !theirs.is_open();
        if link.number > 0 && asleep {
            link.silence();
        } else if link.handshake() {
            if asleep {
                link.silence();
            }
            while let Some(request) = link.request() {
                link.send(empty(&request));
            }
        }
    });
    let other = Fake::answering(empty);
    let options = quick(&["--failure-limit", "1"]);
    let magent = Magent::farm(&[&away.name], &[&other.name], &options);
    ask_until_down(&magent, &away.name, "k");
    let before = unix_now();
    let answer = magent.client().ask_line("flush_all 1000\r\n");
    assert_eq!(answer, format!("SERVER_ERROR {} down", away.name));
    gate.open();
    wait_back(&magent, &away.name);
    let told = wait_for("its flush", || {
        let requests = away.requests();
        requests.into_iter().find(|r| r.starts_with(b"flush_all"))
    });
    let told = String::from_utf8_lossy(&told).trim_end().to_string();
    let at: Option<u64> = told.split(' ').nth(1).and_then(|t| t.parse().ok());
    let wanted = before + 1000..=unix_now() + 1001;
    assert!(
        at.is_some_and(|at| wanted.contains(&at)),
        "{told:?}, not flush_all {wanted:?}"
    );
    let delays = other.count("flush_all 1000\r\n");
    assert_eq!(delays, 1, "the delay goes to the one that is up");
}
