//! Addresses that only the application's resolver knows: learned from the answers, before the application sees them.

mod aliases;
mod endpoints;
mod lasting;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context, Result, ensure};
use harness::{
    TestBed,
    agent::{Agent, AgentOptions, ConfigDir},
    clients::{Curl, Response},
    dns::{Answer, DnsServer, Question},
    netns::Netns,
    origin::{Origin, Reply, Request, ServerTls},
    process::Output,
    wait::{PATIENCE, wait_until},
};

const HOST: &str = "edition.cnn.com";
const URL: &str = "http://edition.cnn.com/";
const RULES: &str = include_str!("../../seed/tls-origination.yaml");
const WILDCARD: &str = "*.cnn.com";
/// Has the address that the host has for pods. Not a name that anybody asks for.
const PLACE: &str = "place.example";
/// Where the name server is.
const SERVER: &str = "dns.example";
const RESOLV_CONF: &str = "nameserver 198.51.100.1\noptions timeout:1 attempts:2\n";
const LOOKUP: &str = env!("CARGO_BIN_EXE_lookup");
const ANSWERS: &str = "egress_dns_answers_total";

#[test]
fn what_the_application_is_told_is_intercepted() -> Result<()> {
    let bed = bed("told")?;
    let _dns = name_server(&bed, Answer::addresses)?;
    let origin = origin(&bed, &[HOST])?;
    let tripwire = bed.tripwire(&[PLACE])?;
    let agent = agent(&bed)?;
    for family in ["-4", "-6"] {
        let response = bed.curl(URL)?.args([family]).response()?;
        ensure!(response.body == b"over TLS: edition.cnn.com\n", "{response:?}");
    }
    ensure!(origin.requests().len() == 2);
    // The agent itself was told that there is no such host.
    ensure!(agent.metrics()?.sum("egress_destinations", &[]) == 0.0);
    ensure!(agent.metrics()?.sum(ANSWERS, &[("result", "learned")]) >= 2.0);
    tripwire.assert_silent()
}

#[test]
fn answers_are_read_in_every_form_and_on_every_socket() -> Result<()> {
    let forms: [fn(Vec<IpAddr>) -> Answer; 5] = [
        |place| Answer::addresses(place),
        |place| Answer::addresses(place).edns(),
        |place| Answer::addresses(place).alias("a.cdn.example").alias("b.cdn.example"),
        |place| Answer::addresses(place).alias("a.cdn.example").alias("b.cdn.example").uncompressed().edns(),
        // The most that fits into 4 KB, with the address that counts at the end.
        |place| Answer::addresses((0..250).map(|last| IpAddr::from([192, 0, 2, last])).chain(place)),
    ];
    let sockets: [(bool, &[&str]); 6] = [
        (false, &[]),
        (false, &["--connected"]),
        (false, &["--mapped"]),
        (false, &["--mapped", "--connected"]),
        (true, &[]),
        (true, &["--connected"]),
    ];
    // Each case has a name and addresses of its own, so that nothing has been learned before.
    let case = |form: usize, socket: usize| format!("case{form}{socket}.cnn.com");
    let all = (0..forms.len()).flat_map(|form| (0..sockets.len()).map(move |socket| case(form, socket)));
    let all = all.collect::<Vec<_>>();
    let bed = all.iter().fold(TestBed::builder("forms").host(SERVER), |builder, name| builder.unlisted_host(name));
    let bed = bed.resolv_conf(RESOLV_CONF).build()?;
    let places = all.iter().map(|name| (name.clone(), bed.addresses(name).both())).collect::<BTreeMap<_, _>>();
    let answer = move |question: &Question| {
        let name = question.name.to_ascii_lowercase();
        let form = forms[name.strip_prefix("case")?.get(..1)?.parse::<usize>().ok()?];
        Some(form(places.get(&name)?.to_vec()))
    };
    let answer = Arc::new(answer);
    let servers = bed.addresses(SERVER);
    let _dns = servers.both().map(|server| {
        DnsServer::start(bed.origin(), server, {
            let answer = answer.clone();
            move |question| answer(question)
        })
    });
    let tls = ServerTls::new(bed.pki().server(&[WILDCARD])?);
    let hosts = all.iter().map(String::as_str).collect::<Vec<_>>();
    let addresses = |port| hosts.iter().flat_map(|host| bed.sockets(host, port)).collect::<Vec<_>>();
    let _origin = bed.embedded_origin().tls(&addresses(443), &tls)?.handler(way).start()?;
    let tripwire = bed.tripwire(&hosts)?;
    let config = bed.config_dir()?;
    config.write("wildcard.yaml", &wildcard_rules())?;
    let _agent = bed.agent(&config)?;
    for (form, _) in forms.iter().enumerate() {
        for (socket, (v6_server, options)) in sockets.iter().enumerate() {
            let name = case(form, socket);
            let server = if *v6_server { servers.v6.to_string() } else { servers.v4.to_string() };
            for (address, kind) in bed.addresses(&name).both().into_iter().zip([&[][..], &["--aaaa"]]) {
                let at = format!("{name}: {server} {options:?} {address}");
                let mixed_case = name.replace("cnn", "cNn");
                let command = bed.client_command(LOOKUP)?.args([&server, &mixed_case]).args(*options).args(kind);
                let output = command.run()?.success()?;
                ensure!(output.text() != "nothing\n", "{at}: {output:?}");
                let result = get(&bed, &name, address)?;
                ensure!(result.body == format!("over TLS: {name}\n").as_bytes(), "{at}: {result:?}");
            }
        }
    }
    tripwire.assert_silent()
}

