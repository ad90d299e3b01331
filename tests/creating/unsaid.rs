//! A backup that does not say whether it holds the key: nothing is created on a guess. Only `EN`
//! is a miss.

use crate::common::fake::empty;
use crate::common::farm::{Farm, quick, wait_back};
use crate::common::{Client, Fake, FakeLink, Magent, Memcached};
use crate::{back_empty, check_healthy};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Each way to create `K`. (An append with `N` creates nothing in 1.6.18.)
const CREATING: [&str; 4] = [
    "add K 0 0 1\r\nx\r\n",
    "ms K 1 ME\r\nx\r\n",
    "mg K N30 v\r\n",
    "ma K N0 J7 v\r\n",
];

const KEYS: [&str; CREATING.len()] = ["k0", "k1", "k2", "k3"];

/// Asks each of [`CREATING`] for a key of its own, all at once; the answers' first lines.
fn create_all(magent: &Magent) -> Vec<String> {
    let mut clients: Vec<Client> = KEYS.iter().map(|_| magent.client()).collect();
    for ((client, request), key) in clients.iter_mut().zip(CREATING).zip(KEYS) {
        client.send(request.replace('K', key));
    }
    let line = |c: &mut Client| {
        String::from_utf8_lossy(&c.read_line())
            .trim_end()
            .to_string()
    };
    clients.iter_mut().map(line).collect()
}

/// All were refused, and the primary has none of the keys.
#[track_caller]
fn check_refused(answers: &[String], start: &str, primary: &Memcached, what: &str) {
    let held: Vec<&str> = KEYS
        .into_iter()
        .filter(|k| primary.value(k).is_some())
        .collect();
    let right = answers.iter().all(|a| a.starts_with(start));
    assert!(
        right && held.is_empty(),
        "{what}: {answers:?} in place of \"{start}…\" each; the primary holds {held:?}"
    );
}

#[test]
fn a_backup_that_hangs_and_is_not_yet_known_to() {
    let held = KEYS.map(|k| (k, "5"));
    let farm = back_empty(&held, &["--failure-limit", "1000"]);
    let backup = &farm.backups[0];
    backup.stop();
    let answers = create_all(&farm.magent);
    let refused = format!("SERVER_ERROR {} timed out", backup.name);
    check_refused(&answers, &refused, &farm.primaries[0], "a hung backup");
    // Once it speaks again it is as ever.
    backup.cont();
    let mut client = farm.magent.client();
    client.ask("add k0 0 0 1\r\nx\r\n", "NOT_STORED\r\n");
    client.ask("ma k3 N0 J7 v\r\n", "VA 1\r\n6\r\n");
    assert_eq!(client.get("k1").as_deref(), Some(&b"5"[..]));
    check_healthy(&farm);
}

/// The same by the road of a whole outage: it is stopped with looks on their way, goes down, and
/// comes back.
#[test]
fn a_backup_that_goes_down_meanwhile() {
    let farm = back_empty(&KEYS.map(|k| (k, "5")), &["--failure-limit", "1"]);
    let backup = &farm.backups[0];
    backup.stop();
    let answers = create_all(&farm.magent);
    let refused = format!("SERVER_ERROR {} ", backup.name);
    check_refused(&answers, &refused, &farm.primaries[0], "a hung backup");
    backup.cont();
    wait_back(&farm.magent, &backup.name);
    let mut client = farm.magent.client();
    for key in KEYS {
        client.ask(format!("add {key} 0 0 1\r\nx\r\n"), "NOT_STORED\r\n");
    }
}

/// True if a request asks for one of [`KEYS`] and changes nothing.
fn asks(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request);
    let words: Vec<&str> = text.split_whitespace().collect();
    matches!(words[..], ["mg" | "me" | "get", key, ..] if KEYS.contains(&key))
}

/// For backups that answer when all have asked, whenever that is: in milliseconds.
const PATIENT: &str = "5000";

/// A backup that says this once all of [`KEYS`] were asked for, to each; or closes then, if it says
/// nothing. One that answered earlier could be known to be down when the last of them is asked for, and
/// a creating request is sent as it is then.
fn says(answer: &'static str) -> (Magent, Farm, Fake) {
    let asked = AtomicUsize::new(0);
    before(PATIENT, move |link| {
        if (asked.fetch_add(1, Ordering::Relaxed) + 1) % KEYS.len() != 0 {
            return true;
        }
        link.send(answer.repeat(KEYS.len()));
        !answer.is_empty()
    })
}

/// A fresh primary, and a backup that does `this` when it is asked for one of [`KEYS`]; an answer, and
/// a connect, may take so many ms.
fn before(
    timeout: &str,
    this: impl Fn(&mut FakeLink) -> bool + Send + Sync + 'static,
) -> (Magent, Farm, Fake) {
    let backup = Fake::start(move |link| {
        while let Some(request) = link.request() {
            if !asks(&request) {
                link.send(empty(&request));
            } else if !this(link) {
                return;
            }
        }
    });
    let mut farm = Farm::new(1, 1, &[]);
    let options = quick(&["--timeout", timeout, "--connect-timeout", timeout]);
    let options = [&options[..], &["--failure-limit", "100000"]].concat();
    let magent = Magent::farm(&[&farm.primaries[0].name], &[&backup.name], &options);
    farm.backups.clear();
    (magent, farm, backup)
}

#[test]
fn only_en_is_a_miss() {
    for answer in [
        "SERVER_ERROR out of memory\r\n",
        "CLIENT_ERROR bad command line format\r\n",
        "ERROR\r\n",
        "NF\r\n",
        "nonsense\r\n",
        "",
    ] {
        let (magent, farm, _backup) = says(answer);
        let answers = create_all(&magent);
        let what = format!("a backup that says {answer:?}");
        check_refused(&answers, "SERVER_ERROR ", &farm.primaries[0], &what);
    }
    let (magent, farm, _backup) = says("EN\r\n");
    let answers = create_all(&magent);
    assert_eq!(answers, ["STORED", "HD", "VA 0 W", "VA 1"]);
    assert_eq!(farm.primaries[0].value("k0").as_deref(), Some(&b"x"[..]));
}

/// Who waits for a look has his own time, from when he was read: two steps of connect and answer
/// timeout, 1.2 s here, however many wait.
#[test]
fn a_crowd_that_waits_in_vain_is_answered_in_time() {
    const CLIENTS: usize = 200;
    const ADDS: usize = 20;
    let (magent, farm, backup) = before("300", |link| {
        link.silence();
        false
    });
    let primary = &farm.primaries[0];
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| magent.client()).collect();
    let begin = Instant::now();
    for client in &mut clients {
        client.send("add k0 0 0 1\r\nx\r\n".repeat(ADDS));
    }
    let refused = format!("SERVER_ERROR {} timed out\r\n", backup.name);
    for client in &mut clients {
        client.expect(refused.repeat(ADDS));
    }
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(4), "answered after {took:?}");
    assert_eq!(primary.value("k0"), None);
    let facts = magent.server(&primary.name);
    let facts = ["state", "timeouts", "errors", "journal_keys"].map(|f| facts[f].as_str());
    assert_eq!(facts, ["warming", "0", "0", "0"], "of the primary");
    assert_eq!(magent.stat("chases"), 0);
}
