//! Whether a route wants a request sent again, and when. Whether that is safe is another question: see
//! `request::attempt`.

use std::time::Duration;

use http::{HeaderName, StatusCode};

use crate::{head::Fields, policy::RetryOn};

/// Envoy's longest pause, as a multiple of the first.
const LONGEST: u32 = 10;

/// How an attempt has ended.
#[derive(Clone, Copy, Debug)]
pub enum Ended<'a> {
    /// With a response.
    Response(StatusCode, &'a Fields),
    /// No connection could be made, TLS included.
    NotConnected,
    /// It was not to be tried: there is as much under way as the upstream's settings allow.
    Overflow,
    /// The connection was gone before anything was sent, or there was none in time.
    NotSent,
    /// The origin refused the stream, and has not looked at it (REFUSED_STREAM, RFC 9113 section 8.7).
    RefusedStream,
    /// There was no response: the connection broke, or it took too long.
    NoResponse,
}

/// Whether a route with these settings wants such an attempt repeated.
pub fn is_wanted(on: &RetryOn, ended: Ended<'_>) -> bool {
    // What gets no response is answered with a 5xx by us, and counts as one.
    let no_response = on.server_error || on.gateway_error || on.reset;
    match ended {
        Ended::Response(status, fields) => {
            (on.server_error && status.is_server_error())
                || (on.gateway_error && matches!(status.as_u16(), 502..=504))
                || (on.conflict && status == StatusCode::CONFLICT)
                || on.statuses.contains(&status)
                || grpc_status(fields).is_some_and(|status| on.grpc_statuses.contains(&status))
        }
        // One more would make it worse.
        Ended::Overflow => false,
        Ended::NotConnected => no_response || on.connect_failure || on.reset_before_request,
        Ended::NotSent => no_response || on.reset_before_request,
        Ended::RefusedStream => no_response || on.refused_stream,
        Ended::NoResponse => no_response,
    }
}

fn grpc_status(fields: &Fields) -> Option<u8> {
    fields.text(&HeaderName::from_static("grpc-status"))?.trim().parse().ok()
}

/// The pause before the `nth` retry, counted from 1: drawn by `random` (from 0 to 1), so that those who fail together do not
/// come back together, from a range that doubles each time.
pub fn pause(base: Duration, nth: u32, random: f64) -> Duration {
    let factor = 2_u32.saturating_pow(nth).saturating_sub(1).min(LONGEST);
    base.saturating_mul(factor).mul_f64(random.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_condition_asks_for_what_it_says() {
        let none = RetryOn::default;
        let fields = Fields::default();
        let status = |code| Ended::Response(StatusCode::from_u16(code).expect("a status"), &fields);
        for (on, wanted, not) in [
            (
                RetryOn { server_error: true, ..none() },
                vec![status(500), status(503), Ended::NoResponse],
                vec![status(404)],
            ),
            (RetryOn { gateway_error: true, ..none() }, vec![status(502), Ended::NotConnected], vec![status(500)]),
            (RetryOn { reset: true, ..none() }, vec![Ended::NoResponse, Ended::NotSent], vec![status(503)]),
            (RetryOn { reset_before_request: true, ..none() }, vec![Ended::NotSent], vec![Ended::NoResponse]),
            (RetryOn { connect_failure: true, ..none() }, vec![Ended::NotConnected], vec![Ended::NotSent, status(503)]),
            (RetryOn { refused_stream: true, ..none() }, vec![Ended::RefusedStream], vec![Ended::NoResponse]),
            (RetryOn { conflict: true, ..none() }, vec![status(409)], vec![status(500), status(404)]),
            (RetryOn { statuses: vec![StatusCode::TOO_MANY_REQUESTS], ..none() }, vec![status(429)], vec![status(503)]),
            (RetryOn { server_error: true, connect_failure: true, ..none() }, vec![], vec![Ended::Overflow]),
            (none(), vec![], vec![status(503), Ended::NotConnected, Ended::NoResponse]),
        ] {
            assert!(wanted.iter().all(|ended| is_wanted(&on, *ended)), "{on:?}");
            assert!(!not.iter().any(|ended| is_wanted(&on, *ended)), "{on:?}");
        }
        let unavailable = Fields::of(&[("grpc-status", "14")]);
        let on = RetryOn { grpc_statuses: vec![14], ..none() };
        assert!(is_wanted(&on, Ended::Response(StatusCode::OK, &unavailable)));
        assert!(!is_wanted(&on, Ended::Response(StatusCode::OK, &fields)));
    }

    #[test]
    fn pauses_grow_and_have_an_end() {
        let base = Duration::from_millis(25);
        let longest = |nth| pause(base, nth, 1.0).as_millis();
        assert_eq!([1, 2, 3, 4, 40].map(longest), [25, 75, 175, 250, 250]);
        assert_eq!(pause(base, 3, 0.0), Duration::ZERO);
    }
}
