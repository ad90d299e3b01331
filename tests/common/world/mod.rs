//! The whole of magent in one thread: sockets in memory, model servers, and a clock that moves
//! only when the test says so. Simulation, fuzz, eject, reload, limit and budget tests stand on it.
//!
//! ```text
//!  Peer ──▶ Net ──▶ Proxy<End> ──▶ Net ──▶ Link ──▶ Store
//!           edges   one turn               Server: well, silent, hung, gone …
//! ```
//!
//! A test that lets servers answer at once drives it by [`World::step`]; one that gives them a
//! pace or makes them mad does what [`World::turn`] does with its own [`World::serve`].
//!
//! Several magents may run over the same servers: a proxy can be killed, started again and stand
//! still, and its links to one server can be cut.

pub mod net;
pub mod peer;
pub mod server;
pub mod store;
pub mod wire;

pub use net::{Connect, Edges, End, Net};
pub use peer::Peer;
pub use server::{Done, Link, Server, State};
pub use store::{Item, Metadump, SECOND, UNIX};

use super::rng::Rng;
use magent::config::{Action, Address, Config, Endpoint, Prepared};
use magent::net::Blank;
use magent::proxy::{Holdings, Me, Now, Proxy};
use magent::saved::{Loader, Saver};
use magent::work::Work;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// Turns after which a world that still finds something to do is taken to spin.
const TURNS: usize = 200_000;

/// One magent.
pub struct Node {
    /// `None` while it is killed.
    pub proxy: Option<Proxy<End>>,
    config: Config,
    /// Which run of all proxies it is.
    run: u32,
    /// It gets no turns.
    pub stands_still: bool,
}

/// A connect that a proxy wants.
pub struct Wanted {
    pub proxy: usize,
    pub token: usize,
    pub port: u16,
}

/// Everything.
pub struct World {
    pub nodes: Vec<Node>,
    /// Starts of proxies so far.
    runs: u32,
    pub net: net::Shared,
    /// By port.
    pub servers: BTreeMap<u16, Server>,
    /// The servers' ends of links, by connection.
    pub links: BTreeMap<usize, Link>,
    /// Nothing passes between this proxy and this server.
    pub cuts: BTreeSet<(usize, u16)>,
    /// What lookups of hosts find.
    names: BTreeMap<String, Result<Vec<SocketAddr>, String>>,
    /// Lookups so far, those that hang included.
    pub lookups: usize,
    /// The clock, in nanoseconds.
    pub now: u64,
    base: Instant,
    /// Servers, by port, whose events magent is not told, as if thousands of others stood before
    /// them.
    pub unseen: BTreeSet<u16>,
    /// Bytes that a new link takes until its server reads.
    pub link_room: usize,
    /// How long each turn takes.
    pub turn_takes: Duration,
    /// What runs around every turn of magent's own code.
    pub around: fn(&mut dyn FnMut()),
    /// Servers take turns as this says: not all links at once, and not all that is there.
    pub jumble: Option<Rng>,
    /// The proxies' links had numbers below this so far.
    pub link_places: usize,
    scratch: Vec<u8>,
    found: Vec<(usize, Edges)>,
}

/// The server at an address: one of 127.0.0.1 is named by its port, each further one of 127.0.0.n by
/// 1000 more, and one of ::1 by 500 more.
fn server_at(address: SocketAddr) -> u16 {
    match address.ip() {
        IpAddr::V4(ip) => {
            let further = u16::from(ip.octets()[3]).wrapping_sub(1);
            address.port().wrapping_add(further.wrapping_mul(1000))
        }
        IpAddr::V6(_) => address.port() + 500,
    }
}

/// The configuration of a command line that opens nothing; of a magent that leaves no marks.
pub fn options(options: &[&str]) -> Config {
    marking(&[options, &["--alone"]].concat())
}

/// The same of one that does.
pub fn marking(options: &[&str]) -> Config {
    let fixed = ["-D", "-p", "0", "-f", "/nonexistent/socket"];
    let args: Vec<OsString> = fixed.iter().chain(options).map(OsString::from).collect();
    match Config::from_args(&args) {
        Ok(Action::Run(config)) => config,
        other => panic!("{options:?}: {other:?}"),
    }
}

/// The configuration of a file with this text.
pub fn file(text: &str) -> Config {
    file_with(text, &[])
}

/// The same with options beside the file.
pub fn file_with(text: &str, options: &[&str]) -> Config {
    let dir = super::TempDir::new();
    let file = dir.path().join("pools.yml");
    std::fs::write(&file, text).expect("the file");
    let mut args = vec![OsString::from("-D"), "-c".into(), file.into()];
    args.push("--alone".into());
    args.extend(options.iter().map(OsString::from));
    match Config::from_args(&args) {
        Ok(Action::Run(config)) => config,
        other => panic!("{other:?} of\n{text}"),
    }
}

