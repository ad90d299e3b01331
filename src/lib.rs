//! magent: a proxy between memcached clients and memcached servers. See `docs/design.md`.

pub mod buffer;
pub mod client;
pub mod config;
pub mod event_loop;
pub mod farm;
pub mod files;
pub mod health;
pub mod logger;
pub mod net;
pub mod protocol;
pub mod proxy;
pub mod stats;
pub mod sys;
pub mod upstream;
