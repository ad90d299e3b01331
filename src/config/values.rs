//! Single values of options and of the file: numbers, sizes, addresses, servers.

use super::check::is_same;
use super::options::names;
use super::{Address, Endpoint, ServerSpec};
use crate::placement::{Distribution, Hash};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

/// Why a value does not do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Bad {
    /// It is not of its form.
    Value(String),
    /// Well-formed, but this machine says no: a host that does not resolve, a file that is not
    /// there.
    World(String),
}

fn bad<T>(why: impl Into<String>) -> Result<T, Bad> {
    Err(Bad::Value(why.into()))
}

/// Digits and nothing else; `None` also if there are too many of them.
fn digits(text: &str) -> Option<u64> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

pub(super) fn number(text: &str, range: RangeInclusive<u64>) -> Result<u64, Bad> {
    match digits(text) {
        Some(n) if range.contains(&n) => Ok(n),
        _ => bad(format!(
            "must be a number, {} to {}",
            range.start(),
            range.end()
        )),
    }
}

/// A number of bytes, plain or with k, m or g behind it.
pub(super) fn size(text: &str, range: RangeInclusive<usize>) -> Result<usize, Bad> {
    let (number, shift) = match text.bytes().last().map(|b| b.to_ascii_lowercase()) {
        Some(b'k') => (&text[..text.len() - 1], 10),
        Some(b'm') => (&text[..text.len() - 1], 20),
        Some(b'g') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let bytes = digits(number).and_then(|n| n.checked_mul(1 << shift));
    match bytes.and_then(|n| usize::try_from(n).ok()) {
        Some(n) if range.contains(&n) => Ok(n),
        _ => bad(format!(
            "must be a size, {} to {}",
            show_size(*range.start()),
            show_size(*range.end())
        )),
    }
}

/// A size as it would be typed.
pub(super) fn show_size(bytes: usize) -> String {
    for (shift, suffix) in [(30, "g"), (20, "m"), (10, "k")] {
        if bytes != 0 && bytes.trailing_zeros() >= shift {
            return format!("{}{suffix}", bytes >> shift);
        }
    }
    bytes.to_string()
}

pub(super) fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub(super) fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Seconds where 0 means never.
pub(super) fn some_seconds(n: u64) -> Option<Duration> {
    (n > 0).then(|| seconds(n))
}

/// An octal file mode.
pub(super) fn mode(text: &str) -> Result<u32, Bad> {
    let octal = digits(text).and_then(|_| u32::from_str_radix(text, 8).ok());
    match octal {
        Some(mode) if mode <= 0o777 => Ok(mode),
        _ => bad("must be an octal mode, 0 to 0777"),
    }
}

pub(super) fn hash(text: &str) -> Result<Hash, Bad> {
    match Hash::named(text) {
        Some(hash) => Ok(hash),
        None => bad(format!(
            "must be one of {}",
            names(Hash::all().map(Hash::name))
        )),
    }
}

pub(super) fn distribution(text: &str) -> Result<Distribution, Bad> {
    let all = || names(Distribution::all().map(Distribution::name));
    match Distribution::named(text) {
        Some(distribution) => Ok(distribution),
        None => bad(format!("must be one of {}", all())),
    }
}

pub(super) fn hash_tag(text: &str) -> Result<(u8, u8), Bad> {
    match text.as_bytes() {
        &[open, close] => Ok((open, close)),
        _ => bad("must be two characters"),
    }
}

fn port(text: &str) -> Result<u16, Bad> {
    match digits(text) {
        Some(n @ 1..=65535) => Ok(n as u16),
        _ => bad("port must be 1 to 65535"),
    }
}

/// twemproxy's bound, which nobody reaches.
const MAX_WEIGHT: u64 = i32::MAX as u64;

fn weight(text: &str) -> Result<u32, Bad> {
    match digits(text) {
        Some(n @ 1..=MAX_WEIGHT) => Ok(n as u32),
        _ => bad(format!("weight must be 1 to {MAX_WEIGHT}")),
    }
}

/// The port of a server that is given without one, and the one that twemproxy leaves out of
/// server names.
const PORT: u16 = 11211;

/// A server as it was written, before its distribution is known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Written {
    /// The host as written, brackets included, or the path.
    pub host: String,
    /// `None` for a path.
    port: Option<(u16, String)>,
    /// At least 1.
    pub weight: u32,
    /// twemproxy's `[name]`.
    label: Option<String>,
}

