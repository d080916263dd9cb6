//! TCP connections and their round trips.

use std::{collections::BTreeMap, net::SocketAddr};

use super::Segment;

/// A TCP connection as seen on the wire.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Who opened it.
    pub client: SocketAddr,
    /// Who was asked.
    pub server: SocketAddr,
    /// Whether the server agreed.
    pub established: bool,
    /// What the client sent, put together.
    pub sent: Vec<u8>,
    /// What the server sent, put together.
    pub received: Vec<u8>,
    /// How often the client sent something (a SYN or data) and the server then answered.
    ///
    /// TLS and HTTP/2 also send what nobody waits for, such as session tickets and SETTINGS. On a link whose delay is far
    /// above the ends' own computing time this count is that of the times the client had to wait.
    pub round_trips: usize,
}

/// Sorts segments into connections. A connection whose SYN is not among them is left out.
pub(super) fn connections(segments: &[Segment]) -> Vec<Connection> {
    let mut connections: Vec<Builder> = Vec::new();
    for segment in segments {
        if segment.syn && !segment.ack {
            // A retransmitted SYN opens nothing new, but the same ports may be used twice.
            let again = connections.iter().any(|known| known.is(segment) && known.client_isn == segment.sequence);
            if !again {
                connections.push(Builder::new(segment));
            }
        }
        if let Some(connection) = connections.iter_mut().rev().find(|known| known.is(segment)) {
            connection.add(segment);
        }
    }
    connections.into_iter().map(Builder::finish).collect()
}

struct Builder {
    client: SocketAddr,
    server: SocketAddr,
    client_isn: u32,
    server_isn: Option<u32>,
    sent: Stream,
    received: Stream,
    client_spoke: bool,
    round_trips: usize,
}

impl Builder {
    fn new(syn: &Segment) -> Self {
        Self {
            client: syn.from,
            server: syn.to,
            client_isn: syn.sequence,
            server_isn: None,
            sent: Stream::default(),
            received: Stream::default(),
            client_spoke: false,
            round_trips: 0,
        }
    }

    fn is(&self, segment: &Segment) -> bool {
        [(segment.from, segment.to), (segment.to, segment.from)].contains(&(self.client, self.server))
    }

    fn add(&mut self, segment: &Segment) {
        let from_client = segment.from == self.client;
        if segment.syn && !from_client {
            self.server_isn = Some(segment.sequence);
        }
        let isn = if from_client { Some(self.client_isn) } else { self.server_isn };
        let stream = if from_client { &mut self.sent } else { &mut self.received };
        if let Some(isn) = isn {
            // The SYN takes one sequence number, also when it carries data.
            let first = segment.sequence.wrapping_sub(isn).wrapping_sub(u32::from(!segment.syn));
            stream.add(first, &segment.payload);
        }
        if segment.syn || !segment.payload.is_empty() {
            if !from_client && self.client_spoke {
                self.round_trips += 1;
            }
            self.client_spoke = from_client;
        }
        if segment.fin && from_client {
            // What came right before it was a goodbye, such as the close_notify of TLS. Nobody waits for its answer.
            self.client_spoke = false;
        }
    }

    fn finish(self) -> Connection {
        Connection {
            client: self.client,
            server: self.server,
            established: self.server_isn.is_some(),
            sent: self.sent.finish(),
            received: self.received.finish(),
            round_trips: self.round_trips,
        }
    }
}

/// Payloads by their offset: retransmissions fall into place.
#[derive(Default)]
struct Stream(BTreeMap<u32, Vec<u8>>);

impl Stream {
    fn add(&mut self, offset: u32, payload: &[u8]) {
        let known = self.0.entry(offset).or_default();
        if known.len() < payload.len() {
            *known = payload.to_vec();
        }
    }

    fn finish(self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (offset, payload) in self.0 {
            let overlap = bytes.len().saturating_sub(offset as usize);
            bytes.extend_from_slice(payload.get(overlap..).unwrap_or_default());
        }
        bytes
    }
}
