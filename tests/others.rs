//! Magents over the same memcacheds know of each other, by what each leaves on the servers.

mod common;

use common::fake::empty;
use common::world::{self, State, World};
use common::{Client, Fake, Magent, Memcached, wait_for};
use std::collections::BTreeMap;
use std::time::Duration;

/// The beacon's list, as a server holds it; without its line ends.
fn beacon(server: &Memcached) -> Vec<String> {
    let mut client = server.client();
    let head = client.ask_line("mg AG1hZ2VudC9i b v\r\n");
    let Some(len) = head.strip_prefix("VA ") else {
        assert_eq!(head, "EN");
        return Vec::new();
    };
    let list = client.read_exact(len.parse().expect("a length"));
    let list = String::from_utf8(list).expect("text");
    list.lines().map(str::to_string).collect()
}

/// Uses a server through `magent` until its line there is the wanted one.
#[track_caller]
fn wait_field(magent: &Magent, server: &Memcached, field: &str, want: Option<&str>) {
    let mut client = magent.client();
    wait_for(&format!("{field} to be {want:?}"), || {
        client.get("k");
        let now = magent.server(&server.name);
        (now.get(field).map(String::as_str) == want).then_some(())
    });
}

/// Uses a server through both until they see each other, and returns both lines.
#[track_caller]
fn wait_met(one: &Magent, two: &Magent, server: &Memcached) -> Vec<String> {
    let sees = |a: &Magent, b: &Magent| {
        let title = format!("{} {}", host(), b.pid());
        a.server(&server.name).get("other_magents") == Some(&title)
    };
    wait_for("both to see each other", || {
        for magent in [one, two] {
            magent.client().get("k");
        }
        let lines = beacon(server);
        (sees(one, two) && sees(two, one) && lines.len() == 2).then_some(lines)
    })
}

fn host() -> String {
    magent::sys::host_name()
}

/// The key of a sign of life, as base64.
fn life(line: &str) -> String {
    let key = [b"\0magent/b/", &line.as_bytes()[..16]].concat();
    let mut text = Vec::new();
    magent::protocol::base64::encode(&key, &mut text);
    String::from_utf8(text).expect("base64")
}

#[test]
fn each_has_a_line_and_a_sign_of_life_that_is_gone_at_its_end() {
    let server = Memcached::start();
    let mut magent = Magent::farm(&[&server.name], &[], &[]);
    assert!(beacon(&server).is_empty(), "it has used the server");
    magent.client().get("k");
    let lines = wait_for("a line", || Some(beacon(&server)).filter(|l| !l.is_empty()));
    let words: Vec<&str> = lines[0].split(' ').collect();
    assert_eq!(lines.len(), 1);
    assert_eq!(words[1..3], [host(), magent.pid().to_string()]);
    assert!(words[0].len() == 16 && words[3].len() == 16, "{words:?}");
    let lives = server
        .client()
        .ask_line(format!("mg {} b t\r\n", life(&lines[0])));
    assert!(["HD t10", "HD t9"].contains(&lives.as_str()), "{lives}");
    assert_eq!(magent.server(&server.name)["marks"], "on");

    assert!(magent.terminate().success());
    assert!(beacon(&server).is_empty());
    let gone = server
        .client()
        .ask_line(format!("mg {} b t\r\n", life(&lines[0])));
    assert_eq!(gone, "EN");
}

/// It is renewed as long as the server is used, and the server counts neither gets nor misses for it.
#[test]
fn a_server_that_is_used_sees_a_sign_of_life_each_second() {
    let server = Memcached::start();
    let magent = Magent::farm(&[&server.name], &[], &[]);
    let mut client = magent.client();
    client.set("k", "v");
    let line = wait_for("a line", || beacon(&server).pop());
    let key = life(&line);
    let before = server.client().stats("stats\r\n");
    let mut asked = 0;
    wait_for("three more seconds", || {
        assert_eq!(client.get("k").as_deref(), Some(&b"v"[..]));
        asked += 1;
        (server.stat("cmd_set") > before["cmd_set"].parse::<u64>().expect("a number") + 2)
            .then_some(())
    });
    let lives = server.client().ask_line(format!("mg {key} b t\r\n"));
    assert!(["HD t10", "HD t9"].contains(&lives.as_str()), "{lives}");
    let number = |all: &BTreeMap<String, String>, name: &str| all[name].parse::<u64>().expect(name);
    let after = server.client().stats("stats\r\n");
    assert_eq!(number(&after, "get_misses"), number(&before, "get_misses"));
    // The last look of this test at the sign of life is one.
    let hits = number(&after, "get_hits") - number(&before, "get_hits");
    assert_eq!(hits, asked + 1);
}

