//! Hosts below a wildcard that are left in clear, and what answers some of them.

use anyhow::{Result, ensure};
use harness::{
    TestBed,
    wait::{PATIENCE, wait_until},
};

use super::{agent, echo, outcome_of};

const MOVED: &str = "moved.img.example.com";
const OTHER: &str = "other.img.example.com";
const RULES: &str = "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: wide}
spec: {hosts: ['*.example.com'], ports: [{number: 80, name: http, protocol: HTTP, targetPort: 443}], resolution: NONE}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: wide}
spec: {host: '*.example.com', trafficPolicy: {tls: {mode: SIMPLE}}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: images}
spec: {hosts: ['*.img.example.com'], ports: [{number: 80, name: http, protocol: HTTP}], resolution: NONE}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: images}
spec: {host: '*.img.example.com', trafficPolicy: {tls: {mode: DISABLE}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: moved}
spec: {hosts: [moved.img.example.com], http: [{redirect: {scheme: https}}]}
";

/// It has no port of its own, and is where another is.
#[test]
fn a_host_that_is_only_answered_does_not_leave_in_clear_by_a_wildcard() -> Result<()> {
    let bed = TestBed::builder("answered-below").host(MOVED).alias(OTHER, MOVED).build()?;
    let origin = bed.embedded_origin().clear(&bed.sockets(MOVED, 80)).handler(echo).start()?;
    let (agent, _config) = agent(&bed, RULES)?;
    let moved = bed.curl(&format!("http://{MOVED}/a?b=c"))?.run()?;
    let location = moved.responses.first().and_then(|head| head.header("location"));
    ensure!(location == Some("https://moved.img.example.com/a?b=c"), "{moved:?}");
    ensure!(moved.statuses() == [301] && origin.take_requests().is_empty(), "{moved:?}");

    let other = bed.curl(&format!("http://{OTHER}/b"))?.run()?;
    ensure!(other.statuses() == [200], "{other:?}");
    ensure!(origin.only_request()?.tls.is_none(), "{other:?}");
    wait_until("both records", PATIENCE, || agent.records().len() == 2)?;
    for (path, outcome) in [("/a", "answered"), ("/b", "passed_through")] {
        ensure!(outcome_of(&agent, path)? == outcome, "{path}: {}", agent.log_text());
    }
    Ok(())
}
