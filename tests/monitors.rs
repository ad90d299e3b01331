//! What monitors ask memcached for, through magent: every name of memcached's `stats`, sums that are right,
//! and an answer within the timeout whatever servers do.

mod common;

use common::fake::{Fake, FakeLink};
use common::magent::{farm, single};
use common::{Client, Magent, Memcached, Stats, number};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

fn names(all: &Stats) -> BTreeSet<&str> {
    all.keys().map(String::as_str).collect()
}

/// Three primaries and a backup with values of all sizes, so that each holds some of most classes.
fn filled(servers: &[&str], server_options: &[&str]) -> (Magent, Vec<Memcached>) {
    let all: Vec<Memcached> = (0..servers.len())
        .map(|_| Memcached::with(server_options))
        .collect();
    let names: Vec<&str> = all.iter().map(|s| s.name.as_str()).collect();
    let primaries = servers.iter().filter(|s| **s == "primary").count();
    let options = ["--memcached-stats", "--alone"];
    let magent = Magent::farm(&names[..primaries], &names[primaries..], &options);
    let mut client = magent.client();
    for i in 0..200usize {
        client.set(&format!("key{i}"), "x".repeat(i * i / 2 + 1));
        client.get(&format!("key{i}"));
    }
    (magent, all)
}

/// What the servers themselves say, added up.
fn sums(servers: &[Memcached], request: &str) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for server in servers {
        for (name, value) in server.client().stats(request) {
            if let Ok(value) = value.parse::<u64>() {
                *all.entry(name).or_insert(0) += value;
            }
        }
    }
    all
}

#[test]
fn a_bare_stats_has_every_name_of_memcached_and_no_other() {
    let server = Memcached::start();
    let own = server.client().stats("stats\r\n");
    let magent = Magent::farm(&[&server.name], &[], &["--memcached-stats"]);
    let all = magent.client().stats("stats\r\n");
    assert_eq!(names(&all), names(&own));
    // In its order too: some programs read line by line.
    let order = |mut client: Client| {
        let text = client.send("stats\r\n").read_until(b"\r\nEND\r\n");
        let text = String::from_utf8(text).expect("text");
        let name = |l: &str| l.split(' ').nth(1).map(str::to_string);
        text.lines().filter_map(name).collect::<Vec<_>>()
    };
    assert_eq!(order(magent.client()), order(server.client()));
    for (name, value) in &own {
        let is_number = |v: &str| v.parse::<f64>().is_ok();
        assert_eq!(is_number(value), is_number(&all[name]), "{name}");
    }
    assert_eq!(all["libevent"], own["libevent"]);
    // A server that is away takes no name with it.
    drop(server);
    let alone = magent.client().stats("stats\r\n");
    assert_eq!(names(&alone), names(&own));
    assert_eq!(number(&alone, "curr_items"), 0);
}

#[test]
fn what_is_the_servers_is_summed_over_primaries() {
    let (magent, servers) = filled(&["primary", "primary", "primary", "backup"], &[]);
    let all = magent.client().stats("stats\r\n");
    let summed = sums(&servers[..3], "stats\r\n");
    for name in [
        "curr_items",
        "total_items",
        "bytes",
        "limit_maxbytes",
        "evictions",
        "hash_bytes",
        "malloc_fails",
    ] {
        assert_eq!(number(&all, name), summed[name], "{name}");
    }
    assert_eq!(number(&all, "curr_items"), 200);
    let one = number(&servers[0].client().stats("stats\r\n"), "hash_power_level");
    assert_eq!(number(&all, "hash_power_level"), one);
    // What is the proxy's is not the servers'.
    assert_eq!(number(&all, "pid"), u64::from(magent.pid()));
    assert_eq!((number(&all, "threads"), number(&all, "cmd_set")), (1, 200));
    assert_eq!(
        (number(&all, "get_hits"), number(&all, "get_misses")),
        (200, 0)
    );
    assert_eq!(all["version"], "1.6.18");
}

