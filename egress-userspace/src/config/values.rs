//! Single values: numbers, times, and the parts of HTTP.

use std::{path::PathBuf, time::Duration};

use http::{
    HeaderName, HeaderValue, StatusCode,
    uri::{Authority, PathAndQuery},
};

use super::{
    Cidr, Code, Errors, HostName, HostPattern, Message,
    decode::{Decode, Text},
    node::{Node, Value},
};

impl Decode for bool {
    fn decode(node: &Node, path: &str, errors: &mut Errors) -> Option<Self> {
        let Value::Bool(value) = node.value else {
            let message = format!("expected true or false, found {}", node.value);
            errors.push(node.location.clone(), path, Code::WrongType.because(message));
            return None;
        };
        Some(value)
    }
}

/// A port.
impl Decode for std::num::NonZeroU16 {
    fn decode(node: &Node, path: &str, errors: &mut Errors) -> Option<Self> {
        let message = match node.value {
            Value::Integer(number) => match u16::try_from(number).ok().and_then(Self::new) {
                Some(port) => return Some(port),
                None => Code::InvalidValue.because(format!("{number} is not a port; use 1 to 65535")),
            },
            ref other => Code::WrongType.because(format!("expected a port number, found {other}")),
        };
        errors.push(node.location.clone(), path, message);
        None
    }
}

/// A number of things.
impl Decode for u32 {
    fn decode(node: &Node, path: &str, errors: &mut Errors) -> Option<Self> {
        let message = match node.value {
            // Istio's numbers are signed, and so are its limits.
            Value::Integer(number) => match i32::try_from(number).ok().and_then(|number| Self::try_from(number).ok()) {
                Some(number) => return Some(number),
                None => Code::InvalidValue.because(format!("{number} is out of range; use 0 to {}", i32::MAX)),
            },
            ref other => Code::WrongType.because(format!("expected a whole number, found {other}")),
        };
        errors.push(node.location.clone(), path, message);
        None
    }
}

/// A share in percent, with a fraction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Percent(pub f64);

// No NaN is let in.
impl Eq for Percent {}

impl Decode for Percent {
    fn decode(node: &Node, path: &str, errors: &mut Errors) -> Option<Self> {
        let number = match node.value {
            Value::Integer(number) => number as f64,
            Value::Float(number) => number,
            ref other => {
                let message = Code::WrongType.because(format!("expected a number, found {other}"));
                errors.push(node.location.clone(), path, message);
                return None;
            }
        };
        if (0.0..=100.0).contains(&number) {
            return Some(Self(number));
        }
        errors.push(node.location.clone(), path, format!("{number} is not a percentage; use 0 to 100"));
        None
    }
}

impl Text for String {
    const EMPTY_IS_ABSENT: bool = true;

    fn parse(text: &str) -> Result<Self, Message> {
        Ok(text.to_owned())
    }
}

impl Text for PathBuf {
    const EMPTY_IS_ABSENT: bool = true;

    fn parse(text: &str) -> Result<Self, Message> {
        Ok(text.into())
    }
}

impl Text for HostName {
    const EMPTY_IS_ABSENT: bool = true;

    fn parse(text: &str) -> Result<Self, Message> {
        text.parse().map_err(|error: super::InvalidHostName| error.to_string().into())
    }
}

impl Text for HostPattern {
    fn parse(text: &str) -> Result<Self, Message> {
        text.parse().map_err(|error: super::InvalidHostName| error.to_string().into())
    }
}

impl Text for Cidr {
    fn parse(text: &str) -> Result<Self, Message> {
        text.parse().map_err(|error: super::InvalidCidr| error.to_string().into())
    }
}

/// A hundred years, in seconds: clocks overflow by what is much longer.
const LONGEST_TIME: f64 = 100.0 * 365.0 * 86400.0;

