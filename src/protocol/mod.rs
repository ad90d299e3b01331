//! What clients and servers say to each other. Nothing outside this folder knows a grammar.
//!
//! ```text
//! client bytes ──parse──▶ Request + the line for the server ──▶ server
//!                                    │
//! client bytes ◀──format── Reply ◀──Scan── server bytes
//!                           │
//!                           └─mirror──▶ the line for the backup
//! ```
//!
//! Towards servers only text and meta commands are spoken, always one request for one reply. The
//! line sent to a server (the *upstream request line*) holds everything that later steps need: the
//! key, the numbers, the flags. What is the client's own (quietness, opaque, dialect) is its
//! [`Format`].

pub mod base64;
pub mod binary;
pub mod forms;
pub mod meta;
pub mod metadump;
pub mod reply;
mod saved;
pub mod text;

use crate::buffer::Source;

/// The first bytes of every key that magents leave for each other on servers. No client can ask for
/// such a key, and none is copied or shown.
pub const HIDDEN: &[u8] = b"\0magent/";

/// True for a key of magents' own.
#[inline]
pub fn is_hidden(key: &[u8]) -> bool {
    key.starts_with(HIDDEN)
}

/// A command as servers are asked it. Binary requests become one of these.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Verb {
    Get,
    Gets,
    Gat,
    Gats,
    Set,
    Add,
    Replace,
    Append,
    Prepend,
    Cas,
    Incr,
    Decr,
    Delete,
    Touch,
    MetaGet,
    MetaSet,
    MetaDelete,
    MetaArithmetic,
    MetaDebug,
    /// magent's own: `flush_all`.
    FlushAll,
    /// magent's own: `version`, the first half of the handshake.
    Version,
    /// magent's own: `stats`, the second half of the handshake.
    Stats,
}

impl Verb {
    /// Its first word as a server is asked it.
    pub fn name(self) -> &'static str {
        match self {
            Verb::Get => "get",
            Verb::Gets => "gets",
            Verb::Gat => "gat",
            Verb::Gats => "gats",
            Verb::Set => "set",
            Verb::Add => "add",
            Verb::Replace => "replace",
            Verb::Append => "append",
            Verb::Prepend => "prepend",
            Verb::Cas => "cas",
            Verb::Incr => "incr",
            Verb::Decr => "decr",
            Verb::Delete => "delete",
            Verb::Touch => "touch",
            Verb::MetaGet => "mg",
            Verb::MetaSet => "ms",
            Verb::MetaDelete => "md",
            Verb::MetaArithmetic => "ma",
            Verb::MetaDebug => "me",
            Verb::FlushAll => "flush_all",
            Verb::Version => "version",
            Verb::Stats => "stats",
        }
    }

    /// True for meta commands.
    pub fn is_meta(self) -> bool {
        use Verb::{MetaArithmetic, MetaDebug, MetaDelete, MetaGet, MetaSet};
        matches!(
            self,
            MetaGet | MetaSet | MetaDelete | MetaArithmetic | MetaDebug
        )
    }
}

/// What a request does to a key, as far as routing needs to know it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Traits(pub u8);

impl Traits {
    /// It may change the key: value, presence or time to live.
    pub const WRITES: Traits = Traits(1);
    /// Its answer depends on the key's presence, so a warming primary must fetch it first
    /// (get, touch, incr, append, replace, cas …).
    pub const NEEDS_KEY: Traits = Traits(2);
    /// It creates the key where it is absent (add, `ms` in add mode, `mg N`, `ma N`, append and
    /// prepend with `N`): a warming primary is asked with a plain `mg` first.
    pub const CREATES: Traits = Traits(4);
    /// It carries a cas token (not 0), which must not cross farms.
    pub const SENDS_CAS: Traits = Traits(8);
    /// Its answer carries cas tokens (gets, gats, and meta with `c`).
    pub const RETURNS_CAS: Traits = Traits(16);
    /// A plain store in set mode: memcached drops the old value when it fails.
    pub const SETS: Traits = Traits(32);
    /// A delete, `md` without `I` included.
    pub const DELETES: Traits = Traits(64);

