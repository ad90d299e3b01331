//! Clients under another program: they are not read while what they asked is answered, and then written
//! down with all that they are in the middle of.
//!
//! Nothing of them is at a server by then. What is left is what they are owed and have not taken, what
//! they are in the middle of sending, and keys of requests that are asked for in portions.

use super::Clients;
use super::active::{Active, Arriving, Intake, Portions, Slot};
use super::client::{Client, Ending, Pause};
use crate::net::{Conn, Socket};
use crate::saved::{
    Damaged, Loaded, Loader, Saved, Saver, load_all, save_all, saved_fields, saved_names,
};
use std::io;

saved_fields!(Arriving {
    request,
    line,
    missing,
    bytes,
});

saved_fields!(Portions {
    request,
    slot,
    prefix,
    keys,
    at,
});

saved_fields!(Slot {
    format,
    verb,
    traits,
    done,
    asked,
    held,
    multi,
    since,
});

impl Saved for Intake {
    fn save(&self, to: &mut Saver<'_>) {
        match self {
            Intake::Head => 0u8.save(to),
            Intake::Value(value) => {
                1u8.save(to);
                value.save(to);
            }
            Intake::Swallow(bytes) => {
                2u8.save(to);
                bytes.save(to);
            }
            Intake::Keys(keys) => {
                3u8.save(to);
                keys.save(to);
            }
        }
    }

    fn load(from: &mut Loader<'_>) -> Loaded<Intake> {
        Ok(match u8::load(from)? {
            0 => Intake::Head,
            1 => Intake::Value(Saved::load(from)?),
            2 => Intake::Swallow(Saved::load(from)?),
            3 => Intake::Keys(Saved::load(from)?),
            n => return Err(Damaged(format!("intake {n}"))),
        })
    }
}

impl Saved for Active {
    fn save(&self, to: &mut Saver<'_>) {
        self.partial.save(to);
        self.parsed.save(to);
        self.searched.save(to);
        self.wants.save(to);
        self.unparsed.save(to);
        self.intake.save(to);
        save_all(to, self.slots.iter());
        self.first_seq.save(to);
        self.out.save(to);
        save_all(to, self.again.iter());
    }

    fn load(from: &mut Loader<'_>) -> Loaded<Active> {
        let mut active = Active {
            partial: Saved::load(from)?,
            parsed: Saved::load(from)?,
            searched: Saved::load(from)?,
            wants: Saved::load(from)?,
            unparsed: Saved::load(from)?,
            intake: Saved::load(from)?,
            slots: load_all(from, Saved::load)?,
            first_seq: Saved::load(from)?,
            out: Saved::load(from)?,
            again: load_all(from, u32::load)?,
            ..Active::default()
        };
        for slot in &active.slots {
            active.asked += slot.asked as usize;
            if let Some(held) = &slot.held {
                active.held += held.len();
                active.held_copied += held.own_bytes();
            }
            if let Some(multi) = &slot.multi {
                active.held += multi.held();
                active.held_copied += multi.copied();
            }
        }
        Ok(active)
    }
}

saved_names!(Ending {
    Open = 0,
    AfterAnswers = 1,
    Dead = 2,
});

impl<S: Socket> Clients<S> {
    /// Stops reading clients, or reads them again.
    pub fn pause(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// Writes all of them, each with the number that `socket` gives for its socket.
    pub fn save(
        &self,
        names: &[(usize, &str)],
        to: &mut Saver<'_>,
        socket: &mut dyn FnMut(&S) -> u64,
    ) {
        self.counters.save(to);
        self.calls.save(to);
        names.len().save(to);
        for (at, name) in names {
            let pool = &self.pools[*at];
            name.to_string().save(to);
            pool.counts.save(to);
            pool.latency.save(to);
            pool.typical.save(to);
        }
        let all = || self.table.values().filter(|c| c.ending != Ending::Dead);
        all().count().save(to);
        for client in all() {
            socket(client.conn.socket()).save(to);
            client.listener.save(to);
            client.dialect.save(to);
            client.since.save(to);
            client.last_moved.save(to);
            client.requests.save(to);
            client.answered.save(to);
            client.ending.save(to);
            client.pause.saved().save(to);
            client.active.save(to);
        }
    }

    /// Reads them. `pool_named` knows the numbers of pools, `socket` makes a socket of its number and has it
    /// watched under a token.
    ///
    /// # Errors
    /// It is damaged, or names what is not configured.
    pub fn load(
        &mut self,
        from: &mut Loader<'_>,
        pool_named: impl Fn(&str) -> Option<usize>,
        socket: &mut dyn FnMut(u64, usize) -> io::Result<S>,
    ) -> Loaded<()> {
        self.counters = Saved::load(from)?;
        self.calls = Saved::load(from)?;
        for _ in 0..usize::load(from)? {
            let name = String::load(from)?;
            let at = pool_named(&name).filter(|at| *at < self.pools.len());
            let pool = &mut self.pools[at.ok_or_else(|| Damaged(format!("no pool {name}")))?];
            pool.counts = Saved::load(from)?;
            pool.latency = Saved::load(from)?;
            pool.typical = Saved::load(from)?;
        }
        for _ in 0..usize::load(from)? {
            self.load_client(from, socket)?;
        }
        Ok(())
    }

    fn load_client(
        &mut self,
        from: &mut Loader<'_>,
        socket: &mut dyn FnMut(u64, usize) -> io::Result<S>,
    ) -> Loaded<()> {
        let key = self.table.next_key();
        let stream = socket(u64::load(from)?, key);
        let stream = stream.map_err(|e| Damaged(format!("a client's socket: {e}")))?;
        let listener = u16::load(from)?;
        let pool = self.listeners.get(usize::from(listener)).copied();
        let pool = pool.ok_or_else(|| Damaged(format!("no listener {listener}")))?;
        let client = Client {
            conn: Conn::connecting(stream),
            dialect: Saved::load(from)?,
            since: Saved::load(from)?,
            last_moved: Saved::load(from)?,
            requests: Saved::load(from)?,
            answered: Saved::load(from)?,
            ending: Saved::load(from)?,
            pause: Pause::loaded(u8::load(from)?),
            active: Saved::load(from)?,
            pool,
            listener,
            dirty: false,
            listed: false,
        };
        let is_busy = client.active.is_some();
        self.table.insert(client);
        self.pools[pool as usize].connected += 1;
        self.account(key);
        self.check_owed(key);
        if is_busy {
            self.list(key);
        }
        Ok(())
    }
}
