//! Several magents over the same servers write the same keys: whoever copied a value looks whether its source
//! still is what was copied. In the end the backup has what the primary has, or nothing, and is given what it
//! lacks.

mod common;

use common::farm::held;
use common::rng::Rng;
use common::time::look_within;
use common::{Client, DEADLINE, Magent, Memcached, Relay, wait_for};
use std::time::{Duration, Instant};

/// A primary and a backup; one magent reaches them through relays, the other one directly.
struct Two {
    servers: [Memcached; 2],
    relays: [Relay; 2],
    /// Behind relays.
    one: Magent,
    other: Magent,
}

impl Two {
    /// One of them goes through relays.
    fn new(options: &[&str]) -> Two {
        let servers = [Memcached::start(), Memcached::start()];
        let relays = servers.each_ref().map(Relay::new);
        let names = relays.each_ref().map(|r| r.name.clone());
        Two::of(servers, relays, names, options)
    }

    /// Both reach their servers directly.
    fn direct(options: &[&str]) -> Two {
        let servers = [Memcached::start(), Memcached::start()];
        let relays = servers.each_ref().map(Relay::new);
        let names = servers.each_ref().map(|s| s.name.clone());
        Two::of(servers, relays, names, options)
    }

    /// Both know of each other; `names` are the servers' as the first one is told them.
    fn of(
        servers: [Memcached; 2],
        relays: [Relay; 2],
        names: [String; 2],
        options: &[&str],
    ) -> Two {
        let names = names.each_ref().map(|name| &name[..]);
        let direct = servers.each_ref().map(|s| &s.name[..]);
        let one = Magent::farm(&[names[0]], &[names[1]], options);
        let other = Magent::farm(&[direct[0]], &[direct[1]], options);
        for (magent, names) in [(&one, names), (&other, direct)] {
            wait_shared(&[&one, &other], magent, &names);
        }
        Two {
            servers,
            relays,
            one,
            other,
        }
    }

    /// How much was asked of each relay so far.
    fn asked(&self) -> [usize; 2] {
        self.relays.each_ref().map(|r| r.requests().len())
    }

    /// Waits until both servers hold the same under a key: a value, or nothing.
    #[track_caller]
    fn wait_same(&self, key: &str, value: Option<&str>) {
        let want = value.map(str::as_bytes);
        for server in &self.servers {
            server.wait_value(key, want);
        }
    }
}

/// Uses servers through all magents until one of them knows that others do too.
#[track_caller]
fn wait_shared(all: &[&Magent], one: &Magent, names: &[&str]) {
    let mut clients: Vec<Client> = all.iter().map(|m| m.client()).collect();
    for name in names {
        wait_for("a magent to see another one", || {
            for (i, client) in clients.iter_mut().enumerate() {
                client.set(&format!("warmup{i}"), "x");
            }
            one.server(name).contains_key("other_magents").then_some(())
        });
    }
}

#[test]
fn writes_ask_for_cas_numbers_and_copies_are_looked_after() {
    let two = Two::new(&["--warm", "0"]);
    let mut client = two.one.client();
    let [primary, backup] = &two.relays;
    for (request, answer, at_primary, at_backup) in [
        (
            "set k 5 100 5\r\nhello\r\n",
            "STORED",
            &["ms k 5 F5 T100 c\r\nhello\r\n", "me k\r\n"][..],
            &["ms k 5 F5 T100 c\r\nhello\r\n"][..],
        ),
        (
            "add n 0 0 1\r\n7\r\n",
            "STORED",
            &["ms n 1 ME c\r\n7\r\n", "me n\r\n"],
            &["ms n 1 c\r\n7\r\n"],
        ),
        (
            "incr n 3\r\n",
            "10",
            &["ma n D3 v c\r\n", "me n\r\n"],
            &["ma n D3 v t\r\n"],
        ),
        (
            "touch k 200\r\n",
            "TOUCHED",
            &["touch k 200\r\n", "me k\r\n"],
            &["touch k 200\r\n"],
        ),
        (
            "delete n\r\n",
            "DELETED",
            &["delete n\r\n", "me n\r\n"],
            &["delete n\r\n"],
        ),
        (
            "ms YiA= 2 b\r\nhi\r\n",
            "HD",
            &["ms YiA= 2 b c\r\nhi\r\n", "me YiA= b b\r\n"],
            &["ms YiA= 2 b c\r\nhi\r\n"],
        ),
        // What comes of it depends on what stands there; the copy is made again.
        (
            "append k 0 0 1\r\n!\r\n",
            "STORED",
            &["append k 0 0 1\r\n!\r\n"],
            &["delete k\r\n"],
        ),
    ] {
        let from = two.asked();
        assert_eq!(client.ask_line(request), answer, "{request:?}");
        primary.wait_asked(from[0], at_primary);
        backup.wait_asked(from[1], at_backup);
        wait_for("looks to be answered", || {
            (two.one.server(&primary.name)["in_flight"] == "0").then_some(())
        });
        assert_eq!(two.one.stat("doubts"), 0, "{request:?}");
    }
    two.servers[1].wait_value("k", Some(b"hello!"));
    assert_eq!(two.one.stat("doubts"), 0);
    assert_eq!(two.one.server(&backup.name)["doubts"], "0");
    assert!(two.one.stat("looks_again") >= 6);
}

