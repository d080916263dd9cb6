//! Pods that come and go while the agent runs.

mod unserved;

use std::{
    collections::HashSet,
    fs::{self, File},
    os::fd::AsRawFd,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use harness::{
    TestBed,
    agent::{Agent, AgentOptions},
    cgroup::Cgroup,
    clients::Curl,
    netns::Netns,
    origin::{Origin, Reply, ServerTls},
    process::Running,
    wait::{PATIENCE, wait_until},
};
use nix::net::if_::if_nametoindex;

const HOST: &str = "edition.cnn.com";
const CLIENT: &str = env!("CARGO_BIN_EXE_client");
const PODS: usize = 20;

#[test]
fn the_first_connect_of_a_new_pod_is_upgraded_or_refused() -> Result<()> {
    let mut bed = TestBed::new("pods")?;
    let pods = (0..PODS).map(|pod| bed.add_pod(&format!("pod{pod}"))).collect::<Result<Vec<_>>>()?;
    let _origin = origin(&bed)?;
    let tripwire = bed.tripwire(&[HOST])?;
    let _agent = agent(&bed)?;
    let mut upgraded = 0;
    for pod in &pods {
        // The pod's first process, whose first socket is the one that connects.
        let command = bed.pod_command(pod, "curl")?.in_cgroup(bed.cgroup())?;
        let result = Curl::new(command, &format!("http://{HOST}/")).run()?;
        match result.exit_code {
            0 => upgraded += usize::from(result.body == b"over TLS\n"),
            7 => {}
            _ => ensure!(false, "{result:?}"),
        }
    }
    println!("{upgraded} of {PODS} were upgraded");
    ensure!(upgraded > 0, "the agent never comes in time");
    tripwire.assert_silent()
}

/// The thread that a process began with can end before others: /proc has no namespaces of it then.
#[test]
fn a_process_whose_first_thread_has_ended_is_served() -> Result<()> {
    let mut bed = TestBed::new("leaderless")?;
    let pod = bed.add_pod("pod")?;
    let _origin = origin(&bed)?;
    let command = bed.pod_command(&pod, CLIENT)?.in_cgroup(bed.cgroup())?;
    let target = bed.sockets(HOST, 443)[0].to_string();
    let client = command.args(["--leaderless", "hold", &target]).spawn()?;
    client.wait_for_output("connected\n")?;
    let agent = agent(&bed)?;
    ensure!(pod.listening()?.len() == 2, "{:?}\n{}", pod.listening()?, agent.log_text());
    Ok(())
}

/// Without a name lookup or a library to load before it, the connect comes within a millisecond.
#[test]
fn pods_that_connect_at_once_are_never_in_clear() -> Result<()> {
    let mut bed = TestBed::new("at-once")?;
    let pods = (0..PODS).map(|pod| bed.add_pod(&format!("pod{pod}"))).collect::<Result<Vec<_>>>()?;
    let _origin = origin(&bed)?;
    let tripwire = bed.tripwire(&[HOST])?;
    let _agent = agent(&bed)?;
    let address = bed.sockets(HOST, 80)[0].to_string();
    let spawn = |(index, pod): (usize, &Netns)| {
        let command = match index % 2 {
            0 => bed.pod_command(pod, CLIENT)?.in_cgroup(bed.cgroup())?.args(["repeat", &address]),
            // It enters the namespace without starting a program there.
            _ => bed.client_command(CLIENT)?.args(["repeat", &address, "--netns"]).arg(pod.path()),
        };
        command.spawn()
    };
    let mut clients = pods.iter().enumerate().map(spawn).collect::<Result<Vec<_>>>()?;
    let mut at_once = 0;
    for client in &mut clients {
        client.wait_for_output("200\n")?;
        ensure!(client.wait(PATIENCE)?.success(), "{:?}", client.stderr());
        let text = client.stdout();
        ensure!(text.lines().all(|line| line == "200" || line.contains("Connection refused")), "{text}");
        at_once += usize::from(text.starts_with("200"));
    }
    println!("{at_once} of {PODS} first connects were upgraded");
    tripwire.assert_silent()
}

#[test]
fn a_pod_dies_with_its_last_process() -> Result<()> {
    /// With nothing but the regular walk each would take that long.
    const WALK: Duration = Duration::from_secs(5);
    const ROUNDS: u8 = 4;
    let mut bed = TestBed::new("last")?;
    let _origin = origin(&bed)?;
    let _agent = agent(&bed)?;
    let mut took = Duration::ZERO;
    for round in 0..ROUNDS {
        let [kept, other] = [1, 2].map(|pod| format!("pod{}", 2 * round + pod));
        let (pod, other_pod) = (bed.add_pod(&kept)?, bed.add_pod(&other)?);
        let [a, b, c] = ["a", "b", "c"].map(|name| bed.cgroup().child(name));
        let (a, b, c) = (a?, b?, c?);
        let mut first = talker(&bed, &pod, &a)?;
        let mut second = talker(&bed, &pod, &b)?;
        let mut third = talker(&bed, &other_pod, &c)?;
        // From now on the namespaces live by their processes, and by whoever else holds them.
        drop((pod, other_pod));

        first.kill();
        third.kill();
        let began = Instant::now();
        wait_until("the pod to die", PATIENCE, || !has_device(&bed, &other))?;
        took += began.elapsed();
        // The agent has looked, and the other pod has a process left.
        second.write_stdin(b"\n")?;
        wait_until("an answer", PATIENCE, || second.stdout().matches("over TLS").count() == 2)?;
        ensure!(has_device(&bed, &kept));

        second.kill();
        let began = Instant::now();
        wait_until("the pod to die", PATIENCE, || !has_device(&bed, &kept))?;
        took += began.elapsed();
    }
    println!("{} pods died within {took:?}", 2 * ROUNDS);
    ensure!(took < WALK, "{took:?}");
    Ok(())
}

/// Some of its sockets are made at once then.
#[test]
fn pods_that_need_many_connections_are_told_apart() -> Result<()> {
    const REQUESTS: usize = 100;
    let mut bed = TestBed::new("many")?;
    let pods = [bed.add_pod("pod0")?, bed.add_pod("pod1")?];
    let tls = ServerTls::new(bed.pki().server(&[HOST])?).http1_only();
    let origin = bed.embedded_origin().tls(&bed.sockets(HOST, 443), &tls)?;
    let last = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let origin = origin.handler(|_| Reply::RawThenClose(last.to_vec())).start()?;
    let agent = agent(&bed)?;
    let stay = |pod| bed.pod_command(pod, "sleep")?.in_cgroup(bed.cgroup())?.args(["60"]).spawn();
    let _staying = pods.iter().map(stay).collect::<Result<Vec<_>>>()?;
    wait_until("listeners", PATIENCE, || pods.iter().all(|pod| pod.listening().is_ok_and(|ports| ports.len() == 2)))?;
    let open = || agent.metrics().map(|metrics| metrics.sum("process_open_fds", &[]));
    let before = open()?;
    let ask = |pod| {
        let url = format!("http://{HOST}/{pod}/[1-{REQUESTS}]");
        let args =
            ["-q", "-sS", "--max-time", "20", "--parallel", "--parallel-immediate", "--parallel-max", "20", &url];
        bed.pod_command(&pods[pod], "curl")?.in_cgroup(bed.cgroup())?.args(args).spawn()
    };
    for mut client in [ask(0)?, ask(1)?] {
        ensure!(client.wait(PATIENCE)?.success(), "{:?}", client.stderr());
    }
    let requests = origin.wait_for_requests(2 * REQUESTS)?;
    let [of_first, of_second] = ["/0/", "/1/"].map(|pod| {
        let own = requests.iter().filter(|request| request.target.starts_with(pod));
        own.map(|request| request.client.ip()).collect::<HashSet<_>>()
    });
    ensure!(
        !of_first.is_empty() && !of_second.is_empty() && of_first.is_disjoint(&of_second),
        "{of_first:?} {of_second:?}"
    );
    // What was made and not needed does not stay.
    wait_until("sockets to be closed", PATIENCE, || open().is_ok_and(|now| now <= before))
}

/// It keeps its sockets where they were made, when it goes back to its own network namespace.
#[test]
fn connections_outlive_the_stay_of_who_made_them() -> Result<()> {
    let mut bed = TestBed::new("back")?;
    let (pod, other) = (bed.add_pod("pod")?, bed.add_pod("other")?);
    let _origin = origin(&bed)?;
    let _agent = agent(&bed)?;
    let address = bed.sockets(HOST, 80)[0].to_string();
    let visitor = |pod: &Netns| -> Result<Running> {
        let path = pod.path().display().to_string();
        let client = bed.client_command(CLIENT)?.args(["repeat", &address, "--netns", &path]).spawn()?;
        client.wait_for_output("200\n")?;
        Ok(client)
    };
    // While somebody is there it is served.
    let visitors = [visitor(&pod)?, visitor(&other)?];
    let path = pod.path().display().to_string();
    let command =
        bed.client_command(CLIENT)?.args(["hold", &address, "--count", "2", "--comes-back", "--netns", &path]);
    let mut client = command.spawn()?;
    client.wait_for_output("connected\n")?;
    client.write_stdin(b"\n")?;
    client.wait_for_output("over TLS\n")?;
    // One after the other: when the second is let go, the agent has looked at the first without its visitor.
    for mut visitor in visitors {
        ensure!(visitor.wait(PATIENCE)?.success());
    }
    // The other one is let go, so that this one would be, too.
    wait_until("the other pod to be let go", PATIENCE, || other.listening().is_ok_and(|left| left.is_empty()))?;
    client.write_stdin(b"\n")?;
    wait_until("another answer", PATIENCE, || client.stdout().matches("over TLS").count() == 2)?;
    ensure!(client.wait(PATIENCE)?.success());
    wait_until("the pod to be let go", PATIENCE, || pod.listening().is_ok_and(|left| left.is_empty()))
}

/// A thread can be in a namespace of its own, which /proc does not show with its process.
#[test]
fn a_namespace_of_one_thread_outlives_an_upgrade() -> Result<()> {
    let mut bed = TestBed::new("thread")?;
    let pod = bed.add_pod("pod")?;
    let _origin = origin(&bed)?;
    let mut first = agent(&bed)?;
    let (address, path) = (bed.sockets(HOST, 80)[0].to_string(), pod.path().display().to_string());
    let command = bed.client_command(CLIENT)?;
    let client = command.args(["--beside", "repeat", &address, "--netns", &path]).spawn()?;
    client.wait_for_output("200\n")?;
    let ports = pod.listening()?;
    let config = bed.config_dir()?;
    let second = Agent::take_over(&bed, &AgentOptions::new(config.path()).args(&["--host", HOST]))?;
    ensure!(first.wait()?.success());
    ensure!(ports.len() == 2 && pod.listening()? == ports, "{ports:?} {:?}", pod.listening()?);
    let text = client.stdout();
    let served = text.lines().skip_while(|line| *line != "200");
    ensure!(served.clone().all(|line| line == "200"), "{:?}\n{}", served.collect::<Vec<_>>(), second.log_text());
    Ok(())
}

/// As on a node that is a container itself: what the kernel calls a process tells the agent nothing there.
#[test]
fn pods_are_noticed_at_once_in_another_pid_namespace() -> Result<()> {
    /// With nothing but the regular walk each would take that long.
    const WALK: Duration = Duration::from_secs(5);
    const ROUNDS: u32 = 4;
    let mut bed = TestBed::new("nested")?;
    let pods = (0..ROUNDS).map(|pod| bed.add_pod(&format!("pod{pod}"))).collect::<Result<Vec<_>>>()?;
    let _origin = origin(&bed)?;
    let init = bed.node_command("unshare")?.args(["--pid", "--fork", "sleep", "infinity"]).spawn()?;
    let pids = format!("--pid=/proc/{}/ns/pid_for_children", init.pid());
    // The file is there when there is a process in the namespace.
    wait_until("the pid namespace", PATIENCE, || fs::metadata(&pids["--pid=".len()..]).is_ok())?;
    let inside = ["nsenter", &pids, "unshare", "--mount", "--mount-proc"];
    let config = bed.config_dir()?;
    let mut agent = Agent::start(&bed, &AgentOptions::new(config.path()).args(&["--host", HOST]).through(&inside))?;
    agent
        .process()
        .wait_for_line("it to say so", |line| line.contains("not in the machine's initial pid namespace"))?;
    // A cgroup that gets its first process is looked at anyway.
    let _pause = bed.client_command("nsenter")?.args([&pids, "sleep", "infinity"]).spawn()?;
    let mut took = Duration::ZERO;
    for pod in &pods {
        let began = Instant::now();
        let command = bed.pod_command(pod, "nsenter")?.in_cgroup(bed.cgroup())?;
        let address = bed.sockets(HOST, 80)[0].to_string();
        let client = command.args([&pids, CLIENT, "repeat", &address]).spawn()?;
        client.wait_for_output("200\n")?;
        took += began.elapsed();
    }
    ensure!(took < WALK * ROUNDS / 2, "{took:?}");
    wait_until("a record", PATIENCE, || !agent.records().is_empty())?;
    ensure!(agent.records().iter().all(|record| record.text("pid") == "0"), "{:?}", agent.records());
    Ok(())
}

/// Whoever has a cgroup to himself can make others in it, as deep as he likes.
#[test]
fn a_cgroup_that_cannot_be_looked_at_is_in_nobodys_way() -> Result<()> {
    let mut bed = TestBed::new("deep")?;
    let pod = bed.add_pod("pod")?;
    let _origin = origin(&bed)?;
    let _deep = Deep::create(bed.cgroup())?;
    let mut agent = agent(&bed)?;
    ensure!(bed.curl(&format!("http://{HOST}/"))?.response()?.body == b"over TLS\n");
    let visitor = bed.pod_command(&pod, "sleep")?.in_cgroup(bed.cgroup())?.arg("infinity").spawn()?;
    wait_until("the pod to be served", PATIENCE, || pod.listening().is_ok_and(|found| found.len() == 2))?;
    drop(visitor);
    wait_until("the pod to be let go", PATIENCE, || pod.listening().is_ok_and(|left| left.is_empty()))?;
    let is_told = |line: &str| line.contains("not all processes can be looked at") && line.contains("name too long");
    agent.process().wait_for_line("a warning", is_told)?;
    ensure!(agent.log_text().lines().filter(|line| is_told(line)).count() == 1, "{}", agent.log_text());
    Ok(())
}

/// Cgroups in one another, until their path is longer than the kernel takes.
struct Deep(Vec<File>);

impl Deep {
    fn create(cgroup: &Cgroup) -> Result<Self> {
        let mut deep = Self(vec![File::open(cgroup.path())?]);
        while deep.0.len() * Self::name().len() < 2 * libc::PATH_MAX as usize {
            fs::create_dir(deep.child())?;
            deep.0.push(File::open(deep.child())?);
        }
        Ok(deep)
    }

    /// The next one below the last.
    fn child(&self) -> PathBuf {
        let last = self.0.last().map_or(0, AsRawFd::as_raw_fd);
        format!("/proc/self/fd/{last}/{}", Self::name()).into()
    }

    fn name() -> String {
        "d".repeat(200)
    }
}

impl Drop for Deep {
    fn drop(&mut self) {
        while self.0.len() > 1 {
            self.0.pop();
            fs::remove_dir(self.child()).ok();
        }
    }
}

/// A process in a pod that has had an answer: it has a connection to the agent, and the agent one to the origin.
fn talker(bed: &TestBed, pod: &Netns, cgroup: &Cgroup) -> Result<Running> {
    let address = bed.sockets(HOST, 80)[0].to_string();
    // The first one may be refused.
    let command = bed.pod_command(pod, CLIENT)?.in_cgroup(cgroup)?;
    let mut early = command.args(["repeat", &address]).spawn()?;
    early.wait_for_output("200\n")?;
    let command = bed.pod_command(pod, CLIENT)?.in_cgroup(cgroup)?;
    let client = command.args(["hold", "--count", "3", &address]).spawn()?;
    client.wait_for_output("connected\n")?;
    client.write_stdin(b"\n")?;
    client.wait_for_output("over TLS\n")?;
    ensure!(early.wait(PATIENCE)?.success());
    Ok(client)
}

/// Whether the origin's end of a pod's link is there. It goes with the pod's namespace.
fn has_device(bed: &TestBed, name: &str) -> bool {
    bed.origin().run(|| Ok(if_nametoindex(name).is_ok())).unwrap_or(true)
}

fn origin(bed: &TestBed) -> Result<Origin> {
    let tls = ServerTls::new(bed.pki().server(&[HOST])?);
    bed.embedded_origin().tls(&bed.sockets(HOST, 443), &tls)?.handler(|_| Reply::ok("over TLS\n")).start()
}

fn agent(bed: &TestBed) -> Result<Agent<'_>> {
    let config = bed.config_dir()?;
    Agent::start(bed, &AgentOptions::new(config.path()).args(&["--host", HOST]))
}
