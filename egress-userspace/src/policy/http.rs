//! What becomes of a request that a rule is for: which route it matches, and what that does with it.
//!
//! All of it is read by every request, so whatever can be parsed is parsed: names and values of headers are those of
//! [`http`], expressions are compiled, and weights add up.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, uri::Authority};

use super::{Location, Pattern, TextMatch};

/// A route of a rule: of all that a request matches, the first counts. A request that matches none gets 404.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpRoute {
    /// Its name in the `VirtualService`, for logs.
    pub name: Option<Arc<str>>,
    /// What a request must look like: like one of these; if there are none, as it likes.
    pub matches: Vec<Match>,
    /// What is done with it.
    pub action: Action,
    /// How its target is changed on the way to the upstream.
    pub rewrite: Rewrite,
    /// Changes of the header fields, after those of the destination ([`Weighted::headers`]).
    pub headers: HeaderChanges,
    /// The time for the whole exchange, retries included; none if absent.
    pub timeout: Option<Duration>,
    /// What the user says of retries. If absent, what may safely be repeated is repeated once.
    pub retries: Option<Retries>,
    /// Failures made on purpose.
    pub fault: Fault,
    /// Where copies are sent, whose responses are of no interest.
    pub mirrors: Vec<Mirror>,
    /// Where it is written.
    pub location: Location,
}

/// What is done with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is sent to one of these; there is at least one, and each has a weight.
    Forward(Vec<Weighted>),
    /// It is answered with a redirect.
    Redirect(Redirect),
    /// It is answered.
    Respond(DirectResponse),
}

/// One of a rule's upstreams: the index in [`super::Rule::upstreams`], so that what is built for them can be a list too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UpstreamIndex(pub usize);

/// A destination and its share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weighted {
    /// The destination.
    pub upstream: UpstreamIndex,
    /// The weights of this one and of those before it. A number drawn from 0 up to, not including, the last one's belongs to
    /// the first destination that it is below of.
    pub up_to: u64,
    /// Changes of the header fields, before those of the route.
    pub headers: HeaderChanges,
    /// The Host of what is sent there, unless [`HttpRoute::rewrite`] has one.
    pub authority: Option<Authority>,
}

/// What a request must be like, in all of these points.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Match {
    /// The path, without the query.
    pub path: Option<TextMatch>,
    /// Whether letters of the path count as the same in upper and lower case; expressions are not concerned.
    pub ignore_case: bool,
    /// The method.
    pub method: Option<TextMatch>,
    /// The Host as it was sent.
    pub authority: Option<TextMatch>,
    /// Header fields that must be there.
    pub headers: Vec<HeaderMatch>,
    /// Header fields that must not be there, or not with this value.
    pub without_headers: Vec<HeaderMatch>,
    /// Parameters of the query.
    pub query: Vec<QueryMatch>,
}

/// What a header field must be like.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HeaderMatch {
    /// Its name.
    pub name: HeaderName,
    /// Its value, those of several fields joined by commas (RFC 9110 section 5.3); if absent, it need only be there.
    pub value: Option<TextMatch>,
}

/// What a parameter of the query must be like.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct QueryMatch {
    /// Its name.
    pub name: Box<str>,
    /// Its value; if absent, it need only be there.
    pub value: Option<TextMatch>,
}

/// How a request's target changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// The path; the query stays.
    pub path: Option<PathRewrite>,
    /// The Host, and with it the name that wildcard rules ask and verify the server by.
    pub authority: Option<Authority>,
}

/// How a path changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathRewrite {
    /// What the match was about is replaced: the prefix of [`TextMatch::Prefix`], otherwise all of the path, and the `/` at
    /// its start where nothing was said of the path.
    Matched(Box<str>),
    /// All that an expression finds is replaced, by this in the syntax of [`regex`]: `${1}` is the first group.
    Regex(Pattern, Box<str>),
}

/// Changes of the header fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderChanges {
    /// Of the request.
    pub request: HeaderOperations,
    /// Of the response.
    pub response: HeaderOperations,
}

/// Changes of one head: first `remove`, then `set` and `add`, as Envoy does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderOperations {
    /// Fields that replace all of their name.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Fields that come to those of their name.
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// Fields that are removed.
    pub remove: Vec<HeaderName>,
}

impl HeaderOperations {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }
}

