//! What happens while the agent runs, and what it does then.

use std::{
    collections::HashSet,
    io,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use egress_common::listener::ThreadSeen;
use tokio::{
    sync::Notify,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;

use super::{Agent, certificates::Ending, interception::Step, prepare::Reading, succession};
use crate::{
    existing::Look,
    handover::{START_LIMIT, Successor},
    kernel::Room,
    memory,
    self_test::Finding,
    upstream::tls::{Dated, date},
};

/// How often namespaces, left-over flows and the resolver's files are looked through.
const HOUSEKEEPING: Duration = Duration::from_secs(5);
/// How often what was learned is looked through.
const FORGETTING: Duration = Duration::from_secs(60);
/// Older flows are of connections that will never be accepted.
const FLOW_AGE: Duration = Duration::from_secs(60);

/// What the control thread reacts to.
enum Event {
    /// It is told to end.
    End,
    /// It is told to test itself.
    Test,
    /// It is time to do so.
    TestDue,
    /// Files have changed; or the watch has failed.
    Configuration(io::Result<()>),
    /// A change has been read.
    Read(Box<Reading>),
    /// A name was looked up.
    Names,
    /// Another agent asks for its place; None if one that was expected has gone.
    Successor(Option<Successor>),
    /// One that was too late has ended.
    RejectedEnded,
    /// Threads were seen whose namespaces may lack listeners.
    Threads(io::Result<HashSet<ThreadSeen>>),
    /// Cgroups have lost their last process, or got their first.
    Population,
    /// Older connections have been listed.
    Existing(Look),
    /// A self-test has ended.
    SelfTest(Finding),
    /// It is time to look at namespaces, flows and files.
    Housekeeping,
    /// It is time to look at what was learned.
    Forgetting,
}

impl Agent {
    /// Keeps kernel, names, namespaces and policy in step until another agent has taken over (true) or this one is told to
    /// end (false). Told to end, it still waits for another one that has announced itself, for a while. Tests itself when
    /// notified to.
    pub async fn run(&mut self, end: CancellationToken, test: &Notify) -> bool {
        let mut housekeeping = time::interval(HOUSEKEEPING);
        housekeeping.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        // Not at once: not every namespace has been found then.
        let mut forgetting = time::interval_at(Instant::now() + FORGETTING, FORGETTING);
        forgetting.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        let mut patience = None;
        loop {
            let test_due = self.self_test.due();
            let event = tokio::select! {
                () = end.cancelled(), if patience.is_none() => Event::End,
                () = time::sleep_until(patience.unwrap_or_else(Instant::now)), if patience.is_some() => return false,
                () = test.notified() => Event::Test,
                () = time::sleep_until(test_due.unwrap_or_else(Instant::now)), if test_due.is_some() => Event::TestDue,
                changed = self.watcher.changed() => Event::Configuration(changed),
                reading = self.reload.read() => Event::Read(Box::new(reading)),
                () = self.names.next() => Event::Names,
                successor = succession::next(self.successors.as_mut()) => Event::Successor(successor),
                () = succession::ended(self.rejected.as_ref()) => Event::RejectedEnded,
                seen = self.thread_events.next() => Event::Threads(seen),
                () = self.namespaces.changed() => Event::Population,
                look = self.existing.listed() => Event::Existing(look),
                found = self.self_test.finished() => Event::SelfTest(found),
                _ = housekeeping.tick() => Event::Housekeeping,
                _ = forgetting.tick() => Event::Forgetting,
            };
            if self.is_replaced().await {
                return true;
            }
            match event {
                Event::End => patience = Some(Instant::now() + START_LIMIT),
                Event::Successor(Some(successor)) => {
                    if self.hand_over(successor).await {
                        return true;
                    }
                }
                event => self.take_in(event).await,
            }
            if patience.is_some() && !self.expects_successor() {
                return false;
            }
            self.metrics.namespaces.set(self.namespaces.len() as i64);
            self.metrics.namespaces_unserved.set(self.namespaces.unserved() as i64);
        }
    }

    async fn take_in(&mut self, event: Event) {
        match event {
            Event::End | Event::Successor(_) => {}
            Event::RejectedEnded => self.rejected_has_ended(),
            Event::Test => self.test_self(),
            Event::TestDue => self.self_test.repeat(&self.namespaces.cgroups_there()),
            Event::Configuration(changed) => {
                if let Err(error) = changed {
                    tracing::warn!(%error, "cannot learn of changes of the configuration");
                }
                self.begin_reload();
            }
            Event::Read(reading) => self.end_reload(*reading),
            Event::Names => self.names_changed(),
            Event::Threads(Ok(seen)) => self.namespaces.seen(&seen, &mut self.workers),
            Event::Threads(Err(error)) => tracing::error!(%error, "cannot learn of new network namespaces"),
            Event::Population => self.reconcile(),
            Event::Existing(look) => {
                self.existing.report(&look, &self.destinations, &self.metrics);
                self.catch_up();
            }
            Event::SelfTest(found) => {
                match found {
                    Finding::Intercepted | Finding::StillIntercepted => &self.metrics.self_tests_passed,
                    Finding::Doubted => &self.metrics.self_tests_doubted,
                    Finding::NotIntercepted => &self.metrics.self_tests_failed,
                }
                .inc();
                self.catch_up();
                if found == Finding::Intercepted {
                    // With this a start is over. One that fails is repeated for as long as it does.
                    memory::release();
                }
            }
            Event::Housekeeping => self.keep_house(),
            Event::Forgetting => self.forget().await,
        }
    }

    fn keep_house(&mut self) {
        self.retry_restore();
        self.retry_reload();
        self.reconcile();
        self.namespaces.recount();
        self.refresh_resolver();
        self.retry_admin();
        self.look_for_room();
        self.look_at_certificates();
        if self.existing.is_to_look_again() {
            self.catch_up();
        }
        match self.flows.sweep(FLOW_AGE) {
            Ok(0) => {}
            Ok(removed) => tracing::debug!(removed, "removed flows that nobody accepted"),
            Err(error) => tracing::warn!(%error, "cannot sweep flows"),
        }
    }

    /// Says where no more can be learned. What is learned there is kept: an application may hold it for as long as it runs.
    fn look_for_room(&mut self) {
        let Room { full, relieved } = self.learned.room(&self.namespaces.there());
        for netns in full {
            let pid = self.namespaces.pid_of(netns);
            tracing::warn!(
                ?netns,
                pid,
                "no more addresses can be learned in a network namespace: answers of name servers with others are kept from it; \
                 if it asks for the sake of others, as a forwarder of DNS does, leave it out of scope (--cgroup)"
            );
        }
        for netns in relieved {
            tracing::info!(?netns, "a network namespace has room for addresses again");
        }
    }

    /// Says which of the certificates that origins are shown are nearly over, and which revocation lists.
    fn look_at_certificates(&mut self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().cast_signed());
        for Ending { what, file, until, is_over } in self.certificates.look(now) {
            let (text, authority) = match (what, is_over) {
                (Dated::Certificate, true) => ("the time of a client certificate is over, and origins refuse it", None),
                (Dated::Certificate, false) => ("the time of a client certificate is nearly over; renew it", None),
                (Dated::RevocationList(authority), true) => (
                    "the time of a revocation list is over, and origins are refused that its authority vouches for",
                    Some(authority),
                ),
                (Dated::RevocationList(authority), false) => {
                    ("the time of a revocation list is nearly over; get a new one", Some(authority))
                }
            };
            tracing::warn!(file, authority, until = date(until), "{text}");
        }
    }

    async fn forget(&mut self) {
        match self.learned.sweep(&self.namespaces.there(), self.namespaces.may_lack_some()) {
            Ok(left) => _ = self.metrics.learned.set(left as i64),
            Err(error) => tracing::warn!(%error, "cannot sweep learned addresses"),
        }
        match self.captured.refresh().await {
            Ok(true) => self.step = Step::Behind,
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "the excluded networks stay as they were"),
        }
        // Looking took a while.
        if self.step != Step::Even && !self.is_replaced().await {
            self.synchronise();
        }
    }
}
