//! The page that this project answers to, step by step: "Egress TLS Origination".

use anyhow::{Result, ensure};
use harness::{
    TestBed,
    agent::{Agent, ConfigDir},
    clients::{Curl, CurlResult, Language},
    nginx::{Nginx, Site},
};

const HOST: &str = "edition.cnn.com";
const HTTP: &str = "http://edition.cnn.com/politics";
const HTTPS: &str = "https://edition.cnn.com/politics";
const FAMILIES: [&str; 2] = ["-4", "-6"];

const SERVICE_ENTRY: &str = include_str!("../seed/service-entry.yaml");
const TLS_ORIGINATION: &str = include_str!("../seed/tls-origination.yaml");
/// As `kubectl apply` replaces a resource of the same name, both go into this file.
const FILE: &str = "edition-cnn-com.yaml";

#[test]
fn without_rules_the_request_is_redirected_and_its_path_is_seen() -> Result<()> {
    let bed = TestBed::new("seed-none")?;
    let nginx = origin(&bed)?;
    let config = bed.config_dir()?;
    let _agent = bed.agent(&config)?;
    check_redirected(&bed, &nginx)
}

#[test]
fn a_service_entry_alone_changes_nothing() -> Result<()> {
    let bed = TestBed::new("seed-entry")?;
    let nginx = origin(&bed)?;
    let config = config(&bed, SERVICE_ENTRY)?;
    let _agent = bed.agent(&config)?;
    check_redirected(&bed, &nginx)
}

#[test]
fn with_the_destination_rule_the_only_response_is_200_and_nothing_is_in_clear() -> Result<()> {
    let bed = TestBed::new("seed-rule")?;
    let nginx = origin_behind_tripwire(&bed)?;
    let tripwire = bed.tripwire(&[HOST])?;
    let config = config(&bed, TLS_ORIGINATION)?;
    let _agent = bed.agent(&config)?;
    check_upgraded(&bed, &nginx)?;
    tripwire.assert_silent()
}

#[test]
fn https_of_the_application_works_as_before() -> Result<()> {
    let bed = TestBed::new("seed-https")?;
    let nginx = origin(&bed)?;
    let config = config(&bed, TLS_ORIGINATION)?;
    let _agent = bed.agent(&config)?;
    for family in FAMILIES {
        let response = curl(&bed, HTTPS, family)?.response()?;
        ensure!((response.head.version.as_str(), response.head.status) == ("HTTP/2", 200), "{response:?}");
    }
    // The connection is the application's own, from end to end.
    let requests = nginx.wait_for_requests(2)?;
    ensure!(requests[0].get("client") == bed.client_address(bed.addresses(HOST).v4.into()).to_string());
    Ok(())
}

#[test]
fn rules_come_and_go_while_the_agent_runs() -> Result<()> {
    let bed = TestBed::new("seed-cleanup")?;
    let nginx = origin(&bed)?;
    let config = bed.config_dir()?;
    let mut agent = bed.agent(&config)?;
    let pid = agent.process().pid();
    let both = |expected: &[u16]| -> Result<()> {
        for family in FAMILIES {
            let result = curl(&bed, HTTP, family)?.follow().run()?;
            ensure!(result.statuses() == expected, "{family}: {expected:?} was expected: {result:?}");
        }
        Ok(())
    };
    both(&[301, 200])?;
    ensure!(agent.apply(|| config.write(FILE, TLS_ORIGINATION))? > 0);
    both(&[200])?;
    ensure!(agent.apply(|| config.remove(FILE))? == 0);
    both(&[301, 200])?;
    ensure!(agent.process().pid() == pid && agent.process().is_running());
    nginx.wait_for_requests(10)?;
    Ok(())
}

