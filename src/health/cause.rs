//! Why requests are lost.

/// Why a request, a link or a server failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// The connect was refused.
    Refused,
    /// The connect failed for another reason.
    Unreachable,
    /// No connect or no answer in time.
    TimedOut,
    /// The link closed, or spoke nonsense, before the answer.
    ConnectionLost,
    /// The server is known to be away.
    Down,
    /// It missed more keys than its journal holds and is flushed before it is used again.
    JournalFull,
    /// It refused to delete a key, which it must do before it is trusted.
    DeleteRefused,
    /// It refused `flush_all`, which it must run before it is trusted.
    FlushRefused,
    /// It failed, and there is no memory to ask another one.
    NoMemory,
    /// Name service does not know its host.
    UnknownHost,
    /// Its host has another address now.
    Moved,
    /// An operator took it out of use.
    Drained,
    /// Another magent may have written elsewhere what belongs there, or this one has not looked.
    KeptAway,
}

impl Cause {
    /// The words behind the server's name in `SERVER_ERROR`.
    pub fn text(self) -> &'static str {
        match self {
            Cause::Refused => "connection refused",
            Cause::Unreachable => "unreachable",
            Cause::TimedOut => "timed out",
            Cause::ConnectionLost => "connection lost",
            Cause::Down => "down",
            Cause::JournalFull => "its journal overflowed",
            Cause::DeleteRefused => "refused delete",
            Cause::FlushRefused => "refused flush_all",
            Cause::NoMemory => "out of memory reading",
            Cause::UnknownHost => "unknown host",
            Cause::Moved => "its address changed",
            Cause::Drained => "drained",
            Cause::KeptAway => "kept away by a magent",
        }
    }
}
