//! Keeps what the kernel intercepts in line with policy and names, and says whether it is.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use foldhash::HashMap;

use egress_common::destination::Capture;

use super::Agent;
use crate::{
    admin::Readiness,
    config::HostPattern,
    kernel::{Intercepted, KernelError},
    policy::HostName,
    resolve::{Names, ResolveError},
    route::RouteTable,
};

/// For how long what an earlier agent knew of hosts is kept at most: there may be a name that nobody ever answers for.
const MOST_INHERITED: Duration = Duration::from_secs(3600);

/// How what the kernel has stands to policy and names.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Step {
    /// It lacks something, for all that is known.
    #[default]
    Behind,
    /// It has no room for something. To try all of that again takes seconds where it is much, so it waits for what may have made
    /// room: another policy, or time.
    Full,
    /// It lacks nothing, and may have addresses that names no longer have.
    Ahead,
    /// It has what it should.
    Even,
}

/// The hosts of which nothing is intercepted, as no address is known.
#[derive(Default)]
pub(super) struct Unintercepted {
    hosts: HashMap<HostName, ResolveError>,
    /// The ports that are intercepted, of whatever host.
    ports: BTreeSet<u16>,
}

impl Unintercepted {
    fn of(routes: &RouteTable, names: &Names) -> Self {
        let hosts = routes.unintercepted(names).into_iter().map(|error| (error.name.clone(), error)).collect();
        Self { hosts, ports: routes.routes().map(|route| route.rule.port).collect() }
    }

    /// Looks at one name anew, and gives what is to be intercepted of it.
    fn look(&mut self, name: &HostName, table: &RouteTable, names: &Names) -> Vec<Intercepted> {
        let routes = self.ports.iter().filter_map(|&port| table.route(name.as_str(), port));
        // Others are for wildcards that have the name, which is known as that of an endpoint.
        let of_host = |host: &HostPattern| matches!(host, HostPattern::Exact(exact) if exact == name);
        let routes: Vec<_> = routes.filter(|route| of_host(&route.rule.host)).collect();
        let addresses: Vec<_> = names.intercepted(name).collect();
        let is_endpoint = table.served_by(name).next().is_some();
        let is_to_have = is_endpoint || routes.iter().any(|route| route.rule.addresses.is_empty());
        let lacks = is_to_have && addresses.is_empty();
        match names.failure(name).filter(|_| lacks) {
            Some(error) => _ = self.hosts.insert(name.clone(), error.clone()),
            None => _ = self.hosts.remove(name),
        }
        let ports = routes.iter().map(|route| route.rule.port).chain(table.served_by(name));
        ports.flat_map(|port| addresses.iter().map(move |address| Intercepted::host(*address, port))).collect()
    }

    /// One that we could not ask for, rather than one that does not exist.
    fn unanswered(&self) -> Option<&ResolveError> {
        self.unanswered_of(|_| true)
    }

    /// Likewise one that the agent is not ready without. Where name servers answer for others, that is so for a while: one whose servers
    /// fail is in nobody's way, be it for ever.
    fn awaited(&self, names: &Names) -> Option<&ResolveError> {
        self.unanswered_of(|name| !names.is_given_up(name))
    }

    fn unanswered_of(&self, is_wanted: impl Fn(&HostName) -> bool) -> Option<&ResolveError> {
        self.hosts.values().find(|error| !error.authoritative && is_wanted(&error.name))
    }
}

impl Agent {
    /// Brings the kernel's destinations and the readiness in line with policy and names: with all of them.
    pub(super) fn synchronise(&mut self) {
        self.names.take_changed();
        let routes = self.routes.load_full();
        routes.locate_all(&self.names);
        let before = self.unintercepted.hosts.len();
        self.unintercepted = Unintercepted::of(&routes, &self.names);
        self.disown_inherited();
        let learned = self.to_learn.as_ref().map_or(Ok(()), |rules| self.learned.set(rules));
        if learned.is_ok() {
            self.to_learn = None;
        }
        // Whatever became of the names: what is not intercepted would leave in clear.
        let captured = self.destinations.set(&self.captured.destinations(&routes, &self.names));
        // What is no want of room is tried again sooner.
        let is_worse = captured.as_ref().is_err_and(|error| !error.is_want_of_room());
        self.finish(Step::Even, before, if is_worse { captured } else { learned.and(captured) });
    }

    /// The same where only some names have changed: what they have is added. What they no longer have can wait, as
    /// connections that need not be redirected are served as well; it goes when all is looked at.
    pub(super) fn names_changed(&mut self) {
        if self.step == Step::Behind {
            return self.synchronise();
        }
        let routes = self.routes.load_full();
        let before = self.unintercepted.hosts.len();
        let mut found = Vec::new();
        for name in self.names.take_changed() {
            routes.locate(&name, &self.names);
            found.extend(self.unintercepted.look(&name, &routes, &self.names));
        }
        if self.destinations.has_inherited() && self.disown_inherited() {
            return self.synchronise();
        }
        let result = self.destinations.add(found.iter().map(|network| (*network, Capture::Host)));
        let lacks_room = result.as_ref().is_err_and(KernelError::is_want_of_room);
        if self.step == Step::Ahead && lacks_room {
            // What names no longer have makes room.
            return self.synchronise();
        }
        if self.step == Step::Full && (result.is_ok() || lacks_room) {
            // What did not fit before still does not.
            self.count(before);
            return self.settle();
        }
        self.finish(Step::Ahead, before, result);
    }

