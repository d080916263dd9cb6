//! The node: an agent, its configuration, and what happens to them.

use std::fs;

use anyhow::{Context, Result, ensure};
use harness::{
    TestBed,
    agent::{Agent, AgentOptions, ConfigDir},
    wait::{PATIENCE, wait_until},
};
use nix::sys::signal::Signal;

use crate::{CLIENT, HOST, OTHER, callers::Callers, pod::Pod, site::Site};

const RULES: &str = include_str!("../../seed/tls-origination.yaml");
const AUTHORITIES: &str = "authorities.pem";
const OTHER_RULES: &str = "other.yaml";
const BAD: &str = "bad.yaml";

/// What can happen.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// The agent is killed. A time without an agent, and a new one.
    Crash,
    /// The new one is given a bad file, and does not start.
    BadStart,
    /// The agent is stopped. A time without an agent, and a new one.
    Stop,
    /// Another agent takes over.
    Upgrade,
    /// The other agent is killed on its way.
    SuccessorCrash,
    /// The agent is killed while the other one is on its way.
    PredecessorCrash,
    /// A file comes that is no rule, and goes.
    BadFile,
    /// Rules for another host come and go.
    OtherRules,
    /// The authorities to trust are exchanged: for others, for what are none, and back.
    Authorities,
    /// The agent is asked to test itself.
    SelfTest,
    /// A pod comes, calls the host, and goes.
    LatePod,
    /// A pod comes while there is no agent.
    OrphanedPod,
}

/// The node.
pub struct Node<'bed> {
    bed: &'bed TestBed,
    config: ConfigDir,
    options: AgentOptions,
    agent: Option<Agent<'bed>>,
}

impl Event {
    pub const ALL: [Self; 12] = [
        Self::Crash,
        Self::BadStart,
        Self::Stop,
        Self::Upgrade,
        Self::SuccessorCrash,
        Self::PredecessorCrash,
        Self::BadFile,
        Self::OtherRules,
        Self::Authorities,
        Self::SelfTest,
        Self::LatePod,
        Self::OrphanedPod,
    ];
}

impl<'bed> Node<'bed> {
    /// Starts the first agent.
    pub fn start(bed: &'bed TestBed, arguments: &[&str]) -> Result<Self> {
        let config = bed.config_dir()?;
        config.write(AUTHORITIES, &fs::read_to_string(bed.pki().ca_file())?)?;
        config.write(
            "host.yaml",
            &RULES.replace("mode: SIMPLE", &format!("mode: SIMPLE\n          caCertificates: {AUTHORITIES}")),
        )?;
        let wildcard = RULES
            .replace(&format!("- {HOST}"), "- '*.wild.example'")
            .replace(&format!("host: {HOST}"), "host: '*.wild.example'")
            .replace("resolution: DNS", "resolution: NONE")
            .replace("edition-cnn-com", "wildcard");
        config.write("wildcard.yaml", &wildcard)?;
        // The access log of so many requests would be the most of what the test does.
        let options =
            AgentOptions::new(config.path()).args(&["--log-level", "info,egress::access=off"]).args(arguments);
        let mut node = Self { bed, config, options, agent: None };
        node.start_agent()?;
        Ok(node)
    }

