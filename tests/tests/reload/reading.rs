//! Files that cannot be read, or not at once.

use std::{fs, io::Write as _, os::unix::fs::OpenOptionsExt as _, path::Path};

use anyhow::{Result, ensure};
use harness::{
    TestBed,
    agent::{Agent, AgentOptions},
    clients::Curl,
    netns::Netns,
    process::Command,
    wait::{PATIENCE, wait_for, wait_until},
};
use nix::{
    sys::{signal::Signal, stat::Mode},
    unistd::mkfifo,
};

use super::{HOST, OTHER, RULES, check_way, origin, rules};

#[test]
fn a_file_that_vanishes_and_comes_back_is_read_again() -> Result<()> {
    let bed = TestBed::builder("vanish").host(HOST).host(OTHER).build()?;
    let _origin = origin(&bed)?;
    let config = bed.config_dir()?;
    config.write("rules.yaml", RULES)?;
    let file = config.path().join("rules.yaml");
    let mut agent = Agent::start(&bed, &AgentOptions::new(&file))?;

    let mark = agent.process().stderr_mark();
    config.remove("rules.yaml")?;
    // A file that was named must be there: without it the policy is unknown, not empty.
    agent.process().wait_for_line_after(mark, "the refusal", |line| {
        line.contains(&file.display().to_string()) && line.contains("No such file")
    })?;
    check_way(&bed, HOST, "over TLS")?;
    ensure!(agent.apply(|| Ok(fs::write(&file, rules(OTHER))?))? == 1);
    check_way(&bed, OTHER, "over TLS")?;
    check_way(&bed, HOST, "in clear")
}

/// Rules and certificates come by different ways, and either can be first.
#[test]
fn a_policy_that_lacks_a_file_is_in_force_once_the_file_is_there() -> Result<()> {
    let bed = TestBed::builder("lacks").host(HOST).host(OTHER).build()?;
    let _origin = origin(&bed)?;
    let config = bed.config_dir()?;
    config.write("edition.yaml", RULES)?;
    let mut agent = bed.agent(&config)?;
    // Of this directory the policy in force knows nothing.
    let directory = bed.dir().join("certificates");
    fs::create_dir(&directory)?;
    let file = directory.join("ca.pem");
    let authority = format!("mode: SIMPLE\n          caCertificates: {}", file.display());
    let mark = agent.process().stderr_mark();
    config.write("other.yaml", &rules(OTHER).replace("mode: SIMPLE", &authority))?;
    agent.process().wait_for_line_after(mark, "the refusal", |line| line.contains(&file.display().to_string()))?;
    agent.process().wait_for_line_after(mark, "the consequence", |line| line.contains("the last good one stays"))?;
    check_way(&bed, HOST, "over TLS")?;
    check_way(&bed, OTHER, "in clear")?;
    ensure!(agent.apply(|| Ok(fs::copy(bed.pki().ca_file(), &file).map(drop)?))? == 2);
    check_way(&bed, HOST, "over TLS")?;
    check_way(&bed, OTHER, "over TLS")
}

/// Whoever makes the second change sees nothing of the first.
#[test]
fn each_change_that_is_refused_for_a_file_says_so() -> Result<()> {
    let bed = TestBed::builder("refused-each").host(HOST).host(OTHER).build()?;
    let _origin = origin(&bed)?;
    let config = bed.config_dir()?;
    config.write("edition.yaml", RULES)?;
    let mut agent = bed.agent(&config)?;
    let file = bed.dir().join("missing.pem").display().to_string();
    let authority = format!("mode: SIMPLE\n          caCertificates: {file}");
    for (count, host) in (1..).zip([OTHER, "third.example"]) {
        let mark = agent.process().stderr_mark();
        let rules = if count == 1 { rules(host).replace("mode: SIMPLE", &authority) } else { rules(host) };
        config.write(&format!("{host}.yaml"), &rules)?;
        agent.process().wait_for_line_after(mark, "the reason", |line| line.contains(&file))?;
        agent
            .process()
            .wait_for_line_after(mark, "the consequence", |line| line.contains("the last good one stays"))?;
        ensure!(agent.metrics()?.sum("egress_policy_refused_total", &[]) == f64::from(count));
    }
    check_way(&bed, HOST, "over TLS")
}

