//! Placement and stats against a running twemproxy (Debian's `nutcracker`): it stores random keys through
//! every hash and distribution, weights, names and tags, and magent, under the same file, must
//! find each of them. Not part of `cargo test`: `make interop` runs it.

mod common;
#[path = "interop/stats.rs"]
mod stats;

use common::magent::free_port;
use common::rng::Rng;
use common::{Client, Magent, Memcached, TempDir, wait_for};
use std::fmt::Write as _;
use std::process::{Child, Command, Stdio};

/// Keys for each pool.
const KEYS: usize = 20_000;

/// Keys of one pipeline, and of one get.
const BATCH: usize = 50;

/// A busy machine may stop everything for seconds; no server is to blame for that.
const PATIENT: &str = "timeout: 60000";

const HASHES: [&str; 12] = [
    "one_at_a_time",
    "md5",
    "crc16",
    "crc32",
    "crc32a",
    "fnv1_64",
    "fnv1a_64",
    "fnv1_32",
    "fnv1a_32",
    "hsieh",
    "murmur",
    "jenkins",
];

struct Nutcracker {
    child: Child,
    /// The port of its stats.
    stats: u16,
}

impl Nutcracker {
    fn start(dir: &TempDir, text: &str) -> Nutcracker {
        let file = dir.path().join("nutcracker.yml");
        std::fs::write(&file, text).expect("the file");
        let mut command = Command::new("nutcracker");
        // Debian keeps it where users do not look.
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/sbin"));
        command.arg("-c").arg(file).args(["-a", "127.0.0.1", "-s"]);
        let stats = free_port();
        command.arg(stats.to_string()).args(["-i", "100"]);
        command.arg("-p").arg(dir.path().join("pid"));
        command.arg("-o").arg(dir.path().join("log"));
        let child = command.stdin(Stdio::null()).spawn();
        let child = child.unwrap_or_else(|e| {
            panic!("nutcracker: {e}; this test needs it: apt-get install nutcracker")
        });
        Nutcracker { child, stats }
    }
}

impl Drop for Nutcracker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One pool for each hash and distribution, each with other weights and names, over the same
/// servers. Its listener is `DIR/NAME`.
fn pools(servers: &[Memcached]) -> (Vec<String>, String) {
    let (mut names, mut text) = (Vec::new(), String::new());
    for distribution in ["ketama", "modula"] {
        for (n, hash) in HASHES.iter().enumerate() {
            let name = format!("{distribution}_{hash}");
            write!(
                text,
                "{name}:\n  listen: DIR/{name} 0666\n  hash: {hash}\n  distribution: {distribution}\n  {PATIENT}\n"
            )
            .expect("text");
            if n % 2 == 1 {
                text += "  hash_tag: \"{}\"\n";
            }
            text += "  servers:\n";
            for (s, server) in servers.iter().enumerate() {
                let weight = if n % 3 == 0 { 1 } else { 1 + (s + n) % 4 };
                let label = if n % 4 < 2 {
                    format!(" node{}", s * n)
                } else {
                    String::new()
                };
                let label = if n == 0 { String::new() } else { label };
                writeln!(text, "  - {}:{weight}{label}", server.name).expect("text");
            }
            names.push(name);
        }
    }
    (names, text)
}

/// Pools whose ring is another one when a server is away.
fn ejecting(servers: &[Memcached]) -> String {
    let mut text = String::new();
    for distribution in ["ketama", "modula"] {
        write!(
            text,
            "eject_{distribution}:\n  listen: DIR/eject_{distribution} 0666\n  hash: md5\n  \
             distribution: {distribution}\n  auto_eject_hosts: true\n  \
             server_failure_limit: 1\n  server_retry_timeout: 600000\n  {PATIENT}\n  servers:\n"
        )
        .expect("text");
        for (s, server) in servers.iter().enumerate() {
            writeln!(text, "  - {}:{}", server.name, 1 + s % 3).expect("text");
        }
    }
    text
}

