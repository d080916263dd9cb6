//! Pods that come and go while the agent runs.

use std::time::{Duration, Instant};

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
