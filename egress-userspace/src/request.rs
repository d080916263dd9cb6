//! One request: which rule it falls under, its exchange with the origin, and the errors that we answer ourselves.

pub mod answer;
pub mod headers;
pub mod host;
mod respond;
pub mod retry;
pub mod rewrite;
pub mod select;
pub mod tunnel;

use std::{cell::Cell, rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use egress_common::origin::Origin;
use http::{Method, Request, Response, Uri, header, request, uri::PathAndQuery};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::{body::Incoming, upgrade::OnUpgrade};
use rustls_pki_types::ServerName;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use self::{host::RequestHost, respond::ProxyError, tunnel::Tunnel};
use crate::{
    body::{Lease, Progress, RequestBody, ResponseBody},
    route::Route,
    socket::Place,
    telemetry::access_log::{Client, Outcome, Record},
    upstream::{
        self, Connection, UpstreamError,
        pool::{self, Key, To},
    },
    worker::Worker,
};

/// A redirected connection, accepted.
pub struct Accepted {
    /// Where the application connects from.
    pub from: Place,
    /// Cancelled when the namespace's last process is gone.
    pub gone: CancellationToken,
    /// Where it was going, and who it is.
    pub origin: Origin,
}

/// How much of a request's body is read, and for how long, before an error is answered.
const DISCARD_LIMIT: usize = 1024 * 1024;
const DISCARD_TIME: Duration = Duration::from_secs(1);

/// Where a request goes.
enum Routed {
    /// A rule names its host.
    Originate(Arc<Route>, ServerName<'static>),
    /// No rule does.
    PassThrough,
}

/// An accepted connection while it is served.
pub struct Conversation<'a> {
    /// The worker that serves it.
    pub worker: &'a Worker,
    /// Where it comes from and was going.
    pub accepted: Accepted,
    /// The same for the log.
    pub client: Rc<Client>,
    /// Whether there was a request.
    pub begun: Cell<bool>,
    /// What goes on after the last exchange, if that has switched protocols.
    pub tunnel: Cell<Option<Tunnel>>,
    /// Whether the end of the connection is all that tells the client that the response is complete.
    pub ends_by_close: Cell<bool>,
}

/// What the origin answered.
struct Answer {
    response: Response<Incoming>,
    lease: Lease,
    outcome: Outcome,
    /// The upstream end, if it switches protocols.
    switched: Option<OnUpgrade>,
}

impl Conversation<'_> {
    /// Serves one request.
    pub async fn serve(&self, request: Request<Incoming>) -> Response<ResponseBody> {
        self.begun.set(true);
        let host = RequestHost::of(&request);
        let shown = host.as_ref().map_or("", |host| host.as_str());
        let (metrics, method) = (self.worker.metrics.clone(), request.method().clone());
        let knows_chunks = request.version() >= http::Version::HTTP_11;
        let mut record = Record::open(metrics, self.client.clone(), method, shown, request.uri().path());
        let progress = Rc::<Progress>::default();
        let result = match host {
            Ok(host) => self.exchange(&host, request, &progress, &mut record).await,
            Err(error) => Err(error),
        };
        match result {
            Ok(answer) => {
                let has_length = answer.response.headers().contains_key(header::CONTENT_LENGTH);
                self.ends_by_close.set(!knows_chunks && !has_length);
                self.respond(answer, record)
            }
            Err(error) => {
                record.set_received(progress.bytes());
                error.respond(record)
            }
        }
    }

    fn respond(&self, answer: Answer, mut record: Record) -> Response<ResponseBody> {
        let (mut head, body) = answer.response.into_parts();
        headers::prepare_response(&mut head);
        record.respond(head.status, answer.outcome);
        let body = match answer.switched {
            Some(upstream) => {
                self.tunnel.set(Some(Tunnel::new(upstream, record)));
                ResponseBody::switching()
            }
            None => ResponseBody::upstream(body, answer.lease, record),
        };
        Response::from_parts(head, body)
    }

    async fn exchange(
        &self,
        host: &RequestHost,
        request: Request<Incoming>,
        progress: &Rc<Progress>,
        record: &mut Record,
    ) -> Result<Answer, ProxyError> {
        if request.method() == Method::CONNECT {
            return Err(ProxyError::connect_method());
        }
        let origin = self.accepted.origin.socket_addr();
        let routed = match self.worker.routes.load().route(host.as_str(), origin.port()) {
            Some(route) => {
                let name = route.originator.server_name(host.as_str()).ok_or_else(ProxyError::unverifiable_host)?;
                Routed::Originate(route.clone(), name)
            }
            None => Routed::PassThrough,
        };
        let (to, outcome) = match &routed {
            Routed::Originate(route, _) => (route.pooled(host.as_str(), origin.ip()), Outcome::Upgraded),
            Routed::PassThrough => (To::Origin(origin), Outcome::PassedThrough),
        };
        let Place { netns, device } = &self.accepted.from;
        let key = Key { netns: netns.cookie(), device: *device, to };
        let asks_to_switch = headers::asks_to_switch(request.headers());
        let (mut head, body) = request.into_parts();
        prepare(&mut head, host);
        let mut attempt = Attempt::new(head, body, progress);

        let mut pooled = self.worker.pool.take(&key, attempt.max_idle());
        loop {
            let reused = pooled.is_some();
            let mut connection = match pooled.take() {
                Some(connection) => connection,
                None => match self.connect(&routed).await {
                    Ok(connection) => connection,
                    Err(error) => {
                        attempt.discard().await;
                        return Err(error.into());
                    }
                },
            };
            record.upstream(&connection.info, reused);
            match connection.sender.try_send_request(attempt.request()?).await {
                Ok(mut response) => {
                    let switched = Tunnel::agreed(&mut response);
                    if switched.is_some() && !asks_to_switch {
                        return Err(ProxyError::unasked_switch());
                    }
                    let pool = self.worker.pool.clone();
                    let lease = Lease { connection: Some(connection), pool, key, progress: progress.clone() };
                    return Ok(Answer { response, lease, outcome, switched });
                }
                Err(mut failure) => {
                    let unsent = failure.take_message();
                    let source = failure.into_error();
                    // Once, and on a fresh connection: a pooled one may have been closed by the origin just now.
                    if reused && upstream::connect::is_gone(&source) && attempt.restore(unsent) {
                        continue;
                    }
                    return Err(UpstreamError::of_exchange(&connection.info, source).into());
                }
            }
        }
    }

    async fn connect(&self, routed: &Routed) -> Result<Connection, UpstreamError> {
        let Worker { sockets, metrics, .. } = self.worker;
        let Accepted { from, origin, .. } = &self.accepted;
        let origin = origin.socket_addr();
        match routed {
            Routed::Originate(route, name) => {
                upstream::connect::tls(sockets, metrics, from, route, name.clone(), origin).await
            }
            Routed::PassThrough => upstream::connect::plain(sockets, from, origin).await,
        }
    }
}

