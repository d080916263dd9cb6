//! egress: see the README.
