//! A handshake for the sake of what it shows. Nothing but the handshake is ever sent: the connection does not leave this
//! module.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};

use rustls::{
    DigitallySignedStruct, Error, ProtocolVersion, SignatureScheme,
    client::{
        ResolvesClientCert, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::{
    io::{AsyncRead as _, ReadBuf},
    time::timeout,
};

use super::{Originator, PinMismatch, Refusal, TlsStream, certificate::Facts, handshake, verify::PeerVerifier};
use crate::upstream::{Cause, Offer, TlsInfo, tunnel::Way};

/// How long an origin has for its opinion of a client certificate: with TLS 1.3 it comes after the handshake, if at all.
const OPINION: Duration = Duration::from_secs(2);

/// What an origin has shown.
#[derive(Debug)]
pub struct Observation {
    /// What was agreed on, unless the handshake failed.
    pub agreed: Option<TlsInfo>,
    /// The application protocol that the origin has picked (ALPN).
    pub protocol: Option<String>,
    /// The origin's certificate and those that it has sent along, as far as they can be read; with whether it is verified by
    /// them.
    pub certificates: Vec<(Facts, bool)>,
    /// Whether it has asked for a client certificate.
    pub asks_for_certificate: bool,
    /// What is wrong with its keys, where pins are only to be reported.
    pub unenforced_pins: Option<PinMismatch>,
    /// Why nothing is sent to it.
    pub refusal: Option<Refusal>,
}

/// Makes the handshake that a request would make, but for resumption: a resumed session shows no certificate.
pub async fn observe(originator: &Originator, server_name: ServerName<'static>, offer: Offer, way: Way) -> Observation {
    let client = originator.config().client_auth_cert_resolver.clone();
    let observer = Arc::new(Observer::new(originator.verifier().clone(), Some(client)));
    let mut observation = observer.clone().observe(originator, server_name, offer, way).await;
    if observation.refusal.is_none() {
        observation.unenforced_pins = originator.unenforced_pins(Some(&observer.shown()));
    }
    observation
}

/// Makes a handshake with whoever it is, without a client certificate: to see what an origin has besides a certificate that is
/// refused.
pub async fn observe_anyone(
    originator: &Originator,
    server_name: ServerName<'static>,
    offer: Offer,
    way: Way,
) -> Observation {
    let anyone = PeerVerifier { algorithms: originator.verifier().algorithms, expected: None };
    let observer = Arc::new(Observer::new(Arc::new(anyone), None));
    observer.observe(originator, server_name, offer, way).await
}

/// Stands between rustls and those who decide, and takes notes.
#[derive(Debug)]
struct Observer {
    verifier: Arc<PeerVerifier>,
    client: Option<Arc<dyn ResolvesClientCert>>,
    shown: Mutex<Vec<CertificateDer<'static>>>,
    asked: AtomicBool,
}

impl Observer {
    fn new(verifier: Arc<PeerVerifier>, client: Option<Arc<dyn ResolvesClientCert>>) -> Self {
        Self { verifier, client, shown: Mutex::default(), asked: AtomicBool::new(false) }
    }

    fn shown(&self) -> Vec<CertificateDer<'static>> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn observe(
        self: Arc<Self>,
        originator: &Originator,
        server_name: ServerName<'static>,
        offer: Offer,
        way: Way,
    ) -> Observation {
        let mut config = (**originator.config()).clone();
        config.resumption = Resumption::disabled();
        config.client_auth_cert_resolver = self.clone();
        config.dangerous().set_certificate_verifier(self.clone());
        let made = handshake(&originator.with_config(config), server_name, offer, way).await;

        let asks_for_certificate = self.asked.load(Ordering::Relaxed);
        let (mut agreed, mut protocol, mut refusal) = (None, None, None);
        match made {
            Ok(mut stream) => {
                let has_certificate = self.client.as_ref().is_some_and(|client| client.has_certs());
                let session = stream.session();
                let is_tls13 = session.protocol_version() == Some(ProtocolVersion::TLSv1_3);
                agreed = Some(TlsInfo::of(session, has_certificate));
                protocol = session.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned());
                if asks_for_certificate && is_tls13 {
                    refusal = opinion(&mut stream, has_certificate).await.err();
                }
            }
            Err(reason) => refusal = Some(reason),
        }
        let shown = self.shown();
        let path = if refusal.is_none() { self.verifier.path(&shown, UnixTime::now()) } else { Vec::new() };
        let certificates = shown.iter().filter_map(|der| Some((Facts::read(der)?, path.contains(der)))).collect();
        Observation { agreed, protocol, certificates, asks_for_certificate, unenforced_pins: None, refusal }
    }
}

/// What the origin thinks of our certificate, or of its absence. One that is content sends tickets, or its first words of
/// HTTP/2, or nothing.
async fn opinion(stream: &mut TlsStream, has_certificate: bool) -> Result<(), Refusal> {
    let mut byte = [0];
    let mut buffer = ReadBuf::new(&mut byte);
    let answered = timeout(
        OPINION,
        poll_fn(|context| match Pin::new(&mut *stream).poll_read(context, &mut buffer) {
            Poll::Ready(result) => Poll::Ready(result.map(|()| !buffer.filled().is_empty())),
            Poll::Pending if stream.session().tls13_tickets_received() > 0 => Poll::Ready(Ok(true)),
            Poll::Pending => Poll::Pending,
        }),
    );
    let failure = match answered.await {
        Ok(Ok(true)) | Err(_) => return Ok(()),
        Ok(Ok(false)) => io::Error::from(io::ErrorKind::UnexpectedEof),
        Ok(Err(error)) => error,
    };
    Err(match failure.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(error) => Refusal::of_ended(error, has_certificate),
        None => Refusal::new(
            Cause::ConnectionLost,
            format!(
                "the origin asked for a client certificate, and after the handshake the connection broke: {failure}"
            ),
        ),
    })
}

impl ServerCertVerifier for Observer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        asked: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let all = std::iter::once(end_entity).chain(intermediates).map(|der| der.clone().into_owned());
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = all.collect();
        self.verifier.verify_server_cert(end_entity, intermediates, asked, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

impl ResolvesClientCert for Observer {
    fn resolve(&self, authorities: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.asked.store(true, Ordering::Relaxed);
        self.client.as_ref()?.resolve(authorities, schemes)
    }

    fn has_certs(&self) -> bool {
        self.client.as_ref().is_some_and(|client| client.has_certs())
    }
}
