//! How client connections are brought to an end.

use std::time::Duration;

/// How long a connection has to send the first request, which it was made for.
pub const GRACE: Duration = Duration::from_millis(250);

/// What connections are told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Drain {
    /// To go on.
    Off,
    /// To end with their next response, which says so (`Connection: close`). A client that is just sending a request on
    /// an idle connection still gets its answer.
    WithNextResponse,
    /// To end with the exchange under way, or at once if there is none.
    Now,
}
