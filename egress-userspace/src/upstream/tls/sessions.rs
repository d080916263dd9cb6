//! TLS sessions, which are resumed no longer than the certificates are valid by which they began: a resumed session shows none,
//! and tickets are renewed without end (RFC 8446 section 4.6.1).

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustls::{
    NamedGroup,
    client::{ClientSessionMemoryCache, ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue},
};
use rustls_pki_types::{ServerName, UnixTime};

use super::{certificate::Facts, verify::Presented};

/// rustls counts so many sessions for each server.
pub(super) const OF_A_SERVER: usize = 8;

/// Sessions with servers, by their names.
#[derive(Debug)]
pub(super) struct Sessions {
    kept: ClientSessionMemoryCache,
    /// When the first certificate expires that a server was verified by. Sessions with others are not resumed.
    ends: Mutex<HashMap<ServerName<'static>, UnixTime>>,
    servers: usize,
}

impl Sessions {
    /// Sessions with so many servers at most.
    pub(super) fn new(servers: usize) -> Self {
        Self { kept: ClientSessionMemoryCache::new(servers * OF_A_SERVER), ends: Mutex::default(), servers }
    }

    /// Notes what a server was verified by, from now on for all its sessions.
    pub(super) fn verified(&self, server: &ServerName<'_>, presented: &Presented<'_>, now: UnixTime) {
        let end = |certificate| Facts::read(certificate).and_then(|facts| u64::try_from(facts.not_after).ok());
        // Of the others some may be no part of the verified chain, such as what has expired already.
        let others = presented.intermediates.iter().filter_map(end).filter(|end| *end >= now.as_secs());
        let mut ends = self.ends();
        let Some(end) = end(presented.end_entity).map(|own| others.fold(own, u64::min)) else {
            ends.remove(&server.to_owned());
            return;
        };
        if ends.len() >= self.servers && !ends.contains_key(&server.to_owned()) {
            ends.retain(|_, end| *end >= now);
            let any = ends.keys().next().filter(|_| ends.len() >= self.servers).cloned();
            any.map(|any| ends.remove(&any));
        }
        let end = UnixTime::since_unix_epoch(Duration::from_secs(end));
        // Servers of one name may have certificates of their own.
        ends.entry(server.to_owned())
            .and_modify(|known| *known = if *known < now { end } else { end.min(*known) })
            .or_insert(end);
    }

    fn may_resume(&self, server: &ServerName<'_>) -> bool {
        self.ends().get(server).is_some_and(|end| *end >= UnixTime::now())
    }

    fn ends(&self) -> MutexGuard<'_, HashMap<ServerName<'static>, UnixTime>> {
        // Nobody panics while holding it.
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientSessionStore for Sessions {
    fn set_kx_hint(&self, server: ServerName<'static>, group: NamedGroup) {
        self.kept.set_kx_hint(server, group);
    }

    fn kx_hint(&self, server: &ServerName<'_>) -> Option<NamedGroup> {
        self.kept.kx_hint(server)
    }

    fn set_tls12_session(&self, server: ServerName<'static>, session: Tls12ClientSessionValue) {
        self.kept.set_tls12_session(server, session);
    }

    fn tls12_session(&self, server: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        if self.may_resume(server) {
            return self.kept.tls12_session(server);
        }
        self.kept.remove_tls12_session(&server.to_owned());
        None
    }

    fn remove_tls12_session(&self, server: &ServerName<'static>) {
        self.kept.remove_tls12_session(server);
    }

    fn insert_tls13_ticket(&self, server: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        self.kept.insert_tls13_ticket(server, ticket);
    }

    fn take_tls13_ticket(&self, server: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        if self.may_resume(server) {
            return self.kept.take_tls13_ticket(server);
        }
        while self.kept.take_tls13_ticket(server).is_some() {}
        None
    }
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::{CertificateDer, pem::PemObject as _};

    use super::*;

    #[test]
    fn only_so_many_servers_are_remembered() {
        let root = CertificateDer::from_pem_slice(include_bytes!("tests/root.pem")).expect("a certificate");
        let presented = Presented { end_entity: &root, intermediates: &[] };
        let end = Facts::read(&root).expect("a certificate").not_after.try_into().expect("after 1970");
        let before = UnixTime::since_unix_epoch(Duration::from_secs(end));
        let sessions = Sessions::new(3);
        for number in 0..10 {
            let server = ServerName::try_from(format!("{number}.example")).expect("a name");
            sessions.verified(&server, &presented, before);
            assert!(sessions.ends().contains_key(&server) && sessions.ends().len() <= 3);
        }
        let late = Sessions::new(3);
        let server = ServerName::try_from("late.example").expect("a name");
        late.verified(&server, &presented, before);
        late.verified(&server, &Presented { end_entity: &CertificateDer::from(vec![0]), intermediates: &[] }, before);
        assert!(late.ends().is_empty(), "nobody can say when it ends");
    }
}
