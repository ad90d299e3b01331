//! TCP and Unix streams, `fill` and `flush` with the edge-trigger rules.
use std::io;
use std::io::IoSlice;

/// The core's only type parameter: a connected byte stream that never blocks.
pub trait Socket {
    /// Reads into `buf`; 0 is the end.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize>;
    /// Writes what it can of `bufs`.
    fn write(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize>;
    /// Sends the end of our side; reading goes on.
    fn shutdown_write(&mut self) -> io::Result<()>;
    /// The outcome of a connect: `Ok(false)` while it is not decided.
    fn connected(&mut self) -> io::Result<bool>;
}