/// The commands of a session that counts in as many ways as there are; but for `mg` with `T` of an absent
/// key, which memcached counts as a get in text and as a touch in binary.
fn session(client: &mut Client) {
    let say = |client: &mut Client, request: &str| {
        client
            .send(format!("{request}mn\r\n"))
            .read_until(b"MN\r\n");
    };
    for request in [
        "set a 0 0 1\r\n1\r\n",
        "add a 0 0 1\r\n1\r\n",
        "replace none 0 0 1\r\n1\r\n",
        "append a 0 0 1\r\n2\r\n",
        "set quiet 0 0 1 noreply\r\n1\r\n",
        "set large 0 0 2000000\r\n",
        "get a\r\n",
        "get none\r\n",
        "get a none quiet none2 a\r\n",
        "gets a none\r\n",
        "gat 0 a\r\n",
        "gat 0 none\r\n",
        "gats 100 a none quiet\r\n",
        "touch a 0\r\n",
        "touch none 0\r\n",
        "incr a 1\r\n",
        "incr none 1\r\n",
        "incr a 1 noreply\r\n",
        "decr a 1\r\n",
        "decr none 1\r\n",
        "incr a x\r\n",
        "cas none 0 0 1 7\r\n1\r\n",
        "cas a 0 0 1 7\r\n1\r\n",
        "delete none\r\n",
        "delete quiet\r\n",
        "ms b 1\r\n5\r\n",
        "ms b 1 ME\r\n5\r\n",
        "ms b 1 C7\r\n5\r\n",
        "ms none 1 C7\r\n5\r\n",
        "mg b v\r\n",
        "mg none v\r\n",
        "mg none v q\r\n",
        "mg b v T100\r\n",
        "mg vivid v N30\r\n",
        "ma b\r\n",
        "ma b MD v\r\n",
        "ma none\r\n",
        "ma none M-\r\n",
        "md b I\r\n",
        "md none\r\n",
        "md b\r\n",
        "flush_all\r\n",
    ] {
        let value = match request.contains(" 2000000") {
            true => "x".repeat(2_000_000) + "\r\n",
            false => String::new(),
        };
        say(client, &format!("{request}{value}"));
    }
    client.set("c", "1");
    for _ in 0..2 {
        let line = client.send("gets c\r\n").read_until(b"END\r\n");
        let line = String::from_utf8(line).expect("text");
        let token = line.lines().next().and_then(|l| l.rsplit(' ').next());
        let token = token.expect("a token");
        say(client, &format!("cas c 0 0 1 {token}\r\n2\r\n"));
    }
}

/// Binary set, get, get of an absent key, gat, increment, delete, delete of an absent key.
fn binary_session(client: &mut Client) {
    let packet = |opcode: u8, extras: &[u8], key: &str, value: &str| {
        let body = (extras.len() + key.len() + value.len()) as u32;
        let mut all = vec![
            0x80,
            opcode,
            0,
            key.len() as u8,
            extras.len() as u8,
            0,
            0,
            0,
        ];
        all.extend(body.to_be_bytes());
        all.extend([0; 12]);
        [&all[..], extras, key.as_bytes(), value.as_bytes()].concat()
    };
    let never = [
        0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff,
    ];
    for (opcode, extras, key, value) in [
        (0x01, &[0; 8][..], "a", "5"),
        (0x00, &[], "a", ""),
        (0x00, &[], "none", ""),
        (0x1d, &[0; 4], "a", ""),
        (0x1c, &[0; 4], "none", ""),
        (0x05, &never, "a", ""),
        (0x06, &never, "none", ""),
        (0x04, &[], "a", ""),
        (0x04, &[], "none", ""),
    ] {
        let head = client
            .send(packet(opcode, extras, key, value))
            .read_exact(24);
        let body = u32::from_be_bytes([head[8], head[9], head[10], head[11]]);
        client.read_exact(body as usize);
    }
}

#[test]
fn commands_hits_and_misses_count_as_memcached_counts_them() {
    let (alone, server) = (Memcached::start(), Memcached::start());
    let magent = Magent::farm(&[&server.name], &[], &["--memcached-stats", "--alone"]);
    let counted = |clients: [Client; 3]| {
        let [mut text, mut binary, mut asks] = clients;
        session(&mut text);
        binary_session(&mut binary);
        let all = asks.stats("stats\r\n");
        // memcached counts `me` alone as a meta command.
        let is_compared = |name: &str| {
            name.starts_with("cmd_") && name != "cmd_meta"
                || name.ends_with("_hits")
                || name.ends_with("_misses")
                || matches!(name, "cas_badval" | "store_too_large")
        };
        let all = all.into_iter().filter(|(name, _)| is_compared(name));
        all.collect::<Stats>()
    };
    let expected = counted([alone.client(), alone.client(), alone.client()]);
    let got = counted([magent.client(), magent.client(), magent.client()]);
    assert_eq!(got, expected);
    for (name, value) in &got {
        assert!(value != "0", "the session has no {name}");
    }
}