#[test]
fn a_magent_that_is_alone_asks_what_its_clients_ask() {
    let servers = [Memcached::start(), Memcached::start()];
    let relays = [Relay::new(&servers[0]), Relay::new(&servers[1])];
    let magent = Magent::farm(&[&relays[0].name], &[&relays[1].name], &["--warm", "0"]);
    let mut client = magent.client();
    let set = "set k 5 100 5\r\nhello\r\n";
    client
        .ask(set, "STORED\r\n")
        .ask("ms k 1\r\n1\r\n", "HD\r\n")
        .ask("incr k 1\r\n", "2\r\n");
    for relay in &relays {
        relay.wait_asked(0, &[set, "ms k 1\r\n1\r\n", "incr k 1\r\n"]);
    }
    assert_eq!(magent.stat("looks_again"), 0);
}

/// Both write a key, and the mirrors come in the other order.
#[test]
fn an_older_mirror_that_comes_late_is_deleted() {
    let two = Two::new(&["--warm", "0"]);
    let [primary, backup] = &two.relays;
    let (mut client, mut other) = (two.one.client(), two.other.client());
    let from = two.asked();
    backup.hold("ms k ");
    client.set("k", "old");
    backup.wait_held();
    other.set("k", "new");
    two.servers[1].wait_value("k", Some(b"new"));
    backup.release();
    primary.wait_asked(from[0], &["ms k 3 c\r\nold\r\n", "me k\r\n"]);
    backup.wait_asked(from[1], &["ms k 3 c\r\nold\r\n", "md k C#\r\n"]);
    // Deleted, then made again.
    two.wait_same("k", Some("new"));
    assert_eq!(two.one.stat("doubts"), 1);
    assert_eq!(two.one.server(&backup.name)["doubts"], "1");
}

/// The other one's mirror is there already when the own one is found to be old: it stays.
#[test]
fn a_newer_mirror_that_has_come_since_is_not_deleted() {
    let two = Two::new(&["--warm", "0"]);
    let [primary, backup] = &two.relays;
    let (mut client, mut other) = (two.one.client(), two.other.client());
    let from = two.asked();
    primary.hold("me k");
    client.set("k", "old");
    primary.wait_held();
    other.set("k", "new");
    two.servers[1].wait_value("k", Some(b"new"));
    primary.release();
    backup.wait_asked(from[1], &["ms k 3 c\r\nold\r\n", "md k C#\r\n"]);
    wait_for("the doubt to be over", || {
        (two.one.stat("doubts") == 1).then_some(())
    });
    client.get("k");
    assert_eq!(two.servers[1].value("k").as_deref(), Some(&b"new"[..]));
}

#[test]
fn a_touch_that_comes_late_is_found_by_the_time_to_live() {
    let two = Two::new(&["--warm", "0"]);
    let backup = &two.relays[1];
    let (mut client, mut other) = (two.one.client(), two.other.client());
    client.set("k", "v");
    two.wait_same("k", Some("v"));
    let from = two.asked();
    backup.hold("touch k ");
    client.ask("touch k 100\r\n", "TOUCHED\r\n");
    backup.wait_held();
    other.ask("touch k 1000\r\n", "TOUCHED\r\n");
    wait_for("the other one's mirror", || {
        held(&two.servers[1], "k").filter(|(_, ttl, _)| *ttl > 900)
    });
    backup.release();
    backup.wait_asked(from[1], &["touch k 100\r\n", "delete k\r\n"]);
    wait_for("the copy to be as the value is", || {
        held(&two.servers[1], "k").filter(|(_, ttl, _)| *ttl > 900)
    });
}