/// Asks for keys until none fails any more: the server that is away has left the ring.
fn wait_ejected(path: &std::path::Path) {
    wait_for("an ejection", || {
        let request: String = (0..50).map(|i| format!("get away{i}\r\n")).collect();
        let mut client = Client::unix(path);
        client.try_send(request.as_bytes()).ok()?;
        let whole = "END\r\n".repeat(50).into_bytes();
        let (got, _) = client.read_until_true(|got| !whole.starts_with(got) || got == whole);
        (got == whole).then_some(())
    });
}

/// A key of 1 to 40 bytes, no control bytes or spaces, braces and bytes from 0x80 on included.
fn key(rng: &mut Rng, pool: &str, number: usize) -> Vec<u8> {
    let mut key = Vec::new();
    for _ in 0..rng.below(40) {
        let byte = match rng.below(12) {
            0 => b'{',
            1 => b'}',
            2 => 0x80 + rng.below(0x80) as u8,
            _ => 0x21 + rng.below(0x5e) as u8,
        };
        key.push(byte);
    }
    // No two of a pool are equal, and no two pools hold the same.
    key.extend_from_slice(format!("{number:x}{pool}").as_bytes());
    key
}

/// Stores the keys through twemproxy, then looks for each through magent. Returns those that
/// are not where magent looks.
fn compare(mut theirs: Client, mut ours: Client, keys: &[Vec<u8>]) -> Vec<String> {
    for batch in keys.chunks(BATCH) {
        let mut request = Vec::new();
        for key in batch {
            request.extend_from_slice(b"set ");
            request.extend_from_slice(key);
            request.extend_from_slice(b" 0 0 1\r\nv\r\n");
        }
        theirs.ask(&request, "STORED\r\n".repeat(batch.len()));
    }
    let mut lost = Vec::new();
    for batch in keys.chunks(BATCH) {
        let mut request = Vec::new();
        for key in batch {
            request.extend_from_slice(b"mg ");
            request.extend_from_slice(key);
            request.extend_from_slice(b"\r\n");
        }
        ours.send(&request);
        for key in batch {
            let line = ours.read_line();
            if line != b"HD\r\n" {
                let (key, line) = (key.escape_ascii(), line.escape_ascii());
                lost.push(format!("{key}: {line}"));
            }
        }
    }
    lost
}

#[test]
fn every_key_is_where_twemproxy_put_it() {
    let mut servers: Vec<Memcached> = (0..5).map(|_| Memcached::with(&["-m", "256"])).collect();
    let (names, text) = pools(&servers);
    let text = text + &ejecting(&servers);
    let dir = TempDir::new();
    let own = text.replace("DIR", &dir.path().display().to_string());
    let _nutcracker = Nutcracker::start(&dir, &own);
    let start = format!(
        "start:\n  listen: 127.0.0.1:PORT\n  servers:\n  - {}:1\n",
        servers[0].name
    );
    let magent = Magent::with_file(&format!("{start}{text}"));
    let seed = std::time::UNIX_EPOCH.elapsed().expect("a clock").as_nanos() as u64;
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    let mut check = |name: &str| {
        wait_for("nutcracker to listen", || {
            std::os::unix::net::UnixStream::connect(dir.path().join(name)).ok()
        });
        let keys: Vec<Vec<u8>> = (0..KEYS).map(|n| key(&mut rng, name, n)).collect();
        let theirs = Client::unix(&dir.path().join(name));
        let ours = Client::unix(&magent.dir().join(name));
        let lost = compare(theirs, ours, &keys);
        assert!(
            lost.is_empty(),
            "{name}: {} of {KEYS} keys are elsewhere, such as {:?}\n{own}",
            lost.len(),
            &lost[..lost.len().min(3)]
        );
    };
    names.iter().for_each(|name| check(name));
    let ejecting = ["eject_ketama", "eject_modula"];
    ejecting.iter().for_each(|name| check(name));
    let used = servers
        .iter()
        .filter(|s| s.stat("curr_items") > KEYS as u64);
    assert_eq!(
        used.count(),
        servers.len(),
        "keys are spread over all servers"
    );
    servers[2].kill();
    for name in ejecting {
        wait_ejected(&dir.path().join(name));
        wait_ejected(&magent.dir().join(name));
        check(name);
    }
}
