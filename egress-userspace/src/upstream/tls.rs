//! From a rule's TLS settings to a client that verifies what they say, and says what was wrong.
//!
//! ```text
//! settings -> material (files), roots -> originator (clients, shared) -> handshake -> a stream
//!                                   verify: whom to trust            |
//!                    certificate, witness: the facts -> explain, refusal: a cause and a text
//!                    observe: the same for those who only want to look
//! ```

mod batch;
mod certificate;
mod explain;
mod handshake;
mod material;
mod observe;
mod originator;
mod read_ahead;
mod refusal;
mod roots;
mod sessions;
mod stream;
mod verify;
mod witness;

use rustls::crypto::aws_lc_rs;

pub use self::{
    certificate::{Dated, Facts, Validity, date, listed, rfc3339},
    handshake::{HTTP2, handshake},
    material::TlsError,
    observe::{Observation, observe, observe_anyone},
    originator::{Clients, Originator, Workshop},
    refusal::{Refusal, alert_name},
    roots::{RootsError, root_places},
    stream::TlsStream,
    verify::PinMismatch,
    witness::{Seen, ServerHello, Witness, Witnessed},
};

/// Has the random number generator seed itself for the current thread: the first request should not wait for that. Where aws-lc was
/// built with jitter entropy (see `.cargo/config.toml`) it takes 30 ms.
pub fn warm_up() {
    // A failure comes back with the first handshake, where somebody can be told.
    let _ = aws_lc_rs::default_provider().secure_random.fill(&mut [0]);
}
