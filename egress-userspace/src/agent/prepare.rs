//! The part of a change that needs nobody: files are read and understood on a thread of its own, and the control thread
//! goes on meanwhile.

use std::{
    collections::BTreeSet,
    io, panic,
    path::{Path, PathBuf},
    thread,
};

use foldhash::HashSet;

use tokio::sync::oneshot;

use super::ConfigError;
use crate::{
    config::{Diagnostic, Documents, Source, Texts},
    kernel::NameRules,
    policy::{HostName, Policy, Roots, Verify},
    route::RouteTable,
    upstream::tls::root_places,
};

/// How much the thread steps back for others that want the processor, as of nice(1): for the workers above all.
const NICENESS: libc::c_int = 10;

/// What the sources say.
pub(super) struct Prepared {
    /// Tells it from what they said another time.
    pub(super) fingerprint: u64,
    /// None if they say the same as before.
    pub(super) change: Option<Change>,
}

/// A policy, and what follows from it alone.
#[derive(Default)]
pub(super) struct Change {
    /// Kept, so that the next change costs no more than what it changes.
    pub(super) documents: Documents,
    pub(super) policy: Policy,
    pub(super) warnings: Vec<Diagnostic>,
    /// The names that it needs resolved.
    pub(super) names: HashSet<HostName>,
    pub(super) learned: NameRules,
    /// What a change of which can change it.
    pub(super) watched: BTreeSet<PathBuf>,
}

/// Reads the sources. If they say what they said when they had the fingerprint `known`, that is all.
pub(super) fn prepare(sources: &[Source], known: Option<u64>, documents: &Documents) -> Result<Prepared, ConfigError> {
    let texts = Texts::read(sources);
    let fingerprint = texts.fingerprint();
    if known == Some(fingerprint.all) {
        return Ok(Prepared { fingerprint: fingerprint.all, change: None });
    }
    let documents = texts.parse(&fingerprint, documents)?;
    let (policy, warnings) = Policy::compile(documents.iter())?;
    let (names, learned, watched) = thread::scope(|scope| {
        let learned = scope.spawn(|| names_to_learn(&policy));
        let (names, watched) = (RouteTable::names(&policy), watched(sources, &policy));
        (names, learned.join().unwrap_or_else(|panic| panic::resume_unwind(panic)), watched)
    });
    let change = Change { documents, policy, warnings, names, learned, watched };
    Ok(Prepared { fingerprint: fingerprint.all, change: Some(change) })
}

/// The names whose addresses the kernel is to learn: those of hosts, and of their endpoints.
pub(super) fn names_to_learn(policy: &Policy) -> NameRules {
    let endpoints: Vec<_> = policy.rules().flat_map(|rule| rule.endpoint_names()).collect();
    let hosts = policy.rules().map(|rule| (&rule.host, rule.port));
    NameRules::of(hosts.chain(endpoints.iter().map(|(host, port)| (host, *port))))
}

/// The sources, the files that the policy names, and where the machine's roots are if it trusts them.
pub(super) fn watched(sources: &[Source], policy: &Policy) -> BTreeSet<PathBuf> {
    let sources = sources.iter().filter_map(|source| match source {
        Source::Path(path) => Some(path.as_path()),
        Source::Host(_) => None,
    });
    let files = policy.rules().flat_map(|rule| &rule.upstreams).flat_map(|upstream| upstream.files());
    let mut watched: BTreeSet<_> =
        sources.chain(files).collect::<BTreeSet<_>>().into_iter().map(Path::to_owned).collect();
    let mut upstreams = policy.rules().flat_map(|rule| &rule.upstreams);
    if upstreams.any(|upstream| upstream.tls.roots == Roots::System && upstream.tls.verify != Verify::Skip) {
        watched.extend(root_places());
    }
    watched
}

/// Does something on a thread of its own that steps back for others. Nothing comes if it panics.
///
/// # Errors
/// There can be no more threads.
pub(super) fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<oneshot::Receiver<T>> {
    let (sender, receiver) = oneshot::channel();
    thread::Builder::new().name("egress-reload".into()).spawn(move || {
        // SAFETY: no memory is touched. In Linux this is for the calling thread, and for those that it starts. Whether it is
        // allowed does not matter.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) };
        // Nobody waits any more if the agent ends.
        sender.send(work()).ok();
    })?;
    Ok(receiver)
}
