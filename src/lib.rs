//! magent: a proxy between memcached clients and memcached servers. See `docs/design.md`.
pub mod buffer;
pub mod protocol;
