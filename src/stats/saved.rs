//! What was counted goes on under another program. Slow requests and hot keys begin anew.

use super::latency::Histogram;
use super::{
    CallCounters, ClientCounters, CommandCounters, Latency, LoopCounters, PoolCounters, Requests,
    ServerStats,
};
use crate::saved::{Loaded, Loader, Saved, Saver, load_all, save_all, saved_fields};

/// Counters with their names: one that the other program does not know is left out.
macro_rules! saved_counters {
    ($($name:ident),*) => {
        $(impl Saved for $name {
            fn save(&self, to: &mut Saver<'_>) {
                let mut all: Vec<(String, u64)> = Vec::new();
                self.each(|name, value| all.push((name.to_string(), value)));
                save_all(to, all.iter());
            }

            fn load(from: &mut Loader<'_>) -> Loaded<$name> {
                let mut counters = $name::default();
                let all: Vec<(String, u64)> = load_all(from, Saved::load)?;
                all.iter().for_each(|(name, value)| counters.set(name, *value));
                Ok(counters)
            }
        })*
    };
}

saved_counters!(
    CallCounters,
    ClientCounters,
    CommandCounters,
    LoopCounters,
    PoolCounters
);

saved_fields!(ServerStats {
    requests,
    errors,
    timeouts,
    connects,
    closes,
    failures,
    restarts,
    probes,
    bytes_read,
    bytes_written,
    keys_copied,
    mirrors,
    mirrors_failed,
    looks_again,
    doubts,
});

impl Saved for Requests {
    fn save(&self, to: &mut Saver<'_>) {
        self.0.save(to);
    }

    fn load(from: &mut Loader<'_>) -> Loaded<Requests> {
        Saved::load(from).map(Requests)
    }
}

saved_fields!(Histogram { counts, sum, max });

/// What was in the last ten seconds is only part of the whole.
impl Saved for Latency {
    fn save(&self, to: &mut Saver<'_>) {
        self.total().save(to);
    }

    fn load(from: &mut Loader<'_>) -> Loaded<Latency> {
        let mut latency = Latency::default();
        latency.past = Histogram::load(from)?;
        Ok(latency)
    }
}
