//! What a request may cost: allocations, counted on the core alone, and system calls, counted by
//! magent itself. Counts only; times are for the benchmark.

mod common;

use common::world::State;
use common::{Client, Magent, Memcached, Peer, World};
use magent::clients;
use magent::net::Stream;
use std::cell::Cell;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    static HELD: Cell<i64> = const { Cell::new(0) };
}

/// Counts what a turn of magent's own code allocates.
fn counted(turn: &mut dyn FnMut()) {
    let info = allocation_counter::measure(turn);
    ALLOCATIONS.with(|n| n.set(n.get() + info.count_total));
    HELD.with(|n| n.set(n.get() + info.bytes_current));
}

/// Rounds until everything has the size that it keeps.
const WARM_UP: usize = 30;

/// Rounds that are counted.
const ROUNDS: usize = 100;

const FARM: [&str; 6] = [
    "-s",
    "127.0.0.1:1",
    "-s",
    "127.0.0.1:2",
    "-s",
    "127.0.0.1:3",
];
const BACKUP: [&str; 2] = ["-b", "127.0.0.1:4"];

/// Allocations in the steady state when `clients` send `request` and take its answer, over and
/// over.
#[track_caller]
fn allocations(options: &[&str], clients: usize, request: &[u8]) -> u64 {
    let mut core = World::new(&[&FARM[..], options].concat());
    core.around = counted;
    let peers: Vec<Peer> = (0..clients).map(|_| core.client()).collect();
    let mut answer = Vec::new();
    let rounds = ROUNDS.min(5_000 / clients);
    let warm_up = WARM_UP.min(rounds);
    for round in 0..warm_up + rounds {
        if round == warm_up {
            ALLOCATIONS.with(|n| n.set(0));
        }
        for peer in &peers {
            core.send(peer, request);
        }
        core.step();
        for peer in &peers {
            answer.clear();
            core.take_into(peer, &mut answer);
            assert!(answer.ends_with(b"\r\n") && !answer.starts_with(b"SERVER_ERROR"));
        }
        core.step();
    }
    ALLOCATIONS.with(Cell::get)
}

fn value(head: &str, len: usize) -> Vec<u8> {
    let mut request = format!("{head} {len}\r\n").into_bytes();
    request.resize(request.len() + len, b'v');
    request.extend_from_slice(b"\r\n");
    request
}

/// Name, options, clients, requests.
#[rustfmt::skip]
fn table() -> Vec<(&'static str, Vec<&'static str>, usize, Vec<u8>)> {
    let many: String = (0..32).map(|i| format!(" k100.{i}")).collect();
    let text = |t: &str| t.as_bytes().to_vec();
    vec![
        ("get", vec![], 1, text("get k100\r\n")),
        ("get by ketama", vec!["-k"], 1, text("get k100\r\n")),
        ("get of several clients", vec![], 20, text("get k100\r\n")),
        ("get of a thousand clients", vec![], 1000, text("get k100\r\n")),
        ("get of a thousand clients, 3 deep", vec![], 1000, text("get k100\r\n").repeat(3)),
        ("get, 30 deep", vec![], 4, text("get k100\r\nget k5\r\nget k7.1\r\n").repeat(10)),
        ("get, 500 deep", vec![], 2, text("get k10\r\n").repeat(500)),
        ("get of 32 keys", vec![], 2, format!("get{many}\r\n").into_bytes()),
        ("get of 32 keys, 5 deep", vec![], 2, format!("get{many}\r\n").repeat(5).into_bytes()),
        ("get of 64 KB", vec![], 4, text("get k65536\r\n")),
        ("get of 500 KB", vec![], 2, text("get k500000\r\n")),
        ("a get that misses", vec![], 1, text("get miss\r\n")),
        ("set", vec![], 1, value("set k 0 0", 100)),
        ("set, 10 deep", vec![], 4, value("set k 0 0", 100).repeat(10)),
        ("set of 64 KB", vec![], 4, value("set k 0 0", 65_536)),
        ("set of 500 KB", vec![], 2, value("set k 0 0", 500_000)),
        ("set with a backup", BACKUP.to_vec(), 4, value("set k 0 0", 100)),
        ("set, 200 deep with a backup", BACKUP.to_vec(), 2, value("set k 0 0", 100).repeat(200)),
        ("set of 64 KB with a backup", BACKUP.to_vec(), 4, value("set k 0 0", 65_536)),
        ("delete with a backup", BACKUP.to_vec(), 1, text("delete k\r\n")),
        ("mg", vec![], 1, text("mg k100 v\r\n")),
        ("mg with a backup", BACKUP.to_vec(), 1, text("mg k100 v k q O1\r\nmn\r\n")),
        ("ms with a backup", BACKUP.to_vec(), 1, value("ms k", 100)),
        ("get of keys with a backup", BACKUP.to_vec(), 1, text("get k1 k2 k3 k4\r\n")),
        ("version", vec![], 1, text("version\r\n")),
        ("nonsense", vec![], 1, text("nonsense\r\n")),
    ]
}

