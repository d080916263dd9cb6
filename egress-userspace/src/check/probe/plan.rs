//! Which upstreams are probed, and for which host: each distinct one once.

use std::{collections::HashMap, path::Path, sync::Arc};

use rustls_pki_types::ServerName;

use crate::{
    config::{Code, Diagnostic, Location},
    policy::{HostName, HostPattern, Policy, Rule, Targets, Upstream},
    upstream::tls::{Clients, Originator, Workshop},
};

/// What is to be done.
pub(super) struct Plan {
    pub probes: Vec<Probe>,
    /// What is wrong with the names that were given for wildcards.
    pub problems: Vec<Diagnostic>,
}

/// One upstream.
pub(super) struct Probe {
    pub upstream: Arc<Upstream>,
    /// The rules that lead there, as URLs.
    pub rules: Vec<String>,
    /// Or why there is nothing to probe.
    pub target: Result<Target, &'static str>,
}

/// Whom it is to be probed for.
pub(super) struct Target {
    /// The host that a request would be for.
    pub name: HostName,
    /// The name to ask for and, unless the rule has others, to verify.
    pub server_name: ServerName<'static>,
    pub originator: Originator,
}

const WILDCARD: &str = "a wildcard is no host to be asked for; --probe-host names one that it stands for";
const APPLICATIONS_CHOICE: &str =
    "the address is the application's choice (resolution NONE); --probe-host has the name resolved here";

/// The probes for a policy. Upstreams whose TLS cannot be made are left out: that is an error of the configuration.
pub(super) fn plan(policy: &Policy, names: &[HostName]) -> Plan {
    let nothing = Clients::default();
    let mut workshop = Workshop::new(&nothing);
    let mut probes: Vec<Probe> = Vec::new();
    // What differs in neither host nor port are few, which are compared one by one.
    let mut known: HashMap<(HostPattern, u16), Vec<usize>> = HashMap::new();
    let mut used = vec![false; names.len()];
    for rule in policy.rules() {
        let named: Vec<_> = (0..).zip(names).filter(|(_, name)| is_for(policy, rule, name)).collect();
        for upstream in &rule.upstreams {
            let Ok(originator) = workshop.originator(&upstream.host, &upstream.tls, &upstream.location) else {
                continue;
            };
            for target in targets(upstream, &originator, &named, &mut used) {
                let probe = Probe { upstream: upstream.clone(), rules: vec![url(rule)], target };
                let alike = known.entry((upstream.host.clone(), upstream.target_port)).or_default();
                match alike.iter().find(|index| probes[**index].is_same(&probe)) {
                    Some(index) => probes[*index].rules.extend(probe.rules),
                    None => {
                        alike.push(probes.len());
                        probes.push(probe);
                    }
                }
            }
        }
    }
    let unused = names.iter().zip(used).filter(|(_, used)| !used).map(|(name, _)| unused(name));
    Plan { probes, problems: unused.collect() }
}

/// What to probe an upstream for, and which of the names that serves.
fn targets(
    upstream: &Upstream,
    originator: &Originator,
    named: &[(usize, &HostName)],
    used: &mut [bool],
) -> Vec<Result<Target, &'static str>> {
    let target = |name: &HostName| {
        let server_name = originator.server_name(name.as_str()).unwrap_or_else(|| name.to_server_name());
        Ok(Target { name: name.clone(), server_name, originator: originator.clone() })
    };
    let reason = match (&upstream.host, &upstream.targets) {
        (HostPattern::Exact(host), Targets::Resolve(_) | Targets::Endpoints(_)) => return vec![target(host)],
        (HostPattern::Exact(_), Targets::Original) => APPLICATIONS_CHOICE,
        (HostPattern::Wildcard(_), _) => WILDCARD,
    };
    if named.is_empty() {
        return vec![Err(reason)];
    }
    let use_up = |&(index, name): &(usize, &HostName)| {
        used[index] = true;
        target(name)
    };
    named.iter().map(use_up).collect()
}

/// Whether a rule is the one for a host on its port: the most specific that covers it.
fn is_for(policy: &Policy, rule: &Rule, name: &HostName) -> bool {
    let host = HostPattern::Exact(name.clone());
    let is_closer = |other: &Rule| {
        other.port == rule.port && other.host != rule.host && rule.host.covers(&other.host) && other.host.covers(&host)
    };
    rule.host.covers(&host) && !policy.rules().any(|other| is_closer(other))
}

fn url(rule: &Rule) -> String {
    format!("http://{}:{}", rule.host, rule.port)
}

fn unused(name: &HostName) -> Diagnostic {
    let text = "no rule for a wildcard, or with resolution NONE, is for this host; other hosts are probed without being \
                named";
    Diagnostic::new(
        Location::whole(Path::new(&format!("--probe-host {name}"))),
        "",
        Code::UnknownDestination.because(text),
    )
}

impl Probe {
    /// Whether the same would be seen by both.
    fn is_same(&self, other: &Self) -> bool {
        let (one, two) = (&self.upstream, &other.upstream);
        let is_same_target = match (&self.target, &other.target) {
            (Ok(one), Ok(two)) => {
                one.name == two.name
                    && one.server_name == two.server_name
                    && one.originator.is_same_client(&two.originator)
            }
            (Err(one), Err(two)) => one == two,
            _ => false,
        };
        is_same_target
            && one.targets == two.targets
            && one.target_port == two.target_port
            && one.protocol == two.protocol
            && one.tunnel == two.tunnel
            && one.pool.connect_timeout == two.pool.connect_timeout
    }
}
