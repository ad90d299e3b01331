//! The same mutated bytes to a real memcached and through magent: the answers must be the same.

use crate::common::{Client, Magent, Memcached};
use crate::normal;
use crate::rows::{self, Fill, PREFIX};
use std::cell::OnceCell;
use std::thread::LocalKey;

/// What `@` stands for in the conformance test's rows, which are seeds here.
const LETTERS: [u8; PREFIX] = *b"Qzqkwv";

/// What memcached answers on its own account, or with a clock of its own.
const NOT_COMPARED: &[&[u8]] = &[
    b"stats",
    b"shutdown",
    b"slabs",
    b"lru",
    b"watch",
    b"cache_memlimit",
    b"flush_all",
    b"verbosity",
    b"extstore",
    b"refresh_certs",
    b"misbehave",
    b"version",
    b"me ",
];

/// Opcodes of the same kind: flush, stat, verbosity, version, quit's answer aside.
const NOT_COMPARED_OPCODES: &[u8] = &[0x08, 0x0b, 0x10, 0x18, 0x1b];

/// Opcodes that calculate. A number that gets shorter is filled up with spaces, unless an answer
/// with the item still waits to go out: that of a read between two of them may; a no-op, which
/// magent answers, sends it.
const CALCULATING: &[u8] = &[0x05, 0x06, 0x15, 0x16];

/// Opcodes whose answer holds an item.
const READING: &[u8] = &[0x00, 0x09, 0x0c, 0x0d, 0x1d, 0x1e, 0x23, 0x24];

/// A row must differ so often in a row: an answer may be lost when the other side closes while
/// it is still being sent to.
const TRIES: usize = 3;

struct Both {
    server: Memcached,
    _behind: Memcached,
    magent: Magent,
}

thread_local! {
    static BOTH: OnceCell<Both> = const { OnceCell::new() };
}

fn start() -> Both {
    let (server, behind) = (Memcached::start(), Memcached::start());
    let magent = Magent::farm(&[&behind.name], &[], &[]);
    Both {
        server,
        _behind: behind,
        magent,
    }
}

/// The conformance test's rows of one dialect.
pub fn seeds(binary: bool) -> Vec<Vec<u8>> {
    let fill = Fill {
        prefix: LETTERS,
        cas: 7,
    };
    let of_dialect = rows::all()
        .into_iter()
        .filter(|r| r.binary == binary && !r.off && !r.alone);
    of_dialect
        .flat_map(|r| [fill.bytes(&r.setup, binary), fill.bytes(&r.bytes, binary)])
        .filter(|b| !b.is_empty() && b.len() < 3000)
        .collect()
}

/// True for what both answer by the protocol alone.
fn comparable(binary: bool, bytes: &[u8]) -> bool {
    let has = |what: &[u8]| {
        bytes
            .windows(what.len())
            .any(|w| w.eq_ignore_ascii_case(what))
    };
    if binary {
        // Keys with odd bytes that are too long for base64 are refused.
        let long_key = bytes
            .windows(3)
            .any(|w| w[0] <= 0x24 && w[1] == 0 && w[2] > 186);
        // A body of 2 GiB or more is negative to memcached: it takes the value for requests.
        let negative = bytes.windows(9).any(|w| w[0] == 0x80 && w[8] >= 0x80);
        let not_compared = NOT_COMPARED_OPCODES.iter().any(|op| has(&[0x80, *op]));
        let count = |ops: &[u8]| {
            let is_one = |w: &&[u8]| w[0] == 0x80 && ops.contains(&w[1]);
            bytes.windows(2).filter(is_one).count()
        };
        let pads = match count(CALCULATING) {
            0 => false,
            1 => has(&[0x80, 0x0a]),
            _ => has(&[0x80, 0x0a]) || count(READING) > 0,
        };
        return !long_key && !negative && !not_compared && !pads;
    }
    // What `ma N q` says when it creates is one of the conformance test's known differences.
    let creates_quietly = has(b"ma ") && has(b"q") && has(b" n");
    let pads = has(b"mn") && [&b"incr "[..], b"decr ", b"ma "].into_iter().any(has);
    // The key of `mg` with `b` and `k` comes back with all its odd bytes, line ends too.
    let odd_key = has(b"mg ") && has(b" b") && has(b" k");
    !creates_quietly && !pads && !odd_key && !NOT_COMPARED.iter().any(|w| has(w))
}