    /// The agent that runs.
    pub fn agent(&mut self) -> Result<&mut Agent<'bed>> {
        self.agent.as_mut().context("no agent runs")
    }

    /// What the agent has said so far.
    pub fn log_text(&self) -> String {
        self.agent.as_ref().map_or_else(|| "nothing: none runs".to_owned(), Agent::log_text)
    }

    /// Lets something happen, and go by.
    pub fn endure(&mut self, event: Event, callers: &mut Callers, site: &Site, late: &Pod<'_>) -> Result<()> {
        match event {
            Event::Crash => {
                self.kill_agent()?;
                callers.wait_until_refused()?;
                self.start_agent()
            }
            Event::BadStart => {
                self.kill_agent()?;
                self.config.write(BAD, "kind: [\n")?;
                let mut failing = Agent::spawn(self.bed, &self.options)?;
                ensure!(failing.wait()?.code() == Some(64), "{}", failing.log_text());
                callers.wait_until_refused()?;
                self.config.remove(BAD)?;
                self.start_agent()
            }
            Event::Stop => {
                let agent = self.agent.take().context("no agent runs")?;
                ensure!(agent.terminate()?.success());
                callers.wait_until_refused()?;
                self.start_agent()
            }
            Event::Upgrade => self.upgrade(),
            Event::SuccessorCrash => {
                let mark = self.agent()?.process().stderr_mark();
                let mut successor = Agent::spawn(self.bed, &self.options)?;
                self.agent()?.process().wait_for_line_after(mark, "a successor", is("is to take over"))?;
                successor.process().kill();
                // Whether it had taken over by then: the next one takes over from whoever serves.
                self.upgrade()
            }
            Event::PredecessorCrash => {
                let mark = self.agent()?.process().stderr_mark();
                let successor = Agent::spawn(self.bed, &self.options)?;
                self.agent()?.process().wait_for_line_after(
                    mark,
                    "the handover",
                    is("another agent is taking over"),
                )?;
                self.kill_agent()?;
                self.serve_by(successor)
            }
            Event::BadFile => {
                let mark = self.agent()?.process().stderr_mark();
                self.config.write(BAD, &RULES.replace("SIMPLE", "SIMPEL"))?;
                self.refused(mark, "the last good one stays")?;
                callers.wait_until_upgraded()?;
                self.config.remove(BAD)
            }
            Event::OtherRules => {
                let rules = RULES.replace(HOST, OTHER).replace("edition-cnn-com", "other");
                self.apply(OTHER_RULES, Some(&rules))?;
                site.wait_for_other(true)?;
                self.apply(OTHER_RULES, None)?;
                site.wait_for_other(false)
            }
            Event::Authorities => self.exchange_authorities(),
            Event::SelfTest => self.agent()?.process().signal(Signal::SIGUSR2),
            Event::LatePod => call_from(late),
            Event::OrphanedPod => {
                self.kill_agent()?;
                late.learn(crate::NAME)?;
                let call = late.command(CLIENT)?.args(["http", &self.bed.sockets(HOST, 80)[0].to_string()]);
                let output = call.run()?;
                ensure!(output.stderr.contains("Connection refused"), "{output:?}");
                self.start_agent()
            }
        }
    }

    fn start_agent(&mut self) -> Result<()> {
        let agent = Agent::spawn(self.bed, &self.options)?;
        self.serve_by(agent)
    }

    fn upgrade(&mut self) -> Result<()> {
        let mut old = self.agent.take().context("no agent runs")?;
        self.start_agent()?;
        ensure!(old.wait()?.success(), "{}", old.log_text());
        Ok(())
    }

    fn serve_by(&mut self, mut agent: Agent<'bed>) -> Result<()> {
        // Until then another one may answer in its place.
        agent.process().wait_for_line("the agent to serve", is("serving /readyz"))?;
        agent.wait_until_ready()?;
        self.agent = Some(agent);
        Ok(())
    }

    fn kill_agent(&mut self) -> Result<()> {
        self.agent.take().context("no agent runs")?.kill();
        Ok(())
    }

    /// Changes a file, or removes it, and waits for the change to be in effect.
    fn apply(&mut self, name: &str, text: Option<&str>) -> Result<()> {
        let agent = self.agent.as_mut().context("no agent runs")?;
        let change = || text.map_or_else(|| self.config.remove(name), |text| self.config.write(name, text));
        agent.apply(change).map(drop)
    }

    fn exchange_authorities(&mut self) -> Result<()> {
        let pki = self.bed.pki();
        let [trusted, others] = [pki.ca_file(), pki.untrusted_ca_file()].map(fs::read_to_string);
        let (trusted, others) = (trusted?, others?);
        // Nothing can be verified: the origin is not called at all.
        self.apply(AUTHORITIES, Some(&others))?;
        let mark = self.agent()?.process().stderr_mark();
        self.config.write(AUTHORITIES, "-----BEGIN CERTIFICATE-----\n")?;
        self.refused(mark, "before stays in use")?;
        self.apply(AUTHORITIES, Some(&(trusted + &others)))
    }

    fn refused(&mut self, mark: usize, consequence: &str) -> Result<()> {
        self.agent()?.process().wait_for_line_after(mark, "the refusal", is(consequence)).map(drop)
    }
}

/// The first program of a pod calls at once.
fn call_from(pod: &Pod<'_>) -> Result<()> {
    let address = pod.bed.sockets(HOST, 80)[0].to_string();
    let mut first = pod.command(CLIENT)?.args(["repeat", &address]).spawn()?;
    wait_until("the new pod to be answered", PATIENCE, || first.stdout().lines().any(|line| line == "200"))?;
    ensure!(first.wait(PATIENCE)?.success());
    Ok(())
}

fn is(text: &str) -> impl Fn(&str) -> bool {
    move |line| line.contains(text)
}
