//! What the fields of a `VirtualService` say about each other.

use std::ptr;

use http::{HeaderName, header::HOST};

use super::{
    Fault, Headers, MESH, MeshService, Redirect, RegexRewrite, RequestMatch, Retries, Rewrite, Route, VirtualService,
};
use crate::config::{
    Code, Errors, Located, TextMatch,
    decode::{Anything, Decode as _, Fields, join},
    node::Node,
    service_entry::check_unique,
};

/// Decodes `spec` and checks what its fields say about each other.
pub(in crate::config) fn decode(spec: &Node, errors: &mut Errors) -> Option<VirtualService> {
    if let Some(routes) = delegate(spec) {
        return Some(VirtualService::Delegate(routes));
    }
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
    if service.http.is_empty() && service.tls.is_empty() && !errors.is_unsupported("spec.tcp") {
        let message = "there are no routes; add `http`, or remove the VirtualService";
        errors.push(spec.location.clone(), "spec.http", Code::MissingField.because(message));
    }
    service.http.iter().for_each(|route| check_route(route, errors));
    Some(VirtualService::Mesh(Box::new(service)))
}

/// The routes of one that others delegate to: there is nothing else in it. What has another field may lack its hosts by mistake.
fn delegate(spec: &Node) -> Option<Located<()>> {
    let mut others = Errors::default();
    let mut fields = Fields::of(spec, "spec", &mut others)?;
    let routes: Option<Located<Anything>> = fields.take("http", &mut others)?;
    fields.ignore(&["exportTo", "hosts"]);
    // Whoever writes it without a value, as a template can, has not meant that.
    let is_for_hosts = fields.is_written("hosts");
    fields.finish(&[], &mut others);
    let routes = routes.filter(|_| !is_for_hosts && others.count() == 0)?;
    Some(routes.with(()))
}

