//! Clients that are authenticated by their connection rather than by each request (NTLM, and mostly Negotiate).

use std::collections::HashMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use harness::wait::{PATIENCE, wait_until};

use super::{prior_knowledge::get, *};

/// What messages of NTLM begin with in base64 by which the client begins, and answers the challenge.
const BEGINS: &str = "TlRMTVNTUAAB";
const ANSWERS: &str = "TlRMTVNTUAAD";

/// How far a client is with the connection that its requests come by.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Stage {
    #[default]
    Unknown,
    Challenged,
    Known,
}

/// The message by which a server challenges ([MS-NLMP] section 2.2.1.2): Unicode, NTLM, and no more.
fn challenge() -> String {
    let message = [&b"NTLMSSP\0"[..], &[2, 0, 0, 0], &[0; 8], &[1, 2, 0, 0], b"12345678", &[0; 16]].concat();
    STANDARD.encode(message)
}

/// A server that welcomes who is authenticated, for as long as the connection lasts.
fn server() -> impl Fn(&Request) -> Reply + Send + Sync + 'static {
    let stages = Mutex::new(HashMap::<usize, Stage>::new());
    move |request| {
        let mut stages = stages.lock().expect("nobody panics with the stages");
        let stage = stages.entry(request.connection).or_default();
        let message = request.header("authorization").and_then(|value| value.strip_prefix("NTLM "));
        let asks = |value: &str| Reply::status(401, &[("WWW-Authenticate", value)], "who are you?");
        match message {
            Some(message) if message.starts_with(BEGINS) => {
                *stage = Stage::Challenged;
                asks(&format!("NTLM {}", challenge()))
            }
            Some(message) if message.starts_with(ANSWERS) && *stage == Stage::Challenged => {
                *stage = Stage::Known;
                Reply::ok("welcome")
            }
            None if *stage == Stage::Known => Reply::ok("welcome"),
            _ => asks("NTLM"),
        }
    }
}

/// The second request has no credentials: curl takes its connection for authenticated.
#[test]
fn ntlm_comes_to_its_end_over_http1_whatever_the_origin_offers() -> Result<()> {
    for is_http2 in [false, true] {
        let bed = TestBed::new("authenticated-ntlm")?;
        let builder = if is_http2 { origin_http2(&bed)? } else { origin(&bed)? };
        let origin = builder.handler(server()).start()?;
        let config = configure(&bed)?;
        let _agent = agent_with_one_worker(&bed, &config)?;
        for arguments in [&["--ntlm"][..], &["--anyauth"], &["--ntlm", "-d", "content"]] {
            let output = curl(&bed, &[arguments, &["-u", "somebody:secret", URL]].concat())?.success()?;
            ensure!(output.text().ends_with("welcomewelcome"), "{arguments:?}: {output:?}");
            // Nobody else is.
            ensure!(curl(&bed, &[])?.success()?.text() == "who are you?");
        }
        let with_credentials =
            |request: &&Request| request.header("authorization").is_some_and(|value| value.starts_with("NTLM "));
        let requests = origin.requests();
        ensure!(requests.iter().filter(with_credentials).all(|request| request.version == "HTTP/1.1"));
    }
    Ok(())
}

#[test]
fn a_connection_that_authenticates_its_client_is_for_nobody_else_and_ends_with_it() -> Result<()> {
    let bed = TestBed::new("authenticated-alone")?;
    let origin = origin(&bed)?.handler(server()).start()?;
    let config = configure(&bed)?;
    let _agent = agent_with_one_worker(&bed, &config)?;
    let address = bed.sockets(HOST, 80)[0].to_string();
    let mut client = bed.client_command(CLIENT)?.args(["talk", &address]).spawn()?;
    let ask = |credentials: &str| format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{credentials}\r\n").into_bytes();
    for (credentials, answer) in [
        (String::new(), "who are you?"),
        (format!("Authorization: NTLM {BEGINS}\r\n"), "NTLM TlRMTVNTUAAC"),
        (format!("Authorization: NTLM {ANSWERS}\r\n"), "welcome"),
    ] {
        client.write_stdin(&ask(&credentials))?;
        client.wait_for_output(answer)?;
    }
    for _ in 0..3 {
        ensure!(curl(&bed, &[])?.success()?.text() == "who are you?");
    }
    client.write_stdin(&ask(""))?;
    wait_until("the second welcome", PATIENCE, || client.stdout().matches("welcome").count() == 2)?;
    // That of all, and its own.
    ensure!(origin.connections() == 2 && origin.open_connections() == 2, "{} connections", origin.connections());
    client.kill();
    wait_until("the end of its connection", PATIENCE, || origin.open_connections() == 1)
}

/// HTTP/2 has no such credentials, but its client may have them of an origin that it knows: they are those of a connection to there.
#[test]
fn a_client_of_http2_has_connections_of_its_own_as_well() -> Result<()> {
    let bed = TestBed::new("authenticated-http2")?;
    let origin = origin(&bed)?.handler(server()).start()?;
    let config = configure(&bed)?;
    let agent = agent_with_one_worker(&bed, &config)?;
    let mut client = bed.client_command(CLIENT)?.args(["talk", &bed.sockets(HOST, 80)[0].to_string()]).spawn()?;
    client.write_stdin(HTTP2_BEGINS)?;
    let ask = |stream: u32, credentials: Option<&str>| {
        let mut head = get(stream, "/");
        if let Some(credentials) = credentials {
            // `authorization`, by the place of its name (RFC 7541 appendix A).
            let value = format!("NTLM {credentials}");
            let field = [&[0x0f, 0x08, value.len() as u8], value.as_bytes()].concat();
            head[2] += field.len() as u8;
            head.extend(field);
        }
        head
    };
    let answers = [
        (None, "who are you?", 1),
        (Some(BEGINS), "who are you?", 2),
        (Some(ANSWERS), "welcome", 1),
        (None, "welcome", 2),
    ];
    for ((credentials, answer, count), stream) in answers.into_iter().zip([1, 3, 5, 7]) {
        client.write_stdin(&ask(stream, credentials))?;
        wait_until(answer, PATIENCE, || client.stdout().matches(answer).count() == count)?;
        ensure!(curl(&bed, &[])?.success()?.text() == "who are you?", "{credentials:?}: somebody else is known");
    }
    let records = agent.wait_for_records(2 * answers.len())?;
    ensure!(records.iter().all(|record| record.text("protocol") == "HTTP/1.1"), "{records:?}");
    // That of all, and its own.
    ensure!(origin.connections() == 2 && origin.open_connections() == 2, "{} connections", origin.connections());
    client.kill();
    wait_until("the end of its connection", PATIENCE, || origin.open_connections() == 1)
}

/// Who has other credentials shares connections with all. Schemes are known in any case.
#[test]
fn only_credentials_that_authenticate_connections_have_their_own() -> Result<()> {
    let bed = TestBed::new("authenticated-others")?;
    let origin = origin(&bed)?.handler(|_| Reply::ok("fine")).start()?;
    let config = configure(&bed)?;
    let _agent = agent_with_one_worker(&bed, &config)?;
    for (credentials, connections) in [
        ("Basic YTpi", 1),
        ("Basic YTpi", 1),
        ("NTLM TlRMTVNTUAAB", 2),
        ("Basic YTpi", 2),
        ("negotiate YII", 3),
        ("Basic YTpi", 3),
    ] {
        let output = curl(&bed, &["-H", &format!("Authorization: {credentials}")])?.success()?;
        ensure!(output.text() == "fine" && origin.connections() == connections, "{credentials}: {output:?}");
    }
    Ok(())
}