#[test]
fn two_see_each_other_come_and_go() {
    let server = Memcached::start();
    let farm = || Magent::farm(&[&server.name], &[], &[]);
    let (one, mut two) = (farm(), farm());
    let lines = wait_met(&one, &two, &server);
    let rings = |line: &str| line.rsplit(' ').next().map(str::to_string);
    assert_eq!(rings(&lines[0]), rings(&lines[1]));

    assert!(two.terminate().success());
    wait_field(&one, &server, "other_magents", None);
    assert_eq!(beacon(&server).len(), 1);
}

/// Nobody takes the line of one that was killed out but those that miss its sign of life.
#[test]
fn one_that_was_killed_is_gone_after_ten_seconds() {
    let server = Memcached::start();
    let farm = || Magent::farm(&[&server.name], &[], &[]);
    let (one, two) = (farm(), farm());
    wait_met(&one, &two, &server);
    drop(two);
    wait_field(&one, &server, "other_magents", None);
    wait_for("its line to be taken out", || {
        one.client().get("k");
        (beacon(&server).len() == 1).then_some(())
    });
}

/// One that lives and does not use a server looks like no death.
#[test]
fn one_that_does_not_use_a_server_takes_its_line_out_until_it_does() {
    let server = Memcached::start();
    let farm = || Magent::farm(&[&server.name], &[], &["-v"]);
    let (one, two) = (farm(), farm());
    let lines = wait_met(&one, &two, &server);
    wait_for("its line to be gone", || {
        one.client().get("k");
        (beacon(&server).len() == 1).then_some(())
    });
    let is_its = |line: &&String| line.contains(&format!(" {} ", two.pid()));
    let its = lines.iter().find(is_its).expect("its line");
    let gone = server
        .client()
        .ask_line(format!("mg {} b t\r\n", life(its)));
    assert_eq!(gone, "EN");
    assert!(
        !one.log().contains("does not use it any more"),
        "{}",
        one.log()
    );
    two.client().get("k");
    wait_for("its line and its sign of life", || {
        let life = format!("mg {} b t\r\n", life(its));
        let is_alive = server.client().ask_line(life).starts_with("HD");
        (is_alive && beacon(&server).contains(its)).then_some(())
    });
    // Also where nobody has used it any more.
    wait_for("no line", || beacon(&server).is_empty().then_some(()));
}

/// Whoever starts behind a client's flush sees who is there.
#[test]
fn a_flush_of_a_client_is_followed_by_the_line() {
    let configs = ["127.0.0.1:1001"; 2].map(|s| world::marking(&["-s", s]));
    let mut world = World::several(configs.into(), 1);
    world.kill(1);
    let client = world.connect(0);
    world.send(&client, "set k 0 0 1\r\nv\r\n");
    world.advance(Duration::from_secs(2));
    assert_eq!(world.take_text(&client), "STORED\r\n");
    world.send(&client, "flush_all\r\n");
    world.step();
    let lines = |world: &World| {
        let list = world.servers[&1001].store.get("\0magent/b", world.now);
        list.map_or(0, |list| list.data.iter().filter(|b| **b == b'\n').count())
    };
    assert_eq!(world.take_text(&client), "OK\r\n");
    assert_eq!(lines(&world), 1);
    world.start(1);
    let other = world.connect_to(1, 0);
    world.send(&other, "get k\r\n");
    world.advance(Duration::from_millis(50));
    assert_eq!(lines(&world), 2);
}

