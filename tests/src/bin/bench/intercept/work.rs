//! What is timed. One thread is client and listener in turn, and on the loopback device the sender's system call does all
//! that the receiver's kernel does: the thread's CPU time is the whole cost, and nothing waits for anybody.

use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::time::ClockId;

use super::site::Site;

/// Something that is done many times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// connect(2) alone.
    Connect,
    /// A connection from its first system call to its last.
    Connection,
    /// A request and a response on an open connection.
    Request,
    /// A megabyte on an open connection.
    Megabyte,
}

impl Work {
    /// All, in the order in which they matter.
    pub(crate) const ALL: [Self; 4] = [Self::Connect, Self::Connection, Self::Request, Self::Megabyte];

    /// What the table calls it.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Connect => "connect(2)",
            Self::Connection => "connection: socket, connect, accept, learn the origin, close",
            Self::Request => "request on an open connection: 200 bytes, and 1000 in answer",
            Self::Megabyte => "megabyte on an open connection",
        }
    }

    /// How many of them are timed in one go, for some 5 ms.
    pub(crate) fn batch(self) -> u32 {
        match self {
            Self::Connect | Self::Connection => 250,
            Self::Request => 1000,
            Self::Megabyte => 25,
        }
    }

    /// Does it `count` times. Gives the CPU time of one, in microseconds: nobody else's work is in it.
    pub(crate) fn run(self, site: &Site<'_>, count: u32) -> Result<f64> {
        let run = match self {
            Self::Connect => connects,
            Self::Connection => connections,
            Self::Request => requests,
            Self::Megabyte => megabytes,
        };
        run(site, count).with_context(|| format!("{}: {}", site.way.label(), self.label()))
    }
}

fn connects(site: &Site<'_>, count: u32) -> Result<f64> {
    let sockets = (0..count).map(|_| site.socket()).collect::<Result<Vec<_>>>()?;
    let destination = site.destination.into();
    let cost = time(count, || sockets.iter().try_for_each(|socket| Ok(socket.connect(&destination)?)))?;
    for _ in &sockets {
        let (accepted, client) = site.accept()?;
        site.learn_origin(&accepted, client)?;
    }
    Ok(cost)
}

fn connections(site: &Site<'_>, count: u32) -> Result<f64> {
    let destination = site.destination.into();
    time(count, || {
        (0..count).try_for_each(|_| {
            let socket = site.socket()?;
            socket.connect(&destination)?;
            let (accepted, client) = site.accept()?;
            site.learn_origin(&accepted, client)
        })
    })
}

fn requests(site: &Site<'_>, count: u32) -> Result<f64> {
    let mut connection = site.connection()?;
    time(count, || connection.requests(count))
}

fn megabytes(site: &Site<'_>, count: u32) -> Result<f64> {
    let mut connection = site.connection()?;
    time(count, || connection.megabytes(count))
}

fn time(count: u32, work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = cpu_time()?;
    work()?;
    Ok((cpu_time()? - start).as_secs_f64() * 1e6 / f64::from(count))
}

fn cpu_time() -> Result<Duration> {
    Ok(ClockId::CLOCK_THREAD_CPUTIME_ID.now()?.into())
}
