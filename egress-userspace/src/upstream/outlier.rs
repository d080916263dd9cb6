//! Addresses of an upstream that are left out for a while, as their answers are errors or none (Envoy's outlier
//! detection).

use std::{
    collections::HashMap,
    net::SocketAddr,
    num::NonZeroU32,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use http::StatusCode;

use crate::{netns::NetnsCookie, policy::OutlierDetection};

/// No address is left out for longer, however often it was before.
const LONGEST: Duration = Duration::from_secs(300);

/// So many addresses are remembered whether or not the upstream still has them.
const FEW: usize = 16;

/// What an address has done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// It has answered.
    Status(StatusCode),
    /// No connection could be made, or it broke off before an answer.
    Failure,
}

/// What is known of the addresses of one upstream, over all workers. Locked for a moment by each request, but only where
/// outlier detection is asked for. Pods have routes and network policies of their own, so what one has seen says nothing
/// to another, nor can one leave out an address for others.
#[derive(Debug)]
pub struct Health {
    settings: OutlierDetection,
    pods: Mutex<HashMap<NetnsCookie, Addresses>>,
}

type Addresses = HashMap<SocketAddr, Address>;

#[derive(Debug, Default)]
struct Address {
    /// Errors in a row, of each kind.
    server_errors: u32,
    gateway_errors: u32,
    failures: u32,
    /// How often it was left out; falls with every interval in which it is not.
    ejections: u32,
    out_until: Option<Instant>,
    counted: Option<Instant>,
}

impl Health {
    /// Nothing is known yet.
    pub fn new(settings: OutlierDetection) -> Self {
        Self { settings, pods: Mutex::default() }
    }

    /// Takes in what an address has done to a pod, of `all` that the upstream has. Says whether it is left out from now on.
    pub fn record(&self, netns: NetnsCookie, address: SocketAddr, seen: Seen, all: usize, now: Instant) -> bool {
        let mut pods = self.lock();
        let is_known = pods.get(&netns).is_some_and(|addresses| addresses.contains_key(&address));
        if !is_known && matches!(seen, Seen::Status(status) if !status.is_server_error()) {
            return false;
        }
        let addresses = pods.entry(netns).or_default();
        let is_out = |address: &Address| address.out_until.is_some_and(|until| until > now);
        // Names come to have other addresses.
        if addresses.len() > 2 * all.max(FEW) {
            addresses.retain(|_, known| is_out(known));
        }
        let out = addresses.values().filter(|address| is_out(address)).count();
        let found = addresses.entry(address).or_default();
        found.count(seen, &self.settings);
        if is_out(found) || !found.is_outlier(&self.settings) {
            return false;
        }
        // Of a few addresses that can be none, as in Envoy since 1.28: it has a setting for one at least, which Istio leaves off.
        let share = usize::from(self.settings.max_ejection_percent);
        if (out + 1) * 100 > share * all {
            return false;
        }
        found.leave_out(&self.settings, now);
        true
    }

    /// Those of the addresses that are not left out for a pod; all of them if too few are well.
    pub fn well(&self, netns: NetnsCookie, mut candidates: Vec<SocketAddr>, now: Instant) -> Vec<SocketAddr> {
        let mut pods = self.lock();
        let Some(addresses) = pods.get_mut(&netns) else { return candidates };
        let is_out =
            |address: Option<&Address>| address.and_then(|address| address.out_until).is_some_and(|until| until > now);
        let well = candidates.iter().filter(|address| !is_out(addresses.get(address))).count();
        if well * 100 < usize::from(self.settings.min_health_percent) * candidates.len() {
            return candidates;
        }
        candidates.retain(|address| !is_out(addresses.get(address)));
        for address in addresses.values_mut() {
            address.forgive(self.settings.interval, now);
        }
        candidates
    }