#[test]
fn an_answer_of_one_pod_touches_no_other() -> Result<()> {
    let mut bed = bed("scope")?;
    let other = bed.add_pod("other")?;
    let _dns = name_server(&bed, Answer::addresses)?;
    let origin = bed.embedded_origin().clear(&bed.sockets(PLACE, 80)).handler(|_| Reply::ok("in clear\n")).start()?;
    let agent = agent(&bed)?;
    let asked = |pod: &Netns| -> Result<Output> {
        let server = bed.addresses(SERVER).v4.to_string();
        bed.pod_command(pod, LOOKUP)?.in_cgroup(bed.cgroup())?.args([&server, HOST]).run()?.success()
    };
    ensure!(asked(bed.client())?.text() == "1\n");
    // The other pod uses the same address for something else.
    let url = format!("http://{}/", bed.addresses(PLACE).v4);
    let curl = |pod: &Netns| -> Result<Response> {
        Curl::new(bed.pod_command(pod, "curl")?.in_cgroup(bed.cgroup())?, &url).response()
    };
    ensure!(curl(&other)?.body == b"in clear\n" && redirected(&agent)? == 0.0);
    // And so does the first; its request is looked at, and passed on.
    ensure!(curl(bed.client())?.body == b"in clear\n" && redirected(&agent)? == 1.0);
    ensure!(origin.requests().len() == 2);
    Ok(())
}

#[test]
fn a_name_server_of_the_pod_s_own_is_listened_to() -> Result<()> {
    let bed = bed("own")?;
    let place = bed.addresses(PLACE).both();
    let _dns = name_server(&bed, |_| Answer::nonexistent())?;
    let _cache = DnsServer::start(bed.client(), Ipv4Addr::LOCALHOST.into(), move |_| Some(Answer::addresses(place)))?;
    let _origin = origin(&bed, &[HOST])?;
    let tripwire = bed.tripwire(&[PLACE])?;
    let _agent = agent(&bed)?;
    let output = bed.client_command(LOOKUP)?.args(["127.0.0.1", HOST]).run()?.success()?;
    ensure!(output.text() == "1\n", "{output:?}");
    ensure!(get(&bed, HOST, place[0])?.head.status == 200);
    tripwire.assert_silent()
}

