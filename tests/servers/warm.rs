//! A primary that came back empty is not felt, whatever is asked of it.

use crate::common::{Client, Memcached, keys, show, wait_for};
use crate::{Farm, held, wait_back};

/// What one command does to `k`, which holds `5` with flags 7: what the client reads, and what
/// is there afterwards. `*` in an answer stands for a number that is not known.
const PRESENT: &[(&str, &str, Option<&str>)] = &[
    ("get k\r\n", "VALUE k 7 1\r\n5\r\nEND\r\n", Some("5")),
    ("gets k\r\n", "VALUE k 7 1 *\r\n5\r\nEND\r\n", Some("5")),
    ("get k other\r\n", "VALUE k 7 1\r\n5\r\nEND\r\n", Some("5")),
    (
        "gets other k\r\n",
        "VALUE k 7 1 *\r\n5\r\nEND\r\n",
        Some("5"),
    ),
    ("gat 900 k\r\n", "VALUE k 7 1\r\n5\r\nEND\r\n", Some("5")),
    ("gats 900 k\r\n", "VALUE k 7 1 *\r\n5\r\nEND\r\n", Some("5")),
    (
        "gat 900 k other\r\n",
        "VALUE k 7 1\r\n5\r\nEND\r\n",
        Some("5"),
    ),
    ("touch k 900\r\n", "TOUCHED\r\n", Some("5")),
    ("incr k 3\r\n", "8\r\n", Some("8")),
    ("decr k 3\r\n", "2\r\n", Some("2")),
    ("append k 0 0 1\r\nx\r\n", "STORED\r\n", Some("5x")),
    ("prepend k 0 0 1\r\nx\r\n", "STORED\r\n", Some("x5")),
    ("replace k 0 0 1\r\nx\r\n", "STORED\r\n", Some("x")),
    ("cas k 0 0 1 99999999\r\nx\r\n", "EXISTS\r\n", Some("5")),
    ("add k 0 0 1\r\nx\r\n", "NOT_STORED\r\n", Some("5")),
    ("delete k\r\n", "DELETED\r\n", None),
    ("mg k\r\n", "HD\r\n", Some("5")),
    ("mg k f s v\r\n", "VA 1 f7 s1\r\n5\r\n", Some("5")),
    ("mg k k O1 q v\r\n", "VA 1 kk O1\r\n5\r\n", Some("5")),
    ("mg aw== b v\r\n", "VA 1\r\n5\r\n", Some("5")),
    ("mg k T900 v\r\n", "VA 1\r\n5\r\n", Some("5")),
    ("mg k N30 v\r\n", "VA 1\r\n5\r\n", Some("5")),
    ("ms k 1 ME\r\nx\r\n", "NS\r\n", Some("5")),
    ("ms k 1 MR\r\nx\r\n", "HD\r\n", Some("x")),
    ("ms k 1 MA\r\nx\r\n", "HD\r\n", Some("5x")),
    ("ms k 1 MP\r\nx\r\n", "HD\r\n", Some("x5")),
    ("ms k 1 MA N0\r\nx\r\n", "HD\r\n", Some("5x")),
    ("ms k 1 C99999999\r\nx\r\n", "EX\r\n", Some("5")),
    ("ma k\r\n", "HD\r\n", Some("6")),
    ("ma k v D3\r\n", "VA 1\r\n8\r\n", Some("8")),
    ("ma k v MD\r\n", "VA 1\r\n4\r\n", Some("4")),
    ("ma k N0 J100 v\r\n", "VA 1\r\n6\r\n", Some("6")),
    ("md k\r\n", "HD\r\n", None),
    ("set k 0 0 1\r\nx\r\n", "STORED\r\n", Some("x")),
    ("add k 0 0 1 noreply\r\nx\r\n", "", Some("5")),
    ("incr k 3 noreply\r\n", "", Some("8")),
    ("delete k noreply\r\n", "", None),
    // Pipelined: what follows a command sees what it did.
    (
        "get k\r\ndelete k\r\nget k\r\n",
        "VALUE k 7 1\r\n5\r\nEND\r\nDELETED\r\nEND\r\n",
        None,
    ),
    (
        "get k\r\nset k 0 0 1\r\nx\r\nget k\r\n",
        "VALUE k 7 1\r\n5\r\nEND\r\nSTORED\r\nVALUE k 0 1\r\nx\r\nEND\r\n",
        Some("x"),
    ),
    ("incr k 1\r\nincr k 1\r\n", "6\r\n7\r\n", Some("7")),
    (
        "add k 0 0 1\r\nx\r\nget k\r\n",
        "NOT_STORED\r\nVALUE k 7 1\r\n5\r\nEND\r\n",
        Some("5"),
    ),
    (
        "delete k\r\nadd k 0 0 1\r\nx\r\n",
        "DELETED\r\nSTORED\r\n",
        Some("x"),
    ),
];

