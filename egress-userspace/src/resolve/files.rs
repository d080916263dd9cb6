//! The files that say how the node resolves names.

use std::{fs, io, time::SystemTime};

use hickory_resolver::{
    Hosts,
    config::{ResolverConfig, ResolverOpts},
    net::NetError,
    system_conf::parse_resolv_conf,
};

const HOSTS: &str = "/etc/hosts";
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Why the node's resolver cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum ResolverError {
    /// A file cannot be read.
    #[error("cannot read {file}: {source}")]
    File {
        /// Its path.
        file: &'static str,
        /// Why.
        source: io::Error,
    },
    /// What they say cannot be used.
    #[error("cannot use what {RESOLV_CONF} says: {0}")]
    Settings(#[from] NetError),
}

/// Tells whether the files have changed.
pub(super) type Stamp = [Option<SystemTime>; 2];

pub(super) fn stamp() -> Stamp {
    [HOSTS, RESOLV_CONF].map(|path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok())
}

/// What the hosts file lists; nothing if there is none.
///
/// # Errors
/// It cannot be read.
pub(super) fn hosts() -> Result<Hosts, ResolverError> {
    let result = match fs::read(HOSTS) {
        Ok(text) => parse_hosts(&text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Hosts::default()),
        Err(error) => Err(error),
    };
    result.map_err(|source| ResolverError::File { file: HOSTS, source })
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

/// Without servers if it names none, and then only the hosts file answers.
pub(super) fn settings() -> Settings {
    let settings = fs::read(RESOLV_CONF).map_err(NetError::from).and_then(|text| Settings::parse(&text));
    settings.unwrap_or_else(|error| {
        tracing::warn!(%error, "{RESOLV_CONF} names no usable server; only {HOSTS} answers");
        Settings::default()
    })
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
