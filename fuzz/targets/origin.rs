//! What an origin or a proxy says before there is a response: what is read of a TLS handshake and of certificates for the sake of a
//! diagnosis, and a proxy's answer to whoever asks for a tunnel. It is the same however it comes.

#![no_main]

use std::{
    pin::Pin,
    task::{Context, Poll, Waker},
};

use bytes::{Bytes, BytesMut};
use egress::{
    http1::{self, Framing, Head, Limits},
    upstream::{
        tls::{Facts, Seen, Witnessed},
        tunnel,
    },
};
use egress_fuzz::pieces;
use libfuzzer_sys::fuzz_target;
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead as _, ReadBuf};

const LIMITS: Limits = Limits { head: 64 * 1024, fields: 64 };

fuzz_target!(|bytes: &[u8]| {
    check_handshake(bytes);
    check_certificate(bytes);
    check_answer(bytes);
});

/// What is seen of the beginning stays true.
fn check_handshake(bytes: &[u8]) {
    let whole = seen(bytes);
    assert_eq!(whole.count(), bytes.len());
    assert!(!whole.first_line().contains(['\r', '\n']));
    assert!(!(whole.is_http() && whole.looks_like_tls()));
    let mut length = 0;
    for piece in pieces(bytes) {
        length += piece.len();
        let part = seen(&bytes[..length]);
        assert!(part.looks_like_tls() || !whole.looks_like_tls());
        assert!(part.server_hello().is_none() || part.server_hello() == whole.server_hello());
        assert!(!part.asks_for_certificate() || whole.asks_for_certificate());
    }
}

fn seen(bytes: &[u8]) -> Seen {
    let (mut stream, witness) = Witnessed::new(bytes);
    let mut buffer = vec![0; bytes.len()];
    let mut context = Context::from_waker(Waker::noop());
    let read = Pin::new(&mut stream).poll_read(&mut context, &mut ReadBuf::new(&mut buffer));
    assert!(matches!(read, Poll::Ready(Ok(()))));
    witness.seen()
}

/// What is shown of a certificate is one line, and not too long.
fn check_certificate(bytes: &[u8]) {
    let Some(facts) = Facts::read(&CertificateDer::from(bytes)) else { return };
    for text in [&facts.subject, &facts.issuer, &facts.serial, &facts.names()] {
        assert!(!text.is_empty() && !text.contains(char::is_control), "{text:?}");
        assert!(text.chars().count() <= 600, "{text:?}");
    }
    let _ = (facts.has_weak_key(), egress::upstream::tls::date(facts.not_after));
}

/// Those who serve responses see the same head.
fn check_answer(bytes: &[u8]) {
    let whole = tunnel::parse(bytes);
    let mut length = 0;
    for piece in pieces(bytes) {
        length += piece.len();
        match tunnel::parse(&bytes[..length]) {
            Ok(Some(answer)) => {
                assert!(answer.length <= length);
                assert!(whole.as_ref().is_ok_and(|whole| *whole == Some(answer)));
                break;
            }
            Ok(None) => {}
            Err(_) => {
                assert!(whole.is_err());
                break;
            }
        }
    }
    let Ok(Some(answer)) = whole else { return };
    let mut input = BytesMut::from(bytes);
    let Ok(Some(head)) = Head::default().take(&mut input, LIMITS.head) else { panic!("{answer:?} has an end") };
    check_response(&head, &answer);
    assert_eq!(bytes.len() - input.len(), answer.length);
}

fn check_response(head: &Bytes, answer: &tunnel::Answer) {
    let Ok(mut parts) = http1::response(head, &LIMITS) else { return };
    assert_eq!(parts.status, answer.status);
    match http1::of_response(parts.status, &mut parts.fields, false) {
        Ok(Framing::Length(_)) => assert!(answer.has_length || http1::is_bare(parts.status)),
        Ok(Framing::Close) => assert!(!answer.has_length && !answer.is_chunked),
        // A coding that is not chunks alone is none that a tunnel has.
        Ok(Framing::Chunked) => assert!(!answer.has_length),
        Err(_) => {}
    }
}
