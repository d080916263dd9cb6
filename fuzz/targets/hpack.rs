//! Blocks of HPACK: any bytes can be decoded or are refused, and what is encoded from them is decoded as the same fields, over
//! as many blocks as one connection has.

#![no_main]

use bytes::BytesMut;
use egress::http2::hpack::{Decoder, Encoder};
use egress_fuzz::pieces;
use libfuzzer_sys::fuzz_target;

type Fields = Vec<(Vec<u8>, Vec<u8>, bool)>;

fuzz_target!(|bytes: &[u8]| {
    let _ = decode(&mut Decoder::new(), bytes);
    let (mut decoder, mut encoder, mut other) = (Decoder::new(), Encoder::new(), Decoder::new());
    // Pieces are short, so two bytes say how much of what follows is a block.
    let mut rest = bytes;
    while let Some(([length, size], after)) = rest.split_first_chunk() {
        let (block, after) = after.split_at(after.len().min((*length).into()));
        rest = after;
        if *size < 0x80 {
            encoder.set_table_size(u32::from(*size) * 48);
        }
        let Some((fields, are_sound)) = decode(&mut decoder, block) else { return };
        if are_sound {
            check(&mut encoder, &mut other, &fields);
        }
    }
    check_pieces(bytes);
});

/// The fields of a block, and whether HTTP/2 has such.
fn decode(decoder: &mut Decoder, block: &[u8]) -> Option<(Fields, bool)> {
    let mut fields = Fields::new();
    let are_sound =
        decoder.decode(block, |name, value, is_secret| fields.push((name.into(), value.into(), is_secret))).ok()?;
    Some((fields, are_sound))
}

/// They are the same at the other end.
fn check(encoder: &mut Encoder, decoder: &mut Decoder, fields: &Fields) {
    let mut block = BytesMut::new();
    encoder.begin(&mut block);
    for (name, value, is_secret) in fields {
        if *is_secret {
            encoder.secret(name, value, &mut block);
        } else {
            encoder.field(name, value, &mut block);
        }
    }
    let (decoded, are_sound) = decode(decoder, &block).expect("what we write can be read");
    assert_eq!(decoded.len(), fields.len());
    for (one, other) in fields.iter().zip(&decoded) {
        // More may have become secret, but nothing is one no more.
        assert!(one.0 == other.0 && one.1 == other.1 && one.2 <= other.2, "{one:?} {other:?}");
    }
    assert!(are_sound, "{fields:?}");
}

/// Any bytes can be a value, of which HTTP/2 has those without control characters.
fn check_pieces(bytes: &[u8]) {
    let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
    for piece in pieces(bytes) {
        let mut block = BytesMut::new();
        encoder.begin(&mut block);
        encoder.field(b"x-piece", piece, &mut block);
        let (fields, are_sound) = decode(&mut decoder, &block).expect("what we write can be read");
        assert_eq!(fields, [(b"X-Piece".to_vec(), piece.to_vec(), false)]);
        let control = piece.iter().any(|byte| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f);
        assert_eq!(are_sound, !control, "{piece:?}");
    }
}
