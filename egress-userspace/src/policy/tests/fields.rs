//! What routes and traffic policies become, to the last field.

use super::*;

/// What a route of a `VirtualService` becomes, to the last field.
#[test]
fn routes_are_compiled() {
    let route = "{\
        name: r, \
        route: [\
            {destination: {host: a.com}, weight: 1, headers: {request: {set: {X-A: '1%%'}}}}, \
            {destination: {host: b.com}, weight: 3}, \
            {destination: {host: b.com}, weight: 0}\
        ], \
        rewrite: {uriRegexRewrite: {match: '^/(v[0-9])/\\$', rewrite: '/\\1$x'}, authority: 'c.com:8080'}, \
        headers: {response: {add: {X-B: b}, remove: [x-c]}}, \
        timeout: 0s, \
        retries: {attempts: 2, perTryTimeout: 1s, retryOn: 'gateway-error, retriable-status-codes,429,unavailable'}, \
        mirror: {host: b.com}, mirrorPercentage: {value: 0.1}}";
    let service = format!(
        "kind: VirtualService\napiVersion: networking.istio.io/v1\nmetadata: {{name: x}}\nspec: {{hosts: [a.com], http: [{route}]}}\n"
    );
    let text =
        [&entry("a.com", HTTP), &entry("b.com", HTTP), &destination("a.com", SIMPLE), &destination("b.com", SIMPLE)]
            .map(String::as_str)
            .concat()
            + &service;
    let documents = config::parse(&text, Path::new("rules.yaml")).expect("valid documents");
    let (policy, diagnostics) = Policy::compile(&documents).expect("valid rules");
    assert_eq!(diagnostics, []);

    let rules: Vec<_> = policy.rules().collect();
    assert_eq!(rules.len(), 2, "{rules:?}");
    let rule = rules[0];
    let hosts: Vec<_> = rule.upstreams.iter().map(|upstream| upstream.host.to_string()).collect();
    assert_eq!(hosts, ["a.com", "b.com"]);
    // The same upstream is one for all rules.
    assert!(Arc::ptr_eq(&rule.upstreams[1], &rules[1].upstreams[0]));

    let [route] = rule.routes.as_slice() else { panic!("{:?}", rule.routes) };
    assert_eq!((route.name.as_deref(), route.matches.len(), route.timeout), (Some("r"), 0, None));
    let Action::Forward(destinations) = &route.action else { panic!("{:?}", route.action) };
    let shares: Vec<_> = destinations.iter().map(|to| (to.upstream.0, to.up_to)).collect();
    assert_eq!(shares, [(0, 1), (1, 4)]);
    let set = &destinations[0].headers.request.set;
    assert_eq!(set, &[(HeaderName::from_static("x-a"), HeaderValue::from_static("1%"))]);

    let Some(PathRewrite::Regex(pattern, substitution)) = &route.rewrite.path else { panic!("{:?}", route.rewrite) };
    assert_eq!(pattern.regex().replace_all("/v1/$", &**substitution), "/v1$x");
    assert_eq!(route.rewrite.authority.as_ref().map(Authority::as_str), Some("c.com:8080"));
    assert_eq!(route.headers.response.add, [(HeaderName::from_static("x-b"), HeaderValue::from_static("b"))]);
    assert_eq!(route.headers.response.remove, [HeaderName::from_static("x-c")]);
    let retries = Retries {
        attempts: 2,
        per_try_timeout: Some(Duration::from_secs(1)),
        on: RetryOn {
            gateway_error: true,
            // Not 503, which is what `retriable-status-codes` is without a list.
            statuses: vec![StatusCode::TOO_MANY_REQUESTS],
            grpc_statuses: vec![14],
            ..RetryOn::default()
        },
        elsewhere: true,
        backoff: Duration::from_millis(25),
    };
    assert_eq!(route.retries, Some(retries));
    assert_eq!(route.mirrors, [Mirror { upstream: UpstreamIndex(1), share: Share(1_000) }]);
}

#[test]
fn an_empty_retry_on_is_none() {
    let on = |retry_on: &str| {
        let text = format!(
            "kind: VirtualService\napiVersion: networking.istio.io/v1\nmetadata: {{name: x}}\nspec: {{hosts: [a.com], http: [{{route: \
             [{{destination: {{host: a.com}}}}], retries: {{attempts: 2{retry_on}}}}}]}}\n"
        );
        let text = entry("a.com", HTTP) + &destination("a.com", SIMPLE) + &text;
        let documents = config::parse(&text, Path::new("rules.yaml")).expect("valid documents");
        let (policy, _) = Policy::compile(&documents).expect("valid rules");
        policy.rules().next().expect("a rule").routes[0].retries.clone().expect("retries").on
    };
    assert_eq!(on(", retryOn: ''"), on(""));
    assert!(on("").connect_failure && !on(", retryOn: 5xx").connect_failure);
}