#[test]
fn a_flush_takes_the_line_away_and_it_comes_back() {
    let server = Memcached::start();
    let magent = Magent::farm(&[&server.name], &[], &[]);
    let mut client = magent.client();
    client.get("k");
    let line = wait_for("a line", || beacon(&server).pop());
    client.ask("flush_all\r\n", "OK\r\n");
    wait_for("the line again", || {
        client.get("k");
        (beacon(&server) == [line.clone()]).then_some(())
    });
}

/// A line that stays without its sign of life would look like a death to others.
#[test]
fn a_server_that_a_reload_takes_out_is_left_in_order() {
    let (kept, left) = (Memcached::start(), Memcached::start());
    let text = |servers: &[&Memcached]| {
        let servers: String = servers
            .iter()
            .map(|s| format!("  - {}:1\n", s.name))
            .collect();
        format!("a:\n  listen: 127.0.0.1:PORT\n  warm: 0\n  servers:\n{servers}")
    };
    let magent = Magent::with_file(&text(&[&kept, &left]));
    let line = wait_for("a line on each", || {
        (0..20).for_each(|n| drop(magent.client().get(&format!("{n}-is-a-key"))));
        let lines = [beacon(&kept), beacon(&left)];
        lines
            .iter()
            .all(|l| l.len() == 1)
            .then(|| beacon(&left).pop())
    });
    assert!(magent.reload(&text(&[&kept])));
    wait_for("its line to be out", || {
        beacon(&left).is_empty().then_some(())
    });
    let life = life(&line.expect("a line"));
    assert_eq!(left.client().ask_line(format!("mg {life} b\r\n")), "EN");
    assert_eq!(beacon(&kept).len(), 1);
}

/// The number at the end of the line tells whether two have the same rings.
#[test]
fn a_reload_that_changes_the_rings_changes_the_line() {
    let servers = [Memcached::start(), Memcached::start()];
    let text = |count: usize| {
        let all: String = servers[..count]
            .iter()
            .map(|s| format!("  - {}:1\n", s.name))
            .collect();
        format!("alpha:\n  listen: 127.0.0.1:PORT\n  servers:\n{all}")
    };
    let magent = Magent::with_file(&text(1));
    let mut client = magent.client();
    client.get("k");
    let before = wait_for("a line", || beacon(&servers[0]).pop());
    assert!(magent.reload(&text(2)));
    wait_for("another line", || {
        // FNV puts names that differ in their last bytes only on one server.
        (0..20).for_each(|i| drop(client.get(&format!("{i}-is-a-key"))));
        let lines = beacon(&servers[0]);
        let is_new = lines.len() == 1 && lines[0] != before && lines[0][..16] == before[..16];
        (is_new && beacon(&servers[1]) == lines).then_some(())
    });
}

#[test]
fn what_can_hold_no_marks_says_so() {
    let good = Memcached::start();
    let (plain, old) = (Memcached::with(&["-C"]), Fake::answering(empty));
    let marks = |magent: &Magent, name: &str, want: &str| {
        let mut client = magent.client();
        wait_for(want, || {
            client.get("k");
            (magent.server(name)["marks"] == want).then_some(())
        });
    };
    marks(
        &Magent::farm(&[&good.name], &[], &["--alone"]),
        &good.name,
        "alone",
    );
    marks(
        &Magent::farm(&[&good.name], &[], &["--auto-eject"]),
        &good.name,
        "ejected",
    );
    marks(
        &Magent::farm(&[&plain.name], &[], &[]),
        &plain.name,
        "no cas",
    );
    marks(&Magent::farm(&[&old.name], &[], &[]), &old.name, "too old");
    assert!(beacon(&good).is_empty());
    assert_eq!(old.count("m"), 0);
    // One that is another magent refuses.
    let inner = Magent::farm(&[&good.name], &[], &[]);
    let name = format!("127.0.0.1:{}", inner.port);
    marks(&Magent::farm(&[&name], &[], &[]), &name, "refused");
}

