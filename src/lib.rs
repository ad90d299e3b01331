//! magent: a proxy between memcached clients and memcached servers. See `docs/design.md`.

mod admin;
mod budget;
pub mod buffer;
pub mod clients;
pub mod config;
pub mod event_loop;
pub mod files;
mod health;
mod journal;
pub mod logger;
pub mod marks;
pub mod net;
pub mod placement;
mod pools;
pub mod protocol;
pub mod proxy;
pub mod saved;
mod slab;
mod stats;
pub mod sys;
mod time;
pub mod work;
