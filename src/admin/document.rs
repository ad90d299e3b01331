//! What monitors read, written in pieces from one snapshot: no turn takes long, and all of it is of one
//! moment.

use super::http::{self, Request};
use super::{json, metrics, page, twemproxy};
use crate::buffer::Queue;
use crate::proxy::Snapshot;
use crate::work::{REQUEST, Work};
use std::fmt::Write as _;

/// Pieces are sent together from this size on, in bytes.
const CHUNK: usize = 8 * 1024;

/// So many bytes are made in one unit of work.
const BYTES: usize = 256;

/// Its form.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// Prometheus' text format, version 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
    /// JSON.
    Json,
    /// twemproxy's JSON.
    Twemproxy,
    /// HTML.
    Page,
}

impl Form {
    fn kind(self) -> &'static str {
        match self {
            Form::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Form::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Form::Json | Form::Twemproxy => "application/json; charset=utf-8",
            Form::Page => "text/html; charset=utf-8",
        }
    }

    /// What the head of the answer says besides.
    fn more(self) -> &'static str {
        match self {
            Form::Page => page::POLICY,
            _ => "",
        }
    }
}

/// One document on its way.
#[derive(Debug)]
pub struct Document {
    form: Form,
    snapshot: Snapshot,
    /// How many pieces are written.
    at: usize,
    /// In chunks, each behind its length: HTTP/1.1. Else its end is that of the connection.
    is_chunked: bool,
    text: String,
}

impl Document {
    /// Writes the head of an answer; `None` if that is all that was asked for. Without chunks the
    /// connection is to be closed behind it.
    pub fn begin(
        form: Form,
        request: &Request<'_>,
        snapshot: impl FnOnce() -> Snapshot,
        out: &mut Queue,
    ) -> Option<Box<Document>> {
        http::write_head(form.kind(), form.more(), request, out);
        if request.is_head {
            return None;
        }
        let mut document = Document::bare(form, snapshot());
        document.is_chunked = request.knows_chunks;
        Some(document)
    }

    /// One without a head, at whose end the connection is to be closed.
    pub fn bare(form: Form, snapshot: Snapshot) -> Box<Document> {
        Box::new(Document {
            form,
            snapshot,
            at: 0,
            is_chunked: false,
            text: String::new(),
        })
    }

    /// Writes the next pieces. False at the end.
    pub fn go_on(&mut self, out: &mut Queue, work: &mut Work) -> bool {
        let mut goes_on = true;
        while goes_on && self.text.len() < CHUNK && !work.is_done() {
            let before = self.text.len();
            goes_on = match self.form {
                Form::Prometheus => metrics::write(&self.snapshot, self.at, false, &mut self.text),
                Form::OpenMetrics => metrics::write(&self.snapshot, self.at, true, &mut self.text),
                Form::Json => json::write(&self.snapshot, self.at, &mut self.text),
                Form::Page => page::write(&self.snapshot, self.at, &mut self.text),
                Form::Twemproxy => twemproxy::write(&self.snapshot, self.at, &mut self.text),
            };
            self.at += 1;
            work.count(REQUEST + (self.text.len() - before) / BYTES);
        }
        self.send(out);
        if !goes_on && self.is_chunked {
            out.push_slice(b"0\r\n\r\n");
        }
        goes_on
    }

    fn send(&mut self, out: &mut Queue) {
        if self.text.is_empty() {
            return;
        }
        if self.is_chunked {
            let mut head = String::new();
            let _ = write!(head, "{:x}\r\n", self.text.len());
            out.push_slice(head.as_bytes());
            self.text.push_str("\r\n");
        }
        out.push_slice(self.text.as_bytes());
        self.text.clear();
    }
}
