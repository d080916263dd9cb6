//! Which of an origin's addresses is used, and which is tried last (RFC 8305).

use std::{io::Read as _, net::SocketAddr};

use anyhow::{Result, ensure};
use harness::{
    TestBed,
    agent::Agent,
    origin::{Reply, ServerTls},
    raw_server::RawServer,
};

use super::{EMPTY, HOST, agent_with_one_worker, curl};

const BACKEND: &str = "backend.example";
/// A name that has the addresses of HOST, which applications connect to, and those of BACKEND.
const BOTH: &str = "both.example";

fn bed(name: &str) -> Result<TestBed> {
    TestBed::builder(name).host(HOST).host(BACKEND).alias(BOTH, HOST).alias(BOTH, BACKEND).build()
}

/// Rules by which requests for HOST go to BOTH.
fn rules() -> String {
    super::RULES.replace("resolution: DNS", &format!("resolution: DNS\n  endpoints: [{{address: {BOTH}}}]"))
}

/// Sends two requests, each over an upstream connection of its own, and says how many connections the first address was
/// tried with by the first of them, and by the second.
fn tries_of(bed: &TestBed, agent: &Agent<'_>, first: SocketAddr, good: SocketAddr) -> Result<[usize; 2]> {
    let mut tries = [0; 2];
    for (done, tries) in tries.iter_mut().enumerate() {
        let capture = bed.capture()?;
        curl(bed, &["-4"])?.success()?;
        let trace = capture.stop()?;
        *tries = trace.connections().iter().filter(|connection| connection.server == first).count();
        let record = agent.wait_for_records(done + 1)?.pop().expect("there is one");
        ensure!(record.text("upstream") == good.to_string(), "{record:?}");
    }
    Ok(tries)
}

#[test]
fn an_address_that_fails_is_passed_over_and_then_put_last() -> Result<()> {
    for case in ["silent", "refused", "broken"] {
        let bed = bed("addresses")?;
        let tls = ServerTls::new(bed.pki().server(&[HOST])?).http1_only();
        let ([first, _], [good, _]) = (bed.sockets(HOST, 443), bed.sockets(BACKEND, 443));
        // Each request needs a connection of its own.
        let _origin =
            bed.embedded_origin().handler(|_| Reply::RawThenClose(EMPTY.into())).tls(&[good], &tls)?.start()?;
        let _server = match case {
            // The origin's namespace has no such address then, and says nothing about it.
            "silent" => bed.origin().ip(&format!("addr del {}/32 dev lo\n", first.ip())).map(|()| None)?,
            "refused" => None,
            // It closes in the middle of the handshake.
            _ => Some(RawServer::start(bed.origin(), &[first], |mut stream| {
                ensure!(stream.read(&mut [0; 16 * 1024])? > 0);
                Ok(())
            })?),
        };
        let config = bed.config_dir()?;
        config.write("rules.yaml", &rules())?;
        let agent = agent_with_one_worker(&bed, &config)?;
        let tries = tries_of(&bed, &agent, first, good)?;
        ensure!(tries == [1, 0], "{case}: {tries:?}");
    }
    Ok(())
}

#[test]
fn a_certificate_that_is_wrong_is_not_made_up_for_at_another_address() -> Result<()> {
    let bed = bed("addresses-certificate")?;
    let [bad, _] = bed.sockets(HOST, 443);
    let [good, _] = bed.sockets(BACKEND, 443);
    let origin = bed
        .embedded_origin()
        .tls(&[bad], &ServerTls::new(bed.pki().server(&["wrong.example"])?))?
        .tls(&[good], &ServerTls::new(bed.pki().server(&[HOST])?))?
        .start()?;
    let config = bed.config_dir()?;
    config.write("rules.yaml", &rules())?;
    let _agent = agent_with_one_worker(&bed, &config)?;
    for _ in 0..2 {
        let output = curl(&bed, &["-4", "-o", "/dev/null", "-w", "%{http_code}"])?;
        ensure!(output.text() == "502", "{output:?}");
    }
    ensure!(origin.requests().is_empty() && origin.connections() == 2, "{:?}", origin.requests());
    Ok(())
}
