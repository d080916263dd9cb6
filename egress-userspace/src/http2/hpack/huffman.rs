//! The code of strings (RFC 7541 section 5.2 and appendix B).

use bytes::{BufMut, BytesMut};

use super::Undecodable;

/// How long the codes of all bytes are, in bits, and that of EOS. Nothing else is needed: codes are given out from the shortest
/// to the longest, and among equally long ones in the order of their symbols.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

const EOS: u16 = 256;
const LONGEST: u32 = 30;

/// How many bits are looked up at once: two of the most frequent symbols go into that, and the table into 16 KiB.
const AT_ONCE: u32 = 12;

#[derive(Clone, Copy)]
struct Code {
    bits: u32,
    length: u8,
}

/// What some bits begin with: one symbol or two, or none that is short enough.
#[derive(Clone, Copy)]
struct Found {
    symbols: [u8; 2],
    count: u8,
    length: u8,
}

/// The codes of one length.
#[derive(Clone, Copy)]
struct Group {
    /// The first code after them.
    end: u32,
    /// Where their symbols end among all.
    symbols: u16,
}

static CODES: [Code; 257] = codes();
static SHORT: [Found; 1 << AT_ONCE] = short(&codes());
static GROUPS: [Group; LONGEST as usize + 1] = groups();
/// In the order of their codes.
static SYMBOLS: [u16; 257] = symbols();

// Each sequence of bits is one of symbols: no code is missing, and none begins as another.
const _: () = assert!(GROUPS_END == 1 << LONGEST);
const GROUPS_END: u32 = groups()[LONGEST as usize].end;

// So that decoding need look for them among the long ones alone.
const _: () = assert!(controls_are_long());

/// How many bytes this takes, encoded.
pub fn encoded_len(text: &[u8]) -> usize {
    text.iter().map(|byte| usize::from(LENGTHS[usize::from(*byte)])).sum::<usize>().div_ceil(8)
}

/// Adds `text`, encoded.
pub fn encode(text: &[u8], out: &mut BytesMut) {
    let (mut bits, mut held) = (0_u64, 0_u32);
    for byte in text {
        let code = CODES[usize::from(*byte)];
        bits = bits << code.length | u64::from(code.bits);
        held += u32::from(code.length);
        if held >= 32 {
            held -= 32;
            out.put_u32((bits >> held) as u32);
        }
    }
    let last = (bits << (32 - held)) as u32 | u32::MAX >> held;
    out.extend_from_slice(&last.to_be_bytes()[..held.div_ceil(8) as usize]);
}

/// What is encoded in `text`, and whether there are control characters other than tab in it. It is decoded into `room`, which
/// grows as needed.
pub fn decode<'a>(text: &[u8], room: &'a mut Vec<u8>) -> Result<(&'a [u8], bool), Undecodable> {
    // No code is shorter than five bits, and eight bytes are written at once.
    let most = text.len() * 8 / 5 + 8;
    if room.len() < most {
        room.resize(most, 0);
    }
    let mut input = Bits { rest: text, window: 0, held: 0, control: false };
    let mut end = 0;
    loop {
        input.fill();
        if input.held < 56 {
            break;
        }
        end += match input.short_ones(&mut room[end..]) {
            0 => input.symbols(&mut room[end..])?,
            count => count,
        };
    }
    loop {
        // With ones after it, what is cut off is another symbol only if it is no padding, and then longer than what is held.
        input.window |= u64::MAX >> input.held;
        if input.held < 8 && input.window == u64::MAX {
            return Ok((&room[..end], input.control));
        }
        end += input.symbols(&mut room[end..])?;
    }
}

/// What is still to be decoded.
struct Bits<'a> {
    rest: &'a [u8],
    /// The next bits, from the highest on.
    window: u64,
    /// How many of them there are; never more than 63.
    held: u32,
    /// There was a control character among those taken.
    control: bool,
}

