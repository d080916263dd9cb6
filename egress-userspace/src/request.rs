//! One request: which rule it falls under, its exchange with the origin, and the errors that we answer ourselves.

pub mod answer;
mod attempt;
pub mod headers;
pub mod host;
mod respond;
pub mod retry;
pub mod rewrite;
pub mod select;
pub mod tunnel;

use std::{cell::Cell, rc::Rc, sync::Arc};

use egress_common::origin::Origin;
use http::{Method, Request, Response, StatusCode, header, request};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use rustls_pki_types::ServerName;
use tokio_util::sync::CancellationToken;

use self::{attempt::Attempt, host::RequestHost, respond::ProxyError, tunnel::Tunnel};
use crate::{
    body::{Content, Lease, ResponseBody},
    route::Route,
    socket::Place,
    telemetry::access_log::{Client, Outcome, Record},
    upstream::{
        Made, Offer, UpstreamError,
        pool::{Key, To},
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

/// Where a request goes.
#[derive(Clone)]
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
    /// Whether no content follows, whatever the head says.
    is_bare: bool,
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
        let (head, body) = request.into_parts();
        let content = Content::new(body);
        let result = match host {
            Ok(host) => self.exchange(&host, head, &content, &mut record).await,
            Err(error) => Err(error),
        };
        match result {
            Ok(answer) => {
                let has_length = answer.response.headers().contains_key(header::CONTENT_LENGTH);
                self.ends_by_close.set(!knows_chunks && !has_length);
                self.respond(answer, record)
            }
            Err(error) => {
                record.set_received(content.bytes());
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
            None => ResponseBody::upstream(body, answer.is_bare, answer.lease, record),
        };
        Response::from_parts(head, body)
    }

    async fn exchange(
        &self,
        host: &RequestHost,
        head: request::Parts,
        content: &Rc<Content>,
        record: &mut Record,
    ) -> Result<Answer, ProxyError> {
        if head.method == Method::CONNECT {
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
        let is_head = head.method == Method::HEAD;
        let asks_to_switch = headers::asks_to_switch(&head.headers);
        // RFC 8441 is rarely offered, and needs another request than the one that the client has made.
        let http2 = matches!(routed, Routed::Originate(..)) && !asks_to_switch;
        let mut attempt = Attempt::new(head, host, content, http2);

        loop {
            let connecting = self.worker.pool.get(&key, attempt.wanted(), |offer| self.connect(&routed, offer));
            let mut connection = match connecting.await {
                Ok(connection) => connection,
                Err(error) => {
                    attempt.discard().await;
                    return Err(error.as_ref().into());
                }
            };
            record.upstream(connection.info(), connection.is_reused());
            let failure = match connection.send(attempt.request(&connection)?).await {
                Ok(mut response) => {
                    let switched = Tunnel::agreed(&mut response);
                    if switched.is_some() && !asks_to_switch {
                        return Err(ProxyError::unasked_switch());
                    }
                    let is_bare =
                        is_head || matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
                    let (http2, pool) = (connection.is_http2(), self.worker.pool.clone());
                    let lease = Lease { connection: Some(connection), http2, pool, key, content: content.clone() };
                    return Ok(Answer { response, lease, outcome, is_bare, switched });
                }
                Err(failure) => failure,
            };
            if let Err(error) = attempt.again(failure, &connection) {
                return Err((&connection.failure(error)).into());
            }
            if attempt.needs_http1() {
                self.worker.pool.require_http1(&key);
            }
        }
    }

    /// Makes a connection, which may outlive this exchange: others may be waiting for it too.
    fn connect(
        &self,
        routed: &Routed,
        offer: Offer,
    ) -> impl Future<Output = Result<Made, UpstreamError>> + use<> + 'static {
        let connector = self.worker.connector.clone();
        let Accepted { from, origin, .. } = &self.accepted;
        let (from, origin, routed) = (from.clone(), origin.socket_addr(), routed.clone());
        async move {
            match routed {
                Routed::Originate(route, name) => connector.tls(&from, &route, &name, origin, offer).await,
                Routed::PassThrough => connector.plain(&from, origin).await,
            }
        }
    }
}
