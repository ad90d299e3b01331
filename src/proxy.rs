//! A stand-in for the proxy, to build and try the process around it. Dropped at merge.

use crate::config::{Address, Config};
use crate::net::Socket;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::time::{Duration, Instant};

/// The clock.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Monotonic.
    pub at: Instant,
    /// Seconds since the epoch.
    pub unix: u64,
}

/// A wanted connection.
pub struct Connect {
    /// Its token.
    pub token: usize,
    /// Where to.
    pub address: Address,
    /// Keepalive.
    pub keepalive: bool,
}

/// Answers `VERSION stub` to whatever it reads; `hang` makes a drain last for ever.
pub struct Proxy<S> {
    limit: usize,
    next: usize,
    open: BTreeMap<usize, Option<S>>,
    ready: BTreeSet<usize>,
    wanted: Vec<Connect>,
    hanging: bool,
}

#[allow(missing_docs)]
impl<S: Socket> Proxy<S> {
    pub fn new(config: &Config, _now: Now) -> Proxy<S> {
        let primaries = config.pools.iter().flat_map(|p| p.primaries.iter());
        let connect = |(i, s): (usize, &crate::config::ServerSpec)| Connect {
            token: (1 << 40) + i,
            address: s.address.clone(),
            keepalive: true,
        };
        Proxy {
            limit: config.clients,
            next: 0,
            open: BTreeMap::new(),
            ready: BTreeSet::new(),
            wanted: primaries.enumerate().map(connect).collect(),
            hanging: false,
        }
    }

    pub fn admit(&mut self, _pool: usize) -> Result<usize, &'static [u8]> {
        if self.open.len() >= self.limit {
            return Err(b"SERVER_ERROR OUT OF CONNECTION\r\n");
        }
        self.next += 1;
        self.open.insert(self.next, None);
        Ok(self.next)
    }

    pub fn accepted(&mut self, token: usize, stream: S, _now: Now) {
        self.open.insert(token, Some(stream));
    }

    pub fn next_connect(&mut self) -> Option<Connect> {
        self.wanted.pop()
    }

    pub fn connecting(&mut self, token: usize, stream: io::Result<S>, _now: Now) {
        log::info!("connecting {token}: {}", stream.is_ok());
    }

    pub fn ready(&mut self, token: usize, readable: bool, _writable: bool, _closed: bool) {
        if readable {
            self.ready.insert(token);
        }
    }

    pub fn tick(&mut self, _now: Now) {
        for token in std::mem::take(&mut self.ready) {
            let Some(Some(s)) = self.open.get_mut(&token) else {
                continue;
            };
            let mut buf = [0; 1024];
            loop {
                match s.read(&mut buf) {
                    Ok(0) => {
                        self.open.remove(&token);
                        break;
                    }
                    Ok(n) => {
                        self.hanging |= buf[..n].starts_with(b"hang");
                        let _ = s.write(&[IoSlice::new(b"VERSION stub\r\n")]);
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    Err(_) => {
                        self.open.remove(&token);
                        break;
                    }
                }
            }
        }
    }

    pub fn wait(&self, _now: Now) -> Option<Duration> {
        None
    }

    pub fn drain(&mut self, _now: Now) {}

    pub fn drained(&self) -> bool {
        !self.hanging
    }

    pub fn reload(&mut self, config: &Config, _now: Now) {
        self.limit = config.clients;
    }

    pub fn reload_failed(&mut self, _why: &str, _now: Now) {}

    pub fn count_poll(&mut self) {}
}
