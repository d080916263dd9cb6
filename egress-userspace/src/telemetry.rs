//! What the agent tells about itself: one record for each request, and counters.

pub mod access_log;
pub mod metrics;
