//! TLS sessions, which are resumed no longer than the certificates are valid by which they began: a resumed session shows none,
//! and tickets are renewed without end (RFC 8446 section 4.6.1).

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustls::{
    NamedGroup,
    client::{ClientSessionMemoryCache, ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue},
};
use rustls_pki_types::{ServerName, UnixTime};

use super::{certificate::Facts, verify::Presented};

/// rustls' own cache counts so many sessions for each server.
pub(super) const OF_A_SERVER: usize = 8;

/// How many TLS 1.3 tickets are kept of a server, each of which is used once, at first and at most: where connections that are made at the
/// same time find none it is twice as many from then on, up to as many as the pool has made at the same time. Each has a copy of
/// the server's certificates, so that it is no more once all servers together have as many as if each of those that may be known had what it
/// has at first.
const TICKETS: usize = 8;
const MOST_TICKETS: usize = 64;

/// Sessions with servers, by their names.
#[derive(Debug)]
pub(super) struct Sessions {
    /// Servers that were verified. Sessions with others are not resumed.
    verified: Mutex<HashMap<ServerName<'static>, Verified>>,
    /// How many of them there may be.
    servers: usize,
    /// Sessions of TLS 1.2, and which key exchange servers take.
    others: ClientSessionMemoryCache,
}

/// What is known of a server.
#[derive(Debug)]
struct Verified {
    /// When the first certificate expires that it was verified by.
    end: UnixTime,
    /// From the oldest on.
    tickets: VecDeque<Tls13ClientSessionValue>,
    /// How many of them are kept; 0 of a server that has not given any.
    room: usize,
}

impl Sessions {
    /// Sessions with so many servers at most.
    pub(super) fn new(servers: usize) -> Self {
        Self { verified: Mutex::default(), servers, others: ClientSessionMemoryCache::new(servers * OF_A_SERVER) }
    }

    /// Notes what a server was verified by, from now on for all its sessions.
    pub(super) fn verified(&self, server: &ServerName<'_>, presented: &Presented<'_>, now: UnixTime) {
        let end = |certificate| Facts::read(certificate).and_then(|facts| u64::try_from(facts.not_after).ok());
        // Of the others some may be no part of the verified chain, such as what has expired already.
        let others = presented.intermediates.iter().filter_map(end).filter(|end| *end >= now.as_secs());
        let mut verified = self.lock();
        let Some(end) = end(presented.end_entity).map(|own| others.fold(own, u64::min)) else {
            verified.remove(&server.to_owned());
            return;
        };
        if verified.len() >= self.servers && !verified.contains_key(&server.to_owned()) {
            verified.retain(|_, server| server.end >= now);
            let any = verified.keys().next().filter(|_| verified.len() >= self.servers).cloned();
            any.map(|any| verified.remove(&any));
        }
        let end = UnixTime::since_unix_epoch(Duration::from_secs(end));
        // Servers of one name may have certificates of their own.
        verified.entry(server.to_owned()).and_modify(|known| known.renew(end, now)).or_insert_with(|| Verified {
            end,
            tickets: VecDeque::new(),
            room: 0,
        });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ServerName<'static>, Verified>> {
        // Nobody panics while holding it.
        self.verified.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Verified {
    fn may_resume(&self) -> bool {
        self.end >= UnixTime::now()
    }

    fn renew(&mut self, end: UnixTime, now: UnixTime) {
        if self.end < now {
            // What began with a certificate that has expired is over.
            self.tickets.clear();
            self.end = end;
        }
        self.end = self.end.min(end);
    }

    fn keep(&mut self, ticket: Tls13ClientSessionValue) {
        self.room = self.room.max(TICKETS);
        if self.tickets.len() >= self.room {
            self.tickets.pop_front();
        }
        self.tickets.push_back(ticket);
    }

    /// The youngest.
    fn take(&mut self) -> Option<Tls13ClientSessionValue> {
        if !self.may_resume() {
            self.tickets.clear();
            return None;
        }
        self.tickets.pop_back()
    }
}

impl ClientSessionStore for Sessions {
    fn set_kx_hint(&self, server: ServerName<'static>, group: NamedGroup) {
        self.others.set_kx_hint(server, group);
    }

    fn kx_hint(&self, server: &ServerName<'_>) -> Option<NamedGroup> {
        self.others.kx_hint(server)
    }

    fn set_tls12_session(&self, server: ServerName<'static>, session: Tls12ClientSessionValue) {
        self.others.set_tls12_session(server, session);
    }

    fn tls12_session(&self, server: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        if self.lock().get(server).is_some_and(Verified::may_resume) {
            return self.others.tls12_session(server);
        }
        self.others.remove_tls12_session(&server.to_owned());
        None
    }

    fn remove_tls12_session(&self, server: &ServerName<'static>) {
        self.others.remove_tls12_session(server);
    }

    fn insert_tls13_ticket(&self, server: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        if let Some(known) = self.lock().get_mut(&server) {
            known.keep(ticket);
        }
    }

    fn take_tls13_ticket(&self, server: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let mut verified = self.lock();
        let known = verified.get_mut(server)?;
        if let Some(ticket) = known.take() {
            return Some(ticket);
        }
        let room = known.room;
        if room == 0 {
            return None;
        }
        let all = verified.values().map(|known| known.room).sum::<usize>();
        if all + room <= self.servers * TICKETS
            && let Some(known) = verified.get_mut(server)
        {
            known.room = (2 * room).min(MOST_TICKETS);
        }
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
            assert!(sessions.lock().contains_key(&server) && sessions.lock().len() <= 3);
        }
        let late = Sessions::new(3);
        let server = ServerName::try_from("late.example").expect("a name");
        late.verified(&server, &presented, before);
        late.verified(&server, &Presented { end_entity: &CertificateDer::from(vec![0]), intermediates: &[] }, before);
        assert!(late.lock().is_empty(), "nobody can say when it ends");
    }

    #[test]
    fn a_server_that_gives_no_tickets_takes_the_room_of_none() {
        let root = CertificateDer::from_pem_slice(include_bytes!("tests/root.pem")).expect("a certificate");
        let sessions = Sessions::new(100);
        let server = ServerName::try_from("mean.example").expect("a name");
        let presented = Presented { end_entity: &root, intermediates: &[] };
        sessions.verified(&server, &presented, UnixTime::now());
        assert!((0..10).all(|_| sessions.take_tls13_ticket(&server).is_none()));
        assert_eq!(sessions.lock()[&server].room, 0);
    }
}
