//! What requests become, and which are refused.

use super::*;
use crate::protocol::{Format, Local, Request, Traits};

fn store_extras(flags: u32, exptime: u32) -> Vec<u8> {
    [flags.to_be_bytes(), exptime.to_be_bytes()].concat()
}

fn arithmetic_extras(delta: u64, initial: u64, exptime: u32) -> Vec<u8> {
    let mut e = [delta.to_be_bytes(), initial.to_be_bytes()].concat();
    e.extend_from_slice(&exptime.to_be_bytes());
    e
}

/// Parses, having seen that every shorter part of the head is `More`.
fn parsed(buf: &[u8], s: &mut Scratch) -> Parsed {
    let head = HEADER + usize::from(buf[4]) + usize::from(u16::from_be_bytes([buf[2], buf[3]]));
    for cut in 0..head.min(buf.len()) {
        assert_eq!(parse(&buf[..cut], 0, &LIMITS, s), Parsed::More, "{cut}");
    }
    for cut in head..buf.len() {
        assert_eq!(parse(&buf[..cut], 0, &LIMITS, s), parse(buf, 0, &LIMITS, s));
    }
    parse(buf, 0, &LIMITS, s)
}

fn request(buf: &[u8], s: &mut Scratch) -> Request {
    match parsed(buf, s) {
        Parsed::Request(r) => r,
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_opcode_becomes_its_meta_command() {
    let t = 100u32.to_be_bytes();
    let get = Traits::NEEDS_KEY.with(Traits::RETURNS_CAS);
    let touch = get.with(Traits::WRITES);
    let set = Traits::SETS.with(Traits::WRITES).with(Traits::RETURNS_CAS);
    let add = Traits::CREATES
        .with(Traits::WRITES)
        .with(Traits::RETURNS_CAS);
    let cas = touch.with(Traits::SENDS_CAS);
    let delete = Traits::WRITES.with(Traits::DELETES);
    let delete_cas = delete.with(Traits::SENDS_CAS);
    let e = store_extras(0xcafe, 60);
    let i = arithmetic_extras(3, 7, 60);
    let i_never = arithmetic_extras(u64::MAX, 7, u32::MAX);
    let i_late = arithmetic_extras(0, u64::MAX, 0xffff_fffe);
    type Case<'a> = (&'a [u8], &'a [u8], &'a [u8], u64, &'a str, Traits);
    #[rustfmt::skip] // A row a line.
    let cases: &[Case] = &[
        (&[0x00, 0x09, 0x0c, 0x0d], b"", b"", 0, "mg k v f c", get),
        (&[0x1d, 0x1e, 0x23, 0x24], &t, b"", 0, "mg k v f c T100", touch),
        (&[0x1c], &t, b"", 0, "mg k f c T100", touch),
        (&[0x1c], &[0; 4], b"", 0, "mg k f c T0", touch),
        (&[0x1c], &[0xff; 4], b"", 0, "mg k f c T2147483647", touch),
        (&[0x01, 0x11], &e, b"value", 0, "ms k 5 F51966 T60 c", set),
        (&[0x01, 0x11], &[0; 8], b"", 0, "ms k 0 c", set),
        (&[0x02, 0x12], &e, b"value", 0, "ms k 5 F51966 T60 c ME", add),
        (&[0x03, 0x13], &e, b"value", 0, "ms k 5 F51966 T60 c MR", touch),
        (&[0x01, 0x02, 0x03, 0x11, 0x12, 0x13], &e, b"v", 9, "ms k 1 F51966 T60 c C9", cas),
        (&[0x0e, 0x19], b"", b"value", 0, "ms k 5 c MA", touch),
        (&[0x0f, 0x1a], b"", b"value", 0, "ms k 5 c MP", touch),
        (&[0x0e], b"", b"v", u64::MAX, "ms k 1 c MA C18446744073709551615", cas),
        (&[0x04, 0x14], b"", b"", 0, "md k", delete),
        (&[0x04, 0x14], b"", b"", 5, "md k C5", delete_cas),
        (&[0x05, 0x15], &i, b"", 0, "ma k MI D3 v c N60 J7", add),
        (&[0x06, 0x16], &i_never, b"", 0, "ma k MD D18446744073709551615 v c", touch),
        (&[0x05], &i_never, b"", 4, "ma k MI D18446744073709551615 v c C4", cas),
        (&[0x05], &i_late, b"", 0, "ma k MI D0 v c N2147483647 J18446744073709551615", add),
    ];
    let mut s = Scratch::default();
    for &(opcodes, extras, value, cas, line, traits) in cases {
        for &opcode in opcodes {
            let buf = packet(opcode, extras, b"k", value, cas);
            let r = request(&buf, &mut s);
            assert_eq!(String::from_utf8_lossy(&s.line), format!("{line}\r\n"));
            assert_eq!(r.traits, traits, "{line}");
            assert_eq!((r.head, r.data), (25 + extras.len(), value.len()));
            assert_eq!(r.value.is_some(), line.starts_with("ms"));
            assert_eq!(
                r.key.map(|(a, z)| &buf[a as usize..z as usize]),
                Some(&b"k"[..])
            );
            assert_eq!(
                (r.raw, r.format),
                (false, Format::Binary(format_of(opcode)))
            );
        }
    }
}

/// Nine shapes of a request for each opcode. `-`: taken; `i`: 0x04, then closed;
/// `U`: 0x81, open. Shapes: nothing; key; key and 1, then 4, 8, 20 bytes of extras; 4 bytes of
/// extras alone; key, 4 bytes of extras and a value; key and a value.
#[test]
fn malformed_requests_end_the_connection_as_in_memcached() {
    let key = |extras| packet(0, &[0; 20][..extras], b"k", b"", 0);
    let shapes = [
        packet(0, b"", b"", b"", 0),
        key(0),
        key(1),
        key(4),
        key(8),
        key(20),
        packet(0, &[0; 4], b"", b"", 0),
        packet(0, &[0; 4], b"k", b"v", 0),
        packet(0, b"", b"k", b"v", 0),
    ];
    let observed: &[(&[u8], &str)] = &[
        (&[0x00, 0x09, 0x0c, 0x0d, 0x04, 0x14], "i-iiiiiii"),
        (&[0x01, 0x02, 0x03, 0x11, 0x12, 0x13], "iiii-iiii"),
        (&[0x05, 0x06, 0x15, 0x16], "iiiii-iii"),
        (&[0x07, 0x0a, 0x0b, 0x17], "-iiiiiiii"),
        (&[0x08, 0x18], "-iiiii-ii"),
        (&[0x0e, 0x0f, 0x19, 0x1a], "i-iiiiii-"),
        (&[0x10], "--iiiiii-"),
        (&[0x1c, 0x1d, 0x1e, 0x23, 0x24], "iii-iii-i"),
        (&[0x1f, 0x30, 0x3c, 0x40, 0xff], "UUUUUUUUU"),
        // memcached has no verbosity; here the form that the protocol gives it works.
        (&[0x1b], "UUUUUU-UU"),
        (&[0x20], "Uiiiiiiii"),
        (&[0x21, 0x22], "iUiiiiiiU"),
    ];
    let mut s = Scratch::default();
    for (opcodes, outcomes) in observed {
        for &opcode in *opcodes {
            for (shape, outcome) in shapes.iter().zip(outcomes.chars()) {
                let mut buf = shape.clone();
                buf[1] = opcode;
                let got = match parsed(&buf, &mut s) {
                    Parsed::Answer { close: true, .. } => {
                        assert!(s.answer.ends_with(b"Invalid arguments"));
                        'i'
                    }
                    Parsed::Answer { .. } if s.answer.ends_with(b"Unknown command") => 'U',
                    _ => '-',
                };
                assert_eq!(got, outcome, "{opcode:02x} {}", hex(&buf));
            }
        }
    }
}

#[test]
fn refusals_are_memcacheds_to_the_byte() {
    let refused = |buf: &[u8]| {
        let mut s = Scratch::default();
        match parse(buf, 0, &LIMITS, &mut s) {
            Parsed::Answer {
                used,
                swallow,
                close,
                drop_key: false,
            } => (
                hex(&s.answer[..HEADER]),
                s.answer[HEADER..].to_vec(),
                used,
                swallow,
                close,
            ),
            other => panic!("{other:?}"),
        }
    };
    let unknown = b"Unknown command".to_vec();
    let head = "81300000000000810000000fdeadbeef0000000000000000".to_string();
    // What was taken as extras and key is thrown away once more from what follows.
    let buf = packet(0x30, b"ee", b"kk", b"vv", 0);
    assert_eq!(refused(&buf), (head.clone(), unknown.clone(), 28, 6, false));
    // A length that is negative in C is not thrown away.
    let mut huge = buf.clone();
    huge[8..12].copy_from_slice(&0x8000_0000u32.to_be_bytes());
    assert_eq!(refused(&huge).3, 0);
    // Extras and key that do not fit into the body.
    let mut short = buf.clone();
    short[8..12].copy_from_slice(&3u32.to_be_bytes());
    assert_eq!(refused(&short), (head, unknown.clone(), 28, 0, true));
    let sasl = refused(&packet(0x21, b"", b"PLAIN", b"\0u\0p", 0));
    assert_eq!((sasl.1, sasl.2, sasl.3, sasl.4), (unknown, 29, 4, false));
    let head = "810000000000000400000011deadbeef0000000000000000".to_string();
    let long = refused(&packet(0, b"", &[b'k'; 251], b"", 0));
    assert_eq!(long, (head, b"Invalid arguments".to_vec(), 275, 0, true));
    let noop = refused(&packet(0x0a, b"", b"", b"", 0));
    let head = "810a00000000000000000000deadbeef0000000000000000".to_string();
    assert_eq!(noop, (head, Vec::new(), 24, 0, false));
    let mut s = Scratch::default();
    let closed = Limits {
        flush_all: false,
        ..LIMITS
    };
    parse(&packet(0x18, b"", b"", b"", 0), 0, &closed, &mut s);
    assert_eq!(&s.answer[6..8], [0, 0x20]);
    assert!(s.answer.ends_with(b"Auth failure."));
    let mut bad = packet(0, b"", b"k", b"", 0);
    bad[0] = 0x81;
    assert_eq!(parse(&bad[..23], 0, &LIMITS, &mut s), Parsed::More);
    assert_eq!(parse(&bad, 0, &LIMITS, &mut s), Parsed::Close);
}

#[test]
fn requests_for_magent_itself() {
    let cases: &[(u8, &[u8], &[u8], Local)] = &[
        (0x07, b"", b"", Local::Quit),
        (0x17, b"", b"", Local::Quit),
        (0x0b, b"", b"", Local::Version),
        (0x10, b"", b"", Local::Stats(Vec::new())),
        (
            0x10,
            b"",
            b"route a\r\nb",
            Local::Stats(b"route a\r\nb".to_vec()),
        ),
        (0x1b, &[0, 0, 0, 2], b"", Local::Verbosity),
        (0x08, b"", b"", Local::FlushAll(None)),
        (0x18, &[0; 4], b"", Local::FlushAll(None)),
        (0x08, &[0, 0, 0, 9], b"", Local::FlushAll(Some(9))),
        (
            0x08,
            &2_592_000u32.to_be_bytes(),
            b"",
            Local::FlushAll(Some(2_592_000)),
        ),
        (
            0x08,
            &2_592_001u32.to_be_bytes(),
            b"",
            Local::FlushAll(Some(2_592_001)),
        ),
        (0x08, &[0xff; 4], b"", Local::FlushAll(Some(2_147_483_647))),
    ];
    let mut s = Scratch::default();
    for (opcode, extras, key, what) in cases {
        let buf = packet(*opcode, extras, key, b"", 0);
        let expected = Parsed::Local {
            used: buf.len(),
            what: what.clone(),
            format: Format::Binary(format_of(*opcode)),
        };
        assert_eq!(parsed(&buf, &mut s), expected);
    }
}

/// No key ever adds a line, a token or a flag: the upstream request line has the tokens it should
/// have.
#[test]
fn hostile_keys_never_become_commands() {
    let mut keys: Vec<Vec<u8>> = vec![
        b"a\r\nflush_all\r\n".to_vec(),
        b"k b".to_vec(),
        b"k\0".to_vec(),
        b" ".to_vec(),
        b"\t".to_vec(),
        b"k\x7f".to_vec(),
        b"b".to_vec(),
        b"\x80\xff".to_vec(),
        vec![b'\n'; 186],
        vec![0xff; 250],
    ];
    keys.extend((0..=255).map(|b| vec![b'k', b]));
    let mut s = Scratch::default();
    for key in &keys {
        for (opcode, extras, value, tokens) in [
            (0x00, vec![], &b""[..], 5),
            (0x01, store_extras(1, 1), b"v", 6),
            (0x04, vec![], b"", 2),
            (0x05, arithmetic_extras(1, 1, u32::MAX), b"", 6),
        ] {
            let buf = packet(opcode, &extras, key, value, 0);
            let r = request(&buf, &mut s);
            let coded = key.iter().any(|&b| b <= 0x20 || b == 0x7f);
            let line = s.line.strip_suffix(b"\r\n").expect("ends");
            assert!(!line.iter().any(|b| b"\r\n\0\t\x7f".contains(b)), "{key:?}");
            let token: Vec<&[u8]> = line.split(|&b| b == b' ').collect();
            assert_eq!(token.len(), tokens + usize::from(coded));
            assert_eq!(token[2..].contains(&&b"b"[..]), coded);
            assert_eq!(r.key.is_none(), coded);
            if coded {
                let mut raw = Vec::new();
                assert!(crate::protocol::base64::decode(token[1], &mut raw));
                assert_eq!((&raw, &s.key), (key, key));
                assert!(token[1].len() <= 250);
            } else {
                assert_eq!(token[1], key);
            }
        }
    }
}

#[test]
fn a_key_too_long_for_base64_or_of_magents_own_costs_the_request_only() {
    let mut s = Scratch::default();
    let keys = [&[b' '; 187][..], b"\0magent/a"];
    let requests = [(0x00, vec![], 0), (0x01, store_extras(0, 0), 5)];
    let all = keys
        .iter()
        .flat_map(|key| requests.iter().map(move |r| (key, r)));
    for (key, (opcode, extras, swallow)) in all {
        let swallow = *swallow;
        let value = &b"value"[..swallow];
        let buf = packet(*opcode, extras, key, value, 0);
        let expected = Parsed::Answer {
            used: buf.len() - swallow,
            swallow,
            close: false,
            drop_key: false,
        };
        assert_eq!(parsed(&buf, &mut s), expected);
        assert!(s.answer.ends_with(b"Invalid arguments"));
    }
}

#[test]
fn a_large_value_is_swallowed_and_a_set_drops_the_old_one() {
    let mut s = Scratch::default();
    for (opcode, key, cas, line) in [
        (0x01, &b"k"[..], 0, &b"delete k\r\n"[..]),
        (0x11, b"k", 7, b"delete k\r\n"),
        (0x01, b"a\nb", 0, b"md YQpi b\r\n"),
        (0x02, b"k", 0, b""),
        (0x13, b"k", 0, b""),
        (0x0e, b"k", 0, b""),
    ] {
        let extras = if opcode == 0x0e { vec![] } else { vec![0; 8] };
        let buf = packet(opcode, &extras, key, &[b'v'; 1001], cas);
        let expected = Parsed::Answer {
            used: buf.len() - 1001,
            swallow: 1001,
            close: false,
            drop_key: !line.is_empty(),
        };
        assert_eq!(parse(&buf, 0, &LIMITS, &mut s), expected);
        assert_eq!(s.line, line);
        let head = format!("81{opcode:02x}0000000000030000000adeadbeef0000000000000000");
        assert_eq!(hex(&s.answer[..HEADER]), head);
        assert!(s.answer.ends_with(b"Too large."));
        let fits = packet(opcode, &extras, key, &[b'v'; 1000], cas);
        assert_eq!(request(&fits[..fits.len() - 999], &mut s).data, 1000);
    }
}
