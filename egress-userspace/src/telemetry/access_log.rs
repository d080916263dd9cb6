//! One record for each request. It is opened when the request's head has been read and written when it is dropped, so
//! that no way out of the exchange forgets it.

mod lines;
mod output;

use std::{rc::Rc, sync::Arc, time::Instant};

use egress_common::origin::Origin;
use http::{Method, StatusCode};

use self::lines::name;
pub use self::{
    lines::{Format, Rendered, flush, keep_flushing, write_to_standard_error},
    output::LOST,
};
use super::metrics::Metrics;
use crate::{
    body::Content,
    upstream::{Cause, ConnectionInfo, causes},
};

/// How a request ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Outcome {
    /// Sent over TLS to a configured host.
    Upgraded,
    /// Sent on as it came: no rule names its host, or one says that it is left as it is.
    PassedThrough,
    /// Answered by its route, which asks no origin.
    Answered,
    /// Not sent: the request itself is at fault.
    Refused,
    /// No response from the origin, or none that could be verified.
    Failed,
    /// The response broke off.
    Truncated,
    /// The client went away before the end.
    Aborted,
}

impl Outcome {
    /// All outcomes.
    pub const ALL: [Self; 7] = [
        Self::Upgraded,
        Self::PassedThrough,
        Self::Answered,
        Self::Refused,
        Self::Failed,
        Self::Truncated,
        Self::Aborted,
    ];

    /// The value in the log and of the metric label `outcome`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Upgraded => "upgraded",
            Self::PassedThrough => "passed_through",
            Self::Answered => "answered",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Truncated => "truncated",
            Self::Aborted => "aborted",
        }
    }
}

/// Who sent the request and where it was going; the same for all requests of a connection.
#[derive(Debug)]
pub struct Client {
    /// What the kernel recorded at connect.
    pub origin: Origin,
    /// The process's name.
    pub process: String,
    /// Both, as they are logged.
    pub logged: Rendered,
}

impl Client {
    /// Who has made a connection to `origin`.
    pub fn new(origin: Origin) -> Self {
        Self { process: origin.process_name(), origin, logged: Rendered::default() }
    }
}

/// A request's record, to be filled while it is served. It goes from hand to hand, so it is in a box.
pub struct Record {
    metrics: Arc<Metrics>,
    started: Instant,
    client: Rc<Client>,
    method: Method,
    host: String,
    path: String,
    status: Option<StatusCode>,
    content: Option<Rc<Content>>,
    /// Received after the content, by a protocol that it has switched to.
    received: u64,
    sent: u64,
    route: Option<Arc<str>>,
    exception: Option<Arc<str>>,
    retries: u32,
    upstream: Option<(Rc<ConnectionInfo>, bool)>,
    /// What the outcome is if the response reaches its end.
    intended: Outcome,
    complete: bool,
    error: Option<String>,
    cause: Option<Cause>,
}

impl Record {
    /// Opens the record of a request that is not yet routed.
    pub fn open(metrics: Arc<Metrics>, client: Rc<Client>, method: Method, host: &str, path: &str) -> Box<Self> {
        Box::new(Self {
            metrics,
            started: Instant::now(),
            client,
            method,
            host: host.to_owned(),
            path: path.to_owned(),
            status: None,
            content: None,
            received: 0,
            sent: 0,
            route: None,
            exception: None,
            retries: 0,
            upstream: None,
            intended: Outcome::Aborted,
            complete: false,
            error: None,
            cause: None,
        })
    }

    /// Notes the response's status, and what the request comes to if all of the response is delivered.
    pub fn respond(&mut self, status: StatusCode, outcome: Outcome) {
        self.status = Some(status);
        self.intended = outcome;
    }

    /// Notes the name of the route that it falls under, if that has one.
    pub fn route(&mut self, name: Option<&Arc<str>>) {
        self.route = name.cloned();
    }

    /// Notes where it is said that it is left as it is, if that is why it is.
    pub fn exception(&mut self, by: Option<&Arc<str>>) {
        self.exception = by.cloned();
    }

    /// Counts that it is sent again, as its route wants.
    pub fn retried(&mut self) {
        self.retries += 1;
    }

