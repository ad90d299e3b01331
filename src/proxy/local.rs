//! What magent answers clients itself: `version`, `verbosity`, `quit` and every `stats`.

use super::Proxy;
use super::memcached::PROTOCOL;
use super::stats::Told;
use crate::clients::{write_line, write_stats, write_success};
use crate::net::Socket;
use crate::pools::{Asker, Totals};
use crate::protocol::{Format, Local, Verb, binary};
use crate::work::{REPORT, REPORT_LINES, Work};

const VERSION_LINE: &str = "VERSION 1.6.18\r\n";

impl<S: Socket> Proxy<S> {
    /// Answers a request that no server is asked for.
    pub(super) fn local(&mut self, key: usize, what: Local, format: Format, work: &mut Work) {
        match what {
            Local::Version => self.say(key, format, VERSION_LINE.as_bytes(), PROTOCOL.as_bytes()),
            // It changes nothing: what is logged is the operator's decision.
            Local::Verbosity => self.say(key, format, b"OK\r\n", b""),
            Local::Stats(arguments) => {
                work.count(REPORT);
                self.stats(key, format, &arguments, work);
            }
            Local::FlushAll(delay) => {
                self.clients.count_flush(key);
                let pool = self.clients.pool_of(key);
                let ticket = self.clients.owe_alone(key, format, Verb::FlushAll);
                if let (Some(pool), Some(ticket)) = (pool, ticket) {
                    self.pools.flush_all(ticket, pool, delay, &mut self.clients);
                }
            }
            Local::Quit => {
                if let Format::Binary(_) = format {
                    self.say(key, format, b"", b"");
                }
                self.clients.close(key);
            }
        }
    }

    fn say(&mut self, key: usize, format: Format, text: &[u8], body: &[u8]) {
        self.clients.say(key, format, |out, format| {
            write_success(format, text, body, out);
        });
    }

    fn stats(&mut self, key: usize, format: Format, arguments: &[u8], work: &mut Work) {
        let arguments = String::from_utf8_lossy(arguments);
        let pool = self.clients.pool_of(key).unwrap_or(0);
        let is_binary = matches!(format, Format::Binary(_));
        match self.tell_stats(Some(pool), &arguments, is_binary) {
            Told::Lines(lines) => {
                work.count(lines.len() / REPORT_LINES);
                self.clients
                    .say(key, format, |out, format| write_stats(format, &lines, out));
            }
            Told::Text(text) => self.say(key, format, text.as_bytes(), b""),
            Told::Refused(why) => self.clients.say(key, format, |out, format| {
                write_line(format, why.as_bytes(), out);
            }),
            Told::Primaries(line, totals) => self.ask_primaries(key, format, &line, totals),
            Told::Unknown => self.clients.say(key, format, |out, format| match format {
                Format::Binary(d) => binary::stat_unknown(&d, out),
                _ => out.push_slice(b"ERROR\r\n"),
            }),
        }
    }

    /// What the primaries of the client's pool say to `line`, merged, is the answer.
    fn ask_primaries(&mut self, key: usize, format: Format, line: &str, totals: Totals) {
        let pool = self.clients.pool_of(key);
        let ticket = self.clients.owe_alone(key, format, Verb::Stats);
        if let (Some(pool), Some(ticket)) = (pool, ticket) {
            let asker = Asker::Client(ticket);
            self.pools
                .ask_primaries(asker, Some(pool), line, totals, &mut self.clients);
        }
    }
}
