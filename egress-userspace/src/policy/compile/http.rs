//! One route of a `VirtualService` to an [`HttpRoute`](crate::policy::HttpRoute), apart from where its destinations lead.

use std::time::Duration;

use http::{StatusCode, header::HOST, uri::Authority};

use crate::{
    config::{
        Located,
        values::Percent,
        virtual_service::{self as raw, ByName, DerivePort, RetryReason},
    },
    policy::{
        Abort, DirectResponse, Fault, HeaderChanges, HeaderMatch, HeaderOperations, Match, PathRewrite, QueryMatch,
        Redirect, RedirectPath, RedirectPort, Retries, RetryOn, Rewrite, Share,
    },
};

/// Envoy's, and so Istio's, least time between two tries.
const BACKOFF: Duration = Duration::from_millis(25);

pub(super) fn request_match(raw: &raw::RequestMatch) -> Match {
    let headers = |fields: &ByName<crate::config::OptionalMatch>| {
        let fields = fields.0.iter();
        fields.map(|(name, value)| HeaderMatch { name: name.clone(), value: value.0.clone() }).collect()
    };
    Match {
        path: raw.uri.clone(),
        ignore_case: raw.ignore_uri_case.unwrap_or(false),
        method: raw.method.clone(),
        authority: raw.authority.clone(),
        headers: headers(&raw.headers),
        without_headers: headers(&raw.without_headers),
        query: raw
            .query_params
            .iter()
            .map(|(name, value)| QueryMatch { name: name.as_str().into(), value: value.0.clone() })
            .collect(),
    }
}

pub(super) fn redirect(raw: &raw::Redirect) -> Redirect {
    let whole = raw.uri.as_ref().map(|uri| RedirectPath::Whole(uri.0.as_str().into()));
    let prefix = raw.prefix_rewrite.as_ref().map(|prefix| RedirectPath::Prefix(prefix.0.as_str().into()));
    let code = raw.redirect_code.as_ref().and_then(|code| u16::try_from(code.value).ok());
    Redirect {
        path: whole.or(prefix),
        host: raw.authority.as_ref().map(|authority| authority.as_str().into()),
        port: match (raw.port, raw.derive_port) {
            (Some(port), _) => RedirectPort::Number(port.get()),
            (None, Some(DerivePort::Request)) => RedirectPort::Request,
            (None, Some(DerivePort::Protocol) | None) => RedirectPort::Default,
        },
        scheme: raw.scheme.map(|scheme| scheme.0.into()),
        // Any other has been refused.
        status: code.and_then(|code| StatusCode::from_u16(code).ok()).unwrap_or(StatusCode::MOVED_PERMANENTLY),
    }
}

pub(super) fn direct_response(raw: &raw::DirectResponse) -> DirectResponse {
    let body = match raw.body.as_ref().map(|body| (&body.string, &body.bytes)) {
        Some((Some(text), _)) => text.clone().into_bytes(),
        Some((None, Some(bytes))) => bytes.0.clone(),
        Some((None, None)) | None => Vec::new(),
    };
    DirectResponse { status: raw.status, body: body.into() }
}

/// The Host is said once: as what it is, or as a header field that is set. Both have been refused, as by Istio.
pub(super) fn rewrite(route: &raw::Route) -> Rewrite {
    let raw = route.rewrite.as_ref();
    let matched = raw.and_then(|raw| raw.uri.as_ref()).map(|uri| PathRewrite::Matched(uri.0.as_str().into()));
    let regex = raw
        .and_then(|raw| raw.uri_regex_rewrite.as_ref())
        .map(|regex| PathRewrite::Regex(regex.pattern.0.clone(), substitution(&regex.rewrite.0).into()));
    let authority = raw.and_then(|raw| raw.authority.clone());
    Rewrite { path: matched.or(regex), authority: authority.or_else(|| authority_of(route.headers.as_ref())) }
}

/// The Host that header fields are changed to.
pub(super) fn authority_of(headers: Option<&raw::Headers>) -> Option<Authority> {
    // One that is none has been refused.
    headers?.authority()?.ok()
}

