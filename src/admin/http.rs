//! HTTP/1.1, as much of it as monitors and browsers need: GET and HEAD, nothing that changes anything.
//!
//! A web page may make a browser send requests here, so over TCP a `Host` must be an address or
//! `localhost`: a name that somebody else's name service has pointed here is refused.

use crate::buffer::Queue;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv6Addr};

/// Longest head of a request in bytes, first line included.
pub const MAX_HEAD: usize = 4096;

/// Sent with every answer: nothing of it is kept, framed, or taken for something else.
const HEADERS: &str = "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n\
     X-Frame-Options: DENY\r\nCross-Origin-Resource-Policy: same-origin\r\n";

/// True for the first line of an HTTP request, whatever its first word.
pub fn is_first_line(line: &[u8]) -> bool {
    let line = line.trim_ascii_end();
    let version = line.len().checked_sub(1).map(|at| line.split_at(at));
    version.is_some_and(|(head, digit)| head.ends_with(b" HTTP/1.") && digit[0].is_ascii_digit())
}

/// How long the head at the front of `input` is, if it is there whole.
pub fn head_len(input: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let line = input[at..].iter().position(|b| *b == b'\n')?;
        let is_empty = matches!(&input[at..at + line], b"" | b"\r");
        at += line + 1;
        if is_empty {
            return Some(at);
        }
    }
}

/// One request.
#[derive(PartialEq, Eq, Debug)]
pub struct Request<'a> {
    /// What is asked for, without what follows a `?`.
    pub path: &'a str,
    /// What follows it.
    pub query: &'a str,
    /// The answer's head only.
    pub is_head: bool,
    /// Another request may follow.
    pub stays: bool,
    /// An answer may come in chunks.
    pub knows_chunks: bool,
    /// It would rather have OpenMetrics.
    pub likes_openmetrics: bool,
}

impl Request<'_> {
    /// What a field of the query says, decoded.
    pub fn field(&self, name: &str) -> Option<Vec<u8>> {
        let fields = self.query.split('&').filter_map(|f| f.split_once('='));
        let value = fields.filter(|(n, _)| *n == name).map(|(_, v)| v).next()?;
        let mut out = Vec::with_capacity(value.len());
        let mut bytes = value.bytes();
        while let Some(byte) = bytes.next() {
            let decoded = match byte {
                b'+' => b' ',
                b'%' => {
                    let mut digit = || char::from(bytes.next()?).to_digit(16);
                    (digit()? * 16 + digit()?) as u8
                }
                plain => plain,
            };
            out.push(decoded);
        }
        Some(out)
    }
}

/// Why a request is not answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// It is malformed, or has a body.
    BadRequest,
    /// Its `Host` is a name.
    Forbidden,
    /// There is nothing of this path.
    NotFound,
    /// It is neither GET nor HEAD.
    NotAllowed,
    /// Its head is longer than [`MAX_HEAD`].
    TooLong,
}

impl Refusal {
    fn status(self) -> &'static str {
        match self {
            Refusal::BadRequest => "400 Bad Request",
            Refusal::Forbidden => "403 Forbidden",
            Refusal::NotFound => "404 Not Found",
            Refusal::NotAllowed => "405 Method Not Allowed",
            Refusal::TooLong => "431 Request Header Fields Too Large",
        }
    }
}

/// Reads a whole head.
pub fn parse(head: &[u8], is_tcp: bool) -> Result<Request<'_>, Refusal> {
    let text = std::str::from_utf8(head).map_err(|_| Refusal::BadRequest)?;
    let mut lines = text.lines();
    let words: Vec<&str> = lines.next().unwrap_or("").split(' ').collect();
    let [method, target, version] = words[..] else {
        return Err(Refusal::BadRequest);
    };
    let is_head = match method {
        "GET" => false,
        "HEAD" => true,
        _ => return Err(Refusal::NotAllowed),
    };
    let knows_chunks = version != "HTTP/1.0";
    let (mut hosts, mut stays, mut likes_openmetrics) = (Vec::new(), knows_chunks, false);
    for line in lines.filter(|line| !line.is_empty()) {
        // A line that goes on with a space would hide what is in it.
        let field = line
            .split_once(':')
            .filter(|_| !line.starts_with([' ', '\t']));
        let (name, value) = field.ok_or(Refusal::BadRequest)?;
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "host" => hosts.push(value),
            "connection" if value.eq_ignore_ascii_case("close") => stays = false,
            "connection" if value.eq_ignore_ascii_case("keep-alive") => stays = true,
            "accept" => likes_openmetrics |= value.contains("application/openmetrics-text"),
            "content-length" if value == "0" => {}
            "content-length" | "transfer-encoding" => return Err(Refusal::BadRequest),
            _ => {}
        }
    }
    match hosts[..] {
        [] if !knows_chunks => {}
        [host] if !is_tcp || is_own(host) => {}
        [_] => return Err(Refusal::Forbidden),
        _ => return Err(Refusal::BadRequest),
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    Ok(Request {
        path,
        query,
        is_head,
        stays,
        knows_chunks,
        likes_openmetrics,
    })
}

