//! What annotations change for applications that know nothing of TLS.

use anyhow::{Result, ensure};
use harness::origin::Reply;

use super::{HOST, SECOND, agent, bed, destination, echo, entry, get, origin, origin_http1, service};

const CLIENT: &str = env!("CARGO_BIN_EXE_client");

#[test]
fn applications_of_http_are_spared_what_https_asks_of_them() -> Result<()> {
    const SITE: &[(&str, &str)] = &[
        ("location", "https://edition.cnn.com/next?a=b"),
        ("set-cookie", "session=1; Secure; HttpOnly"),
        ("set-cookie", "other=2; SameSite=None; Secure"),
    ];
    let annotations = "egress.dev/strip-forwarded-headers: 'true', egress.dev/drop-secure-cookie-attribute: 'true', \
                       egress.dev/rewrite-location: 'true'";
    for (annotations, location, cookies, forwarded) in [
        (
            "",
            "https://edition.cnn.com/next?a=b",
            ["session=1; Secure; HttpOnly", "other=2; SameSite=None; Secure"],
            true,
        ),
        (annotations, "http://edition.cnn.com/next?a=b", ["session=1; HttpOnly", "other=2"], false),
    ] {
        let bed = bed("adjust")?;
        let origin = origin(&bed, |request| match request.target.as_str() {
            "/elsewhere" => Reply::status(302, &[("location", "https://elsewhere.example/")], ""),
            _ => Reply::status(302, SITE, ""),
        })?;
        let rules = entry(HOST, "resolution: DNS") + &destination(HOST, annotations, "", "");
        let (_agent, _config) = agent(&bed, &rules)?;
        let (_, _, result) = get(&bed, "/", &["-H", "X-Forwarded-Proto: http", "-H", "Forwarded: proto=http"])?;
        let head = &result.responses[0];
        ensure!(head.header("location") == Some(location), "{head:?}");
        let found: Vec<_> = head
            .headers
            .iter()
            .filter(|(name, _)| name.eq_ignore_ascii_case("set-cookie"))
            .map(|(_, value)| value.as_str())
            .collect();
        ensure!(found == cookies, "{head:?}");
        let request = origin.only_request()?;
        for name in ["x-forwarded-proto", "forwarded"] {
            ensure!(request.header(name).is_some() == forwarded, "{request:?}");
        }
        let (_, _, result) = get(&bed, "/elsewhere", &[])?;
        ensure!(result.responses[0].header("location") == Some("https://elsewhere.example/"), "{result:?}");
    }
    Ok(())
}

/// A copy is what its own destination wants to see.
#[test]
fn copies_are_adjusted_by_where_they_go() -> Result<()> {
    const STRIP: &str = "egress.dev/strip-forwarded-headers: 'true'";
    for (first, second) in [(STRIP, ""), ("", STRIP)] {
        let bed = bed("adjust-copy")?;
        let origin = origin(&bed, echo)?;
        let rules = entry(HOST, "resolution: DNS")
            + &destination(HOST, first, "", "")
            + &entry(SECOND, "resolution: DNS")
            + &destination(SECOND, second, "", "")
            + &service(&format!("  - route: [{{destination: {{host: {HOST}}}}}]\n    mirror: {{host: {SECOND}}}\n"));
        let (_agent, _config) = agent(&bed, &rules)?;
        let (status, ..) = get(&bed, "/", &["-H", "X-Forwarded-Proto: http"])?;
        ensure!(status == 200);
        for request in origin.wait_for_requests(2)? {
            let is_copy = bed.addresses(SECOND).both().contains(&request.server.ip());
            let strips = if is_copy { second } else { first };
            ensure!(request.header("x-forwarded-proto").is_some() == strips.is_empty(), "{strips:?}: {request:?}");
        }
    }
    Ok(())
}

/// A server may take all that follows on its connection for what its client asks for.
#[test]
fn a_copy_with_credentials_of_a_connection_leaves_it_to_nobody() -> Result<()> {
    const COUNT: usize = 6;
    let bed = bed("authenticated-copy")?;
    let origin = origin_http1(&bed, echo)?;
    let rules = entry(HOST, "resolution: DNS")
        + &destination(HOST, "", "", "")
        + &entry(SECOND, "resolution: DNS")
        + &destination(SECOND, "", "", "")
        + &service(&format!("  - route: [{{destination: {{host: {HOST}}}}}]\n    mirror: {{host: {SECOND}}}\n"));
    let (_agent, _config) = agent(&bed, &rules)?;
    for asked in 1..=COUNT {
        let (status, ..) = get(&bed, "/", &["-H", "Authorization: NTLM TlRMTVNTUAAB"])?;
        ensure!(status == 200);
        origin.wait_for_requests(2 * asked)?;
    }
    ensure!(origin.connections() == 2 * COUNT, "{} connections", origin.connections());
    Ok(())
}

/// Whoever is not asked to does not tell a client to go on.
#[test]
fn a_client_may_send_content_where_the_origin_is_not_asked_for_leave() -> Result<()> {
    let bed = bed("expect")?;
    let origin = origin_http1(&bed, |request| Reply::ok(request.body.clone()))?;
    let routes = format!(
        "  - route: [{{destination: {{host: {HOST}}}}}]
    headers: {{request: {{remove: [expect]}}}}
"
    );
    let rules = entry(HOST, "resolution: DNS") + &destination(HOST, "", "", "") + &service(&routes);
    let (_agent, _config) = agent(&bed, &rules)?;
    let client = bed.client_command(CLIENT)?.args(["talk", &bed.sockets(HOST, 80)[0].to_string()]).spawn()?;
    let head = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nExpect: 100-continue\r\nContent-Length: 7\r\n\r\n");
    client.write_stdin(head.as_bytes())?;
    client.wait_for_output("HTTP/1.1 100 Continue\r\n\r\n")?;
    client.write_stdin(b"content")?;
    client.wait_for_output("\r\n\r\ncontent")?;
    ensure!(origin.only_request()?.header("expect").is_none());
    Ok(())
}

/// Whoever sends head and content apart must not take a connection for usable that ends.
#[test]
fn an_answer_of_our_own_says_so_if_it_does_not_wait_for_the_request() -> Result<()> {
    let bed = bed("direct")?;
    let rules = entry(HOST, "resolution: DNS")
        + &destination(HOST, "", "", "")
        + &service("  - directResponse: {status: 200, body: {string: no}}\n");
    let (_agent, _config) = agent(&bed, &rules)?;
    for (content, closes) in [("content", false), ("cont", true)] {
        let client = bed.client_command(CLIENT)?.args(["talk", &bed.sockets(HOST, 80)[0].to_string()]).spawn()?;
        let head = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 7\r\n\r\n");
        client.write_stdin((head + content).as_bytes())?;
        client.wait_for_output("\r\n\r\nno")?;
        ensure!(client.stdout().contains("Connection: close\r\n") == closes, "{content}: {}", client.stdout());
    }
    Ok(())
}
