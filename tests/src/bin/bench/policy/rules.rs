//! The rules that are there.

use std::fmt::Write as _;

use anyhow::Result;
use harness::agent::ConfigDir;

use super::HOST;

/// How many hosts a file has.
const PER_FILE: u32 = 1000;

/// Rules for so many hosts, one of which changes.
pub(super) struct Rules {
    hosts: u32,
    changes: u32,
}

impl Rules {
    pub(super) fn new(hosts: u32) -> Self {
        Self { hosts, changes: 0 }
    }

    /// Writes all files.
    pub(super) fn write_all(&self, config: &ConfigDir) -> Result<()> {
        config.write(
            "host.yaml",
            &include_str!("../../../../seed/tls-origination.yaml").replace("edition.cnn.com", HOST),
        )?;
        (0..self.hosts.div_ceil(PER_FILE)).try_for_each(|file| self.write(config, file))
    }

    /// Changes the last host.
    pub(super) fn change(&mut self, config: &ConfigDir) -> Result<()> {
        self.changes += 1;
        self.write(config, (self.hosts - 1) / PER_FILE)
    }

    fn write(&self, config: &ConfigDir, file: u32) -> Result<()> {
        let mut text = String::new();
        for index in file * PER_FILE..self.hosts.min((file + 1) * PER_FILE) {
            // Of a network that is for benchmarks (RFC 2544), and the next ones: nobody connects there.
            let [_, b, c, d] = (index + 1).to_be_bytes();
            let [address, name] = [format!("198.{}.{c}.{d}", 18 + b), format!("host-{index}.example")];
            let target_port = if index + 1 == self.hosts { 443 + self.changes } else { 443 };
            write!(
                text,
                "apiVersion: networking.istio.io/v1\n\
                 kind: ServiceEntry\n\
                 metadata:\n  name: host-{index}\n\
                 spec:\n  hosts:\n  - '*.{name}'\n  addresses:\n  - {address}\n  ports:\n  \
                 - number: 80\n    name: http-port\n    protocol: HTTP\n    targetPort: {target_port}\n  resolution: NONE\n\
                 ---\n\
                 apiVersion: networking.istio.io/v1\n\
                 kind: DestinationRule\n\
                 metadata:\n  name: host-{index}\n\
                 spec:\n  host: '*.{name}'\n  trafficPolicy:\n    portLevelSettings:\n    \
                 - port:\n        number: 80\n      tls:\n        mode: SIMPLE\n\
                 ---\n"
            )?;
        }
        config.write(&format!("hosts-{file:04}.yaml"), &text)
    }
}
