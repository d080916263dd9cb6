//! egress: see the README.
pub mod kernel;
pub mod netns;
pub mod socket;
