//! What is taken of applications, so that none of them is in the way of others.

use std::time::Duration;

use crate::http1;

const MIB: usize = 1024 * 1024;

/// What is taken of applications, and of origins where it says so.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at the same time, and requests over HTTP/2, each of which is one too.
    pub connections: usize,
    /// The same of one network namespace.
    pub connections_per_pod: usize,
    /// Heads of requests, and of responses.
    pub head: http1::Limits,
    /// All heads together of requests that have begun to come or are served, and of responses that clients have yet to take, and trailers of
    /// both over HTTP/2, in bytes, but for what is little of a connection.
    pub heads: usize,
    /// The same of one network namespace.
    pub heads_per_pod: usize,
    /// How long it may take for the head of a request to come to its end.
    pub head_time: Duration,
    /// How long a connection may be idle.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 50_000,
            connections_per_pod: 10_000,
            head: http1::Limits { head: 256 * 1024, fields: 4096 },
            heads: 256 * MIB,
            heads_per_pod: 64 * MIB,
            head_time: Duration::from_secs(60),
            idle: Duration::from_secs(3600),
        }
    }
}

/// Which limit a connection is beyond, or the head of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beyond {
    /// That of all connections.
    All(usize),
    /// That of its network namespace.
    Pod(usize),
    /// That of all heads.
    AllHeads(usize),
    /// That of the heads of its network namespace.
    PodHeads(usize),
}

impl Beyond {
    /// All of them.
    pub const LABELS: [&'static str; 4] = ["all", "pod", "all_heads", "pod_heads"];

    /// Which of those it is.
    pub fn index(self) -> usize {
        match self {
            Self::All(_) => 0,
            Self::Pod(_) => 1,
            Self::AllHeads(_) => 2,
            Self::PodHeads(_) => 3,
        }
    }
}

impl std::fmt::Display for Beyond {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::All(limit) => write!(f, "the agent has {limit} connections already (--max-connections)"),
            Self::Pod(limit) => write!(f, "this pod has {limit} connections already (--max-connections-per-pod)"),
            Self::AllHeads(limit) => write!(f, "all requests under way have {} MiB of heads already", limit / MIB),
            Self::PodHeads(limit) => {
                write!(f, "this pod's requests under way have {} MiB of heads already", limit / MIB)
            }
        }
    }
}
