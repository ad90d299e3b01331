//! What operators see of a comparison of a server with its partners, and how they begin one.

use super::figures::{Verified, VerifyFigures};
use super::server::Server;
use super::verify::{FINDINGS, Finding};
use super::{Pools, ServerId};
use crate::net::Socket;
use crate::protocol::metadump;
use crate::time::{SECOND, Time};

/// A result is shown for so long, in nanoseconds; whoever asks later begins another comparison.
const SHOWN: u64 = 60 * SECOND;

impl<S: Socket> Pools<S> {
    /// Compares a server with its partners, key by key, in the background.
    ///
    /// # Errors
    /// A line that says why not.
    pub fn verify(&mut self, name: &str) -> Result<(), String> {
        let id = self.server_named(name)?;
        let why = match self.not_compared(id) {
            Some(why) => why,
            None if !self.is_up(id) => "is down",
            None if self.is_too_old(id) => "is older than memcached 1.6",
            None if self.refills.job(id, true).is_some() => "is being compared already",
            None => {
                self.wants_verify(id);
                return Ok(());
            }
        };
        Err(format!("{name} {why}"))
    }

    /// `stats verify NAME`: how far the comparison of a server of this pool, or of any, is, or what came of it;
    /// one begins if there was none lately.
    ///
    /// # Errors
    /// A line that says why there is none.
    pub fn stats_verify(
        &mut self,
        pool: Option<usize>,
        name: &str,
    ) -> Result<Vec<(String, String)>, String> {
        let id = self.server_named(name)?;
        let is_of = |s: &Server| {
            let mut pools = s.primary_of.iter().chain(&s.backup_of);
            pool.is_none_or(|pool| pools.any(|p| *p as usize == pool))
        };
        let server = self.servers.get(id).filter(|s| is_of(s));
        let ended = server.ok_or_else(|| format!("no server {name}"))?;
        let ended = ended.verified.as_ref().map(|v| v.progress.since);
        let is_shown = ended.is_some_and(|at| self.now < at.plus(SHOWN));
        if self.refills.job(id, true).is_none() && !is_shown {
            self.verify(name)?;
        }
        let figures = self
            .servers
            .get(id)
            .and_then(|s| self.verify_figures(id, s));
        Ok(figures.map_or_else(Vec::new, |f| shown(&f)))
    }

    /// How a server is compared with its partners, or was.
    pub(super) fn verify_figures(&self, id: ServerId, server: &Server) -> Option<VerifyFigures> {
        let mut jobs = self.refills.jobs.iter();
        let job = jobs.find(|r| r.target == id && r.verify.is_some());
        let under_way = job.and_then(|r| {
            Some(Verified {
                progress: r.progress,
                found: r.verify.as_ref()?.found.clone(),
                mended: r.repair().map(|r| r.mended),
                failure: None,
            })
        });
        let is_over = under_way.is_none();
        let result = under_way.or_else(|| server.verified.as_deref().cloned())?;
        let state = match (job, result.failure) {
            (Some(job), _) if job.has_begun && result.mended.is_some() => "repairing",
            (Some(job), _) if job.has_begun => "running",
            (Some(_), _) => "waiting",
            (None, Some(why)) => why,
            (None, None) if result.progress.is_partial => "partial",
            (None, None) => "done",
        };
        let since = result.progress.since;
        let begun = is_over || since > Time(0);
        Some(VerifyFigures {
            state,
            since: if begun { self.unix_of(since) } else { 0 },
            to_go: job.map_or(0, |r| r.to_go()),
            result,
        })
    }
}

/// All of it with names of keys, as in a listing of a server: `missing_1 a%20key`.
fn shown(figures: &VerifyFigures) -> Vec<(String, String)> {
    let mut lines = vec![("state".to_string(), figures.state.to_string())];
    let numbers = figures.numbers();
    lines.extend(numbers.map(|(name, n)| (name.to_string(), n.to_string())));
    for (finding, name) in FINDINGS {
        if finding == Finding::Same {
            continue;
        }
        let samples = figures.result.found.samples(finding).iter();
        let named = samples
            .enumerate()
            .map(|(i, key)| (format!("{name}_{}", i + 1), metadump::encode(key)));
        lines.extend(named);
    }
    lines
}