/// RE2's `\1` as the crate `regex` writes it, in which `$` is special. Other escapes than this one and `\\` have been refused.
fn substitution(text: &str) -> String {
    let mut result = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '$' => result += "$$",
            '\\' => match chars.next() {
                Some(digit @ '0'..='9') => result += &format!("${{{digit}}}"),
                Some(other) => result.push(other),
                None => result.push('\\'),
            },
            other => result.push(other),
        }
    }
    result
}

pub(super) fn changes(raw: Option<&raw::Headers>) -> HeaderChanges {
    let operations = |raw: Option<&raw::HeaderOperations>| {
        let Some(raw) = raw else { return HeaderOperations::default() };
        HeaderOperations {
            // The Host is rewritten.
            set: raw.set.0.iter().filter(|(name, _)| *name != HOST).cloned().collect(),
            add: raw.add.0.clone(),
            remove: raw.remove.iter().map(|name| name.value.clone()).collect(),
        }
    };
    HeaderChanges {
        request: operations(raw.and_then(|raw| raw.request.as_ref())),
        response: operations(raw.and_then(|raw| raw.response.as_ref())),
    }
}

pub(super) fn retries(raw: &raw::Retries) -> Retries {
    let mut on = RetryOn::default();
    let default =
        [RetryReason::ConnectFailure, RetryReason::RefusedStream, RetryReason::Grpc(14), RetryReason::Grpc(1)];
    // An empty text says as much as none.
    let given = raw.retry_on.as_ref().map(|on| on.0.as_slice()).filter(|reasons| !reasons.is_empty());
    let reasons = given.unwrap_or(default.as_slice());
    // Codes that are listed take the place of the one that Istio has for `retriable-status-codes`.
    let lists_statuses = reasons.iter().any(|reason| matches!(reason, RetryReason::Status(_)));
    for reason in reasons {
        match *reason {
            RetryReason::ServerError => on.server_error = true,
            RetryReason::GatewayError => on.gateway_error = true,
            RetryReason::Reset => on.reset = true,
            RetryReason::ResetBeforeRequest => on.reset_before_request = true,
            RetryReason::ConnectFailure => on.connect_failure = true,
            RetryReason::RefusedStream => on.refused_stream = true,
            RetryReason::Conflict => on.conflict = true,
            RetryReason::RetriableStatus if lists_statuses => {}
            RetryReason::RetriableStatus => on.statuses.push(StatusCode::SERVICE_UNAVAILABLE),
            RetryReason::Status(status) => on.statuses.push(status),
            RetryReason::Grpc(status) => on.grpc_statuses.push(status),
            RetryReason::Never(_) => {}
        }
    }
    Retries {
        attempts: raw.attempts.unwrap_or(0),
        per_try_timeout: raw.per_try_timeout.filter(|time| !time.is_zero()),
        on,
        elsewhere: raw.retry_ignore_previous_hosts.unwrap_or(true),
        backoff: raw.backoff.map_or(BACKOFF, |time| time.0),
    }
}

pub(super) fn fault(raw: &raw::Fault) -> Fault {
    // Of faults none is made without a share, of mirrors all are.
    let share = |percentage: &Option<raw::PercentValue>| percentage.as_ref().map_or(Share(0), share_of);
    Fault {
        // One without a time has been refused.
        delay: raw.delay.as_ref().and_then(|delay| Some((delay.fixed_delay?.0, share(&delay.percentage)))),
        abort: raw.abort.as_ref().and_then(|abort| {
            let answer = match (abort.http_status, abort.grpc_status) {
                (Some(status), _) => Abort::Http(status),
                (None, status) => Abort::Grpc(status?.0),
            };
            Some((answer, share(&abort.percentage)))
        }),
    }
}

pub(super) fn share_of(raw: &raw::PercentValue) -> Share {
    let Percent(percent) = raw.value.unwrap_or(Percent(0.0));
    // 0 to 100, so it fits.
    Share((percent * 10_000.0).round() as u32)
}

/// The destinations with a share; a single one needs none.
pub(super) fn weights(destinations: &[raw::RouteDestination]) -> impl Iterator<Item = (&raw::RouteDestination, u64)> {
    let is_only = destinations.len() == 1;
    destinations.iter().filter_map(move |destination| {
        let weight = destination.weight.as_ref().map_or(0, |weight: &Located<u32>| weight.value);
        let weight = if is_only { 1 } else { u64::from(weight) };
        (weight > 0).then_some((destination, weight))
    })
}
