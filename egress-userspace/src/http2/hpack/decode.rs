//! Blocks that the other end sends (RFC 7541 section 6).

use bytes::BytesMut;

use super::{
    Undecodable, huffman,
    primitive::{Sent, take_integer, take_string},
    received::{Entry, Received, Text},
};
use crate::head::put_name;

/// How much room is kept from one block to the next.
const KEPT: usize = 4096;

/// Decodes the blocks of one connection.
pub struct Decoder {
    table: Received,
    room: Room,
}

/// Where names and values are decoded.
#[derive(Default)]
struct Room {
    name: Vec<u8>,
    cased: BytesMut,
    value: Vec<u8>,
}

impl Decoder {
    /// One with nothing in its table.
    pub fn new() -> Self {
        Self { table: Received::new(), room: Room::default() }
    }

    /// Decodes a block from its beginning to its end. Each field goes to `take`, with its name as HTTP/1.1 has it but for those
    /// of pseudo-headers, and with whether nobody on the way may put it into a table (RFC 7541 section 6.2.3). Gives whether all are such
    /// as HTTP/2 has them (RFC 9113 section 8.2.1), blanks around values apart; those that are not go to `take` as well.
    pub fn decode(&mut self, block: &[u8], mut take: impl FnMut(&[u8], &[u8], bool)) -> Result<bool, Undecodable> {
        let mut rest = block;
        while let Some(0x20..0x40) = rest.first() {
            self.table.resize(take_integer(&mut rest, 5)?)?;
        }
        let mut are_sound = true;
        while let Some(first) = rest.first() {
            are_sound &= match first {
                0x80.. => self.indexed(&mut rest, |name, value| take(name, value, false)),
                0x40.. => self.literal(&mut rest, 6, |name, value| take(name, value, false)),
                0x20.. => Err(Undecodable),
                0x10.. => self.literal(&mut rest, 4, |name, value| take(name, value, true)),
                _ => self.literal(&mut rest, 4, |name, value| take(name, value, false)),
            }?;
        }
        self.room.shrink();
        Ok(are_sound)
    }

    #[inline]
    fn indexed(&self, rest: &mut &[u8], mut take: impl FnMut(&[u8], &[u8])) -> Result<bool, Undecodable> {
        let (name, value) = self.table.get(take_integer(rest, 7)?)?;
        take(name.bytes, value.bytes);
        Ok(name.is_sound && value.is_sound)
    }

