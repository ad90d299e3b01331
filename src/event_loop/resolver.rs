//! Looks up the host names of servers on threads beside the loop, so that no client waits for name
//! service.
//!
//! ```text
//!  begin(host) ─▶ waiting ─▶ a thread each, a few at a time ─▶ take() ─▶ the proxy
//! ```

use crate::config;
use crate::sys;
use mio::Waker;
use std::collections::{HashSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Builder;

/// Lookups at a time: several, so that one that hangs delays no other; bounded, since each has a
/// thread.
const LOOKUPS: usize = 16;

/// The addresses of a host, or why there are none.
pub type Found = Result<Vec<SocketAddr>, String>;

/// How a host is looked up; tests have their own way.
type Lookup = dyn Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync;

/// A pool of threads that look names up.
pub struct Resolver {
    lookup: Arc<Lookup>,
    waker: Arc<Waker>,
    sender: Sender<(String, Found)>,
    found: Receiver<(String, Found)>,
    /// Names that are being looked up or wait for a thread, each once.
    asked: HashSet<String>,
    waiting: VecDeque<String>,
    threads: usize,
}

impl Resolver {
    /// Not looking anything up yet. `waker` wakes the loop when a name was looked up.
    pub fn new(waker: Arc<Waker>) -> Resolver {
        Resolver::with(waker, Arc::new(config::look_up))
    }

    fn with(waker: Arc<Waker>, lookup: Arc<Lookup>) -> Resolver {
        let (sender, found) = channel();
        Resolver {
            lookup,
            waker,
            sender,
            found,
            asked: HashSet::new(),
            waiting: VecDeque::new(),
            threads: 0,
        }
    }

    /// Looks a host up, unless that is under way.
    pub fn begin(&mut self, host: String) {
        if self.asked.insert(host.clone()) {
            self.waiting.push_back(host);
            self.go_on();
        }
    }

    fn go_on(&mut self) {
        while self.threads < LOOKUPS {
            let Some(host) = self.waiting.pop_front() else {
                return;
            };
            self.threads += 1;
            let (lookup, sender) = (self.lookup.clone(), self.sender.clone());
            let (waker, name) = (self.waker.clone(), host.clone());
            let thread = Builder::new().name("lookup".into()).spawn(move || {
                let found = lookup(&name).map_err(|e| sys::reason(&e));
                // These fail only when the loop is gone.
                let _ = sender.send((name, found));
                let _ = waker.wake();
            });
            if let Err(e) = thread {
                let _ = self.sender.send((host, Err(sys::reason(&e))));
                let _ = self.waker.wake();
            }
        }
    }

    /// The next host that was looked up.
    pub fn take(&mut self) -> Option<(String, Found)> {
        if self.asked.is_empty() {
            return None;
        }
        let (host, found) = self.found.try_recv().ok()?;
        self.asked.remove(&host);
        self.threads -= 1;
        self.go_on();
        Some((host, found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mio::{Events, Poll, Token};
    use std::sync::Mutex;
    use std::time::Duration;

    /// Waits for the next answer.
    fn wait(poll: &mut Poll, resolver: &mut Resolver) -> (String, Found) {
        let mut events = Events::with_capacity(8);
        loop {
            if let Some(found) = resolver.take() {
                return found;
            }
            poll.poll(&mut events, Some(Duration::from_secs(30)))
                .unwrap();
            assert!(!events.is_empty(), "nothing was found");
        }
    }

    fn waker(poll: &Poll) -> Arc<Waker> {
        Arc::new(Waker::new(poll.registry(), Token(1)).unwrap())
    }

    #[test]
    fn names_that_hang_hold_up_no_other() {
        let mut poll = Poll::new().unwrap();
        let (hold, held) = channel::<()>();
        let held = Mutex::new(held);
        let lookup = move |host: &str| match host {
            "hangs" => {
                held.lock().unwrap().recv().ok();
                Ok(vec!["127.0.0.1:0".parse().unwrap()])
            }
            "unknown" => Err(io::Error::other("no such host")),
            _ => Ok(vec!["127.0.0.2:0".parse().unwrap()]),
        };
        let mut resolver = Resolver::with(waker(&poll), Arc::new(lookup));
        assert!(resolver.take().is_none());
        resolver.begin("hangs".into());
        // More than there are threads, and each of them once.
        for n in 0..3 * LOOKUPS {
            resolver.begin(format!("host{n}"));
            resolver.begin(format!("host{n}"));
            resolver.begin("hangs".into());
        }
        let mut seen = HashSet::new();
        for _ in 0..3 * LOOKUPS {
            let (host, found) = wait(&mut poll, &mut resolver);
            assert_eq!(found.unwrap(), ["127.0.0.2:0".parse().unwrap()]);
            assert!(seen.insert(host));
        }
        assert!(resolver.take().is_none() && !seen.contains("hangs"));
        resolver.begin("unknown".into());
        let unknown = wait(&mut poll, &mut resolver);
        assert_eq!(unknown, ("unknown".into(), Err("no such host".into())));
        hold.send(()).unwrap();
        assert_eq!(wait(&mut poll, &mut resolver).0, "hangs");
        // It may be looked up again.
        drop(hold);
        resolver.begin("hangs".into());
        assert_eq!(wait(&mut poll, &mut resolver).0, "hangs");
    }

    #[test]
    fn name_service_knows_localhost_and_no_invalid_name() {
        let mut poll = Poll::new().unwrap();
        let mut resolver = Resolver::new(waker(&poll));
        resolver.begin("localhost".into());
        let (_, found) = wait(&mut poll, &mut resolver);
        assert!(found.unwrap().iter().all(|a| a.ip().is_loopback()));
        resolver.begin("no-such-host.invalid".into());
        let (host, found) = wait(&mut poll, &mut resolver);
        assert_eq!(host, "no-such-host.invalid");
        assert!(!found.unwrap_err().is_empty());
    }
}
