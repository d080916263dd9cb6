//! Names that the agent itself keeps resolved: when it asks, and what counts when nobody answers.

mod waiting;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use harness::{
    TestBed,
    agent::{Agent, AgentOptions},
    clients::Curl,
    dns::{Answer, DnsServer, Question},
    origin::{Origin, Reply, ServerTls},
    wait::{PATIENCE, wait_until},
};

/// Is in the hosts file; its requests go to BACKEND.
const HOST: &str = "edition.cnn.com";
/// Only the name server knows it.
const BACKEND: &str = "backend.example";
/// Likewise; it is intercepted, and its requests go to itself.
const OTHER: &str = "other.example";
/// Likewise; it has a rule later on, where there is BACKEND.
const THIRD: &str = "third.example";
const RESOLV_CONF: &str = "nameserver 198.51.100.1\noptions timeout:1 attempts:1\n";
const SERVER: &str = "dns.example";

/// What the name server does.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Mode {
    Answers,
    Denies,
    IsSilent,
    FailsForV6,
    FailsForOther,
    Fails,
    /// OTHER is where BACKEND is.
    Moved,
}

/// A name, and whether its addresses of IPv6 are meant.
type Asked = (String, bool);

struct Site {
    bed: TestBed,
    mode: Arc<AtomicU8>,
    /// When it was asked, first and last, what it failed to answer with all else.
    failed: Arc<Mutex<BTreeMap<Asked, [Instant; 2]>>>,
}

impl Site {
    fn new(name: &str) -> Result<Self> {
        let bed = TestBed::builder(name).host(SERVER).host(HOST).unlisted_host(BACKEND).unlisted_host(OTHER);
        Ok(Self { bed: bed.resolv_conf(RESOLV_CONF).build()?, mode: Arc::default(), failed: Arc::default() })
    }

    fn name_server(&self) -> Result<DnsServer> {
        let (mode, failed) = (Arc::clone(&self.mode), Arc::clone(&self.failed));
        let places = [(BACKEND, BACKEND), (OTHER, OTHER), (THIRD, BACKEND)];
        let known: BTreeMap<_, _> = places.map(|(name, place)| (name, self.bed.addresses(place).both())).into();
        DnsServer::start(self.bed.origin(), self.bed.addresses(SERVER).v4.into(), move |question| {
            match mode.load(Ordering::Relaxed) {
                mode if mode == Mode::IsSilent as u8 => None,
                mode if mode == Mode::Denies as u8 => Some(Answer::nonexistent()),
                mode if mode == Mode::FailsForV6 as u8 && question.is_v6() => Some(Answer::failure()),
                mode if mode == Mode::Fails as u8 => {
                    let mut failed = failed.lock().expect("nobody panics with it");
                    let now = Instant::now();
                    failed.entry((question.name.clone(), question.is_v6())).or_insert([now; 2])[1] = now;
                    Some(Answer::failure())
                }
                mode if mode == Mode::FailsForOther as u8 && question.is_for(OTHER) => Some(Answer::failure()),
                mode if mode == Mode::Moved as u8 => Some(Answer::addresses(*known.get(BACKEND)?).ttl(1)),
                _ => Some(Answer::addresses(*known.get(question.name.as_str())?).ttl(1)),
            }
        })
    }

    fn set(&self, mode: Mode) {
        self.mode.store(mode as u8, Ordering::Relaxed);
    }

    /// Waits until it has failed for all of `names` as often as makes the agent go on without one that fails alone.
    fn wait_until_given_up(&self, names: &[&str]) -> Result<()> {
        // The fifth attempt is 15 s after the first, and eight after the one before.
        let is_fifth = |[first, last]: &[Instant; 2]| last.duration_since(*first) > Duration::from_secs(11);
        wait_until("the fifth failures", PATIENCE, || {
            let failed = self.failed.lock().expect("nobody panics with it");
            let both = |name: &str| [false, true].map(|is_v6| failed.get(&(name.to_owned(), is_v6)));
            names.iter().flat_map(|name| both(name)).all(|times| times.is_some_and(is_fifth))
        })
    }

    /// HOST at BACKEND, and OTHER.
    fn origin(&self) -> Result<Origin> {
        let tls = ServerTls::new(self.bed.pki().server(&[HOST, OTHER])?);
        let addresses = [self.bed.sockets(BACKEND, 443), self.bed.sockets(OTHER, 443)].concat();
        self.bed.embedded_origin().handler(|_| Reply::ok("over TLS")).tls(&addresses, &tls)?.start()
    }

