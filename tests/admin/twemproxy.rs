//! `--twemproxy-stats`. Against a running twemproxy it is held by `make interop`.

use super::common::farm::quick;
use super::common::magent::free_port;
use super::common::{Client, Magent, Memcached, wait_for};
use serde_json::Value;

/// One magent that tells what twemproxy tells, and the port where it does.
fn telling(primaries: &[&str], options: &[&str]) -> (Magent, u16) {
    let port = free_port();
    let door = format!("127.0.0.1:{port}");
    let options = [options, &["--twemproxy-stats", &door]].concat();
    (Magent::farm(primaries, &[], &options), port)
}

fn told(port: u16, sends: &[u8]) -> Value {
    let text = Client::tcp(port).send(sends).read_to_end();
    serde_json::from_slice(&text).expect("JSON")
}

#[test]
fn whoever_connects_is_told() {
    let mut servers: Vec<Memcached> = (0..2).map(|_| Memcached::start()).collect();
    let names: Vec<String> = servers.iter().map(|s| s.name.clone()).collect();
    let options = quick(&["--auto-eject", "--failure-limit", "1", "--retry", "60000"]);
    let (magent, port) = telling(&[&names[0], &names[1]], &options);
    let mut client = magent.client();
    let keys: Vec<String> = (0..20).map(|i| format!("key{i}")).collect();
    for key in &keys {
        client.set(key, "x");
    }
    client.ask(format!("get {}\r\n", keys.join(" ")), "VALUE key0 0 1\r\n");
    client.read_until(b"END\r\n");
    let all = told(port, b"");
    assert_eq!(
        (&all["service"], &all["version"]),
        (&"nutcracker".into(), &"0.5.0".into())
    );
    assert!(
        all["timestamp"].as_u64() > Some(1_700_000_000) && all["uptime"].is_u64(),
        "{all}"
    );
    let pool = &all["default"];
    assert_eq!(
        (&pool["fragments"], &pool["client_connections"]),
        (&2.into(), &1.into())
    );
    let requests = |all: &Value| -> u64 {
        let of = |name: &String| all["default"][name]["requests"].as_u64().expect("a number");
        names.iter().map(of).sum()
    };
    assert_eq!(requests(&all), 22);
    // Whatever is sent, even HTTP, changes nothing.
    assert_eq!(requests(&told(port, b"GET / HTTP/1.1\r\n\r\n")), 22);
    servers[1].kill();
    wait_for("the ejection", || {
        let lost: String = keys.iter().map(|k| format!("get {k}\r\n")).collect();
        client.send(lost);
        keys.iter().for_each(|_| {
            let line = client.read_line();
            if line.starts_with(b"VALUE") {
                client.read_until(b"END\r\n");
            }
        });
        let all = told(port, b"");
        (all["default"]["server_ejects"] == 1).then_some(())
    });
    drop(client);
    let all = wait_for("the client to be gone", || {
        Some(told(port, b"")).filter(|all| all["default"]["client_connections"] == 0)
    });
    let (pool, dead, live) = (
        &all["default"],
        &all["default"][&names[1]],
        &all["default"][&names[0]],
    );
    assert!(
        pool["client_eof"].as_u64() >= Some(1) && pool["forward_error"].as_u64() >= Some(1),
        "{all}"
    );
    assert!(
        dead["server_ejected_at"].as_u64() > Some(1_700_000_000_000_000),
        "{all}"
    );
    assert_eq!(live["server_ejected_at"], 0, "{all}");
    assert!(dead["server_eof"].as_u64() >= Some(1), "{all}");
}

/// What waits for a server that hangs is in its queue.
#[test]
fn large_farms_and_servers_that_hang_are_told() {
    let silent = super::common::Fake::start(|link| while link.request().is_some() {});
    let others: Vec<String> = (1..=800).map(|i| format!("127.0.0.1:{i}")).collect();
    let mut names: Vec<&str> = others.iter().map(String::as_str).collect();
    names.push(&silent.name);
    let (magent, port) = telling(&names, &["--timeout", "60000", "--probe", "0"]);
    let key = super::common::keys::key_on(800, 801, "key", 0);
    let mut client = magent.client();
    client.send(format!("get {key}\r\n").repeat(3));
    silent.wait_count("get ", 3);
    let all = told(port, b"");
    let servers = all["default"].as_object().expect("a pool").values();
    assert_eq!(servers.filter(|v| v.is_object()).count(), 801);
    let asked = &all["default"][&silent.name];
    assert_eq!(
        (&asked["out_queue"], &asked["in_queue"]),
        (&3.into(), &0.into()),
        "{asked}"
    );
    assert_eq!(
        asked["out_queue_bytes"],
        3 * (key.len() as u64 + 6),
        "{asked}"
    );
    assert_eq!(
        (&asked["requests"], &asked["responses"]),
        (&3.into(), &0.into()),
        "{asked}"
    );
}
