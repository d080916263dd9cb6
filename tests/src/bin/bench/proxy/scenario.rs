//! What is measured, by name.

use clap::ValueEnum;

use super::peer::Upstream;

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum Scenario {
    /// 1 KB on 64 kept connections
    Keepalive,
    /// 1 KB on 1,000
    #[value(name = "keepalive-1000")]
    Thousand,
    /// 1 KB on 5,000
    #[value(name = "keepalive-5000")]
    FiveThousand,
    /// 1 KB and a new client connection for each request, 64 at a time
    Connect,
    /// 100 KB on 16 kept connections
    #[value(name = "100k")]
    Kilobytes,
    /// 100 MB on one connection
    #[value(name = "100m")]
    Megabytes,
    /// 100 MB on 8 connections at a time
    #[value(name = "100m-8")]
    MegabytesTimes8,
    /// An upstream TLS handshake for each request, as the origin closes connections: 16 kept client connections
    Handshake,
    /// 2,000 requests of 1 KB per second on 64 kept connections
    Rate,
    /// 1 KB in clear from a host that no rule names, on 64 kept connections: passed on, with `--capture ports`
    Relay,
    /// 100 MB of the same on 8 connections at a time
    #[value(name = "relay-100m")]
    RelayMegabytes,
    /// 5,000 idle client connections
    Idle,
    /// From the start of the process to the first response
    Startup,
    /// The same of egress where no agent has been, so that its programs are yet to be loaded
    StartupFirst,
    /// The first request of a client that is 20 ms away from the origin
    Seed,
    /// egress with one worker on a core, and two on two
    Cores,
    /// egress with more network namespaces
    Namespaces,
}

/// How the client makes requests.
#[derive(Clone, Copy)]
pub(super) struct Pattern {
    pub(super) path: &'static str,
    pub(super) connections: usize,
    pub(super) upstream: Upstream,
    /// A connection for each request.
    pub(super) closes: bool,
    /// Requests per second.
    pub(super) rate: Option<u32>,
    /// Requests in all, where they are so large that time does not bound them.
    pub(super) requests: Option<u64>,
}

impl Pattern {
    /// 1 KB on kept connections.
    pub(super) const fn kept(connections: usize) -> Self {
        let upstream = Upstream::Kept;
        Self { path: "/1k", connections, upstream, closes: false, rate: None, requests: None }
    }
}

impl Scenario {
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Keepalive => "1 KB on 64 kept connections",
            Self::Thousand => "1 KB on 1,000 kept connections",
            Self::FiveThousand => "1 KB on 5,000 kept connections",
            Self::Connect => "1 KB, a new client connection for each request, 64 at a time",
            Self::Kilobytes => "100 KB on 16 kept connections",
            Self::Megabytes => "100 MB on one connection",
            Self::MegabytesTimes8 => "100 MB on 8 connections at a time",
            Self::Handshake => "1 KB, an upstream TLS handshake for each request, resumed, 16 kept client connections",
            Self::Rate => "1 KB, 2,000 requests per second on 64 kept connections",
            Self::Relay => "1 KB in clear, passed on as it is, on 64 kept connections",
            Self::RelayMegabytes => "100 MB in clear, passed on as it is, on 8 connections at a time",
            Self::Idle => "memory, in MiB: started, and with 5,000 idle client connections",
            Self::Startup => "from the start of the process to the first response",
            Self::StartupFirst => "from the start of the first process ever to the first response",
            Self::Seed => "the first 1 KB over a link with 20 ms in each direction",
            Self::Cores => "1 KB on 64 kept connections, proxy on one core and on two",
            Self::Namespaces => "1 KB on 64 kept connections, with more network namespaces served",
        }
    }

    /// The short form, for the chart.
    pub(super) fn short_title(self) -> &'static str {
        match self {
            Self::Keepalive => "1 KB, kept connections",
            Self::Thousand => "1 KB, 1,000 connections",
            Self::FiveThousand => "1 KB, 5,000 connections",
            Self::Connect => "1 KB, new connections",
            Self::Kilobytes => "100 KB",
            Self::Megabytes => "100 MB",
            Self::MegabytesTimes8 => "100 MB, 8 at a time",
            Self::Handshake => "TLS handshake each",
            Self::Rate => "2,000 requests per second",
            Self::Relay => "1 KB, passed on",
            Self::RelayMegabytes => "100 MB, passed on",
            Self::Idle => "5,000 idle connections",
            Self::Startup => "start",
            Self::StartupFirst | Self::Seed | Self::Cores | Self::Namespaces => self.title(),
        }
    }

    /// Whether all peers are measured. Otherwise egress is compared with itself.
    pub(super) fn compares_peers(self) -> bool {
        self.pattern().is_some() || matches!(self, Self::Idle | Self::Startup)
    }

    /// What the client does where all that is measured is a load.
    pub(super) fn pattern(self) -> Option<Pattern> {
        let kept = Pattern::kept(64);
        let megabytes = Pattern { path: "/100m", connections: 1, requests: Some(8), ..kept };
        Some(match self {
            Self::Keepalive => kept,
            Self::Thousand => Pattern::kept(1000),
            Self::FiveThousand => Pattern::kept(5000),
            Self::Connect => Pattern { closes: true, ..kept },
            Self::Kilobytes => Pattern { path: "/100k", connections: 16, ..kept },
            Self::Megabytes => megabytes,
            Self::MegabytesTimes8 => Pattern { connections: 8, requests: Some(16), ..megabytes },
            Self::Handshake => Pattern { connections: 16, upstream: Upstream::Closing, ..kept },
            Self::Rate => Pattern { rate: Some(2000), ..kept },
            Self::Relay => Pattern { upstream: Upstream::Plain, ..kept },
            Self::RelayMegabytes => {
                Pattern { connections: 8, requests: Some(16), upstream: Upstream::Plain, ..megabytes }
            }
            Self::Idle | Self::Startup | Self::StartupFirst | Self::Seed | Self::Cores | Self::Namespaces => {
                return None;
            }
        })
    }
}