#[test]
fn other_names_and_other_datagrams_pass_as_they_are() -> Result<()> {
    let bed = bed("others")?;
    let place = bed.addresses(PLACE).both();
    let _dns = serve(&bed, move |_| Answer::addresses(place))?;
    let _origin = bed.embedded_origin().clear(&bed.sockets(PLACE, 80)).handler(|_| Reply::ok("in clear\n")).start()?;
    let agent = agent(&bed)?;
    for name in ["cnn.com", "xedition.cnn.com", "www.edition.cnn.com", "edition.cnn.com.example", "com"] {
        let output =
            bed.client_command(LOOKUP)?.args([&bed.addresses(SERVER).v4.to_string(), name]).run()?.success()?;
        ensure!(output.text() == "1\n", "{name}: {output:?}");
    }
    ensure!(get(&bed, HOST, place[0])?.body == b"in clear\n");
    ensure!(agent.metrics()?.sum(ANSWERS, &[]) == 0.0);
    Ok(())
}

#[test]
fn what_cannot_be_learned_is_not_answered() -> Result<()> {
    let bed = bed("full")?;
    let next = AtomicU32::new(0);
    let _dns = serve(&bed, move |_| {
        let first = next.fetch_add(200, Ordering::Relaxed);
        let addresses = (first..first + 200).map(|number| Ipv4Addr::from(0x0a00_0000 + number).into());
        Answer::addresses(addresses)
    })?;
    let agent = agent(&bed)?;
    let ask = || -> Result<String> {
        let command = bed.client_command(LOOKUP)?.args([&bed.addresses(SERVER).v4.to_string(), HOST]);
        Ok(command.args(["--patience", "300"]).run()?.success()?.text())
    };
    // 4096 addresses are what a pod has room for.
    for count in 0..20 {
        ensure!(ask()? == "200\n", "answer {count}");
    }
    ensure!(ask()? == "nothing\n");
    ensure!(agent.metrics()?.sum(ANSWERS, &[("result", "refused")]) == 1.0);
    let told =
        || agent.log().iter().filter(|line| line.message().starts_with("no more addresses can be learned")).count();
    wait_until("the log to say so", PATIENCE, || told() == 1)
}

/// There are resolvers that do not look what an answer is to.
#[test]
fn addresses_that_may_be_anybody_s_are_not_answered() -> Result<()> {
    let bed = bed("unasked")?;
    let place = bed.addresses(PLACE).both();
    let _dns = serve(&bed, move |question| {
        if question.is_for(HOST) { Answer::addresses(place).unasked() } else { Answer::default().alias(HOST).unasked() }
    })?;
    let agent = agent(&bed)?;
    let ask = |name: &str| -> Result<String> {
        let command = bed.client_command(LOOKUP)?.args([&bed.addresses(SERVER).v4.to_string(), name]);
        Ok(command.args(["--patience", "300"]).run()?.success()?.text())
    };
    ensure!(ask(HOST)? == "nothing\n");
    ensure!(agent.metrics()?.sum(ANSWERS, &[("result", "refused")]) == 1.0);
    ensure!(ask("other.example")? == "1\n");
    ensure!(agent.metrics()?.sum(ANSWERS, &[]) == 1.0);
    Ok(())
}

/// An agent in scope, as one is without kubepods or in a pod itself, asks for more names than there is room for.
#[test]
fn what_the_agent_asks_for_takes_no_room() -> Result<()> {
    let bed = bed("own")?;
    let place = bed.addresses(PLACE).v4.into();
    let (asked, is_asked) = std::sync::mpsc::channel();
    let _dns = DnsServer::start(bed.origin(), bed.addresses(SERVER).v4.into(), move |question| {
        // The test may be over.
        let _ = asked.send(question.client.ip());
        Some(Answer::addresses([place]))
    })?;
    let config = ConfigDir::create(&bed.dir().join("empty"))?;
    let options = AgentOptions::new(config.path()).args(&["--host", HOST]).inside_cgroup();
    let agent = Agent::start(&bed, &options)?;
    ensure!(is_asked.try_iter().count() > 0);
    ensure!(agent.metrics()?.sum("egress_destinations", &[]) >= 1.0);
    ensure!(agent.metrics()?.sum(ANSWERS, &[]) == 0.0);
    // That of others does.
    let command = bed.client_command(LOOKUP)?.args([&bed.addresses(SERVER).v4.to_string(), HOST]);
    ensure!(command.run()?.success()?.text() == "1\n");
    ensure!(agent.metrics()?.sum(ANSWERS, &[("result", "learned")]) == 1.0);
    Ok(())
}

