//! Answers without what may differ: cas numbers, and the order of one multi-get's values.

/// The answers to text and meta commands.
pub fn text(mut all: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut values: Vec<Vec<u8>> = Vec::new();
    while !all.is_empty() {
        let line = take_line(&mut all);
        let words: Vec<&str> = line.trim_end().split(' ').collect();
        match words[..] {
            ["VALUE", key, flags, len, ref cas @ ..] => {
                let mut value = format!("VALUE {key} {flags} {len}{}\r\n", " #".repeat(cas.len()));
                value.push_str(&take_block(&mut all, len));
                values.push(value.into_bytes());
            }
            ["VA", len, ref flags @ ..] => {
                let line = format!("VA {len}{}\r\n", without_cas(flags));
                out.extend_from_slice(line.as_bytes());
                out.extend_from_slice(take_block(&mut all, len).as_bytes());
            }
            ["HD", ref flags @ ..] => {
                out.extend_from_slice(format!("HD{}\r\n", without_cas(flags)).as_bytes());
            }
            _ => {
                values.sort();
                out.extend(values.drain(..).flatten());
                out.extend_from_slice(line.as_bytes());
            }
        }
    }
    out.extend(values.into_iter().flatten());
    out
}

fn take_line(all: &mut &[u8]) -> String {
    let end = all.iter().position(|b| *b == b'\n');
    let (line, rest) = all.split_at(end.map_or(all.len(), |n| n + 1));
    *all = rest;
    String::from_utf8_lossy(line).into_owned()
}

fn take_block(all: &mut &[u8], len: &str) -> String {
    let len = len.parse().unwrap_or(0) + 2;
    let (block, rest) = all.split_at(all.len().min(len));
    *all = rest;
    String::from_utf8_lossy(block).into_owned()
}

fn without_cas(flags: &[&str]) -> String {
    let one = |f: &&str| match f.strip_prefix('c') {
        Some(n) if n.parse::<u64>().is_ok() => " c#".to_string(),
        _ => format!(" {f}"),
    };
    flags.iter().map(one).collect()
}

/// The packets that answer binary requests: each cas number becomes 0 or 1.
pub fn binary(mut all: &[u8]) -> Vec<u8> {
    const HEADER: usize = 24;
    let mut out = Vec::new();
    while all.len() >= HEADER {
        let body = u32::from_be_bytes([all[8], all[9], all[10], all[11]]) as usize;
        let (packet, rest) = all.split_at((HEADER + body).min(all.len()));
        let mut packet = packet.to_vec();
        let some = packet[16..HEADER].iter().any(|b| *b != 0);
        packet[16..HEADER].copy_from_slice(&u64::from(some).to_be_bytes());
        out.extend(packet);
        all = rest;
    }
    out.extend_from_slice(all);
    out
}
