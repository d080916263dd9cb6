//! Where connections lead: endpoints, resolutions, and addresses that are shared.

use anyhow::{Context, Result, ensure};
use harness::{
    TestBed,
    origin::{Origin, Reply, ServerTls},
    wait::{PATIENCE, wait_until},
};

use super::{DNS, SIMPLE, check_failure, configure, record_of, rule};

const HOST: &str = "edition.cnn.com";
/// Where endpoints are; no rule names it.
const BACKEND: &str = "backend.example";

/// Listens on all addresses of HOST and BACKEND, on 443 and 8443, with a certificate for HOST.
fn origin(bed: &TestBed) -> Result<Origin> {
    let tls = ServerTls::new(bed.pki().server(&[HOST])?);
    let mut origin = bed.embedded_origin().handler(|_| Reply::ok("fine"));
    for (host, port) in [(HOST, 443), (HOST, 8443), (BACKEND, 443), (BACKEND, 8443)] {
        origin = origin.tls(&bed.sockets(host, port), &tls)?;
    }
    origin.start()
}

#[test]
fn requests_go_where_the_service_entry_says() -> Result<()> {
    let bed = TestBed::builder("tls-targets").host(HOST).host(BACKEND).build()?;
    let origin = origin(&bed)?;
    let tripwire = bed.tripwire(&[HOST, BACKEND])?;
    let [own, own_v6] = bed.sockets(HOST, 443);
    let [backend, backend_v6] = bed.sockets(BACKEND, 443);
    let [backend_8443, backend_8443_v6] = bed.sockets(BACKEND, 8443);
    let [own_8443, _] = bed.sockets(HOST, 8443);
    let at = |address: std::net::SocketAddr| address.ip().to_string();
    let cases = [
        (DNS.to_owned(), [own, own_v6]),
        (format!("resolution: STATIC\n  endpoints: [{{address: {}}}]", at(backend)), [backend; 2]),
        (format!("resolution: STATIC\n  endpoints: [{{address: \"{}\"}}]", at(backend_v6)), [backend_v6; 2]),
        (
            format!("resolution: STATIC\n  endpoints: [{{address: {}, ports: {{http: 8443}}}}]", at(backend)),
            [backend_8443; 2],
        ),
        (format!("resolution: STATIC\n  endpoints: [{{address: {}, ports: {{http: 8443}}}}]", at(own)), [own_8443; 2]),
        // The first one refuses: nobody listens on 444.
        (
            format!(
                "resolution: STATIC\n  endpoints: [{{address: {}, ports: {{http: 444}}}}, {{address: {}}}]",
                at(own),
                at(backend)
            ),
            [backend; 2],
        ),
        (
            format!("resolution: DNS\n  endpoints: [{{address: {BACKEND}, ports: {{http: 8443}}}}]"),
            // There is none that the application chose: the first of the family that it speaks.
            [backend_8443, backend_8443_v6],
        ),
        ("resolution: NONE".to_owned(), [own, own_v6]),
        // Istio takes NONE if nothing is said.
        ("location: MESH_EXTERNAL".to_owned(), [own, own_v6]),
    ];
    let config = configure(&bed, &[])?;
    let mut agent = bed.agent(&config)?;
    for (entry, expected) in &cases {
        ensure!(agent.apply(|| config.write("rules.yaml", &rule(HOST, entry, SIMPLE)))? == 1);
        wait_until("the destinations", PATIENCE, || agent.admin("/readyz").is_ok_and(|(status, _)| status == 200))?;
        for (family, expected) in ["-4", "-6"].iter().zip(expected) {
            let mark = agent.records().len();
            let response = bed.curl("http://edition.cnn.com/")?.args([family]).response()?;
            ensure!(response.body == b"fine", "{entry}: {response:?}");
            let request = origin.take_requests().pop().context("no request")?;
            ensure!(request.server == *expected, "{entry}: {family} at {}, not {expected}", request.server);
            ensure!(request.tls.and_then(|tls| tls.sni).as_deref() == Some(HOST), "{entry}");
            let record = agent.wait_for_records(mark + 1)?.pop().context("no record")?;
            ensure!(record.text("upstream") == expected.to_string(), "{entry}: {record:?}");
        }
    }
    tripwire.assert_silent()
}

