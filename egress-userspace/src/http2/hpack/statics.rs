//! The table that everybody has (RFC 7541 appendix A).

/// Names are as HTTP/1.1 has them: they are sent by index only, and are given as they are here.
#[rustfmt::skip]
static FIELDS: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("Accept-Charset", ""),
    ("Accept-Encoding", "gzip, deflate"),
    ("Accept-Language", ""),
    ("Accept-Ranges", ""),
    ("Accept", ""),
    ("Access-Control-Allow-Origin", ""),
    ("Age", ""),
    ("Allow", ""),
    ("Authorization", ""),
    ("Cache-Control", ""),
    ("Content-Disposition", ""),
    ("Content-Encoding", ""),
    ("Content-Language", ""),
    ("Content-Length", ""),
    ("Content-Location", ""),
    ("Content-Range", ""),
    ("Content-Type", ""),
    ("Cookie", ""),
    ("Date", ""),
    ("ETag", ""),
    ("Expect", ""),
    ("Expires", ""),
    ("From", ""),
    ("Host", ""),
    ("If-Match", ""),
    ("If-Modified-Since", ""),
    ("If-None-Match", ""),
    ("If-Range", ""),
    ("If-Unmodified-Since", ""),
    ("Last-Modified", ""),
    ("Link", ""),
    ("Location", ""),
    ("Max-Forwards", ""),
    ("Proxy-Authenticate", ""),
    ("Proxy-Authorization", ""),
    ("Range", ""),
    ("Referer", ""),
    ("Refresh", ""),
    ("Retry-After", ""),
    ("Server", ""),
    ("Set-Cookie", ""),
    ("Strict-Transport-Security", ""),
    ("Transfer-Encoding", ""),
    ("User-Agent", ""),
    ("Vary", ""),
    ("Via", ""),
    ("WWW-Authenticate", ""),
];

/// The index of the first entry of the dynamic table.
pub const END: usize = FIELDS.len() + 1;

/// The first index of each name, at its slot.
static SLOTS: [u8; 1 << SLOT_BITS] = slots();
const SLOT_BITS: u32 = 7;

/// The field at an index.
pub fn get(index: usize) -> Option<(&'static [u8], &'static [u8])> {
    let (name, value) = FIELDS.get(index.checked_sub(1)?)?;
    Some((name.as_bytes(), value.as_bytes()))
}

/// The first index of a name, which can be in any case.
pub fn of_name(name: &[u8]) -> Option<usize> {
    let index = SLOTS[slot(name)?].into();
    let (text, _) = get(index)?;
    (name == text || name.eq_ignore_ascii_case(text)).then_some(index)
}

/// The index of a field, whose name is at `first`.
pub fn of_field(first: usize, value: &[u8]) -> Option<usize> {
    let count = match first {
        // :method, :path and :scheme.
        2 | 4 | 6 => 2,
        // :status.
        8 => 7,
        _ => 1,
    };
    (first..first + count).find(|index| get(*index).is_some_and(|(_, text)| text == value))
}

/// By length, first and last byte, which no two names share. The factor was found by trial.
const fn slot(name: &[u8]) -> Option<usize> {
    let (Some(first), Some(last)) = (name.first(), name.last()) else { return None };
    let key = name.len() as u32 | (*first as u32 | 0x20) << 8 | (*last as u32 | 0x20) << 16;
    Some((key.wrapping_mul(0x9cd3_7875) >> (u32::BITS - SLOT_BITS)) as usize)
}

const fn slots() -> [u8; 1 << SLOT_BITS] {
    let mut slots = [0; 1 << SLOT_BITS];
    let mut at = FIELDS.len();
    while at > 0 {
        at -= 1;
        if let Some(slot) = slot(FIELDS[at].0.as_bytes()) {
            slots[slot] = at as u8 + 1;
        }
    }
    slots
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;
    use crate::head::put_name;

    #[test]
    fn names_are_as_elsewhere() {
        for (name, _) in FIELDS.iter().filter(|(name, _)| !name.starts_with(':')) {
            let mut out = BytesMut::new();
            put_name(name.to_ascii_lowercase().as_bytes(), &mut out);
            assert_eq!(out, name);
        }
    }

    #[test]
    fn each_field_is_found() {
        for (at, (name, value)) in FIELDS.iter().enumerate() {
            for name in [(*name).to_owned(), name.to_ascii_lowercase(), name.to_ascii_uppercase()] {
                let first = of_name(name.as_bytes()).expect("the name is there");
                assert_eq!(of_field(first, value.as_bytes()), Some(at + 1), "{name}");
                assert_eq!(of_field(first, b"another"), None, "{name}");
            }
        }
        for name in ["", ":", "x", ":paths", "viaa", "vie", "content-typo"] {
            assert_eq!(of_name(name.as_bytes()), None, "{name}");
        }
        assert_eq!((get(0), get(END)), (None, None));
    }
}
