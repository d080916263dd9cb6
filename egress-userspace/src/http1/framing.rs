//! Where a message's content ends (RFC 9112 section 6.3).

use http::{HeaderValue, StatusCode, Version, header};

use super::Fault;
use crate::head::{Fields, ascii};

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

/// Of a request of this version.
///
/// # Errors
/// Two servers could see its end at two places.
pub fn of_request(version: Version, fields: &mut Fields) -> Result<Framing, Fault> {
    let chunked = match coding(fields) {
        None => false,
        Some(_) if version == Version::HTTP_10 => return Err(Fault::OldCoding),
        Some(Coding::Chunked) => true,
        Some(_) => return Err(Fault::Coding),
    };
    match (chunked, length(fields)?) {
        (true, Some(_)) => Err(Fault::LengthAndCoding),
        (true, None) => Ok(Framing::Chunked),
        (false, length) => Ok(Framing::Length(length.unwrap_or(0))),
    }
}

/// Of a response with this status, to HEAD if `is_head`.
///
/// # Errors
/// Two clients could see its end at two places.
pub fn of_response(status: StatusCode, fields: &mut Fields, is_head: bool) -> Result<Framing, Fault> {
    let coding = coding(fields);
    let length = length(fields)?;
    if is_head || is_bare(status) {
        return Ok(Framing::Length(0));
    }
    match (coding, length) {
        (Some(_), Some(_)) => Err(Fault::LengthAndCoding),
        (Some(Coding::Chunked), None) => Ok(Framing::Chunked),
        (Some(Coding::ChunkedAgain), None) => {
            // Some servers say it twice, and do it once.
            fields.set(&header::TRANSFER_ENCODING, &HeaderValue::from_static("chunked"));
            Ok(Framing::Chunked)
        }
        (Some(Coding::Ambiguous), None) => Err(Fault::Coding),
        (Some(Coding::Other) | None, None) => Ok(Framing::Close),
        (None, Some(length)) => Ok(Framing::Length(length)),
    }
}

/// Whether responses of this status have no content, whatever their heads say.
pub fn is_bare(status: StatusCode) -> bool {
    status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// The length that a head announces which was read before, or made by us: there it is one number.
pub fn announced(fields: &Fields) -> Option<u64> {
    fields.text(&header::CONTENT_LENGTH)?.parse().ok()
}

/// What Transfer-Encoding comes to.
enum Coding {
    /// Chunks, once and last.
    Chunked,
    /// Chunks and nothing else, but said more than once.
    ChunkedAgain,
    /// Chunks, but not last.
    Ambiguous,
    /// No chunks.
    Other,
}

/// Whether content that is in chunks is coded besides, for the connection alone.
pub fn is_coded(fields: &Fields) -> bool {
    let mut values = fields.get_all(&header::TRANSFER_ENCODING);
    values.any(|value| !value.trim_ascii().eq_ignore_ascii_case(b"chunked"))
}

fn coding(fields: &Fields) -> Option<Coding> {
    let mut values = fields.get_all(&header::TRANSFER_ENCODING).peekable();
    values.peek()?;
    let is_chunked = |coding: &str| coding.eq_ignore_ascii_case("chunked");
    let (mut all, mut chunked, mut last) = (0, 0, false);
    for value in values {
        let Some(value) = ascii(value) else { return Some(Coding::Ambiguous) };
        for coding in value.split(',').map(str::trim).filter(|coding| !coding.is_empty()) {
            last = is_chunked(coding);
            (all, chunked) = (all + 1, chunked + i32::from(last));
        }
    }
    Some(match (chunked, last) {
        (1, true) => Coding::Chunked,
        (2.., true) if chunked == all => Coding::ChunkedAgain,
        (0, _) => Coding::Other,
        _ => Coding::Ambiguous,
    })
}

/// What Content-Length says, which may say it more than once. Makes it say so once.
///
/// # Errors
/// It says more than one thing, or nothing that is a length.
pub fn length(fields: &mut Fields) -> Result<Option<u64>, Fault> {
    let (first, second) = {
        let mut values = fields.get_all(&header::CONTENT_LENGTH);
        (values.next(), values.next())
    };
    let Some(first) = first else { return Ok(None) };
    let parse = |value: &[u8]| {
        let digits = value.trim_ascii();
        let all = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
        let number = all.then(|| std::str::from_utf8(digits).ok()?.parse::<u64>().ok()).flatten();
        number.ok_or(Fault::Length)
    };
    if second.is_none() && !first.contains(&b',') {
        return parse(first).map(Some);
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
        check(&[("transfer-encoding", "xchunked")], Err(Fault::Coding), Ok(Framing::Close));
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