/// What a `DestinationRule` says of connections, and what is the default for what it does not say.
#[test]
fn traffic_policies_are_compiled() {
    let upstream = |policy: &str, more: &str, subset: &str| -> Arc<Upstream> {
        let entry = entry(
            "a.com",
            "ports: [{number: 80, name: a, protocol: HTTP, targetPort: 443}], resolution: STATIC, endpoints: [\
             {address: 203.0.113.7, labels: {v: one}, weight: 3}, {address: 203.0.113.8, labels: {v: two}}]",
        );
        let rule = format!(
            "kind: DestinationRule\napiVersion: networking.istio.io/v1\nmetadata: {{name: x, annotations: {{{more}}}}}\nspec: {{host: \
             a.com, trafficPolicy: {{{policy}}}, subsets: [{{name: v1, labels: {{v: one}}, trafficPolicy: {{{subset}}}}}]}}\n---\n"
        );
        let service = "kind: VirtualService\napiVersion: networking.istio.io/v1\nmetadata: {name: x}\nspec: {hosts: [a.com], http: \
                       [{route: [{destination: {host: a.com, subset: v1}}]}]}\n";
        let service = if subset.is_empty() { "" } else { service };
        let text = entry + &rule + service;
        let documents =
            config::parse(&text, Path::new("rules.yaml")).unwrap_or_else(|errors| panic!("{errors}\n{text}"));
        let (policy, _) = Policy::compile(&documents).unwrap_or_else(|errors| panic!("{errors}\n{text}"));
        policy.rules().next().expect("a rule").upstreams[0].clone()
    };
    let plain = upstream(SIMPLE, "", "");
    let default = (ConnectionPool::default(), None, Some(LoadBalancer::LeastRequest));
    assert_eq!((plain.pool.clone(), plain.outlier_detection, plain.balancer), default);
    assert_eq!((plain.adjustments, plain.preconnect), (Adjustments::default(), 0));
    let Targets::Endpoints(endpoints) = &plain.targets else { panic!("{:?}", plain.targets) };
    assert_eq!(endpoints.iter().map(|endpoint| endpoint.weight.get()).collect::<Vec<_>>(), [3, 1]);

    let annotations = "egress.dev/preconnect: '2', egress.dev/rewrite-location: 'true'";
    let pool = "connectionPool: {tcp: {maxConnections: 7, tcpKeepalive: {time: 60s}, idleTimeout: 0s}, \
                http: {h2UpgradePolicy: DO_NOT_UPGRADE, maxRequestsPerConnection: 0, maxRetries: 3}}";
    let rest = "outlierDetection: {splitExternalLocalOriginErrors: true, consecutive5xxErrors: 0}, loadBalancer: {simple: RANDOM}, \
                tunnel: {targetHost: b.com, targetPort: 443}";
    let full = upstream(&format!("{SIMPLE}, {pool}, {rest}"), annotations, "");
    assert_eq!((full.pool.max_connections, full.pool.max_retries, full.pool.max_requests), (7, 3, u32::MAX));
    assert_eq!((full.pool.tcp_idle_timeout, full.pool.max_requests_per_connection), (None, None));
    assert_eq!(full.pool.keepalive.and_then(|keepalive| keepalive.time), Some(Duration::from_secs(60)));
    assert_eq!((full.protocol, full.balancer), (UpstreamProtocol::Http1, Some(LoadBalancer::Random)));
    let outliers = full.outlier_detection.expect("it is asked for");
    assert_eq!((outliers.server_errors, outliers.local_origin.map(NonZeroU32::get)), (None, Some(5)));
    assert_eq!((outliers.interval, outliers.max_ejection_percent), (Duration::from_secs(10), 10));
    assert_eq!(full.tunnel.as_ref().map(|tunnel| tunnel.method), Some(TunnelMethod::Connect));
    assert!(full.adjustments.rewrite_location && !full.adjustments.strip_forwarded_headers);
    assert_eq!(full.preconnect, 2);

    // As in Istio, 0 is as good as nothing.
    let zeros = "connectionPool: {tcp: {maxConnections: 0, tcpKeepalive: {probes: 0}}, http: {http1MaxPendingRequests: 0, http2MaxRequests: 0, maxRetries: 0, \
                 maxConcurrentStreams: 0}}, outlierDetection: {maxEjectionPercent: 0}";
    let zero = upstream(&format!("{SIMPLE}, {zeros}"), "", "");
    assert_eq!(zero.pool.keepalive.map(|keepalive| keepalive.probes), Some(None));
    assert_eq!(ConnectionPool { keepalive: None, ..zero.pool.clone() }, ConnectionPool::default());
    assert_eq!(zero.outlier_detection.map(|outliers| outliers.max_ejection_percent), Some(10));

    // A port's settings replace all of the host's but the tunnel; a subset's replace field by field.
    let on_port = "portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE}}]";
    let port = upstream(&format!("{SIMPLE}, {pool}, {rest}, {on_port}"), "", "");
    assert_eq!((port.pool.clone(), port.outlier_detection, port.balancer), default);
    assert!(port.tunnel.is_some());
    let subset = upstream(&format!("{SIMPLE}, {pool}, {rest}"), "", "loadBalancer: {simple: ROUND_ROBIN}");
    assert_eq!((subset.pool.max_connections, subset.balancer), (7, Some(LoadBalancer::RoundRobin)));
    let Targets::Endpoints(endpoints) = &subset.targets else { panic!("{:?}", subset.targets) };
    assert_eq!((subset.subset.as_deref(), endpoints.len()), (Some("v1"), 1));
    let passthrough = upstream(&format!("{SIMPLE}, loadBalancer: {{simple: PASSTHROUGH}}"), "", "");
    assert_eq!((&passthrough.targets, passthrough.balancer), (&Targets::Original, None));
    // There is nothing to choose from.
    let single = upstream(SIMPLE, "", "loadBalancer: {simple: UNSPECIFIED, localityLbSetting: {enabled: false}}");
    assert_eq!(single.balancer, None);
}