    /// Lets go of what an earlier agent knew, of the families in which all names were answered for, or when that has taken too long.
    /// Says whether there was something.
    fn disown_inherited(&mut self) -> bool {
        let is_late = self.started.elapsed() > MOST_INHERITED;
        self.destinations.disown_inherited(if is_late { [true; 2] } else { self.names.all_answered() })
    }

    /// Does what was left undone, and looks what follows.
    pub(super) fn catch_up(&mut self) {
        match self.step {
            Step::Behind => self.synchronise(),
            Step::Full | Step::Ahead | Step::Even => self.settle(),
        }
    }

    /// Whether all hosts have been looked up, and nobody owes us an answer.
    fn is_known(&self) -> bool {
        self.names.all_tried() && self.unintercepted.unanswered().is_none()
    }

    /// Takes note of what has become of an attempt that ends at this step if all goes well.
    fn finish(&mut self, step: Step, unintercepted_before: usize, result: Result<(), KernelError>) {
        self.step = match &result {
            Ok(()) => step,
            Err(error) if error.is_want_of_room() => Step::Full,
            Err(_) => Step::Behind,
        };
        self.failure =
            result.inspect_err(|error| tracing::error!(%error, "not all of the policy is intercepted")).err();
        self.count(unintercepted_before);
        self.settle();
    }

    fn count(&mut self, unintercepted_before: usize) {
        self.metrics.destinations.set(self.destinations.len() as i64);
        // A host that has its first addresses may have connections already.
        if self.unintercepted.hosts.len() < unintercepted_before {
            self.existing.expect();
        }
    }

    /// Detaches what earlier agents have left, if that is in nobody's way. Says why not.
    fn relieve_others(&mut self) -> Result<(), KernelError> {
        if !self.attached || self.is_taking() {
            return Ok(());
        }
        let is_known = self.is_known();
        let removed = self.redirector.settle(self.namespaces.cgroups(), is_known);
        if removed.inspect_err(|error| tracing::error!(%error, "what earlier agents have left stays"))? {
            // They were in the way.
            self.test_self();
        }
        Ok(())
    }

    /// Sees what follows from what is intercepted now, and tells whether that is all.
    fn settle(&mut self) {
        let failure = match &self.failure {
            Some(error) => Some(error.to_string()),
            None => self.relieve_others().err().map(|error| error.to_string()),
        };
        if self.attached && self.names.all_tried() && self.existing.is_due() {
            self.existing.look(self.namespaces.served(), self.namespaces.cgroups().to_owned());
        }
        let (readiness, is_expected) = match failure {
            Some(error) => (Readiness::NotReady(error), false),
            None if !self.attached => (Readiness::NotReady("starting".into()), true),
            None if !self.names.all_tried() => (Readiness::NotReady("resolving the configured hosts".into()), true),
            None if let Some(objection) = self.self_test.objection() => {
                (Readiness::NotReady(self.explained(objection)), self.self_test.is_pending())
            }
            // Of a host that does not exist nothing can leave in clear; of one that we cannot ask for it can.
            None => match self.unintercepted.awaited(&self.names) {
                Some(error) => (Readiness::NotReady(error.to_string()), false),
                None => (Readiness::Ready, true),
            },
        };
        self.metrics.hosts_unresolved.set(self.unintercepted.hosts.len() as i64);
        self.tell(readiness, is_expected);
    }

    /// What is in the way of the self-test, if that is what stays until a host can be looked up.
    fn explained(&self, objection: &str) -> String {
        match (self.unintercepted.unanswered(), self.redirector.other_layout()) {
            (Some(error), Some(pins)) => format!(
                "{error}; until it can be looked up, what another version of egress has pinned in {} stays, and refuses what is \
                 configured ({objection})",
                pins.display()
            ),
            _ => objection.to_owned(),
        }
    }

    /// Says whether all is intercepted, if that is news. What is not expected is worth a warning.
    pub(super) fn tell(&self, readiness: Readiness, is_expected: bool) {
        if **self.readiness.load() == readiness {
            return;
        }
        match &readiness {
            Readiness::Ready => match self.unintercepted.unanswered() {
                Some(error) => tracing::warn!(%error, "ready, but for what cannot be looked up"),
                None => tracing::info!("ready"),
            },
            Readiness::NotReady(reason) if is_expected => tracing::info!(%reason, "not ready"),
            Readiness::NotReady(reason) => tracing::warn!(%reason, "not ready"),
        }
        self.metrics.ready.set(i64::from(readiness == Readiness::Ready));
        self.readiness.store(Arc::new(readiness));
    }
}
