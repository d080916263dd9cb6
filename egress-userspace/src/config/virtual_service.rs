//! Istio's `VirtualService`: what becomes of the requests for a host.

mod check;
mod failures;

use std::{collections::BTreeMap, num::NonZeroU16, time::Duration};

use http::{HeaderName, HeaderValue, StatusCode, header::HOST, uri::Authority};

pub(super) use self::check::decode;
pub use self::failures::{Abort, Delay, Fault, GrpcStatus, Retries, RetryOn, RetryReason};
use super::{
    Errors, HostPattern, Located, Message, Pattern, TextMatch,
    decode::{Anything, Decode, Text, choose, join, shape},
    destination_rule::PortSelector,
    node::{Node, Value},
    text_match::{OptionalMatch, why_no_expression},
    values::{PathText, Percent},
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
    /// Routes for no hosts, which others delegate to.
    Delegate(Located<()>),
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
        /// Routes by SNI.
        "tls" => tls: Vec<Located<Anything>>,
        /// In which namespaces it is in force.
        "exportTo" => export_to: Option<Located<Vec<String>>>,
    }
    // These can lead to TLS what comes in clear.
    refused ["tcp"]
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
        "retries" => retries: Option<Located<Retries>>,
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
        /// A name for statistics, of which egress makes no use.
        "statPrefix" => stat_prefix: Option<Located<String>>,
    }
    refused ["scheme", "sourceLabels", "sourceNamespace"]
}

/// Something for each of some header fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ByName<T>(pub Vec<(HeaderName, T)>);

impl<T: Decode> Decode for ByName<T> {
    fn decode(node: &Node, path: &str, errors: &mut Errors) -> Option<Self> {
        by_name(node, path, errors, name_to_match).map(Self)
    }

    fn absent() -> Option<Self> {
        Some(Self(Vec::new()))
    }
}

/// Fields to set or to add.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewFields(pub Vec<(HeaderName, HeaderValue)>);

impl Decode for NewFields {
    fn decode(node: &Node, path: &str, errors: &mut Errors) -> Option<Self> {
        // Envoy's name for the Host.
        let parse = |name: &str| if name == ":authority" { Ok(HOST) } else { HeaderName::parse(name) };
        by_name(node, path, errors, parse).map(Self)
    }

    fn absent() -> Option<Self> {
        Some(Self(Vec::new()))
    }
}

fn by_name<T: Decode>(
    node: &Node,
    path: &str,
    errors: &mut Errors,
    parse: fn(&str) -> Result<HeaderName, Message>,
) -> Option<Vec<(HeaderName, T)>> {
    let mut fields = Vec::new();
    for (name, value) in BTreeMap::<String, T>::decode(node, path, errors)? {
        match parse(&name) {
            Ok(name) => fields.push((name, value)),
            Err(message) => {
                errors.push(entry_location(node, &name), &join(path, &name), message);
                return None;
            }
        }
    }
    Some(fields)
}

/// The names of Envoy's pseudo header fields, and of what is elsewhere in the rule, are mistakes: Istio ignores them.
fn name_to_match(name: &str) -> Result<HeaderName, Message> {
    match name {
        "uri" | "scheme" | "method" | "authority" => {
            Err(format!("{name} is not a header field, and Istio ignores it here; match it by a field of its own")
                .into())
        }
        _ if name.starts_with(':') => Err(format!("{name} is not a header field; use method, uri or authority").into()),
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
        "uri" => uri: Option<Located<PathText>>,
        /// What the matched prefix becomes.
        "prefixRewrite" => prefix_rewrite: Option<Located<PathText>>,
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
    fn parse(text: &str) -> Result<Self, Message> {
        let known = [("FROM_PROTOCOL_DEFAULT", Self::Protocol), ("FROM_REQUEST_PORT", Self::Request)];
        choose(text, &known, &[])
    }
}

/// `http` or `https`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheme(pub &'static str);

impl Text for Scheme {
    const EMPTY_IS_ABSENT: bool = true;

    fn parse(text: &str) -> Result<Self, Message> {
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
    const IS_SECRET: bool = true;

    fn parse(text: &str) -> Result<Self, Message> {
        use base64::{Engine as _, prelude::BASE64_STANDARD};
        // Kubernetes lets line breaks pass.
        let text: String = text.split_ascii_whitespace().collect();
        BASE64_STANDARD.decode(text).map(Self).map_err(|error| format!("not base64: {error}").into())
    }
}

shape! {
    /// `rewrite`.
    pub struct Rewrite {
        /// What the matched part of the path becomes.
        "uri" => uri: Option<Located<PathText>>,
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
        "rewrite" => rewrite: Located<PathText>,
    }
    refused []
}

/// An expression that is looked for within a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartPattern(pub Pattern);

impl Text for PartPattern {
    fn parse(text: &str) -> Result<Self, Message> {
        Pattern::part(text).map(Self).map_err(|error| why_no_expression(&error).into())
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
        "set" => set: NewFields,
        /// Fields that are added.
        "add" => add: NewFields,
        /// Fields that are removed.
        "remove" => remove: Vec<Located<HeaderName>>,
    }
    refused []
}

impl Headers {
    /// The Host that requests get, if it is among the fields that are set.
    pub fn authority(&self) -> Option<Result<Authority, Message>> {
        let set = self.request.as_ref()?.set.0.iter().find(|(name, _)| *name == HOST);
        set.map(|(_, value)| Authority::parse(value.to_str().unwrap_or_default()))
    }
}

impl RequestMatch {
    /// Whether it is in force for applications, rather than for gateways alone.
    pub fn is_for_mesh(&self) -> bool {
        self.gateways.as_ref().is_none_or(|names| names.is_empty() || names.iter().any(|name| name == MESH))
    }
}
