//! HUP and the operator's `reload`: the log, names and the configuration anew.

use super::bound::{descriptors, plan};
use super::{EventLoop, Phase, tell_systemd};
use crate::config::{Config, Prepared};
use crate::logger;
use crate::proxy::Now;
use crate::sys;
use std::time::Duration;

impl EventLoop {
    /// HUP: the log and the names of servers anew, and the configuration if it is in a file.
    pub(super) fn hang_up(&mut self, now: Now) {
        if let Err(e) = logger::reopen() {
            log::warn!("the log can't be reopened: {}", sys::reason(&e));
        }
        self.proxy.look_up_all(now);
        if self.phase == Phase::Serving {
            self.reread(now);
        }
    }

    /// Begins to read the configuration again, if it is in a file.
    pub(super) fn reread(&mut self, now: Now) {
        let Some(file) = &self.config.file else {
            return;
        };
        let status = format!("reading {} again", file.display());
        tell_systemd(sys::State::Reloading, &status);
        self.read_configuration(now);
    }

    fn read_configuration(&mut self, now: Now) {
        if let Err(e) = self.reading.begin(&self.config, now.at) {
            self.reload(Err(sys::reason(&e)), now);
        }
    }

    pub(super) fn take_configuration(&mut self, now: Now) {
        match self.reading.take(&self.config, now.at) {
            Some(read) if self.phase == Phase::Serving => self.reload(read, now),
            _ => {}
        }
        if self.reading.wait(now.at) == Some(Duration::ZERO) {
            self.read_configuration(now);
        }
    }

    /// The configuration was read again, or could not be.
    fn reload(&mut self, read: Result<Prepared, String>, now: Now) {
        let listened = read.and_then(|prepared| {
            self.proxy.may_take_over(&prepared.config, now)?;
            self.take_over(&prepared.config, now)?;
            Ok(prepared)
        });
        // While it is read once more it is not ready yet.
        let is_done = !self.reading.is_under_way();
        match listened {
            Ok(prepared) => {
                let configuration = prepared.config.fingerprint();
                log::info!(target: logger::NOTICE, "the configuration was reloaded, it is {configuration} now");
                self.proxy.take_over(prepared, now);
                if is_done {
                    self.tell_ready();
                    self.door.admin.reloaded(Ok(()));
                }
            }
            Err(why) => {
                let line = format!("the configuration stays as it was: {why}");
                log::error!("{line}");
                self.proxy.reload_failed(&why, now);
                if is_done {
                    tell_systemd(sys::State::Ready, &line);
                    self.door.admin.reloaded(Err(&why));
                }
            }
        }
    }

    /// All or nothing: what can fail comes first.
    fn take_over(&mut self, config: &Config, now: Now) -> Result<(), String> {
        sys::raise_nofile(descriptors(config))?;
        let plan = plan(&mut self.listeners, config, self.owner, &mut Vec::new())?;
        if self.listeners.closes_some(&plan) {
            self.accept_all(now);
        }
        self.listeners
            .apply(plan, self.poll.registry())
            .map_err(|e| sys::reason(&e))?;
        self.config = config.clone();
        Ok(())
    }
}
