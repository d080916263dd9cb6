//! Who is asked for, where a route leads to another host.

use anyhow::{Context, Result, ensure};
use harness::origin::ServerTls;

use super::{HOST, SECOND, agent_with_one_worker, bed, both, destination, echo, entry, get, origin, service, start};

/// All lead to SECOND, and some are rewritten to be for it as well.
const ROUTES: &str = "  - match: [{uri: {prefix: /rewritten}}]
    route: [{destination: {host: second.example}}]
    rewrite: {authority: second.example}
  - match: [{uri: {prefix: /set}}]
    route: [{destination: {host: second.example}}]
    headers: {request: {set: {Host: second.example}}}
  - match: [{uri: {prefix: /one/of}}]
    route:
    - {destination: {host: second.example}, weight: 100, headers: {request: {set: {\":authority\": second.example}}}}
    - {destination: {host: edition.cnn.com}, weight: 0}
  - match: [{uri: {prefix: /both}}]
    route: [{destination: {host: second.example}, headers: {request: {set: {Host: other.example}}}}]
    headers: {request: {set: {Host: second.example}}}
  - route: [{destination: {host: second.example}}]
";

#[test]
fn it_is_the_host_of_the_request_as_it_is_sent() -> Result<()> {
    let bed = bed("route-names")?;
    let origin = origin(&bed, echo)?;
    let (_agent, _config) = agent_with_one_worker(&bed, &(both() + &service(ROUTES)))?;
    let asked = || -> Result<_> {
        let request = origin.take_requests().pop().context("no request")?;
        ensure!(bed.addresses(SECOND).both().contains(&request.server.ip()), "{request:?}");
        Ok((request.host, request.tls.context("not over TLS")?.sni))
    };
    // The route's own word counts before that of a destination.
    let set = ["/set", "/one/of/two", "/both"].map(|target| (target, SECOND));
    for (target, host) in [("/", HOST), ("/rewritten", SECOND), ("/", HOST)].into_iter().chain(set) {
        let (status, _, result) = get(&bed, target, &[])?;
        ensure!(status == 200, "{target}: {result:?}");
        ensure!(asked()? == (host.to_owned(), Some(host.to_owned())), "{target}");
    }
    // What was made for the host itself is of use to those who mean it, and to nobody else.
    bed.curl(&format!("http://{SECOND}/"))?.response()?;
    ensure!(asked()? == (SECOND.to_owned(), Some(SECOND.to_owned())));
    ensure!(origin.connections() == 2, "{} connections", origin.connections());
    Ok(())
}

#[test]
fn who_is_no_such_host_gets_nothing_unless_the_rule_says_who_it_is() -> Result<()> {
    for (tls, status) in [
        ("{mode: SIMPLE}", 502),
        ("{mode: SIMPLE, sni: second.example}", 200),
        ("{mode: SIMPLE, subjectAltNames: [second.example]}", 200),
    ] {
        let bed = bed("route-other-name")?;
        let origin = start(&bed, &ServerTls::new(bed.pki().server(&[SECOND])?), echo)?;
        let second = destination(SECOND, "", "", "").replace("{mode: SIMPLE}", tls);
        let first = entry(HOST, "resolution: DNS") + &destination(HOST, "", "", "");
        let rules = first + &entry(SECOND, "resolution: DNS") + &second + &service(ROUTES);
        let (_agent, _config) = agent_with_one_worker(&bed, &rules)?;
        // There is a connection already, which is to another.
        let (found, _, result) = get(&bed, "/rewritten", &[])?;
        ensure!(found == 200, "{tls}: {result:?}");
        let (found, body, result) = get(&bed, "/", &[])?;
        ensure!(found == status, "{tls}: {result:?}");
        ensure!(status == 200 || body.contains("not valid for edition.cnn.com, but for second.example"), "{body}");
        let requests = if status == 200 { 2 } else { 1 };
        ensure!(origin.requests().len() == requests, "{tls}: {:?}", origin.requests());
    }
    Ok(())
}
