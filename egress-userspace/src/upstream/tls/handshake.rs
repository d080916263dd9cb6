//! The handshake itself.

use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::{Originator, Refusal, TlsStream, read_ahead::ReadAhead, witness::Witnessed};
use crate::upstream::{Offer, tunnel::Way};

/// HTTP/2 and HTTP/1.1 by their names in ALPN.
pub const HTTP2: &[u8] = b"h2";
pub(super) const HTTP1: &[u8] = b"http/1.1";

/// For the handshake as a whole.
const LIMIT: Duration = Duration::from_secs(10);

/// Originates TLS on a way to the origin, and verifies who is at its other end.
///
/// # Errors
/// TLS cannot be made, or the peer is not who it should be. Nothing but the handshake has been sent then.
pub async fn handshake(
    originator: &Originator,
    server_name: ServerName<'static>,
    offer: Offer,
    way: Way,
) -> Result<TlsStream, Refusal> {
    let (stream, witness) = Witnessed::new(ReadAhead::new(way));
    let connector = TlsConnector::from(originator.config().clone());
    let connecting = match offer {
        Offer::Both => connector.connect(server_name, stream),
        Offer::Http2 => connector.with_alpn(vec![HTTP2.to_vec()]).connect(server_name, stream),
        Offer::Http1 => connector.with_alpn(vec![HTTP1.to_vec()]).connect(server_name, stream),
    };
    match timeout(LIMIT, connecting).await {
        Ok(Ok(mut stream)) => {
            stream.get_mut().0.release();
            Ok(TlsStream::new(stream))
        }
        Ok(Err(error)) => Err(Refusal::of_handshake(&error, &witness.seen(), originator.offer())),
        Err(_) => Err(Refusal::of_timeout(LIMIT, &witness.seen())),
    }
}