/// True for a host that nobody else can point here: an address, or `localhost`; with a port or not.
fn is_own(host: &str) -> bool {
    let is_port = |text: &str| text.parse::<u16>().is_ok();
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split_once(']').is_some_and(|(ip, end)| {
            let is_end = end.is_empty() || end.strip_prefix(':').is_some_and(is_port);
            ip.parse::<Ipv6Addr>().is_ok() && is_end
        });
    }
    let name = match host.split_once(':') {
        Some((name, port)) if is_port(port) => name,
        Some(_) => return false,
        None => host,
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

/// The head of an answer whose length is not known yet: its body comes in chunks if the other side knows
/// them, else the end of the connection is its end. `more`: further lines of the head.
pub fn write_head(kind: &str, more: &str, request: &Request<'_>, out: &mut Queue) {
    let length = match request.knows_chunks {
        true => "Transfer-Encoding: chunked\r\n",
        false => "",
    };
    let stays = request.stays && request.knows_chunks;
    put_head("200 OK", kind, &format!("{length}{more}"), stays, out);
}

fn put_head(status: &str, kind: &str, lines: &str, stays: bool, out: &mut Queue) {
    let mut head = String::new();
    let _ = write!(
        head,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{lines}{HEADERS}Connection: {}\r\n\r\n",
        if stays { "keep-alive" } else { "close" },
    );
    out.push_slice(head.as_bytes());
}

/// An answer that is there whole.
pub struct Answer<'a> {
    /// Number and words.
    pub status: &'a str,
    /// Its media type.
    pub kind: &'a str,
    /// What is sent but for HEAD.
    pub body: &'a [u8],
}

impl Answer<'_> {
    /// Appends it.
    pub fn write(&self, request: &Request<'_>, out: &mut Queue) {
        let length = format!("Content-Length: {}\r\n", self.body.len());
        put_head(self.status, self.kind, &length, request.stays, out);
        if !request.is_head {
            out.push_slice(self.body);
        }
    }
}

/// Plain text.
pub const TEXT: &str = "text/plain; charset=utf-8";

