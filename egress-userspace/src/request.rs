//! One request: which rule it falls under, its exchange with the origin, and the errors that we answer ourselves.

pub mod answer;
mod attempt;
mod early;
mod exchange;
mod forward;
mod grpc;
pub mod headers;
pub mod host;
mod mirror;
mod respond;
pub mod retry;
pub mod rewrite;
pub mod select;
pub mod tunnel;
pub mod web_socket;

use std::{
    cell::OnceCell,
    net::SocketAddr,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use egress_common::origin::Origin;
use http::{Method, Version, header};
use rustls_pki_types::ServerName;
use tokio_util::sync::CancellationToken;

pub use self::{attempt::prepare, respond::ProxyError};
use self::{
    exchange::Exchange,
    host::RequestHost,
    tunnel::{Silence, Tunnel},
};
use crate::{
    body::{Content, Incoming, Lease, ResponseBody},
    head::{Fields, RequestHead, Response},
    http1,
    limits::Beyond,
    policy::Retries,
    route::Cluster,
    socket::Place,
    telemetry::access_log::{Client, Outcome, Record},
    upstream::{
        Connection,
        pool::{Owner, Owning},
    },
    worker::{Load, Worker},
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
    PassThrough {
        /// Whether the client speaks HTTP/2, and takes it for granted that the origin does.
        http2: bool,
    },
}

/// An accepted connection while it is served.
pub struct Conversation {
    /// The worker that serves it.
    pub worker: Rc<Worker>,
    /// Where it comes from and was going.
    pub accepted: Accepted,
    /// The same for the log. Every request that is under way has it.
    pub client: Rc<Client>,
    /// Its own connections to origins, once it has some.
    owning: OnceCell<Owning>,
}

/// What comes of a request.
pub struct Served {
    /// For the client.
    pub response: Response<ResponseBody>,
    /// What goes on after it, if it switches protocols.
    pub tunnel: Option<Box<Tunnel>>,
    /// Whether the end of the connection is all that tells the client that the response is complete.
    pub ends_by_close: bool,
}

impl From<Response<ResponseBody>> for Served {
    fn from(response: Response<ResponseBody>) -> Self {
        Self { response, tunnel: None, ends_by_close: false }
    }
}

impl Served {
    /// What a client of HTTP/2 is answered whose request for a WebSocket has got a page.
    pub fn no_web_socket(self) -> Response<ResponseBody> {
        let Response { head, body } = self.response;
        let error = ProxyError::no_web_socket(head.status, body.is_of_origin());
        match body.replaced() {
            Some(record) => failed(error, false, record),
            None => error.unrecorded(),
        }
    }
}

/// What a client is answered.
enum Reply {
    /// By the origin.
    Upstream(Box<Answer>),
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
    lease: Box<Lease>,
    outcome: Outcome,
    /// Whether no content follows, whatever the head says.
    is_bare: bool,
    /// Whether it switches protocols.
    switches: bool,
    /// How long nobody may say anything after that.
    silence: Silence,
    /// The origin's.
    address: SocketAddr,
}

impl Answer {
    /// Whether its content is coded for the connection alone, which only HTTP/1.1 can say.
    fn is_coded(&self) -> bool {
        !self.is_bare && http1::is_coded(&self.response.head.fields)
    }

    /// Ends the exchange, as nobody gets the response.
    fn discard(self) {
        if !self.switches {
            self.lease.release(self.response.body, self.is_bare);
        }
    }
}

impl Conversation {
    /// A conversation that has yet to begin.
    pub fn new(worker: Rc<Worker>, accepted: Accepted) -> Self {
        let client = Rc::new(Client::new(accepted.origin));
        Self { worker, accepted, client, owning: OnceCell::new() }
    }

    /// Answers a request that is not served, because of this error.
    pub fn turn_away(&self, head: &RequestHead, error: ProxyError) -> Response<ResponseBody> {
        let host = head.fields.text(&header::HOST).unwrap_or_default();
        let (metrics, client) = (self.worker.metrics.clone(), self.client.clone());
        let record = Record::open(metrics, client, head.method.clone(), host, head.uri().path());
        failed(error, grpc::asks(head), record)
    }

    /// Answers what cannot be read as a request. Whose bytes these are nobody can say, so they go nowhere.
    pub fn refuse(&self, fault: http1::Fault) -> Response<ResponseBody> {
        let (origin, pid, process) = (self.client.origin.socket_addr(), self.client.origin.pid, &self.client.process);
        self.worker.metrics.not_http.inc();
        tracing::warn!(%origin, pid, process, error = %fault, "refused what is not a request, or has more fields than are taken");
        ProxyError::malformed(fault).unrecorded()
    }

    /// Answers what has yet to become a request, and is beyond a limit already.
    pub fn refuse_beyond(&self, why: Beyond) -> Response<ResponseBody> {
        self.note_beyond(why);
        ProxyError::too_many(why).unrecorded()
    }

    /// Notes that the connection ends as there is no room for what has come of a head.
    pub fn note_beyond(&self, why: Beyond) {
        let (origin, pid, process) = (self.client.origin.socket_addr(), self.client.origin.pid, &self.client.process);
        self.worker.metrics.too_many(why);
        tracing::warn!(%origin, pid, process, %why, "a request's head did not come to its end");
    }

    /// Answers a client that takes too long for a request's head.
    pub fn late(&self) -> Response<ResponseBody> {
        self.note_late();
        ProxyError::late().unrecorded()
    }

    /// Notes that the connection ends as a head does not come to its end, or what else was begun.
    pub fn note_late(&self) {
        let (origin, pid, process) = (self.client.origin.socket_addr(), self.client.origin.pid, &self.client.process);
        self.worker.metrics.late.inc();
        tracing::warn!(%origin, pid, process, "what a client has begun, as a request's head, did not come to its end in time (--head-timeout)");
    }

    /// Notes why the connection has ended, if not in order.
    pub fn ended(&self, error: &dyn std::error::Error) {
        let (origin, pid, process) = (self.client.origin.socket_addr(), self.client.origin.pid, &self.client.process);
        tracing::debug!(%origin, pid, process, %error, "client connection ended");
    }

    /// Serves one request, whose head is held in `load`, and then that of the response. That its client has `stalled` for so long ends
    /// it, as long as there is no response.
    pub async fn serve(
        &self,
        mut head: RequestHead,
        body: Incoming,
        load: &Load,
        stalled: Pin<&mut impl Future<Output = Duration>>,
    ) -> Served {
        let host = RequestHost::of(&head);
        let shown = host.as_ref().map_or("", |host| host.as_str());
        let (metrics, method) = (self.worker.metrics.clone(), head.method.clone());
        let knows_chunks = head.version >= Version::HTTP_11;
        // One of HTTP/2 that asks for a WebSocket does so in HTTP/1.1 from here on.
        let knows_codings = head.version == Version::HTTP_11 && matches!(body, Incoming::Client(_));
        let is_grpc = grpc::asks(&head);
        let mut record = Record::open(metrics, self.client.clone(), method, shown, head.uri().path());
        let content = Content::new(body);
        record.carries(&content);
        let result = match host {
            Ok(host) => {
                let reply = pin!(self.reply(&host, &mut head, &content, &mut record));
                tokio::select! {
                    biased;
                    result = reply => result,
                    limit = stalled => Err(ProxyError::stalled(limit, &content)),
                }
            }
            Err(error) => Err(error),
        };
        let result = match result {
            Ok(Reply::Upstream(answer)) => match self.can_be_told(&answer, knows_codings, load) {
                Ok(()) => Ok(Reply::Upstream(answer)),
                Err(error) => {
                    answer.discard();
                    attempt::discard(&content).await;
                    Err(error)
                }
            },
            result => result,
        };
        match result {
            Ok(Reply::Upstream(answer)) => {
                content.forget();
                let ends_by_close = !knows_chunks && !answer.response.head.fields.contains(&header::CONTENT_LENGTH);
                let (response, tunnel) = respond(*answer, record);
                Served { response, tunnel, ends_by_close }
            }
            Ok(Reply::Local(response)) => {
                attempt::discard(&content).await;
                record.respond(response.head.status, Outcome::Answered);
                own(response, is_grpc, record).into()
            }
            Err(error) => failed(error, is_grpc, record).into(),
        }
    }

    /// Whether the client can have this response. Its head is held in `load` then.
    fn can_be_told(&self, answer: &Answer, knows_codings: bool, load: &Load) -> Result<(), ProxyError> {
        // It would be told of content that is coded as if it were not.
        if !knows_codings && answer.is_coded() {
            return Err(ProxyError::unknown_coding());
        }
        self.worker.hold(load, answer.response.head.fields.size()).map_err(ProxyError::too_much_answered)
    }

    async fn reply(
        &self,
        host: &RequestHost,
        head: &mut RequestHead,
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
        record.exception(self.worker.routes.load().exception(host.as_str(), port));
        let sending = Sending {
            routed: Routed::PassThrough { http2: head.version == Version::HTTP_2 },
            trailers: headers::takes_trailers(head.version, &head.fields),
            asks_to_switch: headers::asks_to_switch(&head.fields),
            timeout: None,
            retries: None,
        };
        prepare(head, host);
        self.exchange(host, head, content, sending, record).await.map(Reply::Upstream)
    }

    /// Who has the connections that a request with these fields may go by. From the first one on that authenticates the connection which
    /// it goes by, the client has its own.
    fn owner(&self, fields: &Fields) -> Option<Owner> {
        if headers::authenticates_connection(fields) {
            self.owning.get_or_init(|| self.worker.pool.own());
        }
        self.owning.get().map(Owning::owner)
    }

    async fn exchange(
        &self,
        host: &RequestHost,
        head: &RequestHead,
        content: &Rc<Content>,
        sending: Sending<'_>,
        record: &mut Record,
    ) -> Result<Box<Answer>, ProxyError> {
        let (worker, accepted, owner) = (&*self.worker, &self.accepted, self.owner(&head.fields));
        let exchange = Exchange { worker, accepted, host, content, sending: &sending, owner };
        let result = exchange.run(head, record).await;
        if result.is_err() {
            attempt::discard(content).await;
        }
        result
    }
}

/// Passes an origin's response on, and what follows it if it switches protocols.
fn respond(answer: Answer, mut record: Box<Record>) -> (Response<ResponseBody>, Option<Box<Tunnel>>) {
    let Response { mut head, body } = answer.response;
    headers::prepare_response(&mut head);
    record.respond(head.status, answer.outcome);
    let mut lease = answer.lease;
    let switched = if answer.switches { lease.connection.take().and_then(Connection::switched) } else { None };
    let (body, tunnel) = match switched {
        Some(switched) => {
            let held = std::mem::take(&mut lease.held);
            (ResponseBody::switching(), Some(Box::new(Tunnel::new(switched, record, held, answer.silence))))
        }
        None => (ResponseBody::upstream(body, answer.is_bare, lease, record), None),
    };
    (Response { head, body }, tunnel)
}

/// The response to a request that fails.
fn failed(error: ProxyError, is_grpc: bool, mut record: Box<Record>) -> Response<ResponseBody> {
    let response = error.response();
    error.note(&mut record);
    own(response, is_grpc, record)
}

/// A response of our own.
fn own(mut response: Response<Bytes>, is_grpc: bool, record: Box<Record>) -> Response<ResponseBody> {
    if is_grpc {
        response = grpc::told(response);
    }
    response.map(|text| ResponseBody::message(text, record))
}
