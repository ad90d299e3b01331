//! What two answers to the same bytes may differ in, taken out of them: cas numbers (their
//! order of appearance is kept), times, the prefix of the keys, and, where several
//! servers answer, the order of one multi-get's values.

use crate::rows::{PREFIX, base64};

/// Counts cas tokens from 1 in the order in which they appear.
#[derive(Default)]
pub struct Cas(pub Vec<u64>);

impl Cas {
    /// The stand-in of a token; 0 stays 0.
    fn number(&mut self, token: u64) -> usize {
        if token == 0 {
            return 0;
        }
        let known = self.0.iter().position(|t| *t == token);
        known.unwrap_or_else(|| {
            self.0.push(token);
            self.0.len() - 1
        }) + 1
    }
}

/// The comparable form of a text answer.
pub fn text(answer: &[u8], prefix: [u8; PREFIX], sort: bool, cas: &mut Cas) -> Vec<u8> {
    let answer = replace(
        &replace(answer, &prefix, b"@@@@@@"),
        &base64(prefix),
        b"~~~~~~~~",
    );
    let mut out = Vec::new();
    // The values of the get that is being answered.
    let mut values: Vec<(Vec<u8>, Option<u64>, Vec<u8>)> = Vec::new();
    let mut rest = &answer[..];
    while !rest.is_empty() {
        let line = take_line(&mut rest);
        let words = words(line);
        let first = words.first().map_or(&b""[..], |w| w);
        if first == b"VALUE" {
            let data = take(&mut rest, number(words.get(3)).map_or(0, |n| n + 2));
            let token = words.get(4).and_then(|w| number(Some(w)));
            values.push((
                words[..words.len().min(4)].join(&b' '),
                token.map(|t| t as u64),
                data.to_vec(),
            ));
            continue;
        }
        if sort {
            values.sort();
        }
        for (head, token, data) in values.drain(..) {
            out.extend(head);
            if let Some(token) = token {
                out.extend(format!(" cas{}", cas.number(token)).bytes());
            }
            out.extend([b"\r\n", &data[..]].concat());
        }
        match first {
            b"VA" => {
                meta_line(line, cas, &mut out);
                out.extend(take(&mut rest, number(words.get(1)).map_or(0, |n| n + 2)));
            }
            b"HD" | b"ME" => meta_line(line, cas, &mut out),
            _ => out.extend(line),
        }
    }
    // An answer that was cut in the middle.
    values
        .into_iter()
        .for_each(|(head, _, data)| out.extend([&head[..], b"\r\n", &data].concat()));
    out
}

/// Replaces the numbers of a meta answer's flags.
fn meta_line(line: &[u8], cas: &mut Cas, out: &mut Vec<u8>) {
    for (i, word) in words(line).iter().enumerate() {
        if i > 0 {
            out.push(b' ');
        }
        match word {
            [b'c', token @ ..] if number(Some(token)).is_some() => {
                let token = number(Some(token)).unwrap_or(0) as u64;
                out.extend(format!("cas{}", cas.number(token)).bytes());
            }
            [flag @ (b't' | b'l'), time @ ..] if number(Some(time)).is_some() => {
                out.extend([*flag, b'N']);
            }
            word => match word
                .iter()
                .position(|&b| b == b'=')
                .map(|i| word.split_at(i + 1))
            {
                Some((b"cas=", token)) => {
                    let token = number(Some(token)).unwrap_or(0) as u64;
                    out.extend(format!("cas={}", cas.number(token)).bytes());
                }
                Some((name @ (b"la=" | b"exp="), value)) if value != b"-1" => {
                    out.extend([name, b"N"].concat());
                }
                _ => out.extend(*word),
            },
        }
    }
    out.extend(if line.ends_with(b"\r\n") {
        &b"\r\n"[..]
    } else {
        b""
    });
}

/// The comparable form of a binary answer.
pub fn binary(answer: &[u8], prefix: [u8; PREFIX], cas: &mut Cas) -> Vec<u8> {
    let answer = replace(answer, &prefix, b"@@@@@@");
    let mut out = Vec::new();
    let mut rest = &answer[..];
    while rest.len() >= 24 && rest[0] == 0x81 {
        let mut head = take(&mut rest, 24).to_vec();
        let len = u32::from_be_bytes([head[8], head[9], head[10], head[11]]);
        let body = take(&mut rest, len as usize);
        let mut token = [0; 8];
        token.copy_from_slice(&head[16..24]);
        let number = cas.number(u64::from_be_bytes(token)) as u64;
        head[16..24].copy_from_slice(&number.to_be_bytes());
        out.extend(head);
        out.extend(body);
    }
    out.extend(rest);
    out
}

fn replace(mut bytes: &[u8], what: &[u8], with: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    while let Some(i) = bytes.iter().position(|b| *b == what[0]) {
        out.extend_from_slice(&bytes[..i]);
        bytes = &bytes[i..];
        let found = bytes.starts_with(what);
        out.extend_from_slice(if found { with } else { &bytes[..1] });
        bytes = &bytes[if found { what.len() } else { 1 }..];
    }
    out.extend_from_slice(bytes);
    out
}

fn take<'a>(rest: &mut &'a [u8], n: usize) -> &'a [u8] {
    let (head, tail) = rest.split_at(n.min(rest.len()));
    *rest = tail;
    head
}

fn take_line<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let end = rest
        .iter()
        .position(|&b| b == b'\n')
        .map_or(rest.len(), |i| i + 1);
    take(rest, end)
}

fn words(line: &[u8]) -> Vec<&[u8]> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r")
        .unwrap_or(line)
        .split(|&b| b == b' ')
        .collect()
}

fn number(word: Option<impl AsRef<[u8]>>) -> Option<usize> {
    std::str::from_utf8(word?.as_ref()).ok()?.parse().ok()
}

#[test]
fn what_may_differ_is_gone() {
    let mut cas = Cas::default();
    let answer = b"VALUE Kabcdeb 0 1 77\r\ny\r\nVALUE Kabcdea 5 1 76\r\nx\r\nEND\r\nVA 2 c77 t12 k x c9\r\nt5\r\nHD t-1 f5\r\nVERSION 1.6.18\r\n";
    let want = b"VALUE @@@@@@a 5 1 cas1\r\nx\r\nVALUE @@@@@@b 0 1 cas2\r\ny\r\nEND\r\nVA 2 cas2 tN k x cas3\r\nt5\r\nHD t-1 f5\r\nVERSION 1.6.18\r\n";
    let got = text(answer, *b"Kabcde", true, &mut cas);
    assert_eq!(
        got.escape_ascii().to_string(),
        want.escape_ascii().to_string()
    );
    assert_eq!(cas.0, [76, 77, 9]);
}