/// Only the last of several writes of one key is looked after.
#[test]
fn a_write_that_is_followed_by_another_one_is_not_looked_after() {
    let two = Two::new(&["--warm", "0"]);
    let [primary, backup] = &two.relays;
    let mut client = two.one.client();
    let from = two.asked();
    backup.hold("ms k 1 c\r\n1");
    let sets: String = (1..=9).map(|i| format!("set k 0 0 1\r\n{i}\r\n")).collect();
    client.send(sets);
    client.expect("STORED\r\n".repeat(9));
    backup.wait_held();
    backup.release();
    two.wait_same("k", Some("9"));
    wait_for("a look", || {
        primary.requests()[from[0]..]
            .contains(&"me k\r\n".into())
            .then_some(())
    });
    client.get("k");
    let looks = primary.requests()[from[0]..]
        .iter()
        .filter(|r| *r == "me k\r\n")
        .count();
    assert_eq!((looks, two.one.stat("doubts")), (1, 0));
}

/// The primary is lost before it was looked at: nobody knows, so nobody reads the copy.
#[test]
fn what_was_not_looked_after_is_not_read_from_the_backup() {
    let mut two = Two::new(&[
        "--refill",
        "0",
        "--warm",
        "0",
        "--connect-timeout",
        "500",
        "--timeout",
        "500",
    ]);
    let (mut client, mut other) = (two.one.client(), two.other.client());
    let [primary, backup] = &two.relays;
    let from = two.asked();
    primary.hold("me k");
    backup.hold("ms k ");
    client.set("k", "old");
    backup.wait_held();
    other.set("k", "new");
    two.servers[1].wait_value("k", Some(b"new"));
    backup.release();
    primary.wait_held();
    // The old value stands at the backup, and the primary goes.
    assert_eq!(two.servers[1].value("k").as_deref(), Some(&b"old"[..]));
    client.send("get k\r\n");
    two.servers[0].kill();
    primary.release();
    assert_eq!(client.read_line(), b"END\r\n");
    backup.wait_asked(
        from[1],
        &["ms k 3 c\r\nold\r\n", "md k C#\r\n", "get k\r\n"],
    );
}

/// Both delete and set; the delete comes late. The copy that it takes away is made again.
#[test]
fn a_delete_that_comes_late_leaves_the_key_on_both() {
    let two = Two::new(&["--warm", "0"]);
    let backup = &two.relays[1];
    let (mut client, mut other) = (two.one.client(), two.other.client());
    client.set("k", "old");
    two.wait_same("k", Some("old"));
    backup.hold("delete k");
    client.ask("delete k\r\n", "DELETED\r\n");
    backup.wait_held();
    other.set("k", "new");
    two.servers[1].wait_value("k", Some(b"new"));
    backup.release();
    wait_for("it to be deleted", || {
        (backup.requests().last()? != "delete k\r\n").then_some(())
    });
    two.wait_same("k", Some("new"));
}

