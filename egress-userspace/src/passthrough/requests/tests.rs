use super::{
    head::{NO_END, ODD_FRAMING, ODD_NAME},
    *,
};

const OTHER: &str = "GET / HTTP/1.1\r\nHost: other.example\r\n\r\n";
const OURS: &str = "GET / HTTP/1.1\r\nHost: edition.cnn.com\r\n\r\n";

/// What goes on, and why it ended, if the bytes come in pieces of that size.
fn follow(bytes: &[u8], piece: usize) -> (usize, Next) {
    let is_configured = |host: &str, port: Option<u16>| host == "edition.cnn.com" && port.is_none_or(|port| port == 80);
    let mut requests = Requests::new(is_configured);
    let (mut sent, mut come) = (0, 0);
    loop {
        match requests.next(&bytes[sent..come]) {
            Next::Forward(count) => sent += count,
            Next::Undecided if come < bytes.len() => come = bytes.len().min(come + piece),
            end => return (sent, end),
        }
    }
}

fn check(before: &str, from: &str, expected: &Next) {
    let all = [before, from].concat();
    for piece in [1, 2, 7, all.len().max(1)] {
        assert_eq!(follow(all.as_bytes(), piece), (before.len(), follow(from.as_bytes(), from.len()).1), "{all:?}");
        assert_eq!(&follow(all.as_bytes(), piece).1, expected, "{all:?}");
    }
}

#[test]
fn requests_for_other_hosts_go_on_with_their_content() {
    let undecided = &Next::Undecided;
    check(OTHER, "", undecided);
    check("\r\n\nGET /x HTTP/1.0\nHOST : other.example\n\n", "", undecided);
    check("POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nGET /", "", undecided);
    check(
        "PUT / HTTP/1.1\r\nTransfer-Encoding: gzip, Chunked\r\n\r\n5;a=b\r\nGET /\r\n0\r\nTrailer: x\r\n\r\n",
        "",
        undecided,
    );
    check("POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n", "GET / HT", undecided);
    check("OPTIONS * HTTP/1.1\r\nHost: other.example\r\n\r\n", "", undecided);
    // What a path says is nobody's Host.
    check("CONNECT edition.cnn.com:443 HTTP/1.1\r\nHost: edition.cnn.com:443\r\n\r\n", "", undecided);
    check("GET / HTTP/1.1\r\nHost: other.example\r\nUpgrade: websocket, TLS/1.0\r\n\r\n", "", undecided);
    check("GET /?next=http://edition.cnn.com/ HTTP/1.1\r\nHost: other.example\r\n\r\n", "", undecided);
}

#[test]
fn a_request_for_a_configured_host_is_found_wherever_it_begins() {
    let before = [
        "",
        OTHER,
        "POST / HTTP/1.1\r\nHost: other.example\r\nContent-Length: 3\r\n\r\nabc",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        "GET /chat HTTP/1.1\r\nHost: other.example\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        "PROXY TCP4 192.0.2.1 198.51.100.1 56324 80\r\n",
        "\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x01\x02\x03\x04\x05\x06\x07\x08\0P\0P",
        "\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
        "CONNECT edition.cnn.com:443 HTTP/1.1\r\nHost: edition.cnn.com:443\r\n\r\n",
    ];
    let forms = [
        OURS,
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "GET / HTTP/1.1\nhost:EDITION.cnn.com.:80\n\n",
        "GET / HTTP/1.1\r\nHost : edition.cnn.com\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: other.example\r\nHost: edition.cnn.com\r\n\r\n",
        "GET http://edition.cnn.com/x HTTP/1.1\r\nHost: other.example\r\n\r\n",
        "GET http://edition.cnn.com HTTP/1.0\r\n\r\n",
        "GET  / http/1.1 \r\nbad header\r\nHost: edition.cnn.com\r\n\r\n",
        "GET  http://edition.cnn.com/ HTTP/1.1\r\nHost: other.example\r\n\r\n",
        "CONNECT edition.cnn.com:80 HTTP/1.1\r\nHost: other.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost:\r\n edition.cnn.com\r\n\r\n",
        "GET /\x01 HTTP/1.1\r\nHost: edition.cnn.com\r\n\r\n",
        " GET / HTTP/1.1\r\nHost: edition.cnn.com\r\n\r\n",
        "GET / HTTP/01.1\r\nHost: edition.cnn.com\r\n\r\n",
        "PROXY / HTTP/1.1\r\nHost: edition.cnn.com\r\n\r\n",
        "GET\x0c/ HTTP/1.1\r\nHost: edition.cnn.com\r\n\r\n",
        "GET \x0b/\x0bHTTP/1.1\x0b\r\nHost: edition.cnn.com\r\n\r\n",
        "\x0cGET / HTTP/1.1 \x0b\r\nHost: edition.cnn.com\r\n\r\n",
        "CONNECT other.example:443 HTTP/1.1\r\nHost: edition.cnn.com\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: other.example\r\nUpgrade: a\r\nUpgrade: TLS/1.0,H2C\r\n\r\n",
    ];
    for before in before {
        for form in forms {
            check(before, form, &Next::Configured);
        }
    }
}

#[test]
fn what_is_not_http_goes_on_for_good() {
    for text in [
        "SSH-2.0-OpenSSH_9.2\r\n",
        "EHLO mail.example\r\n",
        "PING\r\n",
        "\x16\x03\x01\0\u{1}",
        "GET /\r\n",
        "get\0",
        "\0",
        "\r\n\0",
        "0 \x02\x01\x01",
    ] {
        check(&[text, OURS].concat(), "", &Next::Undecided);
    }
}

