//! A request by a rule: what its routes make of it, and what goes to the origin.

use std::{rc::Rc, sync::Arc};

use bytes::Bytes;
use rustls_pki_types::ServerName;
use tokio::time::sleep;

use super::{
    Conversation, Reply, Routed, Sending, answer, attempt::prepare, headers, host::RequestHost, mirror,
    respond::ProxyError, rewrite, select,
};
use crate::{
    body::Content,
    head::{Fields, RequestHead, Response},
    policy::{Action, Adjustments, HeaderOperations, HttpRoute, Match, Share, Weighted},
    route::{Cluster, Route},
    telemetry::access_log::Record,
};

/// The application speaks HTTP in clear to this port when it means a host by its name alone.
const HTTP: u16 = 80;

impl Conversation {
    /// Serves a request that a rule is for.
    pub(super) async fn by_rule(
        &self,
        route: &Arc<Route>,
        host: &RequestHost,
        head: &mut RequestHead,
        content: &Rc<Content>,
        record: &mut Record,
    ) -> Result<Reply, ProxyError> {
        let Some((selected, matched)) = select::select(&route.rule.routes, head, host.authority().as_str()) else {
            return Ok(Reply::Local(answer::no_route()));
        };
        record.route(selected.name.as_ref());
        if let Some(response) = fault(selected).await {
            return Ok(Reply::Local(response));
        }
        let port = self.accepted.origin.socket_addr().port();
        let mut local = match &selected.action {
            Action::Forward(destinations) => {
                let weighted = draw(destinations);
                let trailers = headers::takes_trailers(head.version, &head.fields);
                let asks_to_switch = headers::asks_to_switch(&head.fields);
                prepare(head, host);
                let cluster = route.cluster(weighted.upstream);
                let rewritten = rewritten(selected, matched, weighted, head)?;
                let host = rewritten.as_ref().unwrap_or(host);
                let mirrored = (!selected.mirrors.is_empty()).then(|| {
                    content.keep();
                    head.clone()
                });
                cleaned(cluster, head);
                let (to, name) = named(cluster, host)?;
                let sending = Sending {
                    routed: Routed::Originate(to, name),
                    trailers,
                    asks_to_switch,
                    timeout: selected.timeout,
                    retries: selected.retries.as_ref(),
                };
                let mut answer = self.exchange(host, head, content, sending, record).await?;
                if let Some(head) = mirrored {
                    self.mirror(route, selected, host, &head, content);
                }
                let fields = &mut answer.response.head.fields;
                change_both(fields, &weighted.headers.response, &selected.headers.response);
                self.adjust(fields, cluster.upstream.adjustments);
                return Ok(Reply::Upstream(answer));
            }
            Action::Respond(direct) => answer::respond(direct),
            Action::Redirect(redirect) => answer::redirect(redirect, head, host.authority(), port, matched)
                .ok_or_else(|| {
                    ProxyError::bad_request("the VirtualService's redirect leads nowhere from this target")
                })?,
        };
        rewrite::change(&mut local.head.fields, &selected.headers.response);
        Ok(Reply::Local(local))
    }

    /// Makes the response one that an application of http can use.
    fn adjust(&self, fields: &mut Fields, adjustments: Adjustments) {
        if adjustments.drop_secure_cookie_attribute {
            rewrite::drop_secure(fields);
        }
        if adjustments.rewrite_location {
            let routes = self.worker.routes.load();
            rewrite::lead_back(fields, |host| routes.route(host, HTTP).is_some());
        }
    }

    /// Sends copies of a request that was answered. One with more content than is kept for repetitions, or whose client is
    /// still sending, has none.
    fn mirror(
        &self,
        route: &Arc<Route>,
        selected: &HttpRoute,
        host: &RequestHost,
        head: &RequestHead,
        content: &Rc<Content>,
    ) {
        for mirror in selected.mirrors.iter().filter(|mirror| is_drawn(mirror.share)) {
            let Some(copy) = content.copy() else {
                let why = "it is too large, has trailers, or was still being sent";
                tracing::debug!(host = host.as_str(), why, "a request is not mirrored");
                break;
            };
            // It was answered: what is wrong with a copy is nobody's business.
            let cluster = route.cluster(mirror.upstream);
            let Ok(to) = named(cluster, host) else { continue };
            let mut head = head.clone();
            cleaned(cluster, &mut head);
            mirror::send(&self.worker, &self.accepted, to, host.clone(), head, copy);
        }
    }
}

/// A cluster, and the name that the server there is asked for.
fn named(cluster: &Arc<Cluster>, host: &RequestHost) -> Result<(Arc<Cluster>, ServerName<'static>), ProxyError> {
    let name = cluster.originator.server_name(host.as_str()).ok_or_else(ProxyError::unverifiable_host)?;
    Ok((cluster.clone(), name))
}

/// Waits, or gives an answer, as the route wants some requests to fail.
async fn fault(route: &HttpRoute) -> Option<Response<Bytes>> {
    if let Some((delay, share)) = route.fault.delay
        && is_drawn(share)
    {
        sleep(delay).await;
    }
    let (abort, share) = route.fault.abort?;
    is_drawn(share).then(|| answer::abort(abort))
}

fn is_drawn(share: Share) -> bool {
    share == Share::ALL || fastrand::u32(..Share::ALL.0) < share.0
}

/// One of the destinations, by their weights.
fn draw(destinations: &[Weighted]) -> &Weighted {
    let total = destinations.last().map_or(1, |last| last.up_to);
    let number = if destinations.len() == 1 { 0 } else { fastrand::u64(..total) };
    // The last one's weights are all of them, so one is found.
    destinations.iter().find(|destination| number < destination.up_to).unwrap_or(&destinations[0])
}

/// Makes the head what a cluster wants to see, whatever others do.
fn cleaned(cluster: &Cluster, head: &mut RequestHead) {
    if cluster.upstream.adjustments.strip_forwarded_headers {
        rewrite::strip_forwarded(&mut head.fields);
    }
}

/// Makes the head what the route wants the origin to see. Gives the host that the origin is asked for, if that is another.
fn rewritten(
    selected: &HttpRoute,
    matched: Option<&Match>,
    weighted: &Weighted,
    head: &mut RequestHead,
) -> Result<Option<RequestHost>, ProxyError> {
    change_both(&mut head.fields, &weighted.headers.request, &selected.headers.request);
    if let Some(path) = &selected.rewrite.path {
        let refused = || ProxyError::bad_request("the VirtualService rewrites this path to what is none");
        head.set_uri(rewrite::path(head.uri(), path, matched).ok_or_else(refused)?);
    }
    let Some(authority) = selected.authority(weighted) else { return Ok(None) };
    headers::replace_host(&mut head.fields, authority);
    let refused = || ProxyError::bad_request("the VirtualService rewrites the Host to what is none");
    RequestHost::new(authority.clone()).map(Some).ok_or_else(refused)
}

/// Those of the destination first, as in Envoy.
fn change_both(fields: &mut Fields, destination: &HeaderOperations, route: &HeaderOperations) {
    for changes in [destination, route].into_iter().filter(|changes| !changes.is_empty()) {
        rewrite::change(fields, changes);
    }
}
