//! What a `DestinationRule` cannot say, nor its annotations.

use super::{check, errors};

#[test]
fn destination_rule() {
    check(
        "DestinationRule",
        &[
            ("trafficPolicy: {}", "@4: spec.host: this field is required"),
            (
                "host: a.com\ntrafficPolicy:\n  tls: {mode: SIMPLE}\n  proxyProtocol: {version: V2}\n  retryBudget: {}",
                "@8: spec.trafficPolicy.proxyProtocol: Istio has this field, egress does not implement it; remove it\n\
                 @9: spec.trafficPolicy.retryBudget: Istio has this field, egress does not implement it; remove it",
            ),
            (
                "host: a.com\ntrafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true}}}",
                "@6: spec.trafficPolicy.loadBalancer.consistentHash: Istio has this field, egress does not implement it; remove it",
            ),
            (
                "host: a.com\ntrafficPolicy: {loadBalancer: {localityLbSetting: {failover: []}}}",
                "@6: spec.trafficPolicy.loadBalancer.localityLbSetting: Istio has this field, egress implements only `enabled: false` of it; \
                 set that, or remove it",
            ),
            (
                "host: a.com\ntrafficPolicy: {loadBalancer: {localityLbSetting: {enabled: false, failover: []}}}",
                "@6: spec.trafficPolicy.loadBalancer.localityLbSetting.failover: Istio has this field, egress does not implement it; remove it",
            ),
            (
                "host: a.com\ntrafficPolicy: {loadBalancer: {simple: LEAST_CONN}}",
                "@6: spec.trafficPolicy.loadBalancer.simple: Istio has LEAST_CONN, egress does not implement it: Istio calls it \
                 LEAST_REQUEST now; use that",
            ),
            (
                "host: a.com\ntrafficPolicy: {connectionPool: {tcp: {connectTimeout: 10}, http: {maxRetries: -1}}}",
                "@6: spec.trafficPolicy.connectionPool.http.maxRetries: -1 is out of range; use 0 to 2147483647\n\
                 @6: spec.trafficPolicy.connectionPool.tcp.connectTimeout: \"10\" is not a time; write one such as 10s, \
                 250ms, 1.5h or 1h30m",
            ),
            (
                "host: a.com\ntrafficPolicy: {connectionPool: {tcp: {maxConnections: 0, connectTimeout: 1us}}}",
                "@6: spec.trafficPolicy.connectionPool.tcp.connectTimeout: 1us is too short; use 1ms or more",
            ),
            (
                "host: a.com\ntrafficPolicy: {connectionPool: {tcp: {tcpKeepalive: {probes: 128, time: 32768s, interval: 500ms}}}}",
                "@6: spec.trafficPolicy.connectionPool.tcp.tcpKeepalive.interval: 500ms is too short for the kernel, which counts in \
                 seconds; use 1s or more\n\
                 @6: spec.trafficPolicy.connectionPool.tcp.tcpKeepalive.probes: 128 is not what the kernel takes; use 1 to 127\n\
                 @6: spec.trafficPolicy.connectionPool.tcp.tcpKeepalive.time: 32768s is too long for the kernel; use 32767s or less",
            ),
            (
                "host: a.com\ntrafficPolicy: {connectionPool: {tcp: {tcpKeepalive: {probes: 127, time: 32767s, interval: 32767s}}}}",
                "",
            ),
            (
                "host: a.com\ntrafficPolicy: {outlierDetection: {maxEjectionPercent: 101, consecutiveErrors: 3}}",
                "@6: spec.trafficPolicy.outlierDetection.consecutiveErrors: Istio has this field, egress does not implement it; \
                 remove it\n\
                 @6: spec.trafficPolicy.outlierDetection.maxEjectionPercent: 101 is not a percentage; use 0 to 100",
            ),
            (
                "host: a.com\ntrafficPolicy: {outlierDetection: {consecutiveLocalOriginFailures: 3}}",
                "@6: spec.trafficPolicy.outlierDetection: consecutiveLocalOriginFailures needs splitExternalLocalOriginErrors; \
                 set that to true, or remove the former",
            ),
            (
                "host: a.com\ntrafficPolicy: {tunnel: {protocol: GET, targetHost: b.com}}",
                "@6: spec.trafficPolicy.tunnel.protocol: unknown value \"GET\"; use CONNECT, POST\n\
                 @6: spec.trafficPolicy.tunnel.targetPort: this field is required",
            ),
            (
                "host: a.com\nsubsets: [{name: v1}, {name: v1}]",
                "@6: spec.subsets[1].name: v1 is already at rules.yaml:6; remove one of them",
            ),
            (
                "host: a.com\ntrafficPolicy: {portLevelSettings: [{port: 80}]}",
                "@6: spec.trafficPolicy.portLevelSettings[0].port: expected a map, found the number 80",
            ),
            (
                "host: a.com\ntrafficPolicy:\n  portLevelSettings:\n  - port: {number: 80}\n  - port: {number: 80}",
                "@9: spec.trafficPolicy.portLevelSettings[1].port.number: 80 is already at rules.yaml:8; remove one of them",
            ),
            ("host: a.com\ntrafficPolcy: {}", "@6: spec.trafficPolcy: unknown field; did you mean `trafficPolicy`?"),
        ],
    );
}