/// A time as Go and protobuf write it: numbers with units, such as `1h30m`, `10s` or `1.5ms`.
impl Text for Duration {
    fn parse(text: &str) -> Result<Self, Message> {
        let invalid = || Message::from(format!("{text:?} is not a time; write one such as 10s, 250ms, 1.5h or 1h30m"));
        let mut total = 0.0;
        let mut rest = text;
        while !rest.is_empty() || text.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(invalid)?;
            let number: f64 = rest[..digits].parse().map_err(|_| invalid())?;
            rest = &rest[digits..];
            let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
            total += number
                * match &rest[..unit] {
                    "h" => 3600.0,
                    "m" => 60.0,
                    "s" => 1.0,
                    "ms" => 1e-3,
                    "us" | "µs" => 1e-6,
                    "ns" => 1e-9,
                    _ => return Err(invalid()),
                };
            rest = &rest[unit..];
        }
        if total > LONGEST_TIME {
            return Err(format!("{text:?} is longer than a hundred years; write a shorter time, or none").into());
        }
        Self::try_from_secs_f64(total).map_err(|_| invalid())
    }
}

impl Text for HeaderName {
    fn parse(text: &str) -> Result<Self, Message> {
        text.parse().map_err(|_| format!("{text:?} is not the name of a header field").into())
    }
}

/// A value to set, without the variables that Envoy would put in.
impl Text for HeaderValue {
    const IS_SECRET: bool = true;

    fn parse(text: &str) -> Result<Self, Message> {
        if text.replace("%%", "").contains('%') {
            return Err(Code::Unsupported.because(
                "Envoy takes what is between two % for a variable, egress does not implement them; write a plain value, and %% for a \
                 percent sign",
            ));
        }
        Self::from_str(&text.replace("%%", "%")).map_err(|_| {
            let (length, is_field) = (text.chars().count(), "is not the value of a header field");
            if text.ends_with(['\n', '\r']) {
                format!("this text of {length} characters {is_field}, as it ends in a line break; write `|-` in place of `|`")
            } else {
                format!("this text of {length} characters {is_field}; use printable characters of ASCII, on one line")
            }
            .into()
        })
    }
}

impl Text for Authority {
    const EMPTY_IS_ABSENT: bool = true;

    fn parse(text: &str) -> Result<Self, Message> {
        let is_whole = |authority: &Self| {
            let has_host = !authority.host().trim_end_matches('.').is_empty();
            has_host && !text.contains('@') && (text.len() == authority.host().len() || authority.port_u16().is_some())
        };
        text.parse()
            .ok()
            .filter(is_whole)
            .ok_or_else(|| format!("{text:?} is not a host with or without a port").into())
    }
}

/// A path, or a part of one, of characters that a request can have there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathText(pub String);

impl Text for PathText {
    const EMPTY_IS_ABSENT: bool = true;

    fn parse(text: &str) -> Result<Self, Message> {
        match format!("/{text}").parse::<PathAndQuery>() {
            Ok(_) => Ok(Self(text.to_owned())),
            Err(_) => Err(format!("{text:?} has characters that no path has; write a blank as %20").into()),
        }
    }
}

impl Decode for StatusCode {
    fn decode(node: &Node, path: &str, errors: &mut Errors) -> Option<Self> {
        let message = match node.value {
            Value::Integer(number) => {
                let status = u16::try_from(number).ok().filter(|status| (200..600).contains(status));
                match status.and_then(|status| Self::from_u16(status).ok()) {
                    Some(status) => return Some(status),
                    None => Code::InvalidValue.because(format!("{number} is not a final status; use 200 to 599")),
                }
            }
            ref other => Code::WrongType.because(format!("expected a status, found {other}")),
        };
        errors.push(node.location.clone(), path, message);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_there_and_a_port_is_a_number() {
        for (text, is_good) in [
            ("a.com", true),
            ("a.com:80", true),
            ("[::1]:80", true),
            ("[::1]", true),
            ("a.com:", false),
            ("a.com:http", false),
            ("a.com:70000", false),
            (":80", false),
            (".", false),
            ("u@a.com", false),
            ("a b", false),
        ] {
            assert_eq!(Authority::parse(text).is_ok(), is_good, "{text}");
        }
    }

    #[test]
    fn times_are_written_as_in_go() {
        for (text, millis) in [
            ("0s", Some(0)),
            ("10s", Some(10_000)),
            ("1.5s", Some(1500)),
            ("250ms", Some(250)),
            ("1h30m", Some(5_400_000)),
            ("1m1ms", Some(60_001)),
            ("", None),
            ("10", None),
            ("s", None),
            ("-1s", None),
            ("1 s", None),
            ("1d", None),
            ("1..5s", None),
        ] {
            assert_eq!(Duration::parse(text).ok(), millis.map(Duration::from_millis), "{text}");
        }
    }
}
