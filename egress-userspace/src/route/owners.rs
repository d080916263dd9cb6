//! Which host has an address, as far as that is one alone.

use std::{
    mem,
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
};

use foldhash::HashMap;

use super::Route;

/// Addresses that names have, with the ports of their rules. The control thread keeps them; workers look.
#[derive(Debug, Default)]
pub(super) struct Owners(RwLock<HashMap<SocketAddr, Option<Arc<Route>>>>);

impl Owners {
    /// The host that has an address and port. None if nobody is known to have it, or several do.
    pub(super) fn of(&self, address: SocketAddr) -> Option<Arc<Route>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&address).cloned().flatten()
    }

    /// Adds to what is known.
    pub(super) fn add<'a>(&self, found: impl Iterator<Item = (SocketAddr, &'a Arc<Route>)>) {
        add(&mut self.0.write().unwrap_or_else(PoisonError::into_inner), found);
    }

    /// Replaces what is known.
    pub(super) fn set<'a>(&self, found: impl Iterator<Item = (SocketAddr, &'a Arc<Route>)>) {
        let mut all = HashMap::default();
        add(&mut all, found);
        // To take a large one apart takes a while, which nobody is to wait for.
        let old = mem::replace(&mut *self.0.write().unwrap_or_else(PoisonError::into_inner), all);
        drop(old);
    }
}

fn add<'a>(
    all: &mut HashMap<SocketAddr, Option<Arc<Route>>>,
    found: impl Iterator<Item = (SocketAddr, &'a Arc<Route>)>,
) {
    for (address, route) in found {
        let owner = all.entry(address).or_insert_with(|| Some(route.clone()));
        if owner.as_ref().is_some_and(|owner| !Arc::ptr_eq(owner, route)) {
            *owner = None;
        }
    }
}
