//! Why the agent does not start, or does not take a configuration.

use std::{io, net::SocketAddr};

use crate::{
    capture::CaptureError,
    config::{self, Code, Diagnostic},
    handover::{Late, StateError},
    kernel::{KernelError, cgroup::CgroupError},
    resolve::ResolveError,
    upstream::tls::TlsError,
    worker::StartError,
};

/// Why the agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The configuration is bad.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// The kernel refuses.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// What is to be served cannot be.
    #[error(transparent)]
    Scope(#[from] CgroupError),
    /// A worker cannot be started.
    #[error(transparent)]
    Worker(#[from] StartError),
    /// What to redirect cannot be determined.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The resolver cannot be set up.
    #[error("cannot set up the resolver: {0}")]
    Resolver(String),
    /// The admin address cannot be bound.
    #[error("cannot serve the admin address {address}: {source}")]
    Admin {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The agent that runs did not wait for this one.
    #[error(transparent)]
    Late(#[from] Late),
    /// No name server answers us, while an agent runs that knows addresses.
    #[error("{0}; as no name server answers for any host, the agent that runs goes on")]
    Unanswered(ResolveError),
    /// Something of the operating system failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// A configuration that is refused, as a whole unless it says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The documents are at fault.
    #[error("{0}")]
    Documents(#[from] config::Errors),
    /// The TLS settings cannot be carried out.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Tls(Vec<TlsError>),
    /// The same, though some with the same settings are in use that were made of what was in files before.
    #[error("as it was before: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Kept(Vec<TlsError>),
    /// It could not be read at all.
    #[error("cannot read the configuration: {0}")]
    Unread(io::Error),
}

impl ConfigError {
    /// A mistake of ours.
    pub(super) fn panicked() -> Self {
        Self::Unread(io::Error::other("reading it has ended in a panic"))
    }

    /// Whether something of it could not be read, which may pass without any change of it.
    pub(super) fn is_of_reading(&self) -> bool {
        let unread = |found: &Diagnostic| matches!(found.code, Code::Unreadable | Code::UnreadableFile);
        matches!(self, Self::Unread(_)) || self.diagnostics().iter().any(unread)
    }

    /// What is wrong, and where; nothing if it could not be read at all.
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        match self {
            Self::Documents(errors) => errors.iter().cloned().collect(),
            Self::Tls(errors) | Self::Kept(errors) => errors.iter().map(TlsError::diagnostic).collect(),
            Self::Unread(_) => Vec::new(),
        }
    }
}

/// Says what was tried.
pub(super) fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> AgentError {
    move |source| AgentError::Io { what, source }
}