/// What follows from a field that is refused is not said beside that.
fn check_route(route: &Located<Route>, errors: &mut Errors) {
    let is_delegated = errors.is_unsupported(&join(&route.path, "delegate"));
    let actions = [!route.route.is_empty(), route.redirect.is_some(), route.direct_response.is_some()]
        .into_iter()
        .filter(|is| *is);
    match actions.count() {
        1 => {}
        0 if is_delegated => {}
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
    let is_sent_on = !route.route.is_empty() || is_delegated;
    if !is_sent_on && (route.rewrite.is_some() || route.mirror.is_some() || !route.mirrors.is_empty()) {
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
    if let Some(retries) = &route.retries {
        check_retries(retries, errors);
    }
    if let Some(rewrite) = &route.rewrite {
        check_rewrite(rewrite, errors);
    }
    if let Some(body) = route.direct_response.as_ref().and_then(|response| response.body.as_ref())
        && body.string.is_some()
        && body.bytes.is_some()
    {
        errors.at(body, Code::Contradiction.because("string and bytes exclude each other; choose one"));
    }
    if let Some(fault) = &route.fault {
        check_fault(fault, errors);
    }
    let of_destinations = route.route.iter().filter_map(|destination| destination.headers.as_ref());
    of_destinations.chain(&route.headers).for_each(|headers| check_headers(headers, route, errors));
    check_authority(route, errors);
    let weights = route.route.iter().map(|destination| destination.weight.as_ref().map_or(0, |weight| weight.value));
    if route.route.len() > 1 && weights.map(u64::from).sum::<u64>() == 0 {
        errors.at(route, "no destination has a weight, so none gets a request; give each its `weight`");
    }
}

fn check_fault(fault: &Fault, errors: &mut Errors) {
    if let Some(abort) = &fault.abort
        && abort.http_status.is_some() == abort.grpc_status.is_some()
        && !errors.is_unsupported(&join(&abort.path, "http2Error"))
    {
        errors
            .at(abort, Code::Contradiction.because("the status is one of httpStatus and grpcStatus; give one of them"));
    }
    if let Some(delay) = &fault.delay
        && delay.fixed_delay.is_none()
        && !errors.is_unsupported(&join(&delay.path, "exponentialDelay"))
    {
        let path = join(&delay.path, "fixedDelay");
        errors.push(delay.location.clone(), &path, Code::MissingField.because("this field is required"));
    }
}

/// Istio refuses this too: in one place there is one Host. That a destination has one and the route another is fine.
fn check_authority(route: &Located<Route>, errors: &mut Errors) {
    let set = |headers: Option<&Headers>| {
        let request = headers.and_then(|headers| headers.request.as_ref());
        request.map_or(0, |request| request.set.0.iter().filter(|(name, _)| *name == HOST).count())
    };
    let rewritten = route.rewrite.as_ref().is_some_and(|rewrite| rewrite.authority.is_some());
    let of_route = usize::from(rewritten) + set(route.headers.as_ref());
    let of_destinations = route.route.iter().map(|destination| set(destination.headers.as_ref()));
    if of_destinations.chain([of_route]).any(|count| count > 1) {
        let text =
            "the Host is set more than once; choose one of rewrite.authority and a header field Host, or :authority";
        errors.at(route, Code::Contradiction.because(text));
    }
}

/// Istio refuses most of these too: who says when to try again wants that to happen.
fn check_retries(retries: &Located<Retries>, errors: &mut Errors) {
    if retries.attempts.is_some_and(|attempts| attempts > 0) {
        return;
    }
    let settings = [
        ("perTryTimeout", retries.per_try_timeout.is_some()),
        ("retryOn", retries.retry_on.as_ref().is_some_and(|on| !on.0.is_empty())),
        ("backoff", retries.backoff.is_some()),
        ("retryIgnorePreviousHosts", retries.retry_ignore_previous_hosts == Some(true)),
    ];
    if let Some((setting, _)) = settings.into_iter().find(|(_, is_set)| *is_set) {
        let text = format!(
            "there is {setting}, but without attempts nothing is tried again; set attempts, or remove {setting}"
        );
        errors.at(retries, Code::Contradiction.because(text));
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
    let has_port = redirect.authority.as_ref().is_some_and(|authority| authority.port().is_some());
    if has_port && (redirect.port.is_some() || redirect.derive_port.is_some()) {
        let text = "authority has a port already, beside port or derivePort; remove one of them";
        errors.at(redirect, Code::Contradiction.because(text));
    }
    for path in redirect.uri.iter().chain(&redirect.prefix_rewrite).filter(|path| !path.0.starts_with('/')) {
        errors.at(path, "this comes after the host, and would be taken for a part of it; begin it with /");
    }
    let leads = [
        redirect.uri.is_some(),
        redirect.prefix_rewrite.is_some(),
        redirect.authority.is_some(),
        redirect.port.is_some(),
        redirect.derive_port.is_some(),
        redirect.scheme.is_some(),
    ];
    if !leads.contains(&true) {
        let text = "the redirect leads to where the request came from; give uri, authority, scheme or port";
        errors.at(redirect, Code::MissingField.because(text));
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

fn check_rewrite(rewrite: &Located<Rewrite>, errors: &mut Errors) {
    if rewrite.uri.is_none() && rewrite.uri_regex_rewrite.is_none() && rewrite.authority.is_none() {
        errors.at(rewrite, Code::MissingField.because("nothing is rewritten; give uri, uriRegexRewrite or authority"));
    }
    if rewrite.uri.is_some() && rewrite.uri_regex_rewrite.is_some() {
        errors.at(rewrite, Code::Contradiction.because("uri and uriRegexRewrite exclude each other; choose one"));
    }
    let of_part = rewrite.uri_regex_rewrite.as_ref().map(|it| &it.rewrite);
    for path in rewrite.uri.iter().chain(of_part).filter(|path| path.0.contains('#')) {
        errors.at(path, "what comes after # is never sent to a server; write %23 if that character is meant");
    }
    let Some(RegexRewrite { pattern, rewrite }) = &rewrite.uri_regex_rewrite else { return };
    let groups = pattern.0.regex().captures_len();
    let mut chars = rewrite.0.chars();
    while chars.by_ref().any(|c| c == '\\') {
        let escaped = chars.next();
        let group = escaped.and_then(|c| c.to_digit(10)).and_then(|digit| usize::try_from(digit).ok());
        match (escaped, group) {
            (_, Some(group)) if group < groups => {}
            (_, Some(group)) => {
                let text = format!("there is no group {group} in the expression; use \\0 to \\{}", groups.min(10) - 1);
                errors.at(rewrite, text);
            }
            (Some('\\'), None) => {}
            (_, None) => {
                errors
                    .at(rewrite, "a backslash stands before the number of a group; write two of them if one is meant");
            }
        }
    }
}

/// Envoy does not let these be changed either; some of them would break the framing. As in Istio a Host that requests get is one
/// that they are rewritten to.
fn check_headers(headers: &Headers, route: &Located<Route>, errors: &mut Errors) {
    const REFUSED: [&str; 5] = ["host", "connection", "content-length", "transfer-encoding", "upgrade"];
    let is_rewrite = !route.route.is_empty();
    if let Some(Err(message)) = headers.authority().filter(|_| is_rewrite) {
        errors.at(route, message);
    }
    let (request, response) = (headers.request.as_ref(), headers.response.as_ref());
    for operations in request.into_iter().chain(response) {
        let is_rewritten =
            |name: &&HeaderName| is_rewrite && *name == HOST && request.is_some_and(|it| ptr::eq(it, operations));
        let set = operations.set.0.iter().map(|(name, _)| name).filter(|name| !is_rewritten(name));
        let added = operations.add.0.iter().map(|(name, _)| name);
        let removed = operations.remove.iter().map(|name| &name.value);
        for name in set.chain(added).chain(removed).filter(|name| REFUSED.contains(&name.as_str())) {
            let remedy = if name == HOST { "use rewrite.authority" } else { "remove it" };
            errors
                .at(route, format!("headers cannot change {name}, by which messages are sent and delimited; {remedy}"));
        }
    }
}
