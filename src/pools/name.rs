//! A server that is configured by its host name: the addresses that the last lookup found, and which
//! of them is in use. No I/O.

use crate::saved::{Loaded, Loader, Saved, Saver, load_all, save_all};
use std::net::SocketAddr;

/// The address in use is given up when it is missing in so many lookups in a row: some name services
/// answer with a part of many addresses only.
const MISSING: u32 = 3;

/// A name that is looked up.
#[derive(Debug)]
pub struct Name {
    /// As it is looked up.
    pub host: String,
    port: u16,
    /// Of the last lookup that found some.
    known: Vec<SocketAddr>,
    /// Where the server answered last.
    in_use: Option<SocketAddr>,
    /// Lookups in a row that found others only.
    missing: u32,
    /// The last lookup failed.
    pub fails: bool,
}

impl Name {
    /// Nothing is known of it yet.
    pub fn new(host: &str, port: u16) -> Name {
        Name {
            host: host.to_string(),
            port,
            known: Vec::new(),
            in_use: None,
            missing: 0,
            fails: false,
        }
    }

    /// The address that is tried when so many others did not answer: the one in use first, then IPv4
    /// before IPv6, since that is what memcached listens on.
    pub fn candidate(&self, n: usize) -> Option<SocketAddr> {
        let others = self.known.iter().filter(|a| self.in_use != Some(**a));
        self.in_use.iter().chain(others).nth(n).copied()
    }

    /// Where the server answered last.
    pub fn in_use(&self) -> Option<SocketAddr> {
        self.in_use
    }

    /// The server answers there. True if it was elsewhere before.
    pub fn uses(&mut self, address: SocketAddr) -> bool {
        self.missing = 0;
        self.in_use
            .replace(address)
            .is_some_and(|before| before != address)
    }

    /// What a lookup found; nothing is a failure, and keeps what was known. True if the address in use
    /// is given up for another.
    pub fn found(&mut self, addresses: &[SocketAddr]) -> bool {
        self.fails = addresses.is_empty();
        if self.fails {
            return false;
        }
        let with_port = addresses.iter().map(|a| {
            let mut address = *a;
            address.set_port(self.port);
            address
        });
        self.known = with_port.collect();
        self.known.sort_by_key(SocketAddr::is_ipv6);
        self.known.dedup();
        let is_there = self.in_use.is_none_or(|a| self.known.contains(&a));
        self.missing = if is_there { 0 } else { self.missing + 1 };
        if self.missing < MISSING {
            return false;
        }
        self.missing = 0;
        self.in_use = self.known.first().copied();
        true
    }
}

impl Name {
    /// Writes what is known of it.
    pub fn save(&self, to: &mut Saver<'_>) {
        save_all(to, self.known.iter());
        self.in_use.save(to);
        self.missing.save(to);
        self.fails.save(to);
    }

    /// Reads that.
    ///
    /// # Errors
    /// It is damaged.
    pub fn load(&mut self, from: &mut Loader<'_>) -> Loaded<()> {
        self.known = load_all(from, SocketAddr::load)?;
        self.in_use = Saved::load(from)?;
        self.missing = Saved::load(from)?;
        self.fails = Saved::load(from)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn candidates(name: &Name) -> Vec<String> {
        (0..9)
            .map_while(|n| name.candidate(n))
            .map(|a| a.to_string())
            .collect()
    }

    #[test]
    fn the_address_in_use_comes_first_then_ipv4() {
        let mut name = Name::new("h", 7);
        assert!(candidates(&name).is_empty());
        name.found(&[at("[::1]:0"), at("10.0.0.1:0"), at("10.0.0.2:0")]);
        assert_eq!(candidates(&name), ["10.0.0.1:7", "10.0.0.2:7", "[::1]:7"]);
        assert!(!name.uses(at("[::1]:7")), "it was nowhere before");
        assert_eq!(candidates(&name), ["[::1]:7", "10.0.0.1:7", "10.0.0.2:7"]);
        assert!(!name.uses(at("[::1]:7")));
        assert!(name.uses(at("10.0.0.2:7")));
    }

    #[test]
    fn an_address_is_given_up_after_three_lookups_without_it_in_a_row() {
        let (here, there) = ([at("10.0.0.1:0")], [at("10.0.0.2:0")]);
        let mut name = Name::new("h", 7);
        assert!(!name.found(&here));
        name.uses(at("10.0.0.1:7"));
        for _ in 0..5 {
            assert!(!name.found(&there) && !name.found(&there));
            // A failure is no answer, one with it starts the count again.
            assert!(!name.found(&[]) && name.fails);
            assert!(!name.found(&here));
        }
        assert!(!name.found(&there) && !name.found(&[]) && !name.found(&there));
        assert_eq!(candidates(&name), ["10.0.0.1:7", "10.0.0.2:7"]);
        assert!(name.found(&there));
        assert_eq!(candidates(&name), ["10.0.0.2:7"]);
        assert!(!name.found(&there), "once");
    }

    #[test]
    fn a_failure_keeps_the_last_good_answer() {
        let mut name = Name::new("h", 7);
        assert!(!name.found(&[]) && name.fails);
        name.found(&[at("10.0.0.1:0")]);
        assert!(!name.fails);
        name.found(&[]);
        assert_eq!(candidates(&name), ["10.0.0.1:7"]);
    }
}
