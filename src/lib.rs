//! magent: a proxy between memcached clients and memcached servers. See `docs/design.md`.

pub mod admin;
pub mod budget;
pub mod buffer;
pub mod clients;
pub mod config;
pub mod event_loop;
pub mod files;
pub mod health;
pub mod journal;
pub mod logger;
pub mod marks;
pub mod net;
pub mod placement;
pub mod pools;
pub mod protocol;
pub mod proxy;
pub mod saved;
pub mod slab;
pub mod stats;
pub mod sys;
pub mod time;
pub mod work;