/// Each is renewed by itself.
#[test]
fn a_certificate_file_that_is_bad_by_now_is_in_no_other_rules_way() -> Result<()> {
    let bed = TestBed::builder("bad-file").host(HOST).host(OTHER).host("third.example").build()?;
    let _origin = origin(&bed)?;
    let config = bed.config_dir()?;
    let files = ["edition.pem", "other.pem"].map(|name| bed.dir().join(name));
    let good = fs::read(bed.pki().ca_file())?;
    fs::write(&files[0], &good)?;
    fs::write(&files[1], fs::read(bed.pki().untrusted_ca_file())?)?;
    for (host, file) in [(HOST, &files[0]), (OTHER, &files[1])] {
        let authority = format!("mode: SIMPLE\n          caCertificates: {}", file.display());
        config.write(&format!("{host}.yaml"), &rules(host).replace("mode: SIMPLE", &authority))?;
    }
    let mut agent = bed.agent(&config)?;
    check_way(&bed, HOST, "over TLS")?;
    let other = || Ok::<_, anyhow::Error>(bed.curl(&format!("http://{OTHER}/"))?.run()?.statuses());
    ensure!(other()? == [502], "it is not of that authority");

    let mark = agent.process().stderr_mark();
    fs::write(&files[0], "no PEM")?;
    let named = files[0].display().to_string();
    agent.process().wait_for_line_after(mark, "the mistake", |line| line.contains(&named) && line.contains("EG0"))?;
    agent.process().wait_for_line_after(mark, "what follows", |line| line.contains("before stays in use"))?;
    ensure!(agent.metrics()?.sum("egress_configuration_current", &[]) == 0.0);
    ensure!(agent.apply(|| Ok(fs::write(&files[1], &good)?))? == 2);
    check_way(&bed, OTHER, "over TLS")?;
    check_way(&bed, HOST, "over TLS")?;
    // Nor is it in the way of other rules.
    ensure!(agent.apply(|| config.write("third.yaml", &rules("third.example")))? == 3);
    ensure!(agent.metrics()?.sum("egress_configuration_current", &[]) == 0.0);
    fs::write(&files[0], &good)?;
    wait_until("all to be good", PATIENCE, || {
        agent.metrics().is_ok_and(|metrics| metrics.sum("egress_configuration_current", &[]) == 1.0)
    })?;
    check_way(&bed, HOST, "over TLS")
}

#[test]
fn a_refused_change_keeps_no_certificate_from_being_renewed() -> Result<()> {
    let bed = TestBed::builder("refused-renewed").host(HOST).host(OTHER).build()?;
    let _origin = origin(&bed)?;
    let config = bed.config_dir()?;
    let file = bed.dir().join("authority.pem");
    fs::copy(bed.pki().untrusted_ca_file(), &file)?;
    let authority = format!("mode: SIMPLE\n          caCertificates: {}", file.display());
    config.write("edition.yaml", &RULES.replace("mode: SIMPLE", &authority))?;
    let mut agent = bed.agent(&config)?;
    let statuses = || Ok::<_, anyhow::Error>(bed.curl(&format!("http://{HOST}/"))?.run()?.statuses());
    ensure!(statuses()? == [502], "it is not of that authority");

    let refused = |agent: &mut Agent, mark| {
        agent.process().wait_for_line_after(mark, "the refusal", |line| line.contains("the last good one stays"))
    };
    let mark = agent.process().stderr_mark();
    config.write("broken.yaml", "no: rule")?;
    refused(&mut agent, mark)?;
    let mark = agent.process().stderr_mark();
    fs::copy(bed.pki().ca_file(), &file)?;
    refused(&mut agent, mark)?;
    check_way(&bed, HOST, "over TLS")?;
    ensure!(agent.metrics()?.sum("egress_configuration_current", &[]) == 0.0);
    Ok(())
}

/// Nothing tells when what was short is there again.
#[test]
fn what_could_not_be_read_for_want_of_descriptors_is_read_later() -> Result<()> {
    let bed = TestBed::builder("unreadable").host(HOST).host(OTHER).build()?;
    let _origin = origin(&bed)?;
    let config = bed.config_dir()?;
    config.write("edition.yaml", RULES)?;
    let mut agent = bed.agent(&config)?;
    let pid = agent.process().pid().to_string();
    let limit = |descriptors: u32| -> Result<()> {
        Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={descriptors}:")]).run()?.success()?;
        Ok(())
    };
    limit(3)?;
    let mark = agent.process().stderr_mark();
    config.write("other.yaml", &rules(OTHER))?;
    agent.process().wait_for_line_after(mark, "the refusal", |line| line.contains("Too many open files"))?;
    agent.process().wait_for_line_after(mark, "the consequence", |line| line.contains("the last good one stays"))?;
    ensure!(agent.apply(|| limit(1024))? == 2);
    check_way(&bed, HOST, "over TLS")?;
    check_way(&bed, OTHER, "over TLS")
}

