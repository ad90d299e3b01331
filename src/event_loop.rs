//! The only owner of `mio::Poll`.