#[test]
fn requests_allocate_nothing_in_the_steady_state() {
    let mut over = Vec::new();
    for (name, options, clients, request) in table() {
        let count = allocations(&options, clients, &request);
        if count > 0 {
            over.push(format!("{name}: {count}"));
        }
    }
    assert!(over.is_empty(), "{over:#?}");
}

/// An idle client is its socket, this, and an entry in a table; what a busy one needs is lent. In debug
/// builds the socket has a number of mio's.
#[test]
fn an_idle_client_is_small() {
    let own = size_of::<clients::Client<Stream>>() - size_of::<Stream>();
    assert!(own <= 56, "{own}");
}

#[test]
fn clients_that_rest_hold_no_memory() {
    const CLIENTS: usize = 5_000;
    let mut core = World::new(&[&FARM[..], &["-n", "5001"]].concat());
    core.around = counted;
    let peers: Vec<Peer> = (0..CLIENTS).map(|_| core.client()).collect();
    core.step();
    let each = HELD.with(Cell::get) / CLIENTS as i64;
    assert!(
        each <= 200,
        "{each} bytes for a client that has not said anything"
    );
    peers.iter().for_each(|p| p.reserve(8 * 1024));
    for some in peers.chunks(1000) {
        for peer in some {
            core.send(peer, "get k5000\r\nget k100\r\n");
        }
        core.step();
        for peer in some {
            assert!(core.take(peer).len() > 5100);
        }
        core.step();
    }
    // What the busy were lent is kept for the next ones, up to 8 MB for all.
    let more = HELD.with(Cell::get) - each * CLIENTS as i64;
    assert!(more <= 16 << 20, "{more} bytes stay behind");
    assert_eq!(core.stat("bytes_in_flight"), 0);
}

struct Calls {
    requests: f64,
    calls: f64,
}

fn calls(magent: &mut Client) -> Calls {
    let all = magent.stats("stats proxy\r\n");
    let number = |name: &str| all[name].parse::<f64>().expect("a number");
    Calls {
        requests: number("requests"),
        calls: ["polls", "reads", "writes"].map(number).iter().sum(),
    }
}

/// System calls per request while `work` runs.
fn cost(magent: &Magent, work: impl FnOnce()) -> f64 {
    let mut watcher = magent.client();
    let before = calls(&mut watcher);
    work();
    let after = calls(&mut watcher);
    (after.calls - before.calls) / (after.requests - before.requests)
}

fn farm_of_four() -> (Magent, Vec<Memcached>) {
    // By default memcached answers at most 20 requests of a connection at a time: what it cuts
    // into pieces comes in pieces.
    let whole = || Memcached::with(&["-R", "1000"]);
    let servers: Vec<Memcached> = (0..4).map(|_| whole()).collect();
    let names: Vec<&str> = servers.iter().map(|s| s.name.as_str()).collect();
    let magent = Magent::farm(&names, &[], &[]);
    let mut client = magent.client();
    for i in 0..64 {
        client.set(&format!("k{i}"), "x");
    }
    (magent, servers)
}

/// All clients send, and all have sent before the first receives: what a loaded magent sees.
fn together(magent: &Magent, clients: usize, depth: usize, rounds: usize) {
    let mut all: Vec<Client> = (0..clients).map(|_| magent.client()).collect();
    for round in 0..rounds {
        magent.while_stopped(|| {
            for (i, client) in all.iter_mut().enumerate() {
                let gets = (0..depth).map(|d| format!("get k{}\r\n", (i * 7 + d + round) % 64));
                client.send(gets.collect::<String>());
            }
        });
        for (i, client) in all.iter_mut().enumerate() {
            let answers = (0..depth).map(|d| {
                let key = (i * 7 + d + round) % 64;
                format!("VALUE k{key} 0 1\r\nx\r\nEND\r\n")
            });
            client.expect(answers.collect::<String>());
        }
    }
}

