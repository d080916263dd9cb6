//! Which of a rule's routes a request falls under.

use crate::{
    head::{Fields, RequestHead, ascii},
    policy::{HeaderMatch, HttpRoute, Match, QueryMatch, TextMatch},
};

/// The first of the routes that a request matches, and which of its matches that was; None where there are none.
pub fn select<'r>(
    routes: &'r [HttpRoute],
    head: &RequestHead,
    authority: &str,
) -> Option<(&'r HttpRoute, Option<&'r Match>)> {
    routes.iter().find_map(|route| {
        if route.matches.is_empty() {
            return Some((route, None));
        }
        let matched = route.matches.iter().find(|wanted| matches(wanted, head, authority))?;
        Some((route, Some(matched)))
    })
}

fn matches(wanted: &Match, head: &RequestHead, authority: &str) -> bool {
    let is = |matcher: &Option<TextMatch>, text: &str, ignore_case| {
        matcher.as_ref().is_none_or(|matcher| matcher.matches(text, ignore_case))
    };
    is(&wanted.path, head.uri().path(), wanted.ignore_case)
        && is(&wanted.method, head.method.as_str(), false)
        && is(&wanted.authority, authority, false)
        && wanted.headers.iter().all(|field| has_field(&head.fields, field))
        && !wanted.without_headers.iter().any(|field| has_unwanted_field(&head.fields, field))
        && wanted.query.iter().all(|parameter| has_parameter(head.uri().query(), parameter))
}

fn has_field(fields: &Fields, wanted: &HeaderMatch) -> bool {
    let mut values = fields.get_all(&wanted.name);
    let Some(first) = values.next() else { return false };
    let Some(matcher) = &wanted.value else { return true };
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    match (ascii(first), values.next()) {
        (Some(value), None) => matcher.matches(value, false),
        (_, None) => matcher.matches(&text(first), false),
        // Several fields of one name are one list (RFC 9110 section 5.3).
        (_, Some(second)) => {
            let all: Vec<_> = [first, second].into_iter().chain(values).map(text).collect();
            matcher.matches(&all.join(","), false)
        }
    }
}

/// As in Istio a field that is not there counts as an empty one, unless it is unwanted whatever it says.
fn has_unwanted_field(fields: &Fields, unwanted: &HeaderMatch) -> bool {
    let takes_empty = unwanted.value.as_ref().is_some_and(|matcher| matcher.matches("", false));
    has_field(fields, unwanted) || takes_empty && fields.get_all(&unwanted.name).next().is_none()
}

/// Parameters count as they are written, `%` and all; of several of one name the first counts, as in Envoy.
fn has_parameter(query: Option<&str>, wanted: &QueryMatch) -> bool {
    let parameters =
        query.unwrap_or_default().split('&').map(|parameter| parameter.split_once('=').unwrap_or((parameter, "")));
    let found = parameters.into_iter().find(|(name, _)| *name == &*wanted.name);
    found.is_some_and(|(_, value)| wanted.value.as_ref().is_none_or(|matcher| matcher.matches(value, false)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Location, Pattern};

    fn exact(text: &str) -> Option<TextMatch> {
        Some(TextMatch::Exact(text.into()))
    }

    /// Whether `GET /news?page=2&lang&q=a%20b` to `Cnn.com:80`, with some fields, is matched.
    fn check(wanted: &Match, expected: bool) {
        let fields = Fields::of(&[("X-User", "ann"), ("x-tag", "a"), ("x-tag", "b"), ("x-empty", "")]);
        let head = RequestHead::get("/news?page=2&lang&q=a%20b&page=3", fields);
        let route = HttpRoute {
            matches: vec![wanted.clone()],
            ..HttpRoute::catch_all(Location::whole(std::path::Path::new("a")))
        };
        let found = select(std::slice::from_ref(&route), &head, "Cnn.com:80");
        assert_eq!(found.is_some(), expected, "{wanted:?}");
        if let Some((_, matched)) = found {
            assert_eq!(matched, Some(wanted));
        }
    }

    #[test]
    fn all_points_of_a_match_count() {
        check(&Match::default(), true);
        check(
            &Match { path: exact("/news"), method: exact("GET"), authority: exact("Cnn.com:80"), ..Match::default() },
            true,
        );
        check(&Match { path: exact("/news"), method: exact("POST"), ..Match::default() }, false);
        check(&Match { path: exact("/News"), ..Match::default() }, false);
        check(&Match { path: exact("/News"), ignore_case: true, ..Match::default() }, true);
        check(&Match { authority: exact("cnn.com"), ..Match::default() }, false);
    }

    #[test]
    fn fields_are_matched_by_value_or_by_being_there() {
        let field = |name: &'static str, value| HeaderMatch { name: http::HeaderName::from_static(name), value };
        let regex = |source| Some(TextMatch::Regex(Pattern::whole(source).expect("an expression")));
        // Whether it is there as is wanted, and whether it is as it must not be.
        for (name, value, is_wanted, is_unwanted) in [
            ("x-user", None, true, true),
            ("x-user", exact("ann"), true, true),
            ("x-user", exact("bob"), false, false),
            ("x-user", exact(""), false, false),
            ("x-tag", exact("a,b"), true, true),
            ("x-tag", exact("a"), false, false),
            ("x-empty", None, true, true),
            ("x-empty", exact(""), true, true),
            ("x-other", None, false, false),
            ("x-other", exact("a"), false, false),
            ("x-other", regex(".+"), false, false),
            // One that is not there is empty where it must not be.
            ("x-other", exact(""), false, true),
            ("x-other", Some(TextMatch::Prefix("".into())), false, true),
            ("x-other", regex(".*"), false, true),
        ] {
            check(&Match { headers: vec![field(name, value.clone())], ..Match::default() }, is_wanted);
            check(&Match { without_headers: vec![field(name, value)], ..Match::default() }, !is_unwanted);
        }
    }

    #[test]
    fn parameters_are_matched_as_they_are_written() {
        let regex = |source| Some(TextMatch::Regex(Pattern::whole(source).expect("an expression")));
        for (name, value, expected) in [
            ("page", exact("2"), true),
            ("page", exact("3"), false),
            ("page", regex("[0-9]+"), true),
            ("lang", None, true),
            ("lang", exact(""), true),
            ("q", exact("a%20b"), true),
            ("q", exact("a b"), false),
            ("other", None, false),
        ] {
            check(&Match { query: vec![QueryMatch { name: name.into(), value }], ..Match::default() }, expected);
        }
    }

    #[test]
    fn the_first_route_counts_and_there_may_be_none() {
        let head = RequestHead::get("/a", Fields::default());
        let location = Location::whole(std::path::Path::new("a"));
        let of_path = |path| {
            let wanted = Match { path: exact(path), ..Match::default() };
            HttpRoute { name: Some(path.into()), matches: vec![wanted], ..HttpRoute::catch_all(location.clone()) }
        };
        let chosen = |routes: &[HttpRoute]| {
            let (route, _) = select(routes, &head, "a")?;
            route.name.as_deref().map(str::to_owned)
        };
        assert_eq!(
            chosen(&[of_path("/b"), of_path("/a"), HttpRoute::catch_all(location.clone())]).as_deref(),
            Some("/a")
        );
        assert_eq!(chosen(&[of_path("/b")]), None);
    }
}