/// A redirect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// The path of the `Location`; the request's if absent.
    pub path: Option<RedirectPath>,
    /// Its host; the request's if absent.
    pub host: Option<Box<str>>,
    /// Its port.
    pub port: RedirectPort,
    /// Its scheme; `http` if absent.
    pub scheme: Option<Box<str>>,
    /// The status: 301, 302, 303, 307 or 308.
    pub status: StatusCode,
}

/// The path that a redirect leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedirectPath {
    /// This one, whatever has matched; it may have a query, which replaces the request's.
    Whole(Box<str>),
    /// The request's, with the prefix that has matched replaced.
    Prefix(Box<str>),
}

/// The port that a redirect leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedirectPort {
    /// As in Envoy, the port of the request's own Host stays if the host does, but for 80 where the scheme changes. Otherwise none
    /// is written: that of the scheme.
    Default,
    /// The one that the request came to.
    Request,
    /// This one.
    Number(u16),
}

/// A response that no upstream is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectResponse {
    /// Its status.
    pub status: StatusCode,
    /// Its content.
    pub body: Bytes,
}

/// When and how a request is sent again. One that may have been processed never is, unless it is idempotent (RFC 9110
/// section 9.2.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retries {
    /// How often at most, besides the first time; 0 is never.
    pub attempts: u32,
    /// The time for each try; if absent, that of the route.
    pub per_try_timeout: Option<Duration>,
    /// What asks for a retry.
    pub on: RetryOn,
    /// Whether another address is asked than before, where there is one.
    pub elsewhere: bool,
    /// The least time between two tries; it grows exponentially.
    pub backoff: Duration,
}

/// What asks for a retry, by the names of Envoy's `x-envoy-retry-on` and `x-envoy-retry-grpc-on`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RetryOn {
    /// `5xx`: any such status, or no response.
    pub server_error: bool,
    /// `gateway-error`: 502, 503 or 504.
    pub gateway_error: bool,
    /// `reset`: no response, as the connection ended or timed out.
    pub reset: bool,
    /// `reset-before-request`: the connection ended before the head of the request was sent.
    pub reset_before_request: bool,
    /// `connect-failure`: no connection.
    pub connect_failure: bool,
    /// `refused-stream`: HTTP/2's REFUSED_STREAM.
    pub refused_stream: bool,
    /// `retriable-4xx`: 409.
    pub conflict: bool,
    /// Statuses that are named; for `retriable-status-codes` without any that is 503, as Istio has it.
    pub statuses: Vec<StatusCode>,
    /// Values of `grpc-status` in a response's head.
    pub grpc_statuses: Vec<u8>,
}

/// Failures made on purpose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    /// Some requests wait first.
    pub delay: Option<(Duration, Share)>,
    /// Some requests are answered so.
    pub abort: Option<(Abort, Share)>,
}

/// The answer to a request that is aborted on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abort {
    /// This status.
    Http(StatusCode),
    /// 200 with this `grpc-status`.
    Grpc(u8),
}

/// Where copies of requests are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// The destination.
    pub upstream: UpstreamIndex,
    /// Of how many requests.
    pub share: Share,
}

/// How many of a million.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(pub u32);

impl Share {
    /// All of them.
    pub const ALL: Self = Self(1_000_000);
}

impl HttpRoute {
    /// The Host of what is sent to a destination, if it is not the request's own. As in Istio the destination has a say in it only
    /// where the route has none.
    pub fn authority<'a>(&'a self, to: &'a Weighted) -> Option<&'a Authority> {
        self.rewrite.authority.as_ref().or(to.authority.as_ref())
    }

    /// Where its requests go, if it sends them on.
    pub fn destinations(&self) -> &[Weighted] {
        match &self.action {
            Action::Forward(destinations) => destinations,
            Action::Respond(_) | Action::Redirect(_) => &[],
        }
    }

    /// The route that takes every request, to the rule's only upstream.
    pub fn catch_all(location: Location) -> Self {
        let all = Weighted { upstream: UpstreamIndex(0), up_to: 1, headers: HeaderChanges::default(), authority: None };
        Self {
            name: None,
            matches: Vec::new(),
            action: Action::Forward(vec![all]),
            rewrite: Rewrite::default(),
            headers: HeaderChanges::default(),
            timeout: None,
            retries: None,
            fault: Fault::default(),
            mirrors: Vec::new(),
            location,
        }
    }
}
