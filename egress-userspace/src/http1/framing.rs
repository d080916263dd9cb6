//! Where a message's content ends (RFC 9112 section 6.3).

use http::{HeaderValue, StatusCode, Version, header};

use super::Fault;
use crate::head::{Fields, ascii};

const CHUNKED: &str = "chunked";
/// Codings that make content smaller (RFC 9112 section 7.2).
const KNOWN: [&str; 5] = ["gzip", "x-gzip", "deflate", "compress", "x-compress"];

/// How content is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// So many bytes.
    Length(u64),
    /// In chunks.
    Chunked,
    /// By the end of the connection.
    Close,
}

/// Of a request of this version. Makes its Transfer-Encoding say in one field what it says.
///
/// # Errors
/// Two servers could see its end at two places.
pub fn of_request(version: Version, fields: &mut Fields) -> Result<Framing, Fault> {
    let chunked = match Codings::of(fields) {
        None => false,
        Some(_) if version == Version::HTTP_10 => return Err(Fault::OldCoding),
        // A server that knows only some of them, or only the first field, would see no content where others do.
        Some(codings) if codings.end == End::Chunked && codings.are_known => {
            codings.write(fields);
            true
        }
        Some(_) => return Err(Fault::Coding),
    };
    match (chunked, length(fields)?) {
        (true, Some(_)) => Err(Fault::LengthAndCoding),
        (true, None) => Ok(Framing::Chunked),
        (false, length) => Ok(Framing::Length(length.unwrap_or(0))),
    }
}

/// Of a response with this status, to HEAD if `is_head`. Makes its Transfer-Encoding say in one field what it says, or go if that
/// is nothing.
///
/// # Errors
/// Two clients could see its end at two places.
pub fn of_response(status: StatusCode, fields: &mut Fields, is_head: bool) -> Result<Framing, Fault> {
    let codings = Codings::of(fields);
    if let Some(codings) = &codings {
        codings.write(fields);
    }
    let end = codings.filter(|codings| !codings.is_none()).map(|codings| codings.end);
    let length = length(fields)?;
    if is_head || is_bare(status) {
        return Ok(Framing::Length(0));
    }
    match (end, length) {
        (Some(_), Some(_)) => Err(Fault::LengthAndCoding),
        (Some(End::Chunked | End::ChunkedAgain), None) => Ok(Framing::Chunked),
        (Some(End::Ambiguous), None) => Err(Fault::Coding),
        (Some(End::Close) | None, None) => Ok(Framing::Close),
        (None, Some(length)) => Ok(Framing::Length(length)),
    }
}

/// Whether responses of this status have no content, whatever their heads say.
pub fn is_bare(status: StatusCode) -> bool {
    status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// The length that a head announces which was read before, or made by us: there it is one number.
pub fn announced(fields: &Fields) -> Option<u64> {
    number(fields.get(&header::CONTENT_LENGTH)?)
}

/// A number in digits alone, of which there are some.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, digit| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 10)?;
        number.checked_mul(10)?.checked_add(digit.into())
    })
}

/// Whether content is coded besides being in chunks, for the connection alone.
pub fn is_coded(fields: &Fields) -> bool {
    let mut values = fields.get_all(&header::TRANSFER_ENCODING);
    values.any(|value| !value.eq_ignore_ascii_case(CHUNKED.as_bytes()))
}

/// Makes chunks the last of a response's codings.
pub fn end_in_chunks(fields: &mut Fields) {
    let mut codings = Codings::of(fields).unwrap_or_default();
    if codings.end == End::Close {
        codings.add(CHUNKED);
        codings.write(fields);
    }
}

/// What Transfer-Encoding comes to.
#[derive(Default)]
struct Codings {
    end: End,
    /// Whether RFC 9112 section 7 has all of them.
    are_known: bool,
    /// The codings, without `identity`, which is none (RFC 2616 section 3.6).
    text: String,
}

