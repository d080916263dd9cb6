//! What annotations and revocation lists let pass, and when; what they refuse is in `refused`.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use harness::{
    TestBed,
    agent::{Agent, AgentOptions},
    nginx::Site,
    origin::{Reply, ServerTls},
    pki::{Identity, Pki},
    process::Command,
    wait::{PATIENCE, wait_until},
};

use super::{DNS, SIMPLE, annotated_rule, check_failure, configure, rule};

/// A chain, and the certificate of which the key is pinned.
struct Pinned {
    host: &'static str,
    certificate: fn(&Pki, &str) -> Result<Identity>,
    pinned: fn(&Pki, &Identity) -> std::path::PathBuf,
    passes: bool,
}

const PINNED: [Pinned; 4] = [
    Pinned {
        host: "own.example",
        certificate: |pki, host| pki.server(&[host]),
        pinned: |_, own| own.certificate_file.clone(),
        passes: true,
    },
    Pinned {
        host: "authority.example",
        certificate: |pki, host| pki.by_intermediate(&[host]),
        pinned: |pki, _| pki.intermediate_file().to_owned(),
        passes: true,
    },
    // Which the origin does not show.
    Pinned {
        host: "root.example",
        certificate: |pki, host| pki.by_intermediate(&[host]),
        pinned: |pki, _| pki.ca_file().to_owned(),
        passes: true,
    },
    // A pinned certificate beside a chain that it has nothing to do with: anybody could put it there.
    Pinned {
        host: "beside.example",
        certificate: |pki, host| {
            let own = pki.server(&[host])?;
            let chain = fs::read_to_string(&own.certificate_file)? + &fs::read_to_string(pki.intermediate_file())?;
            fs::write(&own.certificate_file, chain)?;
            Ok(own)
        },
        pinned: |pki, _| pki.intermediate_file().to_owned(),
        passes: false,
    },
];

#[test]
fn one_pinned_key_of_the_verified_chain_is_enough() -> Result<()> {
    let bed = PINNED.iter().fold(TestBed::builder("tls-pins"), |builder, case| builder.host(case.host)).build()?;
    let (mut nginx, mut rules) = (bed.nginx().file("fine", "fine"), Vec::new());
    for case in &PINNED {
        let identity = (case.certificate)(bed.pki(), case.host)?;
        let pin = pin(&(case.pinned)(bed.pki(), &identity))?;
        let pins = format!("egress.dev/pins: 'sha256/{}= {pin}'", "A".repeat(43));
        rules.push(annotated_rule(case.host, DNS, SIMPLE, &pins));
        nginx = nginx.site(Site::new(&[case.host], identity));
    }
    let _nginx = nginx.start()?;
    let _agent = bed.agent(&configure(&bed, &rules)?)?;
    for case in &PINNED {
        let result = bed.curl(&format!("http://{}/fine", case.host))?.run()?;
        if case.passes {
            ensure!(result.statuses() == [200] && result.body == b"fine", "{}: {result:?}", case.host);
        } else {
            check_failure(&result, 502, "tls_certificate_error", "none of the keys").with_context(|| case.host)?;
        }
    }
    Ok(())
}

/// By the command that the README gives.
fn pin(certificate: &Path) -> Result<String> {
    let script = "openssl x509 -in \"$1\" -noout -pubkey | openssl pkey -pubin -outform DER | openssl dgst -sha256 -binary \
                  | base64";
    let output = Command::new("sh").args(["-ec", script, "sh"]).arg(certificate).run()?.success()?;
    Ok(output.text().trim().to_owned())
}

#[test]
fn an_origin_that_has_what_is_required_is_used() -> Result<()> {
    let hosts = ["a.example", "b.example"];
    let bed = TestBed::builder("tls-required").host(hosts[0]).host(hosts[1]).build()?;
    let mut origin = bed.embedded_origin().handler(|_| Reply::ok("fine"));
    for host in hosts {
        let tls = ServerTls::new(bed.pki().server(&[host])?);
        origin = origin.tls(&bed.sockets(host, 443), &tls)?;
    }
    let origin = origin.start()?;
    let requirements = ["egress.dev/require-post-quantum: 'true'", "egress.dev/min-tls: '1.3'"];
    let rules = [0, 1].map(|index| annotated_rule(hosts[index], DNS, SIMPLE, requirements[index]));
    let agent = bed.agent(&configure(&bed, &rules)?)?;
    for host in hosts {
        ensure!(bed.curl(&format!("http://{host}/"))?.response()?.body == b"fine", "{host}");
    }
    origin.wait_for_requests(2)?;
    for record in agent.wait_for_records(2)? {
        ensure!(record.text("tls") == "TLSv1.3" && record.text("group") == "X25519MLKEM768", "{record:?}");
        ensure!(record.text("cause").is_empty(), "{record:?}");
    }
    Ok(())
}

