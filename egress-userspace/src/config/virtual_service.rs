//! Istio's `VirtualService`: what becomes of the requests for a host.

use std::{collections::BTreeMap, num::NonZeroU16, time::Duration};

use http::{HeaderName, HeaderValue, StatusCode, uri::Authority};

use super::{
    Code, Errors, HostPattern, Located, Pattern, TextMatch,
    decode::{Decode, Fields, Text, choose, join, shape},
    destination_rule::PortSelector,
    node::{Node, Value},
    service_entry::check_unique,
    text_match::{OptionalMatch, why_no_expression},
    values::Percent,
};

/// The name by which Istio calls the sidecars of a mesh among `gateways`, which is where egress is.
const MESH: &str = "mesh";

/// The `spec` of a `VirtualService`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VirtualService {
    /// For applications.
    Mesh(Box<MeshService>),
    /// For gateways alone, which are no business of ours.
    Gateways(Located<Vec<String>>),
}

shape! {
    /// What it says for applications.
    pub struct MeshService {
        /// The hosts that requests are for.
        "hosts" => hosts: Located<Vec<Located<HostPattern>>>,
        /// Where it is in force.
        "gateways" => gateways: Vec<String>,
        /// The routes, of which the first that a request matches counts.
        "http" => http: Vec<Located<Route>>,
        /// In which namespaces it is in force.
        "exportTo" => export_to: Option<Located<Vec<String>>>,
    }
    refused ["tcp", "tls"]
}

shape! {
    /// One of `http`.
    pub struct Route {
        /// A name for logs.
        "name" => name: Option<String>,
        /// The requests that it is for; all, if there are none.
        "match" => matches: Vec<Located<RequestMatch>>,
        /// Where they are sent.
        "route" => route: Vec<RouteDestination>,
        /// The redirect that they are answered with.
        "redirect" => redirect: Option<Located<Redirect>>,
        /// The response that they are answered with.
        "directResponse" => direct_response: Option<Located<DirectResponse>>,
        /// How their target changes.
        "rewrite" => rewrite: Option<Located<Rewrite>>,
        /// For the whole exchange; 0 is none.
        "timeout" => timeout: Option<Duration>,
        /// When they are sent again.
        "retries" => retries: Option<Retries>,
        /// Failures made on purpose.
        "fault" => fault: Option<Fault>,
        /// Where a copy is sent.
        "mirror" => mirror: Option<Located<Destination>>,
        /// Of how many.
        "mirrorPercentage" => mirror_percentage: Option<Located<PercentValue>>,
        /// Where copies are sent.
        "mirrors" => mirrors: Vec<MirrorPolicy>,
        /// Changes of header fields.
        "headers" => headers: Option<Headers>,
    }
    refused ["corsPolicy", "delegate", "mirrorPercent"]
}

shape! {
    /// One of `match`.
    pub struct RequestMatch {
        /// A name for logs, of which egress makes no use.
        "name" => name: Option<String>,
        /// The path.
        "uri" => uri: Option<TextMatch>,
        /// Whether its case does not matter.
        "ignoreUriCase" => ignore_uri_case: Option<bool>,
        /// The method.
        "method" => method: Option<TextMatch>,
        /// The Host.
        "authority" => authority: Option<TextMatch>,
        /// The port that the application has connected to.
        "port" => port: Option<Located<NonZeroU16>>,
        /// Header fields.
        "headers" => headers: ByName<OptionalMatch>,
        /// Header fields that must not be.
        "withoutHeaders" => without_headers: ByName<OptionalMatch>,
        /// Parameters of the query.
        "queryParams" => query_params: BTreeMap<String, OptionalMatch>,
        /// Where the match is in force.
        "gateways" => gateways: Option<Located<Vec<String>>>,
    }
    refused ["scheme", "sourceLabels", "sourceNamespace", "statPrefix"]
}

/// Something for each of some header fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ByName<T>(pub Vec<(HeaderName, T)>);

impl<T: Decode> Decode for ByName<T> {
    fn decode(node: &Node, path: &str, errors: &mut Errors) -> Option<Self> {
        let mut fields = Vec::new();
        for (name, value) in BTreeMap::<String, T>::decode(node, path, errors)? {
            match check_name(&name) {
                Ok(name) => fields.push((name, value)),
                Err(message) => {
                    let location = entry_location(node, &name);
                    errors.push(location, &join(path, &name), message);
                    return None;
                }
            }
        }
        Some(Self(fields))
    }

