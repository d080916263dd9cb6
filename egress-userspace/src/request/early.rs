//! What is begun while the head of a request is still coming.

use super::Conversation;
use crate::upstream::pool::Key;

impl Conversation {
    /// Begins the connection that the request will need, if that is plain without its head: as it goes to an address which only one
    /// host has, of which all requests go to the same place. If it goes elsewhere after all, that connection has got no more than a
    /// handshake.
    pub fn prepare(&self) {
        let (from, origin) = (&self.accepted.from, self.accepted.origin.socket_addr());
        let Some(route) = self.worker.routes.load().alone_at(origin) else { return };
        let Some((host, cluster)) = route.only() else { return };
        let Some(name) = cluster.originator.server_name(host.as_str()) else { return };
        let connector = &self.worker.connector;
        let netns = from.netns.cookie();
        let chosen = cluster.choose(netns, origin.ip(), &connector.health, &[]);
        let key = Key { netns, device: from.device, to: cluster.pooled(host.as_str(), &chosen), owner: None };
        self.worker.pool.begin(&key, &cluster.usage, |order| {
            let (connector, from, cluster) = (connector.clone(), from.clone(), cluster.clone());
            async move { connector.tls(&from, &cluster, &name, origin.ip(), chosen, order).await }
        });
    }
}
