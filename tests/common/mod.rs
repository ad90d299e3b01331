//! What the black-box tests stand on: real memcacheds, scripted fakes, the real magent, clients.
//!
//! ```text
//!  Client ──▶ Magent ──▶ Memcached   the real one, for behaviour
//!                   └──▶ Fake        a script, for what a real one won't do
//! ```
//!
//! Nothing sleeps to be safe: `time` has the ways in which a test lets time pass.

// Every test binary uses its own part.
#![allow(dead_code, unused_imports)]

pub mod client;
pub mod fake;
pub mod farm;
pub mod keys;
pub mod magent;
pub mod memcached;
pub mod probe;
pub mod process;
pub mod relay;
pub mod rng;
pub mod time;
pub mod watch;
pub mod wire;
pub mod world;

pub use client::{Client, Stats, number};
pub use fake::{Fake, FakeLink, Gate};
pub use magent::Magent;
pub use memcached::Memcached;
pub use probe::{Latencies, Probe};
pub use relay::Relay;
pub use time::{DEADLINE, measure_for, pause_of, wait_for};
pub use watch::Scene;
pub use wire::Wire;
pub use world::{Peer, World};

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Bytes as a person can read them; long ones are cut in the middle.
pub fn show(bytes: &[u8]) -> String {
    const KEEP: usize = 150;
    if bytes.len() > 2 * KEEP + 40 {
        let (head, tail) = (&bytes[..KEEP], &bytes[bytes.len() - KEEP..]);
        let left_out = bytes.len() - 2 * KEEP;
        return format!(
            "{}…{left_out} bytes…{}",
            head.escape_ascii(),
            tail.escape_ascii()
        );
    }
    bytes.escape_ascii().to_string()
}

/// Bytes that follow no pattern, with line ends and NULs among them; the same for the same length.
pub fn noise(len: usize) -> Vec<u8> {
    let mut rng = rng::Rng::new(len as u64);
    (0..len).map(|_| rng.next() as u8).collect()
}

/// Lets this process have so many descriptors, for tests with thousands of connections. Only root
/// may pass the hard limit.
pub fn raise_descriptors(count: u64) {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit");
    if soft < count {
        setrlimit(Resource::RLIMIT_NOFILE, count, hard.max(count)).expect("more descriptors");
    }
}

/// A folder that everybody may write to (memcached gives up root), gone with its value.
pub struct TempDir(PathBuf);

impl TempDir {
    /// A new, empty one with a short path, since sockets are put there.
    pub fn new() -> TempDir {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "magent-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).expect("a temporary folder");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("its mode");
        TempDir(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
