//! Gets of more than a client's share of the memory: complete for whoever
//! reads, bounded for whoever does not.

mod common;

use common::world::State;
use common::world::store::filled;
use common::{Client, Magent, Memcached, World, noise, wait_for};

const MB: usize = 1 << 20;

/// A megabyte that magent and memcached take by default.
const LARGE: usize = 1_000_000;

/// Keys of each farm, which the gets name again and again.
const KEYS: usize = 40;

/// Two memcacheds that hold [`KEYS`] large values between them, and magent before them.
struct Farm {
    magent: Magent,
    _servers: [Memcached; 2],
    value: Vec<u8>,
}

impl Farm {
    fn new(options: &[&str]) -> Farm {
        let servers = [(); 2].map(|()| Memcached::with(&["-m", "128"]));
        let names: Vec<&str> = servers.iter().map(|s| s.name.as_str()).collect();
        let magent = Magent::farm(&names, &[], options);
        let value = noise(LARGE - 10);
        let mut client = magent.client();
        for i in 0..KEYS {
            client.set(&format!("k{i}"), value_of(i, &value));
        }
        Farm {
            magent,
            _servers: servers,
            value,
        }
    }

    /// The next value that comes, by the number of its key; `None` at the end.
    #[track_caller]
    fn next_value(&self, client: &mut Client) -> Option<usize> {
        let line = String::from_utf8(client.read_line()).expect("text");
        if line == "END\r\n" {
            return None;
        }
        let rest = line.strip_suffix(&format!(" 0 {LARGE}\r\n"));
        let number = rest.and_then(|l| l.strip_prefix("VALUE k")?.parse().ok());
        let number = number.unwrap_or_else(|| panic!("a get was answered {line:?}"));
        let value = client.read_exact(LARGE);
        assert!(
            value == value_of(number, &self.value),
            "the value of k{number}"
        );
        client.expect("\r\n");
        Some(number)
    }

    /// Everything that was asked comes, in its order.
    #[track_caller]
    fn expect_all(&self, client: &mut Client, count: usize) {
        let found: Vec<usize> = std::iter::from_fn(|| self.next_value(client)).collect();
        let lost = self.magent.stat("multi_get_keys_lost");
        let came = found.len();
        assert_eq!(came, count, "values came, {lost} count as lost");
        let wanted: Vec<usize> = (0..count).map(|i| i % KEYS).collect();
        assert!(found == wanted, "all came, but in another order");
        assert_eq!(lost, 0);
    }

    #[track_caller]
    fn expect_rest(&self) {
        wait_for("nothing in flight", || {
            (self.magent.stat("bytes_in_flight") == 0).then_some(())
        });
    }
}

/// Each begins with its key, so that one can't be taken for another.
fn value_of(key: usize, rest: &[u8]) -> Vec<u8> {
    [format!("k{key:<9}").as_bytes(), rest].concat()
}

/// A get of so many values.
fn get(count: usize) -> String {
    let keys: String = (0..count).map(|i| format!(" k{}", i % KEYS)).collect();
    format!("get{keys}\r\n")
}

#[test]
fn a_get_of_200_values_of_a_megabyte_is_complete() {
    let farm = Farm::new(&[]);
    let mut client = farm.magent.client();
    client.send(get(200));
    farm.expect_all(&mut client, 200);
    farm.expect_rest();
}

/// Fifteen times the memory that all of magent may take.
#[test]
fn a_get_of_1000_values_of_a_megabyte_is_complete_with_little_memory() {
    let farm = Farm::new(&["-m", "64m"]);
    let mut client = farm.magent.client();
    client.send(get(1000));
    farm.expect_all(&mut client, 1000);
    farm.expect_rest();
}

/// An eighth of what is free, and the values that are on their way from both servers.
#[test]
fn a_get_of_1000_values_that_is_not_read_holds_a_share_and_is_complete_when_it_is() {
    let farm = Farm::new(&["-m", "64m"]);
    let mut slow = Client::narrow(farm.magent.port);
    slow.send(get(1000));
    let most = farm.magent.wait_stuck(64 << 10);
    assert!(most <= 12 * MB, "{most} bytes");
    // Another one gets all it asks for meanwhile.
    let mut other = farm.magent.client();
    other.send(get(100));
    farm.expect_all(&mut other, 100);
    // A narrow client takes long for each value: not all of them here.
    (0..20).for_each(|i| assert_eq!(farm.next_value(&mut slow), Some(i)));
}

/// No time, no timeouts.
const PATIENT: [&str; 4] = ["--timeout", "86400000", "--connect-timeout", "86400000"];

/// The same on the core, for shares of any size: each client that reads nothing gets an eighth of
/// what those before it have left, and all together never more than there is.
#[test]
fn shares_of_clients_that_read_nothing_become_smaller_and_never_exceed_the_memory() {
    let options = ["-s", "127.0.0.1:1", "-m", "64m", "-I", "1m"];
    let mut core = World::new(&[&options[..], &PATIENT].concat());
    let (memory, value) = (64 * MB, 100_000);
    let mut held = 0;
    for i in 0..24 {
        let peer = core.client().narrow(100);
        core.send(&peer, format!("get{}\r\n", " k100000".repeat(200)));
        core.step();
        let now = core.stat("bytes_in_flight") as usize;
        let share = (memory - held) / 8;
        let took = now - held;
        // Below half of it more is asked for. A chunk or two are held only in part.
        let least = value.min(share / 2);
        let most = share + value + 2 * magent::buffer::CHUNK;
        assert!(
            (least..=most).contains(&took),
            "client {i} took {took} of {share}, {held} were held"
        );
        held = now;
        assert!(held <= memory, "{held} bytes are held");
    }
}

