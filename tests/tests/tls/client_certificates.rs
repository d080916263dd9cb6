//! `MUTUAL`: certificates of our own, the files that they are in, and configurations that cannot be carried out.

use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use harness::{
    TestBed,
    agent::{Agent, AgentOptions},
    nginx::Site,
    origin::{Reply, ServerTls},
    pki::Identity,
    wait::{PATIENCE, wait_until},
};

use super::{DNS, SIMPLE, check_failed_record, check_failure, configure, rule};

const HOST: &str = "edition.cnn.com";
const URL: &str = "http://edition.cnn.com/politics";
/// The line of the `tls` block in the file that `configure` writes.
const LINE: usize = 18;

fn mutual(certificate: &Path, key: &Path) -> String {
    format!("{{mode: MUTUAL, clientCertificate: {}, privateKey: {}}}", certificate.display(), key.display())
}

fn mutual_as(client: &Identity) -> String {
    mutual(&client.certificate_file, &client.key_file)
}

#[test]
fn the_client_certificate_is_shown_to_an_origin_that_demands_one() -> Result<()> {
    let bed = TestBed::new("tls-mutual")?;
    let demands = format!("ssl_client_certificate {};\nssl_verify_client on;", bed.pki().client_ca_file().display());
    let nginx = bed.nginx().site(Site::new(&[HOST], bed.pki().server(&[HOST])?).directives(&demands)).start()?;
    let config = configure(&bed, &[rule(HOST, DNS, &mutual_as(&bed.pki().client("legacy-application")?))])?;
    let mut agent = bed.agent(&config)?;
    let response = bed.curl(URL)?.response()?;
    ensure!(response.head.status == 200, "{response:?}");
    let requests = nginx.wait_for_requests(1)?;
    ensure!(requests[0].get("client_certificate") == "CN=legacy-application", "{requests:?}");

    // Without it nginx finishes the handshake, and says no by HTTP: its answer is the client's.
    agent.apply(|| config.write("rules.yaml", &rule(HOST, DNS, SIMPLE)))?;
    let response = bed.curl(URL)?.response()?;
    ensure!(response.head.status == 400 && response.head.header("proxy-status").is_none(), "{response:?}");
    ensure!(String::from_utf8_lossy(&response.body).contains("No required SSL certificate was sent"), "{response:?}");
    // Nor may the session of the old rule have been resumed.
    ensure!(nginx.wait_for_requests(2)?[1].get("client_certificate").is_empty());

    // As Istio has it, this is no file, but what stands for this machine's roots.
    let of_system = mutual_as(&bed.pki().client("modern-application")?).replace('}', ", caCertificates: system}");
    agent.apply(|| config.write("rules.yaml", &rule(HOST, DNS, &of_system)))?;
    let response = bed.curl(URL)?.response()?;
    ensure!(response.head.status == 200, "{response:?}");
    ensure!(nginx.wait_for_requests(3)?[2].get("client_certificate") == "CN=modern-application");
    Ok(())
}

/// At the same address and by the same name: only who we are tells the sessions apart.
#[test]
fn what_one_rule_shows_is_not_shown_for_another() -> Result<()> {
    let hosts = ["a.example", "b.example", "c.example"];
    for version in ["TLSv1.2", "TLSv1.3"] {
        let bed = TestBed::builder("tls-mutual-several").host(hosts[0]);
        let bed = bed.alias(hosts[1], hosts[0]).alias(hosts[2], hosts[0]).build()?;
        let settings = format!(
            "ssl_client_certificate {};\nssl_verify_client optional;\nssl_protocols {version};\nkeepalive_timeout 0;\n\
             ssl_session_cache shared:several:1m;",
            bed.pki().client_ca_file().display()
        );
        let site = Site::new(&hosts, bed.pki().server(&hosts)?).without_http2().directives(&settings);
        let nginx = bed.nginx().site(site).start()?;
        let named = |tls: &str| tls.replace('}', &format!(", sni: {}, subjectAltNames: [{}]}}", hosts[0], hosts[0]));
        let tls = [
            named(&mutual_as(&bed.pki().client("first")?)),
            named(&mutual_as(&bed.pki().client("second")?)),
            named(SIMPLE),
        ];
        let rules: Vec<_> = hosts.iter().zip(&tls).map(|(host, tls)| rule(host, DNS, tls)).collect();
        let config = configure(&bed, &rules)?;
        let _agent = bed.agent(&config)?;
        for host in [hosts, hosts].concat() {
            let response = bed.curl(&format!("http://{host}/"))?.response()?;
            ensure!(response.head.status < 500, "{version}, {host}: {response:?}");
        }
        let requests = nginx.wait_for_requests(6)?;
        let shown: Vec<_> = requests.iter().map(|request| request.get("client_certificate")).collect();
        ensure!(shown == ["CN=first", "CN=second", "", "CN=first", "CN=second", ""], "{version}: {shown:?}");
        // Each has had its own session resumed, and nobody else's.
        let resumed: Vec<_> = requests.iter().map(|request| request.get("resumed")).collect();
        ensure!(resumed == [".", ".", ".", "r", "r", "r"], "{version}: {resumed:?}");
    }
    Ok(())
}

