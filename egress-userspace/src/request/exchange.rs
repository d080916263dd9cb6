//! The exchange with an origin: tries, and what they come to.

use std::{cell::Cell, net::SocketAddr, pin::pin, rc::Rc, sync::Arc, time::Duration};

use http::{Method, StatusCode, Version};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{
    Accepted, Answer, Routed, Sending,
    attempt::Attempt,
    host::RequestHost,
    respond::ProxyError,
    retry::{self, Ended},
    tunnel::Silence,
};
use crate::{
    body::{Content, Held, Lease},
    head::RequestHead,
    http1,
    policy::UpstreamProtocol,
    route::{Chosen, Cluster},
    socket::Place,
    telemetry::access_log::{Outcome, Record},
    upstream::{
        Blame, Connection, ExchangeError, Fate, Made, Order, UpstreamError,
        limits::{Kind, Slot},
        outlier::Seen,
        pool::{Key, Owner, To, Wanted},
    },
    worker::Worker,
};

/// How often a request that could not be sent is sent elsewhere, where the route says nothing of retries.
const ELSEWHERE: u32 = 2;

/// What an exchange needs to know.
pub(super) struct Exchange<'a> {
    pub(super) worker: &'a Worker,
    pub(super) accepted: &'a Accepted,
    pub(super) host: &'a RequestHost,
    pub(super) content: &'a Rc<Content>,
    pub(super) sending: &'a Sending<'a>,
    /// Who has connections of its own for it, as an origin may take the client for authenticated by the connection.
    pub(super) owner: Option<Owner>,
}

/// A try that has brought no response.
struct Failure {
    error: ProxyError,
    ended: Ended<'static>,
    /// Which address it was, if it came that far, and was not blamed before.
    address: Option<SocketAddr>,
}

impl Failure {
    /// That of a try at an address, if one was chosen, which has a part in it.
    fn of(error: &UpstreamError, chosen: Option<SocketAddr>, ended: Ended<'static>) -> Self {
        Self { error: error.into(), ended, address: error.blamed(chosen) }
    }
}

/// How far a try has come.
#[derive(Default)]
enum Stage {
    /// It waits for a connection.
    #[default]
    Waiting,
    /// One is being made, for it or for others as well.
    Connecting(Blame),
    /// It is being sent to this address, or has been.
    Asked(SocketAddr),
}