#[test]
fn what_no_request_gets_to_is_found() {
    for (earlier, later, expected) in [
        ("uri: {exact: /a}", "uri: {exact: /a}", true),
        ("uri: {exact: /a}", "uri: {exact: /b}", false),
        ("uri: {prefix: /a}", "uri: {exact: /ab}", true),
        ("uri: {prefix: /a}", "uri: {prefix: /é}", false),
        ("uri: {prefix: /é}", "uri: {prefix: /éa}, method: {exact: GET}", true),
        ("uri: {prefix: /a}, method: {exact: GET}", "uri: {prefix: /ab}", false),
        ("uri: {prefix: /a}, method: {exact: GET}", "uri: {prefix: /a}, method: {exact: GET}", true),
        ("uri: {prefix: /A}", "uri: {exact: /a}", false),
        ("uri: {prefix: /A}, ignoreUriCase: true", "uri: {exact: /ab}", true),
        ("uri: {prefix: /a}", "uri: {exact: /ab}, ignoreUriCase: true", false),
        ("uri: {prefix: /}", "uri: {regex: '.*'}", true),
        ("name: x", "headers: {x-a: {exact: b}}", true),
        ("uri: {regex: '/\\d'}", "uri: {regex: '/[0-9]'}", true),
    ] {
        let matches =
            [earlier, later].map(|it| format!("{{match: [{{{it}}}], route: [{{destination: {{host: a.com}}}}]}}"));
        let service = format!(
            "kind: VirtualService\napiVersion: networking.istio.io/v1\nmetadata: {{name: x}}\nspec: {{hosts: [a.com], http: [{}]}}\n",
            matches.join(", ")
        );
        let found = outcome(&(entry("a.com", HTTP) + &destination("a.com", SIMPLE) + &service));
        let text = "spec.http[1].match[0]: the match at @14 takes every request that this one is for";
        assert_eq!(found.contains(text), expected, "{earlier} {later}: {found}");
    }
}

#[test]
fn what_only_tls_has_use_for_is_refused_only_with_it() {
    let ports = "ports: [{number: 80, name: a, protocol: HTTP}]";
    for (fields, expected) in [
        (
            "resolution: DNS, subjectAltNames: ['spiffe://a/b']",
            "spec.subjectAltNames[0]: \"spiffe://a/b\" is a URI, which egress does not verify; give a DNS name or an IP address",
        ),
        (
            "resolution: DNS, subjectAltNames: [a.com, '*.a.com']",
            "spec.subjectAltNames[1]: Istio holds *.a.com against the names of a certificate to the letter, egress does not implement that: it \
             looks for a host that the certificate is valid for; give one, such as www.a.com",
        ),
        (
            "resolution: STATIC, endpoints: [{address: 'unix:///run/x'}]",
            "spec.endpoints[0].address: Istio has Unix sockets as endpoints, egress does not implement them",
        ),
        (
            "resolution: DNS, endpoints: [{address: b.com, network: n}]",
            "spec.endpoints[0].network: Istio has gateways to other networks, egress does not implement them; remove this if the address can be \
             reached",
        ),
    ] {
        let entry = entry("a.com", &format!("location: MESH_INTERNAL, {ports}, {fields}"));
        assert_eq!(outcome(&entry), "", "{fields}");
        assert_eq!(outcome(&(entry + &destination("a.com", SIMPLE))), format!("@4: {expected}"));
    }
}
