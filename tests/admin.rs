//! The operator's door: what it tells, what it changes, and that nobody can be hurt through it.

#[path = "admin/abuse.rs"]
mod abuse;
#[path = "admin/attacks.rs"]
mod attacks;
mod common;
#[path = "prometheus/dashboard.rs"]
mod dashboard;
#[path = "admin/http.rs"]
mod http;
#[path = "admin/monitors.rs"]
mod monitors;
#[path = "admin/page.rs"]
mod page;
#[path = "admin/servers.rs"]
mod servers;
#[path = "admin/slow.rs"]
mod slow;
#[path = "admin/twemproxy.rs"]
mod twemproxy;

use common::magent::free_port;
use common::process::{finish, text};
use common::{Client, Magent, Memcached, TempDir, wait_for};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::process::Command;

/// The door of most tests.
const DOOR: [&str; 2] = ["--admin", "DIR/admin"];

/// One magent with a door, before a server that is not there, with more options.
fn with_door(options: &[&str]) -> Magent {
    Magent::farm(&["127.0.0.1:1"], &[], &[&DOOR[..], options].concat())
}

/// The lines of an answer that ends with `end`.
fn lines(operator: &mut Client, request: &str, end: &str) -> Vec<String> {
    let end = format!("{end}\r\n");
    let answer = operator
        .send(format!("{request}\n"))
        .read_until(end.as_bytes());
    let answer = String::from_utf8(answer).expect("text");
    let body = answer.strip_suffix(&end).expect("its end");
    body.lines().map(str::to_string).collect()
}

/// Clients as the door lists them: number, address and what follows.
fn clients(operator: &mut Client) -> Vec<Vec<String>> {
    let all = lines(operator, "clients", "END");
    all.iter()
        .map(|l| l.split(' ').map(str::to_string).collect())
        .collect()
}

/// What stands behind a word of a line.
fn field<'a>(line: &'a [String], name: &str) -> &'a str {
    let at = line.iter().position(|word| word == name);
    let at = at.unwrap_or_else(|| panic!("no {name} in {line:?}"));
    &line[at + 1]
}

#[test]
fn a_socket_is_the_operators_alone_and_goes_at_the_end() {
    let mut magent = with_door(&[]);
    let path = magent.dir().join("admin");
    let file = fs::symlink_metadata(&path).expect("the socket");
    assert!(file.file_type().is_socket());
    assert_eq!(file.permissions().mode() & 0o7777, 0o600);
    // A second one there is refused.
    let mut second = Command::new(env!("CARGO_BIN_EXE_magent"));
    second
        .args([
            "-D",
            "-s",
            "127.0.0.1:1",
            "-p",
            &free_port().to_string(),
            "--admin",
        ])
        .arg(&path);
    let said = finish(second);
    assert_eq!(said.status.code(), Some(1));
    let line = format!(
        "magent: --admin {}: Address already in use\n",
        path.display()
    );
    assert!(
        text(&said.stderr).ends_with(&line),
        "{}",
        text(&said.stderr)
    );
    assert_eq!(magent.operator().ask_line("log warn\n"), "OK");
    assert!(magent.terminate().success());
    assert!(!path.exists());
}

#[test]
fn every_stats_is_there_as_for_clients() {
    let servers: Vec<Memcached> = (0..2).map(|_| Memcached::start()).collect();
    let names: Vec<&str> = servers.iter().map(|s| s.name.as_str()).collect();
    for options in [&DOOR[..], &["--admin", "DIR/admin", "--memcached-stats"]] {
        let magent = Magent::farm(&names, &[], options);
        let (mut client, mut operator) = (magent.client(), magent.operator());
        client.set("a", "x").set("b", "x");
        // memcached dumps what it has moved to its last list, in the background.
        wait_for("both to be dumped", || {
            let dumped = lines(&mut client, "stats cachedump 1 0", "END");
            (dumped.len() == 2).then_some(())
        });
        for what in [
            "",
            "servers",
            "proxy",
            "settings",
            "pools",
            "route a",
            "items",
            "slabs",
            "sizes",
            "conns",
            "cachedump 1 0",
            "detail dump",
        ] {
            let request = format!("stats {what}");
            let names = |all: Vec<String>| -> Vec<String> {
                let name = |l: String| l.split(' ').take(2).collect::<Vec<_>>().join(" ");
                all.into_iter().map(name).collect()
            };
            let theirs = names(lines(&mut client, &request, "END"));
            let ours = names(lines(&mut operator, &request, "END"));
            // What memcached has beside that is a pool's.
            let is_pools = |l: &String| what == "settings" && !ours.contains(l);
            let theirs: Vec<String> = theirs.into_iter().filter(|l| !is_pools(l)).collect();
            // In the order in which servers answer.
            let sorted = |all: &[String]| all.iter().cloned().collect::<BTreeSet<_>>();
            assert_eq!(sorted(&ours), sorted(&theirs), "{request}");
        }
        operator.ask("stats route\n", "CLIENT_ERROR usage: stats route KEY\r\n");
        operator.ask("stats nonsense here\n", "ERROR nonsense here\r\n");
        operator.ask("stats reset\n", "RESET\r\n");
        assert!(magent.stat("cmd_set") == 0);
    }
}

