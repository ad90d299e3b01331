//! The session that every magent tutorial shows: two primaries, one backup, five keys, both
//! primaries killed, and nobody notices.

mod common;

use common::{Magent, Memcached, keys};

const KEYS: [&str; 5] = ["key1", "key2", "key3", "key4", "key5"];

/// What the tutorials start.
fn published() -> (Magent, [Memcached; 2], Memcached) {
    let primaries = [Memcached::start(), Memcached::start()];
    let backup = Memcached::start();
    let names = [&primaries[0].name[..], &primaries[1].name];
    let magent = Magent::farm(&names, &[&backup.name], &[]);
    (magent, primaries, backup)
}

#[test]
fn the_published_session() {
    let (magent, mut primaries, backup) = published();
    let mut telnet = magent.client();
    for key in KEYS {
        telnet.ask(
            format!("set {key} 0 0 5\r\n{}\r\n", key.replace("key", "val_")),
            "STORED\r\n",
        );
    }
    for key in KEYS {
        let value = key.replace("key", "val_");
        let home = keys::home(key, 2);
        assert_eq!(
            primaries[home].value(key).as_deref(),
            Some(value.as_bytes()),
            "{key} at home"
        );
        assert_eq!(
            primaries[1 - home].value(key),
            None,
            "{key} on the other primary"
        );
        backup.wait_value(key, Some(value.as_bytes()));
    }
    primaries.iter_mut().for_each(Memcached::kill);
    for key in KEYS {
        let value = key.replace("key", "val_");
        assert_eq!(
            telnet.get(key).as_deref(),
            Some(value.as_bytes()),
            "{key} with both primaries dead"
        );
    }
    // One more client, as somebody would check.
    telnet = magent.client();
    telnet.send("get key1 key2 key3 key4 key5\r\n");
    let all = String::from_utf8_lossy(&telnet.read_until(b"END\r\n")).into_owned();
    for key in KEYS {
        assert!(
            all.contains(&format!(
                "VALUE {key} 0 5\r\n{}\r\n",
                key.replace("key", "val_")
            )),
            "{all}"
        );
    }
    telnet
        .ask("set key6 0 0 1\r\n6\r\n", "STORED\r\n")
        .ask("get key6\r\n", "VALUE key6 0 1\r\n6\r\nEND\r\n");
    backup.wait_value("key6", Some(b"6"));
}

#[test]
fn the_keys_of_the_session_are_where_the_original_put_them() {
    // key0 has 2090432894 in tests/vectors/magent.tsv, and the last letter counts up.
    assert_eq!(KEYS.map(|k| keys::home(k, 2)), [1, 0, 1, 0, 1]);
}

#[test]
fn stats_of_a_fresh_start() {
    let (magent, primaries, _backup) = published();
    let mut telnet = magent.client();
    telnet.send("stats\r\n");
    let version = env!("CARGO_PKG_VERSION");
    telnet.expect(format!("memcached agent v{version}\r\n"));
    telnet.expect(format!(
        "matrix 1 -> {}, pool size 0\r\n",
        primaries[0].name
    ));
    telnet.expect(format!(
        "matrix 2 -> {}, pool size 0\r\n",
        primaries[1].name
    ));
    telnet.expect("END\r\n");
    telnet.ask("quit\r\n", "").read_to_end();
}
