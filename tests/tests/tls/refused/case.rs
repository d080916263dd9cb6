//! An origin that is not to be spoken to.

use std::net::TcpStream;

use anyhow::Result;
use harness::{
    TestBed,
    nginx::Site,
    openssl::OpenSslServer,
    pki::{Identity, Pki},
    raw_server::RawServer,
};

/// An origin that is not to be spoken to, and how we call what is wrong with it.
pub struct Case {
    pub host: &'static str,
    pub origin: Origin,
    /// The `tls` block of its rule; files are relative to the configuration.
    pub tls: &'static str,
    /// The annotations of its rule.
    pub annotations: &'static str,
    pub status: u16,
    /// The proxy error type.
    pub error: &'static str,
    /// The label in the log and of the metric.
    pub cause: &'static str,
    /// What the text must name.
    pub says: &'static [&'static str],
}

/// What an origin is made of.
pub enum Origin {
    /// nginx, which all of these share.
    Nginx(fn(&Pki, &str) -> Result<Identity>),
    /// The same, in clear.
    NginxInClear,
    /// A server of its own, with these arguments.
    OpenSsl(fn(&Pki, &str) -> Result<Identity>, &'static [&'static str]),
    /// Something that is not even a server of TLS.
    Raw(fn(TcpStream) -> Result<()>),
}

impl Case {
    /// The host as a site of nginx, if it is one.
    pub fn site(&self, bed: &TestBed) -> Result<Option<Site>> {
        Ok(match self.origin {
            Origin::Nginx(certificate) => Some(Site::new(&[self.host], certificate(bed.pki(), self.host)?)),
            Origin::NginxInClear => Some(Site::new(&[self.host], bed.pki().server(&[self.host])?).in_clear()),
            Origin::OpenSsl(..) | Origin::Raw(_) => None,
        })
    }

    /// The host as a server of openssl, if it is one.
    pub fn openssl(&self, bed: &TestBed) -> Result<Option<OpenSslServer>> {
        let Origin::OpenSsl(certificate, arguments) = self.origin else { return Ok(None) };
        let client_ca = bed.pki().client_ca_file().display().to_string();
        let arguments: Vec<_> = arguments.iter().map(|argument| argument.replace("@CLIENT_CA@", &client_ca)).collect();
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        OpenSslServer::spawn(bed, self.host, &certificate(bed.pki(), self.host)?, &arguments).map(Some)
    }

    /// The host as a server of bare TCP, if it is one.
    pub fn raw(&self, bed: &TestBed) -> Result<Option<RawServer>> {
        let Origin::Raw(serve) = self.origin else { return Ok(None) };
        RawServer::start(bed.origin(), &bed.sockets(self.host, 443), serve).map(Some)
    }
}
