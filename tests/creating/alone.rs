//! The look before a request that creates a key, and a fetch, leave no trace: clients read the
//! same as from a memcached alone, the win of a stale item and `h`, `l`, `t` included.

use crate::common::farm::Farm;
use crate::common::{Client, Memcached, show, wait_for};
use std::thread::scope;

/// Waits in place of a request until the servers' clocks are three seconds on.
const WAIT: &str = "wait";

/// `K` is a key of the script's own. What comes before the first request to be compared is told
/// to both in the same way, since all of it is.
const SCRIPTS: &[&[&str]] = &[
    // The first who asks for a stale item may refresh it, whatever way he asks.
    &[
        "ms K 3 T60\r\nold\r\n",
        "md K I T60\r\n",
        "mg K v c t N30\r\n",
        "mg K v c t N30\r\n",
    ],
    &[
        "ms K 3 T60\r\nold\r\n",
        "md K I T60\r\n",
        "add K 0 0 1\r\nx\r\n",
        "mg K v c t\r\n",
        "mg K v c t\r\n",
    ],
    &[
        "ms K 3 T60\r\nold\r\n",
        "md K I T60\r\n",
        "ms K 1 ME\r\nx\r\n",
        "mg K v c t\r\n",
        "mg K v c t\r\n",
    ],
    &[
        "ms K 1 T60\r\n5\r\n",
        "md K I T60\r\n",
        "ma K N0 J9 v t\r\n",
        "mg K v c t\r\n",
        "mg K v c t\r\n",
    ],
    &[
        "ms K 1 T60\r\n5\r\n",
        "md K I T60\r\n",
        "ms K 1 MA N0\r\nx\r\n",
        "mg K v c t\r\n",
        "mg K v c t\r\n",
    ],
    // And who is the first to find that little time is left.
    &[
        "ms K 1 T20\r\n5\r\n",
        "mg K N60 R30 v t\r\n",
        "mg K N60 R30 v t\r\n",
    ],
    &[
        "ms K 1 T20\r\n5\r\n",
        "add K 0 0 1\r\nx\r\n",
        "mg K R30 v t\r\n",
        "mg K R30 v t\r\n",
    ],
    // An item that nobody has made yet.
    &[
        "mg K N30 v t\r\n",
        "mg K N30 v t\r\n",
        "add K 0 0 1\r\nx\r\n",
        "mg K v t\r\n",
    ],
    // Whether it was fetched, when last, and for how long it lives.
    &[
        "ms K 1\r\n5\r\n",
        "mg K N30 h l t v\r\n",
        "mg K N30 h l t v\r\n",
    ],
    &[
        "ms K 1 T90\r\n5\r\n",
        "add K 0 0 1\r\nx\r\n",
        "mg K h l t v\r\n",
    ],
    &[
        "ms K 1 T90\r\n5\r\n",
        "ms K 1 ME\r\nx\r\n",
        "mg K h l t v\r\n",
    ],
    &["ms K 1 T90\r\n5\r\n", "ma K N0 v\r\n", "mg K h l t v\r\n"],
    &[
        "ms K 1 T90\r\n5\r\n",
        "ms K 1 MA N0\r\nx\r\n",
        "mg K h l t v\r\n",
    ],
    &[
        "ms K 1 T90\r\n5\r\n",
        WAIT,
        "mg K N30 h l t v\r\n",
        "mg K h l t v\r\n",
    ],
    &[
        "ms K 1 T90\r\n5\r\n",
        WAIT,
        "add K 0 0 1\r\nx\r\n",
        "add K 0 0 1\r\nx\r\n",
        "ms K 1 ME\r\nx\r\n",
        "mg K h l t v\r\n",
    ],
    &[
        "ms K 1 T90\r\n5\r\n",
        "mg K v\r\n",
        WAIT,
        "ma K N0 v\r\n",
        "ma K N0 v\r\n",
        "mg K h l t v\r\n",
    ],
];

/// What may differ is made equal: cas tokens, and times by a second or so.
fn masked(answer: &[u8]) -> String {
    let mask = |word: &str| {
        let number = word.get(1..).and_then(|n| n.parse::<u32>().ok());
        match (word.get(..1), number) {
            (Some("c"), Some(_)) => "c*".to_string(),
            (Some("t"), Some(n)) => format!("t{}", n.div_ceil(10) * 10),
            (Some("l"), Some(n)) => (if n < 2 { "l0" } else { "l3" }).to_string(),
            _ => word.to_string(),
        }
    };
    let line = |l: &str| l.split(' ').map(mask).collect::<Vec<_>>().join(" ");
    let text = show(answer);
    text.split("\\r\\n")
        .map(line)
        .collect::<Vec<_>>()
        .join("\\r\\n")
}

