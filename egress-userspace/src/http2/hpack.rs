//! HPACK (RFC 7541): how HTTP/2 writes the fields of its heads. Both tables are of the size that everybody begins with; ours
//! never says another, so that a connection's share of memory is known.

mod decode;
mod encode;
mod huffman;
mod primitive;
mod received;
mod sent;
mod statics;

pub use self::{decode::Decoder, encode::Encoder};

/// What the dynamic tables may hold (RFC 9113 section 6.5.2, SETTINGS_HEADER_TABLE_SIZE).
const MOST: usize = 4096;

/// A block cannot be decoded: the connection is lost (COMPRESSION_ERROR, RFC 9113 section 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Undecodable;

/// What a field takes of a dynamic table (RFC 7541 section 4.1).
fn size(name: &[u8], value: &[u8]) -> usize {
    name.len() + value.len() + 32
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;
    use crate::head::put_name;

    type Fields = Vec<(Vec<u8>, Vec<u8>)>;

    /// The two ends of a connection.
    struct Ends(Encoder, Decoder);

    impl Ends {
        fn new() -> Self {
            Self(Encoder::new(), Decoder::new())
        }

        /// Gives the block in which these fields go from one to the other.
        fn check(&mut self, fields: &[(Vec<u8>, Vec<u8>)]) -> BytesMut {
            let (mut block, mut taken) = (BytesMut::new(), Fields::new());
            self.0.begin(&mut block);
            for (name, value) in fields {
                self.0.field(name, value, &mut block);
            }
            let are_sound = self.1.decode(&block, |name, value, _| taken.push((name.into(), value.into())));
            let expected: Fields = fields.iter().map(|(name, value)| (cased(name), value.clone())).collect();
            assert_eq!(taken, expected, "{block:x?}");
            assert_eq!(are_sound, Ok(true), "{fields:?}");
            block
        }
    }

    fn cased(name: &[u8]) -> Vec<u8> {
        let lower = name.to_ascii_lowercase();
        if lower.starts_with(b":") {
            return lower;
        }
        let mut out = BytesMut::new();
        put_name(&lower, &mut out);
        out.into()
    }

    fn fields(list: &[(&str, &str)]) -> Fields {
        list.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
    }

    /// Numbers that are the same each time.
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, end: usize) -> usize {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) as usize % end
        }

        /// One of `many` texts of up to `most` of these bytes; short numbers are more frequent.
        fn text(&mut self, many: usize, most: usize, of: &[u8]) -> Vec<u8> {
            let most_now = self.below(many) + 1;
            let mut own = Numbers(self.below(most_now) as u64);
            (0..1 + own.below(most)).map(|_| of[own.below(of.len())]).collect()
        }

        fn field(&mut self) -> (Vec<u8>, Vec<u8>) {
            let known = [":path", ":authority", "Content-Type", "accept-encoding", "COOKIE", "etag", "Authorization"];
            let name = match self.below(12) {
                at if at < known.len() => known[at].into(),
                _ => self.text(40, 30, b"abcdefghijklmnopqrstuvwxyzABCXYZ0-_"),
            };
            let most = if self.below(50) == 0 { 6000 } else { 80 };
            let any: Vec<u8> = (b' '..0x7f).chain(0x80..=0xff).collect();
            let of = if self.below(4) == 0 { &any[..] } else { b"0123456789 abcdefghijklmnopqrstuvwxyz/=;A" };
            (name, self.text(60, most, of))
        }
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        for seed in 0..40 {
            let (mut ends, mut numbers) = (Ends::new(), Numbers(seed));
            for _ in 0..200 {
                for _ in 0..numbers.below(8).saturating_sub(5) {
                    ends.0.set_table_size([0, 32, 100, 333, 1000, 4095, 4096, 65536][numbers.below(8)]);
                }
                let fields: Fields = (0..numbers.below(20)).map(|_| numbers.field()).collect();
                ends.check(&fields);
            }
        }
    }

    #[test]
    fn what_repeats_becomes_an_index() {
        let list = |id: &'static str| {
            fields(&[(":method", "GET"), (":path", "/a"), ("Host", "b"), ("X-Id", id), ("cookie", "c"), ("ETag", "d")])
        };
        let mut ends = Ends::new();
        let name = b"\x04x-id";
        assert_eq!(
            ends.check(&list("1")),
            [b"\x82\x04\x02/a\x0f\x17\x01b\x40", &name[..], b"\x011\x1f\x11\x01c\x0f\x13\x01d"].concat()
        );
        assert_eq!(ends.check(&list("2")), &b"\x82\x04\x02/a\x66\x01b\x0f\x30\x012\x1f\x11\x01c\x0f\x13\x01d"[..]);
        assert_eq!(ends.check(&list("3")), &b"\x82\x04\x02/a\xbe\x0f\x30\x013\x1f\x11\x01c\x0f\x13\x01d"[..]);
        assert_eq!(ends.check(&list("1")), &b"\x82\x04\x02/a\xbe\xbf\x1f\x11\x01c\x0f\x13\x01d"[..]);
    }

    #[test]
    fn some_never_become_one() {
        let long = "a value of 20 bytes!";
        for (name, value, first) in [
            (":path", "/a", &b"\x04"[..]),
            ("Age", "1", b"\x0f\x06"),
            ("Authorization", long, b"\x1f\x08"),
            ("Content-Length", "10", b"\x0f\x0d"),
            ("Cookie", "short", b"\x1f\x11"),
            ("Cookie", long, b"\x0f\x11"),
            ("ETag", "1", b"\x0f\x13"),
            ("If-Modified-Since", "1", b"\x0f\x19"),
            ("If-None-Match", "1", b"\x0f\x1a"),
            ("Location", "1", b"\x0f\x1f"),
            ("Proxy-Authorization", long, b"\x1f\x22"),
            ("Set-Cookie", "1", b"\x0f\x28"),
            ("X-Much", &"a".repeat(3100), b"\x00"),
        ] {
            let mut ends = Ends::new();
            for _ in 0..3 {
                assert!(ends.check(&fields(&[(name, value)])).starts_with(first), "{name}");
            }
        }
        let repeated = [(":path", "/", 0x84), (":path", "/index.html", 0x85), ("X-Less", &"a".repeat(3000), 0xbe)];
        for (name, value, index) in repeated {
            let mut ends = Ends::new();
            ends.check(&fields(&[(name, value)]));
            assert_eq!(ends.check(&fields(&[(name, value)])), &[index][..], "{name}");
        }
    }

    #[test]
    fn sizes_of_the_table_are_said_once() {
        for (sizes, block) in [
            (&[][..], &b""[..]),
            (&[4096], b""),
            (&[u32::MAX], b""),
            (&[0], b"\x20"),
            (&[100, 50], b"\x3f\x13"),
            (&[50, 100], b"\x3f\x13\x3f\x45"),
            (&[100, 0, 5000], b"\x20\x3f\xe1\x1f"),
        ] {
            let mut ends = Ends::new();
            for size in sizes {
                ends.0.set_table_size(*size);
            }
            assert_eq!(ends.check(&[]), block, "{sizes:?}");
            assert_eq!(ends.check(&[]), &b""[..], "{sizes:?}");
        }
    }
}
