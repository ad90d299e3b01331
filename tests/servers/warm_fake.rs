//! Warming in an order of events that real servers show only by chance: the backup is a fake that
//! answers when it is told to.

use crate::common::fake::empty;
use crate::common::{Fake, Gate, Magent, Memcached, wait_for};
use crate::quick;

/// A fresh primary and a backup that answers each fetch of `k` with `fetched` once it may, and
/// everything else like an empty server.
struct Slow {
    magent: Magent,
    primary: Memcached,
    backup: Fake,
    gate: Gate,
}

fn slow(fetched: &'static str) -> Slow {
    const FETCH: &str = "mg k u f t v c";
    let (backup, gate) = Fake::holding(FETCH, move |request| match request {
        r if r.starts_with(FETCH.as_bytes()) => fetched,
        [b'i', b'n', b'c', ..] => "6\r\n",
        [b'd', b'e', b'l', ..] => "DELETED\r\n",
        r => empty(r),
    });
    let primary = Memcached::start();
    let options = quick(&["--timeout", "3000", "--refill", "0", "--alone"]);
    let magent = Magent::farm(&[&primary.name], &[&backup.name], &options);
    Slow {
        magent,
        primary,
        backup,
        gate,
    }
}

impl Slow {
    fn open(&self) {
        self.gate.open();
    }
}

const OLD: &str = "VA 3 f7 t-1\r\nold\r\n";
const READ: &str = "VALUE k 7 3\r\nold\r\nEND\r\n";

#[test]
fn a_set_that_passes_drops_the_copy() {
    let s = slow(OLD);
    let (mut reader, mut writer) = (s.magent.client(), s.magent.client());
    reader.send("get k\r\n");
    s.backup.wait_count("mg k", 1);
    writer.set("k", "new");
    s.open();
    reader.expect(READ);
    assert_eq!(s.primary.value("k").as_deref(), Some(&b"new"[..]));
    assert_eq!(writer.get("k").as_deref(), Some(&b"new"[..]));
    assert_eq!(s.primary.stat("cmd_set"), 1, "no copy was tried");
    assert_eq!(s.magent.stat("repairs_dropped"), 1);
}

#[test]
fn a_delete_that_passes_drops_the_copy() {
    let s = slow(OLD);
    let (mut reader, mut writer) = (s.magent.client(), s.magent.client());
    reader.send("get k\r\n");
    s.backup.wait_count("mg k", 1);
    writer.send("delete k\r\n");
    wait_for("the delete to reach the primary", || {
        (s.primary.stat("delete_misses") == 1).then_some(())
    });
    s.open();
    reader.expect(READ);
    writer.expect("DELETED\r\n");
    assert_eq!(s.primary.value("k"), None);
    assert_eq!(s.primary.stat("cmd_set"), 0);
}

#[test]
fn a_flush_that_passes_drops_the_copy() {
    let s = slow(OLD);
    let (mut reader, mut writer) = (s.magent.client(), s.magent.client());
    reader.send("get k\r\n");
    s.backup.wait_count("mg k", 1);
    writer.send("flush_all\r\n");
    wait_for("the flush to reach the primary", || {
        (s.primary.stat("cmd_flush") == 1).then_some(())
    });
    s.open();
    reader.expect(READ);
    writer.expect("OK\r\n");
    assert_eq!(s.primary.value("k"), None);
    assert_eq!(s.primary.stat("cmd_set"), 0);
}

#[test]
fn a_write_that_waited_gets_the_primary_s_first_answer_if_the_copy_is_dropped() {
    let s = slow("VA 1 f0 t-1\r\n5\r\n");
    let (mut counter, mut writer) = (s.magent.client(), s.magent.client());
    counter.send("incr k 1\r\n");
    s.backup.wait_count("mg k", 1);
    writer.set("k", "90");
    s.open();
    counter.expect("NOT_FOUND\r\n");
    assert_eq!(s.primary.value("k").as_deref(), Some(&b"90"[..]));
}