/// Refuses a request; but for one for what is not there, the connection is to be closed behind that.
pub fn refuse(why: Refusal, request: Option<&Request<'_>>, out: &mut Queue) {
    let nothing = Request {
        path: "",
        query: "",
        is_head: false,
        stays: false,
        knows_chunks: true,
        likes_openmetrics: false,
    };
    let body = format!("{}\n", why.status());
    let status = match why {
        Refusal::NotAllowed => format!("{}\r\nAllow: GET, HEAD", why.status()),
        _ => why.status().to_string(),
    };
    let answer = Answer {
        status: &status,
        kind: TEXT,
        body: body.as_bytes(),
    };
    answer.write(request.unwrap_or(&nothing), out);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_lines_of_http() {
        for line in ["GET / HTTP/1.1\r", "x HTTP/1.0", "POST /a b HTTP/1.9\r"] {
            assert!(is_first_line(line.as_bytes()), "{line}");
        }
        for line in [
            "",
            "stats",
            "GET / HTTP/2.0",
            "GET /",
            "HTTP/1.",
            "HTTP/1.1",
        ] {
            assert!(!is_first_line(line.as_bytes()), "{line}");
        }
    }

    #[test]
    fn heads_end_with_an_empty_line() {
        assert_eq!(head_len(b"GET / HTTP/1.1\r\nHost: a\r\n"), None);
        assert_eq!(head_len(b"GET / HTTP/1.1\r\n\r\nmore"), Some(18));
        assert_eq!(head_len(b"GET / HTTP/1.0\n\n"), Some(16));
        assert_eq!(head_len(b""), None);
    }

    fn asked(head: &str) -> Result<(&str, bool, bool), Refusal> {
        parse(head.as_bytes(), true).map(|r| (r.path, r.is_head, r.stays))
    }

    #[test]
    fn connections_stay_as_the_version_says() {
        let host = "Host: 127.0.0.1:8080\r\n";
        for (head, stays) in [
            (format!("GET /a?b=c HTTP/1.1\r\n{host}\r\n"), true),
            (
                format!("GET /a HTTP/1.1\r\n{host}Connection: close\r\n\r\n"),
                false,
            ),
            ("GET /a HTTP/1.0\r\n\r\n".into(), false),
            (
                "GET /a HTTP/1.0\r\nconnection: Keep-Alive\r\n\r\n".into(),
                true,
            ),
        ] {
            assert_eq!(asked(&head), Ok(("/a", false, stays)), "{head}");
        }
        let head = format!("HEAD / HTTP/1.1\r\n{host}\r\n");
        assert_eq!(asked(&head), Ok(("/", true, true)));
    }

    #[test]
    fn fields_are_decoded() {
        let head = "GET /a?x=1&key=a%20b+%c3%BC%00&y HTTP/1.0\r\n\r\n";
        let request = parse(head.as_bytes(), true).expect("a request");
        let field = |name: &str| request.field(name);
        assert_eq!(field("key").as_deref(), Some("a b ü\0".as_bytes()));
        assert_eq!(
            (field("x"), field("y"), field("z")),
            (Some(b"1".to_vec()), None, None)
        );
        for wrong in ["%", "%4", "%4x", "%+1"] {
            let head = format!("GET /a?key={wrong} HTTP/1.0\r\n\r\n");
            let request = parse(head.as_bytes(), true).expect("a request");
            assert_eq!(request.field("key"), None, "{wrong}");
        }
    }

    #[test]
    fn a_host_is_an_address_or_localhost() {
        for host in [
            "localhost",
            "LOCALHOST:80",
            "10.0.0.1",
            "127.0.0.1:1",
            "[::1]",
            "[::1]:80",
        ] {
            assert!(is_own(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "evil.example:80",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "::1",
            "[::1",
            "[evil]",
            "127.0.0.1:",
            "127.0.0.1:x",
            "127.0.0.1:80:80",
            "1",
            "0x7f.1",
        ] {
            assert!(!is_own(host), "{host}");
        }
    }

    #[test]
    fn what_is_wrong_is_refused() {
        let host = "Host: localhost\r\n";
        for (head, why) in [
            (
                format!("POST / HTTP/1.1\r\n{host}\r\n"),
                Refusal::NotAllowed,
            ),
            (
                format!("stats reset HTTP/1.1\r\n{host}\r\n"),
                Refusal::NotAllowed,
            ),
            ("GET / HTTP/1.1\r\n\r\n".into(), Refusal::BadRequest),
            (
                format!("GET / HTTP/1.1\r\n{host}{host}\r\n"),
                Refusal::BadRequest,
            ),
            (
                format!("GET / HTTP/1.1\r\n{host}nonsense\r\n\r\n"),
                Refusal::BadRequest,
            ),
            (
                format!("GET / HTTP/1.1\r\n{host} Folded: x\r\n\r\n"),
                Refusal::BadRequest,
            ),
            (
                format!("GET / HTTP/1.1\r\n{host}Content-Length: 1\r\n\r\n"),
                Refusal::BadRequest,
            ),
            (
                format!("GET / HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n"),
                Refusal::BadRequest,
            ),
            (
                "GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n".into(),
                Refusal::Forbidden,
            ),
            (
                "GET  / HTTP/1.1\r\nHost: localhost\r\n\r\n".into(),
                Refusal::BadRequest,
            ),
        ] {
            assert_eq!(asked(&head), Err(why), "{head}");
        }
        // A socket of mode 0600 is no place that a browser can be sent to.
        let head = b"GET / HTTP/1.1\r\nHost: any.name\r\n\r\n";
        assert!(parse(head, false).is_ok());
    }
}