    fn absent() -> Option<Self> {
        Some(Self(Vec::new()))
    }
}

/// The names of Envoy's pseudo header fields, and of what is elsewhere in the rule, are mistakes: Istio ignores them.
fn check_name(name: &str) -> Result<HeaderName, String> {
    match name {
        "uri" | "scheme" | "method" | "authority" => {
            Err(format!("{name} is not a header field, and Istio ignores it here; match it by a field of its own"))
        }
        _ if name.starts_with(':') => Err(format!("{name} is not a header field; use method, uri or authority")),
        _ => HeaderName::parse(name),
    }
}

fn entry_location(node: &Node, key: &str) -> super::Location {
    let entries = if let Value::Map(entries) = &node.value { entries.as_slice() } else { &[] };
    entries.iter().find(|entry| entry.key == key).map_or(&node.location, |entry| &entry.location).clone()
}

shape! {
    /// One of `route`.
    pub struct RouteDestination {
        /// Where to.
        "destination" => destination: Located<Destination>,
        /// Its share.
        "weight" => weight: Option<Located<u32>>,
        /// Changes of header fields.
        "headers" => headers: Option<Headers>,
    }
    refused []
}

shape! {
    /// A port of a host, or of a subset of it.
    pub struct Destination {
        /// A host of a `ServiceEntry`.
        "host" => host: Located<HostPattern>,
        /// A subset of a `DestinationRule`.
        "subset" => subset: Option<Located<String>>,
        /// The port; if absent, the host's only one, or the one that the request came to.
        "port" => port: Option<PortSelector>,
    }
    refused []
}

shape! {
    /// `redirect`.
    pub struct Redirect {
        /// The whole path.
        "uri" => uri: Option<Located<String>>,
        /// What the matched prefix becomes.
        "prefixRewrite" => prefix_rewrite: Option<Located<String>>,
        /// The host.
        "authority" => authority: Option<Authority>,
        /// The port.
        "port" => port: Option<NonZeroU16>,
        /// Where the port is from.
        "derivePort" => derive_port: Option<DerivePort>,
        /// The scheme.
        "scheme" => scheme: Option<Scheme>,
        /// The status.
        "redirectCode" => redirect_code: Option<Located<u32>>,
    }
    refused []
}

/// `derivePort`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DerivePort {
    /// From the scheme.
    Protocol,
    /// From the request.
    Request,
}

impl Text for DerivePort {
    fn parse(text: &str) -> Result<Self, String> {
        let known = [("FROM_PROTOCOL_DEFAULT", Self::Protocol), ("FROM_REQUEST_PORT", Self::Request)];
        choose(text, &known, &[])
    }
}

/// `http` or `https`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheme(pub &'static str);

impl Text for Scheme {
    fn parse(text: &str) -> Result<Self, String> {
        choose(text, &[("http", Self("http")), ("https", Self("https"))], &[])
    }
}

shape! {
    /// `directResponse`.
    pub struct DirectResponse {
        /// The status.
        "status" => status: StatusCode,
        /// The content.
        "body" => body: Option<Located<Body>>,
    }
    refused []
}

shape! {
    /// The content of a response.
    pub struct Body {
        /// As text.
        "string" => string: Option<String>,
        /// In base64.
        "bytes" => bytes: Option<Base64>,
    }
    refused []
}

/// Bytes in base64.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base64(pub Vec<u8>);

impl Text for Base64 {
    fn parse(text: &str) -> Result<Self, String> {
        use base64::{Engine as _, prelude::BASE64_STANDARD};
        // Kubernetes lets line breaks pass.
        let text: String = text.split_ascii_whitespace().collect();
        BASE64_STANDARD.decode(text).map(Self).map_err(|error| format!("not base64: {error}"))
    }
}

shape! {
    /// `rewrite`.
    pub struct Rewrite {
        /// What the matched part of the path becomes.
        "uri" => uri: Option<String>,
        /// What the Host becomes.
        "authority" => authority: Option<Authority>,
        /// What an expression's finds become.
        "uriRegexRewrite" => uri_regex_rewrite: Option<RegexRewrite>,
    }
    refused []
}

