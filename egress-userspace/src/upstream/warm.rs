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
use tokio::task;

use super::{
    connect::Connector,
    pool::{Key, Pool, To},
};
use crate::{netns::NetnsCookie, route::Cluster, socket::Place};

/// How long after the last request connections are kept ready.
const KEPT: Duration = Duration::from_secs(3600);
/// How long after a failure none is made.
const PAUSE: Duration = Duration::from_secs(5);

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
    /// Where applications were going.
    origin: IpAddr,
    last: Instant,
    /// Connections that are being made; each has a copy.
    making: Rc<()>,
    /// None is made before.
    pause: Option<Instant>,
}

impl Warm {
    /// Nothing is used yet.
    pub fn new(connector: Rc<Connector>, pool: Rc<Pool>) -> Rc<Self> {
        Rc::new(Self { connector, pool, used: RefCell::default() })
    }

    /// Notes that connections of this key are of use.
    pub fn note(
        self: &Rc<Self>,
        key: &Key,
        cluster: &Arc<Cluster>,
        name: &ServerName<'static>,
        from: &Place,
        origin: IpAddr,
    ) {
        if let Some(used) = self.used.borrow_mut().get_mut(key) {
            used.last = Instant::now();
            return;
        }
        let used = Used {
            cluster: Arc::downgrade(cluster),
            name: name.clone(),
            from: from.clone(),
            origin,
            last: Instant::now(),
            making: Rc::default(),
            pause: None,
        };
        self.used.borrow_mut().insert(key.clone(), used);
    }

    /// Makes what is missing, and forgets what is of no use any more.
    pub fn keep(self: &Rc<Self>) {
        self.used.borrow_mut().retain(|key, used| {
            let Some(cluster) = used.cluster.upgrade().filter(|_| used.last.elapsed() < KEPT) else { return false };
            if used.pause.is_some_and(|until| Instant::now() < until) {
                return true;
            }
            let making = Rc::strong_count(&used.making) - 1;
            let ready = self.pool.ready_for(key) + making;
            for _ in ready..usize::from(cluster.upstream.preconnect) {
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
        let Some((place, offer)) = self.pool.place_for(key, &cluster.usage) else { return };
        let (this, key, making) = (Rc::downgrade(self), key.clone(), used.making.clone());
        let (connector, cluster) = (self.connector.clone(), cluster.clone());
        let (name, from, origin) = (used.name.clone(), used.from.clone(), used.origin);
        task::spawn_local(async move {
            let (candidates, is_balanced) = match &key.to {
                To::Cluster { address: Some(address), .. } => (vec![*address], true),
                _ => (cluster.choose(origin).candidates, false),
            };
            let made = connector.tls(&from, &cluster, &name, candidates, is_balanced, offer).await;
            drop(making);
            let Some(this) = Weak::upgrade(&this) else { return };
            match made {
                Ok(made) => this.pool.add(&key, &cluster.usage, offer, made.with(place)),
                Err(error) => {
                    tracing::debug!(host = %cluster.upstream.host, %error, "a connection was not made in advance");
                    if let Some(used) = this.used.borrow_mut().get_mut(&key) {
                        used.pause = Some(Instant::now() + PAUSE);
                    }
                }
            }
        });
    }
}