/// The same of a key that neither server has.
const ABSENT: &[(&str, &str, Option<&str>)] = &[
    ("get k\r\n", "END\r\n", None),
    ("get k other\r\n", "END\r\n", None),
    ("gat 900 k\r\n", "END\r\n", None),
    ("touch k 900\r\n", "NOT_FOUND\r\n", None),
    ("incr k 3\r\n", "NOT_FOUND\r\n", None),
    ("append k 0 0 1\r\nx\r\n", "NOT_STORED\r\n", None),
    ("replace k 0 0 1\r\nx\r\n", "NOT_STORED\r\n", None),
    ("cas k 0 0 1 99999999\r\nx\r\n", "NOT_FOUND\r\n", None),
    ("add k 0 0 1\r\nx\r\n", "STORED\r\n", Some("x")),
    ("delete k\r\n", "NOT_FOUND\r\n", None),
    ("mg k v\r\n", "EN\r\n", None),
    ("mg k v q\r\n", "", None),
    ("mg k N30 v\r\n", "VA 0 W\r\n\r\n", Some("")),
    ("ms k 1 ME\r\nx\r\n", "HD\r\n", Some("x")),
    ("ms k 1 MR\r\nx\r\n", "NS\r\n", None),
    ("ms k 1 MA\r\nx\r\n", "NS\r\n", None),
    ("ms k 1 MA N0\r\nx\r\n", "NS\r\n", None),
    ("ms k 1 C9999\r\nx\r\n", "NF\r\n", None),
    ("ma k\r\n", "NF\r\n", None),
    ("ma k N0 J100 v\r\n", "VA 3\r\n100\r\n", Some("100")),
    ("md k\r\n", "NF\r\n", None),
];

/// One binary request: opcode, extras, key `k`, value.
fn binary(opcode: u8, extras: &[u8], value: &[u8]) -> Vec<u8> {
    let body = (extras.len() + 1 + value.len()) as u32;
    let mut b = vec![0x80, opcode, 0, 1, extras.len() as u8, 0, 0, 0];
    b.extend(body.to_be_bytes());
    b.extend([0; 12]);
    [&b, extras, b"k", value].concat()
}

/// Opcode, extras, value; status, extras and value of the answer; what is there afterwards.
type BinaryRow = (
    u8,
    &'static [u8],
    &'static [u8],
    u16,
    &'static [u8],
    Option<&'static str>,
);

const FLAGS_7: &[u8] = &[0, 0, 0, 7, b'5'];
const STORE: &[u8] = &[0; 8];
/// By 1, from 100 on, for ever.
const COUNT: &[u8] = &[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 100, 0, 0, 0, 0];

const BINARY: &[BinaryRow] = &[
    (0x00, &[], &[], 0, FLAGS_7, Some("5")),
    (0x02, STORE, b"x", 2, b"Data exists for key.", Some("5")),
    (0x03, STORE, b"x", 0, &[], Some("x")),
    (0x04, &[], &[], 0, &[], None),
    (0x05, COUNT, &[], 0, &[0, 0, 0, 0, 0, 0, 0, 6], Some("6")),
    (0x06, COUNT, &[], 0, &[0, 0, 0, 0, 0, 0, 0, 4], Some("4")),
    (0x0e, &[], b"x", 0, &[], Some("5x")),
    (0x0f, &[], b"x", 0, &[], Some("x5")),
    (0x1c, &[0, 0, 3, 0], &[], 0, &[0, 0, 0, 7], Some("5")),
    (0x1d, &[0, 0, 3, 0], &[], 0, FLAGS_7, Some("5")),
];

