//! SIGHUP on the real program with real memcacheds: sixteen clients that pipeline, and every
//! answer of theirs checked, while the file changes under them.

mod common;

use common::{Client, Magent, Memcached, wait_for};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use std::fs;
use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Open descriptors of a process.
fn descriptors(magent: &Magent) -> usize {
    let dir = format!("/proc/{}/fd", magent.pid());
    fs::read_dir(dir).expect("its descriptors").count()
}

struct Farm {
    servers: Vec<Memcached>,
}

impl Farm {
    /// A file: alpha with some of the servers, beta in some.
    fn file(&self, alpha: &[(usize, u32)], backups: &[usize], more: &str, beta: bool) -> String {
        let head =
            "alpha:\n  listen:\n  - 127.0.0.1:PORT\n  hash: md5\n  timeout: 30000\n  warm: 0\n";
        let mut text = format!("{head}{more}  servers:\n");
        for (server, weight) in alpha {
            text += &format!("  - {}:{weight}\n", self.servers[*server].name);
        }
        if !backups.is_empty() {
            text += "  backups:\n";
        }
        for server in backups {
            text += &format!("  - {}:1\n", self.servers[*server].name);
        }
        if beta {
            let server = &self.servers[0].name;
            text += &format!("beta:\n  listen: DIR/beta\n  servers:\n  - {server}:1\n");
        }
        text
    }

    /// What is reloaded one after the other; the last is the first once more.
    fn files(&self) -> Vec<String> {
        let two: &[(usize, u32)] = &[(0, 1), (1, 1)];
        vec![
            self.file(two, &[], "", false),
            self.file(&[(0, 1), (1, 1), (2, 1)], &[], "", false),
            self.file(&[(0, 1), (1, 5), (2, 2)], &[], "", true),
            self.file(two, &[2], "", true),
            self.file(two, &[2], "  server_connections: 3\n  journal: 1m\n", true),
            self.file(two, &[2, 3], "  server_connections: 2\n", false),
            self.file(&[(1, 1), (3, 1)], &[], "  preconnect: true\n", true),
            self.file(two, &[], "  auto_eject_hosts: true\n", false),
            self.file(two, &[], "", false),
        ]
    }
}

/// Pipelines requests for keys of its own until it is told to stop. Returns how many.
fn talk(mut client: Client, name: usize, stop: &AtomicBool) -> u64 {
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        let keys: Vec<String> = (0..8).map(|k| format!("client{name}.{k}")).collect();
        let mut request = String::new();
        for key in &keys {
            let value = format!("{key}={sent}");
            request += &format!("set {key} 0 0 {}\r\n{value}\r\nget {key}\r\n", value.len());
        }
        request += &format!("get {}\r\nmn\r\n", keys.join(" "));
        client.send(&request);
        for key in &keys {
            assert_eq!(client.read_line(), b"STORED\r\n");
            expect_values(&mut client, &format!("client{name}."), Some(key));
        }
        expect_values(&mut client, &format!("client{name}."), None);
        client.expect("MN\r\n");
        sent += 2 * keys.len() as u64 + 2;
    }
    sent
}

/// The answer of a get: values of this client's own keys, then `END`. A key that has moved in
/// this moment may be absent, or older.
fn expect_values(client: &mut Client, own: &str, only: Option<&str>) {
    loop {
        let line = String::from_utf8(client.read_line()).expect("text");
        if line == "END\r\n" {
            return;
        }
        let key = line.split(' ').nth(1).unwrap_or_else(|| panic!("{line}"));
        assert!(line.starts_with("VALUE ") && key.starts_with(own), "{line}");
        assert!(only.is_none_or(|o| o == key), "{line}");
        let value = String::from_utf8(client.read_line()).expect("text");
        assert!(value.starts_with(&format!("{key}=")), "{value}");
    }
}