/// Calls per request where every server answers at once what it has read.
fn cost_on_core(clients: usize, depth: usize) -> f64 {
    let mut core = World::new(&[&FARM[..], &["-s", "127.0.0.1:4"]].concat());
    let peers: Vec<Peer> = (0..clients).map(|_| core.client()).collect();
    let mut seen = Vec::new();
    for round in 0..20 {
        for (i, peer) in peers.iter().enumerate() {
            let gets = (0..depth).map(|d| format!("get k9.{}\r\n", i * 7 + d + round));
            core.send(peer, gets.collect::<String>());
        }
        core.step();
        for peer in &peers {
            assert_eq!(core.take_text(peer).matches("END\r\n").count(), depth);
        }
        // The first rounds hold the connects too.
        if round == 9 || round == 19 {
            seen.push(core.stats("stats proxy\r\n"));
        }
    }
    let spent = |name: &str| {
        let number = |i: usize| seen[i][name].parse::<f64>().expect("a number");
        number(1) - number(0)
    };
    let calls = ["polls", "reads", "writes"].map(spent);
    calls.iter().sum::<f64>() / spent("requests")
}

#[test]
fn system_calls_stay_within_their_budget() {
    let (alone, deep) = (cost_on_core(50, 1), cost_on_core(16, 32));
    println!("on the core: 50 clients one at a time {alone:.3}, 16 clients 32 deep {deep:.3}");
    assert!(
        alone <= 2.3,
        "50 clients, one request each at a time: {alone:.3}"
    );
    assert!(deep <= 0.10, "16 clients, 32 requests deep: {deep:.3}");
}

#[test]
fn system_calls_stay_within_their_budget_with_real_servers() {
    let (magent, _servers) = farm_of_four();
    // How many pieces the answers of four servers come in is up to the machine; each wakes magent,
    // which does not wait for the rest. So the best of up to twenty counts.
    let best = |clients, depth, rounds, most: f64| {
        let mut best = f64::INFINITY;
        for _ in 0..20 {
            best = best.min(cost(&magent, || together(&magent, clients, depth, rounds)));
            if best <= most {
                break;
            }
        }
        best
    };
    let (alone, deep) = (best(50, 1, 20, 2.5), best(16, 32, 10, 0.3));
    println!("real: 50 clients one at a time {alone:.3}, 16 clients 32 deep {deep:.3}");
    assert!(
        alone <= 2.5,
        "50 clients, one request each at a time: {alone:.3}"
    );
    assert!(deep <= 0.3, "16 clients, 32 requests deep: {deep:.3}");
}

/// Servers that were asked together answer one after the other: a client gets their parts in one
/// write. A large part does not wait.
#[test]
fn the_parts_of_an_answer_go_together() {
    let mut core = World::new(&FARM[..4]);
    core.become_state(1, State::Silent);
    core.become_state(2, State::Silent);
    let key = |server, len| common::keys::key_on(server, 2, &format!("k{len}."), 0);
    let part = |key: &str, len: usize| format!("VALUE {key} 0 {len}\r\n{}\r\n", "v".repeat(len));
    let (one, other, large) = (key(0, 9), key(1, 9), key(0, 9000));
    let client = core.client();

    let (first, last) = (part(&one, 9), part(&other, 9));
    core.send(&client, format!("get {one} {other}\r\n"));
    core.step();
    core.serve_late(1, format!("{first}END\r\n").as_bytes());
    assert_eq!(client.arrived(), 0);
    core.serve_late(2, format!("{last}END\r\n").as_bytes());
    assert_eq!(core.take_text(&client), format!("{first}{last}END\r\n"));

    let first = part(&large, 9000);
    core.send(&client, format!("get {large} {other}\r\n"));
    core.step();
    core.serve_late(1, format!("{first}END\r\n").as_bytes());
    assert_eq!(core.take_text(&client), first);
    core.serve_late(2, format!("{last}END\r\n").as_bytes());
    assert_eq!(core.take_text(&client), format!("{last}END\r\n"));
    assert_eq!(core.stat("bytes_in_flight"), 0);
}