/// What a run of magent is to others: the same bytes whenever a seed is played again.
fn me(run: u32) -> Me {
    let id = u64::from(run).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    Me::new(id, "world", 1000 + run)
}

impl World {
    /// One magent of this configuration, and its servers.
    pub fn of(config: Config) -> World {
        World::several(vec![config], 0)
    }

    /// One magent with these options before servers that hold every key: that of `k100.7` is 100
    /// bytes long.
    pub fn new(opts: &[&str]) -> World {
        let mut world = World::of(options(opts));
        world
            .servers
            .values_mut()
            .for_each(|s| s.store.fills = true);
        world
    }

    /// Several magents. The seed decides what is cut short on choppy connections.
    pub fn several(configs: Vec<Config>, seed: u64) -> World {
        let mut world = World {
            nodes: Vec::new(),
            runs: 0,
            net: Net::new(seed),
            servers: BTreeMap::new(),
            links: BTreeMap::new(),
            cuts: BTreeSet::new(),
            names: BTreeMap::new(),
            lookups: 0,
            now: 0,
            base: Instant::now(),
            unseen: BTreeSet::new(),
            link_room: usize::MAX,
            turn_takes: Duration::ZERO,
            around: |turn| turn(),
            jumble: None,
            link_places: 0,
            scratch: Vec::new(),
            found: Vec::new(),
        };
        for config in configs {
            world.nodes.push(Node {
                proxy: None,
                config,
                run: 0,
                stands_still: false,
            });
            world.start(world.nodes.len() - 1);
        }
        world
    }

    /// Starts a proxy, or starts it again with nothing in its memory.
    pub fn start(&mut self, proxy: usize) {
        let clock = self.clock();
        let node = &mut self.nodes[proxy];
        self.runs += 1;
        node.run = self.runs;
        let me = me(node.run);
        let prepared = Prepared::new(node.config.clone());
        node.proxy = Some(Proxy::prepared(prepared, clock, me));
        self.add_servers(proxy);
    }

    /// A proxy's process ends without a word: all its connections close.
    pub fn kill(&mut self, proxy: usize) {
        self.nodes[proxy].proxy = None;
    }

    /// Another program takes over from a proxy that is quiet: what that one knows is written down, read by a
    /// program that is only tried out, and read by the one that goes on.
    pub fn hand_over(&mut self, proxy: usize) {
        let (clock, net) = (self.clock(), self.net.clone());
        let node = &mut self.nodes[proxy];
        let before = node.proxy.take().expect("it was not killed");
        let mut state = Vec::new();
        let mut to = Saver::new(&mut state);
        before.save(&mut to, &mut |end: &End| {
            net.borrow_mut().keep(end.conn);
            end.conn as u64
        });
        to.finish().expect("memory takes it");
        let start = clock.at - before.age(clock);
        drop(before);
        let prepared = || Prepared::new(node.config.clone());
        let run = node.run;
        let mut from = Loader::new(&state[..], state.len());
        let tried = Proxy::load(prepared(), start, clock, me(run), &mut from, &mut |_, _| {
            Ok(Blank)
        });
        drop(tried.expect("it knows the state"));
        let mut socket = |conn: u64, token| {
            let conn = conn as usize;
            net.borrow_mut().watch_anew(conn, token);
            let net = net.clone();
            Ok(End { net, conn })
        };
        let mut from = Loader::new(&state[..], state.len());
        let next = Proxy::load(prepared(), start, clock, me(run), &mut from, &mut socket);
        node.proxy = Some(next.expect("it knows the state"));
    }

    /// Nothing passes between a proxy and a server any more, or it does again. With `reset` the
    /// links that stand are reset towards magent; what the server has received it still does.
    pub fn cut(&mut self, proxy: usize, port: u16, reset: bool) {
        self.cuts.insert((proxy, port));
        let links = self.links_of(port).into_iter();
        let own: Vec<usize> = links.filter(|c| self.links[c].proxy == proxy).collect();
        for conn in own.into_iter().filter(|_| reset) {
            self.net.borrow_mut().sever(conn);
        }
    }

    /// The end of a cut.
    pub fn mend(&mut self, proxy: usize, port: u16) {
        self.cuts.remove(&(proxy, port));
        for conn in self.links_of(port) {
            if self.net.borrow().conns[conn].connect == Connect::Pending {
                self.connected(conn);
            }
        }
    }