#[test]
fn a_client_certificate_that_changes_is_used_from_then_on_and_drops_no_connection() -> Result<()> {
    let bed = TestBed::new("tls-mutual-changed")?;
    let demands = format!("ssl_client_certificate {};\nssl_verify_client on;", bed.pki().client_ca_file().display());
    let nginx = bed.nginx().site(Site::new(&[HOST], bed.pki().server(&[HOST])?).directives(&demands)).start()?;
    let [first, second] = [bed.pki().client("first")?, bed.pki().client("second")?];
    let config = configure(&bed, &[])?;
    let show = |identity: &Identity| -> Result<()> {
        // Between the two the files do not go together: such a change is refused, and the next one is taken.
        config.write("client.key", &fs::read_to_string(&identity.key_file)?)?;
        config.write("client.crt", &fs::read_to_string(&identity.certificate_file)?)
    };
    show(&first)?;
    config.write("rules.yaml", &rule(HOST, DNS, &mutual(Path::new("client.crt"), Path::new("client.key"))))?;
    let mut agent = bed.agent(&config)?;
    let address = bed.sockets(HOST, 80)[0].to_string();
    let held = bed
        .client_command(env!("CARGO_BIN_EXE_client"))?
        .args(["hold", &address, "--host", HOST, "--path", "/politics", "--count", "2"])
        .spawn();
    let mut held = held?;
    held.write_stdin(b"\n")?;
    nginx.wait_for_requests(1)?;
    agent.apply(|| show(&second))?;
    held.write_stdin(b"\n")?;
    let requests = nginx.wait_for_requests(2)?;
    ensure!(held.wait(PATIENCE)?.success(), "{:?}", held.stderr());
    let shown: Vec<_> = requests.iter().map(|request| request.get("client_certificate")).collect();
    ensure!(shown == ["CN=first", "CN=second"], "{shown:?}");
    Ok(())
}

#[test]
fn a_certificate_whose_time_is_nearly_over_is_told_of_until_it_is_renewed() -> Result<()> {
    const METRIC: &str = "egress_client_certificate_expiration_timestamp_seconds";
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    let bed = TestBed::new("tls-mutual-ending")?;
    let config = configure(&bed, &[])?;
    let ending = bed.pki().client_expiring_in("ending", 3 * DAY)?;
    let (certificate, key) = (bed.dir().join("client.crt"), bed.dir().join("client.key"));
    fs::copy(&ending.certificate_file, &certificate)?;
    fs::copy(&ending.key_file, &key)?;
    config.write("rules.yaml", &rule(HOST, DNS, &mutual(&certificate, &key)))?;
    let mut agent = bed.agent(&config)?;
    let file = certificate.display().to_string();
    let days_left = |agent: &Agent<'_>| -> Result<f64> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
        Ok((agent.metrics()?.sum(METRIC, &[("file", &file)]) - now) / DAY.as_secs_f64())
    };
    let left = days_left(&agent)?;
    ensure!((2.9..3.1).contains(&left), "{left}");
    let told = |line: &str| line.contains("nearly over") && line.contains(&file);
    agent.process().wait_for_line("the warning", told)?;

    fs::copy(bed.pki().client("renewed")?.certificate_file, &certificate)?;
    // It does not go with the key, and the one before stays in use.
    agent.process().wait_for_line("the mistake", |line| line.contains("before stays in use"))?;
    let left = days_left(&agent)?;
    ensure!((2.9..3.1).contains(&left), "{left}");
    let renewed = bed.pki().client("renewed")?;
    agent.apply(|| {
        fs::copy(&renewed.key_file, &key)?;
        fs::copy(&renewed.certificate_file, &certificate)?;
        Ok(())
    })?;
    let left = days_left(&agent)?;
    ensure!(left > 365.0, "{left}");
    ensure!(agent.log_text().lines().filter(|line| told(line)).count() == 1, "{}", agent.log_text());
    Ok(())
}

#[test]
fn an_origin_that_refuses_us_by_an_alert_is_a_502_that_says_so() -> Result<()> {
    for tls12 in [false, true] {
        let bed = TestBed::new("tls-no-client-certificate")?;
        let tls = ServerTls::new(bed.pki().server(&[HOST])?).client_certificates_of(bed.pki().client_ca());
        let tls = if tls12 { tls.tls12_only() } else { tls };
        let origin = bed.embedded_origin().handler(|_| Reply::ok("")).tls(&bed.sockets(HOST, 443), &tls)?.start()?;
        let tripwire = bed.tripwire(&[HOST])?;
        let config = configure(&bed, &[rule(HOST, DNS, SIMPLE)])?;
        let agent = bed.agent(&config)?;
        let cause = "requires a client certificate (alert certificate_required)";
        for _ in 0..3 {
            check_failure(&bed.curl(URL)?.run()?, 502, "tls_alert_received", cause)?;
        }
        for record in agent.wait_for_records(3)? {
            check_failed_record(&record, 502, cause)?;
        }
        ensure!(origin.requests().is_empty());
        tripwire.assert_silent()?;
    }
    Ok(())
}