#[test]
fn stats_are_of_all_pools() {
    let servers: Vec<Memcached> = (0..3).map(|_| Memcached::start()).collect();
    let [a, b, c] = [0, 1, 2].map(|i| servers[i].name.as_str());
    let text = format!(
        "alpha:\n  listen: 127.0.0.1:PORT\n  servers:\n  - {a}:1\n  - {b}:1\n\
         beta:\n  listen: DIR/beta\n  servers:\n  - {b}:1\n  backups:\n  - {c}:1\n"
    );
    let magent = Magent::with_file_and(&text, &["--alone"]);
    let mut operator = magent.operator();
    let matrix = format!(
        "memcached agent v{}\r\nmatrix 1 -> {a}, pool size 0\r\nmatrix 2 -> {b}, pool size 0\r\n\
         matrix 3 -> {b}, pool size 0\r\nEND\r\n",
        env!("CARGO_PKG_VERSION")
    );
    operator.ask("stats\n", matrix);
    let all = operator.stats("stats servers\n");
    let role = |name: &str| all[&format!("{name}:role")].clone();
    assert_eq!(
        (role(a), role(b), role(c)),
        ("primary".into(), "primary".into(), "backup".into())
    );
    let route = operator.stats("stats route key\n");
    assert_eq!(route["alpha:pool"], "alpha");
    assert_eq!(
        (
            route["beta:primary"].as_str(),
            route["beta:backup"].as_str()
        ),
        (b, c)
    );
    // What servers say is added up over all of them, each of them once.
    magent
        .client()
        .set("k1", "x")
        .set("k2", "x")
        .set("k3", "x")
        .set("k4", "x");
    let mut of_beta = Client::unix(&magent.dir().join("beta"));
    of_beta.set("other", "x");
    let all = operator.stats("stats items\n");
    assert_eq!(all["items:1:number"], "5");
}

#[test]
fn clients_are_listed_and_killed() {
    let magent = with_door(&[]);
    let mut operator = magent.operator();
    // Whoever looked whether it listens is gone some day.
    wait_for("nobody", || clients(&mut operator).is_empty().then_some(()));
    let mut tcp = magent.client();
    tcp.ask("mn\r\nversion\r\n", "MN\r\nVERSION 1.6.18\r\n");
    let mut unix = Client::unix(&magent.socket());
    let mut noop = vec![0x80, 0x0a];
    noop.resize(24, 0);
    unix.send(&noop).read_exact(24);
    let all = clients(&mut operator);
    assert_eq!(all.len(), 2, "{all:?}");
    let find = |dialect: &str| {
        all.iter()
            .find(|l| l[3] == dialect)
            .expect("it is there")
            .clone()
    };
    let (text, binary) = (find("text"), find("binary"));
    assert!(text[1].starts_with("127.0.0.1:"), "{text:?}");
    assert_eq!(binary[1], format!("unix:{}", std::process::id()));
    for (line, requests) in [(&text, "2"), (&binary, "1")] {
        assert_eq!(line[2], "default");
        assert_eq!(field(line, "requests"), requests);
        for (name, value) in [("in_flight", "0"), ("owed", "0"), ("unread", "-")] {
            assert_eq!(field(line, name), value, "{line:?}");
        }
        assert!(field(line, "age").parse::<u64>().expect("seconds") < 60);
        assert!(field(line, "idle").parse::<u64>().expect("seconds") < 60);
    }
    operator.ask(format!("kill {}\n", text[0]), "OK\r\n");
    assert_eq!(tcp.read_to_end(), b"");
    operator.ask(
        format!("kill {}\n", text[0]),
        format!("ERROR no client {}\r\n", text[0]),
    );
    // Whoever comes to the same place has another number.
    let mut next = magent.client();
    next.ask("mn\r\n", "MN\r\n");
    let all = clients(&mut operator);
    let next = all.iter().find(|l| l[3] == "text").expect("it is there");
    assert_ne!(next[0], text[0]);
    let log = magent.log();
    let line = format!(
        "warn operator unix:{}: kill {}\n",
        std::process::id(),
        text[0]
    );
    assert!(log.contains(&line), "{log}");
    assert_eq!(
        log.matches("kill").count(),
        1,
        "what was not done is not logged: {log}"
    );
}

