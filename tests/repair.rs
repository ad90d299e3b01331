//! What a magent that is killed leaves undone is mended: its mirrors that never went out.

mod common;

use common::farm::{get_all, held};
use common::rng::Rng;
use common::time::think;
use common::{Magent, Memcached, wait_for};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const OPTIONS: [&str; 2] = ["--retry", "300"];

/// So many requests of a writer are under way at a time.
const DEPTH: usize = 64;

fn names(count: usize) -> Vec<String> {
    (0..count).map(|i| format!("k{i}")).collect()
}

fn farm(primary: &Memcached, backup: &Memcached, more: &[&str]) -> Magent {
    let options = [&OPTIONS[..], more].concat();
    Magent::farm(&[&primary.name], &[&backup.name], &options)
}

/// A write of one of the keys: mostly sets, besides deletes and numbers that are added to.
fn write(rng: &mut Rng, keys: usize, n: usize) -> String {
    let key = rng.below(keys as u64);
    match rng.below(10) {
        0 => format!("delete k{key}\r\n"),
        1 | 2 => format!("incr k{key} 1\r\n"),
        _ => format!("set k{key} {key} 0 {}\r\n{n}\r\n", n.to_string().len()),
    }
}

/// Writes through a magent, many requests at once, until `is_over` or until it is gone. Returns how many were
/// answered.
fn write_all(port: u16, seed: u64, keys: usize, is_over: &AtomicBool) -> usize {
    let mut rng = Rng::new(seed);
    let Ok(stream) = TcpStream::connect(("127.0.0.1", port)) else {
        return 0;
    };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(20)));
    let mut stream = BufReader::new(stream);
    let mut answered = 0;
    let mut line = Vec::new();
    while !is_over.load(Ordering::Relaxed) {
        think();
        let all = (0..DEPTH).map(|n| write(&mut rng, keys, answered + n));
        let all: String = all.collect();
        if stream.get_mut().write_all(all.as_bytes()).is_err() {
            return answered;
        }
        for _ in 0..DEPTH {
            line.clear();
            match stream.read_until(b'\n', &mut line) {
                Ok(1..) => answered += 1,
                _ => return answered,
            }
        }
    }
    answered
}

/// Keys that the two do not hold alike.
#[track_caller]
fn differing(primary: &Memcached, backup: &Memcached, names: &[String]) -> Vec<String> {
    let mut clients = [primary.client(), backup.client()];
    let [here, there] = clients.each_mut().map(|client| get_all(client, names));
    let differs = |name: &&String| here.get(*name) != there.get(*name);
    names.iter().filter(differs).cloned().collect()
}

/// Uses a magent until its log says this.
#[track_caller]
fn wait_logged(magent: &Magent, text: &str) {
    let mut client = magent.client();
    wait_for(&format!("{text:?} in the log"), || {
        client.get("k0");
        magent.log().contains(text).then_some(())
    });
}

#[track_caller]
fn wait_alike(primary: &Memcached, backup: &Memcached, names: &[String]) {
    let mut left = Vec::new();
    let found = common::time::look_within(Duration::from_secs(20), || {
        left = differing(primary, backup, names);
        left.is_empty().then_some(())
    });
    assert!(found.is_some(), "{} keys differ: {left:?}", left.len());
}

/// Two that see each other.
fn two(primary: &Memcached, backup: &Memcached, more: &[&str]) -> [Magent; 2] {
    let both = [farm(primary, backup, more), farm(primary, backup, more)];
    wait_for("both to see each other", || {
        both.iter().for_each(|m| drop(m.client().get("k0")));
        let sees = |m: &Magent, s: &Memcached| m.server(&s.name).contains_key("other_magents");
        let all = |m: &Magent| sees(m, primary) && sees(m, backup);
        both.iter().all(all).then_some(())
    });
    both
}

/// Writes through these ports while `work` is done.
fn while_written<T>(ports: &[u16], keys: usize, work: impl FnOnce() -> T) -> T {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|s| {
        let is_over = &is_over;
        let writers = ports.iter().zip(0..);
        let start = |(port, seed)| s.spawn(move || write_all(port, seed, keys, is_over));
        let writers: Vec<_> = writers.map(|(port, seed)| start((*port, seed))).collect();
        let result = work();
        is_over.store(true, Ordering::Relaxed);
        for writer in writers {
            let answered = writer.join().expect("a writer");
            assert!(answered > 0, "nothing was written");
        }
        result
    })
}

#[track_caller]
fn wait_written(primary: &Memcached) {
    wait_for("some writes", || {
        (primary.stat("cmd_set") > 20_000).then_some(())
    });
}

#[test]
fn a_magent_that_is_killed_under_load() {
    let (primary, backup) = (Memcached::start(), Memcached::start());
    let [one, other] = two(&primary, &backup, &[]);
    let names = names(300);
    while_written(&[one.port, one.port, other.port], names.len(), || {
        wait_written(&primary);
        drop(one);
    });
    println!("{} differ", differing(&primary, &backup, &names).len());
    // The one that is left writes on, in some of the keys.
    while_written(&[other.port], 50, || wait_logged(&other, "repaired in"));
    println!("{}", other.log());
    wait_alike(&primary, &backup, &names);
}