#[test]
fn roots_of_the_machine_that_change_count_for_the_next_request() -> Result<()> {
    const HOST: &str = "edition.cnn.com";
    let bed = TestBed::new("tls-roots")?;
    let tls = ServerTls::new(bed.pki().server(&[HOST])?);
    let _origin = bed.embedded_origin().handler(|_| Reply::ok("fine")).tls(&bed.sockets(HOST, 443), &tls)?.start()?;
    let config = configure(&bed, &[rule(HOST, DNS, SIMPLE)])?;
    let roots = bed.dir().join("roots/ca.crt");
    fs::create_dir(bed.dir().join("roots"))?;
    fs::copy(bed.pki().client_ca_file(), &roots)?;
    // One that never can be looked at is in nobody's way.
    let (variable, never) = (roots.display().to_string(), bed.dir().join("never").display().to_string());
    symlink("never", &never)?;
    let options = AgentOptions::new(config.path()).env("SSL_CERT_FILE", &variable).env("SSL_CERT_DIR", &never);
    let mut agent = Agent::start(&bed, &options)?;
    let ask = || bed.curl("http://edition.cnn.com/")?.run();
    check_failure(&ask()?, 502, "tls_certificate_error", "among this machine's")?;
    agent.apply(|| Ok(fs::copy(bed.pki().ca_file(), &roots).map(drop)?))?;
    ensure!(ask()?.statuses() == [200]);
    agent.apply(|| Ok(fs::copy(bed.pki().client_ca_file(), &roots).map(drop)?))?;
    check_failure(&ask()?, 502, "tls_certificate_error", "among this machine's")
}

/// Want of descriptors, say, is not to leave a machine with fewer roots. Here it is a file that every reading of fails.
#[test]
fn roots_of_the_machine_that_cannot_be_read_for_now_stay_in_use() -> Result<()> {
    const HOST: &str = "edition.cnn.com";
    const REASON: &str = "cannot read the root certificates";
    let bed = TestBed::new("tls-roots-unread")?;
    let tls = ServerTls::new(bed.pki().server(&[HOST])?);
    let origin = bed.embedded_origin().handler(|_| Reply::ok("fine")).tls(&bed.sockets(HOST, 443), &tls)?.start()?;
    let config = configure(&bed, &[rule(HOST, DNS, SIMPLE)])?;
    let directory = bed.dir().join("roots");
    let (root, next) = (directory.join("ca.crt"), bed.dir().join("next"));
    fs::create_dir(&directory)?;
    fs::copy(bed.pki().ca_file(), &root)?;
    // What is no certificate at all is in nobody's way.
    fs::write(directory.join("none.crt"), "-----BEGIN CERTIFICATE-----\n????\n-----END CERTIFICATE-----\n")?;
    let (other, also) = (bed.pki().client_ca_file().display().to_string(), directory.display().to_string());
    let options = AgentOptions::new(config.path()).env("SSL_CERT_FILE", &other).env("SSL_CERT_DIR", &also);
    let options = options.args(&["--workers", "1"]);
    let mut agent = Agent::start(&bed, &options)?;
    let ask = || Ok::<_, anyhow::Error>(bed.curl("http://edition.cnn.com/")?.run()?.statuses());
    ensure!(ask()? == [200]);

    let mark = agent.process().stderr_mark();
    symlink("/proc/self/mem", &next)?;
    fs::rename(&next, &root)?;
    agent.process().wait_for_line_after(mark, "the mistake", |line| line.contains(REASON))?;
    agent.process().wait_for_line_after(mark, "what follows", |line| line.contains("before stays in use"))?;
    ensure!(agent.metrics()?.sum("egress_configuration_current", &[]) == 0.0);
    ensure!(ask()? == [200]);
    let mut another = Agent::spawn(&bed, &options)?;
    ensure!(another.wait()?.code() == Some(64) && another.log_text().contains(REASON), "{}", another.log_text());

    fs::copy(bed.pki().ca_file(), &next)?;
    fs::rename(&next, &root)?;
    let are_good = |agent: &Agent<'_>| {
        let is_current =
            || agent.metrics().is_ok_and(|metrics| metrics.sum("egress_configuration_current", &[]) == 1.0);
        wait_until("all to be good", PATIENCE, is_current)
    };
    are_good(&agent)?;
    ensure!(ask()? == [200]);

    // Nor is a directory gone that cannot be looked at.
    let mark = agent.process().stderr_mark();
    fs::rename(&directory, &next)?;
    symlink("roots", &directory)?;
    agent.process().wait_for_line_after(mark, "the mistake", |line| line.contains(REASON) && line.contains(&also))?;
    agent.process().wait_for_line_after(mark, "what follows", |line| line.contains("before stays in use"))?;
    ensure!(ask()? == [200]);
    fs::remove_file(&directory)?;
    fs::rename(&next, &directory)?;
    are_good(&agent)?;
    ensure!(ask()? == [200]);
    // They are the same again, and nobody's connection is to go for that.
    ensure!(origin.connections() == 1, "{:?}", origin.requests());
    Ok(())
}

