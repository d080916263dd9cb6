//! Copies of requests, whose responses nobody sees.

use std::{future::poll_fn, rc::Rc, sync::Arc, time::Duration};

use rustls_pki_types::ServerName;
use tokio::{task, time::timeout};

use super::{Accepted, attempt::Attempt, headers, host::RequestHost};
use crate::{
    body::Content,
    head::RequestHead,
    http1,
    route::Cluster,
    socket::Place,
    upstream::{
        connect::Connector,
        limits::{Kind, Slot},
        pool::{Key, Pool},
    },
    worker::Worker,
};

/// For the whole of it: nobody waits for it, and it must not pile up.
const LIMIT: Duration = Duration::from_secs(15);

/// A request to be sent once more, to somebody else.
struct Copy {
    pool: Rc<Pool>,
    connector: Rc<Connector>,
    from: Place,
    cluster: Arc<Cluster>,
    name: ServerName<'static>,
    origin: std::net::IpAddr,
    host: RequestHost,
    content: Rc<Content>,
    _under_way: [Slot; 2],
}

/// Sends a copy of a request that was read to its end.
pub(super) fn send(
    worker: &Worker,
    accepted: &Accepted,
    (cluster, name): (Arc<Cluster>, ServerName<'static>),
    host: RequestHost,
    head: RequestHead,
    content: Rc<Content>,
) {
    let taken =
        cluster.usage.take(Kind::Mirrors).and_then(|mirrored| Ok([mirrored, cluster.usage.take(Kind::Requests)?]));
    let under_way = match taken {
        Ok(under_way) => under_way,
        Err(error) => {
            tracing::debug!(host = host.as_str(), %error, "a request is not mirrored");
            return;
        }
    };
    let copy = Copy {
        pool: worker.pool.clone(),
        connector: worker.connector.clone(),
        from: accepted.from.clone(),
        origin: accepted.origin.socket_addr().ip(),
        cluster,
        name,
        host,
        content,
        _under_way: under_way,
    };
    let gone = accepted.gone.clone();
    task::spawn_local(async move {
        tokio::select! {
            sent = timeout(LIMIT, copy.send(head)) => {
                if !matches!(sent, Ok(Some(()))) {
                    tracing::debug!("a mirrored request was not answered");
                }
            }
            () = gone.cancelled() => {}
        }
    });
}

impl Copy {
    async fn send(self, head: RequestHead) -> Option<()> {
        let chosen = self.cluster.choose(self.from.netns.cookie(), self.origin, &self.connector.health, &[]);
        let key = Key {
            netns: self.from.netns.cookie(),
            device: self.from.device,
            to: self.cluster.pooled(self.host.as_str(), &chosen),
            owner: None,
        };
        let attempt = Attempt::new(&head, &self.host, &self.content, !http1::is_coded(&head.fields), false);
        let wanted = attempt.wanted(self.cluster.upstream.pool.idle_timeout);
        let make = |order| {
            let (connector, from, cluster) = (self.connector.clone(), self.from.clone(), self.cluster.clone());
            let (name, origin) = (self.name.clone(), self.origin);
            async move { connector.tls(&from, &cluster, &name, origin, chosen, order).await }
        };
        let connecting = self.pool.get(&key, wanted, Some(&self.cluster.usage), make, |_| ());
        let mut connection = connecting.await.ok()?;
        let mut body = attempt.send(&mut connection).await.ok()?.body;
        while let Some(frame) = poll_fn(|cx| body.poll_frame(cx)).await {
            frame.ok()?;
        }
        // One that may be authenticated by that is for nobody else.
        if !headers::authenticates_connection(&head.fields) {
            self.pool.put(&key, connection);
        }
        Some(())
    }
}