/// Plays a script on both; what differs.
fn differences(number: usize, script: &[&str], alone: &Memcached, farm: &Farm) -> Vec<String> {
    let mut found = Vec::new();
    let mut clients = [alone.client(), farm.magent.client()];
    let key = format!("k{number}");
    for step in script {
        if *step == WAIT {
            let start = alone.stat("time");
            wait_for("three seconds", || {
                (alone.stat("time") >= start + 3).then_some(())
            });
            continue;
        }
        let request = step.replace('K', &key);
        let answer = |c: &mut Client| masked(&c.send(&request).read_until_quiet());
        let [theirs, ours] = [0, 1].map(|i| answer(&mut clients[i]));
        if theirs != ours {
            let all: Vec<String> = script.iter().map(|s| s.replace("\r\n", "|")).collect();
            let step = step.trim_end();
            found.push(format!("{all:?}: {step}: alone {theirs}, here {ours}"));
        }
    }
    found
}

#[track_caller]
fn compare(scripts: &[&[&str]], alone: &Memcached, farm: &Farm) {
    let found: Vec<String> = scope(|s| {
        let run = |(number, script)| s.spawn(move || differences(number, script, alone, farm));
        let all: Vec<_> = scripts.iter().copied().enumerate().map(run).collect();
        let all = all.into_iter().map(|t| t.join().expect("a script"));
        all.flatten().collect()
    });
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn a_look_leaves_no_trace() {
    let (alone, farm) = (Memcached::start(), Farm::new(1, 1, &["--timeout", "2000"]));
    farm.magent.client().set("other", "x");
    farm.magent.wait_state(&farm.primaries[0].name, "warming");
    compare(SCRIPTS, &alone, &farm);
}

/// Asked after the primary came back empty, of `K` that the backup holds with flags 7.
const FETCHED: &[&[&str]] = &[
    &["mg K h t f v\r\n", "mg K h t f v\r\n"],
    &["mg K N30 h t f v\r\n", "mg K N30 h t f v\r\n"],
    &["get K\r\n", "mg K h t f v\r\n"],
    &["gat 500 K\r\n", "mg K h t f v\r\n"],
    &["touch K 500\r\n", "mg K h t f v\r\n"],
    &["mg K T500 h t\r\n", "mg K h t f v\r\n"],
    &["incr K 1\r\n", "mg K h t f v\r\n"],
    &["ma K v t\r\n", "mg K h t f v\r\n"],
    &["ma K N0 J9 v t\r\n", "mg K h t f v\r\n"],
    &["append K 0 0 1\r\nx\r\n", "mg K h t f v\r\n"],
    &["add K 0 0 1\r\nx\r\n", "mg K h t f v\r\n"],
    &["ms K 1 ME\r\nx\r\n", "mg K h t f v\r\n"],
    &["mg K R3000 h t f v\r\n", "mg K R3000 h t f v\r\n"],
];

// Alone: who looks after other magents may find the primary down while it restarts, and the backup answers.
#[test]
fn a_fetch_leaves_no_trace() {
    let (alone, mut farm) = (
        Memcached::start(),
        Farm::new(1, 1, &["--timeout", "2000", "--alone"]),
    );
    let mut clients = [alone.client(), farm.magent.client()];
    for number in 0..FETCHED.len() {
        for client in &mut clients {
            client.ask(format!("ms k{number} 1 F7 T900\r\n5\r\n"), "HD\r\n");
        }
        farm.backups[0].wait_value(&format!("k{number}"), Some(b"5"));
    }
    // That look at the backup was a fetch there; a second set takes that back.
    for number in 0..FETCHED.len() {
        clients[1].ask(format!("ms k{number} 1 F7 T900\r\n5\r\n"), "HD\r\n");
    }
    farm.primaries[0].restart();
    clients[1].send("mg nothing\r\n").read_line();
    farm.magent.wait_state(&farm.primaries[0].name, "warming");
    compare(FETCHED, &alone, &farm);
}

/// While the primary was away an item became stale on the backup. Who reads it when the primary
/// is back must not use up the win of whoever asks the backup next.
#[test]
fn a_win_that_a_fetch_took_is_given_back() {
    let mut farm = Farm::new(1, 1, &[]);
    let mut client = farm.magent.client();
    let primary = farm.primaries[0].name.clone();
    farm.primaries[0].kill();
    client.ask("ms st 3 T60\r\nold\r\n", "HD\r\n");
    client.ask("md st I T60\r\n", "HD\r\n");
    farm.primaries[0].restart();
    farm.magent.wait_state(&primary, "warming");
    assert_eq!(client.get("st").as_deref(), Some(&b"old"[..]));
    assert_eq!(
        farm.primaries[0].value("st"),
        None,
        "a stale value was copied"
    );
    farm.primaries[0].kill();
    let line = client.ask_line("mg st v\r\n");
    assert_eq!(line, "VA 3 X W", "the backup's own");
    client.expect("old\r\n");
    client.ask("mg st v\r\n", "VA 3 Z X\r\nold\r\n");
}