#[test]
fn sixteen_clients_do_not_notice_reloads() {
    let farm = Farm {
        servers: (0..4).map(|_| Memcached::start()).collect(),
    };
    let files = farm.files();
    let magent = Magent::with_file(&files[0]);
    let wrong = [
        ("alpha: [", "1"),
        (&files[0].replace("listen", "lisen")[..], "unknown key"),
        (
            &files[0].replace("127.0.0.1:PORT", "127.0.0.1:PORT\n  - 192.0.2.1:9"),
            "192.0.2.1:9",
        ),
        (
            &files[0].replace("  servers", "  redis: true\n  servers"),
            "memcached only",
        ),
        ("", "no pool"),
    ]
    .map(|(text, why)| (text.to_string(), why));
    let (stop, total) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for name in 0..16 {
            let client = magent.client();
            let (stop, total) = (&stop, &total);
            scope.spawn(move || total.fetch_add(talk(client, name, stop), Ordering::Relaxed));
        }
        let _ends = Ends(&stop);
        for (round, file) in files.iter().cycle().take(45).enumerate() {
            assert!(magent.reload(file), "{}", magent.log());
            let settings = magent.client().stats("stats settings\r\n");
            assert_eq!(settings["last_reload_result"], "ok");
            let (text, why) = &wrong[round % wrong.len()];
            assert!(!magent.reload(text));
            let after = magent.client().stats("stats settings\r\n");
            assert_eq!(after["configuration"], settings["configuration"]);
            assert!(after["last_reload_result"].contains(why), "{after:?}");
        }
    });
    assert!(total.load(Ordering::Relaxed) > 1000);
    for (_, why) in &wrong {
        assert!(magent.log().contains(why), "{why} in\n{}", magent.log());
    }
    let proxy = magent.client().stats("stats proxy\r\n");
    assert_eq!(
        (proxy["reloads"].as_str(), proxy["reloads_failed"].as_str()),
        ("45", "45")
    );
    assert_eq!(proxy["server_errors"], "0");
}

/// Ends the talkers, also when a check failed.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_thousand_reloads_leak_no_descriptor() {
    let farm = Farm {
        servers: (0..4).map(|_| Memcached::start()).collect(),
    };
    let files = farm.files();
    let magent = Magent::with_file(&files[0]);
    let mut client = magent.client();
    // Keys for every server.
    let keys: Vec<String> = (0..40).map(|i| format!("key{i}")).collect();
    let gets = format!("get {}\r\n", keys.join(" "));
    client.ask(&gets, "END\r\n");
    wait_for("this client alone", || {
        (client.stats("stats proxy\r\n")["curr_connections"] == "1").then_some(())
    });
    let before = descriptors(&magent);
    for round in 0..1000 {
        magent.write_file(&files[round % files.len()]);
        let done = client.stats("stats proxy\r\n")["reloads"].clone();
        magent.signal(nix::sys::signal::Signal::SIGHUP);
        wait_for("a reload", || {
            (client.stats("stats proxy\r\n")["reloads"] != done).then_some(())
        });
        client.ask(&gets, "END\r\n");
    }
    assert!(magent.reload(&files[0]));
    client.ask(&gets, "END\r\n");
    let servers = client.stats("stats servers\r\n");
    assert_eq!(
        servers
            .iter()
            .filter(|s| s.0.ends_with(":connections"))
            .count(),
        2
    );
    // What is retired is closed a turn later.
    wait_for("descriptors as before", || {
        (descriptors(&magent) == before).then_some(())
    });
    assert!(!magent.dir().join("beta").exists());
}

#[test]
fn a_listener_that_goes_lets_its_clients_finish() {
    let server = Memcached::start();
    let text = |beta: &str| {
        let servers = format!("  servers:\n  - {}:1\n", server.name);
        format!(
            "alpha:\n  listen: 127.0.0.1:PORT\n{servers}{}",
            beta.replace("@", &servers)
        )
    };
    let magent = Magent::with_file(&text("beta:\n  listen: DIR/b\n@"));
    let mut alpha = magent.client();
    let mut beta = Client::unix(&magent.dir().join("b"));
    // Much is on its way, in both directions, when the listener goes.
    let value = "x".repeat(10_000);
    let set = format!("set key 0 0 10000\r\n{value}\r\n");
    let sent = beta.send_aside(set.repeat(100).into_bytes());
    alpha.ask(&set, "STORED\r\n");
    wait_for("the first of beta's sets", || {
        (server.stat("cmd_set") > 1).then_some(())
    });
    // One has connected there, and magent has not looked at it yet.
    let mut late = magent.while_stopped(|| {
        let mut late = Client::unix(&magent.dir().join("b"));
        late.send("get none\r\n");
        magent.write_file(&text(""));
        magent.signal(Signal::SIGHUP);
        late
    });
    assert_eq!(late.read_to_end(), b"END\r\n");
    let answers = beta.read_to_end();
    let _ = sent.join();
    assert!(!answers.is_empty() && answers.len() % 8 == 0);
    assert!(answers.chunks(8).all(|line| line == b"STORED\r\n"));
    alpha.ask("get none\r\n", "END\r\n");
    assert!(!magent.dir().join("b").exists());
    // A taken place changes nothing, and names the listener.
    let taken = common::magent::free_port();
    let _holder = std::net::TcpListener::bind(("127.0.0.1", taken)).expect("it is free");
    assert!(!magent.reload(&text(&format!("beta:\n  listen: 127.0.0.1:{taken}\n@"))));
    let why = alpha.stats("stats settings\r\n")["last_reload_result"].clone();
    assert!(
        why.contains(&format!("pool beta: listen 127.0.0.1:{taken}")),
        "{why}"
    );
    alpha.ask("get none\r\n", "END\r\n");
}

