//! How many descriptors may be open.

use nix::{
    libc::rlim_t,
    sys::resource::{Resource, getrlimit, setrlimit},
};

/// What the limit was, and is.
#[derive(Clone, Copy)]
pub(crate) struct Descriptors {
    /// Soft and hard, before it was raised; None if that is not known.
    before: Option<(rlim_t, rlim_t)>,
    /// How many there may be now.
    pub(crate) limit: usize,
}

impl Descriptors {
    /// Raises the soft limit to the hard one. Every connection takes two descriptors, and the usual soft limit of 1024 is for
    /// programs that use select(2).
    pub(crate) fn raise_limit() -> Self {
        let before = getrlimit(Resource::RLIMIT_NOFILE);
        let raised = before.and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| hard));
        let limit = raised.or_else(|error| {
            tracing::warn!(%error, "cannot raise the limit of open descriptors");
            before.map(|(soft, _)| soft)
        });
        let limit = limit.ok().and_then(|limit| limit.try_into().ok()).unwrap_or(usize::MAX);
        Self { before: before.ok(), limit }
    }

    /// Makes the limit of this process what it was. Only makes a system call.
    pub(crate) fn restore_limit(self) -> nix::Result<()> {
        match self.before {
            Some((soft, hard)) => setrlimit(Resource::RLIMIT_NOFILE, soft, hard),
            None => Ok(()),
        }
    }
}
