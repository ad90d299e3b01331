//! The text protocol on real memcacheds, as clients and people at telnet use it.

mod common;

use common::magent::{farm, single};
use common::{Client, keys, noise, show, wait_for};

// --- one client and its connection

#[test]
fn half_close_is_answered() {
    let (magent, _server) = single();
    let mut nc = magent.client();
    nc.send("get a\r\n").half_close();
    assert_eq!(show(&nc.read_to_end()), "END\\r\\n");
    let mut nc = magent.client();
    nc.send("set a 0 0 1\r\nx\r\nget a\r\nincr b 1\r\nget a\r\n")
        .half_close();
    let answer = nc.read_to_end();
    assert_eq!(
        show(&answer),
        show(b"STORED\r\nVALUE a 0 1\r\nx\r\nEND\r\nNOT_FOUND\r\nVALUE a 0 1\r\nx\r\nEND\r\n")
    );
    let mut nc = Client::unix(&magent.socket());
    nc.send("get a\r\n").half_close();
    assert_eq!(
        show(&nc.read_to_end()),
        show(b"VALUE a 0 1\r\nx\r\nEND\r\n")
    );
}

#[test]
fn half_close_in_the_middle_of_a_request_closes() {
    let (magent, server) = single();
    for part in [
        "",
        "g",
        "get a",
        "set a 0 0 5\r\n",
        "set a 0 0 5\r\nabc",
        "set a 0 0 5\r\nabcde\r",
    ] {
        let mut nc = magent.client();
        nc.send(part).half_close();
        assert_eq!(show(&nc.read_to_end()), "", "{part:?}");
    }
    assert_eq!(server.value("a"), None, "half a set was stored");
}

#[test]
fn half_close_with_much_owed_gets_it_all() {
    let (magent, _server) = single();
    let value = noise(300_000);
    let mut nc = magent.client();
    nc.set("a", &value)
        .send("get a\r\n".repeat(20))
        .half_close();
    let all = nc.read_to_end();
    let one = [&b"VALUE a 0 300000\r\n"[..], &value, b"\r\nEND\r\n"].concat();
    assert!(
        all == one.repeat(20),
        "{} bytes instead of {}",
        all.len(),
        one.len() * 20
    );
}

#[test]
fn a_client_with_a_narrow_window_gets_it_all() {
    let (magent, _server) = single();
    // Large and small answers in turn, more than a socket buffer holds, so that writes stop
    // within both.
    let (big, mid) = (noise(200_000), noise(9_000));
    let mut one = Vec::new();
    let mut client = Client::narrow(magent.port);
    client.set("big", &big).set("mid", &mid).set("s", "x");
    for (key, value) in [("big", &big[..]), ("s", b"x"), ("mid", &mid), ("s", b"x")] {
        one.extend(format!("VALUE {key} 0 {}\r\n", value.len()).bytes());
        one.extend([value, b"\r\nEND\r\n"].concat());
    }
    client.send("get big\r\nget s\r\nget mid\r\nget s\r\n".repeat(60));
    for round in 0..60 {
        assert!(client.read_exact(one.len()) == one, "round {round}");
    }
    assert_eq!(show(&client.read_until_quiet()), "");
}

#[test]
fn telnet_with_bare_newlines() {
    let (magent, _server) = single();
    let mut telnet = magent.client();
    telnet.ask("get a\n", "END\r\n");
    telnet.ask("set a 0 0 1\nx\r\n", "STORED\r\n");
    telnet.ask("get a\n", "VALUE a 0 1\r\nx\r\nEND\r\n");
    telnet
        .ask("\n", "ERROR\r\n")
        .ask("delete a\n", "DELETED\r\n")
        .ask("mn\n", "MN\r\n");
    telnet.send("quit\n");
    assert_eq!(show(&telnet.read_to_end()), "");
}

#[test]
fn quit_answers_what_is_owed() {
    let (magent, _server) = single();
    let mut client = magent.client();
    client.send("set a 0 0 1\r\nx\r\nget a\r\nquit\r\nget a\r\n");
    assert_eq!(
        show(&client.read_to_end()),
        show(b"STORED\r\nVALUE a 0 1\r\nx\r\nEND\r\n")
    );
}

#[test]
fn a_client_lives_on_after_every_error() {
    let (magent, mut server) = single();
    let mut client = magent.client();
    client.ask("nonsense\r\n", "ERROR\r\n").ask(
        "set a 0 0 x\r\n",
        "CLIENT_ERROR bad command line format\r\n",
    );
    client.set("a", "x");
    server.kill();
    let line = client.ask_line("get a\r\n");
    assert!(
        line.starts_with(&format!("SERVER_ERROR {} ", server.name)),
        "{line}"
    );
    client.ask("mn\r\n", "MN\r\n");
    server.restart();
    wait_for("the server to be used again", || {
        (client.ask_line("delete a\r\n") == "NOT_FOUND").then_some(())
    });
    client
        .set("a", "y")
        .ask("get a\r\n", "VALUE a 0 1\r\ny\r\nEND\r\n");
}