/// Misses are counted when they are known: a number that fell would be a restart to a monitor.
#[test]
fn no_counter_ever_falls() {
    let late = Fake::start(|link| while link.request().is_some() {});
    let magent = Magent::farm(&[&late.name], &[], &["--timeout", "60000"]);
    let mut waits = magent.client();
    waits.send("get a b c\r\n");
    late.wait_count("get", 1);
    let all = magent.client().stats("stats proxy\r\n");
    assert_eq!(
        (number(&all, "cmd_get"), number(&all, "get_misses")),
        (3, 0)
    );
}

#[test]
fn items_and_slabs_are_summed_over_primaries() {
    let (magent, servers) = filled(&["primary", "primary", "primary", "backup"], &[]);
    for request in ["stats items\r\n", "stats slabs\r\n"] {
        let summed = sums(&servers[..3], request);
        let all = magent.client().stats(request);
        let known: BTreeSet<&str> = summed.keys().map(String::as_str).collect();
        assert_eq!(names(&all), known, "{request}");
        assert!(all.len() > 100, "{request}: {}", all.len());
        let added = [
            "number",
            "mem_requested",
            "evicted",
            "used_chunks",
            "total_pages",
            "total_chunks",
            "cmd_set",
            "get_hits",
            "total_malloced",
        ];
        for name in all.keys() {
            let last = name.rsplit(':').next().expect("a name");
            if added.contains(&last) {
                assert_eq!(number(&all, name), summed[name], "{name}");
            }
        }
    }
    let slabs = magent.client().stats("stats slabs\r\n");
    let own = servers[0].client().stats("stats slabs\r\n");
    for name in own.keys().filter(|n| n.ends_with(":chunk_size")) {
        assert_eq!(slabs[name], own[name], "{name}");
    }
    let classes = slabs.keys().filter(|n| n.ends_with(":chunk_size")).count();
    assert_eq!(number(&slabs, "active_slabs"), classes as u64);
    // Class by class, as memcached has them.
    let text = magent
        .client()
        .send("stats items\r\n")
        .read_until(b"END\r\n");
    let text = String::from_utf8(text).expect("text");
    let class = |l: &str| l.split(':').nth(1)?.parse::<u32>().ok();
    let classes: Vec<u32> = text.lines().filter_map(class).collect();
    assert!(classes.is_sorted(), "{classes:?}");
}

#[test]
fn sizes_are_summed_where_they_are_kept() {
    let (magent, _servers) = filled(&["primary", "primary"], &[]);
    let said = magent.client().stats("stats sizes\r\n");
    assert_eq!(said["sizes_status"], "disabled");
    let (magent, servers) = filled(&["primary", "primary"], &["-o", "track_sizes"]);
    let all = magent.client().stats("stats sizes\r\n");
    let all: BTreeMap<String, u64> = all.keys().map(|n| (n.clone(), number(&all, n))).collect();
    assert_eq!(all, sums(&servers, "stats sizes\r\n"));
    assert_eq!(all.values().sum::<u64>(), 200);
}