/// Why a client is not read.
#[test]
fn a_client_that_waits_is_listed_with_its_reason() {
    let silent = common::Fake::start(|link| link.silence());
    let options = [&DOOR[..], &["--timeout", "60000"]].concat();
    let magent = Magent::farm(&[&silent.name], &[], &options);
    let mut client = magent.client();
    client.send("get a\r\n".repeat(2000));
    let mut operator = magent.operator();
    wait_for("it to be paused", || {
        let all = clients(&mut operator);
        let line = all.iter().find(|l| field(l, "unread") == "owed")?;
        (field(line, "in_flight") != "0").then_some(())
    });
}

#[test]
fn the_configuration_can_be_read_again() {
    let dir = TempDir::new();
    let file = dir.path().join("pools.yml");
    let farm = [
        "-s",
        "127.0.0.1:1:2",
        "-s",
        "127.0.0.1:2",
        "-b",
        "[::1]:3",
        "-b",
        "/tmp/x.sock:4",
    ];
    let cases: [&[&str]; 3] = [
        &[],
        &[
            "-k",
            "-n",
            "77",
            "-i",
            "3",
            "-I",
            "64k",
            "-m",
            "7m",
            "-F",
            "--timeout",
            "501",
            "--connect-timeout",
            "1502",
            "--failure-limit",
            "9",
            "--retry",
            "503",
            "--retry-max",
            "506",
            "--probe",
            "507",
            "--resolve",
            "508",
            "--slow",
            "509",
            "--warm",
            "504",
            "--journal",
            "5m",
            "--idle-timeout",
            "505",
            "--memcached-stats",
            "--hash-tag",
            "\"\\",
            "-a",
            "0707",
        ],
        &[
            "--hash",
            "crc32",
            "--distribution",
            "ketama",
            "--connect-timeout",
            "100",
        ],
    ];
    let in_force = |magent: &Magent| -> BTreeMap<String, String> {
        magent.client().stats("stats settings\r\n")
    };
    for more in cases {
        let first = Magent::start(&[&DOOR[..], &farm, more].concat());
        let saved = lines(&mut first.operator(), "config", "# END").join("\n");
        let settings = in_force(&first);
        fs::write(&file, &saved).expect("the file");
        drop(first);
        let head = saved.lines().next().expect("a line").to_string();
        let options = head.strip_prefix("# magent -c FILE ").expect("the options");
        let mut check = Command::new(env!("CARGO_BIN_EXE_magent"));
        check
            .arg("-t")
            .arg("-c")
            .arg(&file)
            .args(options.split(' '));
        let said = finish(check);
        assert!(said.status.success(), "{}\n{saved}", text(&said.stderr));
        // The file of the same pools, with the options that belong to it: the same configuration.
        let args: Vec<std::ffi::OsString> = ["-D", "-c"]
            .map(Into::into)
            .into_iter()
            .chain([file.clone().into_os_string()])
            .chain(options.split(' ').map(Into::into))
            .collect();
        let Ok(magent::config::Action::Run(again)) = magent::config::Config::from_args(&args)
        else {
            panic!("{options}\n{saved}");
        };
        assert_eq!(again.fingerprint(), settings["configuration"], "{saved}");
    }
}

#[test]
fn a_reload_is_answered_when_it_is_done() {
    let text =
        |name: &str| format!("{name}:\n  listen: 127.0.0.1:PORT\n  servers:\n  - 127.0.0.1:1:1\n");
    let magent = Magent::with_file(&text("alpha"));
    let mut operator = magent.operator();
    magent.write_file(&text("beta"));
    operator.ask("reload\nstats pools\n", "OK\r\nSTAT beta:");
    operator.read_until(b"END\r\n");
    magent.write_file("beta: [");
    let line = operator.ask_line("reload\n");
    assert!(
        line.starts_with("ERROR ") && line.contains("pools.yml:1: "),
        "{line}"
    );
    assert_eq!(magent.stat("reloads"), 1);
    assert_eq!(magent.log().matches(": reload\n").count(), 2);
    // Two who ask at the same time are both answered.
    magent.write_file(&text("gamma"));
    let mut other = magent.operator();
    magent.while_stopped(|| {
        operator.send("reload\n");
        other.send("reload\n");
    });
    operator.expect("OK\r\n");
    other.expect("OK\r\n");
    with_door(&[]).operator().ask(
        "reload\n",
        "ERROR there is no configuration file (-c) to read again\r\n",
    );
}

