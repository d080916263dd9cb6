//! Integers and strings (RFC 7541 section 5).

use bytes::{BufMut, BytesMut};

use super::{Undecodable, huffman};

/// Of a string: it is encoded.
const ENCODED: u8 = 0x80;

/// Takes an integer from the last `prefix` bits of the first byte on. Four bytes more are enough for what anybody means.
pub fn take_integer(rest: &mut &[u8], prefix: u32) -> Result<usize, Undecodable> {
    let mask = u8::MAX >> (u8::BITS - prefix);
    let mut value = usize::from(take_byte(rest)? & mask);
    if value < mask.into() {
        return Ok(value);
    }
    for shift in [0, 7, 14, 21] {
        let byte = take_byte(rest)?;
        value += usize::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(Undecodable)
}

/// A string as it was sent.
pub enum Sent<'a> {
    /// It is what it says.
    Plain(&'a [u8]),
    /// It is in the code of strings.
    Encoded(&'a [u8]),
}

/// Takes a string.
pub fn take_string<'a>(rest: &mut &'a [u8]) -> Result<Sent<'a>, Undecodable> {
    let is_encoded = rest.first().is_some_and(|first| first & ENCODED != 0);
    let length = take_integer(rest, 7)?;
    let (text, after) = rest.split_at_checked(length).ok_or(Undecodable)?;
    *rest = after;
    Ok(if is_encoded { Sent::Encoded(text) } else { Sent::Plain(text) })
}

fn take_byte(rest: &mut &[u8]) -> Result<u8, Undecodable> {
    let (first, after) = rest.split_first().ok_or(Undecodable)?;
    *rest = after;
    Ok(*first)
}

/// Adds an integer, in the last `prefix` bits of `first` if it has room there.
pub fn put_integer(value: usize, prefix: u32, first: u8, out: &mut BytesMut) {
    let mask = u8::MAX >> (u8::BITS - prefix);
    let Some(mut value) = value.checked_sub(mask.into()) else { return out.put_u8(first | value as u8) };
    out.put_u8(first | mask);
    while value >= 0x80 {
        out.put_u8(0x80 | value as u8);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// Adds a string, encoded if that is worth it: it costs us more than a few bytes cost anybody.
pub fn put_string(text: &[u8], out: &mut BytesMut) {
    if text.len() >= 8 {
        let length = huffman::encoded_len(text);
        if length <= text.len() - text.len() / 8 {
            put_integer(length, 7, ENCODED, out);
            return huffman::encode(text, out);
        }
    }
    put_integer(text.len(), 7, 0, out);
    out.extend_from_slice(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_those_of_the_rfc() {
        // Appendix C.1, and around where another byte is needed.
        for (value, prefix, bytes) in [
            (10, 5, &[10][..]),
            (1337, 5, &[31, 154, 10]),
            (42, 8, &[42]),
            (30, 5, &[30]),
            (31, 5, &[31, 0]),
            (127, 7, &[127, 0]),
            (254, 7, &[127, 127]),
            (255, 7, &[127, 128, 1]),
            ((1 << 28) + 126, 7, &[127, 255, 255, 255, 127]),
        ] {
            let mut out = BytesMut::new();
            put_integer(value, prefix, 0, &mut out);
            assert_eq!(out, bytes);
            let mut rest = &out[..];
            assert_eq!((take_integer(&mut rest, prefix), rest), (Ok(value), &b""[..]));
            for end in 0..bytes.len() {
                assert_eq!(take_integer(&mut &bytes[..end], prefix), Err(Undecodable), "{bytes:?} up to {end}");
            }
        }
        assert_eq!(take_integer(&mut &[127, 128, 128, 128, 128, 0][..], 7), Err(Undecodable));
    }

    #[test]
    fn strings_are_encoded_if_that_is_worth_it() {
        for (text, encoded) in [("", false), ("aaaaaaa", false), ("aaaaaaaa", true), ("&&&&&&&&&", false)] {
            let (mut out, mut room) = (BytesMut::new(), Vec::new());
            put_string(text.as_bytes(), &mut out);
            for end in 0..out.len() {
                assert!(take_string(&mut &out[..end]).is_err(), "{text} up to {end}");
            }
            let mut rest = &out[..];
            let (taken, was_encoded) = match take_string(&mut rest).expect("a string") {
                Sent::Plain(taken) => (taken, false),
                Sent::Encoded(taken) => (huffman::decode(taken, &mut room).expect("it is encoded").0, true),
            };
            assert_eq!((taken, was_encoded, rest), (text.as_bytes(), encoded, &b""[..]));
        }
    }
}
