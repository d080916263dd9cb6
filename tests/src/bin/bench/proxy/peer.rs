//! What is compared: egress and its peers, by the protocol that they speak to the origin, and the bounds.

use std::net::SocketAddr;

use anyhow::Result;
use clap::ValueEnum;

use super::{
    grounds::{CLOSING, Grounds, HTTP1, HTTP2, PLAIN, PLAIN_PORT},
    program::Program,
};

/// A way from the client to the origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum Peer {
    /// With HTTP/1.1 to the origin
    EgressHttp1,
    /// With HTTP/2 to the origin, which negotiates it
    EgressHttp2,
    Nginx,
    Haproxy,
    EnvoyHttp1,
    EnvoyHttp2,
    /// No proxy: the client speaks TLS itself
    DirectHttps,
    /// No proxy and no TLS
    DirectHttp,
}

/// The origin that requests go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Upstream {
    /// It keeps connections.
    Kept,
    /// It closes each connection after one response, so that a handshake is needed for each request.
    Closing,
    /// No rule names it, so that what goes there is passed on byte for byte.
    Plain,
}

/// Where the client goes.
pub(super) struct Target {
    pub(super) address: SocketAddr,
    pub(super) host: &'static str,
    pub(super) is_tls: bool,
    /// Whether the client is in reach of the agent.
    pub(super) is_intercepted: bool,
}

impl Peer {
    /// All, in the order of tables.
    pub(super) const ALL: [Self; 8] = [
        Self::EgressHttp1,
        Self::EgressHttp2,
        Self::Nginx,
        Self::Haproxy,
        Self::EnvoyHttp1,
        Self::EnvoyHttp2,
        Self::DirectHttps,
        Self::DirectHttp,
    ];

    pub(super) fn label(self) -> &'static str {
        match self {
            Self::EgressHttp1 => "egress, HTTP/1.1",
            Self::EgressHttp2 => "egress, HTTP/2",
            Self::Nginx => "nginx",
            Self::Haproxy => "HAProxy",
            Self::EnvoyHttp1 => "Envoy, HTTP/1.1",
            Self::EnvoyHttp2 => "Envoy, HTTP/2",
            Self::DirectHttps => "direct HTTPS",
            Self::DirectHttp => "direct HTTP",
        }
    }

    pub(super) fn is_egress(self) -> bool {
        self.program() == Some(Program::Egress)
    }

    /// The program to start; none for the bounds.
    pub(super) fn program(self) -> Option<Program> {
        match self {
            Self::EgressHttp1 | Self::EgressHttp2 => Some(Program::Egress),
            Self::Nginx => Some(Program::Nginx),
            Self::Haproxy => Some(Program::Haproxy),
            Self::EnvoyHttp1 => Some(Program::EnvoyHttp1),
            Self::EnvoyHttp2 => Some(Program::EnvoyHttp2),
            Self::DirectHttps | Self::DirectHttp => None,
        }
    }

    /// What it is to speak with the origin.
    pub(super) fn protocol(self) -> &'static str {
        match self {
            Self::EgressHttp2 | Self::EnvoyHttp2 => "HTTP/2.0",
            _ => "HTTP/1.1",
        }
    }

    /// Where the client goes for it. None where the comparison would be one of something else: handshakes are made by
    /// the client where there is no proxy, and an origin that closes speaks HTTP/1.1. What is passed on has no protocol, and
    /// Debian's nginx relays HTTP alone.
    pub(super) fn target(self, grounds: &Grounds, upstream: Upstream) -> Option<Target> {
        let host = match (upstream, self.protocol()) {
            (Upstream::Kept, "HTTP/2.0") => HTTP2,
            (Upstream::Kept, _) => HTTP1,
            (Upstream::Closing | Upstream::Plain, "HTTP/2.0") => return None,
            (Upstream::Plain, _) if matches!(self, Self::Nginx | Self::DirectHttps) => return None,
            (Upstream::Plain, _) => PLAIN,
            (Upstream::Closing, _) => CLOSING,
        };
        let (address, is_tls, is_intercepted) = match self.program() {
            Some(Program::Egress) => (SocketAddr::new(grounds.address(host), 80), false, true),
            Some(program) => {
                let [kept, closing, plain] = program.ports();
                let port = match upstream {
                    Upstream::Kept => kept,
                    Upstream::Closing => closing,
                    Upstream::Plain => plain,
                };
                (Grounds::peer_address(port), false, false)
            }
            None if upstream == Upstream::Closing => return None,
            None if upstream == Upstream::Plain => (SocketAddr::new(grounds.address(host), 80), false, false),
            None if self == Self::DirectHttps => (SocketAddr::new(grounds.address(host), 443), true, false),
            None => (SocketAddr::new(grounds.address(host), PLAIN_PORT), false, false),
        };
        Some(Target { address, host, is_tls, is_intercepted })
    }
}

impl Target {
    /// The client's arguments.
    pub(super) fn arguments(&self, grounds: &Grounds) -> Vec<String> {
        let mut arguments = vec!["--to".into(), self.address.to_string(), "--host".into(), self.host.into()];
        if self.is_tls {
            arguments.extend(["--tls".into(), grounds.bed.pki().ca_file().display().to_string()]);
        }
        arguments
    }

    /// Asks the origin, through the proxy, which protocol the proxy speaks with it; the one that closes also says whether the
    /// TLS session was resumed.
    pub(super) fn protocol(&self, grounds: &Grounds) -> Result<String> {
        let command = if self.is_intercepted {
            grounds.bed.client_command("curl")?
        } else {
            grounds.bed.outside_command("curl")?
        };
        let url = format!("{}://{}/protocol", if self.is_tls { "https" } else { "http" }, self.host);
        let output = command.args(["-sS", "--fail", "--http1.1", "--connect-to"]).arg(format!("::{}", self.address));
        Ok(output.arg(url).run()?.success()?.text().trim().to_owned())
    }
}