    fn agent(&self, arguments: &[&str]) -> Result<Agent<'_>> {
        let mut agent = self.spawn(arguments)?;
        agent.wait_until_ready()?;
        Ok(agent)
    }

    fn spawn(&self, arguments: &[&str]) -> Result<Agent<'_>> {
        let config = self.bed.config_dir()?;
        let endpoint = format!("  resolution: DNS\n  endpoints: [{{address: {BACKEND}}}]\n");
        config.write("host.yaml", &rules(HOST, &endpoint))?;
        config.write("other.yaml", &rules(OTHER, "  resolution: DNS\n"))?;
        Agent::spawn(&self.bed, &AgentOptions::new(config.path()).args(arguments))
    }

    fn status(&self) -> Result<Vec<u16>> {
        Ok(self.bed.curl(&format!("http://{HOST}/"))?.header("Connection: close").run()?.statuses())
    }

    fn wait_for_status(&self, status: u16) -> Result<()> {
        wait_until(&format!("a {status}"), PATIENCE, || self.status().is_ok_and(|seen| seen == [status]))
    }

    /// OTHER is intercepted where it was the last time that anybody knew.
    fn check_interception(&self) -> Result<()> {
        self.check_interception_at(&self.bed.addresses(OTHER).v4.to_string())
    }

    fn check_interception_at(&self, address: &str) -> Result<()> {
        let resolve = format!("{OTHER}:80:{address}");
        let response = self.bed.curl(&format!("http://{OTHER}/"))?.args(["--resolve", &resolve]).response()?;
        ensure!(response.body == b"over TLS", "{response:?}");
        Ok(())
    }
}

fn rules(host: &str, resolution: &str) -> String {
    let name = host.replace('.', "-");
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}}}\nspec:\n  hosts: [{host}]\n  \
         ports: [{{number: 80, name: http, protocol: HTTP, targetPort: 443}}]\n{resolution}---\n\
         apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}}}\nspec:\n  host: {host}\n  \
         trafficPolicy: {{tls: {{mode: SIMPLE}}}}\n"
    )
}

/// Where it is served is in its rule, and intercepted; what applications are told, nobody knows.
#[test]
fn a_host_whose_endpoints_are_addresses_is_missed_while_nobody_answers_for_it() -> Result<()> {
    let site = Site::new("names-static")?;
    let _origin = site.origin()?;
    let config = site.bed.config_dir()?;
    let address = site.bed.addresses(BACKEND).v4.to_string();
    let endpoint = format!("  resolution: STATIC\n  endpoints: [{{address: {address}}}]\n");
    config.write("static.yaml", &rules(OTHER, &endpoint))?;
    let agent = Agent::spawn(&site.bed, &AgentOptions::new(config.path()))?;
    wait_until("the agent to miss the host", PATIENCE, || {
        agent.admin("/readyz").is_ok_and(|(status, text)| status == 503 && text.contains(OTHER))
    })?;
    site.check_interception_at(&address)?;
    ensure!(agent.metrics()?.sum("egress_hosts_unresolved", &[]) == 1.0);
    Ok(())
}

#[test]
fn the_last_good_answer_is_used_for_a_while_when_nobody_answers() -> Result<()> {
    let site = Site::new("names-silent")?;
    let _dns = site.name_server()?;
    let _origin = site.origin()?;
    let tripwire = site.bed.tripwire(&[HOST, OTHER])?;
    let agent = site.agent(&["--dns-max-stale", "4s"])?;
    ensure!(site.status()? == [200]);
    site.set(Mode::IsSilent);
    let silent = Instant::now();
    // Its TTL has run out long before.
    wait_until("the agent to notice", PATIENCE, || {
        agent.log().iter().any(|line| line.message() == "a look-up failed" && line.text("kept") == "2")
    })?;
    ensure!(site.status()? == [200], "after {:?}", silent.elapsed());
    // A connection that is there goes on, so the request needs another one: agents' pools are no substitute for names.
    wait_until("the answer to be too old", PATIENCE, || {
        agent.log().iter().any(|line| line.message() == "an answer has become too old" && line.text("name") == BACKEND)
    })?;
    ensure!(silent.elapsed() >= Duration::from_secs(4), "after {:?}", silent.elapsed());
    site.check_interception()?;
    site.set(Mode::Answers);
    site.wait_for_status(200)?;
    tripwire.assert_silent()
}