    fn add_servers(&mut self, proxy: usize) {
        for pool in &self.nodes[proxy].config.pools {
            for spec in pool.primaries.iter().chain(&pool.backups) {
                let port = match spec.endpoint {
                    Endpoint::Fixed(Address::Tcp(address)) => server_at(address),
                    Endpoint::Name(_, port) => port,
                    Endpoint::Fixed(Address::Unix(_)) => continue,
                };
                self.servers.entry(port).or_default();
            }
        }
    }

    /// From now on a lookup of this host finds these addresses, without ports; none: it fails.
    pub fn name(&mut self, host: &str, addresses: &[&str]) {
        let all = addresses.iter().map(|a| a.parse().expect("an address"));
        let all: Vec<SocketAddr> = all.map(|ip: IpAddr| SocketAddr::new(ip, 0)).collect();
        let found = match all.is_empty() {
            true => Err("no such host".to_string()),
            false => Ok(all),
        };
        self.names.insert(host.to_string(), found);
    }

    /// Answers lookups of hosts that have a name; those of others hang.
    fn look_up(&mut self) -> bool {
        let (clock, mut answered) = (self.clock(), false);
        for node in &mut self.nodes {
            let Some(proxy) = node.proxy.as_mut().filter(|_| !node.stands_still) else {
                continue;
            };
            while let Some(host) = proxy.next_lookup() {
                self.lookups += 1;
                if let Some(found) = self.names.get(&host) {
                    proxy.resolved(&host, found, clock);
                    answered = true;
                }
            }
        }
        answered
    }

    /// The only proxy of most tests.
    pub fn proxy(&mut self) -> &mut Proxy<End> {
        self.nodes[0].proxy.as_mut().expect("it was not killed")
    }

    /// Proxy 0 takes another configuration over.
    #[track_caller]
    pub fn reload(&mut self, config: Config) {
        self.try_reload(config).expect("it takes it over");
    }

    /// Proxy 0 takes another configuration over, or says why not.
    pub fn try_reload(&mut self, config: Config) -> Result<(), String> {
        let clock = self.clock();
        self.proxy().reload(&config, clock)?;
        self.nodes[0].config = config;
        self.add_servers(0);
        Ok(())
    }

    /// What all proxies hold.
    pub fn holdings(&mut self) -> Holdings {
        let mut all = Holdings::default();
        for proxy in self.nodes.iter_mut().filter_map(|n| n.proxy.as_mut()) {
            let more = proxy.holdings();
            all = Holdings {
                clients: all.clients + more.clients,
                slots: all.slots + more.slots,
                pending: all.pending + more.pending,
                drains: all.drains + more.drains,
                waiters: all.waiters + more.waiters,
                fetches: all.fetches + more.fetches,
                flushes: all.flushes + more.flushes,
                reports: all.reports + more.reports,
                bytes: all.bytes + more.bytes,
                refills: all.refills + more.refills,
                servers_away: all.servers_away + more.servers_away,
                journals: all.journals + more.journals,
            };
        }
        all
    }

    /// What the clock says.
    pub fn clock(&self) -> Now {
        Now {
            at: self.base + Duration::from_nanos(self.now),
            unix: UNIX + self.now / SECOND,
        }
    }

    /// Hands events over, but for those that `held` keeps back.
    pub fn deliver(&mut self, mut held: impl FnMut(usize, Edges) -> bool) {
        let (mut found, links, unseen) =
            (std::mem::take(&mut self.found), &self.links, &self.unseen);
        let nodes = &self.nodes;
        self.net.borrow_mut().edges(&mut found, |c, conn| {
            nodes[c.proxy].stands_still
                || links.get(&conn).is_some_and(|l| unseen.contains(&l.port))
        });
        for (conn, e) in found.drain(..) {
            if held(conn, e) {
                continue;
            }
            let (proxy, token) = {
                let c = &self.net.borrow().conns[conn];
                (c.proxy, c.token)
            };
            if let Some(proxy) = &mut self.nodes[proxy].proxy {
                let readable = e.readable || e.closed;
                (self.around)(&mut || proxy.ready(token, readable, e.writable, e.closed));
            }
        }
        self.found = found;
    }

    /// One turn of each proxy's own.
    pub fn tick(&mut self) {
        let clock = self.clock();
        for node in &mut self.nodes {
            let Some(proxy) = node.proxy.as_mut().filter(|_| !node.stands_still) else {
                continue;
            };
            proxy.count_poll();
            (self.around)(&mut || proxy.tick(clock, Work::counted()));
        }
    }

