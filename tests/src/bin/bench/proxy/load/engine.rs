//! All connections of the client, and when requests are made.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::{
    epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
    time::TimeSpec,
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};

use super::{
    connection::{Connection, Destination, Progress},
    tally::Tally,
};

/// When to make no further request.
#[derive(Clone, Copy)]
pub(super) struct Limit {
    pub(super) requests: u64,
    pub(super) time: Duration,
}

/// The client's connections.
pub(super) struct Engine<'a> {
    destination: &'a Destination,
    epoll: Epoll,
    clients: Vec<Client>,
    buffer: Vec<u8>,
}

/// One of them after the other.
#[derive(Default)]
struct Client {
    connection: Option<Connection>,
    /// When the request was to be made that is under way.
    began: Option<Instant>,
    /// When further ones were to be made: those of a steady rate do not wait for answers, and what they wait counts.
    waiting: VecDeque<Instant>,
}

/// Requests that are still to be made, within one measurement.
struct Plan {
    began: Instant,
    limit: Limit,
    /// Those that were begun.
    begun: u64,
    rate: Option<u32>,
}

/// How long nothing at all may happen.
const PATIENCE: Duration = Duration::from_secs(10);
const TIMER: u64 = u64::MAX;

impl<'a> Engine<'a> {
    pub(super) fn new(destination: &'a Destination, connections: usize) -> Result<Self> {
        /// As much as is read at once from a socket with a lot in it.
        const BUFFER: usize = 256 * 1024;
        let clients = std::iter::repeat_with(Client::default).take(connections).collect();
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Self { destination, epoll, clients, buffer: vec![0; BUFFER] })
    }

    /// Makes requests up to the limit, and waits for the last response.
    pub(super) fn drive(&mut self, limit: Limit, rate: Option<u32>) -> Result<Tally> {
        let mut plan = Plan { began: Instant::now(), limit, begun: 0, rate };
        let mut tally = Tally::default();
        let timer = rate.map(|rate| self.timer(rate)).transpose()?;
        if rate.is_none() {
            for index in 0..self.clients.len() {
                plan.begun += 1;
                self.begin(index, Instant::now(), &mut plan, &mut tally)?;
            }
        }
        let mut events = vec![EpollEvent::empty(); 256];
        while plan.is_open() || self.clients.iter().any(|client| client.is_busy(self.destination)) {
            let patience = EpollTimeout::try_from(PATIENCE).context("a time that fits")?;
            let count = self.epoll.wait(&mut events, patience)?;
            ensure!(count > 0, "nothing happened for {} s", PATIENCE.as_secs());
            for event in &events[..count] {
                match (event.data(), &timer) {
                    (TIMER, Some(timer)) => {
                        timer.wait()?;
                        self.tick(&mut plan, &mut tally)?;
                    }
                    (index, _) => self.advance(usize::try_from(index)?, &mut plan, &mut tally)?,
                }
            }
        }
        if let Some(timer) = timer {
            self.epoll.delete(timer)?;
        }
        Ok(tally)
    }

    /// Leaves all connections as they are, and makes sure that they stay.
    pub(super) fn hold(&mut self, time: Duration) -> Result<()> {
        let mut events = [EpollEvent::empty()];
        let count = self.epoll.wait(&mut events, EpollTimeout::try_from(time).context("too long a time")?)?;
        ensure!(count == 0, "an idle connection did not stay idle");
        Ok(())
    }

    fn timer(&self, rate: u32) -> Result<TimerFd> {
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        let interval = TimeSpec::from(Duration::from_secs(1) / rate);
        timer.set(Expiration::Interval(interval), TimerSetTimeFlags::empty())?;
        self.epoll.add(&timer, EpollEvent::new(EpollFlags::EPOLLIN, TIMER))?;
        Ok(timer)
    }

    /// Begins what is due at a steady rate, by each connection in turn.
    fn tick(&mut self, plan: &mut Plan, tally: &mut Tally) -> Result<()> {
        while let Some(due) = plan.due() {
            let index = usize::try_from(plan.begun)? % self.clients.len();
            plan.begun += 1;
            if self.clients[index].began.is_some() {
                self.clients[index].waiting.push_back(due);
            } else {
                self.begin(index, due, plan, tally)?;
            }
        }
        Ok(())
    }

    /// Begins a request on a connection that has none, opening it if need be.
    fn begin(&mut self, index: usize, due: Instant, plan: &mut Plan, tally: &mut Tally) -> Result<()> {
        let client = &mut self.clients[index];
        client.began = Some(due);
        if let Some(connection) = &mut client.connection {
            connection.request();
            return self.advance(index, plan, tally);
        }
        let mut connection = Connection::open(self.destination)?;
        connection.request();
        let edges = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        self.epoll.add(&connection, EpollEvent::new(edges, index as u64))?;
        client.connection = Some(connection);
        Ok(())
    }

    /// Goes on with a connection, from one request to the next as long as there is no need to wait.
    fn advance(&mut self, index: usize, plan: &mut Plan, tally: &mut Tally) -> Result<()> {
        loop {
            let client = &mut self.clients[index];
            // It may have been closed by an event of the same batch.
            let Some(connection) = &mut client.connection else { return Ok(()) };
            match connection.advance(self.destination, &mut self.buffer)? {
                Progress::Pending => return Ok(()),
                Progress::Done(bytes) => {
                    let Some(began) = client.began.take() else { bail!("a response without a request") };
                    tally.add(began.elapsed(), bytes);
                    if self.destination.closing {
                        continue;
                    }
                    let Some(due) = plan.next(&mut client.waiting) else { return Ok(()) };
                    client.began = Some(due);
                    connection.request();
                }
                Progress::Closed => {
                    client.connection = None;
                    return match plan.next(&mut self.clients[index].waiting) {
                        Some(due) => self.begin(index, due, plan, tally),
                        None => Ok(()),
                    };
                }
            }
        }
    }
}

impl Client {
    /// Whether a response, or the end of a connection that is to be closed, is still to come.
    fn is_busy(&self, destination: &Destination) -> bool {
        self.began.is_some() || (destination.closing && self.connection.is_some())
    }
}

impl Plan {
    /// Whether further requests are to be made, apart from those that wait for a connection.
    fn is_open(&self) -> bool {
        self.begun < self.limit.requests && self.began.elapsed() < self.limit.time
    }

    /// When the next request of a client was to be made that has just been answered.
    fn next(&mut self, waiting: &mut VecDeque<Instant>) -> Option<Instant> {
        if self.rate.is_some() {
            return waiting.pop_front();
        }
        self.is_open().then(|| {
            self.begun += 1;
            Instant::now()
        })
    }

    /// The next request of a steady rate, if its time has come.
    fn due(&self) -> Option<Instant> {
        let due = self.began + Duration::from_secs(1).mul_f64(self.begun as f64 / f64::from(self.rate?));
        (self.is_open() && due <= Instant::now()).then_some(due)
    }
}