pub fn run(binary: bool, bytes: &[u8]) -> Result<(), String> {
    if !comparable(binary, bytes) {
        return Ok(());
    }
    with(&BOTH, |both| {
        if (0..TRIES).any(|_| compare(both, binary, bytes).is_ok()) {
            return Ok(());
        }
        // An item that was stored with a large cas number (`E`) outlives a flush in the same
        // second, here or there.
        compare(&start(), binary, bytes)
    })
}

fn contains(all: &[u8], what: &[u8]) -> bool {
    all.windows(what.len()).any(|w| w == what)
}

/// True if all lines of `some` are among those of `all`, in order.
fn has_lines(all: &[u8], some: &[u8]) -> bool {
    let mut all = all.split(|&b| b == b'\n');
    some.split(|&b| b == b'\n')
        .all(|line| all.any(|l| l == line))
}

/// An answer without the words of `k`: the key comes back as it was asked for, not as it was
/// stored (one of the conformance test's known differences).
fn keyless(answer: &[u8]) -> Vec<u8> {
    without(answer, |w| w.starts_with(b"k") || w == b"b")
}

/// An answer without the words of `h` and `t`: memcached looks at the keys before a bad one, and
/// they count as asked for and touched; magent refuses the whole line.
fn untouched(answer: &[u8]) -> Vec<u8> {
    without(answer, |w| w == b"h0" || w == b"h1" || w.starts_with(b"t"))
}

/// An answer without some words of its meta lines.
fn without(answer: &[u8], dropped: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let mut out = Vec::new();
    for line in answer.split_inclusive(|&b| b == b'\n') {
        let is_meta = line.starts_with(b"HD ") || line.starts_with(b"VA ");
        let words = line.trim_ascii_end().split(|&b| b == b' ');
        let kept: Vec<&[u8]> = words.filter(|w| !dropped(w)).collect();
        match is_meta {
            true => out.extend([&kept.join(&b' ')[..], b"\r\n"].concat()),
            false => out.extend_from_slice(line),
        }
    }
    out
}

/// An answer without what stands behind `CLIENT_ERROR`.
fn reasonless(answer: &[u8]) -> Vec<u8> {
    let lines = answer.split_inclusive(|&b| b == b'\n');
    let short = lines.map(|l| match l.starts_with(b"CLIENT_ERROR ") {
        true => b"CLIENT_ERROR\r\n",
        false => l,
    });
    short.collect::<Vec<_>>().concat()
}

fn with<T>(both: &'static LocalKey<OnceCell<Both>>, f: impl FnOnce(&Both) -> T) -> T {
    both.with(|b| f(b.get_or_init(start)))
}

fn compare(both: &Both, binary: bool, bytes: &[u8]) -> Result<(), String> {
    let ask = |mut client: Client| {
        client.ask("flush_all\r\n", "OK\r\n");
    };
    ask(both.server.client());
    ask(both.magent.client());
    let want = answer(both.server.client(), binary, bytes);
    let got = answer(both.magent.client(), binary, bytes);
    match is_like(&got, &want) {
        true => Ok(()),
        false => Err(format!(
            "memcached: {}\nmagent:    {}",
            want.escape_ascii(),
            got.escape_ascii()
        )),
    }
}

/// True if magent's answer is memcached's but for what is known to differ, in any mixture.
fn is_like(got: &[u8], want: &[u8]) -> bool {
    // `ma` finds out that its opaque is too long when it has counted; magent before.
    if contains(got, b"opaque token too long") {
        return true;
    }
    // A flag that 1.6.18 does not know ends its look at the line; magent passes it on to
    // servers that may know it, and so finds what is wrong behind it.
    let (got_lines, want_lines) = match contains(want, b" flag\r\n") {
        true => (reasonless(got), reasonless(want)),
        false => (got.to_vec(), want.to_vec()),
    };
    // memcached drops answers that are not out yet when it closes on a bad magic byte, or finds
    // the end in the middle of a value; magent sends what it owes.
    got_lines.starts_with(&want_lines)
        // A get with a bad key takes the answers with it that are still waiting to go out.
        || (contains(want, b"bad command line format")
            && has_lines(&untouched(&got_lines), &untouched(&want_lines)))
}

/// Everything that comes back until the other side closes, in its comparable form.
fn answer(mut client: Client, binary: bool, bytes: &[u8]) -> Vec<u8> {
    let _ = client.try_send(bytes);
    client.half_close();
    let got = client.read_to_end();
    let mut cas = normal::Cas::default();
    match binary {
        true => normal::binary(&got, LETTERS, &mut cas),
        false => keyless(&normal::text(&got, LETTERS, false, &mut cas)),
    }
}
