//! The roots that this machine trusts.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::RootCertStore;
use rustls_native_certs::{ErrorKind, load_certs_from_paths};

use crate::config::Progress;

/// Why the roots that this machine trusts cannot be had: the same for all rules.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RootsError {
    /// There are none.
    #[error("no root certificates found; install the package ca-certificates, or set SSL_CERT_FILE or SSL_CERT_DIR")]
    Missing,
    /// Some cannot be read for now. Origins would be refused that they vouch for.
    #[error("cannot read the root certificates: {0}")]
    Unread(String),
}

/// The roots, and where they were.
#[derive(Clone, Debug)]
pub(super) struct SystemRoots {
    pub roots: Arc<RootCertStore>,
    /// Each of these could be read.
    places: Vec<PathBuf>,
}

impl SystemRoots {
    /// Reads those of SSL_CERT_FILE or SSL_CERT_DIR where set, else the system's. Where they are as they were before, they are the same
    /// value.
    ///
    /// # Errors
    /// There are none, or some of those from before cannot be read for now.
    pub(super) fn read(before: Option<&Self>, progress: &Progress) -> Result<Self, RootsError> {
        Self::read_from(Places::find, before, progress)
    }

    /// The same, from where `find` says that they are.
    fn read_from(find: impl Fn() -> Places, before: Option<&Self>, progress: &Progress) -> Result<Self, RootsError> {
        let Places { file, directories } = find();
        let files = file.iter().map(|file| (file, Some(file.as_path()), None));
        let all = files.chain(directories.iter().map(|directory| (directory, None, Some(directory.as_path()))));
        let (mut certificates, mut errors, mut places) = (Vec::new(), Vec::new(), Vec::new());
        for (place, file, directory) in all {
            let found = progress.at(place, || load_certs_from_paths(file, directory));
            if !found.errors.iter().any(|error| of_place(error, place).is_some()) {
                places.push(place.clone());
            }
            certificates.extend(found.certs);
            errors.extend(found.errors);
        }
        let old = before.map(|before| before.places.as_slice()).unwrap_or_default();
        let (lost, known): (Vec<_>, Vec<_>) =
            (old.iter().filter(|place| !places.contains(place)).collect(), find().all().collect());
        let passing = errors.iter().find(|error| is_passing(error)).map(ToString::to_string);
        if let Some(why) = passing.or_else(|| lost.iter().find_map(|place| hidden(place, &errors, &known))) {
            return Err(RootsError::Unread(why));
        }
        for error in &errors {
            tracing::warn!(%error, "a root certificate could not be loaded");
        }
        // Directories have most of them by several names, and those of the file.
        certificates.sort_unstable_by(|one, other| one.as_ref().cmp(other.as_ref()));
        certificates.dedup();
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(certificates);
        let same = before.filter(|before| before.roots.roots == roots.roots);
        match same.map_or_else(|| Arc::new(roots), |before| before.roots.clone()) {
            roots if roots.is_empty() => Err(RootsError::Missing),
            roots => Ok(Self { roots, places }),
        }
    }
}

/// Why a place that roots were in, and from which they were not read, is not known to be gone. It may be back by now, and among those
/// that are `known` then.
fn hidden(place: &Path, errors: &[rustls_native_certs::Error], known: &[PathBuf]) -> Option<String> {
    let is_gone = |error: &io::Error| matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
    let told = errors.iter().find_map(|error| of_place(error, place));
    if let Some(error) = told {
        return (!is_gone(error)).then(|| format!("{error} at '{}'", place.display()));
    }
    // It was not found.
    match fs::metadata(place) {
        Err(error) => (!is_gone(&error)).then(|| format!("{error} at '{}'", place.display())),
        Ok(_) => known.iter().any(|known| known == place).then(|| format!("'{}' was not there", place.display())),
    }
}

/// What is wrong with a place as a whole.
fn of_place<'a>(error: &'a rustls_native_certs::Error, place: &Path) -> Option<&'a io::Error> {
    match &error.kind {
        ErrorKind::Io { inner, path } if path == place => Some(inner),
        _ => None,
    }
}

/// Where roots are.
#[derive(Debug, Default)]
struct Places {
    file: Option<PathBuf>,
    directories: Vec<PathBuf>,
}

