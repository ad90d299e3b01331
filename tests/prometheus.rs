//! `/metrics` and what `dist/` has for Prometheus, under Prometheus itself. Not part of `cargo test`, since
//! few machines have it: `make interop` runs it.

mod common;
#[path = "prometheus/dashboard.rs"]
mod dashboard;

use common::magent::free_port;
use common::{Client, Magent, Memcached, TempDir, wait_for};
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

const RULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/dist/magent.rules.yml");

/// The head and the body of an answer to a GET without keep-alive.
fn try_get(port: u16, path: &str, accept: &str) -> (String, String) {
    let mut client = Client::tcp(port);
    client.send(format!(
        "GET {path} HTTP/1.0\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n"
    ));
    let answer = String::from_utf8(client.read_to_end()).expect("text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head.to_string(), body.to_string())
}

/// The body of an answer of status 200.
#[track_caller]
fn get(port: u16, path: &str, accept: &str) -> String {
    let (head, body) = try_get(port, path, accept);
    assert!(head.contains(" 200 "), "{path}: {head}\n{body}");
    body
}

/// What promtool says to a text.
fn promtool(words: &[&str], input: &str) -> Output {
    let mut promtool = Command::new("promtool");
    promtool
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = match promtool.spawn() {
        Ok(child) => child,
        Err(e) => panic!("promtool: {e}; this test needs it: apt-get install prometheus"),
    };
    let mut stdin = child.stdin.take().expect("its input");
    stdin.write_all(input.as_bytes()).expect("it reads");
    drop(stdin);
    child.wait_with_output().expect("its answer")
}

/// A magent that has done this and that, behind which a server died, and the port of its door.
fn busy() -> (Magent, Vec<Memcached>, u16) {
    let mut servers: Vec<Memcached> = (0..3).map(|_| Memcached::start()).collect();
    let names: Vec<&str> = servers.iter().map(|s| s.name.as_str()).collect();
    let port = free_port();
    let door = format!("127.0.0.1:{port}");
    let magent = Magent::farm(&names[..2], &names[2..], &["--admin", &door]);
    let mut client = magent.client();
    for i in 0..50 {
        client.set(&format!("key{i}"), "x");
        client.get(&format!("key{i}"));
    }
    servers[1].kill();
    magent.wait_state(&servers[1].name, "down");
    client.get("key1");
    (magent, servers, port)
}

#[test]
fn promtool_has_nothing_to_say() {
    let (_magent, _servers, port) = busy();
    let text = get(port, "/metrics", "text/plain");
    let output = promtool(&["check", "metrics"], &text);
    let said = [&output.stdout[..], &output.stderr].concat();
    assert!(
        output.status.success() && said.is_empty(),
        "{}",
        String::from_utf8_lossy(&said)
    );
    let output = promtool(&["check", "rules", RULES], "");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A running Prometheus; it ends with its value.
struct Prometheus {
    child: Child,
    port: u16,
    dir: TempDir,
}

impl Prometheus {
    /// One that scrapes a magent each second.
    fn start(target: u16) -> Prometheus {
        let (dir, port) = (TempDir::new(), free_port());
        let file = dir.path().join("prometheus.yml");
        fs::write(
            &file,
            format!(
                "global:\n  scrape_interval: 1s\n  evaluation_interval: 1s\nrule_files:\n- {RULES}\n\
                 scrape_configs:\n- job_name: magent\n  static_configs:\n  - targets: ['127.0.0.1:{target}']\n"
            ),
        )
        .expect("its configuration");
        let log = fs::File::create(dir.path().join("log")).expect("a log");
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                dir.path().join("data").display()
            ))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| panic!("prometheus: {e}; apt-get install prometheus"));
        let started = Prometheus { child, port, dir };
        wait_for("Prometheus to be ready", || {
            std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
            let (head, _) = try_get(port, "/-/ready", "*/*");
            head.contains(" 200 ").then_some(())
        });
        started
    }

    /// What its log says.
    fn log(&self) -> String {
        fs::read_to_string(Path::join(self.dir.path(), "log")).unwrap_or_default()
    }

    /// What an expression comes to now.
    fn query(&self, expression: &str) -> Vec<Value> {
        let escaped: String = expression.bytes().map(|b| format!("%{b:02x}")).collect();
        let answer = get(self.port, &format!("/api/v1/query?query={escaped}"), "*/*");
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        assert_eq!(answer["status"], "success", "{expression}: {answer}");
        answer["data"]["result"]
            .as_array()
            .expect("a vector")
            .clone()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn prometheus_scrapes_it() {
    let (magent, servers, port) = busy();
    let prometheus = Prometheus::start(port);
    // A rate needs two scrapes.
    let client = std::cell::RefCell::new(magent.client());
    wait_for("two scrapes", || {
        client.borrow_mut().get("key1");
        let up = prometheus.query("up{job=\"magent\"} == 1 and count_over_time(up[1m]) >= 3");
        (!up.is_empty()).then_some(())
    });
    for (at, up) in [(0, "1"), (1, "0"), (2, "1")] {
        let found = prometheus.query(&format!(
            "magent_server_up{{server=\"{}\"}}",
            servers[at].name
        ));
        assert_eq!(found[0]["value"][1], up, "{found:?}");
    }
    let gets = prometheus.query("magent_pool_commands_total{command=\"get\"}");
    assert_ne!(gets[0]["value"][1], "0");
    // All that the dashboard and the alerts ask for is there.
    for expression in dashboard::expressions() {
        let asked = expression
            .replace("$__rate_interval", "1m")
            .replace("$instance", ".*");
        assert!(!prometheus.query(&asked).is_empty(), "{asked}");
    }
    wait_for("the alert", || {
        let alerts = prometheus.query("ALERTS{alertname=\"MagentServerDown\"}");
        let is_it = |a: &Value| a["metric"]["server"] == servers[1].name.as_str();
        alerts.iter().any(is_it).then_some(())
    });
    let log = prometheus.log();
    assert!(
        !log.contains("level=error") && !log.contains("level=warn"),
        "{log}"
    );
}