/// What clients read is the same whether magent asks in text or not.
#[test]
fn answers_are_those_of_memcached() {
    let two = Two::new(&["--warm", "0"]);
    let bare = Memcached::start();
    let mut clients = [two.one.client(), bare.client()];
    let many = "x".repeat(2_000_000);
    for request in [
        "set k 1 0 1\r\n1\r\n",
        "gets k\r\n",
        "add k 0 0 1\r\n2\r\n",
        "add a 0 0 1\r\n2\r\n",
        "replace k 0 0 1\r\n3\r\n",
        "replace r 0 0 1\r\n3\r\n",
        "cas k 0 0 1 0\r\n4\r\n",
        "cas k 0 0 1 999999\r\n4\r\n",
        "cas c 0 0 1 999999\r\n4\r\n",
        "incr k 7\r\n",
        "decr k 3\r\n",
        "decr k 999\r\n",
        "incr none 1\r\n",
        "append k 0 0 2\r\nab\r\n",
        "prepend k 0 0 2\r\nab\r\n",
        "prepend none 0 0 2\r\nab\r\n",
        "incr k 1\r\n",
        "get k\r\n",
        "set k 0 0 1 noreply\r\n9\r\n",
        "incr k 1 noreply\r\n",
        "get k\r\n",
        "set k 0 -1 1\r\n9\r\n",
        "get k\r\n",
        "set k 4294967295 0 0\r\n\r\n",
        "get k\r\n",
        &format!("set big 0 0 {}\r\n{many}\r\n", many.len()),
        "ms k 1\r\n5\r\n",
        "ms k 1 k O77 q\r\n5\r\n",
        "ms k 1 ME k O77 q\r\n5\r\n",
        "ms none 1 MR O77 k\r\n5\r\n",
        "ma k\r\n",
        "ma k v\r\n",
        "ma k O1 k t v q\r\n",
        "ma k q O1\r\n",
        "ma none q O1\r\n",
        "ma none O1 k\r\n",
        "ma made N0 J5 v t\r\n",
        "mg k v\r\n",
        "md k O1 k\r\n",
        "mn\r\n",
    ] {
        let answers = clients.each_mut().map(|c| {
            c.send(request);
            let answer = c.send("mn\r\n").read_until(b"MN\r\n");
            let text = String::from_utf8_lossy(&answer).into_owned();
            // The number of gets is one of each server's own.
            match request {
                "gets k\r\n" => text.split_whitespace().take(4).collect(),
                _ => text,
            }
        });
        let shown = &request[..request.len().min(60)];
        assert_eq!(answers[0], answers[1], "{shown:?}");
    }
}

/// Requests of one client: sets, adds, numbers, appends, touches, deletes, on a hundred keys.
fn write_for(client: &mut Client, seed: u64, time: Duration) {
    let mut rng = Rng::new(seed);
    let begun = Instant::now();
    while begun.elapsed() < time {
        let mut requests = Vec::new();
        for _ in 0..20 {
            let key = rng.below(100);
            let n = rng.below(10_000);
            let value = format!("{seed}{n:04}");
            let ttl = rng.pick(&[0, 0, 1000, 2000]);
            let len = value.len();
            let request = match rng.below(20) {
                0..10 => format!("set k{key} {} {ttl} {len}\r\n{value}\r\n", n % 3),
                10..12 => format!("add k{key} 0 {ttl} {len}\r\n{value}\r\n"),
                12..15 => format!("incr k{key} {n}\r\n"),
                15..16 => format!("append k{key} 0 0 1\r\n7\r\n"),
                16..18 => format!("touch k{key} {ttl}\r\n"),
                _ => format!("delete k{key}\r\n"),
            };
            requests.extend(request.into_bytes());
        }
        client.send(requests).send("mn\r\n").read_until(b"MN\r\n");
    }
}

/// Both servers' copies of a key.
type Pair = [Option<(u32, i64, Vec<u8>)>; 2];

fn differs(pair: &Pair) -> bool {
    match pair {
        [Some((flags, ttl, value)), Some((flags2, ttl2, value2))] => {
            (flags, value) != (flags2, value2) || ttl.abs_diff(*ttl2) > 2
        }
        [primary, backup] => primary.is_none() && backup.is_some(),
    }
}

/// Through two magents at once. In the end nothing differs, and the backup has what the primary has.
fn hot_keys_through_two(options: &[&str]) {
    let two = Two::direct(options);
    std::thread::scope(|scope| {
        for seed in 1..=4 {
            let magent = if seed % 2 == 0 { &two.one } else { &two.other };
            let mut client = magent.client();
            scope.spawn(move || write_for(&mut client, seed, Duration::from_secs(3)));
        }
    });
    let pairs = || (0..100).map(|k| two.servers.each_ref().map(|s| held(s, &format!("k{k}"))));
    let mut last = Vec::new();
    let found = look_within(DEADLINE, || {
        last = pairs().enumerate().collect();
        last.retain(|(_, pair)| differs(pair) || (pair[0].is_some() && pair[1].is_none()));
        last.is_empty().then_some(())
    });
    assert!(found.is_some(), "{} differ: {last:?}", last.len());
    for magent in [&two.one, &two.other] {
        assert!(magent.stat("looks_again") > 1000);
        assert!(magent.stat("doubts") > 0);
    }
}

#[test]
fn hot_keys_are_on_both_servers_in_the_end() {
    hot_keys_through_two(&["--warm", "0"]);
}