#[test]
fn a_client_that_leaves_in_the_middle_of_a_value_stores_nothing() {
    let (magent, server) = single();
    for sent in [0, 1, 500, 999, 1000, 1001] {
        let mut client = magent.client();
        client.set("a", "old");
        client.send("set a 0 0 1000\r\n").send(&noise(1002)[..sent]);
        client.vanish();
        let mut client = magent.client();
        client
            .send("set b 0 0 100000\r\n")
            .send(&noise(100_002)[..sent * 90]);
        client.vanish();
        let mut other = magent.client();
        other
            .ask("get a\r\n", "VALUE a 0 3\r\nold\r\nEND\r\n")
            .ask("get b\r\n", "END\r\n");
    }
    assert_eq!(server.value("b"), None);
}

#[test]
fn a_client_that_leaves_before_its_answers_harms_no_other() {
    let (magent, _server) = single();
    let value = noise(200_000);
    let mut other = magent.client();
    other.set("big", &value).set("small", "s");
    for _ in 0..20 {
        let mut client = magent.client();
        client.send("get big\r\nget small\r\n".repeat(10));
        client.vanish();
        other.ask("get small\r\n", "VALUE small 0 1\r\ns\r\nEND\r\n");
    }
    let mut client = magent.client();
    client.send("get big\r\n".repeat(5)).read_exact(100_000);
    client.vanish();
    assert!(other.get("big") == Some(value));
}

// --- sizes and numbers

#[test]
fn get_lines_of_any_length() {
    // memcached takes its time for so many keys, and the machine may be busy.
    let (magent, servers) = farm(false, &["--timeout", "10000"]);
    let mut client = magent.client();
    client.set("first", "1").set("last", "22");
    for len in [2047, 2048, 2049, 100_000, 1_000_000] {
        let filler = (0..).map(|i| format!("k{i}")).scan(0, |sum, k| {
            *sum += k.len() + 1;
            (*sum < len - 20).then_some(k)
        });
        let mut line = format!("get first {}", filler.collect::<Vec<_>>().join(" "));
        let pad = len - line.len() - " last".len();
        line += &format!("{}last", " ".repeat(pad + 1));
        assert_eq!(line.len(), len);
        client.send(line + "\r\n");
        let answer = String::from_utf8_lossy(&client.read_until(b"END\r\n")).into_owned();
        let mut parts = ["VALUE first 0 1\r\n1\r\n", "VALUE last 0 2\r\n22\r\n"];
        if !answer.starts_with(parts[0]) {
            parts.reverse();
        }
        assert_eq!(answer, parts.concat() + "END\r\n", "a line of {len} bytes");
    }
    drop(servers);
}

#[test]
fn other_lines_end_at_2048_bytes() {
    let (magent, _server) = single();
    for start in ["set ", "delete ", "", "mg "] {
        let mut client = magent.client();
        client.send(format!("{start}{}", "x".repeat(3000)));
        assert_eq!(show(&client.read_to_end()), "", "{start:?}");
    }
}

#[test]
fn ten_thousand_gets_in_one_write() {
    let (magent, _servers) = farm(true, &[]);
    let mut client = magent.client();
    for i in 0..50 {
        client.set(&format!("key{i}"), format!("value-{i}"));
    }
    let (mut requests, mut answers) = (Vec::new(), Vec::new());
    for i in 0..10_000 {
        let key = i * 7 % 100;
        requests.extend(format!("get key{key}\r\n").bytes());
        if key < 50 {
            let value = format!("value-{key}");
            answers.extend(format!("VALUE key{key} 0 {}\r\n{value}\r\n", value.len()).bytes());
        }
        answers.extend(b"END\r\n");
    }
    let sender = client.send_aside(requests);
    assert!(
        client.read_exact(answers.len()) == answers,
        "an answer differs"
    );
    sender.join().expect("all was sent");
    assert_eq!(show(&client.read_until_quiet()), "");
}