/// How the end of content is told that is coded so.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum End {
    /// By the end of the connection: there are no chunks.
    #[default]
    Close,
    /// By chunks, which come once and last.
    Chunked,
    /// The same, but that is said more than once. Some servers say it twice, and do it once.
    ChunkedAgain,
    /// Nobody can say.
    Ambiguous,
}

impl Codings {
    /// What the fields say, if there are any.
    fn of(fields: &Fields) -> Option<Self> {
        if !fields.contains(&header::TRANSFER_ENCODING) {
            return None;
        }
        let mut codings = Self { are_known: true, ..Self::default() };
        for value in fields.get_all(&header::TRANSFER_ENCODING) {
            let Some(value) = ascii(value) else { return Some(Self { end: End::Ambiguous, ..codings }) };
            for coding in value.split(',').map(str::trim) {
                let is = |other: &str| coding.eq_ignore_ascii_case(other);
                codings.are_known &= is(CHUNKED) || KNOWN.into_iter().any(is);
                if coding.is_empty() {
                    continue;
                }
                codings.end = match codings.end {
                    End::Close if is(CHUNKED) => End::Chunked,
                    End::Close => End::Close,
                    _ if is(CHUNKED) && is(&codings.text) => End::ChunkedAgain,
                    _ => End::Ambiguous,
                };
                if codings.end != End::ChunkedAgain && !is("identity") {
                    codings.add(coding);
                }
            }
        }
        Some(codings)
    }

    /// Whether they say nothing.
    fn is_none(&self) -> bool {
        self.text.is_empty() && self.end == End::Close
    }

    fn add(&mut self, coding: &str) {
        if !self.text.is_empty() {
            self.text.push_str(", ");
        }
        self.text.push_str(coding);
    }

    /// Makes the fields say that in one, or go if there are no codings.
    fn write(&self, fields: &mut Fields) {
        match HeaderValue::from_str(&self.text) {
            Ok(value) if !value.is_empty() => fields.set(&header::TRANSFER_ENCODING, &value),
            // They were in fields before, so that they are a value.
            _ => fields.remove(&header::TRANSFER_ENCODING),
        }
    }
}

/// Makes Content-Length among fields of HTTP/2 say once what it says.
///
/// # Errors
/// It does not say one thing.
pub fn of_http2(fields: &mut Fields) -> Result<(), Fault> {
    length(fields).map(drop)
}