#[test]
fn hot_keys_of_a_warming_primary_are_on_both_servers_in_the_end() {
    hot_keys_through_two(&[]);
}

/// Sets a key, and waits until its copy was looked after.
fn set_old(two: &Two, magent: &Magent, client: &mut Client, primary: &str) {
    let looks = magent.stat("looks_again");
    client.set("k", "old");
    two.wait_same("k", Some("old"));
    wait_for("its copy to be looked after", || {
        let is_over = magent.server(primary)["in_flight"] == "0";
        (magent.stat("looks_again") > looks && is_over).then_some(())
    });
}

/// A warming primary lacks a key: it is fetched by one, and deleted by the other before the copy arrives.
#[test]
fn what_was_deleted_while_it_was_fetched_does_not_stay_at_the_primary() {
    let two = Two::new(&["--refill", "0"]);
    let [primary, backup] = &two.relays;
    let (mut client, mut other) = (two.one.client(), two.other.client());
    set_old(&two, &two.other, &mut other, &two.servers[0].name);
    two.servers[0].client().ask("delete k\r\n", "DELETED\r\n");
    let from = two.asked();
    primary.hold("ms k ");
    client.send("get k\r\n");
    primary.wait_held();
    other.ask("delete k\r\n", "DELETED\r\n");
    primary.release();
    client.read_until(b"END\r\n");
    primary.wait_asked(
        from[0],
        &[
            "get k\r\n",
            "ms k 3 ME F0 T0 c\r\nold\r\n",
            "mg k\r\n",
            "delete k\r\n",
        ],
    );
    backup.wait_asked(from[1], &["mg k u f t v c\r\n", "me k\r\n"]);
    two.wait_same("k", None);
    assert_eq!(two.one.server(&primary.name)["doubts"], "1");
}

/// The fetch is over, and was looked after, before the delete comes to the backup.
#[test]
fn a_delete_at_a_warming_primary_goes_there_once_more_after_the_backup() {
    let two = Two::new(&["--refill", "0"]);
    let [primary, backup] = &two.relays;
    let (mut client, mut other) = (two.one.client(), two.other.client());
    set_old(&two, &two.other, &mut other, &two.servers[0].name);
    two.servers[0].client().ask("delete k\r\n", "DELETED\r\n");
    let (from, looks) = (two.asked(), two.other.stat("looks_again"));
    backup.hold("delete k");
    client.send("delete k\r\n");
    backup.wait_held();
    assert_eq!(other.get("k").as_deref(), Some(&b"old"[..]));
    wait_for("its copy to be looked after, and an answer", || {
        let is_idle = two.other.server(&two.servers[1].name)["in_flight"] == "0";
        (is_idle && two.other.stat("looks_again") > looks).then_some(())
    });
    assert_eq!(other.get("k").as_deref(), Some(&b"old"[..]));
    backup.release();
    client.expect("DELETED\r\n");
    primary.wait_asked(from[0], &["delete k\r\n", "delete k\r\n"]);
    two.wait_same("k", None);
    assert_eq!(two.other.stat("doubts"), 0);
}

/// What was copied by a refill is looked after too: the other one deletes the key before it arrives.
#[test]
fn what_was_deleted_while_it_was_refilled_does_not_stay() {
    let two = Two::new(&["--warm", "0"]);
    let [primary, backup] = &two.relays;
    let (mut client, mut other) = (two.one.client(), two.other.client());
    set_old(&two, &two.one, &mut client, &primary.name);
    let from = two.asked();
    backup.hold("ms k ");
    // Its copy is made again.
    client.ask("append k 0 0 1\r\n!\r\n", "STORED\r\n");
    backup.wait_held();
    other.ask("delete k\r\n", "DELETED\r\n");
    two.servers[0].wait_value("k", None);
    wait_for("its mirror", || {
        (two.other.server(&two.servers[1].name)["in_flight"] == "0").then_some(())
    });
    backup.release();
    backup.wait_asked(
        from[1],
        &[
            "delete k\r\n",
            "me k\r\n",
            "ms k 4 ME F0 T0 c\r\nold!\r\n",
            "md k C#\r\n",
        ],
    );
    primary.wait_asked(
        from[0],
        &["append k 0 0 1\r\n!\r\n", "mg k u f t v c\r\n", "me k\r\n"],
    );
    two.wait_same("k", None);
}