#[test]
fn cachedump_lists_the_keys_of_all_primaries() {
    // Where there is one list of each class, that is the one that is dumped.
    let options = ["-o", "no_lru_maintainer"];
    let servers: Vec<Memcached> = (0..3).map(|_| Memcached::with(&options)).collect();
    let primaries: Vec<&str> = servers.iter().map(|s| s.name.as_str()).collect();
    let magent = Magent::farm(&primaries, &[], &[]);
    let mut client = magent.client();
    for i in 0..30 {
        client.set(&format!("key{i:02}"), "x");
    }
    let mut dump = |request: &str| {
        let text = client.send(request).read_until(b"END\r\n");
        let text = String::from_utf8(text).expect("text");
        let key = |l: &str| {
            let rest = l.strip_prefix("ITEM ")?;
            assert!(rest.ends_with(" [1 b; 0 s]"), "{l}");
            rest.split(' ').next().map(str::to_string)
        };
        let keys: Vec<String> = text.lines().filter_map(key).collect();
        assert_eq!(keys.len() + 1, text.lines().count(), "{text}");
        keys
    };
    let all: BTreeSet<String> = dump("stats cachedump 1 0\r\n").into_iter().collect();
    assert_eq!(all, (0..30).map(|i| format!("key{i:02}")).collect());
    assert_eq!(dump("stats cachedump 1 7\r\n").len(), 7);
    assert!(dump("stats cachedump 2 0\r\n").is_empty());
}

/// A primary that answers all but `stats slabs`, to which `says` does something.
fn odd(says: impl Fn(&mut FakeLink) -> bool + Send + Sync + 'static) -> Fake {
    Fake::start(move |link| {
        while let Some(request) = link.request() {
            let goes_on = match request.starts_with(b"stats slabs") {
                true => says(link),
                false => {
                    link.send("END\r\n");
                    true
                }
            };
            if !goes_on {
                return;
            }
        }
    })
}

fn wait_for_ever(link: &mut FakeLink) -> bool {
    while link.request().is_some() {}
    false
}

#[test]
fn a_server_that_is_silent_or_half_or_mad_leaves_what_the_others_said() {
    let good = Memcached::start();
    good.client().set("key", "x");
    let own = good.client().stats("stats slabs\r\n");
    let half = "STAT 1:used_chunks 50\r\nSTAT 1:";
    let endless = "STAT a 1\r\nSTAT b 2\r\n".repeat(40_000);
    let many: String = (0..40_000).map(|i| format!("STAT a{i} 1\r\n")).collect();
    let cases: [(&str, Fake); 7] = [
        ("silent", odd(wait_for_ever)),
        (
            "half",
            odd(move |link| {
                link.send(half);
                wait_for_ever(link)
            }),
        ),
        (
            "half and gone",
            odd(move |link| {
                link.send(half);
                false
            }),
        ),
        (
            "an error",
            odd(|link| {
                link.send("SERVER_ERROR out of memory writing stats\r\n");
                true
            }),
        ),
        (
            "without end",
            odd(move |link| {
                link.send(&endless);
                wait_for_ever(link)
            }),
        ),
        (
            "too much",
            odd(move |link| {
                link.send(&many);
                link.send("END\r\n");
                true
            }),
        ),
        (
            "nonsense",
            odd(|link| {
                link.send("\0\x01garbage\r\nSTAT\r\nEND\r\n");
                true
            }),
        ),
    ];
    for (what, fake) in &cases {
        let options = ["--timeout", "300", "--connect-timeout", "300", "--alone"];
        let magent = Magent::farm(&[&good.name, &fake.name], &[], &options);
        let mut client = magent.client();
        let begin = Instant::now();
        let all = client.stats("stats slabs\r\n");
        assert!(begin.elapsed() < Duration::from_secs(5), "{what}");
        for name in [
            "1:used_chunks",
            "1:total_chunks",
            "total_malloced",
            "active_slabs",
        ] {
            assert_eq!(all.get(name), own.get(name), "{what}: {name}");
        }
        // The connection is in step.
        let key = common::keys::key_on(0, 2, "key", 0);
        client.set(&key, "after");
        assert_eq!(client.get(&key).as_deref(), Some(&b"after"[..]), "{what}");
        good.client()
            .ask(format!("delete {key}\r\n"), "DELETED\r\n");
        let held = number(&magent.client().stats("stats proxy\r\n"), "bytes_in_flight");
        assert!(held < 1 << 20, "{what}: {held}");
    }
}

#[test]
fn where_no_server_is_up_there_is_an_end_all_the_same() {
    let (magent, mut servers) = farm(false, &["--retry", "60000"]);
    servers.iter_mut().for_each(Memcached::kill);
    let mut client = magent.client();
    for request in [
        "items",
        "slabs",
        "sizes",
        "conns",
        "extstore",
        "cachedump 1 10",
    ] {
        client.ask(format!("stats {request}\r\n"), "END\r\n");
    }
}

