//! What is wrong where keys and passwords are: they are not told.

use super::{check, errors};

const KEY: &str = "-----BEGIN-PRIVATE-KEY-----MC4CAQAwBQYDK2VwBCIEIPx0j7-----END-PRIVATE-KEY-----";

#[test]
fn secrets() {
    for (text, expected) in [
        (format!("data: '{KEY}'"), "@4: data: expected a map, found a text of 78 characters"),
        ("data: hunter2".to_owned(), "@4: data: expected a map, found a text of 7 characters"),
        ("stringData: [hunter2]".to_owned(), "@4: stringData: expected a map, found a list"),
        (
            "stringData: {tls.key: 4711}".to_owned(),
            "@4: stringData[\"tls.key\"]: expected text, found a number; put it in quotes if it is meant",
        ),
        ("data: {tls.key: [hunter2]}".to_owned(), "@4: data[\"tls.key\"]: expected text, found a list"),
        (
            "data: {tls.key: !!int hunter2}".to_owned(),
            "@4: the value is not what its tag !!int says; remove one of them",
        ),
    ] {
        let text = format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: x}}\n{text}\n");
        assert_eq!(errors(&text), expected.replace('@', "rules.yaml:"), "{text}");
    }
    // A file that is none of ours.
    assert_eq!(errors(KEY), "rules.yaml:1: expected a map, found a text of 78 characters");
}

#[test]
fn values_of_header_fields() {
    let place = "http[0].headers.request.set.authorization";
    for (value, expected) in [
        (
            "\"Bearer hunter2\\n\"",
            "this text of 15 characters is not the value of a header field, as it ends in a line break; write `|-` in place of \
             `|`",
        ),
        (
            "\"Bearer\\nhunter2\"",
            "this text of 14 characters is not the value of a header field; use printable characters of ASCII, on one line",
        ),
        (
            "Basic hunter2%3D%3D",
            "Envoy takes what is between two % for a variable, egress does not implement them; write a plain value, and %% for a \
             percent sign",
        ),
        ("4711", "expected text, found a number; put it in quotes if it is meant"),
    ] {
        let spec = format!(
            "hosts: [a.com]\nhttp: [{{route: [{{destination: {{host: a.com}}}}], headers: {{request: {{set: {{authorization: \
             {value}}}}}}}}}]"
        );
        check("VirtualService", &[(&spec, &format!("@6: spec.{place}: {expected}"))]);
    }
}