    /// The only ones with a prefix of six bits are those that go into the table.
    #[inline]
    fn literal(
        &mut self,
        rest: &mut &[u8],
        prefix: u32,
        mut take: impl FnMut(&[u8], &[u8]),
    ) -> Result<bool, Undecodable> {
        let mut shared = None;
        let name = match take_integer(rest, prefix)? {
            0 => {
                let name = match take_string(rest)? {
                    Sent::Plain(name) => name,
                    Sent::Encoded(name) => huffman::decode(name, &mut self.room.name)?.0,
                };
                cased(name, &mut self.room.cased)
            }
            index => {
                shared = self.table.name(index);
                self.table.get(index)?.0
            }
        };
        let (bytes, control) = match take_string(rest)? {
            Sent::Plain(value) => (value, has_control(value)),
            Sent::Encoded(value) => huffman::decode(value, &mut self.room.value)?,
        };
        let value = Text { bytes, is_sound: !control };
        take(name.bytes, value.bytes);
        let is_sound = name.is_sound && value.is_sound;
        if prefix == 6 {
            let entry = Entry::new(name, shared, value);
            self.table.add(entry);
        }
        Ok(is_sound)
    }
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Room {
    fn shrink(&mut self) {
        for room in [&mut self.name, &mut self.value] {
            if room.len() > KEPT {
                *room = Vec::new();
            }
        }
        if self.cased.capacity() > KEPT {
            self.cased = BytesMut::new();
        }
    }
}

/// A name that was sent, as HTTP/1.1 has it.
fn cased<'a>(name: &'a [u8], room: &'a mut BytesMut) -> Text<'a> {
    let (is_pseudo, word) = name.strip_prefix(b":").map_or((false, name), |word| (true, word));
    let is_sound = !word.is_empty() && word.iter().all(|byte| OF_NAMES[usize::from(*byte)]);
    if is_pseudo || !is_sound {
        return Text { bytes: name, is_sound };
    }
    room.clear();
    put_name(name, room);
    Text { bytes: room, is_sound }
}

/// What tokens are made of (RFC 9110 section 5.6.2), but for capitals.
static OF_NAMES: [bool; 256] = {
    let mut of_names = [false; 256];
    let all = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz";
    let mut at = 0;
    while at < all.len() {
        of_names[all[at] as usize] = true;
        at += 1;
    }
    of_names
};

/// All bytes are looked at, many at a time.
fn has_control(value: &[u8]) -> bool {
    value.iter().fold(false, |any, byte| any | huffman::is_control(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(decoder: &mut Decoder, block: &[u8]) -> Result<(Vec<String>, bool), Undecodable> {
        let mut fields = Vec::new();
        let are_sound = decoder.decode(block, |name, value, _| {
            fields.push(format!("{}={}", name.escape_ascii(), value.escape_ascii()));
        })?;
        Ok((fields, are_sound))
    }

    fn check(decoder: &mut Decoder, block: &[u8], fields: &[&str]) {
        let expected = Ok((fields.iter().map(|field| (*field).to_owned()).collect(), true));
        assert_eq!(decoded(decoder, block), expected, "{block:x?}");
    }

    fn check_table(decoder: &Decoder, size: usize, fields: &[&str]) {
        let fields_in_it = (0..fields.len()).map(|at| {
            let (name, value) = decoder.table.get(62 + at).ok()?;
            String::from_utf8([name.bytes, b"=", value.bytes].concat()).ok()
        });
        assert!(fields_in_it.eq(fields.iter().map(|field| Some((*field).to_owned()))), "{fields:?}");
        assert!(decoder.table.get(62 + fields.len()).is_err(), "{fields:?}");
        assert_eq!(decoder.table.size(), size);
    }

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex.chars().filter_map(|digit| Some(digit.to_digit(16)? as u8)).collect();
        digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
    }

    #[test]
    fn single_fields_are_those_of_the_rfc() {
        for (block, field, size) in [
            (&b"\x40\x0acustom-key\x0dcustom-header"[..], "Custom-Key=custom-header", 55),
            (b"\x04\x0c/sample/path", ":path=/sample/path", 0),
            (b"\x10\x08password\x06secret", "Password=secret", 0),
            (b"\x82", ":method=GET", 0),
        ] {
            let mut decoder = Decoder::new();
            check(&mut decoder, block, &[field]);
            check_table(&decoder, size, if size == 0 { &[] } else { std::slice::from_ref(&field) });
        }
    }

    #[test]
    fn requests_are_those_of_the_rfc() {
        let plain = [
            "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
            "8286 84be 5808 6e6f 2d63 6163 6865",
            "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
        ];
        let encoded = [
            "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
            "8286 84be 5886 a8eb 1064 9cbf",
            "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
        ];
        let (authority, cache) = (":authority=www.example.com", "Cache-Control=no-cache");
        let custom = "Custom-Key=custom-value";
        for blocks in [plain, encoded] {
            let [first, second, third] = blocks.map(bytes);
            let mut decoder = Decoder::new();
            check(&mut decoder, &first, &[":method=GET", ":scheme=http", ":path=/", authority]);
            check_table(&decoder, 57, &[authority]);
            check(&mut decoder, &second, &[":method=GET", ":scheme=http", ":path=/", authority, cache]);
            check_table(&decoder, 110, &[cache, authority]);
            check(&mut decoder, &third, &[":method=GET", ":scheme=https", ":path=/index.html", authority, custom]);
            check_table(&decoder, 164, &[custom, cache, authority]);
        }
    }

    #[test]
    fn responses_are_those_of_the_rfc() {
        let plain = [
            "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3120 474d \
             546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
            "4803 3330 37c1 c0bf",
            "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a 6970 7738 666f \
             6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33 3630 303b \
             2076 6572 7369 6f6e 3d31",
        ];
        let encoded = [
            "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718 63c7 \
             8f0b 97c8 e9ae 82ae 43d3",
            "4883 640e ffc1 c0bf",
            "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 e6c7 b335 \
             dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
        ];
        let (cache, location) = ("Cache-Control=private", "Location=https://www.example.com");
        let (date, later) = ("Date=Mon, 21 Oct 2013 20:13:21 GMT", "Date=Mon, 21 Oct 2013 20:13:22 GMT");
        let cookie = "Set-Cookie=foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1";
        let coding = "Content-Encoding=gzip";
        for blocks in [plain, encoded] {
            let [first, second, third] = blocks.map(bytes);
            let mut decoder = Decoder::new();
            decoder.table.resize(256).expect("it may be so small");
            check(&mut decoder, &first, &[":status=302", cache, date, location]);
            check_table(&decoder, 222, &[location, date, cache, ":status=302"]);
            check(&mut decoder, &second, &[":status=307", cache, date, location]);
            check_table(&decoder, 222, &[":status=307", location, date, cache]);
            check(&mut decoder, &third, &[":status=200", cache, later, location, coding, cookie]);
            check_table(&decoder, 215, &[cookie, coding, later]);
        }
    }

    #[test]
    fn what_cannot_be_decoded_is_refused() {
        for block in [
            // No such index: zero, beyond both tables, and for a name.
            &b"\x80"[..],
            b"\xbe",
            b"\x7e\x01a",
            b"\x0f\x2f\x01a",
            // More than four bytes of an integer, and less than it has.
            b"\xff\x80\x80\x80\x80\x00",
            b"\xff",
            b"\xff\x80",
            // Less than a string has, or none.
            b"\x40",
            b"\x40\x01",
            b"\x40\x01a",
            b"\x40\x01a\x02b",
            b"\x40\x01a\x7f\xff\xff\xff\x7f",
            // Padding that is not.
            b"\x40\x01a\x81\x18",
            b"\x40\x81\xff\x01a",
            // Another size of the table, larger than ours or after a field.
            b"\x3f\xe2\x1f",
            b"\x82\x20",
        ] {
            assert_eq!(decoded(&mut Decoder::new(), block), Err(Undecodable), "{block:x?}");
        }
    }

    #[test]
    fn fields_that_http2_has_not_are_told() {
        for (name, value, are_sound) in [
            ("a", "", true),
            (":a", "b", true),
            ("a!#$%&'*+-.^_`|~9z", "\t b\u{e9}\u{7f0}", true),
            ("", "b", false),
            (":", "b", false),
            ("a:", "b", false),
            ("::a", "b", false),
            ("aB", "b", false),
            ("a\"", "b", false),
            ("a b", "b", false),
            ("\u{e9}", "b", false),
            ("a", "\0", false),
            ("a", "b\r", false),
            ("a", "b\nc", false),
            ("a", "\u{1f}b", false),
            ("a", "a value of more bytes than are looked at at once\u{7f}", false),
        ] {
            let mut decoder = Decoder::new();
            let sizes =
                [[name.len() as u8].as_slice(), name.as_bytes(), &[value.len() as u8], value.as_bytes()].concat();
            // The second one has it from the table, the third its name alone.
            for (block, are_sound) in [
                ([b"\x40", &sizes[..], b"\x82"].concat(), are_sound),
                (b"\xbe".to_vec(), are_sound),
                (b"\x7e\x01c".to_vec(), are_sound || name == "a"),
                (b"\xbf\xbe".to_vec(), are_sound),
            ] {
                let (fields, told) = decoded(&mut decoder, &block).expect("the table is in step");
                assert_eq!(told, are_sound, "{name:?}: {value:?} gives {fields:?}");
            }
        }
    }

    #[test]
    fn the_table_is_as_small_as_it_was_said() {
        let mut decoder = Decoder::new();
        // Two of 34 bytes, and a name that is that of the one that has to go.
        check(&mut decoder, b"\x3f\x24\x40\x01a\x01b\x40\x01c\x01d", &["A=b", "C=d"]);
        check_table(&decoder, 34, &["C=d"]);
        check(&mut decoder, b"\x3f\x28\x7e\x05again", &["C=again"]);
        check_table(&decoder, 38, &["C=again"]);
        check(
            &mut decoder,
            b"\x7e\x2ftoo much for a table of so few bytes, is it not",
            &["C=too much for a table of so few bytes, is it not"],
        );
        check_table(&decoder, 0, &[]);
        check(&mut decoder, b"\x20\x3f\xe1\x1f\x40\x01a\x01b", &["A=b"]);
        check_table(&decoder, 34, &["A=b"]);
    }
}