#[test]
fn a_name_that_is_denied_is_dropped_at_once_and_intercepted_on() -> Result<()> {
    let site = Site::new("names-denied")?;
    let _dns = site.name_server()?;
    let tripwire = site.bed.tripwire(&[HOST, OTHER])?;
    let agent = site.agent(&[])?;
    let destinations = agent.metrics()?.sum("egress_destinations", &[]);
    // Nobody is there yet, so that no connection is kept.
    ensure!(site.status()? == [502]);
    site.set(Mode::Denies);
    wait_until("the name to be dropped", PATIENCE, || {
        let body = site.bed.curl(&format!("http://{HOST}/")).and_then(Curl::run).map(|result| result.body);
        body.is_ok_and(|body| String::from_utf8_lossy(&body).contains("the name has no known address"))
    })?;
    let _origin = site.origin()?;
    site.check_interception()?;
    ensure!(agent.metrics()?.sum("egress_destinations", &[]) == destinations);
    tripwire.assert_silent()
}

/// While nobody knows its name's address, it is the one that the application connects to. No answer has ever given that.
#[test]
fn connections_follow_a_host_that_is_elsewhere() -> Result<()> {
    for http2 in [false, true] {
        let site = Site::new("names-moved")?;
        let _dns = site.name_server()?;
        site.set(Mode::IsSilent);
        let tls = ServerTls::new(site.bed.pki().server(&[OTHER])?);
        let tls = if http2 { tls } else { tls.http1_only() };
        let [before, after] = [OTHER, BACKEND].map(|host| site.bed.sockets(host, 443)[0]);
        let origin = site.bed.embedded_origin().tls(&[before, after], &tls)?.start()?;
        let config = site.bed.config_dir()?;
        let address = format!("  resolution: DNS\n  addresses: [{}]\n", before.ip());
        config.write("other.yaml", &rules(OTHER, &address))?;
        let agent = AgentOptions::new(config.path()).args(&["--workers", "1"]);
        let mut agent = Agent::spawn(&site.bed, &agent)?;
        agent.wait_until_ready()?;
        let mut requests = 0;
        let mut upstream = || {
            let request = site.bed.curl(&format!("http://{OTHER}/"))?;
            request.args(["--resolve", &format!("{OTHER}:80:{}", before.ip())]).response()?;
            requests += 1;
            Ok::<_, anyhow::Error>(agent.wait_for_records(requests)?.pop().context("no record")?.text("upstream"))
        };
        for _ in 0..3 {
            ensure!(upstream()? == before.to_string());
        }
        ensure!(origin.connections() == 1, "{:?}", origin.requests());
        site.set(Mode::Moved);
        // They come so fast that none of the connections is idle for long.
        wait_until("the connection to be given up", PATIENCE, || {
            upstream().is_ok_and(|upstream| upstream == after.to_string())
        })?;
    }
    Ok(())
}

/// The other family's answer says nothing of it.
#[test]
fn addresses_of_a_family_that_nobody_answers_for_are_inherited() -> Result<()> {
    let site = Site::new("names-family")?;
    let _dns = site.name_server()?;
    let _origin = site.origin()?;
    let tripwire = site.bed.tripwire(&[HOST, OTHER])?;
    site.agent(&[])?.kill();
    site.set(Mode::FailsForV6);
    let _agent = site.agent(&[])?;
    site.check_interception()?;
    site.check_interception_at(&format!("[{}]", site.bed.addresses(OTHER).v6))?;
    tripwire.assert_silent()
}

/// Two name servers, by which the agent is to find the name's address, whoever has it.
fn check_order(name: &str, first: impl Fn(&Question) -> Option<Answer> + Send + 'static, second: Answer) -> Result<()> {
    let bed = TestBed::builder(name).host(SERVER).host("dns2.example").unlisted_host(OTHER);
    let bed =
        bed.resolv_conf("nameserver 198.51.100.1\nnameserver 198.51.100.2\noptions timeout:1 attempts:1\n").build()?;
    let [one, two] = [SERVER, "dns2.example"].map(|server| bed.addresses(server).v4.into());
    let _first = DnsServer::start(bed.origin(), one, first)?;
    let _second = DnsServer::start(bed.origin(), two, move |_| Some(second.clone()))?;
    let config = bed.config_dir()?;
    config.write("other.yaml", &rules(OTHER, "  resolution: DNS\n"))?;
    let agent = bed.agent(&config)?;
    wait_until("the name to be known", PATIENCE, || {
        agent.metrics().is_ok_and(|metrics| metrics.sum("egress_destinations", &[]) == 1.0)
    })
}

