//! Which route a request falls under, and what that does with it.

use anyhow::{Result, ensure};
use harness::wait::{PATIENCE, wait_until};

use super::{HOST, SECOND, agent, bed, both, echo, get, origin, outcome_of, service, shares};

const ROUTES: &str = "  - name: moved
    match: [{uri: {exact: /moved}}]
    redirect: {uri: /new, redirectCode: 302, authority: other.example}
  - name: robots
    match: [{uri: {exact: /robots.txt}, method: {exact: GET}}]
    directResponse: {status: 200, body: {string: \"Disallow: /\"}}
    headers: {response: {set: {x-by: route}}}
  - name: broken
    match: [{uri: {prefix: /broken}}]
    fault: {abort: {httpStatus: 418, percentage: {value: 100}}}
    route: [{destination: {host: edition.cnn.com}}]
  - name: empty
    match: [{uri: {exact: /empty}}]
    fault: {abort: {httpStatus: 204, percentage: {value: 100}}}
    route: [{destination: {host: edition.cnn.com}}]
  - name: second
    match:
    - headers: {x-user: {exact: ann}}
    - queryParams: {beta: {regex: \"[0-9]+\"}}
    - uri: {prefix: /SECOND}
      ignoreUriCase: true
    route: [{destination: {host: second.example}}]
    rewrite: {authority: second.example}
  - name: rewritten
    match: [{uri: {prefix: /old/}}]
    rewrite: {uri: /new/}
    headers:
      request: {set: {x-set: one}, add: {x-added: two}, remove: [x-gone]}
      response: {set: {x-response: three}, remove: [content-type]}
    route: [{destination: {host: edition.cnn.com}}]
  - name: pattern
    match: [{uri: {regex: \"/item/[0-9]+\"}}]
    rewrite: {uriRegexRewrite: {match: \"^/item/([0-9]+)\", rewrite: \"/i?id=\\\\1\"}}
    route: [{destination: {host: edition.cnn.com}}]
  - name: anonymous
    match: [{uri: {exact: /anyone}, withoutHeaders: {x-user: {regex: \".*\"}}}]
    route: [{destination: {host: edition.cnn.com}}]
  - name: politics
    match: [{uri: {prefix: /politics}}]
    route: [{destination: {host: edition.cnn.com}}]
";

#[test]
fn requests_follow_the_first_route_that_they_match() -> Result<()> {
    let bed = bed("routes")?;
    let tripwire = bed.tripwire(&[HOST, SECOND])?;
    let origin = origin(&bed, echo)?;
    let routes = ROUTES.replace("rewrite: \"/i?id=\\\\1\"", "rewrite: \"/i/\\\\1\"");
    let (agent, _config) = agent(&bed, &(both() + &service(&routes)))?;
    let check = |target: &str, arguments: &[&str], status: u16, text: &str| {
        let (found, body, result) = get(&bed, target, arguments)?;
        ensure!(found == status && body.contains(text), "{target} {arguments:?}: {result:?}");
        Ok(result)
    };
    let moved = check("/moved?a=b", &[], 302, "")?;
    ensure!(moved.responses[0].header("location") == Some("http://other.example/new?a=b"), "{moved:?}");
    let robots = check("/robots.txt", &[], 200, "Disallow: /")?;
    ensure!(robots.responses[0].header("x-by") == Some("route"), "{robots:?}");
    check("/broken/x", &[], 418, "fault filter abort")?;
    // Without content, whatever there is to say of it.
    let empty = check("/empty", &["--http2-prior-knowledge"], 204, "")?;
    ensure!(empty.exit_code == 0 && empty.responses[0].header("content-length").is_none(), "{empty:?}");
    ensure!(origin.take_requests().is_empty(), "an origin was asked");

    check("/politics", &[], 200, "GET edition.cnn.com /politics\n")?;
    check("/politics", &["-H", "X-User: ann"], 200, "GET second.example /politics\n")?;
    check("/politics?beta=12", &[], 200, "GET second.example /politics?beta=12\n")?;
    check("/politics?beta=x", &[], 200, "GET edition.cnn.com /politics?beta=x\n")?;
    check("/second/x", &[], 200, "GET second.example /second/x\n")?;
    check("/item/42", &[], 200, "GET edition.cnn.com /i/42\n")?;
    // Without the method that it names, and without a route.
    check("/robots.txt", &["-d", "x"], 404, "no route")?;
    check("/", &[], 404, "no route")?;
    // A field that is not there is empty where it must not be, as in Istio.
    check("/anyone", &[], 404, "no route")?;

    origin.take_requests();
    let response =
        check("/old/a?q=1", &["-H", "x-gone: 1", "-H", "x-added: 0"], 200, "GET edition.cnn.com /new/a?q=1\n")?;
    ensure!(response.responses[0].header("x-response") == Some("three"), "{response:?}");
    ensure!(response.responses[0].header("content-type").is_none(), "{response:?}");
    let request = origin.only_request()?;
    let added: Vec<_> =
        request.headers.iter().filter(|(name, _)| name == "x-added").map(|(_, value)| &**value).collect();
    ensure!(added == ["0", "two"] && request.header("x-set") == Some("one"), "{request:?}");
    ensure!(request.header("x-gone").is_none(), "{request:?}");

    wait_until("all records", PATIENCE, || agent.records().len() == 14)?;
    for (path, outcome) in
        [("/moved", "answered"), ("/broken/x", "answered"), ("/old/a", "upgraded"), ("/", "answered")]
    {
        ensure!(outcome_of(&agent, path)? == outcome, "{path}: {}", agent.log_text());
    }
    ensure!(agent.records().iter().any(|record| record.text("route") == "second"), "{}", agent.log_text());
    tripwire.assert_silent()
}

/// The form in which Istio's documentation has long had TLS origination.
#[test]
fn a_route_to_port_443_upgrades_port_80() -> Result<()> {
    let bed = bed("route-443")?;
    let tripwire = bed.tripwire(&[HOST])?;
    let _origin = origin(&bed, echo)?;
    let rules = format!(
        "apiVersion: networking.istio.io/v1alpha3
kind: ServiceEntry
metadata: {{name: cnn}}
spec:
  hosts: [{HOST}]
  ports: [{{number: 80, name: http-port, protocol: HTTP}}, {{number: 443, name: http-port-for-tls, protocol: HTTP}}]
  resolution: DNS
---
apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata: {{name: cnn}}
spec:
  hosts: [{HOST}]
  http:
  - match: [{{port: 80}}]
    route: [{{destination: {{host: {HOST}, port: {{number: 443}}}}}}]
---
apiVersion: networking.istio.io/v1alpha3
kind: DestinationRule
metadata: {{name: cnn}}
spec:
  host: {HOST}
  trafficPolicy:
    portLevelSettings: [{{port: {{number: 443}}, tls: {{mode: SIMPLE}}}}]
"
    );
    let (_agent, _config) = agent(&bed, &rules)?;
    let (status, body, _) = get(&bed, "/politics", &[])?;
    ensure!((status, body.as_str()) == (200, "GET edition.cnn.com /politics\n"));
    tripwire.assert_silent()
}

#[test]
fn a_port_of_which_nothing_is_said_is_one_for_http() -> Result<()> {
    for protocol in ["", ", protocol: GRPC-WEB"] {
        let bed = bed("no-protocol")?;
        let tripwire = bed.tripwire(&[HOST])?;
        let origin = origin(&bed, echo)?;
        let rules = both().replace(", protocol: HTTP", protocol);
        let (_agent, _config) = agent(&bed, &rules)?;
        let (status, _, result) = get(&bed, "/", &[])?;
        ensure!(status == 200, "{protocol}: {result:?}");
        ensure!(shares(&bed, &origin)? == (1, 0), "{protocol}");
        tripwire.assert_silent()?;
    }
    Ok(())
}
