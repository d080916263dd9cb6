//! Connections that are made before anybody asks for them (`egress.dev/preconnect`): as many as an upstream wants are kept ready for
//! each network namespace that uses it, and are made anew when the origin closes them.

use std::{
    cell::RefCell,
    collections::HashMap,
    net::IpAddr,
    rc::{Rc, Weak},
    sync::{Arc, Weak as ArcWeak},
    time::{Duration, Instant},
};

use rustls_pki_types::ServerName;
use tokio_util::sync::CancellationToken;

use super::{
    connect::Connector,
    pool::{Key, Pool, To},
};
use crate::{
    netns::NetnsCookie,
    request::Accepted,
    route::{Chosen, Cluster},
    socket::Place,
};

/// How long after the last request connections are kept ready.
const KEPT: Duration = Duration::from_secs(3600);
/// How long after a failure none is made, and after how many in a row none at all.
const PAUSE: Duration = Duration::from_secs(5);
const MAX_FAILURES: u32 = 60;
/// For so many uses of upstreams at most: applications choose the names that fall under a wildcard.
const MAX_KEYS: usize = 1024;

/// Keeps connections ready, on one worker.
pub struct Warm {
    connector: Rc<Connector>,
    pool: Rc<Pool>,
    used: RefCell<HashMap<Key, Used>>,
}

/// A use of an upstream by a network namespace.
struct Used {
    /// Its routes may be gone.
    cluster: ArcWeak<Cluster>,
    name: ServerName<'static>,
    from: Place,
    /// Cancelled when nobody is left there.
    gone: CancellationToken,
    /// Where applications were going.
    origin: IpAddr,
    last: Instant,
    /// How often in a row none could be made.
    failures: u32,
    /// None is made before.
    pause: Option<Instant>,
}

impl Warm {
    /// Nothing is used yet.
    pub fn new(connector: Rc<Connector>, pool: Rc<Pool>) -> Rc<Self> {
        Rc::new(Self { connector, pool, used: RefCell::default() })
    }

    /// Notes that a connection of this key was of use.
    pub fn note(&self, key: &Key, cluster: &Arc<Cluster>, name: &ServerName<'static>, accepted: &Accepted) {
        let mut all = self.used.borrow_mut();
        if let Some(used) = all.get_mut(key) {
            used.last = Instant::now();
            return;
        }
        if all.len() >= MAX_KEYS {
            return;
        }
        let used = Used {
            cluster: Arc::downgrade(cluster),
            name: name.clone(),
            from: accepted.from.clone(),
            gone: accepted.gone.clone(),
            origin: accepted.origin.socket_addr().ip(),
            last: Instant::now(),
            failures: 0,
            pause: None,
        };
        all.insert(key.clone(), used);
    }

    /// Makes what is missing, and forgets what is of no use any more.
    pub fn keep(self: &Rc<Self>) {
        let mut spare = self.pool.spare();
        self.used.borrow_mut().retain(|key, used| {
            let is_of_use = used.last.elapsed() < KEPT && used.failures < MAX_FAILURES && !used.gone.is_cancelled();
            let Some(cluster) = used.cluster.upgrade().filter(|_| is_of_use) else { return false };
            if used.pause.is_some_and(|until| Instant::now() < until) {
                return true;
            }
            for _ in 0..self.pool.lacking(key, cluster.upstream.preconnect.into()) {
                if spare == 0 {
                    break;
                }
                spare -= 1;
                self.make(key, used, &cluster);
            }
            true
        });
    }

    /// Forgets a network namespace that is gone.
    pub fn forget(&self, netns: NetnsCookie) {
        self.used.borrow_mut().retain(|key, _| key.netns != netns);
    }

    fn make(self: &Rc<Self>, key: &Key, used: &Used, cluster: &Arc<Cluster>) {
        let (this, connector, cluster) = (Rc::downgrade(self), self.connector.clone(), cluster.clone());
        let (name, from, origin) = (used.name.clone(), used.from.clone(), used.origin);
        // Where each address has its own it is nobody's turn.
        let own = if let To::Cluster { address, .. } = &key.to { *address } else { None };
        let chosen = cluster.choose(key.netns, origin, &connector.health, own.as_slice());
        let chosen = Chosen { address: own.or(chosen.address), ..chosen };
        let (usage, noted) = (cluster.usage.clone(), key.clone());
        self.pool.begin_ahead(key, &usage, |order| async move {
            let made = connector.tls(&from, &cluster, &name, origin, chosen, order).await;
            if let Some(this) = Weak::upgrade(&this) {
                this.made(&noted, made.is_ok());
            }
            made
        });
    }

    /// Notes whether one could be made.
    fn made(&self, key: &Key, is_made: bool) {
        let mut all = self.used.borrow_mut();
        let Some(used) = all.get_mut(key) else { return };
        let now = Instant::now();
        if is_made {
            used.failures = 0;
        } else if used.pause.is_none_or(|until| until <= now) {
            // Of those that were made at the same time one counts.
            used.failures += 1;
            used.pause = Some(now + PAUSE);
        }
    }
}
