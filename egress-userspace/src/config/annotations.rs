//! Our own annotations on a `DestinationRule`: what Istio has no field for.

use std::{collections::BTreeMap, fmt};

use base64::{Engine as _, prelude::BASE64_STANDARD};

use super::{
    Code, Errors, Located,
    decode::{choose, closest},
    diagnostic::Message,
};

/// Annotations under this prefix are ours; whatever is there must be known.
const PREFIX: &str = "egress.dev/";

/// More connections than this are not worth their memory before anyone has asked for them.
const MAX_PRECONNECT: u16 = 64;

/// What they say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Annotations {
    /// What TLS must be.
    pub requirements: Requirements,
    /// `strip-forwarded-headers`: `X-Forwarded-*` and `Forwarded` are removed from requests.
    pub strip_forwarded_headers: bool,
    /// `drop-secure-cookie-attribute`: `Secure` is removed from cookies.
    pub drop_secure_cookie_attribute: bool,
    /// `rewrite-location`: `Location: https://` becomes `http://`.
    pub rewrite_location: bool,
    /// `preconnect`: how many connections are made before they are needed.
    pub preconnect: u16,
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
type Parse = fn(&mut Annotations, &str) -> Result<(), Message>;

/// Every annotation that there is, without the prefix.
const KNOWN: [(&str, Parse); 8] = [
    ("min-tls", |found, text| {
        // Another number is no slip of the pen that one of these could be meant by.
        found.requirements.min_version = match text {
            "1.2" => TlsVersion::V12,
            "1.3" => TlsVersion::V13,
            _ => return Err(format!("unknown value {text:?}; use 1.2 or 1.3").into()),
        };
        Ok(())
    }),
    ("pins", |found, text| pins(text).map(|pins| found.requirements.pins = pins)),
    ("pins-mode", |found, text| {
        let modes = [("enforce", PinsMode::Enforce), ("report", PinsMode::Report)];
        found.requirements.pins_mode = choose(text, &modes, &[])?;
        Ok(())
    }),
    ("require-post-quantum", |found, text| boolean(text).map(|is| found.requirements.post_quantum = is)),
    ("strip-forwarded-headers", |found, text| boolean(text).map(|is| found.strip_forwarded_headers = is)),
    ("drop-secure-cookie-attribute", |found, text| boolean(text).map(|is| found.drop_secure_cookie_attribute = is)),
    ("rewrite-location", |found, text| boolean(text).map(|is| found.rewrite_location = is)),
    ("preconnect", |found, text| count(text).map(|count| found.preconnect = count)),
];

/// Reads ours among `annotations`. They are refused by name if they are not known, or not on a `DestinationRule`.
pub(super) fn decode(
    annotations: &BTreeMap<String, Located<String>>,
    is_destination_rule: bool,
    errors: &mut Errors,
) -> Annotations {
    let mut found = Annotations::default();
    for (name, value) in annotations {
        let Some(name) = name.strip_prefix(PREFIX) else { continue };
        let result = match KNOWN.iter().find(|(known, _)| *known == name) {
            Some(_) if !is_destination_rule => {
                Err(Code::UnknownAnnotation.because("this annotation belongs on a DestinationRule; move it there"))
            }
            Some((_, parse)) => parse(&mut found, value.trim()),
            None => Err(Code::UnknownAnnotation.because(match closest(name, KNOWN.iter().map(|(known, _)| known)) {
                Some(meant) => format!("unknown annotation; did you mean `{PREFIX}{meant}`?"),
                None => "unknown annotation; egress has none of this name".to_owned(),
            })),
        };
        if let Err(message) = result {
            errors.at(value, message);
        }
    }
    if let Some(mode) = annotations.get("egress.dev/pins-mode")
        && !annotations.contains_key("egress.dev/pins")
    {
        errors.at(
            mode,
            Code::Contradiction.because("there are no pins for this mode; add egress.dev/pins, or remove it"),
        );
    }
    found
}

fn boolean(text: &str) -> Result<bool, Message> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(format!("{text:?} is neither \"true\" nor \"false\"; use one of them, in quotes").into()),
    }
}

fn count(text: &str) -> Result<u16, Message> {
    match text.parse() {
        Ok(count) if count <= MAX_PRECONNECT => Ok(count),
        _ => {
            Err(format!("{text:?} is not a number of connections; use \"0\" to \"{MAX_PRECONNECT}\", in quotes").into())
        }
    }
}

/// Pins with commas or blanks between them, each with or without `sha256/` in front.
fn pins(text: &str) -> Result<Vec<Pin>, Message> {
    let words = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty());
    let pins: Vec<Pin> = words.map(pin).collect::<Result<_, _>>()?;
    if pins.is_empty() { Err("no pin in it; give at least one, or remove the annotation".into()) } else { Ok(pins) }
}

fn pin(text: &str) -> Result<Pin, Message> {
    let encoded = text.strip_prefix("sha256/").unwrap_or(text);
    let bytes = BASE64_STANDARD.decode(encoded).ok().and_then(|bytes| bytes.try_into().ok());
    bytes.map(Pin).ok_or_else(|| {
        format!("{text:?} is not a pin: the SHA-256 of a public key (SubjectPublicKeyInfo), 44 characters of base64")
            .into()
    })
}
