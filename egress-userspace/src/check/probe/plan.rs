//! Which upstreams are probed, and for which host: each distinct one once.

use std::{collections::HashMap, path::Path, sync::Arc};

use rustls_pki_types::ServerName;

use crate::{
    config::{Code, Diagnostic, Location},
    head::host_of,
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
const NO_NAME: &str =
    "its requests are refused: the Host that they are given is no name of DNS, so that no server can be asked for it";
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
            for target in targets(rule, upstream, &originator, &named, &mut used) {
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

/// What to probe an upstream of a rule for, and which of the names that serves.
fn targets(
    rule: &Rule,
    upstream: &Arc<Upstream>,
    originator: &Originator,
    named: &[(usize, &HostName)],
    used: &mut [bool],
) -> Vec<Result<Target, &'static str>> {
    let target = |name: &HostName, requested: &str| {
        let server_name = originator.server_name(requested).ok_or(NO_NAME)?;
        Ok(Target { name: name.clone(), server_name, originator: originator.clone() })
    };
    // The place is the upstream's own, or that of the host that is asked for.
    let (place, reason) = match (&upstream.host, &upstream.targets) {
        (HostPattern::Exact(host), Targets::Resolve(_) | Targets::Endpoints(_)) => (Some(host), WILDCARD),
        (HostPattern::Exact(_), Targets::Original) => (None, APPLICATIONS_CHOICE),
        (HostPattern::Wildcard(_), _) => (None, WILDCARD),
    };
    let requested = if originator.follows_requests() { authorities(rule, upstream) } else { vec![None] };
    let mut found = Vec::new();
    for authority in requested {
        match (place, &authority, &rule.host) {
            (Some(place), Some(authority), _) => found.push(target(place, authority)),
            (Some(place), None, HostPattern::Exact(own)) => found.push(target(place, own.as_str())),
            (Some(place), None, _) if !originator.follows_requests() => found.push(target(place, place.as_str())),
            _ if named.is_empty() => found.push(Err(reason)),
            _ => found.extend(named.iter().map(|&(index, name)| {
                used[index] = true;
                target(place.unwrap_or(name), authority.as_deref().unwrap_or(name.as_str()))
            })),
        }
    }
    found
}

/// What a rule's routes to an upstream make of the Host, each once; None if they leave it as it is.
fn authorities(rule: &Rule, upstream: &Arc<Upstream>) -> Vec<Option<String>> {
    let mut found = Vec::new();
    for route in &rule.routes {
        let destinations = route.destinations();
        let forwarded = destinations.iter().map(|to| (to.upstream, route.authority(to)));
        // A copy has the Host of what is sent to the destination that was drawn.
        let mirrored = route
            .mirrors
            .iter()
            .flat_map(|mirror| destinations.iter().map(|to| (mirror.upstream, route.authority(to))));
        for (index, authority) in forwarded.chain(mirrored) {
            let authority = authority.map(host_of);
            if Arc::ptr_eq(rule.upstream(index), upstream) && !found.contains(&authority) {
                found.push(authority);
            }
        }
    }
    found
}

/// Whether a rule is the one for a host on its port: the most specific that covers it, and there is no exception.
fn is_for(policy: &Policy, rule: &Rule, name: &HostName) -> bool {
    let host = HostPattern::Exact(name.clone());
    let rules = policy.rules().map(|other| (&other.host, other.port));
    let mut others = rules.chain(policy.exceptions().iter().map(|exception| (&exception.host, exception.port)));
    let is_closer = |other: &HostPattern, port| {
        port == rule.port && *other != rule.host && rule.host.covers(other) && other.covers(&host)
    };
    rule.host.covers(&host) && !others.any(|(other, port)| is_closer(other, port))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    /// The names that b.com is probed for, with `tls` in its rule, where requests for a host are routed there.
    fn asked(host: &str, tls: &str, names: &[&str]) -> Vec<Option<String>> {
        let documents = format!(
            "kind: ServiceEntry
apiVersion: networking.istio.io/v1
metadata: {{name: b}}
spec: {{hosts: [b.com], ports: [{{number: 80, name: http, protocol: HTTP, targetPort: 443}}], resolution: DNS}}
---
kind: DestinationRule
apiVersion: networking.istio.io/v1
metadata: {{name: b}}
spec: {{host: b.com, trafficPolicy: {{tls: {{mode: SIMPLE, insecureSkipVerify: true{tls}}}}}}}
---
kind: VirtualService
apiVersion: networking.istio.io/v1
metadata: {{name: a}}
spec:
  hosts: ['{host}']
  http:
  - match: [{{uri: {{prefix: /c}}}}]
    route: [{{destination: {{host: b.com}}}}]
    rewrite: {{authority: 'C.com:8443'}}
  - route: [{{destination: {{host: b.com}}}}]
"
        );
        let documents = config::parse(&documents, Path::new("rules.yaml")).expect("valid documents");
        let (policy, _) = Policy::compile(&documents).expect("valid rules");
        let names: Vec<_> = names.iter().map(|name| name.parse().expect("a host name")).collect();
        let plan = plan(&policy, &names);
        let name = |target: Result<Target, _>| target.ok().map(|target| target.server_name.to_str().into_owned());
        plan.probes
            .into_iter()
            .filter(|probe| !probe.rules.contains(&"http://b.com:80".to_owned()))
            .map(|probe| name(probe.target))
            .collect()
    }

    #[test]
    fn copies_have_the_host_of_what_is_sent_to_a_destination() {
        let documents = "kind: ServiceEntry
apiVersion: networking.istio.io/v1
metadata: {name: a}
spec: {hosts: [a.com, b.com], ports: [{number: 80, name: http, protocol: HTTP, targetPort: 443}], resolution: DNS}
---
kind: DestinationRule
apiVersion: networking.istio.io/v1
metadata: {name: a}
spec: {host: '*.com', trafficPolicy: {tls: {mode: SIMPLE, insecureSkipVerify: true}}}
---
kind: VirtualService
apiVersion: networking.istio.io/v1
metadata: {name: a}
spec:
  hosts: [a.com]
  http:
  - route:
    - {destination: {host: a.com}, weight: 1, headers: {request: {set: {Host: c.com}}}}
    - {destination: {host: a.com}, weight: 1}
    mirror: {host: b.com}
";
        let documents = config::parse(documents, Path::new("rules.yaml")).expect("valid documents");
        let (policy, _) = Policy::compile(&documents).expect("valid rules");
        let [rule, _] = policy.rules().collect::<Vec<_>>()[..] else { panic!("not two rules") };
        let found: Vec<_> = rule.upstreams.iter().map(|upstream| authorities(rule, upstream)).collect();
        let both = vec![Some("c.com".to_owned()), None];
        assert_eq!(found, [both.clone(), both]);
    }

    #[test]
    fn a_host_is_probed_for_whom_requests_are_for_there() {
        let some = |names: &[&str]| names.iter().map(|name| Some((*name).to_owned())).collect::<Vec<_>>();
        assert_eq!(asked("a.com", "", &[]), some(&["c.com", "a.com"]));
        assert_eq!(asked("a.com", ", sni: d.com", &[]), [] as [Option<String>; 0], "it is the same for all rules");
        assert_eq!(asked("*.a.com", "", &[]), [Some("c.com".to_owned()), None]);
        assert_eq!(asked("*.a.com", "", &["www.a.com"]), some(&["c.com", "www.a.com"]));
    }
}
