//! HTTP/2 as a forwarder needs it (RFC 9113): heads that become those of HTTP/1.1 as they are read, content that is passed on as it
//! comes, and few writes for many streams. What moves a connection's bytes is one task's; those that use its streams are others, on the
//! same thread.

mod connection;
mod content;
mod core;
mod error;
mod frame;
mod handles;
mod heads;
pub mod hpack;
mod receive;
mod send;
mod stream;
mod switched;
mod unread;

pub use self::{
    connection::{Connection, Link},
    content::{Received, Sending},
    core::{Config, Role},
    error::{By, Error, Reason},
    handles::{Reader, Writer},
    heads::{Asked, Requested},
    switched::Switched,
    unread::Room,
};

#[cfg(test)]
mod tests;