/// As of a mount that hangs. Here it is a pipe into which nobody writes.
#[test]
fn a_certificate_file_that_cannot_be_read_holds_nobody_up() -> Result<()> {
    let mut bed = TestBed::builder("slow-file").host(HOST).host(OTHER).build()?;
    let pod = bed.add_pod("new")?;
    let _origin = origin(&bed)?;
    let config = bed.config_dir()?;
    let (file, pipe) = (bed.dir().join("ca.pem"), bed.dir().join("pipe"));
    fs::copy(bed.pki().ca_file(), &file)?;
    let authority = format!("mode: SIMPLE\n          caCertificates: {}", file.display());
    config.write("edition.yaml", &RULES.replace("mode: SIMPLE", &authority))?;
    let mut agent = bed.agent(&config)?;

    mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR)?;
    fs::rename(&pipe, &file)?;
    let mut writer = read_by_agent(&file)?;
    check_way(&bed, HOST, "over TLS")?;
    check_new_pod(&bed, &pod)?;
    ensure!(agent.admin("/readyz")?.0 == 200);
    agent.process().wait_for_line("what takes long", |line| line.contains("takes long to read"))?;

    // What changes meanwhile is read afterwards.
    config.write("other.yaml", &rules(OTHER))?;
    fs::write(&pipe, fs::read(bed.pki().ca_file())?)?;
    fs::rename(&pipe, &file)?;
    let applied = agent.apply(|| {
        writer.write_all(&fs::read(bed.pki().ca_file())?)?;
        drop(writer);
        Ok(())
    });
    ensure!(applied? == 2);
    check_way(&bed, HOST, "over TLS")?;
    check_way(&bed, OTHER, "over TLS")
}

/// Whoever starts it sees nothing else of it. Here what hangs is a pipe into which nobody writes.
#[test]
fn a_start_says_which_file_it_waits_for() -> Result<()> {
    for (name, is_rule) in [("start-rule", true), ("start-file", false)] {
        let bed = TestBed::builder(name).host(HOST).host(OTHER).build()?;
        let _origin = origin(&bed)?;
        let config = bed.config_dir()?;
        let pipe = if is_rule { config.path().join("slow.yaml") } else { bed.dir().join("ca.pem") };
        let authority = format!("mode: SIMPLE\n          caCertificates: {}", bed.dir().join("ca.pem").display());
        fs::copy(bed.pki().ca_file(), bed.dir().join("ca.pem"))?;
        config.write("edition.yaml", &RULES.replace("mode: SIMPLE", &authority))?;
        fs::remove_file(&pipe).ok();
        mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR)?;
        let named = pipe.display().to_string();
        let waits = |line: &str| line.contains("takes long to read") && line.contains(&named);

        let mut agent = Agent::spawn(&bed, &AgentOptions::new(config.path()))?;
        agent.process().wait_for_line("what it waits for", waits)?;
        agent.process().signal(Signal::SIGTERM)?;
        let ended = agent.wait()?;
        ensure!(ended.success() && agent.log_text().contains("before the start was complete"), "{}", agent.log_text());

        let mut agent = Agent::spawn(&bed, &AgentOptions::new(config.path()))?;
        agent.process().wait_for_line("what it waits for", waits)?;
        let mark = agent.process().stderr_mark();
        agent.process().wait_for_line_after(mark, "that it still waits", waits)?;
        let content = if is_rule { Vec::new() } else { fs::read(bed.pki().ca_file())? };
        read_by_agent(&pipe)?.write_all(&content)?;
        // The next one to read it is not to wait.
        fs::remove_file(&pipe)?;
        agent.wait_until_ready()?;
        check_way(&bed, HOST, "over TLS")?;
    }
    Ok(())
}

#[test]
fn a_start_says_which_file_of_the_resolver_it_waits_for() -> Result<()> {
    let bed = TestBed::builder("start-resolver").host(HOST).build()?;
    let config = bed.config_dir()?;
    config.write("rules.yaml", RULES)?;
    for file in ["resolv.conf", "hosts"] {
        // What those see of it that start from now on.
        let pipe = bed.dir().join(file);
        fs::remove_file(&pipe)?;
        mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR)?;
        let mut agent = Agent::spawn(&bed, &AgentOptions::new(config.path()))?;
        let named = format!("/etc/{file}");
        let waits = |line: &str| line.contains("takes long to read") && line.contains(&named);
        agent.process().wait_for_line("what it waits for", waits)?;
        agent.process().signal(Signal::SIGTERM)?;
        let ended = agent.wait()?;
        ensure!(ended.success() && agent.log_text().contains("before the start was complete"), "{}", agent.log_text());
        fs::remove_file(&pipe)?;
        fs::write(&pipe, "")?;
    }
    Ok(())
}