#[test]
fn a_magent_that_is_killed_under_load_and_started_again() {
    let (primary, backup) = (Memcached::start(), Memcached::start());
    let one = farm(&primary, &backup, &[]);
    let names = names(300);
    while_written(&[one.port, one.port], names.len(), || {
        wait_written(&primary);
        drop(one);
    });
    println!("{} differ", differing(&primary, &backup, &names).len());
    let one = farm(&primary, &backup, &[]);
    wait_logged(&one, "repaired in");
    println!("{}", one.log());
    wait_alike(&primary, &backup, &names);
}

/// Has a magent die that has left three keys undone: one that the primary has replaced, one that it has
/// deleted, and a new one. Another one is there with these options.
fn left_undone(more: &[&str]) -> (Magent, Memcached, Memcached) {
    let (primary, backup) = (Memcached::start(), Memcached::start());
    let [one, other] = two(&primary, &backup, more);
    let mut client = one.client();
    for name in names(50) {
        client.set(&name, "old");
    }
    wait_for("the mirrors", || {
        differing(&primary, &backup, &names(50))
            .is_empty()
            .then_some(())
    });
    primary
        .client()
        .ask("set k1 7 0 3\r\nnew\r\n", "STORED\r\n")
        .ask("delete k2\r\n", "DELETED\r\n")
        .ask("set k50 0 1000 3\r\nnew\r\n", "STORED\r\n");
    drop(one);
    (other, primary, backup)
}

#[test]
fn the_backup_gets_what_the_primary_holds() {
    // The primary is not warming, so what it lacks is gone.
    let (other, primary, backup) = left_undone(&["--warm", "0"]);
    wait_logged(&other, "repaired in");
    assert_eq!(held(&backup, "k1"), Some((7, -1, b"new".to_vec())));
    assert_eq!(held(&backup, "k2"), None);
    let new = held(&backup, "k50").expect("the new key");
    assert!(new.2 == b"new" && (900..=1000).contains(&new.1), "{new:?}");
    assert_eq!(differing(&primary, &backup, &names(51)), [""; 0]);
    let log = other.log();
    assert!(
        log.contains(&format!(
            "primary {}: a magent that used it died; it is compared with {}, and they are repaired",
            primary.name, backup.name
        )),
        "{log}"
    );
    assert!(log.contains("100 keys listed, 48 same, 1 missing, 1 extra, 1 different, 0 changing, 0 skipped; 3 mended") , "{log}");
    let shown = other.server(&primary.name);
    assert_eq!(
        (&shown["verify"][..], &shown["verify_mended"][..]),
        ("done", "3")
    );
}

/// So it does if the one that is left was there first, and found no list then.
#[test]
fn who_was_there_first_repairs_too() {
    let (primary, backup) = (Memcached::start(), Memcached::start());
    let other = farm(&primary, &backup, &["--warm", "0"]);
    wait_for("its line", || {
        other.client().get("k0");
        let list = primary.client().ask_line("mg AG1hZ2VudC9i b s\r\n");
        list.starts_with("HD ").then_some(())
    });
    let one = farm(&primary, &backup, &["--warm", "0"]);
    one.client().set("k2", "old");
    backup.wait_value("k2", Some(b"old"));
    wait_for("both to see each other", || {
        let sees = |m: &Magent, s: &Memcached| {
            m.client().get("k2");
            m.server(&s.name).contains_key("other_magents")
        };
        let all = [&one, &other];
        all.iter()
            .all(|m| sees(m, &primary) && sees(m, &backup))
            .then_some(())
    });
    primary.client().ask("delete k2\r\n", "DELETED\r\n");
    drop(one);
    wait_logged(&other, "repaired in");
    assert_eq!(held(&primary, "k2"), None);
    assert_eq!(held(&backup, "k2"), None);
    assert!(!other.log().contains("refill"), "{}", other.log());
}

/// What a primary lacks that may be missing because it restarted is not deleted.
#[test]
fn what_a_warming_primary_lacks_comes_back() {
    let (other, primary, backup) = left_undone(&[]);
    wait_logged(&other, "repaired in");
    assert_eq!(held(&backup, "k1"), Some((7, -1, b"new".to_vec())));
    assert_eq!(held(&primary, "k2"), Some((0, -1, b"old".to_vec())));
    assert_eq!(differing(&primary, &backup, &names(51)), [""; 0]);
}

