//! HTTP on its way through: what the origin and the application see of each other.

mod addresses;
mod at_once;
mod authenticated;
mod broken;
mod fidelity;
mod grpc;
mod heads;
mod http2;
mod large;
mod limits;
mod malformed;
mod once;
mod overload;
mod prior_knowledge;
mod record;
mod requests;
mod resets;
mod reuse;
mod sharing;
mod switch;

use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use harness::{
    TestBed,
    agent::{Agent, AgentOptions, ConfigDir},
    origin::{Origin, OriginBuilder, Reply, Request, ServerTls},
    process::Output,
};

const HOST: &str = "edition.cnn.com";
const URL: &str = "http://edition.cnn.com/politics";
const CLIENT: &str = env!("CARGO_BIN_EXE_client");
const RULES: &str = include_str!("../../seed/tls-origination.yaml");
/// An answer without content.
const EMPTY: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

/// The embedded origin on the addresses of HOST, over TLS and HTTP/1.1: whose every byte counts.
fn origin(bed: &TestBed) -> Result<OriginBuilder<'_>> {
    let tls = ServerTls::new(bed.pki().server(&[HOST])?).http1_only();
    bed.embedded_origin().tls(&bed.sockets(HOST, 443), &tls)
}

/// The same, where HTTP/2 is picked by who can.
fn origin_http2(bed: &TestBed) -> Result<OriginBuilder<'_>> {
    let tls = ServerTls::new(bed.pki().server(&[HOST])?);
    bed.embedded_origin().tls(&bed.sockets(HOST, 443), &tls)
}

/// One whose HTTP/1.1 switches to an echo at `/chat`, which it agrees to by this head.
fn origin_with_chat(bed: &TestBed, agree: &'static str) -> Result<Origin> {
    let answer = move |request: &Request| match request.target.as_str() {
        "/chat" => Reply::Echo(agree.into()),
        _ => Reply::ok("fine"),
    };
    origin_http2(bed)?.handler(answer).start()
}

/// An origin whose answers are replaced from test case to test case.
struct Answers(Arc<Mutex<Vec<u8>>>);

impl Answers {
    /// Starts an origin that gives these bytes for an answer, until there are others.
    fn start(bed: &TestBed, first: &[u8]) -> Result<(Self, Origin)> {
        let bytes = Arc::new(Mutex::new(first.to_vec()));
        let shared = Arc::clone(&bytes);
        let answer = move || shared.lock().expect("nobody panics with the answer").clone();
        let origin = origin(bed)?.handler(move |_| Reply::Raw(answer())).start()?;
        Ok((Self(bytes), origin))
    }

    fn set(&self, bytes: &[u8]) {
        bytes.clone_into(&mut self.0.lock().expect("nobody panics with the answer"));
    }
}

/// What HTTP/2 begins with: its preface, and settings without any.
const HTTP2_BEGINS: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// A frame of HTTP/2 on stream 1 (RFC 9113 section 4.1), with up to 255 bytes.
fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    [&[0, 0, payload.len() as u8, kind, flags, 0, 0, 0, 1], payload].concat()
}

/// Begins HTTP/2, on which `protocol` is asked for on stream 1 (RFC 8441 section 4), as bytes.
fn ask_in_http2(protocol: &str, path: &str) -> Vec<u8> {
    // Fields as RFC 7541 has them: some with a name, or all, of its appendix A.
    let text = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
    let block = [
        &[0x02][..],
        &text("CONNECT"),
        &[0x00],
        &text(":protocol"),
        &text(protocol),
        &[0x86, 0x04],
        &text(path),
        &[0x01],
        &text(HOST),
        &[0x00],
        &text("sec-websocket-version"),
        &text("13"),
    ]
    .concat();
    [HTTP2_BEGINS, &frame(1, 4, &block)].concat()
}

/// The head of a response, which is a 200 and nothing else.
const AGREED: &[u8] = b"\x01\x04\0\0\0\x01\x88";

fn configure(bed: &TestBed) -> Result<ConfigDir> {
    let config = bed.config_dir()?;
    config.write("rules.yaml", RULES)?;
    Ok(config)
}

/// An agent with one worker: what is counted in connections does not depend on who was less busy.
fn agent_with_one_worker<'bed>(bed: &'bed TestBed, config: &ConfigDir) -> Result<Agent<'bed>> {
    Agent::start(bed, &AgentOptions::new(config.path()).args(&["--workers", "1"]))
}

/// Sends bytes to port 80 of HOST in one piece, closes the sending side, and gives everything that comes back.
fn converse(bed: &TestBed, bytes: impl Into<Vec<u8>>) -> Result<Output> {
    let address = bed.sockets(HOST, 80)[0].to_string();
    bed.client_command(CLIENT)?.args(["raw", &address, "--half-close"]).stdin(bytes).run()
}

/// Runs curl on the URL in the pod, with these arguments, and gives what it wrote as it is.
fn curl(bed: &TestBed, arguments: &[&str]) -> Result<Output> {
    bed.client_command("curl")?.args(["-q", "-sS", "--max-time", "15"]).args(arguments).arg(URL).run()
}

/// The heads of the responses in `bytes`, which have no content.
fn heads(bytes: &str) -> Result<Vec<&str>> {
    let mut rest = bytes;
    let mut heads = Vec::new();
    while !rest.is_empty() {
        let end = rest.find("\r\n\r\n").with_context(|| format!("half a head: {rest:?}"))? + 4;
        ensure!(rest.starts_with("HTTP/1."), "not a head: {rest:?}");
        heads.push(&rest[..end]);
        rest = &rest[end..];
    }
    Ok(heads)
}