impl Exchange<'_> {
    /// Sends the request with this head, and again where the route wants that and where it is safe. The response has only
    /// begun when this ends.
    pub(super) async fn run(&self, head: &RequestHead, record: &mut Record) -> Result<Box<Answer>, ProxyError> {
        let deadline = self.sending.timeout.map(|limit| Instant::now() + limit);
        let cluster = self.cluster();
        let netns = self.accepted.from.netns.cookie();
        let mut held = Held::default();
        if let Some(cluster) = cluster {
            held.request = Some(cluster.usage.take(Kind::Requests).map_err(|error| ProxyError::from(&error))?);
        }
        let is_head = head.method == Method::HEAD;
        let http2 = match self.sending.routed {
            // A WebSocket takes a connection that is there and offers RFC 8441, but few do: none is made for it. In HTTP/2 nothing
            // says that content is compressed on its way alone, and nobody is authenticated by the connection.
            Routed::Originate(..) => {
                let is_authenticated = self.owner.is_some() && head.version < Version::HTTP_2 && self.may_be_http1();
                !self.sending.asks_to_switch && !http1::is_coded(&head.fields) && !is_authenticated
            }
            Routed::PassThrough { http2 } => http2,
        };
        let mut attempt = Attempt::new(head, self.host, self.content, http2, self.sending.trailers);
        let mut tries = 0;
        let mut retrying = None;
        let mut tried = Vec::new();
        loop {
            let (origin, failing) = (self.accepted.origin.socket_addr().ip(), &self.worker.connector.health);
            let chosen = cluster.map(|cluster| cluster.choose(netns, origin, failing, &tried));
            let result = self.limited(&mut attempt, chosen.as_ref(), is_head, deadline, record).await;
            drop(retrying.take());
            let again = match &result {
                Ok(answer) => {
                    let (status, fields) = (answer.response.head.status, &answer.response.head.fields);
                    self.seen(chosen.as_ref(), Some(answer.address), Seen::Status(status));
                    self.wants_again(&attempt, Ended::Response(status, fields), tries, chosen.as_ref())
                }
                Err(failure) => {
                    self.seen(chosen.as_ref(), failure.address, Seen::Failure);
                    self.wants_again(&attempt, failure.ended, tries, chosen.as_ref())
                }
            };
            let in_time = deadline.is_none_or(|deadline| Instant::now() < deadline);
            let slot = if again && in_time { self.retry_slot() } else { None };
            match (result, slot) {
                (Ok(answer), Some(slot)) => {
                    answer.lease.release(answer.response.body, answer.is_bare);
                    retrying = Some(slot);
                }
                (Err(_), Some(slot)) => retrying = Some(slot),
                (Ok(mut answer), None) => {
                    held.active = answer.lease.held.active.take();
                    answer.lease.held = held;
                    answer.lease.deadline = deadline;
                    return Ok(answer);
                }
                (Err(failure), None) => return Err(failure.error),
            }
            tries += 1;
            if self.sending.retries.is_none_or(|retries| retries.elsewhere) {
                tried.extend(chosen.and_then(|chosen| chosen.address));
            }
            if let Some(retries) = self.sending.retries {
                let until = Instant::now() + retry::pause(retries.backoff, tries, fastrand::f64());
                sleep_until(deadline.map_or(until, |deadline| until.min(deadline))).await;
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(ProxyError::timeout(self.sending.timeout.unwrap_or_default()));
            }
            record.retried();
        }
    }

    fn cluster(&self) -> Option<&Arc<Cluster>> {
        match &self.sending.routed {
            Routed::Originate(cluster, _) => Some(cluster),
            Routed::PassThrough { .. } => None,
        }
    }

    fn seen(&self, chosen: Option<&Chosen>, address: Option<SocketAddr>, seen: Seen) {
        if let (Some(cluster), Some(chosen), Some(address)) = (self.cluster(), chosen, address) {
            cluster.seen(self.accepted.from.netns.cookie(), address, seen, chosen.among.unwrap_or(1));
        }
    }

    /// Whether the route wants another try, and the request allows it.
    fn wants_again(&self, attempt: &Attempt<'_>, ended: Ended<'_>, tries: u32, chosen: Option<&Chosen>) -> bool {
        let Some(retries) = self.sending.retries else {
            // There is nobody at the address that was chosen; there may be better ones.
            let has_untried = chosen.is_some_and(|chosen| chosen.has_untried);
            return has_untried
                && tries < ELSEWHERE
                && matches!(ended, Ended::NotConnected)
                && attempt.may_go_again(false);
        };
        let processed = matches!(ended, Ended::Response(..) | Ended::NoResponse);
        tries < retries.attempts && retry::is_wanted(&retries.on, ended) && attempt.may_go_again(processed)
    }

    fn retry_slot(&self) -> Option<Slot> {
        self.cluster()?.usage.take(Kind::Retries).ok()
    }

    /// One try, within the limits of time.
    async fn limited(
        &self,
        attempt: &mut Attempt<'_>,
        chosen: Option<&Chosen>,
        is_head: bool,
        deadline: Option<Instant>,
        record: &mut Record,
    ) -> Result<Box<Answer>, Failure> {
        let per_try = self.sending.retries.and_then(|retries| retries.per_try_timeout);
        let end = deadline.into_iter().chain(per_try.map(|limit| Instant::now() + limit)).min();
        let stage = Cell::new(Stage::Waiting);
        // Of which there is one, with limit or without.
        let trying = pin!(self.once(attempt, chosen, is_head, &stage, record));
        let Some(end) = end else { return trying.await };
        timeout_at(end, trying).await.unwrap_or_else(|_| {
            let limit = if Some(end) == deadline { self.sending.timeout } else { per_try };
            let (ended, address) = match stage.take() {
                Stage::Waiting => (Ended::NotSent, None),
                Stage::Connecting(blame) => {
                    if let Some(Chosen { address: Some(address), has_others: true, .. }) = chosen {
                        self.worker.connector.health.failed(self.accepted.from.netns.cookie(), *address);
                    }
                    (Ended::NotSent, chosen.and_then(|chosen| chosen.address).filter(|_| blame.lay()))
                }
                // It can be the client that is slow.
                Stage::Asked(address) => (Ended::NoResponse, self.content.is_complete().then_some(address)),
            };
            Err(Failure { error: ProxyError::timeout(limit.unwrap_or_default()), ended, address })
        })
    }

    /// One try, and those that are as good as the same one: on a younger connection, or by HTTP/1.1. Notes the `stage` that it
    /// is at.
    async fn once(
        &self,
        attempt: &mut Attempt<'_>,
        chosen: Option<&Chosen>,
        is_head: bool,
        stage: &Cell<Stage>,
        record: &mut Record,
    ) -> Result<Box<Answer>, Failure> {
        let Place { netns, device, .. } = &self.accepted.from;
        let origin = self.accepted.origin.socket_addr();
        let (to, outcome) = match (&self.sending.routed, chosen) {
            (Routed::Originate(cluster, _), Some(chosen)) => {
                (cluster.pooled(self.host.as_str(), chosen), Outcome::Upgraded)
            }
            (Routed::Originate(..), None) => {
                return Err(Failure::of(&UpstreamError::NoAddress, None, Ended::NotConnected));
            }
            (Routed::PassThrough { http2: true }, _) => (To::Http2Origin(origin), Outcome::PassedThrough),
            (Routed::PassThrough { http2: false }, _) => (To::Origin(origin), Outcome::PassedThrough),
        };
        let key = Key { netns: netns.cookie(), device: *device, to, owner: self.owner };
        let first = chosen.and_then(|chosen| chosen.address);
        let active = self.cluster().map(|cluster| cluster.begin(first));
        loop {
            stage.set(Stage::Waiting);
            record.connecting();
            let wanted = attempt.wanted(self.idle());
            let mut connection = match self.worker.pool.ready(&key, wanted) {
                Some(connection) => connection,
                // It takes room that most requests do without.
                None => Box::pin(self.connected(&key, wanted, chosen, stage)).await?,
            };
            record.upstream(connection.info(), connection.is_reused());
            let address = connection.info().address;
            stage.set(Stage::Asked(address));
            let refused = |error| Failure { error, ended: Ended::NoResponse, address: None };
            let failure = match attempt.send(&mut connection).await {
                Ok(response) if attempt.crosses(&response, &connection) => continue,
                Ok(response) => {
                    let switches = response.head.status == StatusCode::SWITCHING_PROTOCOLS;
                    if switches && !self.sending.asks_to_switch {
                        return Err(refused(ProxyError::unasked_switch()));
                    }
                    if let Routed::Originate(cluster, name) = &self.sending.routed
                        && cluster.upstream.preconnect > 0
                        && key.owner.is_none()
                    {
                        self.worker.warm.note(&key, cluster, name, self.accepted);
                    }
                    let is_bare = is_head || http1::is_bare(response.head.status);
                    let lease = Box::new(Lease {
                        http2: connection.is_http2(),
                        connection: Some(connection),
                        pool: self.worker.pool.clone(),
                        key,
                        content: self.content.clone(),
                        trailers: attempt.may_have_trailers(),
                        deadline: None,
                        held: Held { active, ..Held::default() },
                    });
                    let silence = Silence {
                        limit: self.cluster().and_then(|cluster| cluster.upstream.pool.tcp_idle_timeout),
                        half_closed: self.worker.limits.idle,
                    };
                    return Ok(Box::new(Answer { response, lease, outcome, is_bare, switches, silence, address }));
                }
                Err(failure) => failure,
            };
            if let Err(failure) = attempt.again(failure, &connection, self.may_be_http1()) {
                let (fate, error) = (failure.fate(), failure.error);
                // It says nothing of the origin.
                if let ExchangeError::Content(error) = &error {
                    return Err(refused(ProxyError::broken_content(error)));
                }
                let ended = match fate {
                    Fate::Unprocessed { gone: false } => Ended::RefusedStream,
                    Fate::Unprocessed { gone: true } | Fate::NeedsHttp1 { gone: true } => Ended::NotSent,
                    Fate::NeedsHttp1 { gone: false } | Fate::Lost | Fate::Failed => Ended::NoResponse,
                };
                return Err(Failure::of(&connection.failure(error), first, ended));
            }
            // One that has served others may want it for some requests only.
            if attempt.needs_http1() && connection.is_first_of_http2() {
                self.worker.pool.require_http1(&key);
            }
        }
    }

    /// A connection that is made for this, or that somebody else has done with meanwhile.
    async fn connected(
        &self,
        key: &Key,
        wanted: Wanted,
        chosen: Option<&Chosen>,
        stage: &Cell<Stage>,
    ) -> Result<Connection, Failure> {
        let usage = self.cluster().map(|cluster| &cluster.usage);
        let connect = |order| self.connect(chosen, order);
        let connecting = |blame: Option<&Blame>| stage.set(blame.cloned().map_or(Stage::Waiting, Stage::Connecting));
        self.worker.pool.get(key, wanted, usage, connect, connecting).await.map_err(|error| {
            let is_overflow = matches!(*error, UpstreamError::Overflow { .. });
            let ended = if is_overflow { Ended::Overflow } else { Ended::NotConnected };
            // Whoever has made the connection has blamed the address.
            Failure { error: (&*error).into(), ended, address: None }
        })
    }

    /// Whether HTTP/1.1 will do where HTTP/2 is refused.
    fn may_be_http1(&self) -> bool {
        self.cluster().is_some_and(|cluster| cluster.upstream.protocol != UpstreamProtocol::Http2)
    }

    /// How long the upstream's connections may have been idle, if the user says so.
    fn idle(&self) -> Option<Duration> {
        self.cluster()?.upstream.pool.idle_timeout
    }

    /// Makes a connection, which may outlive this exchange: others may be waiting for it too.
    fn connect(
        &self,
        chosen: Option<&Chosen>,
        order: Order,
    ) -> impl Future<Output = Result<Made, UpstreamError>> + use<> + 'static {
        let connector = self.worker.connector.clone();
        let Accepted { from, origin, .. } = self.accepted;
        let (from, origin, routed) = (from.clone(), origin.socket_addr(), self.sending.routed.clone());
        let chosen = chosen.copied();
        async move {
            match (routed, chosen) {
                (Routed::Originate(cluster, name), Some(chosen)) => {
                    connector.tls(&from, &cluster, &name, origin.ip(), chosen, order).await
                }
                (Routed::Originate(..), None) => Err(UpstreamError::NoAddress),
                (Routed::PassThrough { http2 }, _) => connector.plain(&from, origin, http2).await,
            }
        }
    }
}
