//! Options that limit what is taken of applications.

use std::time::Duration;

use clap::Args;
use egress::{http1, limits::Limits};

use super::parse_duration;

/// There is room for so many fields while a head is read that has more than usual.
const MOST_FIELDS: usize = 65536;

/// What is taken of applications.
#[derive(Debug, Args)]
pub(crate) struct LimitOptions {
    /// Connections of applications at the same time, and requests over HTTP/2. The first request of one more is answered 503.
    /// Without it: 50,000. Never more than half as many as there may be open descriptors.
    #[arg(long, value_name = "N", value_parser = parse_count)]
    max_connections: Option<usize>,
    /// The same of one pod, which is of one network namespace.
    #[arg(long, value_name = "N", default_value_t = Limits::default().connections_per_pod, value_parser = parse_count)]
    max_connections_per_pod: usize,
    /// Longest head of a request, which else is answered 431, and of a response, in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().head.head, value_parser = parse_count)]
    max_head_bytes: usize,
    /// Most fields in a head, likewise; 65536 at most.
    #[arg(long, value_name = "N", default_value_t = Limits::default().head.fields, value_parser = parse_fields)]
    max_head_fields: usize,
    /// How long the head of a request may take, from its first byte to its last; then it is answered 408. Over HTTP/2 the
    /// connection ends, and its beginning has this time as well.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_limit)]
    head_timeout: Duration,
    /// How long a connection of an application may be idle, or an exchange on it may go without a byte from the application or to it.
    #[arg(long, value_name = "TIME", default_value = "60m", value_parser = parse_limit)]
    idle_timeout: Duration,
}

impl LimitOptions {
    /// The limits, where so many descriptors may be open.
    pub(crate) fn limits(&self, descriptors: usize) -> Limits {
        // The other half is for upstream connections.
        let most = (descriptors / 2).max(1);
        if let Some(wanted) = self.max_connections.filter(|wanted| *wanted > most) {
            tracing::warn!(
                "--max-connections {wanted} needs twice as many descriptors, and {descriptors} is their limit"
            );
        }
        Limits {
            connections: self.max_connections.unwrap_or(Limits::default().connections).min(most),
            connections_per_pod: self.max_connections_per_pod,
            heads: Limits::default().heads.max(self.max_head_bytes),
            heads_per_pod: Limits::default().heads_per_pod.max(self.max_head_bytes),
            head: http1::Limits { head: self.max_head_bytes, fields: self.max_head_fields },
            head_time: self.head_timeout,
            idle: self.idle_timeout,
        }
    }
}

/// Parses a number of at least one.
fn parse_count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("it must be at least 1".to_owned()),
        Ok(count) => Ok(count),
        Err(_) => Err(format!("{text} is not a number")),
    }
}

/// Parses a number of fields.
fn parse_fields(text: &str) -> Result<usize, String> {
    match parse_count(text)? {
        count if count > MOST_FIELDS => Err(format!("it must be at most {MOST_FIELDS}")),
        count => Ok(count),
    }
}

/// Parses a time in which something must be possible.
pub(super) fn parse_limit(text: &str) -> Result<Duration, String> {
    let limit = parse_duration(text)?;
    if limit.is_zero() { Err("it must be longer than 0, as nothing could be done in it".to_owned()) } else { Ok(limit) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_have_limits() {
        assert!(parse_limit("0s").is_err() && parse_limit("1ms").is_ok());
        assert!(parse_count("0").is_err() && parse_count("many").is_err() && parse_count("1").is_ok());
        assert!(parse_fields("0").is_err() && parse_fields("65536").is_ok());
        assert_eq!(parse_fields("65537"), Err("it must be at most 65536".to_owned()));
    }
}
