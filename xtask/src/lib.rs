//! Compiles the kernel side of egress: one piece of code for `egress-userspace`'s build script and for `cargo xtask`.
//!
//! Nothing here installs anything. What is missing is reported with the commands that `cargo xtask setup` would run.

pub mod ebpf;
pub mod exec;
pub mod recipe;
pub mod rustc;
