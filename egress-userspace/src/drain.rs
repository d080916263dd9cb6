//! How client connections are brought to an end.

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