#[test]
fn hosts_of_a_wildcard_are_upgraded_and_verified_by_the_request_s_host() -> Result<()> {
    let bed = bed("wildcard")?;
    let place = bed.addresses(PLACE).both();
    let _dns = serve(&bed, move |question| {
        let known = question.is_for("cnn.com") || question.name.ends_with(".cnn.com");
        if known { Answer::addresses(place) } else { Answer::nonexistent() }
    })?;
    let tls = ServerTls::new(bed.pki().server(&["www.cnn.com", "a.b.cnn.com"])?);
    let origin = bed.embedded_origin().tls(&bed.sockets(PLACE, 443), &tls)?.clear(&bed.sockets(PLACE, 80));
    let origin = origin.handler(way).start()?;
    let config = bed.config_dir()?;
    let agent = Agent::start(&bed, &AgentOptions::new(config.path()).args(&["--host", WILDCARD]))?;
    for host in ["www.cnn.com", "a.b.cnn.com"] {
        for family in ["-4", "-6"] {
            let response = bed.curl(&format!("http://{host}/"))?.args([family]).response()?;
            ensure!(response.body == format!("over TLS: {host}\n").as_bytes(), "{response:?}");
        }
    }
    for request in origin.take_requests() {
        ensure!(request.tls.as_ref().is_some_and(|tls| tls.sni.as_deref() == Some(&request.host)), "{request:?}");
    }
    // The certificate is for others. A connection that was verified for them is not used for this one.
    let response = bed.curl("http://other.cnn.com/")?.response()?;
    ensure!(response.head.status == 502, "{response:?}");
    let reason = response.head.header("proxy-status").unwrap_or_default();
    ensure!(reason.contains("error=tls_certificate_error") && reason.contains("other.cnn.com"), "{reason}");
    ensure!(origin.take_requests().is_empty());
    // The wildcard does not stand for the name itself.
    let response = bed.curl("http://cnn.com/")?.response()?;
    ensure!(response.body == b"in clear: cnn.com\n", "{response:?}");
    let outcomes = agent.wait_for_records(6)?.iter().map(|record| record.text("outcome")).collect::<Vec<_>>();
    ensure!(outcomes == ["upgraded", "upgraded", "upgraded", "upgraded", "failed", "passed_through"], "{outcomes:?}");
    Ok(())
}

/// It is where the others are, and redirected like them: its requests are told apart.
#[test]
fn a_host_below_a_wildcard_is_left_in_clear_where_its_own_rule_says_so() -> Result<()> {
    const PLAIN: &str = "plain.cnn.com";
    let bed = bed("exception")?;
    let place = bed.addresses(PLACE).both();
    let _dns = serve(&bed, move |_| Answer::addresses(place))?;
    let tls = ServerTls::new(bed.pki().server(&[HOST, PLAIN])?);
    let origin = bed.embedded_origin().tls(&bed.sockets(PLACE, 443), &tls)?.clear(&bed.sockets(PLACE, 80));
    let _origin = origin.handler(way).start()?;
    let config = bed.config_dir()?;
    config.write("wildcard.yaml", &wildcard_rules())?;
    config.write("plain.yaml", &rules(PLAIN).replace("mode: SIMPLE", "mode: DISABLE"))?;
    let mut agent = Agent::start(&bed, &AgentOptions::new(config.path()))?;
    let check = |expected: &str| -> Result<()> {
        for (url, expected) in [
            (URL, "over TLS: edition.cnn.com\n"),
            ("http://plain.cnn.com/", expected),
            ("http://PLAIN.cnn.com.:80/", expected),
        ] {
            let response = bed.curl(url)?.header("Connection: close").response()?;
            // What is not ours has the Host that the application gave it.
            let body = String::from_utf8_lossy(&response.body).replace("PLAIN", "plain").replace(".\n", "\n");
            ensure!(body == expected, "{url}: {body}");
        }
        Ok(())
    };
    check("in clear: plain.cnn.com\n")?;
    let said = format!("{}:", config.path().join("plain.yaml").display());
    for record in agent.wait_for_records(3)? {
        let is_excepted = record.text("exception").starts_with(&said);
        ensure!(is_excepted == (record.text("outcome") == "passed_through"), "{record:?}");
    }
    let metrics = agent.metrics()?;
    ensure!(metrics.sum("egress_rules", &[]) == 1.0 && metrics.sum("egress_exceptions", &[]) == 1.0);
    // Without a word of it it is like all others.
    let silent = rules(PLAIN).replace("tls:\n          mode: SIMPLE", "connectionPool: {tcp: {maxConnections: 9}}");
    agent.apply(|| config.write("plain.yaml", &silent))?;
    check("over TLS: plain.cnn.com\n")
}