fn digits_as_stars(answer: &[u8]) -> String {
    // Only a cas number is the fifth word of a VALUE line.
    let text = String::from_utf8_lossy(answer).into_owned();
    let line = |l: &str| {
        let mut words: Vec<&str> = l.split(' ').collect();
        if words.len() == 5 && words[0] == "VALUE" {
            words[4] = "*";
        }
        words.join(" ")
    };
    text.split("\r\n")
        .map(line)
        .collect::<Vec<_>>()
        .join("\r\n")
}

/// How magent gets to know that the primary was away.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Notice {
    /// By the handshake that the request itself waits for.
    ByThisRequest,
    /// Long before.
    Before,
}

struct Pair {
    farm: Farm,
    client: Client,
}

impl Pair {
    fn new() -> Pair {
        let farm = Farm::new(1, 1, &[]);
        let client = farm.magent.client();
        Pair { farm, client }
    }

    /// The backup alone holds `value`; the primary is fresh.
    fn prepare(&mut self, value: Option<&str>, notice: Notice) {
        let (primary, backup) = (&mut self.farm.primaries[0], &self.farm.backups[0]);
        self.client.send("set k 7 0 1\r\n5\r\ndelete other\r\n");
        self.client.expect("STORED\r\n").read_line();
        if value.is_none() {
            self.client.send("delete k\r\n").read_line();
        }
        backup.wait_value("k", value.map(str::as_bytes));
        primary.restart();
        if notice == Notice::Before {
            let old = self.farm.magent.server(&primary.name)["connects"].clone();
            self.client.send("mg nothing\r\n").read_line();
            wait_back(&self.farm.magent, &primary.name);
            assert_ne!(self.farm.magent.server(&primary.name)["connects"], old);
        }
        assert_eq!(primary.value("k"), None);
    }

    /// Both servers hold `value`, and clients read it.
    fn check(&mut self, value: Option<&str>, row: &str) {
        let value = value.map(str::as_bytes);
        // Where the two might become different, the backup is told to delete.
        if !row.contains(" N") {
            self.farm.backups[0].wait_value("k", value);
        }
        assert_eq!(self.client.get("k").as_deref(), value, "read after {row}");
        // It may have been found down for a moment: then the backup answers, and what an `mg` with N left
        // there is not copied.
        if value == Some(b"") {
            return;
        }
        wait_for("the primary to have it too", || {
            self.client.get("k");
            let held = self.farm.primaries[0].value("k");
            (held.as_deref() == value).then_some(())
        });
    }
}

fn run_rows(rows: &[(&str, &str, Option<&str>)], before: Option<&str>, notice: Notice) {
    let mut pair = Pair::new();
    for (request, answer, after) in rows {
        let row = format!("{} ({notice:?}, k is {before:?})", request.escape_debug());
        pair.prepare(before, notice);
        pair.client.send(request);
        let got = digits_as_stars(&pair.client.read_until_quiet());
        assert_eq!(&got, answer, "{row}");
        pair.check(*after, &row);
    }
}

#[test]
fn every_command_finds_what_only_the_backup_has() {
    run_rows(PRESENT, Some("5"), Notice::Before);
}

#[test]
fn every_command_finds_it_too_if_nobody_asked_before() {
    run_rows(PRESENT, Some("5"), Notice::ByThisRequest);
}

#[test]
fn what_neither_has_is_absent() {
    run_rows(ABSENT, None, Notice::Before);
    run_rows(ABSENT, None, Notice::ByThisRequest);
}

#[test]
fn binary_clients_find_what_only_the_backup_has() {
    for notice in [Notice::Before, Notice::ByThisRequest] {
        let mut pair = Pair::new();
        for (opcode, extras, value, status, body, after) in BINARY {
            let row = format!("opcode {opcode:#x} ({notice:?})");
            pair.prepare(Some("5"), notice);
            let mut client = pair.farm.magent.client();
            client.send(binary(*opcode, extras, value));
            let head = client.read_exact(24);
            let len = u32::from_be_bytes([head[8], head[9], head[10], head[11]]);
            let got = client.read_exact(len as usize);
            assert_eq!(
                u16::from_be_bytes([head[6], head[7]]),
                *status,
                "{row}: {}",
                show(&got)
            );
            assert_eq!(show(&got), show(body), "{row}");
            pair.check(*after, &row);
        }
    }
}