shape! {
    /// `rewrite.uriRegexRewrite`.
    pub struct RegexRewrite {
        /// The expression.
        "match" => pattern: PartPattern,
        /// What its finds become; `\1` is its first group.
        "rewrite" => rewrite: String,
    }
    refused []
}

/// An expression that is looked for within a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartPattern(pub Pattern);

impl Text for PartPattern {
    fn parse(text: &str) -> Result<Self, String> {
        Pattern::part(text).map(Self).map_err(|error| why_no_expression(&error))
    }
}

shape! {
    /// `retries`.
    pub struct Retries {
        /// How often.
        "attempts" => attempts: Option<u32>,
        /// For each try.
        "perTryTimeout" => per_try_timeout: Option<Duration>,
        /// When.
        "retryOn" => retry_on: Option<RetryOn>,
        /// Between tries.
        "backoff" => backoff: Option<super::traffic_policy::AtLeastOneMilli>,
        /// Whether a try goes to another address than the one before, which it does wherever there is one.
        "retryIgnorePreviousHosts" => retry_ignore_previous_hosts: Option<bool>,
    }
    refused ["retryRemoteLocalities"]
}

/// `retryOn`: names of Envoy's, and statuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryOn(pub Vec<RetryReason>);

/// One of `retryOn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryReason {
    /// `5xx`
    ServerError,
    /// `gateway-error`
    GatewayError,
    /// `reset`
    Reset,
    /// `reset-before-request`
    ResetBeforeRequest,
    /// `connect-failure`
    ConnectFailure,
    /// `refused-stream`
    RefusedStream,
    /// `retriable-4xx`
    Conflict,
    /// `retriable-status-codes`
    RetriableStatus,
    /// A status.
    Status(StatusCode),
    /// A name of gRPC's, and the value of `grpc-status` that it stands for.
    Grpc(u8),
}

const RETRY_REASONS: [(&str, RetryReason); 13] = [
    ("5xx", RetryReason::ServerError),
    ("gateway-error", RetryReason::GatewayError),
    ("reset", RetryReason::Reset),
    ("reset-before-request", RetryReason::ResetBeforeRequest),
    ("connect-failure", RetryReason::ConnectFailure),
    ("refused-stream", RetryReason::RefusedStream),
    ("retriable-4xx", RetryReason::Conflict),
    ("retriable-status-codes", RetryReason::RetriableStatus),
    ("cancelled", RetryReason::Grpc(1)),
    ("deadline-exceeded", RetryReason::Grpc(4)),
    ("resource-exhausted", RetryReason::Grpc(8)),
    ("internal", RetryReason::Grpc(13)),
    ("unavailable", RetryReason::Grpc(14)),
];

const NO_RETRY_REASONS: [(&str, &str); 3] = [
    ("envoy-ratelimited", "there is no rate limit; remove it"),
    ("http3-post-connect-failure", "there is no HTTP/3; remove it"),
    ("retriable-headers", "Istio has no way to say which; remove it"),
];

impl Text for RetryOn {
    fn parse(text: &str) -> Result<Self, String> {
        let reason = |text: &str| match text.parse::<u16>() {
            Ok(number @ 200..600) => {
                StatusCode::from_u16(number).map(RetryReason::Status).map_err(|_| format!("{number} is not a status"))
            }
            Ok(number) => Err(format!("{number} is not a final status; use 200 to 599")),
            Err(_) => choose(text, &RETRY_REASONS, &NO_RETRY_REASONS),
        };
        text.split(',').map(str::trim).filter(|text| !text.is_empty()).map(reason).collect::<Result<_, _>>().map(Self)
    }
}

shape! {
    /// `fault`.
    pub struct Fault {
        /// Some requests wait.
        "delay" => delay: Option<Delay>,
        /// Some requests are answered.
        "abort" => abort: Option<Located<Abort>>,
    }
    refused []
}

shape! {
    /// `fault.delay`.
    pub struct Delay {
        /// For how long.
        "fixedDelay" => fixed_delay: super::traffic_policy::AtLeastOneMilli,
        /// Of how many.
        "percentage" => percentage: Option<PercentValue>,
    }
    refused ["exponentialDelay", "percent"]
}

