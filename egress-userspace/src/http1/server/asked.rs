//! What a client asks for beside what its request says to the origin.

use http::{StatusCode, Version, header};

use crate::{
    body::ResponseBody,
    head::ResponseHead,
    http1::{Framing, announced, end_in_chunks, is_bare},
};

/// What a request says of its connection.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// The client's.
    pub version: Version,
    /// Whether others may follow.
    pub keep_alive: bool,
    /// Whether the response has no content.
    pub is_head: bool,
}

impl Asked {
    /// What is assumed of a client whose request could not be read.
    pub const UNKNOWN: Self = Self { version: Version::HTTP_11, keep_alive: false, is_head: false };

    /// How the client can tell the end of a response. Makes the head say so.
    pub(super) fn framing(self, head: &mut ResponseHead, body: &ResponseBody) -> Framing {
        if self.is_head || is_bare(head.status) {
            let has_no_coding = head.status == StatusCode::NO_CONTENT || head.status.is_informational();
            if has_no_coding || self.version == Version::HTTP_10 {
                // RFC 9112 section 6.1; some clients would wait for chunks.
                head.fields.remove(&header::TRANSFER_ENCODING);
            }
            return Framing::Length(0);
        }
        if let Some(length) = announced(&head.fields) {
            return Framing::Length(length);
        }
        if let Some(length) = body.left()
            && !head.fields.contains(&header::TRANSFER_ENCODING)
        {
            head.fields.set(&header::CONTENT_LENGTH, &length.into());
            return Framing::Length(length);
        }
        if self.version == Version::HTTP_10 {
            head.fields.remove(&header::TRANSFER_ENCODING);
            return Framing::Close;
        }
        end_in_chunks(&mut head.fields);
        Framing::Chunked
    }
}