    /// Both sets together.
    const fn with(self, other: Traits) -> Traits {
        Traits(self.0 | other.0)
    }

    /// True if all of `other` are in `self`.
    pub const fn has(self, other: Traits) -> bool {
        self.0 & other.0 == other.0
    }
}

/// What is the client's own of a request and must be put into (or kept out of) its answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// Classic text: the server's reply as it is.
    Text,
    /// Text with `noreply`: nothing, not even an error.
    Silent,
    /// A meta command: quietness, and where `O` and `k` stood.
    Meta(MetaFormat),
    /// A binary request.
    Binary(BinaryFormat),
}

/// The flags `q`, `k` and `O` of a meta command, which servers never see.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MetaFormat {
    /// `q`: leave out the answers that memcached leaves out.
    quiet: bool,
    /// How many flags that return a token (per verb) stood before `k`; `NONE` without `k`.
    key_at: u8,
    /// The same for `O`.
    opaque_at: u8,
    /// `k` stood before `O`.
    key_first: bool,
    /// The client did not ask for the value (`ma` without `v`): it is cut from the answer.
    no_value: bool,
    /// Length of the opaque token in bytes, without the letter `O`.
    opaque_len: u8,
    /// The opaque token.
    opaque: [u8; 32],
}

impl MetaFormat {
    /// The value of `key_at` and `opaque_at` where the flag is absent.
    const NONE: u8 = u8::MAX;
}

/// What a binary answer repeats of its request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BinaryFormat {
    /// The opcode as the client sent it; it tells quietness and whether the key is returned.
    opcode: u8,
    /// Repeated in the answer, never looked at.
    opaque: [u8; 4],
}

/// The grammar that a connection's first byte chose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dialect {
    /// Text and meta commands.
    Text,
    /// The binary protocol.
    Binary,
}

/// What a parser must know of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Largest value in bytes (`-I`).
    pub max_value: usize,
    /// False with `-F`.
    pub flush_all: bool,
}

/// Where a parser writes what it makes; kept by the caller and reused, so that parsing
/// allocates nothing in the steady state.
#[derive(Default, Debug)]
pub struct Scratch {
    /// The upstream request line with its `\r\n`, unless [`Request::raw`]. For several keys: the
    /// command and what comes before the keys (`get`, `gats 100`), without a space or line end
    /// behind.
    pub line: Vec<u8>,
    /// The keys of a request with several keys, as ranges of the parsed bytes.
    pub keys: Vec<std::ops::Range<usize>>,
    /// The key to hash where it does not stand in the parsed bytes (base64).
    pub key: Vec<u8>,
    /// magent's own answer, for [`Parsed::Answer`].
    pub answer: Vec<u8>,
}

/// One request that a server must answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// The command on the wire.
    pub verb: Verb,
    /// What it does.
    pub traits: Traits,
    /// Bytes of the head in the parsed bytes: the line with its end; for binary the header,
    /// extras and key.
    pub head: usize,
    /// Bytes that follow the head in the client's stream: value and `\r\n` in text, the value
    /// alone in binary; 0 without a value.
    pub data: usize,
    /// Bytes of the value alone; `None` where the request has none.
    pub value: Option<usize>,
    /// The head may go to the server as it is; else `Scratch::line` goes.
    pub raw: bool,
    /// Where the key stands in the parsed bytes, start and end; `None`: in `Scratch::key`
    /// (decoded), or in `Scratch::keys` if there are several.
    pub key: Option<(u32, u32)>,
    /// How the answer is written.
    pub format: Format,
}