#[test]
fn the_level_of_the_log_changes() {
    let server = Memcached::start();
    let magent = Magent::farm(&[&server.name], &[], &DOOR);
    let (mut client, mut operator) = (magent.client(), magent.operator());
    client.ask("get quiet\r\n", "END\r\n");
    operator.ask("log debug\n", "OK\r\n");
    client.ask("get loud\r\n", "END\r\n");
    assert_eq!(operator.stats("stats settings\n")["verbose"], "2");
    operator.ask("log warn\n", "OK\r\n");
    client.ask("get silent\r\n", "END\r\n");
    for nonsense in ["log", "log loud", "log debug info"] {
        operator.ask(
            format!("{nonsense}\n"),
            "ERROR usage: log warn|info|debug\r\n",
        );
    }
    let log = magent.log();
    assert!(
        log.contains("get loud") && log.contains(": log debug\n"),
        "{log}"
    );
    assert!(!log.contains("quiet") && !log.contains("silent"), "{log}");
}

#[test]
fn every_change_is_logged_with_who_made_it() {
    let servers: Vec<Memcached> = (0..2).map(|_| Memcached::start()).collect();
    let magent = Magent::with_file(&format!(
        "a:\n  listen: 127.0.0.1:PORT\n  servers:\n  - {}:1\n  backups:\n  - {}:1\n",
        servers[0].name, servers[1].name
    ));
    let mut client = magent.client();
    client.set("k", "x");
    let mut operator = magent.operator();
    let number = clients(&mut operator)
        .iter()
        .find(|line| field(line, "requests") == "1" && line[3] == "text")
        .expect("the client")[0]
        .clone();
    let name = &servers[0].name;
    let changes = [
        "log info".to_string(),
        "log warn".to_string(),
        format!("server {name} probe"),
        format!("server {name} refill"),
        format!("server {name} drain"),
        format!("server {name} use"),
        "slow reset".to_string(),
        "stats reset".to_string(),
        "reload".to_string(),
        format!("kill {number}"),
    ];
    for change in &changes {
        let answer = operator.ask_line(format!("{change}\n"));
        assert!(answer == "OK" || answer == "RESET", "{change}: {answer}");
    }
    assert_eq!(client.read_to_end(), b"");
    let log = magent.log();
    let who = format!("operator unix:{}: ", std::process::id());
    let told: Vec<&str> = log
        .lines()
        .filter_map(|l| Some(l.split_once(&who)?.1))
        .collect();
    assert_eq!(told, changes);
    // Nobody else can: what is asked, or goes wrong, leaves no line.
    for line in [
        "stats", "clients", "slow", "hot", "config", "help", "kill 99", "log", "slow x",
    ] {
        operator.send(format!("{line}\n"));
    }
    operator.send("quit\n").read_to_end();
    assert_eq!(magent.log().matches(&who).count(), changes.len());
}

#[test]
fn what_is_not_known_is_named() {
    let magent = with_door(&[]);
    let mut operator = magent.operator();
    for (request, answer) in [
        ("nonsense", "ERROR nonsense"),
        ("get a", "ERROR get"),
        ("STATS", "ERROR STATS"),
        (
            "server",
            "ERROR usage: server NAME drain|use|probe|refill|verify",
        ),
        ("server 127.0.0.1:1 explode", "ERROR explode"),
        ("server nobody drain", "ERROR no server nobody"),
        ("kill", "ERROR usage: kill N"),
        ("kill x", "ERROR no client x"),
        ("a\x1b[2Jb", "ERROR a\\u{1b}[2Jb"),
    ] {
        assert_eq!(operator.ask_line(format!("{request}\r\n")), answer);
    }
    // Nothing is said to nothing.
    operator.ask("\n\r\n \nnonsense\n", "ERROR nonsense\r\n");
    let help = lines(&mut operator, "help", "END");
    for command in [
        "stats", "clients", "kill", "server", "slow", "hot", "config", "reload", "log", "quit",
    ] {
        assert!(
            help.iter().any(|l| l.starts_with(command)),
            "{command}: {help:?}"
        );
    }
    assert_eq!(operator.send("quit\n").read_to_end(), b"");
    // As `echo help | nc -N` asks.
    let mut nc = magent.operator();
    nc.send("help\nkill x\n").half_close();
    assert!(nc.read_to_end().ends_with(b"END\r\nERROR no client x\r\n"));
}