#[test]
fn pipelining_without_bound() {
    let (magent, _servers) = farm(true, &[]);
    const REQUESTS: usize = 100_000;
    let mut client = magent.client();
    let (mut requests, mut stored) = (Vec::new(), 0);
    for i in 0..REQUESTS {
        let key = i % 64;
        if i % 3 == 0 {
            requests.extend(format!("set k{key} 0 0 6\r\n{i:06}\r\n").bytes());
            stored += 1;
        } else {
            requests.extend(format!("mg k{key} q O{i}\r\n").bytes());
        }
    }
    requests.extend(b"mn\r\n");
    let sender = client.send_aside(requests);
    let all = client.read_until(b"MN\r\n");
    sender.join().expect("all was sent");
    // The hits between are as many as their opaques say, in order.
    let mut last = 0;
    for line in String::from_utf8_lossy(&all)
        .lines()
        .filter(|l| l.starts_with("HD"))
    {
        let number = line
            .trim_start_matches("HD O")
            .parse::<usize>()
            .expect("an opaque");
        assert!(number > last, "{number} behind {last}");
        last = number;
    }
    assert_eq!(
        all.windows(8).filter(|w| *w == b"STORED\r\n").count(),
        stored
    );
}

#[test]
fn values_up_to_the_largest_go_both_ways() {
    let (magent, servers) = farm(true, &[]);
    let mut client = magent.client();
    // Around every buffer size that might matter, and the largest that memcached holds.
    let edges = [
        0, 1, 2, 2047, 2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072, 262_144, 524_288,
    ];
    let sizes = edges
        .iter()
        .flat_map(|&n: &usize| [n.saturating_sub(1), n, n + 1])
        .chain([1_000_000, 1_048_400]);
    for size in sizes {
        let (key, value) = (format!("v{size}"), noise(size));
        client.set(&key, &value);
        assert!(
            client.get(&key).as_ref() == Some(&value),
            "a value of {size} bytes"
        );
        assert!(
            servers[keys::home(&key, 3)].value(&key).as_ref() == Some(&value),
            "{size} bytes at home"
        );
        servers[3].wait_value(&key, Some(&value));
    }
}

#[test]
fn a_too_large_value_is_swallowed_and_the_old_one_dropped() {
    let (magent, servers) = farm(true, &["-I", "10k"]);
    let mut client = magent.client();
    client.set("a", "old");
    servers[3].wait_value("a", Some(b"old"));
    for size in [10_241, 100_000, 3_000_000] {
        let request = [
            format!("set b 0 0 {size}\r\n").as_bytes(),
            &noise(size),
            b"\r\n",
        ]
        .concat();
        let sender = client.send_aside([&request[..], b"get a\r\n"].concat());
        client
            .expect("SERVER_ERROR object too large for cache\r\n")
            .expect("VALUE a 0 3\r\nold\r\nEND\r\n");
        sender.join().expect("all was sent");
    }
    let request = [&b"set a 0 0 20000\r\n"[..], &noise(20_000), b"\r\n"].concat();
    client.ask(request, "SERVER_ERROR object too large for cache\r\n");
    wait_for("the old value to be dropped", || {
        client.get("a").is_none().then_some(())
    });
    servers[keys::home("a", 3)].wait_value("a", None);
    servers[3].wait_value("a", None);
    client.set("c", noise(10_240));
}

#[test]
fn a_flood_of_noreply() {
    let (magent, servers) = farm(true, &[]);
    let mut client = magent.client();
    let mut requests = String::new();
    for i in 0..30_000 {
        let key = i % 10;
        requests += &format!("set k{key} 0 0 5 noreply\r\n{i:05}\r\nincr k{key} 1 noreply\r\n");
        requests += &format!("delete none{key} noreply\r\nadd k{key} 0 0 1 noreply\r\nx\r\n");
    }
    let sender = client.send_aside(requests.into_bytes());
    assert_eq!(show(&client.read_until_quiet()), "", "silence was promised");
    sender.join().expect("all was sent");
    for key in 0..10 {
        assert_eq!(
            client.get(&format!("k{key}")),
            Some(format!("{:05}", 29_991 + key).into_bytes())
        );
        servers[3].wait_value(
            &format!("k{key}"),
            Some(format!("{:05}", 29_991 + key).as_bytes()),
        );
    }
    // Noreply must not leak connections.
    servers.iter().for_each(|s| s.wait_connections(1));
    client.ask("set k 0 0 x noreply\r\nmn\r\n", "MN\r\n");
}

#[test]
fn term_loses_no_answer() {
    let (mut magent, _server) = single();
    let mut client = magent.client();
    let value = noise(500_000);
    client.set("a", &value);
    client.send("get a\r\n".repeat(10));
    client.read_exact(1);
    let status = magent.terminate_while(|| client.read_to_end().len());
    let one = b"VALUE a 0 500000\r\n".len() + value.len() + b"\r\nEND\r\n".len();
    assert_eq!(status.1, one * 10 - 1);
    assert!(status.0.success(), "{}", status.0);
}