/// As in Istio.
#[test]
fn an_empty_text_says_as_much_as_none() {
    let none = "sni: '', caCertificates: '', caCrl: '', credentialName: '', clientCertificate: '', privateKey: ''";
    let simple = format!("host: a.com\ntrafficPolicy: {{tls: {{mode: SIMPLE, {none}}}}}");
    let mutual = simple.replace("SIMPLE", "MUTUAL");
    let needs = |field| format!("@6: spec.trafficPolicy.tls.mode: MUTUAL needs {field}; add it, or use SIMPLE");
    let needs = [needs("clientCertificate"), needs("privateKey")].join("\n");
    check(
        "DestinationRule",
        &[
            (simple.as_str(), ""),
            (mutual.as_str(), needs.as_str()),
            // That is no text.
            (
                "host: a.com\ntrafficPolicy: {tls: ''}",
                "@6: spec.trafficPolicy.tls: expected a map, found the text \"\"",
            ),
            ("host: ''", "@5: spec.host: the host name is empty"),
        ],
    );
}

#[test]
fn tls() {
    let rows = [
        ("{}", "tls.mode: this field is required"),
        ("SIMPLE", "tls: expected a map, found the text \"SIMPLE\""),
        ("{mode: simple}", "tls.mode: unknown value \"simple\"; did you mean SIMPLE?"),
        (
            "{mode: ISTIO_MUTUAL}",
            "tls.mode: Istio has ISTIO_MUTUAL, egress does not implement it: there is no mesh identity; use MUTUAL with a \
             certificate, or SIMPLE",
        ),
        (
            "{mode: MUTUAL}",
            "tls.mode: MUTUAL needs clientCertificate; add it, or use SIMPLE\n@7: spec.trafficPolicy.tls.mode: MUTUAL needs privateKey; add it, or use SIMPLE",
        ),
        ("{mode: MUTUAL, clientCertificate: /c}", "tls.mode: MUTUAL needs privateKey; add it, or use SIMPLE"),
        ("{mode: MUTUAL, privateKey: /k}", "tls.mode: MUTUAL needs clientCertificate; add it, or use SIMPLE"),
        (
            "{mode: SIMPLE, clientCertificate: /c}",
            "tls.clientCertificate: a client certificate is for mode MUTUAL; set that, or remove this field",
        ),
        (
            "{mode: DISABLE, privateKey: /k}",
            "tls.privateKey: a client certificate is for mode MUTUAL; set that, or remove this field",
        ),
        (
            "{mode: SIMPLE, credentialName: x, caCertificates: /ca}",
            "tls.caCertificates: credentialName says where this is; remove one of them",
        ),
        (
            "{mode: DISABLE, credentialName: x}",
            "tls.credentialName: mode DISABLE needs no credential; use SIMPLE or MUTUAL, or remove it",
        ),
        (
            "{mode: SIMPLE, insecureSkipVerify: true, caCrl: /crl}",
            "tls.insecureSkipVerify: this verifies nothing, yet caCrl says against what to verify; remove one of them",
        ),
        (
            "{mode: SIMPLE, sni: 'a.com:443'}",
            "tls.sni: \"a.com:443\" contains a port; write `a.com` and give the port in its own field",
        ),
        (
            "{mode: SIMPLE, subjectAltNames: ['spiffe://a/b']}",
            "tls.subjectAltNames[0]: \"spiffe://a/b\" is a URI, which egress does not verify; give a DNS name or an IP address",
        ),
        (
            "{mode: SIMPLE, subjectAltNames: ['*.a.com']}",
            "tls.subjectAltNames[0]: Istio holds *.a.com against the names of a certificate to the letter, egress does not implement \
             that: it looks for a host that the certificate is valid for; give one, such as www.a.com",
        ),
        ("{mode: SIMPLE, insecureSkipVerify: 1}", "tls.insecureSkipVerify: expected true or false, found the number 1"),
        (
            "{mode: SIMPLE, insecureSkipVerify: true, caCertificates: /ca}",
            "tls.insecureSkipVerify: this verifies nothing, yet caCertificates says against what to verify; remove one of them",
        ),
        (
            "{mode: SIMPLE, insecureSkipVerify: true, subjectAltNames: [a.com]}",
            "tls.insecureSkipVerify: this verifies nothing, yet subjectAltNames says against what to verify; remove one of them",
        ),
        ("{mode: SIMPLE, SNI: a.com}", "tls.SNI: unknown field; did you mean `sni`?"),
    ];
    for (tls, expected) in rows {
        let spec = format!("host: a.com\ntrafficPolicy:\n  tls: {tls}");
        check("DestinationRule", &[(&spec, &format!("@7: spec.trafficPolicy.{expected}"))]);
    }
}