    /// Forgets a network namespace that is gone.
    pub fn forget(&self, netns: NetnsCookie) {
        self.lock().remove(&netns);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NetnsCookie, Addresses>> {
        // Nobody panics while holding it, and if so: counters are not left half-changed.
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Address {
    fn count(&mut self, seen: Seen, settings: &OutlierDetection) {
        let more = |counter: &mut u32, counts: bool| *counter = if counts { counter.saturating_add(1) } else { 0 };
        match seen {
            Seen::Status(status) => {
                more(&mut self.server_errors, status.is_server_error());
                more(&mut self.gateway_errors, matches!(status.as_u16(), 502..=504));
                self.failures = 0;
            }
            Seen::Failure if settings.local_origin.is_some() => more(&mut self.failures, true),
            // It counts as the status that the application gets.
            Seen::Failure => {
                more(&mut self.server_errors, true);
                more(&mut self.gateway_errors, true);
            }
        }
    }

    fn is_outlier(&self, settings: &OutlierDetection) -> bool {
        let reached = |limit: Option<NonZeroU32>, count| limit.is_some_and(|limit| count >= limit.get());
        reached(settings.server_errors, self.server_errors)
            || reached(settings.gateway_errors, self.gateway_errors)
            || reached(settings.local_origin, self.failures)
    }

    fn leave_out(&mut self, settings: &OutlierDetection, now: Instant) {
        self.ejections = self.ejections.saturating_add(1);
        let time = settings.base_ejection_time.saturating_mul(self.ejections);
        self.out_until = Some(now + time.min(LONGEST.max(settings.base_ejection_time)));
        self.counted = self.out_until;
        (self.server_errors, self.gateway_errors, self.failures) = (0, 0, 0);
    }

    fn forgive(&mut self, interval: Duration, now: Instant) {
        let Some(counted) = self.counted else { return };
        let passed = now.saturating_duration_since(counted).as_secs_f64() / interval.as_secs_f64().max(0.001);
        if passed >= 1.0 {
            self.ejections = self.ejections.saturating_sub(passed as u32);
            self.counted = (self.ejections > 0).then_some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const POD: NetnsCookie = NetnsCookie(1);
    const OTHER_POD: NetnsCookie = NetnsCookie(2);

    fn settings() -> OutlierDetection {
        OutlierDetection {
            server_errors: NonZeroU32::new(3),
            gateway_errors: NonZeroU32::new(2),
            local_origin: None,
            interval: 10 * SECOND,
            base_ejection_time: 30 * SECOND,
            max_ejection_percent: 50,
            min_health_percent: 0,
        }
    }

    fn addresses(count: u8) -> Vec<SocketAddr> {
        (1..=count).map(|last| SocketAddr::from(([192, 0, 2, last], 443))).collect()
    }

    fn status(code: u16) -> Seen {
        Seen::Status(StatusCode::from_u16(code).expect("a status"))
    }

    #[test]
    fn errors_in_a_row_leave_an_address_out_for_a_while() {
        let (health, all, start) = (Health::new(settings()), addresses(4), Instant::now());
        let seen = [status(500), status(500), status(200), status(500), status(500)];
        assert!(!seen.iter().any(|seen| health.record(POD, all[0], *seen, 4, start)), "never three in a row");
        assert!(health.record(POD, all[0], status(500), 4, start));
        assert_eq!(health.well(POD, all.clone(), start + 29 * SECOND), all[1..]);
        assert_eq!(health.well(POD, all.clone(), start + 31 * SECOND), all);
        // The second time is twice as long.
        let again = start + 32 * SECOND;
        assert!((0..3).map(|_| health.record(POD, all[0], status(500), 4, again)).last() == Some(true));
        assert_eq!(health.well(POD, all.clone(), again + 59 * SECOND), all[1..]);
        assert_eq!(health.well(POD, all.clone(), again + 61 * SECOND), all);
    }

    #[test]
    fn failures_count_as_gateway_errors_unless_they_are_counted_apart() {
        let (all, now) = (addresses(2), Instant::now());
        let together = Health::new(settings());
        assert!(
            !together.record(POD, all[0], Seen::Failure, 2, now) && together.record(POD, all[0], status(503), 2, now)
        );
        let apart = Health::new(OutlierDetection { local_origin: NonZeroU32::new(3), ..settings() });
        assert!(!apart.record(POD, all[0], Seen::Failure, 2, now) && !apart.record(POD, all[0], status(503), 2, now));
        assert!((0..3).map(|_| apart.record(POD, all[0], Seen::Failure, 2, now)).last() == Some(true));
    }

    #[test]
    fn only_so_many_are_left_out() {
        let (health, all, now) = (Health::new(settings()), addresses(4), Instant::now());
        for address in &all {
            (0..2).for_each(|_| _ = health.record(POD, *address, status(502), 4, now));
        }
        assert_eq!(health.well(POD, all.clone(), now), all[2..], "half of them at most");
        let after = |percent: u8, all: &[SocketAddr]| {
            let health = Health::new(OutlierDetection { max_ejection_percent: percent, ..settings() });
            (0..2).for_each(|_| _ = health.record(POD, all[0], status(502), all.len(), now));
            health.well(POD, all.to_vec(), now).len()
        };
        assert_eq!(after(10, &all[..1]), 1, "the only one");
        assert_eq!((after(10, &addresses(9)), after(10, &addresses(10))), (9, 9));
        assert_eq!(after(100, &all[..1]), 0, "as the user wants it");
        let needed = Health::new(OutlierDetection { min_health_percent: 60, ..settings() });
        for address in &all {
            (0..2).for_each(|_| _ = needed.record(POD, *address, status(502), 4, now));
        }
        assert_eq!(needed.well(POD, all.clone(), now), all, "too few would be left");
    }

    #[test]
    fn addresses_that_are_gone_are_forgotten() {
        let (health, now) = (Health::new(settings()), Instant::now());
        for number in 0..10_000_u32 {
            let address = SocketAddr::new(std::net::Ipv4Addr::from(number).into(), 443);
            health.record(POD, address, status(500), 2, now);
        }
        let known = health.lock()[&POD].len();
        assert!(known <= 2 * FEW + 1, "{known}");
    }

    #[test]
    fn pods_leave_out_addresses_each_for_itself() {
        let (health, all, now) = (Health::new(settings()), addresses(2), Instant::now());
        (0..3).for_each(|_| _ = health.record(POD, all[0], status(500), 2, now));
        assert_eq!(health.well(POD, all.clone(), now), all[1..]);
        assert_eq!(health.well(OTHER_POD, all.clone(), now), all);
        health.forget(POD);
        assert_eq!(health.well(POD, all.clone(), now), all);
    }
}