#[test]
fn a_revocation_list_that_changes_counts_for_the_next_request() -> Result<()> {
    const HOST: &str = "edition.cnn.com";
    const SERIAL: u64 = 77;
    let bed = TestBed::new("tls-crl")?;
    let tls = ServerTls::new(bed.pki().numbered(&[HOST], SERIAL)?);
    let origin = bed.embedded_origin().handler(|_| Reply::ok("fine")).tls(&bed.sockets(HOST, 443), &tls)?.start()?;
    let config = configure(&bed, &[])?;
    let list = |revoked: &[u64]| bed.pki().revocation_list(revoked, 2019..2124);
    config.write("crl.pem", &list(&[])?)?;
    config.write("rules.yaml", &rule(HOST, DNS, "{mode: SIMPLE, caCrl: crl.pem}"))?;
    let mut agent = bed.agent(&config)?;
    let ask = || bed.curl("http://edition.cnn.com/")?.run();
    ensure!(ask()?.statuses() == [200]);
    // Neither the pooled connection nor the session is of any use then.
    agent.apply(|| config.write("crl.pem", &list(&[SERIAL])?))?;
    check_failure(&ask()?, 502, "tls_certificate_error", "is revoked: ")?;
    // One that cannot be read is refused, and the last good one stays in use.
    let mark = agent.process().stderr_mark();
    config.write("crl.pem", "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n")?;
    agent.process().wait_for_line_after(mark, "the refusal", |line| line.contains("before stays in use"))?;
    ensure!(agent.log_text().contains("crl.pem: a certificate revocation list that cannot be used"));
    check_failure(&ask()?, 502, "tls_certificate_error", "is revoked: ")?;
    agent.apply(|| config.write("crl.pem", &list(&[SERIAL + 1])?))?;
    ensure!(ask()?.statuses() == [200]);
    origin.wait_for_requests(2).map(drop)
}

#[test]
fn what_is_revoked_is_refused_while_the_roots_of_the_machine_are_those_from_before() -> Result<()> {
    const HOST: &str = "edition.cnn.com";
    const SERIAL: u64 = 78;
    let bed = TestBed::new("tls-crl-roots")?;
    let tls = ServerTls::new(bed.pki().numbered(&[HOST], SERIAL)?);
    let _origin = bed.embedded_origin().handler(|_| Reply::ok("fine")).tls(&bed.sockets(HOST, 443), &tls)?.start()?;
    let config = configure(&bed, &[])?;
    let list = |revoked: &[u64]| bed.pki().revocation_list(revoked, 2019..2124);
    config.write("crl.pem", &list(&[])?)?;
    config.write("rules.yaml", &rule(HOST, DNS, "{mode: SIMPLE, caCrl: crl.pem}"))?;
    let roots = bed.dir().join("roots");
    fs::create_dir(&roots)?;
    fs::copy(bed.pki().ca_file(), roots.join("ca.crt"))?;
    let variable = roots.display().to_string();
    let mut agent = Agent::start(&bed, &AgentOptions::new(config.path()).env("SSL_CERT_DIR", &variable))?;
    let ask = || bed.curl("http://edition.cnn.com/")?.run();
    ensure!(ask()?.statuses() == [200]);

    fs::rename(&roots, bed.dir().join("hidden"))?;
    symlink("roots", &roots)?;
    agent.process().wait_for_line("what follows", |line| line.contains("before stays in use"))?;
    ensure!(ask()?.statuses() == [200]);
    config.write("crl.pem", &list(&[SERIAL])?)?;
    wait_until("it to be refused", PATIENCE, || ask().is_ok_and(|response| response.statuses() == [502]))?;
    check_failure(&ask()?, 502, "tls_certificate_error", "is revoked: ")?;
    ensure!(agent.metrics()?.sum("egress_configuration_current", &[]) == 0.0);
    Ok(())
}