#[test]
fn addresses_are_intercepted_also_if_no_name_leads_there() -> Result<()> {
    let bed = TestBed::builder("tls-addresses").host(HOST).host(BACKEND).build()?;
    let origin = origin(&bed)?;
    let tripwire = bed.tripwire(&[BACKEND])?;
    let backend = bed.sockets(BACKEND, 443);
    // The application knows the address by other means than the name, which has another one.
    let resolve = |address: std::net::SocketAddr| match address.ip() {
        std::net::IpAddr::V4(v4) => format!("{HOST}:80:{v4}"),
        std::net::IpAddr::V6(v6) => format!("{HOST}:80:[{v6}]"),
    };
    let config = configure(&bed, &[])?;
    let mut agent = bed.agent(&config)?;
    let [v4, v6] = backend.map(|address| address.ip().to_string());
    let cases = [
        ("resolution: NONE\n  addresses: [198.51.100.0/24, \"2001:db8:2::/64\"]".to_owned(), backend),
        (format!("resolution: NONE\n  addresses: [{v4}, \"{v6}\"]"), backend),
        (format!("resolution: NONE\n  addresses: [\"::ffff:{v4}\", \"::ffff:192.0.2.0/120\", \"{v6}\"]"), backend),
        (
            format!(
                "resolution: STATIC\n  addresses: [198.51.100.0/30, \"2001:db8::/32\"]\n  endpoints: [{{address: {v4}}}]"
            ),
            [backend[0], backend[0]],
        ),
    ];
    for (done, (entry, expected)) in cases.iter().enumerate() {
        // Of rules for the same address the first by name is asked for it, but one for a wider network only without them.
        let wide = "resolution: NONE\n  addresses: [198.51.0.0/16, \"2001:db8::/31\"]";
        let rules = ["zzz.example", HOST].map(|host| rule(host, entry, SIMPLE)).concat();
        let rules = rules + &rule("aaa.example", wide, SIMPLE);
        ensure!(agent.apply(|| config.write("rules.yaml", &format!("# {done}\n{rules}")))? == 3);
        for (connect_to, expected) in backend.iter().zip(expected) {
            for url in ["http://edition.cnn.com/", &format!("http://{connect_to}/").replace(":443", "")] {
                let result = bed.curl(url)?.args(["--resolve", &resolve(*connect_to)]).run()?;
                ensure!(result.statuses() == [200], "{entry}: {url}: {result:?}");
                let request = origin.take_requests().pop().context("no request")?;
                ensure!(request.server == *expected, "{entry}: {url} at {} instead of {expected}", request.server);
                let sni = request.tls.and_then(|tls| tls.sni);
                ensure!(sni.as_deref() == Some(HOST), "{entry}: {url}: {sni:?}");
            }
        }
    }
    tripwire.assert_silent()
}

/// As from a hosts file of the application's own.
#[test]
fn endpoints_are_intercepted_also_if_no_name_leads_there() -> Result<()> {
    let bed = TestBed::builder("tls-endpoints").host(HOST).host(BACKEND).build()?;
    let tls = ServerTls::new(bed.pki().server(&[HOST])?);
    let [backend, in_clear] = [443, 80].map(|port| bed.sockets(BACKEND, port));
    let origin = bed.embedded_origin().clear(&in_clear).tls(&backend, &tls)?.handler(|_| Reply::ok("fine")).start()?;
    let config = configure(&bed, &[])?;
    let mut agent = bed.agent(&config)?;
    let [v4, v6] = backend.map(|address| address.ip().to_string());
    let endpoints = format!("endpoints: [{{address: {v4}}}, {{address: \"{v6}\"}}]");
    let cases = [
        rule(HOST, &format!("resolution: STATIC\n  {endpoints}"), SIMPLE),
        rule(HOST, &format!("resolution: DNS\n  endpoints: [{{address: {BACKEND}}}]"), SIMPLE),
        rule("'*.cnn.com'", &format!("resolution: STATIC\n  {endpoints}"), SIMPLE)
            .replace("name: '*.cnn.com'", "name: all"),
    ];
    for rules in &cases {
        ensure!(agent.apply(|| config.write("rules.yaml", rules))? == 1);
        wait_until("the destinations", PATIENCE, || agent.admin("/readyz").is_ok_and(|(status, _)| status == 200))?;
        for (place, host, is_upgraded) in [(&v4, HOST, true), (&v6, HOST, true), (&v4, "other.example", false)] {
            let resolve =
                format!("{host}:80:{}", if place.contains(':') { format!("[{place}]") } else { place.clone() });
            let response = bed.curl(&format!("http://{host}/"))?.args(["--resolve", &resolve]).response()?;
            ensure!(response.body == b"fine", "{rules}: {response:?}");
            let request = origin.take_requests().pop().context("no request")?;
            ensure!(request.tls.is_some() == is_upgraded, "{rules}: {host} at {place}: {request:?}");
        }
        // What this rule has left is not to help the next one.
        ensure!(agent.apply(|| config.write("rules.yaml", "# None.\n"))? == 0);
    }
    Ok(())
}

#[test]
fn hosts_that_share_an_address_are_told_apart_and_verified_each_by_its_own_name() -> Result<()> {
    let [one, two, bad] = ["one.example", "two.example", "bad.example"];
    let bed = TestBed::builder("tls-shared").host(one).alias(two, one).alias(bad, one).build()?;
    let tls = ServerTls::new(bed.pki().server(&[one])?).for_name(two, bed.pki().server(&[two])?);
    let origin = bed
        .embedded_origin()
        .handler(|request| Reply::ok(request.host.clone()))
        .tls(&bed.sockets(one, 443), &tls)?
        .start()?;
    let tripwire = bed.tripwire(&[one])?;
    let config = configure(&bed, &[one, two, bad].map(|host| rule(host, DNS, SIMPLE)))?;
    let agent = bed.agent(&config)?;
    for round in 1..=2 {
        for host in [one, two] {
            let response = bed.curl(&format!("http://{host}/"))?.response()?;
            ensure!(response.body == host.as_bytes(), "{host}: {response:?}");
        }
        for request in origin.wait_for_requests(2 * round)? {
            let sni = request.tls.and_then(|tls| tls.sni);
            ensure!(sni.as_deref() == Some(request.host.as_str()), "{} asked for {sni:?}", request.host);
        }
    }
    // Its own certificate is not there; that its neighbours' is does not help.
    let result = bed.curl(&format!("http://{bad}/"))?.run()?;
    check_failure(&result, 502, "tls_certificate_error", "not valid for bad.example")?;
    record_of(&agent.wait_for_records(5)?, bad)?;
    tripwire.assert_silent()
}