#[test]
fn a_file_of_the_resolver_that_cannot_be_read_holds_nobody_up() -> Result<()> {
    let mut bed = TestBed::builder("slow-resolver").host(HOST).host(OTHER).build()?;
    let pod = bed.add_pod("new")?;
    let _origin = origin(&bed)?;
    let config = bed.config_dir()?;
    config.write("edition.yaml", RULES)?;
    let mut agent = bed.agent(&config)?;
    let destinations = agent.metrics()?.sum("egress_destinations", &[]);

    let pipe = bed.dir().join("pipe");
    mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR)?;
    let sees = format!("--mount=/proc/{}/ns/mnt", agent.process().pid());
    Command::new("nsenter").args([&sees, "mount", "--bind"]).arg(&pipe).arg("/etc/hosts").run()?.success()?;
    let mut writer = read_by_agent(&pipe)?;
    check_way(&bed, HOST, "over TLS")?;
    check_new_pod(&bed, &pod)?;
    ensure!(agent.admin("/readyz")?.0 == 200);
    agent
        .process()
        .wait_for_line("what takes long", |line| line.contains("takes long to read") && line.contains("/etc/hosts"))?;

    // What it says in the end counts.
    let addresses = bed.sockets(HOST, 80).iter().map(|socket| socket.ip().to_string()).collect::<Vec<_>>();
    let listed = addresses.iter().map(String::as_str).chain(["203.0.113.200"]);
    writer.write_all(listed.map(|address| format!("{address} {HOST}\n")).collect::<String>().as_bytes())?;
    drop(writer);
    wait_until("another address to be intercepted", PATIENCE, || {
        agent.metrics().is_ok_and(|metrics| metrics.sum("egress_destinations", &[]) == destinations + 1.0)
    })
}

/// Waits until the agent reads a pipe. Gives the other end.
fn read_by_agent(pipe: &Path) -> Result<fs::File> {
    // This succeeds only while somebody reads.
    wait_for("the agent to read the pipe", PATIENCE, || {
        fs::File::options().write(true).custom_flags(libc::O_NONBLOCK).open(pipe).ok()
    })
}

fn check_new_pod(bed: &TestBed, pod: &Netns) -> Result<()> {
    let request = || {
        let command = bed.pod_command(pod, "curl")?.in_cgroup(bed.cgroup())?;
        Curl::new(command, &format!("http://{HOST}/")).run()
    };
    wait_until("the new pod to be served", PATIENCE, || {
        request().is_ok_and(|result| result.body == format!("over TLS: {HOST}\n").as_bytes())
    })
}

/// Files can be many, or on a slow disk. Here one is a pipe into which nobody writes.
#[test]
fn a_change_that_takes_long_to_read_holds_nobody_up() -> Result<()> {
    let mut bed = TestBed::builder("slow").host(HOST).host(OTHER).build()?;
    let pod = bed.add_pod("new")?;
    let _origin = origin(&bed)?;
    let config = bed.config_dir()?;
    config.write("edition.yaml", RULES)?;
    let mut agent = bed.agent(&config)?;
    agent.process().wait_for_line("the first policy", |line| line.contains("policy applied"))?;

    let pipe = config.path().join("slow.yaml");
    mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR)?;
    let writer = read_by_agent(&pipe)?;
    check_way(&bed, HOST, "over TLS")?;
    check_new_pod(&bed, &pod)?;
    ensure!(agent.admin("/readyz")?.0 == 200);

    // What changes meanwhile is read afterwards.
    config.remove("slow.yaml")?;
    config.write("other.yaml", &rules(OTHER))?;
    let mark = agent.process().stderr_mark();
    check_way(&bed, OTHER, "in clear")?;
    drop(writer);
    agent.process().wait_for_line_after(mark, "both changes", |line| {
        line.contains("policy applied") && line.contains("\"rules\":2")
    })?;
    check_way(&bed, HOST, "over TLS")?;
    check_way(&bed, OTHER, "over TLS")
}