impl Bits<'_> {
    /// Takes as much as there is room for, at least 56 bits if there are so many.
    fn fill(&mut self) {
        if let Some(next) = self.rest.first_chunk() {
            // Bits beyond those held get there as well. They are what will be put there again.
            self.window |= u64::from_be_bytes(*next) >> self.held;
            let taken = (63 - self.held) / 8;
            self.held += 8 * taken;
            self.rest = &self.rest[taken as usize..];
            return;
        }
        while let (true, Some((next, rest))) = (self.held < 56, self.rest.split_first()) {
            self.window |= u64::from(*next) << (56 - self.held);
            self.held += 8;
            self.rest = rest;
        }
    }

    /// Writes up to eight symbols to `room`, as long as they have short codes, and gives how many. At least 56 bits are held.
    fn short_ones(&mut self, room: &mut [u8]) -> usize {
        let (mut symbols, mut count) = (0, 0);
        for _ in 0..4 {
            let found = SHORT[(self.window >> (u64::BITS - AT_ONCE)) as usize];
            if found.count == 0 {
                break;
            }
            symbols |= u64::from(u16::from_le_bytes(found.symbols)) << (8 * count);
            count += u32::from(found.count);
            self.window <<= found.length;
            self.held -= u32::from(found.length);
        }
        room[..8].copy_from_slice(&symbols.to_le_bytes());
        count as usize
    }

    /// Writes the next symbol or two to `room`, and gives how many.
    fn symbols(&mut self, room: &mut [u8]) -> Result<usize, Undecodable> {
        let mut found = SHORT[(self.window >> (u64::BITS - AT_ONCE)) as usize];
        if found.count == 0 {
            found = long((self.window >> 32) as u32)?;
            // No control character has a short code.
            self.control |= is_control(found.symbols[0]);
        }
        let length = u32::from(found.length);
        self.held = self.held.checked_sub(length).ok_or(Undecodable)?;
        self.window <<= length;
        room[..2].copy_from_slice(&found.symbols);
        Ok(found.count.into())
    }
}

/// The symbol that `window` begins with, if it is none of the short ones.
#[cold]
fn long(window: u32) -> Result<Found, Undecodable> {
    for length in AT_ONCE + 1..=LONGEST {
        let (group, code) = (GROUPS[length as usize], window >> (u32::BITS - length));
        if code < group.end {
            let symbol = SYMBOLS[usize::from(group.symbols) - (group.end - code) as usize];
            // EOS is not to be sent at all.
            let symbol = u8::try_from(symbol).map_err(|_| Undecodable)?;
            return Ok(Found { symbols: [symbol, 0], count: 1, length: length as u8 });
        }
    }
    Err(Undecodable)
}

/// Whether values of fields may not have it.
pub const fn is_control(byte: u8) -> bool {
    (byte < b' ') & (byte != b'\t') | (byte == 0x7f)
}

const fn controls_are_long() -> bool {
    let mut byte = 0;
    while byte <= u8::MAX as usize {
        if is_control(byte as u8) && LENGTHS[byte] as u32 <= AT_ONCE {
            return false;
        }
        byte += 1;
    }
    true
}

const fn groups() -> [Group; LONGEST as usize + 1] {
    let mut groups = [Group { end: 0, symbols: 0 }; LONGEST as usize + 1];
    let mut length = 1;
    while length < groups.len() {
        let before = groups[length - 1];
        let (mut end, mut count, mut symbol) = (before.end << 1, before.symbols, 0);
        while symbol < LENGTHS.len() {
            if LENGTHS[symbol] as usize == length {
                end += 1;
                count += 1;
            }
            symbol += 1;
        }
        groups[length] = Group { end, symbols: count };
        length += 1;
    }
    groups
}

