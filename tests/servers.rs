//! Servers that come and go, shown on real memcacheds: nobody waits for a dead one, nobody misses
//! a restarted one, nobody reads an old value. Fakes do what a real one
//! does only by chance.

mod common;

#[path = "servers/journal.rs"]
mod journal;
#[path = "servers/restart.rs"]
mod restart;
#[path = "servers/sleep.rs"]
mod sleep;
#[path = "servers/warm.rs"]
mod warm;
#[path = "servers/warm_fake.rs"]
mod warm_fake;

use common::farm::{Farm, ask_until_down, get_all, held, quick, wait_back};
