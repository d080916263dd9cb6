//! What a request is for (RFC 9112 section 3.2).

use bytes::Bytes;
use http::{Method, Uri, uri::PathAndQuery};

use super::Fault;
use crate::head::end_of_authority;

/// The longest target, in bytes: `http` has none that is longer.
pub(super) const MAX: usize = u16::MAX as usize - 1;

/// The target in this head as a URI, of which routes see path and query. What is sent on are the bytes that came.
///
/// # Errors
/// It is malformed, or too long.
pub fn uri(head: &Bytes, target: &[u8], method: &Method) -> Result<Uri, Fault> {
    if target.len() > MAX {
        return Err(Fault::TargetTooLong(MAX));
    }
    if target.starts_with(b"/") {
        return Ok(path(head, target)?.into());
    }
    let uri = match Uri::from_maybe_shared(head.slice_ref(target)) {
        Ok(uri) => uri,
        Err(_) => absolute(head, target)?,
    };
    // A path without its slash would look like a host, which only CONNECT has alone (RFC 9112 section 3.2.3).
    let is_host = uri.authority().is_some() && uri.scheme().is_none();
    if is_host && *method != Method::CONNECT { Err(Fault::Target) } else { Ok(uri) }
}

/// An absolute target, whose path can be anything that one alone can be.
fn absolute(head: &Bytes, target: &[u8]) -> Result<Uri, Fault> {
    let (authority, rest) = target.split_at(end_of_authority(target).ok_or(Fault::Target)?);
    let mut parts = Uri::try_from(authority).map_err(|_| Fault::Target)?.into_parts();
    parts.path_and_query = Some(path(head, rest)?);
    Uri::from_parts(parts).map_err(|_| Fault::Target)
}

/// Path and query, with what comes after them.
fn path(head: &Bytes, target: &[u8]) -> Result<PathAndQuery, Fault> {
    // A fragment has no place in a target. What there is goes on, but is nothing that a server takes for a part of the path.
    let end = memchr::memchr(b'#', target).unwrap_or(target.len());
    let (target, fragment) = target.split_at(end);
    if fragment.iter().any(|byte| *byte <= b' ' || *byte == 0x7f) {
        // HTTP/2 could have such. In HTTP/1.1 the target would end there.
        return Err(Fault::Target);
    }
    if let Ok(path) = PathAndQuery::from_maybe_shared(head.slice_ref(target)) {
        return Ok(path);
    }
    // Some characters a URI has encoded only.
    let mut encoded = String::with_capacity(target.len() + 8);
    for &byte in target {
        if matches!(byte, b'<' | b'>' | b'`' | b'\\' | b'^' | b'"' | b'{' | b'}' | 0x80..) {
            encoded.push_str(&format!("%{byte:02X}"));
        } else {
            encoded.push(char::from(byte));
        }
    }
    if encoded.len() > MAX {
        return Err(Fault::TargetTooLong(MAX));
    }
    encoded.parse().map_err(|_| Fault::Target)
}