const fn symbols() -> [u16; 257] {
    let (mut symbols, mut count, mut length) = ([EOS; 257], 0, 1);
    while length <= LONGEST {
        let mut symbol = 0;
        while symbol < LENGTHS.len() {
            if LENGTHS[symbol] as u32 == length {
                symbols[count] = symbol as u16;
                count += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    symbols
}

const fn codes() -> [Code; 257] {
    let (symbols, groups) = (symbols(), groups());
    let mut codes = [Code { bits: 0, length: 0 }; 257];
    let mut at = 0;
    while at < symbols.len() {
        let length = LENGTHS[symbols[at] as usize];
        let group = groups[length as usize];
        codes[symbols[at] as usize] = Code { bits: group.end - (group.symbols - at as u16) as u32, length };
        at += 1;
    }
    codes
}

const fn short(codes: &[Code; 257]) -> [Found; 1 << AT_ONCE] {
    let mut found = [Found { symbols: [0; 2], count: 0, length: 0 }; 1 << AT_ONCE];
    let mut symbol = 0;
    while symbol < EOS as usize {
        let code = codes[symbol];
        if let Some(beyond) = AT_ONCE.checked_sub(code.length as u32) {
            let mut at = 0;
            while at < 1 << beyond {
                found[((code.bits << beyond) + at) as usize] =
                    Found { symbols: [symbol as u8, 0], count: 1, length: code.length };
                at += 1;
            }
        }
        symbol += 1;
    }
    with_second(&found)
}

const fn with_second(one: &[Found; 1 << AT_ONCE]) -> [Found; 1 << AT_ONCE] {
    let mut two = *one;
    let mut at = 0;
    while at < one.len() {
        let first = one[at];
        let second = one[(at << first.length) % one.len()];
        let length = first.length + second.length;
        if first.count == 1 && second.count == 1 && length as u32 <= AT_ONCE {
            two[at] = Found { symbols: [first.symbols[0], second.symbols[0]], count: 2, length };
        }
        at += 1;
    }
    two
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(text: &[u8]) -> BytesMut {
        let mut out = BytesMut::new();
        encode(text, &mut out);
        assert_eq!(out.len(), encoded_len(text), "{text:?}");
        out
    }

    #[test]
    fn codes_are_those_of_the_rfc() {
        for (symbol, bits, length) in [
            (0, 0x1ff8, 13),
            (10, 0x3fff_fffc, 30),
            (usize::from(b'0'), 0, 5),
            (usize::from(b'a'), 3, 5),
            (usize::from(b'Z'), 0xfd, 8),
            (usize::from(b'\\'), 0x7fff0, 19),
            (127, 0xfff_fffc, 28),
            (128, 0xfffe6, 20),
            (255, 0x3ff_ffee, 26),
            (256, 0x3fff_ffff, 30),
        ] {
            assert_eq!((CODES[symbol].bits, u32::from(CODES[symbol].length)), (bits, length), "{symbol}");
        }
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let all: Vec<u8> = (0..=255).collect();
        let mut room = Vec::new();
        for from in 0..=255 {
            for to in from..=256 {
                let text = &all[from..to];
                assert_eq!(decode(&encoded(text), &mut room), Ok((text, text.iter().any(|byte| is_control(*byte)))));
            }
            for second in 0..=255 {
                let text = [b'0', from as u8, second, b'a', from as u8];
                let control = is_control(from as u8) || is_control(second);
                assert_eq!(decode(&encoded(&text), &mut room), Ok((&text[..], control)));
            }
        }
    }

    #[test]
    fn what_is_not_encoded_is_refused() {
        for text in [
            // Padding of eight bits, of 15, and of an EOS.
            &b"\xff"[..],
            b"\x1f\xff\xff",
            b"\xff\xff\xff\xff",
            // Padding that is not of ones, alone and after a symbol.
            b"\x00",
            b"\x1e",
            // EOS with something after it, also where there is a lot more.
            b"\xff\xff\xff\xfc",
            b"\xff\xff\xff\xfc\x63\x8c\x63\x8c\x63\x8c\x63\x8c\x63",
            // A long code that is cut off.
            b"\xff\xfe",
        ] {
            assert_eq!(decode(text, &mut Vec::new()), Err(Undecodable), "{text:x?}");
        }
        assert_eq!(decode(b"", &mut Vec::new()), Ok((&b""[..], false)));
        assert_eq!(decode(b"\x1f", &mut Vec::new()), Ok((&b"a"[..], false)));
    }
}