#[test]
fn files_that_cannot_be_used_are_refused_at_start_with_file_and_line() -> Result<()> {
    let bed = TestBed::new("tls-files")?;
    let (one, other) = (bed.pki().client("one")?, bed.pki().client("other")?);
    let empty = bed.dir().join("empty.pem");
    fs::write(&empty, "nothing\n")?;
    let missing = bed.dir().join("missing.pem");
    // What YAML's `>` makes of a key, of which nothing may be told.
    let folded = bed.dir().join("folded.pem");
    fs::write(&folded, fs::read_to_string(&one.key_file)?.replace('\n', " "))?;
    let trusting = |file: &Path| format!("{{mode: SIMPLE, caCertificates: {}}}", file.display());
    let cases = [
        (mutual(&one.certificate_file, &other.key_file), format!("{}: does not go with", other.key_file.display())),
        (mutual(&missing, &one.key_file), format!("cannot read {}: No such file", missing.display())),
        (mutual(&one.certificate_file, &missing), format!("cannot read {}: No such file", missing.display())),
        (mutual(&empty, &one.key_file), format!("{}: no certificate in PEM", empty.display())),
        (mutual(&one.certificate_file, &empty), format!("{}: not a private key in PEM", empty.display())),
        (
            mutual(&one.certificate_file, &folded),
            "not a private key in PEM: a section has no line that ends it".to_owned(),
        ),
        (trusting(&missing), format!("cannot read {}: No such file", missing.display())),
        (trusting(&empty), format!("{}: no certificate in PEM", empty.display())),
        (trusting(bed.dir()), format!("cannot read {}: Is a directory", bed.dir().display())),
    ];
    let config = configure(&bed, &[])?;
    let place = format!("egress: {}:{LINE}: ", config.path().join("rules.yaml").display());
    for (tls, expected) in cases {
        config.write("rules.yaml", &rule(HOST, DNS, &tls))?;
        let mut agent = Agent::spawn(&bed, &AgentOptions::new(config.path()))?;
        let status = agent.wait()?;
        ensure!(status.code() == Some(64), "{tls}: {status}: {}", agent.log_text());
        let said = wait_until("the agent's last words", PATIENCE, || agent.log_text().contains(&expected));
        said.with_context(|| format!("{expected:?} was expected: {}", agent.log_text()))?;
        ensure!(!agent.log_text().contains(", 45, 45"), "what is in the file is told: {}", agent.log_text());
        let line = agent.log_text().lines().find(|line| line.contains(&expected)).map(ToOwned::to_owned);
        ensure!(line.as_ref().is_some_and(|line| line.starts_with(&place)), "{place} was expected: {line:?}");
    }
    Ok(())
}

#[test]
fn a_file_that_is_missing_at_reload_leaves_the_last_good_policy_in_force() -> Result<()> {
    let bed = TestBed::new("tls-reload")?;
    let tls = ServerTls::new(bed.pki().server(&[HOST])?);
    let origin = bed.embedded_origin().tls(&bed.sockets(HOST, 443), &tls)?.start()?;
    let tripwire = bed.tripwire(&[HOST])?;
    let config = configure(&bed, &[rule(HOST, DNS, SIMPLE)])?;
    let mut agent = bed.agent(&config)?;
    let ask = |count: usize| -> Result<()> {
        let response = bed.curl(URL)?.response()?;
        ensure!(response.head.status == 200, "{response:?}");
        origin.wait_for_requests(count).map(drop)
    };
    ask(1)?;

    let authority = bed.dir().join("later.pem");
    let rules = rule(HOST, DNS, &format!("{{mode: SIMPLE, caCertificates: {}}}", authority.display()));
    let mark = agent.process().stderr_mark();
    config.write("rules.yaml", &rules)?;
    agent.process().wait_for_line_after(mark, "the refusal", |line| line.contains("configuration refused"))?;
    let place = format!("{}:{LINE}: cannot read {}", config.path().join("rules.yaml").display(), authority.display());
    ensure!(agent.log().iter().any(|line| line.message().contains(&place)), "{place}: {}", agent.log_text());
    let refused = |agent: &Agent<'_>| Ok::<_, anyhow::Error>(agent.metrics()?.sum("egress_policy_refused_total", &[]));
    ensure!(refused(&agent)? == 1.0 && agent.admin("/readyz")?.0 == 200);
    ask(2)?;

    // With the file there, the same rules are taken.
    fs::copy(bed.pki().ca_file(), &authority)?;
    ensure!(agent.apply(|| config.write("rules.yaml", &rules))? == 1);
    ask(3)?;
    tripwire.assert_silent()
}
