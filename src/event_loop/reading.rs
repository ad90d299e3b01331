//! Reads the configuration again beside the loop: its file may lie on a disk that hangs, and the
//! names in it are looked up, which takes as long as name service likes. No client waits for that.

use crate::config::Config;
use crate::sys;
use mio::{Registry, Token, Waker};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::Builder;

/// The configuration as a thread reads it, if one does.
pub struct Reading {
    waker: Arc<Waker>,
    result: Option<Receiver<Result<Config, String>>>,
    /// The file may have changed since it was read.
    again: bool,
}

impl Reading {
    /// Nothing is read yet; `token` tells the loop when something was.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(registry: &Registry, token: Token) -> io::Result<Reading> {
        Ok(Reading {
            waker: Arc::new(Waker::new(registry, token)?),
            result: None,
            again: false,
        })
    }

    /// Reads the file of `config` again; once more if it is being read already.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn begin(&mut self, config: &Config) -> io::Result<()> {
        if self.result.is_some() {
            self.again = true;
            return Ok(());
        }
        let (sender, receiver) = channel();
        let (config, waker) = (config.clone(), self.waker.clone());
        Builder::new().name("reload".into()).spawn(move || {
            // Neither can fail as long as there is a loop that cares.
            let _ = sender.send(config.reload());
            let _ = waker.wake();
        })?;
        self.result = Some(receiver);
        Ok(())
    }

    /// What was read; `None` if nothing is read, or not to its end.
    pub fn take(&mut self, config: &Config) -> Option<Result<Config, String>> {
        let read = self.result.as_ref()?.try_recv().ok()?;
        self.result = None;
        if !std::mem::take(&mut self.again) {
            return Some(read);
        }
        self.begin(config).err().map(|e| Err(sys::reason(&e)))
    }
}