shape! {
    /// `fault.abort`.
    pub struct Abort {
        /// With which status.
        "httpStatus" => http_status: Option<StatusCode>,
        /// With which status of gRPC.
        "grpcStatus" => grpc_status: Option<GrpcStatus>,
        /// Of how many.
        "percentage" => percentage: Option<PercentValue>,
    }
    refused ["http2Error", "percent"]
}

/// A status of gRPC by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrpcStatus(pub u8);

impl Text for GrpcStatus {
    fn parse(text: &str) -> Result<Self, String> {
        const NAMES: [&str; 17] = [
            "OK",
            "CANCELLED",
            "UNKNOWN",
            "INVALID_ARGUMENT",
            "DEADLINE_EXCEEDED",
            "NOT_FOUND",
            "ALREADY_EXISTS",
            "PERMISSION_DENIED",
            "RESOURCE_EXHAUSTED",
            "FAILED_PRECONDITION",
            "ABORTED",
            "OUT_OF_RANGE",
            "UNIMPLEMENTED",
            "INTERNAL",
            "UNAVAILABLE",
            "DATA_LOSS",
            "UNAUTHENTICATED",
        ];
        let known: Vec<_> = NAMES.into_iter().zip((0..).map(Self)).collect();
        choose(text, &known, &[])
    }
}

shape! {
    /// A share.
    pub struct PercentValue {
        /// In percent.
        "value" => value: Option<Percent>,
    }
    refused []
}

shape! {
    /// One of `mirrors`.
    pub struct MirrorPolicy {
        /// Where to.
        "destination" => destination: Located<Destination>,
        /// Of how many.
        "percentage" => percentage: Option<PercentValue>,
    }
    refused []
}

shape! {
    /// `headers`.
    pub struct Headers {
        /// Of the request.
        "request" => request: Option<HeaderOperations>,
        /// Of the response.
        "response" => response: Option<HeaderOperations>,
    }
    refused []
}

shape! {
    /// `headers.request` or `headers.response`.
    pub struct HeaderOperations {
        /// Fields that replace.
        "set" => set: ByName<HeaderValue>,
        /// Fields that are added.
        "add" => add: ByName<HeaderValue>,
        /// Fields that are removed.
        "remove" => remove: Vec<Located<HeaderName>>,
    }
    refused []
}

/// Decodes `spec` and checks what its fields say about each other.
pub(super) fn decode(spec: &Node, errors: &mut Errors) -> Option<VirtualService> {
    let gateways: Option<Located<Vec<String>>> = {
        let mut fields = Fields::of(spec, "spec", errors)?;
        fields.take("gateways", errors)?
    };
    if let Some(gateways) =
        gateways.filter(|gateways| !gateways.is_empty() && !gateways.iter().any(|name| name == MESH))
    {
        return Some(VirtualService::Gateways(gateways));
    }
    let service = MeshService::decode(spec, "spec", errors)?;
    if service.hosts.is_empty() {
        errors.at(&service.hosts, "the list is empty; name at least one host");
    }
    check_unique(service.hosts.iter(), errors);
    if service.http.is_empty() {
        let message = "there are no routes; add `http`, or remove the VirtualService";
        errors.push(spec.location.clone(), "spec.http", Code::MissingField.because(message));
    }
    service.http.iter().for_each(|route| check_route(route, errors));
    Some(VirtualService::Mesh(Box::new(service)))
}