#[test]
fn half_a_request_goes_nowhere_and_half_of_something_else_does() {
    let end = |bytes: &[u8]| Requests::new(|_: &str, _| false).end(bytes);
    for half in [
        "GET /secret HTTP/1.1\r\nHost: edition.cnn.com\r\nCookie: x\r\n",
        "GET /secret",
        "GET /secret HTTP/1.1\r\n",
        "GET\t/secret",
    ] {
        assert!(matches!(end(half.as_bytes()), Next::Doubtful(_)), "{half:?}");
    }
    for other in ["PING", "PING\r\n", "SSH-2.0-x\r\n", "\x16\x03"] {
        assert_eq!(end(other.as_bytes()), Next::Forward(other.len()), "{other:?}");
    }
}

#[test]
fn a_head_is_looked_through_once_however_it_comes() {
    let names = "\r\n Host: other.example".repeat(MAX_HEAD / 30);
    let folded = ["GET / HTTP/1.1\r\nX: y", &names, "\r\n\r\n"].concat();
    assert_eq!(
        follow(folded.as_bytes(), folded.len()),
        (0, Next::Doubtful("the Host of a request is not a host name"))
    );
    for text in ["x".repeat(MAX_HEAD - 100), "\n".to_owned(), "a\n".repeat(MAX_HEAD / 4)] {
        let all = ["GET /", &" ".repeat(100), "/ HTTP/1.1\r\nX: ", &text, "\r\n\r\n", OURS].concat();
        assert!(matches!(follow(all.as_bytes(), 1).1, Next::Configured | Next::Doubtful(_)));
    }
}

#[test]
fn what_nobody_can_tell_the_end_of_goes_nowhere() {
    let blanks = [&" ".repeat(MAX_BLANKS), "GET / HTTP/1.1\r\nHost: edition.cnn.com\r\n\r\n"].concat();
    let many = ["GET / HTTP/1.1\r\n", &"Host: other.example\r\n".repeat(9), "\r\n"].concat();
    for (text, sent, reason) in [
        ("GET / HTTP/1.1\r\nHost: two words\r\n\r\n", 0, "the Host of a request is not a host name"),
        ("GET / HTTP/1.1\r\nHost\x0b: edition.cnn.com\r\n\r\n", 0, ODD_NAME),
        ("GET\r/ HTTP/1.1\r\nHost: edition.cnn.com\r\n\r\n", 0, LONE_CR),
        ("CONNECT other.example:80 HTTP/1.1\r\nContent-Length: 60\r\n\r\n", 0, ODD_FRAMING),
        ("PROXY UNKNOWN a\nb\r\nGET / HTTP/1.1\r\nHost: edition.cnn.com\r\n\r\n", 0, PROXY_END),
        ("PROXY UNKNOWN a\rb\r\nGET / HTTP/1.1\r\nHost: edition.cnn.com\r\n\r\n", 0, LONE_CR),
        (&blanks, 0, BLANKS),
        (&many, 0, "a request has too many Host fields"),
        ("GET / HTTP/1.1\r\nX: a\rHost: edition.cnn.com\r\n\r\n", 0, LONE_CR),
        ("GET / HTTP/1.1\rHost: edition.cnn.com\r\n\r\n", 0, LONE_CR),
        ("POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n", 0, "the Content-Length of a request is not one number"),
        ("POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\n", 0, "the Content-Length of a request is not one number"),
        ("POST / HTTP/1.1\r\nContent-Length: 1, 2\r\n\r\n", 0, "the Content-Length of a request is not one number"),
        (
            "POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            0,
            "a request has both Content-Length and Transfer-Encoding",
        ),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 0, NO_END),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n", 0, NO_END),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked, identity\r\n\r\n", 0, NO_END),
        ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 0, NO_END),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 47, "the size of a chunk is not a number"),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n+1\r\n", 47, "the size of a chunk is not a number"),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5 5\r\n", 47, "the size of a chunk is not a number"),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;x\n", 47, "the size of a chunk is not a number"),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;x\ry\r\n", 47, "the size of a chunk is not a number"),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\na: b\rc\r\n", 50, LONE_CR),
        ("POST / HTTP/1.1\r\nX: a\r\n Content-Length: 50\r\n\r\n", 0, ODD_FRAMING),
        ("POST / HTTP/1.1\r\nContent-Length: 5\r\n 0\r\n\r\n", 0, ODD_FRAMING),
        ("POST / HTTP/1.1\r\nContent-Length : 5\r\n\r\n", 0, ODD_FRAMING),
        ("POST / HTTP/1.1\r\nContent-Length\x0b: 5\r\n\r\n", 0, ODD_FRAMING),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: \x0cchunked\r\n\r\n", 0, ODD_FRAMING),
        (
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
            51,
            "a chunk of a request does not end where it should",
        ),
    ] {
        assert_eq!(follow(text.as_bytes(), 3), (sent, Next::Doubtful(reason)), "{text:?}");
    }
    let long = ["GET / HTTP/1.1\r\nX: ", &"x".repeat(MAX_HEAD)].concat();
    assert_eq!(follow(long.as_bytes(), 65536), (0, Next::Doubtful("the head of a request is too long")));
}