/// It is mended once: who takes the line out does it.
#[test]
fn one_of_those_that_are_left_repairs() {
    let (other, primary, backup) = left_undone(&["--warm", "0"]);
    let third = farm(&primary, &backup, &["--warm", "0"]);
    let begun = || {
        let count = |m: &Magent| m.log().matches("and they are repaired").count();
        count(&other) + count(&third)
    };
    let is_repaired = || {
        [&other, &third]
            .iter()
            .any(|m| m.log().contains("repaired in"))
    };
    wait_for("the repair", || {
        [&other, &third]
            .iter()
            .for_each(|m| drop(m.client().get("k0")));
        is_repaired().then_some(())
    });
    let line_is_out = || {
        [&other, &third].iter().all(|m| {
            m.client().get("k0");
            m.server(&primary.name)["other_magents"].split(", ").count() == 1
        })
    };
    wait_for("nobody else to be there", || line_is_out().then_some(()));
    assert_eq!(begun(), 1, "{}\n{}", other.log(), third.log());
    assert_eq!(differing(&primary, &backup, &names(51)), [""; 0]);
}

/// The death of one that has not repaired to the end is another one's to repair.
#[test]
fn who_dies_at_it_is_repaired_after() {
    let (other, primary, backup) = left_undone(&["--warm", "0", "--refill", "20k"]);
    wait_logged(&other, "and they are repaired");
    assert!(!other.log().contains("repaired in"), "{}", other.log());
    drop(other);
    let third = farm(&primary, &backup, &["--warm", "0"]);
    wait_logged(&third, "repaired in");
    assert_eq!(differing(&primary, &backup, &names(51)), [""; 0]);
}

/// So is one that ends before it has done it.
#[test]
fn who_ends_at_it_leaves_it_to_another() {
    let (mut other, primary, backup) = left_undone(&["--warm", "0", "--refill", "20k"]);
    wait_logged(&other, "and they are repaired");
    assert!(other.terminate().success());
    assert!(!other.log().contains("repaired in"), "{}", other.log());
    let third = farm(&primary, &backup, &["--warm", "0"]);
    wait_logged(&third, "repaired in");
    assert_eq!(differing(&primary, &backup, &names(51)), [""; 0]);
}

/// Another program goes on with it.
#[test]
fn another_program_repairs_to_the_end() {
    let (other, primary, backup) = left_undone(&["--warm", "0", "--refill", "20k"]);
    wait_logged(&other, "and they are repaired");
    assert!(other.upgrade(), "{}", other.log());
    wait_for("the repair", || {
        other.client().get("k0");
        (other.log().matches("repaired in").count() == 1).then_some(())
    });
    assert_eq!(differing(&primary, &backup, &names(51)), [""; 0]);
}

/// A primary that has restarted since says nothing of what the backup holds: it is refilled.
#[test]
fn a_primary_that_has_restarted_since_is_refilled() {
    let (other, mut primary, backup) = left_undone(&["--warm", "0"]);
    wait_for("an uptime that can fall", || {
        (primary.stat("uptime") > 5).then_some(())
    });
    primary.restart();
    wait_logged(&other, "refilled in");
    assert_eq!(differing(&primary, &backup, &names(51)), [""; 0]);
    assert_eq!(held(&backup, "k1"), Some((0, -1, b"old".to_vec())));
    assert!(!other.log().contains("repaired"), "{}", other.log());
}

/// Also if nobody was there to see it.
#[test]
fn a_primary_that_has_restarted_while_nobody_was_there_is_refilled() {
    let (other, mut primary, backup) = left_undone(&["--warm", "0"]);
    drop(other);
    primary.restart();
    let third = farm(&primary, &backup, &["--warm", "0"]);
    // Who uses a server sees who has died there.
    wait_for("the refill", || {
        third.client().set("another", "x");
        third.log().contains("refilled in").then_some(())
    });
    assert_eq!(differing(&primary, &backup, &names(51)), [""; 0]);
    assert_eq!(held(&primary, "k1"), Some((0, -1, b"old".to_vec())));
}

/// A key does not tell its pool, so nobody knows its partner.
#[test]
fn nothing_is_repaired_where_pools_name_other_partners() {
    let servers = [Memcached::start(), Memcached::start(), Memcached::start()];
    let pool = |name: &str, listen: &str, backup: &Memcached| {
        let (primary, backup) = (&servers[0].name, &backup.name);
        format!(
            "{name}:\n  listen: {listen}\n  servers:\n  - {primary}:1\n  backups:\n  - {backup}:1\n"
        )
    };
    let text = pool("a", "127.0.0.1:PORT", &servers[1]) + &pool("b", "DIR/b", &servers[2]);
    let start = || Magent::with_file(&text);
    let (one, other) = (start(), start());
    wait_for("both to see each other", || {
        for magent in [&one, &other] {
            magent.client().get("k0");
        }
        let sees = |m: &Magent| m.server(&servers[0].name).contains_key("other_magents");
        (sees(&one) && sees(&other)).then_some(())
    });
    drop(one);
    wait_logged(
        &other,
        "its backups are not repaired: it has other partners in another pool",
    );
}

#[test]
fn nothing_is_repaired_without_refills() {
    let (other, primary, backup) = left_undone(&["--refill", "0"]);
    wait_logged(
        &other,
        "its backups are not repaired: it is not compared: refills are switched off (--refill 0)",
    );
    assert_eq!(
        differing(&primary, &backup, &names(51)),
        ["k1", "k2", "k50"]
    );
}
