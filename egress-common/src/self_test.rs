//! Where the agent connects to see whether it is intercepted.

use crate::{address::IpBytes, destination::Destination};

/// Intercepted whatever the rules say. It is a loopback address, so that nothing leaves the machine when the test fails,
/// and one that nobody has a use for.
pub const DESTINATION: Destination = Destination::new(IpBytes::from_v4([127, 101, 103, 114]), 80u16.to_be_bytes());

/// What the agent's listener answers there. Anything else comes from somebody else.
pub const ANSWER: &[u8] = b"egress: intercepted\n";
