//! Tasks shared with build scripts.