#[test]
fn others_are_served_while_a_monitor_waits() {
    let (good, fake) = (Memcached::start(), odd(wait_for_ever));
    let options = ["--timeout", "60000", "--memcached-stats"];
    let magent = Magent::farm(&[&good.name, &fake.name], &[], &options);
    let mut monitor = magent.client();
    // What is behind it waits for it, in order.
    monitor.send("stats slabs\r\nversion\r\n");
    fake.wait_count("stats slabs", 1);
    let mut client = magent.client();
    let key = common::keys::key_on(0, 2, "key", 0);
    client.set(&key, "x");
    assert_eq!(client.get(&key).as_deref(), Some(&b"x"[..]));
    drop(fake);
    let answer = monitor.read_until(b"VERSION 1.6.18\r\n");
    assert!(answer.ends_with(b"END\r\nVERSION 1.6.18\r\n"));
    // One that leaves before its answer is missed by nobody.
    let slow = odd(wait_for_ever);
    let magent = Magent::farm(&[&good.name, &slow.name], &[], &["--timeout", "300"]);
    magent.client().send("stats slabs\r\n").half_close();
    slow.wait_count("stats slabs", 1);
    magent.client().set(&key, "y");
}

/// What gomemcache asks for Prometheus' memcached_exporter, read as strictly as it reads.
#[test]
fn the_exporters_dialogue() {
    let (magent, _servers) = filled(&["primary", "primary", "backup"], &[]);
    let mut client = magent.client();
    let (mut bare, mut slabs, mut items) = (Stats::new(), Stats::new(), Stats::new());
    for request in ["stats\r\n", "stats slabs\r\n", "stats items\r\n"] {
        client.send(request);
        loop {
            let line = String::from_utf8(client.read_line()).expect("text");
            if line == "END\r\n" {
                break;
            }
            // Others are passed over, and a name that has no number where one must be ends all.
            let words: Vec<&str> = line.trim_end().split(' ').collect();
            let [_, name, value] = words[..] else {
                panic!("{line:?}");
            };
            let parts: Vec<&str> = name.split(':').collect();
            let (into, class) = match parts.len() {
                1 => (&mut bare, "0"),
                2 => (&mut slabs, parts[0]),
                _ => (&mut items, parts[1]),
            };
            assert!(class.parse::<u64>().is_ok(), "{line:?}");
            into.insert(name.into(), value.into());
        }
    }
    for op in ["get", "delete", "incr", "decr", "cas", "touch"] {
        number(&bare, &format!("{op}_hits"));
        number(&bare, &format!("{op}_misses"));
    }
    for name in [
        "cas_badval",
        "cmd_set",
        "cmd_flush",
        "uptime",
        "time",
        "bytes",
        "accepting_conns",
    ] {
        number(&bare, name);
    }
    for name in ["rusage_user", "rusage_system"] {
        let parts: Vec<&str> = bare[name].split('.').collect();
        assert!(
            parts.len() == 2 && parts.iter().all(|p| p.parse::<u64>().is_ok()),
            "{name}"
        );
    }
    assert!(slabs.contains_key("1:cmd_set") && items.contains_key("items:1:number"));
    let settings = client.stats("stats settings\r\n");
    number(&settings, "maxconns");
    for (name, value) in &settings {
        assert!(!name.contains(' '), "{name} {value}");
    }
    client.stats("stats sizes\r\n");
}

/// A binary `stat` request and its answers up to the empty one; `Err` is the status of an error.
fn binary_stats(client: &mut Client, group: &str) -> Result<Stats, u16> {
    let mut request = vec![0x80, 0x10, 0, group.len() as u8, 0, 0, 0, 0];
    request.extend((group.len() as u32).to_be_bytes());
    request.extend([0; 12]);
    request.extend(group.as_bytes());
    client.send(request);
    let mut all = Stats::new();
    loop {
        let head = client.read_exact(24);
        let key = usize::from(u16::from_be_bytes([head[2], head[3]]));
        let body = u32::from_be_bytes([head[8], head[9], head[10], head[11]]) as usize;
        let text = String::from_utf8(client.read_exact(body)).expect("text");
        match u16::from_be_bytes([head[6], head[7]]) {
            0 if body == 0 => return Ok(all),
            0 => all.insert(text[..key].to_string(), text[key..].to_string()),
            status => return Err(status),
        };
    }
}