    /// The next connect that a proxy wants.
    pub fn next_connect(&mut self) -> Option<Wanted> {
        for (proxy, node) in self.nodes.iter_mut().enumerate() {
            let Some(wanted) = node.proxy.as_mut().and_then(Proxy::next_connect) else {
                continue;
            };
            let Address::Tcp(address) = wanted.address else {
                panic!("servers are TCP");
            };
            self.link_places = self.link_places.max((wanted.token & 0xffff_ffff) + 1);
            return Some(Wanted {
                proxy,
                token: wanted.token,
                port: server_at(address),
            });
        }
        None
    }

    /// A connect is refused at once.
    pub fn refuse(&mut self, wanted: &Wanted) {
        let (clock, refused) = (self.clock(), ErrorKind::ConnectionRefused.into());
        if let Some(proxy) = &mut self.nodes[wanted.proxy].proxy {
            proxy.connecting(wanted.token, Err(refused), clock);
        }
    }

    /// A connect is under way, on a link with so much room; [`World::connected`] ends it.
    pub fn connect_link(&mut self, wanted: &Wanted, cap: usize) -> usize {
        let conn = (self.net.borrow_mut()).open(wanted.proxy, wanted.token, cap, Connect::Pending);
        self.links
            .insert(conn, Link::new(wanted.proxy, wanted.port));
        let (clock, net) = (self.clock(), self.net.clone());
        if let Some(proxy) = &mut self.nodes[wanted.proxy].proxy {
            proxy.connecting(wanted.token, Ok(End { net, conn }), clock);
        }
        conn
    }

    /// Opens what the proxies want opened, at once; false if they want nothing.
    pub fn connect_all(&mut self) -> bool {
        let mut opened = false;
        while let Some(wanted) = self.next_connect() {
            opened = true;
            if self.servers[&wanted.port].state == State::Gone {
                self.refuse(&wanted);
            } else {
                let conn = self.connect_link(&wanted, self.link_room);
                self.connected(conn);
            }
        }
        opened
    }

    /// How long the proxies would sleep, in nanoseconds; `None` for ever.
    pub fn wait(&self) -> Option<u64> {
        let clock = self.clock();
        let awake = self.nodes.iter().filter(|n| !n.stands_still);
        let waits = awake.filter_map(|n| n.proxy.as_ref()?.wait(clock));
        waits.min().map(|d| d.as_nanos() as u64)
    }

    /// One turn of the loops and of servers that answer at once; false if there is nothing to do
    /// at this time.
    pub fn turn(&mut self) -> bool {
        let worked = self.work();
        let served = self.serve();
        self.end_turn() || worked || served
    }

    /// What a turn is without the servers: events, the proxies, connects. True if some were opened.
    pub fn work(&mut self) -> bool {
        self.deliver(|_, _| false);
        self.tick();
        let opened = self.connect_all();
        self.look_up() | self.connect_all() | opened
    }

    /// The end of a turn; true if a proxy has work left.
    pub fn end_turn(&mut self) -> bool {
        self.now += self.turn_takes.as_nanos() as u64;
        let clock = self.clock();
        let mut left = false;
        for proxy in self.nodes.iter_mut().filter_map(|n| n.proxy.as_mut()) {
            proxy.end_turn((clock.at, clock.at), clock.at);
            left |= proxy.wait(clock) == Some(Duration::ZERO);
        }
        // Nobody stops a clock: a proxy whose alarm is now has one later.
        left || self.has_events()
    }

    fn has_events(&self) -> bool {
        let (net, links) = (self.net.borrow(), &self.links);
        net.edged().any(|conn| {
            let seen = |l: &Link| !self.unseen.contains(&l.port);
            let c = &net.conns[conn];
            !c.gone && !self.nodes[c.proxy].stands_still && links.get(&conn).is_none_or(seen)
        })
    }

    /// Turns until there is nothing to do at this time.
    #[track_caller]
    pub fn step(&mut self) {
        let turns = (0..TURNS).find(|_| !self.turn());
        assert!(turns.is_some(), "it never comes to rest");
    }

    /// Time passes as for a loop: it wakes at alarms.
    #[track_caller]
    pub fn advance(&mut self, time: Duration) {
        let end = self.now + time.as_nanos() as u64;
        self.step();
        while let Some(wait) = self.wait().filter(|w| self.now + w < end) {
            // A loop's clock is no finer, and an alarm of now must not stop it.
            self.now += wait.max(1000);
            self.step();
        }
        self.now = end.max(self.now);
        self.step();
    }

    /// Time passes, and magent stands still.
    pub fn stand_still(&mut self, time: Duration) {
        self.now += time.as_nanos() as u64;
    }
}