/// A request that magent answers itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Local {
    /// `version`.
    Version,
    /// `verbosity N`, which changes nothing.
    Verbosity,
    /// `stats …`: what stands behind `stats`, space-separated, may be empty.
    Stats(Vec<u8>),
    /// `flush_all`; the delay in seconds as the client gave it, `None` for at once.
    FlushAll(Option<u64>),
    /// `quit`: answer what is owed, then close.
    Quit,
}

/// What stands at the start of a client's bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Parsed {
    /// Not a whole head yet.
    More,
    /// A request for a server; its value may still be on its way.
    Request(Request),
    /// A request for magent.
    Local {
        /// Bytes of the request.
        used: usize,
        /// What is asked.
        what: Local,
        /// How the answer is written.
        format: Format,
    },
    /// `Scratch::answer` is the answer (nothing if it is empty).
    Answer {
        /// Bytes of the request's head.
        used: usize,
        /// Bytes behind the head that belong to the request and must be thrown away.
        swallow: usize,
        /// Close the connection behind the answer.
        close: bool,
        /// Where memcached drops the old value of a `set` that is too large: send the upstream
        /// request line in `Scratch::line` (a delete) to the key's primary and backup.
        /// `Scratch::key` is the key to hash.
        drop_key: bool,
    },
    /// Close without a word, as memcached does.
    Close,
}

/// Reads the request that `buf` starts with. `searched` says how many bytes of `buf` are known
/// to hold no line end: 0 for a new request, `buf.len()` of the last call after
/// [`Parsed::More`].
#[inline]
pub fn parse(
    dialect: Dialect,
    buf: &[u8],
    searched: usize,
    limits: &Limits,
    s: &mut Scratch,
) -> Parsed {
    match dialect {
        Dialect::Text => text::parse(buf, searched, limits, s),
        Dialect::Binary => binary::parse(buf, searched, limits, s),
    }
}

/// What a reply says, whatever the words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// `STORED`, `TOUCHED`, `DELETED`, `OK`, `HD`, or a value that was found (`VA`, `ME`,
    /// at least one `VALUE`).
    Done,
    /// `END` without a value, `EN`, `NOT_FOUND`, `NF`.
    Absent,
    /// `NOT_STORED`, `NS`.
    NotStored,
    /// `EXISTS`, `EX`.
    Exists,
    /// The number that incr, decr or `ma` with `v` answered.
    Number(u64),
    /// `ERROR`: the server does not know the command.
    Unknown,
    /// `CLIENT_ERROR …`.
    ClientError,
    /// `SERVER_ERROR …`.
    ServerError,
}

/// One `VALUE` of a reply; offsets count from the reply's first byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Item {
    /// Where its `VALUE` line starts.
    pub at: usize,
    /// Length of that line with its end.
    pub line: usize,
    /// Length of the value without its `\r\n`.
    pub value: usize,
}

/// One whole reply of a server, wherever its bytes stand.
#[derive(Clone, Copy)]
pub struct Reply<'a> {
    /// Where they stand.
    pub source: Source<'a>,
    /// Offset of the first byte in `source`.
    pub at: usize,
    /// Length of the whole reply.
    pub len: usize,
    /// Length of its first line with its end.
    pub line: usize,
    /// What it says.
    pub status: Status,
    /// The values of a classic get, in the reply's order; empty for everything else.
    pub items: &'a [Item],
}

impl Item {
    /// Length of line, value and line end.
    pub fn bytes(&self) -> usize {
        self.line + self.value + b"\r\n".len()
    }
}

impl<'a> Reply<'a> {
    /// Where the values of a classic get stand in the source, without the `END` behind them.
    pub fn values(&self) -> std::ops::Range<usize> {
        let end = self.at + self.len - b"END\r\n".len().min(self.len);
        self.at..end
    }

    /// The first line without its line end.
    pub fn first_line(&self) -> &'a [u8] {
        let line = self.source.slice(self.at..self.at + self.line);
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        line.strip_suffix(b"\r").unwrap_or(line)
    }
}
