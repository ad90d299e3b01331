//! HTTP at the door.

use super::common::magent::free_port;
use super::common::{Client, Magent, wait_for};
use std::collections::BTreeMap;

/// An answer: its status, its fields, its body.
pub struct Answer {
    pub status: u16,
    pub fields: BTreeMap<String, String>,
    pub body: String,
}

/// One magent with a door on a port, and that port.
fn with_port() -> (Magent, u16) {
    let port = free_port();
    let door = format!("127.0.0.1:{port}");
    let options = ["--admin", &door, "--admin", "DIR/admin"];
    (Magent::farm(&["127.0.0.1:1"], &[], &options), port)
}

/// Reads one answer to a request that was sent.
#[track_caller]
pub fn answer(client: &mut Client, has_body: bool) -> Answer {
    let head = String::from_utf8(client.read_until(b"\r\n\r\n")).expect("text");
    let (first, rest) = head.split_once("\r\n").expect("a first line");
    let status = first
        .strip_prefix("HTTP/1.1 ")
        .and_then(|s| s[..3].parse().ok());
    let fields: BTreeMap<String, String> = rest
        .lines()
        .filter_map(|l| l.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_string()))
        .collect();
    let len = fields.get("content-length").and_then(|n| n.parse().ok());
    let is_chunked = fields.get("transfer-encoding").map(String::as_str) == Some("chunked");
    let body = match (len, is_chunked) {
        _ if !has_body => Vec::new(),
        (Some(len), false) => client.read_exact(len),
        (None, true) => chunks(client),
        (None, false) => client.read_to_end(),
        (Some(_), true) => panic!("two lengths: {head}"),
    };
    let body = String::from_utf8(body).expect("text");
    Answer {
        status: status.unwrap_or_else(|| panic!("{first}")),
        fields,
        body,
    }
}

/// A body in chunks.
#[track_caller]
fn chunks(client: &mut Client) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let line = client.read_line();
        let len = std::str::from_utf8(&line).expect("text").trim_end();
        let len = usize::from_str_radix(len, 16).expect("a length");
        body.extend(client.read_exact(len));
        client.expect("\r\n");
        if len == 0 {
            return body;
        }
    }
}

/// A GET on a connection that stays.
#[track_caller]
pub fn get(client: &mut Client, path: &str) -> Answer {
    client.send(format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"));
    answer(client, true)
}

#[test]
fn requests_follow_each_other_on_one_connection() {
    let (magent, port) = with_port();
    for mut client in [Client::tcp(port), magent.operator()] {
        for _ in 0..3 {
            let all = get(&mut client, "/healthz");
            assert_eq!((all.status, all.body.as_str()), (200, "ok\n"));
            assert_eq!(all.fields["connection"], "keep-alive");
        }
        let all = get(&mut client, "/no/such/page?query");
        assert_eq!(all.status, 404);
        client.send("HEAD /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let all = answer(&mut client, false);
        assert_eq!(
            (all.status, all.fields["content-length"].as_str()),
            (200, "3")
        );
        // Several at once, and the last in pieces.
        let one = "GET /healthz HTTP/1.1\r\nHost: [::1]:80\r\n\r\n";
        client.send(one.repeat(20) + "GET /healthz HT");
        client.send("TP/1.0\r\n\r\n");
        for _ in 0..20 {
            assert_eq!(answer(&mut client, true).status, 200);
        }
        let last = answer(&mut client, true);
        assert_eq!(
            (last.status, last.fields["connection"].as_str()),
            (200, "close")
        );
        assert_eq!(client.read_to_end(), b"");
    }
}

#[test]
fn what_a_browser_may_be_told_to_send_is_refused() {
    let (magent, port) = with_port();
    for (head, status) in [
        (
            "POST /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 8\r\n\r\nkill 0\r\n",
            405,
        ),
        ("DELETE / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 405),
        ("stats reset HTTP/1.1\r\n\r\nstats reset\r\n", 405),
        ("GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403),
        (
            "GET / HTTP/1.1\r\nHost: evil.example:80\r\n\r\nstats reset\r\n",
            403,
        ),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        (
            "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 13\r\n\r\nstats reset\r\n",
            400,
        ),
        ("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nno colon\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: \u{e9}\r\n\r\n", 403),
    ] {
        let mut client = Client::tcp(port);
        client.send(head);
        let all = answer(&mut client, true);
        assert_eq!(all.status, status, "{head}");
        assert_eq!(all.fields["connection"], "close");
        assert_eq!(client.read_to_end(), b"", "{head}");
    }
    let mut raw = b"GET / HTTP/1.1\r\nHost: ".to_vec();
    raw.extend([0xff, 0xfe, b'\r', b'\n', b'\r', b'\n']);
    let mut client = Client::tcp(port);
    client.send(raw);
    assert_eq!(answer(&mut client, true).status, 400);
    let log = magent.log();
    assert!(!log.contains("warn operator "), "nothing was done: {log}");
}

#[test]
fn who_spoke_http_gives_no_commands() {
    let (magent, port) = with_port();
    let mut client = Client::tcp(port);
    assert_eq!(get(&mut client, "/healthz").status, 200);
    client.send("kill 0\r\n\r\n");
    assert_eq!(answer(&mut client, true).status, 400);
    assert_eq!(client.read_to_end(), b"");
    assert!(!magent.log().contains("warn operator "));
}

/// Such a head has no end that could be waited for.
#[test]
fn a_head_of_more_than_4_kib_is_refused() {
    let (_magent, port) = with_port();
    let mut client = Client::tcp(port);
    let line = "X-Field: value\r\n".repeat(300);
    client.send(format!(
        "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n{line}\r\n"
    ));
    assert_eq!(answer(&mut client, true).status, 431);
    assert_eq!(client.read_to_end(), b"");
    // One that just fits.
    let line = format!("X-Field: {}\r\n", "v".repeat(4000));
    let mut client = Client::tcp(port);
    client.send(format!(
        "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n{line}\r\n"
    ));
    assert_eq!(answer(&mut client, true).status, 200);
}

#[test]
fn health_is_told_until_the_end() {
    let hung = super::common::Fake::start(|link| link.silence());
    let options = [&super::DOOR[..], &["--timeout", "4000"]].concat();
    let mut magent = Magent::farm(&[&hung.name], &[], &options);
    let mut client = magent.client();
    client.send("get a\r\n");
    let mut operator = magent.operator();
    assert_eq!(get(&mut operator, "/healthz").status, 200);
    let (status, ()) = magent.terminate_while(|| {
        wait_for("it to say that it stops", || {
            let all = get(&mut operator, "/healthz");
            (all.status == 503 && all.body == "stopping\n").then_some(())
        });
    });
    assert!(status.success());
}