#[test]
fn a_copy_keeps_flags_and_time_to_live() {
    let mut farm = Farm::new(1, 1, &[]);
    let mut client = farm.magent.client();
    let mut stored = Vec::new();
    for (key, exptime) in [
        ("ever", 0),
        ("minutes", 300),
        ("month", 30 * 86_400),
        ("far", 1_000_000_000),
    ] {
        // An absolute time must lie ahead; far is behind, and so gone at once.
        client.ask(format!("set {key} 42 {exptime} 1\r\nx\r\n"), "STORED\r\n");
        stored.push(key);
    }
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("a time")
        .as_secs();
    client.ask(
        format!("set year 42 {} 1\r\nx\r\n", now + 366 * 86_400),
        "STORED\r\n",
    );
    client.ask("set soon 42 2 1\r\nx\r\n", "STORED\r\n");
    farm.backups[0].wait_value("soon", Some(b"x"));
    farm.primaries[0].restart();
    assert_eq!(client.get("far"), None);
    for (key, ttl) in [
        ("ever", -1),
        ("minutes", 300),
        ("month", 30 * 86_400),
        ("year", 366 * 86_400),
        ("soon", 2),
    ] {
        let Some(got) = client.get(key) else {
            assert_eq!(key, "soon", "only that one may be gone by now");
            continue;
        };
        assert_eq!(got, b"x");
        let Some((flags, left, _)) = held(&farm.primaries[0], key) else {
            assert_eq!(key, "soon");
            continue;
        };
        assert_eq!(flags, 42, "{key}");
        assert!(
            left <= ttl + 2 && left >= ttl - 10 && (left == -1) == (ttl == -1),
            "{key}: {left}"
        );
    }
    wait_for("the end of soon", || {
        client.get("soon").is_none().then_some(())
    });
}

#[test]
fn a_primary_is_warming_by_its_own_uptime() {
    let mut farm = Farm::new(1, 1, &["--warm", "1", "--refill", "0"]);
    let mut client = farm.magent.client();
    client.set("k", "x");
    farm.backups[0].wait_value("k", Some(b"x"));
    // memcached begins to count at 2.
    farm.magent.wait_state(&farm.primaries[0].name, "up");
    farm.primaries[0].restart();
    client.ask("get k\r\n", "END\r\n");
    assert_eq!(farm.magent.stat("fetches"), 0);

    let mut farm = Farm::new(1, 1, &["--warm", "0", "--refill", "0"]);
    let mut client = farm.magent.client();
    client.set("k", "x");
    farm.backups[0].wait_value("k", Some(b"x"));
    farm.primaries[0].kill();
    client.set("k", "y");
    farm.primaries[0].restart();
    wait_back(&farm.magent, &farm.primaries[0].name);
    client.ask("get k\r\n", "END\r\n");
    assert_eq!(farm.magent.server(&farm.primaries[0].name)["state"], "up");
}

/// That a primary restarted shows in the handshake only: what is asked before its end, by a
/// request that finds no connection, must be treated as if the primary were warming.
#[test]
fn a_restart_is_known_before_anything_is_created_or_copied() {
    // memcached begins to count at 2.
    let mut farm = Farm::new(1, 1, &["--warm", "4"]);
    let mut client = farm.magent.client();
    for key in ["k1", "k2", "k3", "k4", "k5"] {
        client.set(key, "5");
    }
    farm.backups[0].wait_value("k5", Some(b"5"));
    farm.magent.wait_state(&farm.primaries[0].name, "up");
    farm.primaries[0].restart();
    client.send("add k1 0 0 1\r\nx\r\nms k2 1 ME\r\nx\r\nma k3 N0 J100 v\r\n");
    client.send("get k4\r\ndelete k4\r\nincr k5 1\r\n");
    client.expect("NOT_STORED\r\nNS\r\nVA 1\r\n6\r\n");
    client.expect("VALUE k4 0 1\r\n5\r\nEND\r\nDELETED\r\n6\r\n");
    client.ask("get k4\r\n", "END\r\n");
    farm.magent.wait_state(&farm.primaries[0].name, "warming");
    assert_eq!(client.get("k1").as_deref(), Some(&b"5"[..]));
    assert_eq!(farm.primaries[0].value("k4"), None);
}