#[test]
fn annotations() {
    for (name, value, expected) in [
        ("min-tls", "'1.1'", "unknown value \"1.1\"; use 1.2 or 1.3"),
        ("min-tls", "1.3", "expected text, found the number 1.3; put it in quotes if it is meant"),
        ("pins", "' , '", "no pin in it; give at least one, or remove the annotation"),
        (
            "pins",
            "sha256/AAAA",
            "\"sha256/AAAA\" is not a pin: the SHA-256 of a public key (SubjectPublicKeyInfo), 44 characters of base64",
        ),
        (
            "pins",
            "sha1/ISpUCnT3SuwGS4cHxWmQYrUGrqs=",
            "\"sha1/ISpUCnT3SuwGS4cHxWmQYrUGrqs=\" is not a pin: the SHA-256 of a public key (SubjectPublicKeyInfo), 44 \
             characters of base64",
        ),
        ("pins-mode", "Enforce", "unknown value \"Enforce\"; did you mean enforce?"),
        ("pins-mode", "report", "there are no pins for this mode; add egress.dev/pins, or remove it"),
        ("require-post-quantum", "'yes'", "\"yes\" is neither \"true\" nor \"false\"; use one of them, in quotes"),
        ("require-postquantum", "'true'", "unknown annotation; did you mean `egress.dev/require-post-quantum`?"),
        ("colour", "red", "unknown annotation; egress has none of this name"),
    ] {
        let text = format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata:\n  name: x\n  annotations:\n    \
             other.dev/x: y\n    egress.dev/{name}: {value}\nspec: {{host: a.com}}\n"
        );
        let found = errors(&text);
        let expected = format!("rules.yaml:7: metadata.annotations[\"egress.dev/{name}\"]: {expected}");
        assert!(found.lines().any(|line| line == expected), "{expected}\n{found}");
    }
    let text = format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata:\n  name: x\n  annotations:\n    \
         egress.dev/pins: {PIN}\nspec:\n  host: a.com\n  trafficPolicy:\n    tls: {{mode: SIMPLE, insecureSkipVerify: true}}\n"
    );
    let place = "rules.yaml:10: spec.trafficPolicy.tls.insecureSkipVerify: this verifies nothing, yet the annotation";
    assert!(errors(&text).starts_with(place), "{}", errors(&text));
}

const PIN: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
