//! Annotations of our own on a `DestinationRule`, for what Istio has no field for.

use std::collections::BTreeMap;

use super::{
    Code, Errors, Located,
    decode::{closest, join},
};

/// Annotations under this prefix are ours; whatever is there must be known.
const PREFIX: &str = "egress.dev/";

const KNOWN: [&str; 4] = [
    "egress.dev/strip-forwarded-headers",
    "egress.dev/drop-secure-cookie-attribute",
    "egress.dev/rewrite-location",
    "egress.dev/preconnect",
];

/// More connections than this are not worth their memory before anyone has asked for them.
const MAX_PRECONNECT: u16 = 64;

/// What they say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Annotations {
    /// `strip-forwarded-headers`: `X-Forwarded-*` and `Forwarded` are removed from requests.
    pub strip_forwarded_headers: bool,
    /// `drop-secure-cookie-attribute`: `Secure` is removed from cookies.
    pub drop_secure_cookie_attribute: bool,
    /// `rewrite-location`: `Location: https://` becomes `http://`.
    pub rewrite_location: bool,
    /// `preconnect`: how many connections are made before they are needed.
    pub preconnect: u16,
}

/// Reads ours among `annotations`, which are at `path`.
pub(super) fn decode(
    annotations: &BTreeMap<String, Located<String>>,
    is_destination_rule: bool,
    path: &str,
    errors: &mut Errors,
) -> Annotations {
    let mut found = Annotations::default();
    for (name, value) in annotations.iter().filter(|(name, _)| name.starts_with(PREFIX)) {
        let result = match name.strip_prefix(PREFIX) {
            _ if !KNOWN.contains(&name.as_str()) => Err(Code::UnknownAnnotation.because(why_unknown(name))),
            _ if !is_destination_rule => {
                Err(Code::UnknownAnnotation.because("this annotation belongs on a DestinationRule; move it there"))
            }
            Some("strip-forwarded-headers") => boolean(value).map(|is| found.strip_forwarded_headers = is),
            Some("drop-secure-cookie-attribute") => boolean(value).map(|is| found.drop_secure_cookie_attribute = is),
            Some("rewrite-location") => boolean(value).map(|is| found.rewrite_location = is),
            _ => count(value).map(|count| found.preconnect = count),
        };
        if let Err(message) = result {
            errors.push(value.location.clone(), &join(path, name), message);
        }
    }
    found
}

fn why_unknown(name: &str) -> String {
    match closest(name, KNOWN.iter()) {
        Some(meant) => format!("unknown annotation; did you mean `{meant}`?"),
        None => "unknown annotation; egress has none of this name".to_owned(),
    }
}

fn boolean(text: &str) -> Result<bool, super::diagnostic::Message> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(format!("{text:?} is neither \"true\" nor \"false\"; use one of them, in quotes").into()),
    }
}

fn count(text: &str) -> Result<u16, super::diagnostic::Message> {
    match text.parse() {
        Ok(count) if count <= MAX_PRECONNECT => Ok(count),
        _ => {
            Err(format!("{text:?} is not a number of connections; use \"0\" to \"{MAX_PRECONNECT}\", in quotes").into())
        }
    }
}