impl Places {
    /// As `rustls_native_certs` has them. What cannot be looked at is there only where it is set.
    fn find() -> Self {
        let file = env::var_os("SSL_CERT_FILE").map(PathBuf::from);
        let directories = env::var_os("SSL_CERT_DIR").unwrap_or_default();
        let directories: Vec<_> = env::split_paths(&directories).filter(|path| !path.as_os_str().is_empty()).collect();
        if file.is_some() || !directories.is_empty() {
            return Self { file, directories };
        }
        let probed = openssl_probe::probe();
        Self { file: probed.cert_file, directories: probed.cert_dir }
    }

    fn all(self) -> impl Iterator<Item = PathBuf> {
        self.directories.into_iter().chain(self.file)
    }
}

/// The files and directories that this machine's roots come from.
pub fn root_places() -> impl Iterator<Item = PathBuf> {
    Places::find().all()
}

/// Whether a certificate was not read for what may pass, and says nothing of it: others that are missing, or are none, are
/// done without.
fn is_passing(error: &rustls_native_certs::Error) -> bool {
    const PASSING: [libc::c_int; 6] =
        [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EIO, libc::ESTALE, libc::ETIMEDOUT];
    match &error.kind {
        ErrorKind::Io { inner, .. } => inner.raw_os_error().is_some_and(|code| PASSING.contains(&code)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, os::unix::fs::symlink};

    use super::*;

    const ROOT: &[u8] = include_bytes!("tests/root.pem");

    fn in_file_and_directory(home: &Path) -> Places {
        Places { file: Some(home.join("root.pem")), directories: vec![home.join("more")] }
    }

    fn read(home: &Path, before: Option<&SystemRoots>) -> Result<SystemRoots, RootsError> {
        SystemRoots::read_from(|| in_file_and_directory(home), before, &Progress::default())
    }

    /// A directory with a root in a file, and `more`, that cannot be looked at.
    fn home() -> tempfile::TempDir {
        let home = tempfile::tempdir().expect("a temporary directory");
        fs::write(home.path().join("root.pem"), ROOT).expect("a file");
        symlink("more", home.path().join("more")).expect("a link");
        home
    }

    #[test]
    fn a_place_that_never_could_be_looked_at_is_none_that_roots_were_in() {
        let home = home();
        let first = read(home.path(), None).expect("one place is good");
        let same = read(home.path(), Some(&first)).expect("nothing has changed");
        assert!(Arc::ptr_eq(&first.roots, &same.roots));
    }

    #[test]
    fn a_place_that_roots_were_in_counts_until_it_is_gone() {
        let home = home();
        let more = home.path().join("more");
        fs::remove_file(&more).expect("a link");
        fs::create_dir(&more).expect("a directory");
        let first = read(home.path(), None).expect("both are good");
        fs::remove_dir(&more).expect("a directory");
        symlink("more", &more).expect("a link");
        assert!(matches!(read(home.path(), Some(&first)), Err(RootsError::Unread(_))));
        fs::remove_file(&more).expect("a link");
        let less = read(home.path(), Some(&first)).expect("it is gone");
        assert_eq!(less.places, [home.path().join("root.pem")]);
    }

    /// One that is probed for is not even tried while it cannot be looked at.
    #[test]
    fn a_place_that_is_back_when_all_was_read_counts_as_one_that_was_not() {
        let home = home();
        let more = home.path().join("more");
        let mend = || {
            fs::remove_file(&more).expect("a link");
            fs::create_dir(&more).expect("a directory");
        };
        mend();
        let first = read(home.path(), None).expect("both are good");
        for is_probed in [false, true] {
            fs::remove_dir(&more).expect("a directory");
            symlink("more", &more).expect("a link");
            let looks = Cell::new(0);
            let find = || {
                if looks.replace(looks.get() + 1) == 1 {
                    mend();
                }
                let mut places = in_file_and_directory(home.path());
                places.directories.retain(|place| !is_probed || place.exists());
                places
            };
            let read = SystemRoots::read_from(find, Some(&first), &Progress::default());
            assert!(matches!(read, Err(RootsError::Unread(_))), "{is_probed}: {read:?}");
        }
    }
}
