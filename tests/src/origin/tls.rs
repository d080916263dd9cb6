//! The server side of TLS and what it learns from a client.

use std::sync::Arc;

use anyhow::Result;
use rustls::{
    HandshakeKind, RootCertStore, ServerConfig, ServerConnection, SupportedProtocolVersion,
    crypto::aws_lc_rs,
    server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
    version,
};
use rustls_pki_types::CertificateDer;

use crate::pki::Identity;

/// How a port speaks TLS.
#[derive(Clone, Debug)]
pub struct ServerTls {
    identity: Identity,
    by_name: Vec<(String, Identity)>,
    versions: Vec<&'static SupportedProtocolVersion>,
    alpn: Vec<Vec<u8>>,
    client_ca: Option<CertificateDer<'static>>,
    resumption: bool,
}

impl ServerTls {
    /// With one certificate, TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1.
    pub fn new(identity: Identity) -> Self {
        Self {
            identity,
            by_name: Vec::new(),
            versions: vec![&version::TLS13, &version::TLS12],
            alpn: vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            client_ca: None,
            resumption: true,
        }
    }

    /// Shows another certificate to clients that ask for this name.
    #[must_use]
    pub fn for_name(mut self, name: &str, identity: Identity) -> Self {
        self.by_name.push((name.to_owned(), identity));
        self
    }

    /// Without TLS 1.3.
    #[must_use]
    pub fn tls12_only(mut self) -> Self {
        self.versions = vec![&version::TLS12];
        self
    }

    /// With HTTP/1.1 alone.
    #[must_use]
    pub fn http1_only(self) -> Self {
        self.alpn(&["http/1.1"])
    }

    /// With these protocols. None: as a server that has never heard of ALPN.
    #[must_use]
    pub fn alpn(mut self, protocols: &[&str]) -> Self {
        self.alpn = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        self
    }

    /// Demands a certificate of the client, signed by this authority.
    #[must_use]
    pub fn client_certificates_of(mut self, authority: CertificateDer<'static>) -> Self {
        self.client_ca = Some(authority);
        self
    }

    /// Without session tickets.
    #[must_use]
    pub fn without_resumption(mut self) -> Self {
        self.resumption = false;
        self
    }

    pub(super) fn config(&self) -> Result<Arc<ServerConfig>> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder =
            ServerConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(&self.versions)?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots.add(authority.clone())?;
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build()?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let certified = |identity: &Identity| -> Result<Arc<CertifiedKey>> {
            let (chain, key) = identity.for_rustls();
            Ok(Arc::new(CertifiedKey::from_der(chain, key, &provider)?))
        };
        let by_name = self
            .by_name
            .iter()
            .map(|(name, identity)| Ok((name.clone(), certified(identity)?)))
            .collect::<Result<Vec<_>>>()?;
        let mut config = builder.with_cert_resolver(Arc::new(ByName { default: certified(&self.identity)?, by_name }));
        config.alpn_protocols.clone_from(&self.alpn);
        if !self.resumption {
            config.send_tls13_tickets = 0;
            config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        } else {
            config.ticketer = aws_lc_rs::Ticketer::new()?;
        }
        Ok(Arc::new(config))
    }
}

#[derive(Debug)]
struct ByName {
    default: Arc<CertifiedKey>,
    by_name: Vec<(String, Arc<CertifiedKey>)>,
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let special = self.by_name.iter().find(|(name, _)| hello.server_name() == Some(name));
        Some(Arc::clone(special.map_or(&self.default, |(_, key)| key)))
    }
}

/// What the origin learned in the handshake.
#[derive(Clone, Debug)]
pub struct TlsSeen {
    /// The name that the client asked for.
    pub sni: Option<String>,
    /// The protocol that was agreed on.
    pub alpn: Option<String>,
    /// `TLSv1_2` or `TLSv1_3`.
    pub version: String,
    /// The key exchange, such as `X25519MLKEM768`.
    pub group: String,
    /// Whether an earlier session was resumed.
    pub resumed: bool,
    /// The client's certificates.
    pub client_certificates: Vec<CertificateDer<'static>>,
}

impl TlsSeen {
    pub(super) fn of(connection: &ServerConnection) -> Self {
        let alpn = connection.alpn_protocol().map(|protocol| String::from_utf8_lossy(protocol).into_owned());
        Self {
            sni: connection.server_name().map(ToOwned::to_owned),
            alpn,
            version: connection.protocol_version().map(|version| format!("{version:?}")).unwrap_or_default(),
            group: connection
                .negotiated_key_exchange_group()
                .map(|group| format!("{:?}", group.name()))
                .unwrap_or_default(),
            resumed: connection.handshake_kind() == Some(HandshakeKind::Resumed),
            client_certificates: connection.peer_certificates().unwrap_or_default().to_vec(),
        }
    }
}