/// Magents' own keys are none of the clients' business, whatever dialect they speak.
/// One that was full for a while holds marks again, without a new connection.
#[test]
fn a_server_that_was_full_holds_marks_again() {
    let mut world = World::of(world::marking(&[
        "-s",
        "127.0.0.1:1001",
        "-b",
        "127.0.0.1:1002",
    ]));
    let client = world.connect(0);
    let marks_after = |world: &mut World, state: State, seconds: u64| {
        world.become_state(1002, state);
        for _ in 0..seconds {
            world.send(&client, "set k 0 0 1\r\nv\r\n");
            world.advance(Duration::from_secs(1));
            assert_eq!(world.take_text(&client), "STORED\r\n");
        }
        world.stat_for(&client, "servers", "127.0.0.1:1002:marks")
    };
    assert_eq!(marks_after(&mut world, State::Well, 2), "on");
    assert_eq!(marks_after(&mut world, State::Full, 2), "refused");
    assert_eq!(marks_after(&mut world, State::Full, 20), "refused");
    assert_eq!(marks_after(&mut world, State::Well, 3), "on");
}

#[test]
fn clients_do_not_reach_the_keys() {
    let server = Memcached::start();
    let magent = Magent::farm(&[&server.name], &[], &["--memcached-stats"]);
    let mut client = magent.client();
    client.set("k", "v");
    wait_for("a line", || beacon(&server).pop());
    let bad = "CLIENT_ERROR bad command line format\r\n";
    client
        .ask("mg AG1hZ2VudC9i b v\r\n", bad)
        .ask("me AG1hZ2VudC9i b\r\n", bad)
        .ask("ms AG1hZ2VudC9i 1 b\r\nx\r\n", bad)
        .ask("md AG1hZ2VudC9i b\r\n", bad)
        .ask("ma AG1hZ2VudC9i b\r\n", bad)
        .ask("get \0magent/b\r\n", "ERROR\r\n");
    let get = b"\x80\x00\x00\x09\x00\x00\x00\x00\x00\x00\x00\x09\x00\x00\x00\x07\x00\x00\x00\x00\x00\x00\x00\x00\0magent/b";
    let mut binary = Client::tcp(magent.port);
    let answer = binary.send(get).read_exact(24);
    assert_eq!(
        (answer[0], &answer[6..8]),
        (0x81, &[0, 4][..]),
        "{answer:?}"
    );
    // The lines of 64 and more bytes stand in the class of k, or in the next.
    let dumps: Vec<u8> = (1..6)
        .flat_map(|class| {
            let ask = format!("stats cachedump {class} 100\r\n");
            client.send(ask).read_until(b"END\r\n")
        })
        .collect();
    let items = dumps
        .split(|b| *b == b'\n')
        .filter(|l| l.starts_with(b"ITEM "));
    let items: Vec<&[u8]> = items.collect();
    let is_own = |item: &&[u8]| item.starts_with(b"ITEM k ");
    assert!(items.iter().all(is_own), "{items:?}");
}

/// The id of a magent is that of its process, whatever program it runs: others see neither its end nor a new one.
#[test]
fn another_program_is_the_same_magent() {
    let server = Memcached::start();
    let mut one = Magent::farm(&[&server.name], &[], &[]);
    let two = Magent::farm(&[&server.name], &[], &["-v"]);
    let title = format!("{} {}", host(), one.pid());
    let (mut first, mut second) = (one.client(), two.client());
    first.get("k");
    wait_field(&two, &server, "other_magents", Some(&title));
    let lines = beacon(&server);
    for n in 1..4 {
        assert!(one.upgrade(), "{}", one.log());
        // Each is used, so each would take the other's line out.
        wait_for("a look at the others", || {
            first.get("k");
            second.get("k");
            let life = format!("mg {} b t\r\n", life(&lines[0]));
            let fresh = server.client().ask_line(life);
            ["HD t10", "HD t9"].contains(&fresh.as_str()).then_some(())
        });
        assert_eq!(beacon(&server), lines, "change {n}");
        wait_field(
            &one,
            &server,
            "other_magents",
            Some(&format!("{} {}", host(), two.pid())),
        );
        wait_field(&two, &server, "other_magents", Some(&title));
    }
    assert!(
        !two.log().contains("does not use it any more"),
        "{}",
        two.log()
    );
    // It still knows which line is its own.
    assert!(one.terminate().success());
    assert_eq!(beacon(&server).len(), 1);
}