/// A file: one pool with one server.
fn one_pool(server: &Memcached) -> String {
    let listen = "  listen: 127.0.0.1:PORT";
    format!("alpha:\n{listen}\n  servers:\n  - {}:1\n", server.name)
}

/// A reload of a file that has no end yet; it comes through what is returned.
fn begin_a_slow_reload(magent: &Magent) -> fs::File {
    let file = magent.dir().join("pools.yml");
    fs::remove_file(&file).expect("the file was there");
    mkfifo(&file, Mode::S_IRUSR | Mode::S_IWUSR).expect("a pipe in its place");
    magent.signal(Signal::SIGHUP);
    // Waits until it is being read.
    let pipe = fs::File::options().write(true).open(&file);
    pipe.expect("the other end")
}

/// The file may lie on a disk that hangs, and its names may wait for a name server that does.
#[test]
fn nobody_waits_while_the_file_is_read() {
    let server = Memcached::start();
    let text = one_pool(&server);
    let magent = Magent::with_file(&text);
    let mut client = magent.client();
    client.ask("get none\r\n", "END\r\n");
    let mut slow = begin_a_slow_reload(&magent);
    client.ask("get none\r\n", "END\r\n");
    // Another one while it is: the file is read once more.
    magent.write_file(&text);
    magent.signal(Signal::SIGHUP);
    client.ask("get none\r\n", "END\r\n");
    let reloads = || (magent.stat("reloads"), magent.stat("reloads_failed"));
    assert_eq!(reloads(), (0, 0));
    slow.write_all(b"alpha: [").expect("a reader");
    drop(slow);
    wait_for("both reloads", || (reloads() == (1, 1)).then_some(()));
    let settings = client.stats("stats settings\r\n");
    assert_eq!(settings["last_reload_result"], "ok");
}

#[test]
fn a_reload_that_hangs_does_not_prevent_the_next_one() {
    let server = Memcached::start();
    let text = one_pool(&server);
    let magent = Magent::with_file(&text);
    let _never_ends = begin_a_slow_reload(&magent);
    assert!(magent.reload(&text));
    let log = magent.log();
    assert!(log.contains("it is read anew"), "{log}");
}

/// systemd shows why a reload failed until one does not.
#[test]
fn systemd_is_told_why_a_reload_failed() {
    let server = Memcached::start();
    let dir = common::TempDir::new();
    let path = dir.path().join("notify");
    let systemd = UnixDatagram::bind(&path).expect("a socket");
    systemd
        .set_read_timeout(Some(common::DEADLINE))
        .expect("a timeout");
    let hear = || {
        let mut said = [0; 1000];
        let n = systemd.recv(&mut said).expect("a datagram");
        String::from_utf8_lossy(&said[..n]).into_owned()
    };
    let text = one_pool(&server);
    let magent = Magent::with_file_under(&text, &[("NOTIFY_SOCKET", &path)]);
    let serving = hear();
    assert!(
        serving.starts_with("READY=1\nSTATUS=serving, configuration "),
        "{serving}"
    );
    let file = magent.dir().join("pools.yml").display().to_string();
    let reload = |text: &str| {
        let is_good = magent.reload(text);
        let said = hear();
        let (begun, status) = said.rsplit_once('\n').expect("two lines");
        assert!(begun.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{said}");
        assert_eq!(status, format!("STATUS=reading {file} again"));
        (is_good, hear())
    };
    let wrong = text.replace("servers", "severs");
    let why = format!("{file}:3: pool alpha: severs: unknown key");
    let told = format!("READY=1\nSTATUS=the configuration stays as it was: {why}");
    assert_eq!(reload(&wrong), (false, told));
    assert_eq!(reload(&text), (true, serving));
}