#[test]
fn what_the_first_name_server_says_counts() -> Result<()> {
    let place = || Answer::addresses([[192, 0, 2, 1].into()]);
    check_order(
        "names-first",
        move |_| {
            thread::sleep(Duration::from_millis(100));
            Some(place())
        },
        Answer::nonexistent(),
    )?;
    check_order("names-silent-first", |_| None, place())?;
    check_order("names-failing-first", |_| Some(Answer::failure()), place())
}

#[test]
fn many_names_are_looked_up_a_few_at_a_time() -> Result<()> {
    const COUNT: usize = 300;
    const AT_ONCE: usize = 64;
    let bed = TestBed::builder("names-many").host(SERVER).resolv_conf(RESOLV_CONF).build()?;
    let asked = Arc::new(Mutex::new(BTreeMap::<String, Instant>::new()));
    let answers = Arc::new(AtomicU8::new(0));
    let (first_asked, answering) = (Arc::clone(&asked), Arc::clone(&answers));
    let address = IpAddr::from(bed.addresses(SERVER).v4);
    let _dns = DnsServer::start(bed.origin(), address, move |question| {
        let name = question.name.to_ascii_lowercase();
        first_asked.lock().expect("nobody panics with it").entry(name).or_insert_with(Instant::now);
        (answering.load(Ordering::Relaxed) > 0).then(|| Answer::addresses([address]))
    })?;
    let config = bed.config_dir()?;
    for number in 0..COUNT {
        config.write(&format!("{number}.yaml"), &rules(&format!("host{number}.example"), "  resolution: DNS\n"))?;
    }
    let mut agent = Agent::spawn(&bed, &AgentOptions::new(config.path()))?;
    let seen = || asked.lock().expect("nobody panics with it").clone();
    wait_until("the first names to be asked for", PATIENCE, || seen().len() >= AT_ONCE)?;
    // A look-up that nobody answers takes a second at least.
    let times = seen();
    let first = *times.values().min().expect("there are some");
    let at_first = times.values().filter(|at| at.duration_since(first) < Duration::from_millis(500)).count();
    ensure!(at_first <= AT_ONCE, "{at_first} names were asked for at once");
    answers.store(1, Ordering::Relaxed);
    agent.wait_until_ready()?;
    ensure!(seen().len() == COUNT, "{} names were asked for", seen().len());
    ensure!(agent.metrics()?.sum("egress_rules", &[]) == COUNT as f64);
    Ok(())
}

/// To try all that does not fit again with each of them would take seconds each time.
#[test]
fn names_that_change_while_there_is_no_room_cost_no_more_than_themselves() -> Result<()> {
    let site = Site::new("names-full")?;
    let backend = site.bed.addresses(BACKEND).both();
    let asked = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&asked);
    let server = site.bed.addresses(SERVER).v4.into();
    let _dns = DnsServer::start(site.bed.origin(), server, move |question| {
        if question.is_for(BACKEND) {
            return Some(Answer::addresses(backend));
        }
        // Another address each time.
        let address = Ipv4Addr::from(0x0a00_0000 + count.fetch_add(1, Ordering::Relaxed));
        Some(Answer::addresses([address.into()]).ttl(1))
    })?;
    let _origin = site.origin()?;
    let mut agent = site.agent(&[])?;
    agent.fill_destinations()?;
    let tells = || agent.log().iter().filter(|line| line.message() == "not all of the policy is intercepted").count();
    wait_until("the agent to notice", PATIENCE, || tells() > 0)?;
    let (status, reason) = agent.admin("/readyz")?;
    ensure!(status == 503 && reason.contains("more than 1048576 addresses"), "{status} {reason}");
    let before = asked.load(Ordering::Relaxed);
    wait_until("more changes", PATIENCE, || asked.load(Ordering::Relaxed) > before + 16)?;
    // Once in a while it is tried.
    ensure!(tells() < 4, "{}", agent.log_text());
    ensure!(agent.admin("/readyz")? == (status, reason) && site.status()? == [200]);
    agent.make_room(256)?;
    let config = site.bed.config_dir()?;
    agent.apply(|| config.write("third.yaml", &rules("third.example", "  resolution: DNS\n")))?;
    Ok(())
}
