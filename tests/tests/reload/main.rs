//! The configuration and the names that it uses change while the agent runs.

mod reading;

use std::{
    fs,
    io::Write as _,
    os::unix::fs::symlink,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use harness::{
    TestBed,
    agent::{Agent, AgentOptions, ConfigMap, LogLine},
    origin::{Origin, Reply, ServerTls},
    process::Running,
    wait::{PATIENCE, wait_until},
};
use nix::sys::signal::Signal;

const HOST: &str = "edition.cnn.com";
const OTHER: &str = "other.example";
const RULES: &str = include_str!("../../seed/tls-origination.yaml");
const CLIENT: &str = env!("CARGO_BIN_EXE_client");
/// A change should be in effect within a second on an idle machine.
const SOON: Duration = Duration::from_secs(4);

#[test]
fn a_good_change_takes_effect_and_leaves_open_connections_alone() -> Result<()> {
    let bed = TestBed::builder("good").host(HOST).host(OTHER).build()?;
    let origin = origin(&bed)?;
    let config = bed.config_dir()?;
    config.write("edition.yaml", RULES)?;
    let mut agent = bed.agent(&config)?;
    let held =
        bed.client_command(CLIENT)?.args(["hold", &bed.sockets(HOST, 80)[0].to_string(), "--count", "3"]).spawn();
    let mut held = held?;
    let request = |held: &Running, count: usize| -> Result<()> {
        held.write_stdin(b"\n")?;
        wait_until("the next response", PATIENCE, || {
            held.stdout().matches("over TLS: edition.cnn.com\n").count() == count
        })
    };
    request(&held, 1)?;
    check_way(&bed, OTHER, "in clear")?;

    let began = Instant::now();
    ensure!(agent.apply(|| config.write("other.yaml", &rules(OTHER)))? == 2);
    check_way(&bed, OTHER, "over TLS")?;
    ensure!(began.elapsed() < SOON, "it took {:?} to take effect", began.elapsed());
    request(&held, 2)?;

    let began = Instant::now();
    ensure!(agent.apply(|| config.remove("other.yaml"))? == 1);
    check_way(&bed, OTHER, "in clear")?;
    ensure!(began.elapsed() < SOON, "it took {:?} to take effect", began.elapsed());
    request(&held, 3)?;
    ensure!(held.wait(PATIENCE)?.success());

    // All three came on one connection, and it kept its upstream connection too.
    let of_held = origin.requests().into_iter().filter(|request| request.host == HOST).collect::<Vec<_>>();
    ensure!(of_held.len() == 3 && of_held.iter().all(|request| request.connection == of_held[0].connection));
    let metrics = agent.metrics()?;
    ensure!(metrics.sum("egress_connects_total", &[("outcome", "redirected")]) == 3.0, "{metrics:?}");
    ensure!(metrics.sum("egress_policy_applied_total", &[]) == 3.0, "{metrics:?}");
    Ok(())
}

/// They would end who does not ask for them.
#[test]
fn signals_that_other_servers_are_reloaded_by_change_nothing() -> Result<()> {
    let bed = TestBed::builder("signals").host(HOST).host(OTHER).build()?;
    let _origin = origin(&bed)?;
    let config = bed.config_dir()?;
    config.write("edition.yaml", RULES)?;
    let mut agent = bed.agent(&config)?;
    for (signal, line) in [(Signal::SIGHUP, "SIGHUP does nothing"), (Signal::SIGUSR1, "SIGUSR1 does nothing")] {
        agent.process().signal(signal)?;
        agent.process().wait_for_line(line, |text| text.contains(line))?;
        check_way(&bed, HOST, "over TLS")?;
    }
    Ok(())
}

/// As when a directory is written anew, file by file.
#[test]
fn a_host_that_is_missing_for_a_moment_stays() -> Result<()> {
    let bed = TestBed::builder("moment").host(HOST).host(OTHER).build()?;
    let _origin = origin(&bed)?;
    let config = bed.config_dir()?;
    config.write("edition.yaml", RULES)?;
    config.write("other.yaml", &rules(OTHER))?;
    let mut agent = bed.agent(&config)?;
    for (host, file) in [(HOST, "edition.yaml"), (OTHER, "other.yaml")] {
        let mark = agent.process().stderr_mark();
        config.remove(file)?;
        agent.process().wait_for_line_after(mark, "the second reading", |line| line.contains("it is read again"))?;
        config.write(file, &rules(host))?;
        check_way(&bed, host, "over TLS")?;
    }
    // This is taken in after all of that.
    config.write("third.yaml", &rules("third.example"))?;
    wait_until("the third rule", PATIENCE, || {
        agent.metrics().is_ok_and(|metrics| metrics.sum("egress_rules", &[]) == 3.0)
    })?;
    ensure!(agent.metrics()?.sum("egress_policy_applied_total", &[]) == 2.0, "{}", agent.log_text());
    Ok(())
}

#[test]
fn a_comment_costs_no_connection() -> Result<()> {
    let bed = TestBed::builder("comment").host(HOST).host(OTHER).build()?;
    let origin = origin(&bed)?;
    let config = bed.config_dir()?;
    // Of files, too, the place is known at which they are named.
    let authorities = format!("mode: SIMPLE\n          caCertificates: {}", bed.pki().ca_file().display());
    let rules = RULES.replace("mode: SIMPLE", &authorities);
    config.write("edition.yaml", &rules)?;
    let mut agent = Agent::start(&bed, &AgentOptions::new(config.path()).args(&["--workers", "1"]))?;
    check_way(&bed, HOST, "over TLS")?;
    ensure!(agent.apply(|| config.write("edition.yaml", &format!("# Why.\n{rules}")))? == 1);
    check_way(&bed, HOST, "over TLS")?;
    ensure!(origin.connections() == 1, "{:?}", origin.requests());
    Ok(())
}

#[test]
fn a_bad_change_is_reported_and_the_last_good_policy_stays() -> Result<()> {
    let bed = TestBed::builder("bad").host(HOST).host(OTHER).build()?;
    let _origin = origin(&bed)?;
    let config = bed.config_dir()?;
    config.write("edition.yaml", RULES)?;
    let mut agent = bed.agent(&config)?;
    let other = rules(OTHER);
    let cases = [
        (RULES.replace("mode: SIMPLE", "mode: SIMPEL"), "SIMPEL"),
        (RULES.replace("resolution: DNS", "resolution: DNS\n  colour: blue"), "colour"),
        (format!("{RULES}\n---\nkind: [\n"), "["),
    ];
    for (count, (yaml, mistake)) in (1..).zip(cases) {
        let line = 1 + yaml.lines().position(|line| line.contains(mistake)).context("no such line")?;
        let mark = agent.process().stderr_mark();
        // The good file beside it does not come into force either: a configuration is taken as a whole.
        config.write("other.yaml", &other)?;
        config.write("edition.yaml", &yaml)?;
        let file = config.path().join("edition.yaml").display().to_string();
        agent.process().wait_for_line_after(mark, "the refusal", |text| {
            // YAML that ends early may be noticed at the end.
            text.contains(&format!("{file}:{line}:")) || text.contains(&format!("{file}:{}:", line + 1))
        })?;
        agent
            .process()
            .wait_for_line_after(mark, "the consequence", |text| text.contains("the last good one stays"))?;
        ensure!(agent.metrics()?.sum("egress_policy_refused_total", &[]) >= f64::from(count));
        ensure!(agent.metrics()?.sum("egress_configuration_current", &[]) == 0.0);
        let tells = |found: &LogLine| {
            found.text("code").starts_with("EG00") && found.text("location").starts_with(&format!("{file}:"))
        };
        ensure!(agent.log().iter().any(tells), "{}", agent.log_text());
        ensure!(agent.admin("/readyz")?.0 == 200, "a refused change makes the agent unready");
        check_way(&bed, HOST, "over TLS")?;
        config.write("edition.yaml", RULES)?;
        config.remove("other.yaml")?;
    }
    // A good one after it is taken.
    ensure!(agent.apply(|| config.remove("edition.yaml"))? == 0);
    ensure!(agent.metrics()?.sum("egress_configuration_current", &[]) == 1.0);
    check_way(&bed, HOST, "in clear")
}

/// As when a volume is not mounted: that is no wish to have no rules.
#[test]
fn a_directory_that_loses_all_of_its_files_changes_nothing() -> Result<()> {
    const REASON: &str = "has no file whose name ends in .yaml, .yml or .json";
    let bed = TestBed::builder("emptied").host(HOST).host(OTHER).build()?;
    let _origin = origin(&bed)?;
    let path = bed.dir().join("map");
    let mut map = ConfigMap::create(&path, &[("rules.yaml", RULES)])?;
    let mut agent = Agent::start(&bed, &AgentOptions::new(&path))?;
    let mark = agent.process().stderr_mark();
    map.replace(&[])?;
    agent.process().wait_for_line_after(mark, "the refusal", |line| line.contains(REASON))?;
    agent.process().wait_for_line_after(mark, "the consequence", |line| line.contains("the last good one stays"))?;
    check_way(&bed, HOST, "over TLS")?;
    // An agent cannot start like this either.
    let mut other = Agent::spawn(&bed, &AgentOptions::new(&path))?;
    ensure!(other.wait()?.code() == Some(64) && other.log_text().contains(REASON), "{}", other.log_text());

    // A file without rules is a wish, and worth a warning.
    let mark = agent.process().stderr_mark();
    ensure!(agent.apply(|| map.replace(&[("rules.yaml", "# None.\n")]))? == 0);
    agent.process().wait_for_line_after(mark, "the warning", |line| line.contains("nothing is intercepted"))?;
    check_way(&bed, HOST, "in clear")
}

#[test]
fn a_config_map_is_exchanged_whole() -> Result<()> {
    for (name, as_file) in [("map", false), ("map-file", true)] {
        let bed = TestBed::builder(name).host(HOST).host(OTHER).build()?;
        let _origin = origin(&bed)?;
        let mut map = ConfigMap::create(&bed.dir().join("map"), &[("rules.yaml", RULES)])?;
        let path = if as_file { map.path().join("rules.yaml") } else { map.path().to_owned() };
        let mut agent = Agent::start(&bed, &AgentOptions::new(path))?;
        let ways = |upgraded: &str, untouched: &str| {
            check_way(&bed, upgraded, "over TLS").and_then(|()| check_way(&bed, untouched, "in clear")).context(name)
        };
        ways(HOST, OTHER)?;
        for (host, other) in [(OTHER, HOST), (HOST, OTHER), (OTHER, HOST)] {
            let began = Instant::now();
            ensure!(agent.apply(|| map.replace(&[("rules.yaml", &rules(host))]))? == 1);
            ensure!(began.elapsed() < SOON, "{name}: it took {:?}", began.elapsed());
            ways(host, other)?;
        }
    }
    Ok(())
}

/// As a release is put in the place of another, with all that is in it.
#[test]
fn an_ancestor_that_is_a_symlink_is_exchanged() -> Result<()> {
    for (name, path) in [("ancestor", "current/etc"), ("ancestor-file", "current/etc/rules.yaml")] {
        let bed = TestBed::builder(name).host(HOST).host(OTHER).build()?;
        let _origin = origin(&bed)?;
        let home = bed.dir();
        for (release, host) in [("one", HOST), ("two", OTHER)] {
            fs::create_dir_all(home.join(release).join("etc"))?;
            fs::write(home.join(release).join("etc/rules.yaml"), rules(host))?;
        }
        symlink("one", home.join("current"))?;
        let mut agent = Agent::start(&bed, &AgentOptions::new(home.join(path)))?;
        check_way(&bed, HOST, "over TLS").context(name)?;
        let exchange = || {
            symlink("two", home.join("next"))?;
            Ok(fs::rename(home.join("next"), home.join("current"))?)
        };
        ensure!(agent.apply(exchange).context(name)? == 1);
        check_way(&bed, OTHER, "over TLS").and_then(|()| check_way(&bed, HOST, "in clear")).context(name)?;
    }
    Ok(())
}

/// As a script does that a health check runs in a loop: the agent hears of each program that is started.
#[test]
fn a_change_takes_effect_however_busy_a_pod_is() -> Result<()> {
    let bed = TestBed::builder("busy").host(HOST).host(OTHER).build()?;
    let _origin = origin(&bed)?;
    let config = bed.config_dir()?;
    config.write("edition.yaml", RULES)?;
    let mut agent = bed.agent(&config)?;
    let _busy = bed.client_command("sh")?.args(["-c", "while :; do /bin/true; done"]).spawn()?;
    ensure!(agent.apply(|| config.write("other.yaml", &rules(OTHER)))? == 2);
    check_way(&bed, OTHER, "over TLS")
}

#[test]
fn the_nodes_hosts_file_may_change() -> Result<()> {
    let bed = TestBed::builder("hosts").host(HOST).host(OTHER).build()?;
    let origin = origin(&bed)?;
    let config = bed.config_dir()?;
    let agent = Agent::start(&bed, &AgentOptions::new(config.path()).args(&["--host", HOST]))?;
    let destinations = |count: f64| {
        wait_until(&format!("{count} destinations"), PATIENCE, || {
            agent.metrics().is_ok_and(|metrics| metrics.sum("egress_destinations", &[]) == count)
        })
    };
    destinations(2.0)?;
    // Agent and clients see the same file. The host moves to the other's addresses.
    let [old4, old6] = bed.addresses(HOST).both();
    let [new4, new6] = bed.addresses(OTHER).both();
    let file = bed.dir().join("hosts");
    let text = fs::read_to_string(&file)?;
    let moved = text.replace(&format!("{old4} {HOST}"), &format!("{new4} {HOST}"));
    fs::write(&file, moved.replace(&format!("{old6} {HOST}"), &format!("{new6} {HOST}")))?;
    // The new addresses are intercepted, and so are still the old ones: applications hold answers longer than they should.
    destinations(4.0)?;
    for address in bed.sockets(HOST, 80).into_iter().chain(bed.sockets(OTHER, 80)) {
        let output = bed.client_command(CLIENT)?.args(["http", &address.to_string()]).run()?.success()?;
        ensure!(output.text().ends_with("over TLS: edition.cnn.com\n"), "{address}: {output:?}");
    }
    let upstreams = agent.wait_for_records(4)?.iter().map(|record| record.text("upstream")).collect::<Vec<_>>();
    let known = bed.sockets(OTHER, 443).map(|address| address.to_string());
    ensure!(
        upstreams.iter().all(|upstream| known.contains(upstream)),
        "not all went to the new address: {upstreams:?}"
    );

    // One more line is enough too.
    writeln!(fs::File::options().append(true).open(&file)?, "198.51.100.77 {HOST}")?;
    destinations(5.0)?;
    ensure!(origin.requests().iter().all(|request| request.tls.is_some()), "{:?}", origin.requests());
    Ok(())
}

/// A GET for the host goes this way: `over TLS` or `in clear`.
fn check_way(bed: &TestBed, host: &str, way: &str) -> Result<()> {
    for family in ["-4", "-6"] {
        let response = bed.curl(&format!("http://{host}/"))?.args([family]).response()?;
        ensure!(response.body == format!("{way}: {host}\n").as_bytes(), "{family} {way} was expected: {response:?}");
    }
    Ok(())
}

/// The seed's rules, for another host.
fn rules(host: &str) -> String {
    RULES.replace(HOST, host).replace("edition-cnn-com", "other")
}

/// Both hosts over TLS and in clear.
fn origin(bed: &TestBed) -> Result<Origin> {
    let tls = ServerTls::new(bed.pki().server(&[HOST, OTHER])?).http1_only();
    let mut origin = bed.embedded_origin();
    for host in [HOST, OTHER] {
        origin = origin.tls(&bed.sockets(host, 443), &tls)?.clear(&bed.sockets(host, 80));
    }
    origin
        .handler(|request| {
            let way = if request.tls.is_some() { "over TLS" } else { "in clear" };
            Reply::ok(format!("{way}: {}\n", request.host))
        })
        .start()
}