/// What Content-Length says, which may say it more than once. Makes it say so once.
///
/// # Errors
/// It says more than one thing, or nothing that is a length.
fn length(fields: &mut Fields) -> Result<Option<u64>, Fault> {
    let (first, second) = {
        let mut values = fields.get_all(&header::CONTENT_LENGTH);
        (values.next(), values.next())
    };
    let Some(first) = first else { return Ok(None) };
    let parse = |value: &[u8]| number(value.trim_ascii()).ok_or(Fault::Length);
    if let (Ok(number), None) = (parse(first), second) {
        return Ok(Some(number));
    }
    let all = fields.get_all(&header::CONTENT_LENGTH);
    let mut all = all.flat_map(|value| value.split(|byte| *byte == b',')).map(parse);
    let number = all.next().ok_or(Fault::Length)??;
    for other in all {
        if other? != number {
            return Err(Fault::Length);
        }
    }
    fields.set(&header::CONTENT_LENGTH, &number.into());
    Ok(Some(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(fields: &[(&str, &str)], request: Result<Framing, Fault>, response: Result<Framing, Fault>) {
        assert_eq!(of_request(Version::HTTP_11, &mut Fields::of(fields)), request, "{fields:?}");
        assert_eq!(of_response(StatusCode::OK, &mut Fields::of(fields), false), response, "{fields:?}");
    }

    #[test]
    fn what_is_clear_is_taken() {
        check(&[], Ok(Framing::Length(0)), Ok(Framing::Close));
        check(&[("content-length", "5")], Ok(Framing::Length(5)), Ok(Framing::Length(5)));
        check(&[("content-length", "5, 5")], Ok(Framing::Length(5)), Ok(Framing::Length(5)));
        check(&[("transfer-encoding", "Chunked")], Ok(Framing::Chunked), Ok(Framing::Chunked));
        check(&[("transfer-encoding", "gzip, chunked")], Ok(Framing::Chunked), Ok(Framing::Chunked));
        check(
            &[("transfer-encoding", "gzip"), ("transfer-encoding", "chunked")],
            Ok(Framing::Chunked),
            Ok(Framing::Chunked),
        );
        // Servers that say it twice are a nuisance, clients that do are a danger.
        check(&[("transfer-encoding", "chunked, chunked")], Err(Fault::Coding), Ok(Framing::Chunked));
        check(&[("transfer-encoding", "gzip")], Err(Fault::Coding), Ok(Framing::Close));
    }

    #[test]
    fn what_has_two_ends_is_not() {
        let both = [("content-length", "5"), ("transfer-encoding", "chunked")];
        check(&both, Err(Fault::LengthAndCoding), Err(Fault::LengthAndCoding));
        for length in ["5, 6", "+5", "-1", "", "0x5", "5 5", "99999999999999999999"] {
            check(&[("content-length", length)], Err(Fault::Length), Err(Fault::Length));
        }
        check(&[("transfer-encoding", "chunked, identity")], Err(Fault::Coding), Err(Fault::Coding));
        check(&[("transfer-encoding", "gzip, chunked, chunked")], Err(Fault::Coding), Err(Fault::Coding));
        check(&[("transfer-encoding", "gzip, chunked, gzip, chunked")], Err(Fault::Coding), Err(Fault::Coding));
        check(&[("transfer-encoding", "chunked, gzip, chunked")], Err(Fault::Coding), Err(Fault::Coding));
        check(&[("transfer-encoding", "xchunked")], Err(Fault::Coding), Ok(Framing::Close));
    }

    #[test]
    fn codings_that_some_servers_would_not_see_are_not_taken_of_clients() {
        for codings in ["x, chunked", "identity, chunked", "xchunked, chunked", "chunked,", ",chunked", "", "identity"]
        {
            let mut fields = Fields::of(&[("transfer-encoding", codings)]);
            assert_eq!(of_request(Version::HTTP_11, &mut fields), Err(Fault::Coding), "{codings:?}");
        }
        let mut fields = Fields::of(&[("transfer-encoding", "x"), ("transfer-encoding", "chunked")]);
        assert_eq!(of_request(Version::HTTP_11, &mut fields), Err(Fault::Coding));
    }

    #[test]
    fn codings_are_said_once() {
        for (written, framing, said) in [
            (&["chunked, chunked"][..], Framing::Chunked, Some("chunked")),
            (&["gzip", "", "Chunked,"], Framing::Chunked, Some("gzip, Chunked")),
            (&["identity, chunked"], Framing::Chunked, Some("chunked")),
            (&["identity"], Framing::Close, None),
            (&[""], Framing::Close, None),
            (&["x,gzip"], Framing::Close, Some("x, gzip")),
        ] {
            let lines: Vec<_> = written.iter().map(|value| ("transfer-encoding", *value)).collect();
            let mut fields = Fields::of(&lines);
            assert_eq!(of_response(StatusCode::OK, &mut fields, false), Ok(framing), "{written:?}");
            let expected: Vec<_> = said.into_iter().map(|said| ("transfer-encoding", said)).collect();
            assert_eq!(fields.listed(), expected, "{written:?}");
        }
        let mut fields = Fields::of(&[("transfer-encoding", "identity"), ("content-length", "5")]);
        assert_eq!(of_response(StatusCode::OK, &mut fields, false), Ok(Framing::Length(5)));
    }

    #[test]
    fn some_responses_have_no_content_whatever_they_say() {
        let mut fields = Fields::of(&[("content-length", "5")]);
        assert_eq!(of_response(StatusCode::OK, &mut fields, true), Ok(Framing::Length(0)));
        for status in [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED, StatusCode::EARLY_HINTS] {
            let mut fields = Fields::of(&[("transfer-encoding", "chunked")]);
            assert_eq!(of_response(status, &mut fields, false), Ok(Framing::Length(0)));
        }
    }
}
