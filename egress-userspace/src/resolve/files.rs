//! The files that say how the node resolves names.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use hickory_resolver::{
    Hosts,
    config::{ResolverConfig, ResolverOpts},
    net::NetError,
    system_conf::parse_resolv_conf,
};

use crate::config::Progress;

/// Why the node's resolver cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum ResolverError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", file.display())]
    File {
        /// Its path.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What they say cannot be used.
    #[error("cannot use what resolv.conf says: {0}")]
    Settings(#[from] NetError),
}

/// Tells whether the files have changed.
pub(super) type Stamp = [Option<SystemTime>; 2];

/// Where they are.
pub(super) struct Files {
    hosts: PathBuf,
    resolv_conf: PathBuf,
    /// Which one is being read.
    progress: Progress,
}

impl Files {
    /// Those in this directory. Which one is being read `progress` says.
    pub(super) fn within(directory: &Path, progress: Progress) -> Self {
        Self { hosts: directory.join("hosts"), resolv_conf: directory.join("resolv.conf"), progress }
    }

    /// Says which of them is being read.
    pub(super) fn progress(&self) -> &Progress {
        &self.progress
    }

    pub(super) fn stamp(&self) -> Stamp {
        let modified = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
        [&self.hosts, &self.resolv_conf].map(|path| self.progress.at(path, || modified(path)))
    }

    /// What the hosts file lists; nothing if there is none.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn hosts(&self) -> Result<Hosts, ResolverError> {
        self.read(&self.hosts, parse_hosts).map(Option::unwrap_or_default)
    }

    /// What resolv.conf says. Without servers if it names none, and then only the hosts file answers.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn settings(&self) -> Result<Settings, ResolverError> {
        let missing = || NetError::from("there is no such file");
        let settings = self.read(&self.resolv_conf, |text| Ok(Settings::parse(text)))?;
        let settings = settings.unwrap_or_else(|| Err(missing()));
        Ok(settings.unwrap_or_else(|error| {
            let (hosts, file) = (self.hosts.display(), self.resolv_conf.display());
            tracing::warn!(%error, "{file} names no usable server; only {hosts} answers");
            Settings::default()
        }))
    }

    /// What `parse` makes of a file; None if there is none.
    fn read<T>(&self, path: &Path, parse: impl Fn(&[u8]) -> io::Result<T>) -> Result<Option<T>, ResolverError> {
        match self.progress.at(path, || fs::read(path)).and_then(|text| parse(&text)) {
            Ok(parsed) => Ok(Some(parsed)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(ResolverError::File { file: path.to_owned(), source }),
        }
    }
}

/// Comments, of which files have most that is not UTF-8, are no reason to do without the rest.
fn parse_hosts(text: &[u8]) -> io::Result<Hosts> {
    let mut hosts = Hosts::default();
    hosts.read_hosts_conf(String::from_utf8_lossy(text).as_bytes())?;
    Ok(hosts)
}

/// What resolv.conf says.
#[derive(Default)]
pub(super) struct Settings {
    pub(super) config: ResolverConfig,
    pub(super) options: ResolverOpts,
    /// Whether the servers are asked first in turn.
    pub(super) rotate: bool,
}

impl Settings {
    fn parse(text: &[u8]) -> Result<Self, NetError> {
        let (config, options) = parse_resolv_conf(text)?;
        // This option is not among those that it gives.
        let rotate = String::from_utf8_lossy(text).lines().any(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some("options") && words.any(|word| word == "rotate")
        });
        Ok(Self { config, options, rotate })
    }
}

#[cfg(test)]
mod tests {
    use hickory_resolver::proto::{
        op::Query,
        rr::{Name, RecordType},
    };

    use super::*;

    #[test]
    fn a_hosts_file_may_have_bytes_of_any_encoding() {
        let hosts = parse_hosts(b"# caf\xe9\n192.0.2.1 a.example # \xff\n192.0.2.2 b\xe9.example c.example\n");
        let hosts = hosts.expect("a hosts file");
        for (name, is_listed) in [("a.example.", true), ("c.example.", true), ("d.example.", false)] {
            let query = Query::query(Name::from_ascii(name).expect("a name"), RecordType::A);
            assert_eq!(hosts.lookup_static_host(&query).is_some(), is_listed, "{name}");
        }
    }

    #[test]
    fn servers_are_asked_in_turn_if_the_options_say_so() {
        for (options, rotate) in [
            ("", false),
            ("options timeout:1 rotate\n", true),
            ("options rotate\noptions edns0\n", true),
            ("# options rotate\nsearch rotate\n", false),
        ] {
            let text = format!("nameserver 192.0.2.1\nnameserver 192.0.2.2\n{options}");
            let settings = Settings::parse(text.as_bytes()).expect("settings");
            assert_eq!((settings.rotate, settings.config.name_servers().len()), (rotate, 2), "{options}");
        }
    }
}