/// Makes the head what the origin should see: what the application sent, less what concerns our connection alone.
fn prepare(head: &mut request::Parts, host: &RequestHost) {
    head.version = http::Version::HTTP_11;
    headers::remove_hop_by_hop(&mut head.headers);
    if head.uri.authority().is_some() {
        // To an origin goes the origin form, with the target's authority as Host (RFC 9112 sections 3.2.1 and 3.2.2).
        let target = head.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        head.uri = Uri::from(target);
        headers::replace_host(&mut head.headers, host.authority());
    }
}

/// A request on its way, and what is needed to send it a second time where that is safe: it was not sent at all, or it
/// is idempotent (RFC 9110 section 9.2.2) and has no content.
struct Attempt {
    request: Option<Request<RequestBody>>,
    /// The head of a request that may be repeated.
    repeatable: Option<request::Parts>,
    progress: Rc<Progress>,
}

impl Attempt {
    fn new(head: request::Parts, body: Incoming, progress: &Rc<Progress>) -> Self {
        let repeatable = (body.is_end_stream() && head.method.is_idempotent()).then(|| head.clone());
        let request = Request::from_parts(head, RequestBody::new(body, progress.clone()));
        Self { request: Some(request), repeatable, progress: progress.clone() }
    }

    fn max_idle(&self) -> Duration {
        if self.repeatable.is_some() { pool::MAX_IDLE } else { pool::MAX_IDLE_UNREPEATABLE }
    }

    /// The request to send; an error only if it was sent and not restored.
    fn request(&mut self) -> Result<Request<RequestBody>, ProxyError> {
        self.request.take().ok_or_else(ProxyError::internal)
    }

    /// Reads some of a body that goes nowhere. What is left unread when the connection is closed makes the kernel reset it,
    /// and a client that is still sending would never see our answer.
    async fn discard(&mut self) {
        let Some(request) = self.request.take() else { return };
        // Such a client waits for our answer first.
        if request.headers().contains_key(header::EXPECT) {
            return;
        }
        let mut body = request.into_body();
        let mut left = DISCARD_LIMIT;
        let reading = async {
            while let Some(Ok(frame)) = body.frame().await {
                left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
                if left == 0 {
                    return;
                }
            }
        };
        // What could not be read in time stays unread.
        let _ = timeout(DISCARD_TIME, reading).await;
    }

    /// Makes the request ready to be sent again, if that is safe.
    fn restore(&mut self, unsent: Option<Request<RequestBody>>) -> bool {
        self.request = unsent.or_else(|| {
            let head = self.repeatable.take()?;
            Some(Request::from_parts(head, RequestBody::empty(self.progress.clone())))
        });
        self.request.is_some()
    }
}
