//! The part of a change that needs nobody: files are read and understood on a thread of its own, and the control thread
//! goes on meanwhile.

use std::{
    collections::BTreeSet,
    io, panic,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use foldhash::HashSet;

use tokio::sync::oneshot;

use super::ConfigError;
use crate::{
    config::{Diagnostic, Documents, Fingerprint, Progress, Source, Texts},
    kernel::NameRules,
    policy::{HostName, Policy, Roots, Verify},
    route::{Originators, RouteTable},
    upstream::tls::root_places,
    watch::Watched,
};

/// How much the thread steps back for others that want the processor, as of nice(1): for the workers above all.
const NICENESS: libc::c_int = 10;

/// What the sources say.
pub(super) struct Prepared {
    /// Tells it from what they said another time.
    pub(super) fingerprint: u64,
    /// None if they say the same as before.
    pub(super) change: Result<Option<Change>, ConfigError>,
}

/// What the sources say, if that is not the same as before, with what there is in the files that they name.
pub(super) struct Complete {
    pub(super) change: Option<Change>,
    pub(super) originators: Originators,
}

/// What comes of reading.
pub(super) struct Reading {
    /// Of what the sources say; None if they were not read.
    pub(super) fingerprint: Option<u64>,
    pub(super) complete: Result<Complete, ConfigError>,
    /// What there is now in the files that the policy in force names, where no other comes of it.
    pub(super) renewed: Option<Originators>,
    /// Whether all of it is watched.
    pub(super) watched: io::Result<()>,
}

/// What is in force while a change is read.
pub(super) struct InForce {
    pub(super) fingerprint: u64,
    pub(super) documents: Documents,
    pub(super) policy: Arc<Policy>,
    pub(super) routes: Arc<RouteTable>,
}

/// A policy, and what follows from it alone.
#[derive(Default)]
pub(super) struct Change {
    /// Of what the sources say.
    pub(super) fingerprint: u64,
    /// Kept, so that the next change costs no more than what it changes.
    pub(super) documents: Documents,
    pub(super) policy: Arc<Policy>,
    pub(super) warnings: Vec<Diagnostic>,
    /// The names that it needs resolved.
    pub(super) names: HashSet<HostName>,
    pub(super) learned: NameRules,
    /// What a change of which can change it.
    pub(super) watched: BTreeSet<PathBuf>,
}

/// Reads the sources. If they say what they said when they had the fingerprint `known`, that is all.
pub(super) fn prepare(sources: &[Source], known: Option<u64>, documents: &Documents, progress: &Progress) -> Prepared {
    let texts = Texts::read(sources, progress);
    let fingerprint = texts.fingerprint();
    let is_known = known == Some(fingerprint.all);
    let change = if is_known { Ok(None) } else { understand(sources, texts, &fingerprint, documents).map(Some) };
    Prepared { fingerprint: fingerprint.all, change }
}

fn understand(
    sources: &[Source],
    texts: Texts,
    fingerprint: &Fingerprint,
    documents: &Documents,
) -> Result<Change, ConfigError> {
    let documents = texts.parse(fingerprint, documents)?;
    let (policy, warnings) = Policy::compile(documents.iter())?;
    let (names, learned, watched) = thread::scope(|scope| {
        let learned = scope.spawn(|| names_to_learn(&policy));
        let (names, watched) = (RouteTable::names(&policy), watched(sources, &policy));
        (names, learned.join().unwrap_or_else(|panic| panic::resume_unwind(panic)), watched)
    });
    Ok(Change { fingerprint: fingerprint.all, documents, policy: Arc::new(policy), warnings, names, learned, watched })
}

/// Reads the sources, and the files that they name. All are watched before they are read: one that changes in between is read
/// again, and one without which the policy is refused may still come.
pub(super) fn read(sources: &[Source], watched: &Watched, in_force: &InForce, progress: &Progress) -> Reading {
    // What has changed may have put other directories behind the paths.
    let mut are_watched = watched.refresh(progress);
    let Prepared { fingerprint, change } = prepare(sources, Some(in_force.fingerprint), &in_force.documents, progress);
    let complete = change.and_then(|change| {
        if let Some(change) = &change {
            are_watched = watched.add(&change.watched, progress);
        }
        let policy = change.as_ref().map_or(&in_force.policy, |change| &change.policy);
        let originators = Originators::make(policy, &in_force.routes, progress).map_err(ConfigError::Tls)?;
        Ok(Complete { change, originators })
    });
    // What is wrong with a change is not to keep certificates from being renewed, nor trust from being taken back.
    let renewed = match &complete {
        Ok(_) => None,
        Err(_) => Originators::make(&in_force.policy, &in_force.routes, progress).ok(),
    };
    Reading { fingerprint: Some(fingerprint), complete, renewed, watched: are_watched }
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

/// Where a reading is, for the log.
pub(super) fn place(progress: &Progress) -> Option<String> {
    progress.place().map(|place| place.display().to_string())
}

/// Does something on a thread of its own that steps back for others. Nothing comes if it panics.
///
/// # Errors
/// There can be no more threads.
pub(super) fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<oneshot::Receiver<T>> {
    beside(move || {
        // SAFETY: no memory is touched. In Linux this is for the calling thread, and for those that it starts. Whether it is
        // allowed does not matter.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) };
        work()
    })
}

/// Does something on a thread of its own, for which the process does not wait when it ends. Nothing comes if it panics.
///
/// # Errors
/// There can be no more threads.
pub(super) fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<oneshot::Receiver<T>> {
    let (sender, receiver) = oneshot::channel();
    thread::Builder::new().name("egress-reload".into()).spawn(move || {
        // Nobody waits any more if the agent ends.
        sender.send(work()).ok();
    })?;
    Ok(receiver)
}