/// The primary went and came back while a fetch for it was on its way: what was written on the
/// backup meanwhile is newer than what the fetch brings.
#[test]
fn a_fetch_that_outlives_its_primary_copies_nothing() {
    let mut s = slow(OLD);
    let (mut reader, mut writer) = (s.magent.client(), s.magent.client());
    reader.send("get k\r\n");
    s.backup.wait_count("mg k", 1);
    s.primary.kill();
    let mut third = s.magent.client();
    third.send("get other\r\n");
    s.magent.wait_state(&s.primary.name, "down");
    writer.send("set k 0 0 3\r\nnew\r\n");
    wait_for("the write to be journaled", || {
        (s.magent.server(&s.primary.name)["journal_keys"] == "1").then_some(())
    });
    s.primary.restart();
    wait_for("the primary to be back", || {
        (s.magent.server(&s.primary.name)["state"] == "warming").then_some(())
    });
    s.open();
    reader.expect(READ);
    writer.expect("STORED\r\n");
    assert_eq!(
        s.primary.value("k"),
        None,
        "the backup holds something newer"
    );
}

#[test]
fn stale_won_and_dying_values_are_served_and_not_copied() {
    for fetched in [
        "VA 3 f7 t-1 W\r\nold\r\n",
        "VA 3 f7 t-1 X Z\r\nold\r\n",
        "VA 3 f7 t0\r\nold\r\n",
    ] {
        let s = slow(fetched);
        s.open();
        let mut client = s.magent.client();
        for _ in 0..2 {
            client.ask("get k\r\n", READ);
        }
        assert_eq!(s.primary.value("k"), None, "{fetched:?}");
        client.ask("incr k 1\r\n", "NOT_FOUND\r\n");
        client.ask("add k 0 0 1\r\nx\r\n", "NOT_STORED\r\n");
        client.ask("set k 0 0 1\r\nx\r\n", "STORED\r\n");
    }
}

#[test]
fn times_to_live_of_a_copy() {
    for (ttl, low, high) in [
        ("-1", -1, -1),
        ("100", 90, 100),
        ("2592000", 2_591_990, 2_592_000),
        ("2592001", 2_591_990, 2_592_001),
        ("99999999", 99_999_980, 99_999_999),
    ] {
        let fetched: &'static str =
            Box::leak(format!("VA 3 f7 t{ttl}\r\nold\r\n").into_boxed_str());
        let s = slow(fetched);
        s.open();
        s.magent.client().ask("get k\r\n", READ);
        let (flags, left, value) = crate::held(&s.primary, "k").expect("copied");
        assert_eq!((flags, &value[..]), (7, &b"old"[..]));
        assert!(
            (low..=high).contains(&left) || left - high <= 2 && high > 0,
            "t{ttl} became {left}"
        );
    }
}

#[test]
fn older_backups_answer_while_the_primary_is_down_and_nothing_is_copied() {
    let backup = Fake::raw(|link| {
        for answer in ["VERSION 1.4.39\r\n", "STAT uptime 100000\r\nEND\r\n"] {
            link.line();
            link.send(answer);
        }
        while let Some(request) = link.request() {
            link.send(match &request[..3] {
                b"get" => "VALUE k 0 1\r\nx\r\nEND\r\n",
                b"set" => "STORED\r\n",
                b"del" => "NOT_FOUND\r\n",
                b"tou" => "NOT_FOUND\r\n",
                _ => "ERROR\r\n",
            });
        }
    });
    let mut primary = Memcached::start();
    let magent = Magent::farm(&[&primary.name], &[&backup.name], &quick(&["--alone"]));
    let mut client = magent.client();
    client.set("k", "x");
    backup.wait_count("set", 1);
    primary.restart();
    client.ask("get k\r\n", "END\r\n");
    client.ask("delete k\r\n", "NOT_FOUND\r\n");
    client.ask("add k 0 0 1\r\ny\r\n", "STORED\r\n");
    assert_eq!(backup.count("mg"), 0, "it does not know that");
    primary.kill();
    assert_eq!(client.get("k").as_deref(), Some(&b"x"[..]));
    assert_eq!(magent.stat("fetches"), 0);
}

/// The delete is on its way to the backup and stays in order there; that it was not answered in
/// time must not leave its key in the journal of a server that is up.
#[test]
fn a_delete_that_the_backup_answers_late_is_told_in_the_end() {
    let (backup, gate) = Fake::holding("delete", |_| "NOT_FOUND\r\n");
    let primary = Memcached::start();
    let magent = Magent::farm(&[&primary.name], &[&backup.name], &quick(&[]));
    let mut client = magent.client();
    client.ask("delete k\r\n", "NOT_FOUND\r\n");
    assert_eq!(magent.server(&backup.name)["journal_keys"], "1");
    gate.open();
    crate::wait_back(&magent, &backup.name);
}
