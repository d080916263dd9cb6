//! Our own annotations on a `DestinationRule`: what Istio has no field for.

use std::{collections::BTreeMap, fmt};

use base64::{Engine as _, prelude::BASE64_STANDARD};

use super::{
    Errors, Located,
    decode::{choose, closest},
};

/// Annotations under this prefix are ours; whatever is there must be known.
const PREFIX: &str = "egress.dev/";

/// What ours on one `DestinationRule` ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Annotations {
    /// Of TLS.
    pub tls: Requirements,
}

/// What TLS must be beyond what Istio can say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Requirements {
    /// The oldest version that will do.
    pub min_version: TlsVersion,
    /// The public keys of which the verified chain must have one; none are pinned if it is empty.
    pub pins: Vec<Pin>,
    /// What follows if it has none of them.
    pub pins_mode: PinsMode,
    /// Whether only key exchanges are offered that quantum computers do not break.
    pub post_quantum: bool,
}

/// A version of TLS that is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TlsVersion {
    /// TLS 1.2.
    #[default]
    V12,
    /// TLS 1.3.
    V13,
}

/// What follows if no pin matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PinsMode {
    /// The request fails.
    #[default]
    Enforce,
    /// It is logged and counted.
    Report,
}

/// The SHA-256 of a public key (SubjectPublicKeyInfo in DER), as in RFC 7469 section 2.4; displays as `sha256/` and base64.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pin(pub [u8; 32]);

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256/{}", BASE64_STANDARD.encode(self.0))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Takes an annotation's text in, or says what is wrong with it.
type Parse = fn(&mut Annotations, &str) -> Result<(), String>;

/// Every annotation that there is.
const KNOWN: [(&str, Parse); 4] = [
    ("min-tls", |annotations, text| {
        // Another number is no slip of the pen that one of these could be meant by.
        annotations.tls.min_version = match text {
            "1.2" => TlsVersion::V12,
            "1.3" => TlsVersion::V13,
            _ => return Err(format!("unknown value {text:?}; use 1.2 or 1.3")),
        };
        Ok(())
    }),
    ("pins", |annotations, text| pins(text).map(|pins| annotations.tls.pins = pins)),
    ("pins-mode", |annotations, text| {
        let modes = [("enforce", PinsMode::Enforce), ("report", PinsMode::Report)];
        choose(text, &modes, &[]).map(|mode| annotations.tls.pins_mode = mode)
    }),
    ("require-post-quantum", |annotations, text| {
        choose(text, &[("true", true), ("false", false)], &[]).map(|required| annotations.tls.post_quantum = required)
    }),
];

/// What the annotations of a resource ask for. Ours are refused by name if they are not known, or not on a
/// `DestinationRule`.
pub(super) fn decode(kind: &str, written: &BTreeMap<String, Located<String>>, errors: &mut Errors) -> Annotations {
    let mut annotations = Annotations::default();
    for (name, value) in written {
        let Some(name) = name.strip_prefix(PREFIX) else { continue };
        let known = KNOWN.iter().find(|(known, _)| *known == name);
        let result = match known {
            Some(_) if kind != "DestinationRule" => {
                Err(format!("this annotation is for a DestinationRule, not for a {kind}"))
            }
            Some((_, parse)) => parse(&mut annotations, value.trim()),
            None => Err(match closest(name, KNOWN.iter().map(|(known, _)| known)) {
                Some(meant) => format!("unknown annotation; did you mean {PREFIX}{meant}?"),
                None => "unknown annotation; egress has none of this name".to_owned(),
            }),
        };
        if let Err(message) = result {
            errors.at(value, message);
        }
    }
    if let Some(mode) = written.get("egress.dev/pins-mode")
        && !written.contains_key("egress.dev/pins")
    {
        errors.at(mode, "there are no pins for this mode; add egress.dev/pins, or remove it");
    }
    annotations
}

/// Pins with commas or blanks between them, each with or without `sha256/` in front.
fn pins(text: &str) -> Result<Vec<Pin>, String> {
    let words = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty());
    let pins: Vec<Pin> = words.map(pin).collect::<Result<_, _>>()?;
    if pins.is_empty() { Err("no pin in it; give at least one, or remove the annotation".to_owned()) } else { Ok(pins) }
}

fn pin(text: &str) -> Result<Pin, String> {
    let encoded = text.strip_prefix("sha256/").unwrap_or(text);
    let bytes = BASE64_STANDARD.decode(encoded).ok().and_then(|bytes| bytes.try_into().ok());
    bytes.map(Pin).ok_or_else(|| {
        format!("{text:?} is not a pin: the SHA-256 of a public key (SubjectPublicKeyInfo), 44 characters of base64")
    })
}