#[test]
fn binary_clients_are_answered_as_memcached_answers_them() {
    let (magent, server) = single();
    magent.client().set("key", "x");
    let (mut client, mut own) = (magent.client(), server.client());
    for group in [
        "",
        "items",
        "slabs",
        "sizes",
        "conns",
        "cachedump 1 1",
        "nonesuch",
    ] {
        let (got, expected) = (
            binary_stats(&mut client, group),
            binary_stats(&mut own, group),
        );
        let names = |all: Result<Stats, u16>| all.map(|s| s.into_keys().collect::<Vec<_>>());
        assert_eq!(names(got), names(expected), "{group}");
    }
}

#[test]
fn a_pools_port_speaks_of_its_pool() {
    let (one, two) = (Memcached::start(), Memcached::start());
    let text = format!(
        "one:\n  listen: 127.0.0.1:PORT\n  servers:\n    - {}:1\n\
         two:\n  listen: DIR/two\n  client_connections: 9\n  servers:\n    - {}:1\n",
        one.name, two.name
    );
    let magent = Magent::with_file_and(&text, &["--alone"]);
    let (mut first, mut second) = (magent.client(), Client::unix(&magent.dir().join("two")));
    first.set("a", "x").set("b", "x").set("c", "x");
    second.set("a", "x");
    assert!(second.get("a").is_some() && second.get("none").is_none());
    let told = |client: &mut Client| {
        let all = binary_stats(client, "").expect("stats");
        [
            "curr_items",
            "cmd_set",
            "get_hits",
            "get_misses",
            "curr_connections",
        ]
        .map(|name| number(&all, name))
    };
    let mut asks = (magent.client(), Client::unix(&magent.dir().join("two")));
    assert_eq!(told(&mut asks.0), [3, 3, 0, 0, 2]);
    assert_eq!(told(&mut asks.1), [1, 1, 1, 1, 2]);
    let all = binary_stats(&mut asks.1, "").expect("stats");
    assert_eq!(number(&all, "max_connections"), 9);
    assert_eq!(number(&all, "total_connections"), 2);
    let items = second.stats("stats items\r\n");
    assert_eq!(number(&items, "items:1:number"), 1);
    // The process is both.
    let process = magent.client().stats("stats proxy\r\n");
    assert_eq!(number(&process, "cmd_set"), 4);
    second.ask("stats reset\r\n", "RESET\r\n");
    assert_eq!(told(&mut asks.0)[1], 0);
}

/// Long lists that nobody takes are held within `-m`, and refused in memcached's words when it is short.
#[test]
fn long_lists_stay_within_memory() {
    let keys: String = (0..20_000)
        .map(|i| format!("ITEM {i:085} [1 b; 0 s]\r\n"))
        .collect();
    let fake = Fake::answering(move |_| (keys.clone() + "END\r\n").into_bytes());
    let options = ["-m", "8m", "-I", "1m", "--timeout", "20000"];
    let magent = Magent::farm(&[&fake.name], &[], &options);
    let mut clients: Vec<Client> = (0..12).map(|_| Client::narrow(magent.port)).collect();
    for client in &mut clients {
        client.send("stats cachedump 1 0\r\nversion\r\n");
    }
    fake.wait_count("stats cachedump", clients.len());
    let all = magent.client().stats("stats proxy\r\n");
    let held = number(&all, "bytes_in_flight");
    assert!(held <= number(&all, "limit_maxbytes"), "{held}");
    let mut whole = 0;
    for client in &mut clients {
        let answer = client.read_until(b"VERSION 1.6.18\r\n");
        let list = answer
            .strip_suffix(b"VERSION 1.6.18\r\n")
            .expect("in order");
        let is_short =
            list == b"END\r\n" || list == b"SERVER_ERROR out of memory writing stats\r\n";
        assert!(is_short || list.ends_with(b"]\r\nEND\r\n"));
        whole += usize::from(!is_short);
    }
    assert!(whole >= 1);
    let all = magent.client().stats("stats proxy\r\n");
    assert!(number(&all, "bytes_in_flight") < 100_000, "{all:?}");
}