#[test]
fn a_hundred_clients_share_one_fetch() {
    let mut farm = Farm::new(1, 1, &["--timeout", "2000", "--alone"]);
    let mut client = farm.magent.client();
    client.set("k", "x");
    farm.backups[0].wait_value("k", Some(b"x"));
    farm.primaries[0].restart();
    client.send("mg other\r\n").read_line();
    client.ask("mn\r\n", "MN\r\n");
    let before = farm.magent.stat("fetches");
    farm.backups[0].stop();
    let mut clients: Vec<Client> = (0..100).map(|_| farm.magent.client()).collect();
    for c in &mut clients {
        c.send("get k\r\n");
    }
    wait_for("magent to know that the primary lacks it", || {
        let owed = &farm.magent.server(&farm.primaries[0].name)["in_flight"];
        (farm.primaries[0].stat("get_misses") >= 100 && owed == "0").then_some(())
    });
    farm.backups[0].cont();
    for c in &mut clients {
        c.expect("VALUE k 0 1\r\nx\r\nEND\r\n");
    }
    assert_eq!(farm.magent.stat("fetches") - before, 1);
    assert_eq!(farm.magent.stat("repairs"), 1);
    assert_eq!(
        farm.magent.server(&farm.primaries[0].name)["keys_copied"],
        "1"
    );
}

#[test]
fn a_token_of_the_backup_is_good_there_only() {
    let mut farm = Farm::new(1, 1, &[]);
    let mut client = farm.magent.client();
    let token = |client: &mut Client| -> u64 {
        let line = client.ask_line("gets k\r\n");
        client.expect("x\r\nEND\r\n");
        line.rsplit(' ')
            .next()
            .and_then(|t| t.parse().ok())
            .expect("a token")
    };
    client.set("k", "x");
    farm.backups[0].wait_value("k", Some(b"x"));
    let of_primary = token(&mut client);
    farm.primaries[0].kill();
    let of_backup = token(&mut client);
    assert_eq!((of_primary >> 62 & 1, of_backup >> 62 & 1), (0, 1));
    client.ask(format!("cas k 0 0 1 {of_primary}\r\ny\r\n"), "EXISTS\r\n");
    client.ask(format!("ms k 1 C{of_primary}\r\ny\r\n"), "EX\r\n");
    client.ask(format!("cas k 0 0 1 {of_backup}\r\nx\r\n"), "STORED\r\n");
    let of_backup = token(&mut client);
    farm.primaries[0].restart();
    wait_back(&farm.magent, &farm.primaries[0].name);
    client.ask(format!("cas k 0 0 1 {of_backup}\r\ny\r\n"), "EXISTS\r\n");
    client.ask(
        format!("cas none 0 0 1 {of_backup}\r\ny\r\n"),
        "NOT_FOUND\r\n",
    );
    assert_eq!(token(&mut client) >> 62, 0, "from here on the primary's");
}

#[test]
fn keys_of_many_servers_in_one_get() {
    let mut primaries: Vec<Memcached> = (0..2).map(|_| Memcached::start()).collect();
    primaries.push(Memcached::start());
    let mut farm = Farm::of(primaries, vec![Memcached::start()], &["--alone"]);
    let mut client = farm.magent.client();
    let all: Vec<String> = (0..3)
        .flat_map(|s| (0..20).map(move |n| keys::key_on(s, 3, "k", n)))
        .collect();
    for key in &all {
        client.set(key, key);
    }
    wait_for("all copies", || {
        (farm.backups[0].stat("curr_items") == 60).then_some(())
    });
    farm.primaries[1].restart();
    let line = format!("get {} none\r\n", all.join(" "));
    let mut answers = Vec::new();
    for _ in 0..2 {
        client.send(&line);
        let answer = client.read_until(b"\r\nEND\r\n");
        let mut lines: Vec<String> = String::from_utf8_lossy(&answer)
            .split("\r\n")
            .map(str::to_string)
            .collect();
        assert_eq!(lines.len(), 2 * 60 + 2);
        lines.sort();
        answers.push(lines);
    }
    assert_eq!(answers[0], answers[1]);
    assert_eq!(farm.primaries[1].stat("curr_items"), 20, "copied back");
}
