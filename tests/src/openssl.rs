//! `openssl s_server` as the origin: for TLS as nobody should speak it any more, but some do.

use anyhow::{Context, Result};

use crate::{
    pki::Identity,
    process::{Command, Running},
    testbed::TestBed,
};

/// A running `openssl s_server`. It answers any request with a page about the connection.
#[derive(Debug)]
pub struct OpenSslServer(Running);

impl OpenSslServer {
    /// Starts it on port 443 of the IPv4 address of `host`, with further arguments such as `-tls1_1`.
    pub fn spawn(bed: &TestBed, host: &str, identity: &Identity, arguments: &[&str]) -> Result<Self> {
        let key_form = if identity.key_file.extension().is_some_and(|ending| ending == "der") { "DER" } else { "PEM" };
        let command = Command::new("openssl")
            .args(["s_server", "-www", "-accept", &bed.sockets(host, 443)[0].to_string()])
            .arg("-cert")
            .arg(&identity.certificate_file)
            .arg("-key")
            .arg(&identity.key_file)
            .args(["-keyform", key_form])
            .args(arguments)
            .in_netns(bed.origin())?;
        command.spawn().map(Self).context("openssl is missing")
    }

    /// Waits until it accepts connections.
    pub fn wait_until_ready(&self) -> Result<()> {
        self.0.wait_for_output("ACCEPT").with_context(|| self.0.stderr().join("\n"))
    }
}
