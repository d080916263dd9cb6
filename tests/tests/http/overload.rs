//! Many more connections than are taken.

use anyhow::{Result, ensure};
use harness::{
    TestBed,
    agent::{Agent, AgentOptions},
    origin::Reply,
};

use super::{
    CLIENT, HOST, configure,
    large::peak_memory,
    limits::{TURNED_AWAY, hold},
    origin,
};

const CLIENTS: usize = 2000;
/// What the agent's memory may grow by: for those that are told so at the same time, 64 KiB each.
const GROWTH: u64 = 256 * 64 * 1024;

#[test]
fn those_that_are_too_many_cost_little_and_are_in_nobodys_way() -> Result<()> {
    let bed = TestBed::new("overload")?;
    let origin = origin(&bed)?.handler(|_| Reply::ok("fine")).start()?;
    let config = configure(&bed)?;
    let options = AgentOptions::new(config.path()).args(&["--workers", "1", "--max-connections", "4"]);
    let mut agent = Agent::start(&bed, &options)?;
    let held = (0..4).map(|_| hold(&bed, bed.client())).collect::<Result<Vec<_>>>()?;
    let before = peak_memory(&mut agent)?;
    let throng = ["throng", &bed.sockets(HOST, 80)[0].to_string(), "--clients", &CLIENTS.to_string()];
    let output = bed.client_command(CLIENT)?.args(throng).args(["--host", HOST]).run()?.success()?;
    let text = output.text();
    let refused = text.lines().filter(|line| *line == "503").count();
    let reset = text.lines().filter(|line| line.contains("reset by peer") || line.contains("Broken pipe")).count();
    ensure!(refused + reset == CLIENTS, "{refused} were told so, {reset} reset: {text}");
    ensure!(refused > 0 && reset > 0, "{refused} were told so, {reset} reset");
    let growth = peak_memory(&mut agent)? - before;
    ensure!(growth < GROWTH, "{growth} bytes");
    ensure!(agent.metrics()?.sum(TURNED_AWAY, &[("limit", "all")]) == CLIENTS as f64);
    for client in &held {
        client.write_stdin(b"\n")?;
        client.wait_for_output("fine")?;
    }
    ensure!(origin.requests().len() == held.len(), "{:?}", origin.requests());
    Ok(())
}
