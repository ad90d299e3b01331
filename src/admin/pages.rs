//! What HTTP asks for, by its path.

use super::document::{Document, Form};
use super::http::{self, Answer, Refusal, Request};
use super::json;
use super::task::Task;
use crate::buffer::Queue;
use crate::net::Socket;
use crate::proxy::{Proxy, Snapshot};
use crate::work::{REPORT, Work};

/// Answers a request. False if the connection is to be closed behind the answer.
pub fn answer<S: Socket>(
    head: &[u8],
    is_tcp: bool,
    proxy: &mut Proxy<S>,
    out: &mut Queue,
    work: &mut Work,
) -> (Task, bool) {
    let request = match http::parse(head, is_tcp) {
        Ok(request) => request,
        Err(why) => {
            http::refuse(why, None, out);
            return (Task::Nothing, false);
        }
    };
    work.count(REPORT);
    let task = match request.path {
        "/metrics" if request.likes_openmetrics => begin(Form::OpenMetrics, &request, proxy, out),
        "/metrics" => begin(Form::Prometheus, &request, proxy, out),
        "/stats.json" => begin(Form::Json, &request, proxy, out),
        "/" => begin(Form::Page, &request, proxy, out),
        "/page.json" => {
            let snapshot = || proxy.live_snapshot();
            begin_with(Form::Json, &request, snapshot, out)
        }
        "/route.json" => route(&request, proxy, out),
        "/healthz" => {
            let why = (!proxy.is_serving()).then(|| "stopping".to_string());
            condition(why.into_iter().collect(), &request, out)
        }
        "/readyz" => condition(proxy.unanswered(), &request, out),
        _ => {
            http::refuse(Refusal::NotFound, Some(&request), out);
            Task::Nothing
        }
    };
    let has_length = matches!(task, Task::Nothing) || request.knows_chunks;
    (task, request.stays && has_length)
}

fn begin<S: Socket>(form: Form, request: &Request<'_>, proxy: &Proxy<S>, out: &mut Queue) -> Task {
    begin_with(form, request, || proxy.snapshot(), out)
}

fn begin_with(
    form: Form,
    request: &Request<'_>,
    snapshot: impl FnOnce() -> Snapshot,
    out: &mut Queue,
) -> Task {
    match Document::begin(form, request, snapshot, out) {
        Some(document) => Task::Document(document),
        None => Task::Nothing,
    }
}

/// Where the key of the query goes, in each pool.
fn route<S: Socket>(request: &Request<'_>, proxy: &mut Proxy<S>, out: &mut Queue) -> Task {
    let key = request.field("key").filter(|key| !key.is_empty());
    let Some(key) = key else {
        http::refuse(Refusal::NotFound, Some(request), out);
        return Task::Nothing;
    };
    let mut body = String::new();
    json::routes(&proxy.routes(&key), &mut body);
    let answer = Answer {
        status: "200 OK",
        kind: "application/json; charset=utf-8",
        body: body.as_bytes(),
    };
    answer.write(request, out);
    Task::Nothing
}

/// 200 if there is no reason why not.
fn condition(why: Vec<String>, request: &Request<'_>, out: &mut Queue) -> Task {
    let (status, body) = match why.is_empty() {
        true => ("200 OK", "ok\n".to_string()),
        false => ("503 Service Unavailable", why.join("\n") + "\n"),
    };
    let answer = Answer {
        status,
        kind: http::TEXT,
        body: body.as_bytes(),
    };
    answer.write(request, out);
    Task::Nothing
}