    /// Notes that it waits for a connection: what comes of that is not an earlier one's.
    pub fn connecting(&mut self) {
        self.upstream = None;
    }

    /// Notes the connection that serves the request, and whether it had served others.
    pub fn upstream(&mut self, info: &Rc<ConnectionInfo>, reused: bool) {
        self.upstream = Some((info.clone(), reused));
    }

    /// Notes why it fails.
    pub fn error(&mut self, error: String) {
        self.error = Some(error);
    }

    /// Notes why it fails, and what that is counted as if it is for the origin.
    pub fn failed(&mut self, error: String, cause: Option<Cause>) {
        self.error = Some(error);
        self.cause = cause;
    }

    /// Notes that the response broke off.
    pub fn truncated(&mut self, error: &(dyn std::error::Error + 'static)) {
        self.intended = Outcome::Truncated;
        self.complete = true;
        self.error.get_or_insert_with(|| causes(error));
    }

    /// Notes that the response's end was reached.
    pub fn complete(&mut self) {
        self.complete = true;
    }

    /// Notes that the client does not take the response's end, though it was reached.
    pub fn given_up(&mut self) {
        if self.is_complete() {
            self.complete = false;
        }
    }

    /// Whether it was, without an error.
    pub fn is_complete(&self) -> bool {
        self.complete && self.intended != Outcome::Truncated
    }

    /// Whether nothing more comes, be it that the end was reached or that the response broke off.
    pub fn is_over(&self) -> bool {
        self.complete
    }

    /// Counts content sent to the client, in bytes.
    pub fn add_sent(&mut self, bytes: u64) {
        self.sent += bytes;
    }

    /// Notes the content of the request, which counts what is received of it.
    pub fn carries(&mut self, content: &Rc<Content>) {
        self.content = Some(content.clone());
    }

    /// Counts what is received from the client after that, in bytes.
    pub fn add_received(&mut self, bytes: u64) {
        self.received += bytes;
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let outcome = if self.complete { self.intended } else { Outcome::Aborted };
        self.metrics.request(outcome);
        if let Some(cause) = self.cause {
            self.metrics.failure(cause);
        }
        if !tracing::enabled!(target: TARGET, tracing::Level::INFO) {
            return;
        }
        let received = self.received + self.content.as_ref().map_or(0, |content| content.bytes());
        let duration = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        lines::write(|line| {
            line.word(name!("outcome"), outcome.label());
            line.word(name!("method"), self.method.as_str());
            line.text(name!("host"), &self.host);
            line.text(name!("path"), &self.path);
            if let Some(status) = self.status {
                line.number(name!("status"), status.as_u16().into());
            }
            line.number(name!("received"), received);
            line.number(name!("sent"), self.sent);
            line.number(name!("duration_us"), duration);
            let Client { origin, process, logged } = &*self.client;
            line.rendered(logged, |line| {
                line.number(name!("pid"), origin.pid.into());
                line.text(name!("process"), process);
                line.address(name!("origin"), origin.socket_addr());
            });
            if let Some(route) = &self.route {
                line.text(name!("route"), route);
            }
            if let Some(exception) = &self.exception {
                line.text(name!("exception"), exception);
            }
            if self.retries > 0 {
                line.number(name!("retries"), self.retries.into());
            }
            if let Some((info, reused)) = &self.upstream {
                line.rendered(&info.logged, |line| {
                    line.address(name!("upstream"), info.address);
                    line.word(name!("protocol"), info.protocol);
                    if let Some(tls) = &info.tls {
                        line.word(name!("tls"), tls.version);
                        line.word(name!("cipher"), tls.cipher);
                        line.word(name!("group"), tls.group);
                    }
                });
                line.flag(name!("reused"), *reused);
            }
            if let Some(cause) = self.cause {
                line.word(name!("cause"), cause.label());
            }
            if let Some(error) = &self.error {
                line.text(name!("error"), error);
            }
        });
    }
}

/// The target of access-log events, as it is put into lines when this is compiled.
macro_rules! target {
    () => {
        "egress::access"
    };
}
use target;

/// The target of access-log events, by which they can be filtered.
pub const TARGET: &str = target!();