#[test]
fn a_revocation_list_whose_time_is_nearly_over_is_told_of_until_there_is_a_newer_one() -> Result<()> {
    const METRIC: &str = "egress_revocation_list_expiration_timestamp_seconds";
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    let bed = TestBed::new("tls-crl-ending")?;
    let config = configure(&bed, &[])?;
    let of_authorities = |days| bed.pki().revocation_list_of_authorities_due_in(days * DAY);
    // Of one authority, of which only the newer list counts for the same certificates.
    let old = bed.pki().revocation_list(&[], 2018..2020)?;
    // The end of one that is over tells nothing of another authority's.
    let foreign = bed.pki().foreign_revocation_list(2018..2020)?;
    let lists = [old, of_authorities(100)?, bed.pki().revocation_list_due_in(3 * DAY)?, of_authorities(1)?, foreign];
    config.write("crl.pem", &lists.concat())?;
    config.write("rules.yaml", &rule("edition.cnn.com", DNS, "{mode: SIMPLE, caCrl: crl.pem}"))?;
    let mut agent = bed.agent(&config)?;
    let file = config.path().join("crl.pem").display().to_string();
    let authority = "CN=egress test authority: trusted";
    let days_left = |agent: &Agent<'_>| -> Result<f64> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
        Ok((agent.metrics()?.sum(METRIC, &[("file", &file), ("authority", authority)]) - now) / DAY.as_secs_f64())
    };
    let left = days_left(&agent)?;
    ensure!((2.9..3.1).contains(&left), "{left}");
    let is_named = |line: &str| line.contains(&file) && line.contains(authority);
    let told = |line: &str| line.contains("the time of a revocation list is nearly over") && is_named(line);
    agent.process().wait_for_line("the warning", told)?;
    agent.apply(|| config.write("crl.pem", &bed.pki().revocation_list_due_in(100 * DAY)?))?;
    let left = days_left(&agent)?;
    ensure!((99.9..100.1).contains(&left), "{left}");
    Ok(())
}

#[test]
fn a_revocation_list_in_the_secret_of_a_credential_counts() -> Result<()> {
    const HOST: &str = "edition.cnn.com";
    const SERIAL: u64 = 77;
    let bed = TestBed::new("tls-secret-crl")?;
    let tls = ServerTls::new(bed.pki().numbered(&[HOST], SERIAL)?);
    let origin = bed.embedded_origin().handler(|_| Reply::ok("fine")).tls(&bed.sockets(HOST, 443), &tls)?.start()?;
    let authorities = fs::read_to_string(bed.pki().ca_file())?;
    let rules = |authorities_key: &str, list_key: &str, revoked: &[u64]| -> Result<[String; 2]> {
        let list = bed.pki().revocation_list(revoked, 2019..2124)?;
        let secret = format!(
            "---\napiVersion: v1\nkind: Secret\nmetadata: {{name: news}}\nstringData:\n  {authorities_key}: {authorities:?}\n  \
             {list_key}: {list:?}\n"
        );
        Ok([rule(HOST, DNS, "{mode: SIMPLE, credentialName: news}"), secret])
    };
    let config = configure(&bed, &rules("ca.crt", "ca.crl", &[SERIAL])?)?;
    let mut agent = bed.agent(&config)?;
    let ask = || bed.curl("http://edition.cnn.com/")?.run();
    check_failure(&ask()?, 502, "tls_certificate_error", "is revoked: ")?;
    let mut apply = |rules: [String; 2]| agent.apply(|| config.write("rules.yaml", &rules.concat()));
    apply(rules("ca.crt", "ca.crl", &[SERIAL + 1])?)?;
    ensure!(ask()?.statuses() == [200]);
    apply(rules("cacert", "crl", &[SERIAL])?)?;
    check_failure(&ask()?, 502, "tls_certificate_error", "is revoked: ")?;
    origin.wait_for_requests(1).map(drop)
}
