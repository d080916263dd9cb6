//! What the pods call: the origin of all hosts, their name server, and the tripwire.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Result, ensure};
use harness::{
    TestBed,
    dns::{Answer, DnsServer},
    origin::{Origin, Reply, ServerTls},
    tripwire::{Touch, Tripwire},
    wait::wait_until,
};

use crate::{HOST, NAME, OTHER, PLACE, SERVER, Tolerance, callers::LONG};

/// All hosts over TLS, and the one that has no rule at times also in clear.
pub struct Site {
    origin: Origin,
    tripwire: Tripwire,
    _dns: DnsServer,
}

impl Site {
    pub fn start(bed: &TestBed) -> Result<Self> {
        const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 2));
        let place = bed.addresses(PLACE).both();
        let dns = DnsServer::start(bed.origin(), bed.addresses(SERVER).v4.into(), move |question| {
            let known = question.is_for(NAME) && question.client.ip() != NODE;
            Some(if known { Answer::addresses(place) } else { Answer::nonexistent() })
        })?;
        let tls = ServerTls::new(bed.pki().server(&[HOST, NAME, OTHER])?);
        let mut origin = bed.embedded_origin().clear(&bed.sockets(OTHER, 80)).handler(|_| Reply::ok("fine\n"));
        for host in [HOST, PLACE, OTHER] {
            origin = origin.tls(&bed.sockets(host, 443), &tls)?;
        }
        Ok(Self { origin: origin.start()?, tripwire: bed.tripwire(&[HOST, PLACE])?, _dns: dns })
    }

    /// Waits for the host that has no rule at times to be called over TLS, or in clear.
    pub fn wait_for_other(&self, over_tls: bool) -> Result<()> {
        self.origin.take_requests();
        let way = if over_tls { "over TLS" } else { "in clear" };
        wait_until(&format!("{OTHER} to be called {way}"), LONG, || {
            let requests = self.origin.take_requests();
            requests.iter().any(|request| request.host == OTHER && request.tls.is_some() == over_tls)
        })
    }

    /// The tripwire has seen nothing.
    pub fn check_silent(&self, tolerance: Tolerance) -> Result<()> {
        let mut touches = self.tripwire.touches()?;
        touches.retain(|touch| tolerance == Tolerance::Nothing || !touch.bytes.is_empty());
        ensure!(touches.is_empty(), "{} in clear: {touches:?}", touches.len());
        Ok(())
    }

    /// The tripwire has heard so many requests.
    pub fn check_in_clear(&self, count: usize) -> Result<()> {
        let touches = self.tripwire.touches()?;
        let heard = |touch: &&Touch| touch.bytes.starts_with(b"GET ");
        ensure!(touches.iter().filter(heard).count() == count, "{count} were expected: {touches:?}");
        Ok(())
    }
}