fn check_route(route: &Located<Route>, errors: &mut Errors) {
    let actions = [!route.route.is_empty(), route.redirect.is_some(), route.direct_response.is_some()]
        .into_iter()
        .filter(|is| *is);
    match actions.count() {
        1 => {}
        0 => errors.at(
            route,
            Code::MissingField.because("nothing is done with the requests; add route, redirect or directResponse"),
        ),
        _ => errors.at(
            route,
            Code::Contradiction.because("route, redirect and directResponse exclude each other; choose one"),
        ),
    }
    let contradiction = |errors: &mut Errors, text: &str| errors.at(route, Code::Contradiction.because(text));
    if route.route.is_empty() && (route.rewrite.is_some() || route.mirror.is_some() || !route.mirrors.is_empty()) {
        contradiction(errors, "rewrite and mirror need a route, as nothing is sent on without one; remove them");
    }
    if route.mirror.is_some() && !route.mirrors.is_empty() {
        contradiction(errors, "mirror and mirrors exclude each other; use mirrors");
    }
    if let Some(percentage) = route.mirror_percentage.as_ref().filter(|_| route.mirror.is_none()) {
        errors.at(
            percentage,
            Code::Contradiction.because("there is no mirror; add it, or give mirrors a percentage each"),
        );
    }
    if let Some(redirect) = &route.redirect {
        check_redirect(redirect, route, errors);
    }
    if let Some(rewrite) = &route.rewrite
        && rewrite.uri.is_some()
        && rewrite.uri_regex_rewrite.is_some()
    {
        errors.at(rewrite, Code::Contradiction.because("uri and uriRegexRewrite exclude each other; choose one"));
    }
    if let Some(body) = route.direct_response.as_ref().and_then(|response| response.body.as_ref())
        && body.string.is_some() == body.bytes.is_some()
    {
        errors.at(body, Code::Contradiction.because("the content is one of string and bytes; give one of them"));
    }
    if let Some(abort) = route.fault.as_ref().and_then(|fault| fault.abort.as_ref())
        && abort.http_status.is_some() == abort.grpc_status.is_some()
    {
        errors
            .at(abort, Code::Contradiction.because("the status is one of httpStatus and grpcStatus; give one of them"));
    }
    let of_destinations = route.route.iter().filter_map(|destination| destination.headers.as_ref());
    of_destinations.chain(&route.headers).for_each(|headers| check_headers(headers, route, errors));
    let weights = route.route.iter().map(|destination| destination.weight.as_ref().map_or(0, |weight| weight.value));
    if route.route.len() > 1 && weights.map(u64::from).sum::<u64>() == 0 {
        errors.at(route, "no destination has a weight, so none gets a request; give each its `weight`");
    }
}

fn check_redirect(redirect: &Located<Redirect>, route: &Route, errors: &mut Errors) {
    if let Some(code) = redirect.redirect_code.as_ref().filter(|code| ![301, 302, 303, 307, 308].contains(&code.value))
    {
        errors.at(code, format!("{} is not a redirect; use 301, 302, 303, 307 or 308", code.value));
    }
    if redirect.port.is_some() && redirect.derive_port.is_some() {
        errors.at(redirect, Code::Contradiction.because("port and derivePort exclude each other; choose one"));
    }
    let Some(prefix) = &redirect.prefix_rewrite else { return };
    if redirect.uri.is_some() {
        errors.at(redirect, Code::Contradiction.because("uri and prefixRewrite exclude each other; choose one"));
    }
    let has_prefix = |matched: &Located<RequestMatch>| matches!(matched.uri, Some(TextMatch::Prefix(_)));
    if route.matches.is_empty() || !route.matches.iter().all(has_prefix) {
        errors
            .at(prefix, Code::Contradiction.because("prefixRewrite needs matches by uri.prefix; add them, or use uri"));
    }
}

/// Envoy does not let these be changed either; some of them would break the framing.
fn check_headers(headers: &Headers, route: &Located<Route>, errors: &mut Errors) {
    const REFUSED: [&str; 5] = ["host", "connection", "content-length", "transfer-encoding", "upgrade"];
    for operations in headers.request.iter().chain(&headers.response) {
        let changed = operations.set.0.iter().chain(&operations.add.0).map(|(name, _)| name);
        let removed = operations.remove.iter().map(|name| &name.value);
        for name in changed.chain(removed).filter(|name| REFUSED.contains(&name.as_str())) {
            let remedy = if name == "host" { "use rewrite.authority" } else { "remove it" };
            errors
                .at(route, format!("headers cannot change {name}, by which messages are sent and delimited; {remedy}"));
        }
    }
}

impl RequestMatch {
    /// Whether it is in force for applications, rather than for gateways alone.
    pub fn is_for_mesh(&self) -> bool {
        self.gateways.as_ref().is_none_or(|names| names.is_empty() || names.iter().any(|name| name == MESH))
    }
}
