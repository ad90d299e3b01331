//! A new configuration while clients are served.

use super::{Now, Proxy};
use crate::config::Config;
use crate::net::Socket;

impl<S: Socket> Proxy<S> {
    /// Takes a checked configuration over.
    pub fn reload(&mut self, config: &Config, now: Now) {
        self.set_now(now);
        self.config = config.clone();
        self.last_reload = Some((now.unix, "ok".into()));
    }

    /// A configuration that could not be used: nothing changes, `stats settings` says why.
    pub fn reload_failed(&mut self, why: &str, now: Now) {
        self.set_now(now);
        self.last_reload = Some((now.unix, why.into()));
    }
}
