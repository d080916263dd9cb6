//! Counters for Prometheus.

use std::{collections::BTreeMap, fmt, sync::Arc};

use egress_common::outcome::{self, Learning};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _, text},
    metrics::{
        MetricType,
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::Gauge,
        info::Info,
    },
    registry::Registry,
};

use super::{
    PANICS,
    access_log::{self, Outcome},
    process::ProcessCollector,
};
use crate::{
    kernel::Counters,
    limits::Beyond,
    upstream::{
        Cause, TlsInfo,
        tls::{Dated, Validity},
    },
};

/// All counters. Shared by all threads; those on the request path are looked up once.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: [Counter; Outcome::ALL.len()],
    handshakes_full: Counter,
    handshakes_resumed: Counter,
    handshakes_failed: Counter,
    failures: [Counter; Cause::ALL.len()],
    /// Connections to origins that have none of the pinned keys, and were used all the same.
    pub unenforced_pins: Counter,
    /// Tests of the agent by itself that were intercepted.
    pub self_tests_passed: Counter,
    /// Those that were not, and are to be repeated before that is believed.
    pub self_tests_doubted: Counter,
    /// Those that were not.
    pub self_tests_failed: Counter,
    /// Connections that could not be accepted, for want of descriptors or memory; each is tried again.
    pub accept_failures: Counter,
    /// Accepted connections whose origin the kernel did not know.
    pub unknown_origin: Counter,
    /// Connections whose first bytes were not HTTP.
    pub not_http: Counter,
    /// Connections on which something that was begun did not come to its end in time.
    pub late: Counter,
    too_many: [Counter; Beyond::LABELS.len()],
    passed_on: [Counter; 2],
    /// 1 while all that is configured is intercepted, as `/readyz` has it.
    pub ready: Gauge,
    /// 0 while the last change of the configuration is refused.
    pub configuration_current: Gauge,
    /// Hosts of which no address is known.
    pub hosts_unresolved: Gauge,
    /// Network namespaces that cannot be served.
    pub namespaces_unserved: Gauge,
    certificates: Family<FileLabel, Gauge>,
    revocation_lists: Family<ListLabel, Gauge>,
    /// Rules in force: each a port of a host.
    pub rules: Gauge,
    /// What rules for wildcards are not for.
    pub exceptions: Gauge,
    /// Addresses and networks that are intercepted.
    pub destinations: Gauge,
    /// Addresses that are intercepted in single namespaces, as applications there were told of them; counted once a minute.
    pub learned: Gauge,
    /// Network namespaces that are served.
    pub namespaces: Gauge,
    /// Connections made before they could be intercepted, when last looked for.
    pub connections_in_clear: Gauge,
    /// Sockets connected to a name server before what they are told could be learned, when last looked for.
    pub askers_unread: Gauge,
    /// Those of both that were reset.
    pub connections_reset: Counter,
    /// Times that something new was put in force.
    pub policy_applied: Counter,
    /// Changes of the configuration that were refused.
    pub policy_refused: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LimitLabel {
    limit: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CauseLabel {
    cause: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FileLabel {
    file: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ListLabel {
    file: String,
    authority: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

impl Metrics {
    /// All counters at zero, and the kernel's as they are.
    pub fn new(outcomes: Counters, learnings: Counters) -> Arc<Self> {
        let mut all = Registry::default();
        all.register_collector(Box::new(ProcessCollector::new()));
        let registry = all.sub_registry_with_prefix("egress");
        registry.register_collector(Box::new(KernelCollector { outcomes, learnings }));
        let requests = Family::<OutcomeLabel, Counter>::default();
        registry.register("requests", "Requests by what became of them", requests.clone());
        registry.register(
            "access_log_lines_lost",
            "Lines of the access log that were dropped, as nobody took them in time, or they could not be written",
            access_log::LOST.clone(),
        );
        let handshakes = Family::<ResultLabel, Counter>::default();
        let about = "TLS handshakes with origins, by how they ended: those that resumed a session are not full";
        registry.register("upstream_handshakes", about, handshakes.clone());
        let handshake = |result| handshakes.get_or_create(&ResultLabel { result }).clone();
        let failures = Family::<CauseLabel, Counter>::default();
        let about = "Requests that got no response of the origin that they were for, by cause";
        registry.register("upstream_failures", about, failures.clone());
        let unenforced_pins = Counter::default();
        registry.register(
            "pin_mismatches_unenforced",
            "Connections to origins without a pinned key, where pins are only reported",
            unenforced_pins.clone(),
        );
        let self_tests = Family::<ResultLabel, Counter>::default();
        let about = "Tests of whether connects are intercepted, by result: one that is doubted is repeated before it is believed";
        registry.register("self_tests", about, self_tests.clone());
        let self_test = |result| self_tests.get_or_create(&ResultLabel { result }).clone();
        registry.register("panics", "Mistakes of the agent's own that ended what they came in", PANICS.clone());
        let accept_failures = Counter::default();
        registry.register(
            "accept_failures",
            "Times that a connection could not be accepted, for want of descriptors or memory, and was left to wait",
            accept_failures.clone(),
        );
        let unknown_origin = Counter::default();
        registry.register(
            "connections_without_origin",
            "Accepted connections that were closed because the kernel knew no origin for them, or could not tell theirs from another's",
            unknown_origin.clone(),
        );
        let not_http = Counter::default();
        registry.register(
            "connections_not_http",
            "Connections that ended because what came was not a request, or had too long a head",
            not_http.clone(),
        );
        let late = Counter::default();
        registry.register(
            "connections_late",
            "Connections that ended because what a client had begun, as a request's head, did not come to its end in time, or it did not read what answers that",
            late.clone(),
        );
        let too_many = Family::<LimitLabel, Counter>::default();
        let about = "Connections and requests of applications that were beyond a limit, or whose heads were, by limit";
        registry.register("connections_turned_away", about, too_many.clone());
        let too_many = Beyond::LABELS.map(|limit| too_many.get_or_create(&LimitLabel { limit }).clone());
        let passed_on = Family::<OutcomeLabel, Counter>::default();
        registry.register(
            "connections_passed_on",
            "Connections that were captured by their port alone (--capture ports), and passed on as they are, by how they ended",
            passed_on.clone(),
        );
        let passed_on =
            ["complete", "broken"].map(|outcome| passed_on.get_or_create(&OutcomeLabel { outcome }).clone());
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "What this agent was built from", version);
        let ready = Gauge::default();
        registry.register(
            "ready",
            "Whether all that is configured is intercepted (1), as /readyz has it",
            ready.clone(),
        );
        let configuration_current = Gauge::default();
        registry.register(
            "configuration_current",
            "Whether the last change of the configuration, and of the files that it names, is in force (1), rather than refused, or long to read (0)",
            configuration_current.clone(),
        );
        let hosts_unresolved = Gauge::default();
        registry.register(
            "hosts_unresolved",
            "Configured hosts, and names of endpoints, of which no address is known, and nothing is intercepted but what DNS answers tell",
            hosts_unresolved.clone(),
        );
        let namespaces_unserved = Gauge::default();
        registry.register(
            "network_namespaces_unserved",
            "Network namespaces that cannot be served: what is configured is refused there",
            namespaces_unserved.clone(),
        );
        let certificates = Family::<FileLabel, Gauge>::default();
        registry.register(
            "client_certificate_expiration_timestamp_seconds",
            "When the first of the certificates that origins are shown is over, by the file or Secret that has them",
            certificates.clone(),
        );
        let revocation_lists = Family::<ListLabel, Gauge>::default();
        registry.register(
            "revocation_list_expiration_timestamp_seconds",
            "When the revocation lists that origins are looked up in are over, by the file or Secret that has them, and by the authority",
            revocation_lists.clone(),
        );
        let rules = Gauge::default();
        registry.register("rules", "Rules in force: ports of hosts that have TLS origination", rules.clone());
        let exceptions = Gauge::default();
        registry.register(
            "exceptions",
            "Ports of hosts that are left in clear, as it is said of them, though a rule for a wildcard has them",
            exceptions.clone(),
        );
        let destinations = Gauge::default();
        let about = "Addresses and networks that are intercepted, each with a port";
        registry.register("destinations", about, destinations.clone());
        let learned = Gauge::default();
        registry.register(
            "learned_destinations",
            "Addresses that are intercepted in one network namespace, each with a port, learned from DNS answers; counted once a minute",
            learned.clone(),
        );
        let namespaces = Gauge::default();
        registry.register("network_namespaces", "Network namespaces that are served", namespaces.clone());
        let connections_in_clear = Gauge::default();
        registry.register(
            "connections_in_clear",
            "Connections to configured destinations that were made before they could be intercepted, when last looked for",
            connections_in_clear.clone(),
        );
        let askers_unread = Gauge::default();
        registry.register(
            "dns_sockets_unread",
            "Sockets that were connected to a name server before what they are told could be learned, when last looked for",
            askers_unread.clone(),
        );
        let connections_reset = Counter::default();
        let about =
            "Connections in clear, and sockets that name servers are asked by, that were reset (--reset-existing)";
        registry.register("connections_reset", about, connections_reset.clone());
        let policy_applied = Counter::default();
        let about = "Times that a configuration, or what is new in the files that it names, was put in force";
        registry.register("policy_applied", about, policy_applied.clone());
        let policy_refused = Counter::default();
        let about = "Times that a change of the configuration was refused";
        registry.register("policy_refused", about, policy_refused.clone());
        Arc::new(Self {
            requests: Outcome::ALL
                .map(|outcome| requests.get_or_create(&OutcomeLabel { outcome: outcome.label() }).clone()),
            handshakes_full: handshake("full"),
            handshakes_resumed: handshake("resumed"),
            handshakes_failed: handshake("failed"),
            failures: std::array::from_fn(|index| {
                failures.get_or_create(&CauseLabel { cause: Cause::ALL[index].label() }).clone()
            }),
            unenforced_pins,
            self_tests_passed: self_test("passed"),
            self_tests_doubted: self_test("doubted"),
            self_tests_failed: self_test("failed"),
            accept_failures,
            unknown_origin,
            not_http,
            late,
            too_many,
            passed_on,
            ready,
            configuration_current,
            hosts_unresolved,
            namespaces_unserved,
            certificates,
            revocation_lists,
            rules,
            exceptions,
            destinations,
            learned,
            namespaces,
            connections_in_clear,
            askers_unread,
            connections_reset,
            policy_applied,
            policy_refused,
            registry: all,
        })
    }

    /// Counts a request.
    pub fn request(&self, outcome: Outcome) {
        self.requests[outcome as usize].inc();
    }

    /// Counts a request that an origin did not answer.
    pub fn failure(&self, cause: Cause) {
        self.failures[cause as usize].inc();
    }

    /// Counts a connection beyond a limit, or a request whose head is.
    pub fn too_many(&self, why: Beyond) {
        self.too_many[why.index()].inc();
    }

    /// Counts a connection that was passed on as it is, to its end or until it broke off.
    pub fn passed_on(&self, complete: bool) {
        self.passed_on[usize::from(!complete)].inc();
    }

    /// Takes in when what is in use is over.
    pub fn expirations(&self, times: &BTreeMap<(Dated, String), Validity>) {
        self.certificates.clear();
        self.revocation_lists.clear();
        for ((what, file), validity) in times {
            let file = file.clone();
            match what {
                Dated::Certificate => self.certificates.get_or_create(&FileLabel { file }),
                Dated::RevocationList(authority) => {
                    self.revocation_lists.get_or_create(&ListLabel { file, authority: authority.clone() })
                }
            }
            .set(validity.not_after);
        }
    }

    /// Counts a TLS handshake; None for one that failed.
    pub fn handshake(&self, info: Option<&TlsInfo>) {
        match info {
            Some(TlsInfo { resumed: false, .. }) => &self.handshakes_full,
            Some(TlsInfo { resumed: true, .. }) => &self.handshakes_resumed,
            None => &self.handshakes_failed,
        }
        .inc();
    }

    /// All values in the OpenMetrics text format.
    ///
    /// # Errors
    /// A collector fails.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// Reads the programs' counters when asked.
#[derive(Debug)]
struct KernelCollector {
    outcomes: Counters,
    learnings: Counters,
}

impl Collector for KernelCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut connects =
            encoder.encode_descriptor("connects", "Connects by what the hooks decided", None, MetricType::Counter)?;
        for (outcome, count) in outcome::Outcome::ALL.iter().zip(self.outcomes.read()) {
            let label = OutcomeLabel { outcome: outcome.label() };
            ConstCounter::new(count).encode(connects.encode_family(&label)?)?;
        }
        let about = "DNS answers with addresses of configured hosts, by whether these are intercepted now, or the answer was dropped";
        let mut answers = encoder.encode_descriptor("dns_answers", about, None, MetricType::Counter)?;
        for (learning, count) in Learning::ALL.iter().zip(self.learnings.read()) {
            let label = ResultLabel { result: learning.label() };
            ConstCounter::new(count).encode(answers.encode_family(&label)?)?;
        }
        Ok(())
    }
}
