//! One request: which rule it falls under, its exchange with the origin, and the errors that we answer ourselves.

pub mod answer;
mod attempt;
mod exchange;
mod forward;
pub mod headers;
pub mod host;
mod mirror;
mod respond;
pub mod retry;
pub mod rewrite;
pub mod select;
pub mod tunnel;

use std::{cell::Cell, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use egress_common::origin::Origin;
use http::{Method, Request, Response, header, request};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use rustls_pki_types::ServerName;
use tokio_util::sync::CancellationToken;

use self::{exchange::Exchange, host::RequestHost, respond::ProxyError, tunnel::Tunnel};
use crate::{
    body::{Content, Lease, ResponseBody},
    policy::Retries,
    route::Cluster,
    socket::Place,
    telemetry::access_log::{Client, Outcome, Record},
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
    Originate(Arc<Cluster>, ServerName<'static>),
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

/// What a client is answered.
#[expect(clippy::large_enum_variant, reason = "nearly all are from origins, and it lives for a moment")]
enum Reply {
    /// By the origin.
    Upstream(Answer),
    /// By a route that asks no origin.
    Local(Response<Bytes>),
}

/// How a request is sent.
struct Sending<'a> {
    /// Where to.
    routed: Routed,
    /// Whether the client takes trailers.
    trailers: bool,
    /// Whether it asks to switch protocols.
    asks_to_switch: bool,
    /// The time for the whole exchange.
    timeout: Option<Duration>,
    /// What the user wants of retries.
    retries: Option<&'a Retries>,
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
    /// How long nobody may say anything after that.
    tunnel_idle: Option<Duration>,
    /// The origin's.
    address: SocketAddr,
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
            Ok(host) => self.reply(&host, head, &content, &mut record).await,
            Err(error) => Err(error),
        };
        match result {
            Ok(Reply::Upstream(answer)) => {
                let has_length = answer.response.headers().contains_key(header::CONTENT_LENGTH);
                self.ends_by_close.set(!knows_chunks && !has_length);
                self.respond(answer, record)
            }
            Ok(Reply::Local(response)) => {
                attempt::discard(&content).await;
                record.set_received(content.bytes());
                record.respond(response.status(), Outcome::Answered);
                response.map(|text| ResponseBody::message(text, record))
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
                self.tunnel.set(Some(Tunnel::new(upstream, record, answer.lease, answer.tunnel_idle)));
                ResponseBody::switching()
            }
            None => ResponseBody::upstream(body, answer.is_bare, answer.lease, record),
        };
        Response::from_parts(head, body)
    }

    async fn reply(
        &self,
        host: &RequestHost,
        mut head: request::Parts,
        content: &Rc<Content>,
        record: &mut Record,
    ) -> Result<Reply, ProxyError> {
        if head.method == Method::CONNECT {
            return Err(ProxyError::connect_method());
        }
        let port = self.accepted.origin.socket_addr().port();
        let route = self.worker.routes.load().route(host.as_str(), port).cloned();
        if let Some(route) = route {
            return self.by_rule(&route, host, head, content, record).await;
        }
        let sending = Sending {
            routed: Routed::PassThrough,
            trailers: headers::takes_trailers(&head.headers),
            asks_to_switch: headers::asks_to_switch(&head.headers),
            timeout: None,
            retries: None,
        };
        attempt::prepare(&mut head, host);
        self.exchange(host, head, content, sending, record).await.map(Reply::Upstream)
    }

    async fn exchange(
        &self,
        host: &RequestHost,
        head: request::Parts,
        content: &Rc<Content>,
        sending: Sending<'_>,
        record: &mut Record,
    ) -> Result<Answer, ProxyError> {
        let exchange = Exchange { worker: self.worker, accepted: &self.accepted, host, content, sending: &sending };
        let result = exchange.run(head, record).await;
        if result.is_err() {
            attempt::discard(content).await;
        }
        result
    }
}