impl Written {
    /// The server, with the name that `distribution` hashes.
    pub fn spec(&self, distribution: Distribution) -> Result<ServerSpec, Bad> {
        let Some((port, port_text)) = &self.port else {
            return Ok(ServerSpec {
                endpoint: Endpoint::Fixed(Address::Unix(PathBuf::from(&self.host))),
                name: self.host.clone(),
                hash_name: self.label.clone().unwrap_or_else(|| {
                    let end = if distribution.is_twemproxy() {
                        ":"
                    } else {
                        "-0"
                    };
                    format!("{}{end}", self.host)
                }),
                weight: self.weight,
            });
        };
        let implied = || match distribution.is_twemproxy() {
            true if *port == PORT => self.host.clone(),
            true => format!("{}:{port_text}", self.host),
            false => format!("{}-{port}", self.host),
        };
        let bare_v6 = self.host.contains(':') && !self.host.starts_with('[');
        let name = match bare_v6 {
            true => format!("[{}]:{port}", self.host),
            false => format!("{}:{port}", self.host),
        };
        Ok(ServerSpec {
            endpoint: endpoint(&self.host, *port)?,
            name,
            hash_name: self.label.clone().unwrap_or_else(implied),
            weight: self.weight,
        })
    }
}

/// A server of the command line: `HOST[:PORT][:WEIGHT]`, `[V6][:PORT][:WEIGHT]`, `/PATH[:WEIGHT]`.
pub(super) fn server(text: &str, distribution: Distribution) -> Result<ServerSpec, Bad> {
    let mut written = Written {
        host: text.to_string(),
        port: None,
        weight: 1,
        label: None,
    };
    if text.starts_with('/') {
        if let Some((path, end)) = text.rsplit_once(':') {
            written.host = path.to_string();
            written.weight = weight(end)?;
        }
        return written.spec(distribution);
    }
    let (host, rest) = match text.find(']') {
        Some(end) if text.starts_with('[') => text.split_at(end + 1),
        None if text.starts_with('[') => return bad("the closing bracket is missing"),
        _ => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    if let Some(forms) = bracketed(text) {
        return bad(format!("an IPv6 address is written in brackets: {forms}"));
    }
    let mut parts = rest.split(':');
    if parts.next() != Some("") {
        return bad("must be HOST[:PORT][:WEIGHT]");
    }
    written.host = host.to_string();
    written.port = Some(match parts.next() {
        Some(text) => (port(text)?, text.to_string()),
        None => (PORT, PORT.to_string()),
    });
    if let Some(text) = parts.next() {
        written.weight = weight(text)?;
    }
    if parts.next().is_some() {
        return bad("must be HOST[:PORT][:WEIGHT]; an IPv6 address is written in brackets");
    }
    written.spec(distribution)
}

/// What may be meant by an IPv6 address without brackets; `None` if it is none.
fn bracketed(text: &str) -> Option<String> {
    let is_v6 = |host: &str| host.parse::<Ipv6Addr>().is_ok();
    let parts = |n| text.rsplitn(n, ':').collect::<Vec<_>>();
    let one = match parts(2)[..] {
        [port, host] if is_v6(host) && digits(port).is_some() => Some(format!("[{host}]:{port}")),
        _ => None,
    };
    let whole = is_v6(text).then(|| format!("[{text}]:{PORT}"));
    match (one, whole, &parts(3)[..]) {
        (Some(one), Some(whole), _) => Some(format!("{one} or {whole}")),
        (None, None, [weight, port, host]) if is_v6(host) => {
            Some(format!("[{host}]:{port}:{weight}"))
        }
        (one, whole, _) => one.or(whole),
    }
}

/// A server of the file: `host:port:weight [name]` or `/path:weight [name]`, taken apart from its
/// end as twemproxy does, so that an IPv6 address needs no brackets.
pub(super) fn file_server(text: &str) -> Result<Written, Bad> {
    const FORM: &str = "must be host:port:weight [name] or /path:weight [name]";
    let (place, label) = match text.rsplit_once(' ') {
        Some((place, label)) => (place, Some(label.to_string())),
        None => (text, None),
    };
    if place.contains(' ') {
        return bad(FORM);
    }
    let Some((place, weight_text)) = place.rsplit_once(':') else {
        return bad(FORM);
    };
    let mut written = Written {
        host: place.to_string(),
        port: None,
        weight: 0,
        label,
    };
    if !place.starts_with('/') {
        let Some((host, port_text)) = place.rsplit_once(':') else {
            return bad(FORM);
        };
        written.host = host.to_string();
        written.port = Some((port(port_text)?, port_text.to_string()));
    }
    written.weight = weight(weight_text)?;
    Ok(written)
}

/// A listener of the file: `host:port`, or `/path` with an octal mode behind it.
pub(super) fn file_listen(text: &str) -> Result<(Address, Option<u32>), Bad> {
    if text.starts_with('/') {
        return match text.rsplit_once(' ') {
            Some((path, end)) => Ok((Address::Unix(PathBuf::from(path)), Some(mode(end)?))),
            None => Ok((Address::Unix(PathBuf::from(text)), None)),
        };
    }
    match host_and_port(text) {
        Err(Bad::Value(_)) if !text.contains(':') => {
            bad("must be host:port, [v6]:port, or /path.sock with an octal mode")
        }
        address => Ok((address?, None)),
    }
}

/// An address to listen at: `host:port` or `[v6]:port`.
pub(super) fn host_and_port(text: &str) -> Result<Address, Bad> {
    let Some((host, end)) = text.rsplit_once(':') else {
        return bad("must be ADDR:PORT, [V6]:PORT, or a path with a slash in it");
    };
    Ok(Address::Tcp(resolve(host, port(end)?)?))
}

/// The address of `-l`: IPv4 or IPv6, with or without brackets, or a name.
pub(super) fn listen_host(host: &str, port: u16) -> Result<Address, Bad> {
    match resolve(host, port) {
        Err(_) if host.contains(':') => bad("must be an address without a port; the port is -p"),
        resolved => resolved.map(Address::Tcp),
    }
}

/// A host without brackets.
fn bare(host: &str) -> Result<&str, Bad> {
    let inner = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    match inner.unwrap_or(host) {
        "" => bad("the host is missing"),
        bare => Ok(bare),
    }
}

/// Where a server is: at an address, or at a name that is not looked up here.
fn endpoint(host: &str, port: u16) -> Result<Endpoint, Bad> {
    let bare = bare(host)?;
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Ok(Endpoint::Fixed(Address::Tcp(SocketAddr::new(ip, port))));
    }
    // An address of a link has its interface behind a percent sign.
    let may_be = |c: char| c.is_ascii_alphanumeric() || "-_.:%".contains(c);
    match bare.chars().all(may_be) && bare.len() < MAX_HOST {
        true => Ok(Endpoint::Name(bare.to_string(), port)),
        false => bad(format!("{bare} is no host name")),
    }
}

