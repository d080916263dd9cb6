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
    /// Whether it was opened during the capture, rather than kept from before.
    pub opened: bool,
    /// What the client sent, put together.
    pub sent: Vec<u8>,
    /// What the server sent, put together.
    pub received: Vec<u8>,
    /// How often the client sent something (a SYN or data) and the server answered it (with a SYN or data).
    ///
    /// An answer acknowledges what it answers: what a server sent before it could know of the client's words, such as the
    /// rest of a response while the client acknowledges HTTP/2 settings, is not counted.
    pub round_trips: usize,
}

/// Sorts segments into connections.
pub(super) fn connections(segments: &[Segment]) -> Vec<Connection> {
    let mut connections: Vec<Builder> = Vec::new();
    for segment in segments {
        let known = connections.iter().rposition(|known| known.is(segment));
        // A retransmitted SYN opens nothing new, but the same ports may be used twice.
        let opens = segment.syn && !segment.ack;
        let at = match known {
            Some(at) if !opens || connections[at].sent.first == Some(segment.sequence) => at,
            _ => {
                connections.push(Builder::new(segment));
                connections.len() - 1
            }
        };
        connections[at].add(segment);
    }
    connections.into_iter().map(Builder::finish).collect()
}

struct Builder {
    client: SocketAddr,
    server: SocketAddr,
    opened: bool,
    sent: Stream,
    received: Stream,
    /// The end of what the client said and has no answer to yet.
    unanswered: Option<u32>,
    round_trips: usize,
}

impl Builder {
    fn new(first: &Segment) -> Self {
        // Of a connection that was there before the capture, the server is the end with the lower port.
        let from_client = if first.syn { !first.ack } else { first.from.port() > first.to.port() };
        let (client, server) = if from_client { (first.from, first.to) } else { (first.to, first.from) };
        Self {
            client,
            server,
            opened: first.syn,
            sent: Stream::default(),
            received: Stream::default(),
            unanswered: None,
            round_trips: 0,
        }
    }

    fn is(&self, segment: &Segment) -> bool {
        [(segment.from, segment.to), (segment.to, segment.from)].contains(&(self.client, self.server))
    }

    fn add(&mut self, segment: &Segment) {
        let from_client = segment.from == self.client;
        let stream = if from_client { &mut self.sent } else { &mut self.received };
        stream.add(segment);
        let speaks = segment.syn || !segment.payload.is_empty();
        if from_client && speaks {
            let length = segment.payload.len() as u32 + u32::from(segment.syn);
            self.unanswered.get_or_insert(segment.sequence.wrapping_add(length));
        }
        if from_client && segment.fin {
            // What came right before it was a goodbye, such as the close_notify of TLS. Nobody waits for its answer.
            self.unanswered = None;
        }
        let answers = |end: u32| segment.acknowledged.wrapping_sub(end).cast_signed() >= 0;
        if !from_client && speaks && self.unanswered.is_some_and(answers) {
            self.unanswered = None;
            self.round_trips += 1;
        }
    }

    fn finish(self) -> Connection {
        Connection {
            client: self.client,
            server: self.server,
            opened: self.opened,
            sent: self.sent.finish(),
            received: self.received.finish(),
            round_trips: self.round_trips,
        }
    }
}

/// The payloads of one direction by their offset from the first segment seen: retransmissions fall into place.
#[derive(Default)]
struct Stream {
    first: Option<u32>,
    payloads: BTreeMap<i32, Vec<u8>>,
}

impl Stream {
    fn add(&mut self, segment: &Segment) {
        let first = *self.first.get_or_insert(segment.sequence);
        // A SYN takes one sequence number, also when it carries data.
        let sequence = segment.sequence.wrapping_add(u32::from(segment.syn));
        let known = self.payloads.entry(sequence.wrapping_sub(first).cast_signed()).or_default();
        if known.len() < segment.payload.len() {
            known.clone_from(&segment.payload);
        }
    }

    fn finish(self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut end = None;
        for (offset, payload) in self.payloads {
            // Where a segment was captured that begins before this one's beginning, the overlap is the same bytes.
            let overlap = end.map_or(0, |end: i32| usize::try_from(end - offset).unwrap_or(0));
            let new = payload.get(overlap..).unwrap_or_default();
            bytes.extend_from_slice(new);
            end = Some(end.unwrap_or(offset).max(offset + payload.len() as i32));
        }
        bytes
    }
}