/// A machine whose pods are told other addresses than the node: the node learns of no host by itself.
fn bed(name: &str) -> Result<TestBed> {
    TestBed::builder(name).host(SERVER).host(PLACE).resolv_conf(RESOLV_CONF).build()
}

/// Tells pods what the host's addresses are, in a form of the test's choice.
fn name_server(bed: &TestBed, form: fn(Vec<IpAddr>) -> Answer) -> Result<DnsServer> {
    let place = bed.addresses(PLACE).both().to_vec();
    serve(bed, move |question| if question.is_for(HOST) { form(place.clone()) } else { Answer::nonexistent() })
}

/// Answers to pods. The node is told that there is no such host, whatever it asks for.
fn serve(bed: &TestBed, answer: impl Fn(&Question) -> Answer + Send + 'static) -> Result<DnsServer> {
    const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 2));
    DnsServer::start(bed.origin(), bed.addresses(SERVER).v4.into(), move |question| {
        Some(if question.client.ip() == NODE { Answer::nonexistent() } else { answer(question) })
    })
}

fn origin(bed: &TestBed, names: &[&str]) -> Result<Origin> {
    let tls = ServerTls::new(bed.pki().server(names)?);
    bed.embedded_origin().tls(&bed.sockets(PLACE, 443), &tls)?.handler(way).start()
}

fn way(request: &Request) -> Reply {
    let way = if request.tls.is_some() { "over TLS" } else { "in clear" };
    Reply::ok(format!("{way}: {}\n", request.host))
}

fn agent(bed: &TestBed) -> Result<Agent<'_>> {
    let config = ConfigDir::create(&bed.dir().join("empty"))?;
    Agent::start(bed, &AgentOptions::new(config.path()).args(&["--host", HOST]))
}

/// A GET for a host at an address that the client was told before.
fn get(bed: &TestBed, host: &str, address: IpAddr) -> Result<Response> {
    let resolve = format!("{host}:80:{}", if address.is_ipv6() { format!("[{address}]") } else { address.to_string() });
    bed.curl(&format!("http://{host}/"))?.args(["--resolve", &resolve]).response()
}

fn redirected(agent: &Agent<'_>) -> Result<f64> {
    Ok(agent.metrics()?.sum("egress_connects_total", &[("outcome", "redirected")]))
}

/// The seed's rules for one host.
fn rules(host: &str) -> String {
    RULES.replace(HOST, host)
}

/// The same for all hosts of a wildcard, which cannot be resolved.
fn wildcard_rules() -> String {
    RULES
        .replace(&format!("- {HOST}"), &format!("- '{WILDCARD}'"))
        .replace(&format!("host: {HOST}"), &format!("host: '{WILDCARD}'"))
        .replace("resolution: DNS", "resolution: NONE")
        .replace("edition-cnn-com", "wildcard")
}