/// A reader that takes its time gets every value: a portion for each one that it takes.
#[test]
fn a_get_of_many_values_goes_on_as_it_is_read() {
    let options = ["-s", "127.0.0.1:1", "-s", "127.0.0.1:2", "-m", "16m"];
    let mut core = World::new(&[&options[..], &["-I", "1m"], &PATIENT].concat());
    let client = core.client().narrow(64 << 10);
    let keys: Vec<String> = (0..100).map(|i| format!("k1000000.{i}")).collect();
    core.send(&client, format!("get {}\r\n", keys.join(" ")));
    core.step();
    let mut all = Vec::new();
    let mut most = 0;
    for i in 0.. {
        if client.arrived() == 0 {
            break;
        }
        core.take_into(&client, &mut all);
        core.step();
        if i % 20 == 0 {
            most = most.max(core.stat("bytes_in_flight"));
        }
    }
    let text = String::from_utf8(all).expect("text");
    let found: Vec<&str> = text
        .split("VALUE ")
        .skip(1)
        .filter_map(|t| t.split(' ').next())
        .collect();
    assert_eq!(found.len(), 100);
    assert!(found == keys, "they came in another order");
    assert!(text.ends_with("\r\nEND\r\n"));
    assert!(most <= 3 * MB as u64, "{most} bytes at most");
    assert_eq!(core.stat("multi_get_keys_lost"), 0);
    assert_eq!(core.stat("bytes_in_flight"), 0);
}

/// Each byte that is held counts once, wherever it waits; here for an answer before it.
#[test]
fn values_that_wait_for_an_earlier_answer_are_counted_once() {
    let options = ["-s", "127.0.0.1:1", "-s", "127.0.0.1:2", "-m", "1g"];
    let mut core = World::new(&[&options[..], &PATIENT].concat());
    core.become_state(1, State::Silent);
    let first = common::keys::key_on(0, 2, "k5.", 0);
    let large = common::keys::key_on(1, 2, "k1000000.", 0);
    let client = core.old_client();
    core.send(&client, format!("get {first}\r\n"));
    core.send(&client, format!("get {large}\r\n").repeat(54));
    core.step();
    let held = core.stat("bytes_in_flight") as usize;
    assert!((54 * LARGE..56 * LARGE).contains(&held), "{held} bytes");
    core.serve_late(
        1,
        format!("VALUE {first} 0 5\r\nvvvvv\r\nEND\r\n").as_bytes(),
    );
    assert_eq!(core.take_all(&client).len() / LARGE, 54);
    assert_eq!(core.stat("bytes_in_flight"), 0);
}

/// Two clients hold the same bytes where one chunk ends with the one's value and begins the
/// other's: counted once too.
#[test]
fn a_chunk_that_clients_share_is_counted_once() {
    let mut core = World::new(&[&["-s", "127.0.0.1:1"][..], &PATIENT].concat());
    let clients: Vec<_> = (0..20).map(|_| core.client().narrow(10)).collect();
    let mut answers = Vec::new();
    core.become_state(1, State::Silent);
    for client in &clients {
        core.send(client, "get k12000\r\n");
        answers.extend(filled(&["k12000"]));
    }
    core.step();
    core.serve_late(1, &answers);
    let held = core.stat("bytes_in_flight") as usize;
    let most = answers.len().next_multiple_of(magent::buffer::CHUNK) + magent::buffer::CHUNK;
    assert!(
        (20 * 12_000..=most).contains(&held),
        "{held} bytes, {most} at most"
    );
    clients.iter().for_each(|c| drop(core.take_all(c)));
    assert_eq!(core.stat("bytes_in_flight"), 0);
}

/// Over 4 GiB: what is counted in 32 bits leaves phantom bytes behind. Nobody writes the values,
/// so they take no memory.
#[test]
fn a_client_that_held_over_four_gigabytes_leaves_nothing_behind() {
    const VALUE: usize = 64 << 20;
    const COUNT: usize = 66;
    let options = [
        "-s",
        "127.0.0.1:1",
        "-s",
        "127.0.0.1:2",
        "-m",
        "64g",
        "-I",
        "64m",
    ];
    let mut core = World::new(&[&options[..], &PATIENT].concat());
    let (first, large) = [(0, "f"), (1, "l")]
        .map(|(server, prefix)| common::keys::key_on(server, 2, prefix, 0))
        .into();
    let client = core.old_client();
    core.become_state(1, State::Silent);
    core.become_state(2, State::Silent);
    core.send(&client, format!("get {first}\r\n"));
    core.send(&client, format!("get {large}\r\n").repeat(COUNT));
    core.step();
    core.serve_void(2, &large, VALUE, COUNT);
    let held = core.stat("bytes_in_flight") as usize;
    let all = COUNT * VALUE;
    assert!(all > u32::MAX as usize);
    assert!(
        (all..all + all / 50).contains(&held),
        "{held} of {all} bytes"
    );
    client.sink();
    core.serve_late(1, b"END\r\n");
    assert!(client.taken() > all as u64, "{} came", client.taken());
    assert_eq!(core.stat("bytes_in_flight"), 0);
}
