//! One request: which rule it falls under, its exchange with the origin, and the errors that we answer ourselves.

pub mod headers;
pub mod host;
mod respond;

use std::{rc::Rc, sync::Arc};

use egress_common::origin::Origin;
use http::{Method, Request, Response, Uri, request, uri::PathAndQuery};
use http_body::Body as _;
use hyper::body::Incoming;
use tokio_util::sync::CancellationToken;

use self::{host::RequestHost, respond::ProxyError};
use crate::{
    body::{Lease, Progress, RequestBody, ResponseBody},
    netns::Netns,
    route::Route,
    telemetry::access_log::{Client, Outcome, Record},
    upstream::{
        self, Connection, UpstreamError,
        pool::{self, Key, To},
    },
    worker::Worker,
};

/// A redirected connection, accepted.
pub struct Accepted {
    /// The application's network namespace.
    pub netns: Netns,
    /// Cancelled when the namespace's last process is gone.
    pub gone: CancellationToken,
    /// Where it was going, and who it is.
    pub origin: Origin,
}

/// Where a request goes.
enum Routed {
    /// A rule names its host.
    Originate(Arc<Route>),
    /// No rule does.
    PassThrough,
}

/// Serves one request of an accepted connection.
pub async fn serve(
    worker: &Worker,
    accepted: &Accepted,
    client: &Rc<Client>,
    request: Request<Incoming>,
) -> Response<ResponseBody> {
    let host = RequestHost::of(&request);
    let shown = host.as_ref().map_or("", |host| host.as_str());
    let mut record =
        Record::open(worker.metrics.clone(), client.clone(), request.method().clone(), shown, request.uri().path());
    let progress = Rc::<Progress>::default();
    let result = match host {
        Ok(host) => exchange(worker, accepted, &host, request, &progress, &mut record).await,
        Err(error) => Err(error),
    };
    match result {
        Ok((response, lease, outcome)) => {
            let (mut head, body) = response.into_parts();
            headers::prepare_response(&mut head);
            record.respond(head.status, outcome);
            Response::from_parts(head, ResponseBody::upstream(body, lease, record))
        }
        Err(error) => {
            record.set_received(progress.bytes());
            error.respond(record)
        }
    }
}

async fn exchange(
    worker: &Worker,
    accepted: &Accepted,
    host: &RequestHost,
    request: Request<Incoming>,
    progress: &Rc<Progress>,
    record: &mut Record,
) -> Result<(Response<Incoming>, Lease, Outcome), ProxyError> {
    if request.method() == Method::CONNECT {
        return Err(ProxyError::connect_method());
    }
    let origin = accepted.origin.socket_addr();
    let routed = match worker.routes.load().route(host.as_str(), origin.port()) {
        Some(route) => Routed::Originate(route.clone()),
        None => Routed::PassThrough,
    };
    let (to, outcome) = match &routed {
        Routed::Originate(route) => (To::Route(route.id, route.bound_to(origin.ip())), Outcome::Upgraded),
        Routed::PassThrough => (To::Origin(origin), Outcome::PassedThrough),
    };
    let key = Key { netns: accepted.netns.cookie(), to };
    let (mut head, body) = request.into_parts();
    prepare(&mut head, host);
    let mut attempt = Attempt::new(head, body, progress);

    let mut pooled = worker.pool.take(key, attempt.max_idle());
    loop {
        let reused = pooled.is_some();
        let mut connection = match pooled.take() {
            Some(connection) => connection,
            None => connect(worker, accepted, &routed).await?,
        };
        record.upstream(&connection.info, reused);
        match connection.sender.try_send_request(attempt.request()?).await {
            Ok(response) => {
                let lease =
                    Lease { connection: Some(connection), pool: worker.pool.clone(), key, progress: progress.clone() };
                return Ok((response, lease, outcome));
            }
            Err(mut failure) => {
                let unsent = failure.take_message();
                let source = failure.into_error();
                // Once, and on a fresh connection: a pooled one may have been closed by the origin just now.
                if reused && upstream::connect::is_gone(&source) && attempt.restore(unsent) {
                    continue;
                }
                let address = connection.info.address;
                return Err(UpstreamError::of_exchange(address, source).into());
            }
        }
    }
}

async fn connect(worker: &Worker, accepted: &Accepted, routed: &Routed) -> Result<Connection, UpstreamError> {
    let origin = accepted.origin.socket_addr();
    match routed {
        Routed::Originate(route) => {
            upstream::connect::tls(&worker.sockets, &worker.metrics, &accepted.netns, route, origin).await
        }
        Routed::PassThrough => upstream::connect::plain(&worker.sockets, &accepted.netns, origin).await,
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

    fn max_idle(&self) -> std::time::Duration {
        if self.repeatable.is_some() { pool::MAX_IDLE } else { pool::MAX_IDLE_UNREPEATABLE }
    }

    /// The request to send; an error only if it was sent and not restored.
    fn request(&mut self) -> Result<Request<RequestBody>, ProxyError> {
        self.request.take().ok_or_else(ProxyError::internal)
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
