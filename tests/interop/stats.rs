//! What `--twemproxy-stats` tells, against what a running twemproxy tells after the same requests.

use super::common::magent::free_port;
use super::common::{Client, Magent, Memcached, TempDir, wait_for};
use super::{Nutcracker, PATIENT};
use serde_json::Value;
use std::net::TcpStream;

/// All names with their nesting; of values only what they are.
fn shape(value: &Value) -> Value {
    match value {
        Value::Object(all) => all.iter().map(|(k, v)| (k.clone(), shape(v))).collect(),
        Value::Number(_) => Value::from(0),
        Value::String(_) => Value::from(""),
        other => panic!("{other}: twemproxy has none of these"),
    }
}

/// All that a port says, until it closes.
fn told(port: u16) -> (String, Value) {
    let text = String::from_utf8(Client::tcp(port).read_to_end()).expect("text");
    let value = serde_json::from_str(&text).expect("JSON");
    (text, value)
}

#[test]
fn names_and_nesting_are_twemproxys() {
    let servers: Vec<Memcached> = (0..2).map(|_| Memcached::start()).collect();
    let pools = format!(
        "alpha:\n  listen: LISTEN\n  distribution: modula\n  {PATIENT}\n  servers:\n  - {}:1 one\n  - {}:2\n\
         beta:\n  listen: DIR/beta\n  {PATIENT}\n  servers:\n  - DIR/nobody.sock:3\n  - {}:1\n",
        servers[0].name, servers[1].name, servers[0].name
    );
    let dir = TempDir::new();
    let folder = dir.path().display().to_string();
    let nutcracker = Nutcracker::start(
        &dir,
        &pools.replace("LISTEN", "DIR/alpha").replace("DIR", &folder),
    );
    let port = free_port();
    let option = format!("127.0.0.1:{port}");
    let text = pools
        .replace("LISTEN", "127.0.0.1:PORT")
        .replace("DIR/nobody", &format!("{folder}/nobody"));
    let magent = Magent::with_file_and(&text, &["--twemproxy-stats", &option]);
    wait_for("nutcracker to listen", || {
        TcpStream::connect(("127.0.0.1", nutcracker.stats)).ok()
    });
    let mut clients = [Client::unix(&dir.path().join("alpha")), magent.client()];
    for client in &mut clients {
        for i in 0..40 {
            let key = format!("key{i}");
            client.set(&key, "value");
            assert_eq!(client.get(&key).as_deref(), Some(&b"value"[..]));
        }
    }
    let sent = |told: &Value| -> Option<[u64; 2]> {
        let pool = &told["alpha"];
        let requests = |name: &str| pool[name]["requests"].as_u64();
        Some([requests("one")?, requests(&servers[1].name)?])
    };
    // It gathers its numbers now and then.
    let (theirs_as_text, theirs) = wait_for("its numbers", || {
        let all = told(nutcracker.stats);
        (sent(&all.1)?.iter().sum::<u64>() == 80).then_some(all)
    });
    let (ours_as_text, ours) = told(port);
    assert_eq!(shape(&ours), shape(&theirs));
    assert_eq!(sent(&ours), sent(&theirs));
    for (told, name) in [(&ours, "magent"), (&theirs, "twemproxy")] {
        for server in ["one", &servers[1].name] {
            let s = &told["alpha"][server];
            assert_eq!(s["responses"], s["requests"], "{name}: {told}");
            for at_rest in [
                "server_eof",
                "server_err",
                "server_timedout",
                "in_queue",
                "out_queue",
                "out_queue_bytes",
            ] {
                assert_eq!(s[at_rest], 0, "{name}: {told}");
            }
        }
        assert_eq!(told["alpha"]["client_connections"], 1, "{name}: {told}");
    }
    // What does not look for names but for text finds the same.
    let head = |text: &str| text[..text.find("\"uptime\"").expect("uptime")].to_string();
    assert_eq!(head(&ours_as_text), head(&theirs_as_text));
    let server = |text: &str| -> String {
        let from = text.find("\"one\"").expect("a server");
        let end = from + text[from..].find('}').expect("its end");
        text[from..=end]
            .chars()
            .filter(|c| !c.is_ascii_digit())
            .collect()
    };
    assert_eq!(server(&ours_as_text), server(&theirs_as_text));
}
