//! Pods that come while the agent runs.

use anyhow::{Result, ensure};
use harness::{
    TestBed,
    agent::{Agent, AgentOptions},
    clients::Curl,
    origin::{Reply, ServerTls},
};

const HOST: &str = "edition.cnn.com";
const PODS: usize = 20;

#[test]
fn the_first_connect_of_a_new_pod_is_upgraded_or_refused() -> Result<()> {
    let mut bed = TestBed::new("pods")?;
    let pods = (0..PODS).map(|pod| bed.add_pod(&format!("pod{pod}"))).collect::<Result<Vec<_>>>()?;
    let tls = ServerTls::new(bed.pki().server(&[HOST])?);
    let origin = bed.embedded_origin().tls(&bed.sockets(HOST, 443), &tls)?.handler(|_| Reply::ok("over TLS\n"));
    let _origin = origin.start()?;
    let tripwire = bed.tripwire(&[HOST])?;
    let config = bed.config_dir()?;
    let _agent = Agent::start(&bed, &AgentOptions::new(config.path()).args(&["--host", HOST]))?;
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