/// Host names are shorter, in bytes: name service's bound.
const MAX_HOST: usize = 256;

/// The addresses of a host, without ports. Takes as long as name service likes.
///
/// # Errors
/// What name service says, or that there is none.
pub fn look_up(host: &str) -> io::Result<Vec<SocketAddr>> {
    let all: Vec<SocketAddr> = (host, 0).to_socket_addrs()?.collect();
    match all.is_empty() {
        true => Err(io::Error::other("no address")),
        false => Ok(all),
    }
}

/// The first address of a host to listen on; an IPv4 one if it has both, as magent 0.6 did.
fn resolve(host: &str, port: u16) -> Result<SocketAddr, Bad> {
    let bare = bare(host)?;
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, port));
    }
    let all = look_up(bare).map_err(|e| Bad::World(format!("cannot resolve {bare}: {e}")))?;
    let mut best = *all.iter().find(|a| a.is_ipv4()).unwrap_or(&all[0]);
    best.set_port(port);
    Ok(best)
}

/// A server that stands twice in a farm.
pub(super) fn address_twice(servers: &[ServerSpec]) -> Option<&ServerSpec> {
    let earlier = |i: usize| {
        let mut before = servers[..i].iter();
        before.any(|s| is_same(&s.endpoint, &servers[i].endpoint))
    };
    (0..servers.len())
        .find(|&i| earlier(i))
        .map(|i| &servers[i])
}
