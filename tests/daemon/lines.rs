//! What is in the log, and in which words.

use super::common::{Magent, Memcached};

/// The lines whose text begins so, without their time.
fn lines(log: &str, start: &str) -> Vec<String> {
    let texts = log
        .lines()
        .filter_map(|l| l.split_once("Z "))
        .map(|(_, text)| text);
    texts
        .filter(|t| t.starts_with(start))
        .map(str::to_string)
        .collect()
}

#[test]
fn what_starts_stops_and_changes_is_logged_without_v() {
    let (mut primary, backup) = (Memcached::start(), Memcached::start());
    let options = ["--retry", "30", "--probe", "100"];
    let mut magent = Magent::farm(&[&primary.name], &[&backup.name], &options);
    let configuration = magent.client().stats("stats settings\r\n")["configuration"].clone();
    let name = primary.name.clone();
    primary.kill();
    magent.wait_state(&name, "down");
    primary.restart();
    magent.wait_state(&name, "warming");
    let pid = magent.pid();
    assert!(magent.terminate().success());
    let log = magent.log();
    let start = format!(
        "info serving, process {pid}: magent {}, pools: 1, servers: 2, configuration {configuration}",
        env!("CARGO_PKG_VERSION")
    );
    for line in [
        &start[..],
        "info stopping: finishing what clients are owed",
        "info stopped",
    ] {
        assert_eq!(lines(&log, line), [line], "{log}");
    }
    // Its pool, what it is there, how long it was away, and why it went.
    let why = [" (connection lost)", " (connection refused)"];
    let down = lines(
        &log,
        &format!("warn pool default: primary {name}: down: connection "),
    );
    let up = lines(
        &log,
        &format!("warn pool default: primary {name}: up again after "),
    );
    assert_eq!((down.len(), up.len()), (1, 1), "{log}");
    let seconds = up[0]
        .split_once(" after ")
        .and_then(|(_, rest)| rest.split_once(" s"))
        .expect("a time");
    assert!(seconds.0.parse::<f64>().is_ok_and(|s| s > 0.0), "{up:?}");
    assert!(why.iter().any(|why| up[0].ends_with(why)), "{up:?}");
    assert!(
        down[0].ends_with(&seconds.1.replace(" (", "").replace(')', "")),
        "{down:?} {up:?}"
    );
    // What happens to single connections is for -v.
    assert!(
        !log.contains("link lost") && !log.contains("connect failed"),
        "{log}"
    );
}

#[test]
fn a_server_of_several_pools_is_named_with_all_of_them() {
    let server = Memcached::start();
    let pools = |more: &str| {
        format!(
            "alpha:\n  listen: 127.0.0.1:PORT\n  servers:\n  - 127.0.0.1:1:1\n  backups:\n  - {0}:1\n\
             beta:\n  listen: DIR/beta\n  servers:\n  - {0}:1\n{more}",
            server.name
        )
    };
    let magent = Magent::with_file(&pools(""));
    magent.wait_state("127.0.0.1:1", "down");
    assert!(magent.reload(&pools("  - 127.0.0.1:1:1\n")));
    let log = magent.log();
    assert_eq!(
        lines(
            &log,
            "warn pool alpha: primary 127.0.0.1:1: down: connection refused"
        )
        .len(),
        1,
        "{log}"
    );
    let configuration = magent.client().stats("stats settings\r\n")["configuration"].clone();
    let line = format!("info the configuration was reloaded, it is {configuration} now");
    assert_eq!(lines(&log, "info the configuration"), [line], "{log}");
    magent
        .operator()
        .ask(format!("server {} drain\n", server.name), "OK\r\n");
    let line = format!(
        "warn pools beta, alpha: primary and backup {}: down: drained",
        server.name
    );
    assert_eq!(lines(&magent.log(), "warn pools"), [line]);
}

/// Requests are written out so that nobody is misled by them.
#[test]
fn requests_are_logged_as_text() {
    let server = Memcached::start();
    let magent = Magent::farm(&[&server.name], &[], &["-vv"]);
    let mut client = magent.client();
    client.ask(b"get \xff\xfe\x85k\xc3\xbc\r\n", "END\r\n");
    let line = format!("debug {} <- get \\xff\\xfe\\x85kü (client ", server.name);
    assert_eq!(lines(&magent.log(), &line).len(), 1, "{}", magent.log());
}