#[test]
fn no_client_needs_to_be_changed() -> Result<()> {
    let bed = TestBed::new("seed-languages")?;
    let nginx = origin_behind_tripwire(&bed)?;
    let tripwire = bed.tripwire(&[HOST])?;
    let config = config(&bed, TLS_ORIGINATION)?;
    let _agent = bed.agent(&config)?;
    let languages = Language::installed();
    for language in &languages {
        let output = language.get(&bed, HTTP)?.run()?.success()?;
        ensure!(output.text().starts_with("200\n"), "{language:?}: {output:?}");
    }
    nginx.wait_for_requests(languages.len())?;
    tripwire.assert_silent()
}

#[test]
fn the_agent_says_what_it_did() -> Result<()> {
    let bed = TestBed::new("seed-record")?;
    let _nginx = origin_behind_tripwire(&bed)?;
    let config = config(&bed, TLS_ORIGINATION)?;
    let agent: Agent<'_> = bed.agent(&config)?;
    curl(&bed, HTTP, "-4")?.response()?;
    let records = agent.wait_for_records(1)?;
    ensure!(records[0].text("host") == HOST, "{records:?}");
    ensure!(records[0].text("status") == "200", "{records:?}");
    Ok(())
}

/// The origin of the page: a redirect on port 80, the news on 443.
fn origin(bed: &TestBed) -> Result<Nginx> {
    bed.nginx().site(Site::new(&[HOST], bed.pki().server(&[HOST])?).redirecting_port_80()).start()
}

/// An origin that leaves port 80 to the tripwire.
fn origin_behind_tripwire(bed: &TestBed) -> Result<Nginx> {
    bed.nginx().site(Site::new(&[HOST], bed.pki().server(&[HOST])?)).start()
}

fn config(bed: &TestBed, yaml: &str) -> Result<ConfigDir> {
    let config = bed.config_dir()?;
    config.write(FILE, yaml)?;
    Ok(config)
}

fn curl(bed: &TestBed, url: &str, family: &str) -> Result<Curl> {
    Ok(bed.curl(url)?.args([family]))
}

/// "The first issue is the redundant request ... the second issue is that the path of the URL is sent in clear text."
fn check_redirected(bed: &TestBed, nginx: &Nginx) -> Result<()> {
    for (round, family) in (1..).zip(FAMILIES) {
        let capture = bed.capture()?;
        let result: CurlResult = curl(bed, HTTP, family)?.follow().run()?;
        let trace = capture.stop()?;
        ensure!(result.statuses() == [301, 200], "{family}: {result:?}");
        ensure!(result.responses[0].header("location") == Some(HTTPS), "{result:?}");
        ensure!(result.responses[1].version == "HTTP/2", "{result:?}");
        ensure!(trace.contains(b"GET /politics HTTP/1.1\r\n"), "{family}: the capture does not see what is in clear");
        let requests = nginx.wait_for_requests(2 * round)?;
        ensure!(requests[2 * round - 2].get("port") == "80", "{requests:?}");
    }
    Ok(())
}

/// "You receive 200 OK as the first and the only response", and the path is nowhere to be seen.
fn check_upgraded(bed: &TestBed, nginx: &Nginx) -> Result<()> {
    for (round, family) in (1..).zip(FAMILIES) {
        let capture = bed.capture()?;
        let response = curl(bed, HTTP, family)?.follow().response()?;
        let trace = capture.stop()?;
        ensure!((response.head.version.as_str(), response.head.status) == ("HTTP/1.1", 200), "{family}: {response:?}");
        ensure!(!trace.contains(b"politics"), "{family}: the path was seen");
        ensure!(trace.packets_of_port(80) == 0, "{family}: something went to port 80");
        ensure!(trace.packets_of_port(443) > 0, "{family}: the capture saw nothing at all");
        let requests = nginx.wait_for_requests(round)?;
        let request = &requests[round - 1];
        for (field, expected) in
            [("port", "443"), ("sni", HOST), ("host", HOST), ("method", "GET"), ("uri", "/politics")]
        {
            ensure!(request.get(field) == expected, "{family}: {field} should be {expected}: {request:?}");
        }
    }
    Ok(())
}
