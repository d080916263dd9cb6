//! Aliases of hosts, and hosts that are aliases: applications may ask origins for any of these names.

use super::*;

/// As CoreDNS answers with `autopath`, once a search domain was added to the name; or somebody who has names of his own for others'.
#[test]
fn what_is_told_of_an_alias_of_a_host_is_intercepted() -> Result<()> {
    let aliases: [fn(Answer) -> Answer; 5] = [
        |answer| answer.alias("alias0.cnn.com"),
        |answer| answer.alias("alias1.cnn.com").alias("a.cdn.example").alias("b.cdn.example").edns(),
        |answer| answer.alias("a.cdn.example").alias("alias2.CNN.com").uncompressed(),
        // The name of the host ends where the one before does.
        |answer| answer.alias("a.cnn.community").alias("cnn.com").alias("alias3.cnn.com"),
        // As many as are looked at.
        |answer| {
            (0..15).fold(answer, |answer, number| answer.alias(&format!("a{number}.cdn.com"))).alias("alias4.cnn.com")
        },
    ];
    let hosts = (0..aliases.len()).map(|number| format!("alias{number}.cnn.com")).collect::<Vec<_>>();
    let bed = hosts.iter().fold(TestBed::builder("alias").host(SERVER), |builder, name| builder.unlisted_host(name));
    let bed = bed.host(PLACE).resolv_conf(RESOLV_CONF).build()?;
    let places = hosts.iter().map(|name| bed.addresses(name).both().to_vec()).collect::<Vec<_>>();
    let other = bed.addresses(PLACE).both();
    let _dns = serve(&bed, move |question| match question.name.strip_prefix("alias") {
        Some(rest) => {
            let number = usize::from(rest.as_bytes()[0] - b'0');
            aliases[number](Answer::addresses(places[number].clone()))
        }
        None => Answer::addresses(other).alias("cnn.com").alias("cnn.com.example"),
    })?;
    let tls = ServerTls::new(bed.pki().server(&[WILDCARD])?);
    let addresses = |port| hosts.iter().flat_map(|host| bed.sockets(host, port)).collect::<Vec<_>>();
    let origin = bed.embedded_origin().tls(&addresses(443), &tls)?.clear(&bed.sockets(PLACE, 80));
    let _origin = origin.handler(way).start()?;
    let tripwire = bed.tripwire(&hosts.iter().map(String::as_str).collect::<Vec<_>>())?;
    let config = bed.config_dir()?;
    config.write("wildcard.yaml", &wildcard_rules())?;
    let agent = bed.agent(&config)?;
    let server = bed.addresses(SERVER).v4.to_string();
    let ask = |name: &str, kind: &[&str]| -> Result<()> {
        let output = bed.client_command(LOOKUP)?.args([&server, name]).args(kind).run()?.success()?;
        ensure!(output.text() != "nothing\n", "{name}: {output:?}");
        Ok(())
    };
    for host in &hosts {
        for (address, kind) in bed.addresses(host).both().into_iter().zip([&[][..], &["--aaaa"]]) {
            ask(&format!("{host}.ns.svc.cluster.local"), kind)?;
            let result = get(&bed, host, address)?;
            ensure!(result.body == format!("over TLS: {host}\n").as_bytes(), "{host} {address}: {result:?}");
        }
    }
    // The aliases of others change nothing.
    let before = redirected(&agent)?;
    ask("news.example", &[])?;
    ensure!(get(&bed, PLACE, other[0])?.body == format!("in clear: {PLACE}\n").as_bytes());
    ensure!(redirected(&agent)? == before);
    tripwire.assert_silent()
}

/// Each of the names can have a rule on a port of its own, and the application uses any.
#[test]
fn the_rules_of_a_name_and_of_its_aliases_count_together() -> Result<()> {
    const NAMES: [&str; 4] = ["edition.cnn.com", "a.cdn.example", "b.cdn.example", "c.cdn.example"];
    const PORTS: [&[u16]; 4] = [&[80], &[80, 8080], &[], &[8081, 8082]];
    let bed = bed("together")?;
    let place = bed.addresses(PLACE).both();
    let _dns =
        serve(&bed, move |_| NAMES[1..].iter().fold(Answer::addresses(place), |answer, name| answer.alias(name)))?;
    let tls = ServerTls::new(bed.pki().server(&NAMES)?);
    let origin = bed.embedded_origin().tls(&bed.sockets(PLACE, 443), &tls)?;
    let all = PORTS.iter().copied().flatten().flat_map(|port| bed.sockets(PLACE, *port)).collect::<BTreeSet<_>>();
    let _origin = origin.clear(&all.into_iter().collect::<Vec<_>>()).handler(way).start()?;
    let config = bed.config_dir()?;
    for (name, ports) in NAMES.into_iter().zip(PORTS).filter(|(_, ports)| !ports.is_empty()) {
        config.write(&format!("{name}.yaml"), &rules_on(name, ports))?;
    }
    let _agent = bed.agent(&config)?;
    let server = bed.addresses(SERVER).v4.to_string();
    for (address, kind) in place.into_iter().zip([&[][..], &["--aaaa"]]) {
        let output = bed.client_command(LOOKUP)?.args([&server, NAMES[0]]).args(kind).run()?.success()?;
        ensure!(output.text() == "4\n", "{output:?}");
        for (name, ports) in NAMES.into_iter().zip(PORTS) {
            for port in ports {
                let result = get_on(&bed, name, *port, address)?;
                ensure!(result.body.starts_with(b"over TLS: "), "{name} {port} {address}: {result:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn an_answer_whose_names_have_more_ports_than_there_is_room_for_is_kept_back() -> Result<()> {
    let bed = bed("many-ports")?;
    let place = bed.addresses(PLACE).both();
    let _dns = serve(&bed, move |question| {
        let answer = Answer::addresses(place).alias("a.cdn.example");
        if question.is_for(HOST) { answer.alias("b.cdn.example") } else { answer }
    })?;
    let config = bed.config_dir()?;
    for (first, name) in [8000, 8100, 8200].into_iter().zip([HOST, "a.cdn.example", "b.cdn.example"]) {
        config.write(&format!("{name}.yaml"), &rules_on(name, &(first..first + 8).collect::<Vec<_>>()))?;
    }
    config.write("other.yaml", &rules_on("other.example", &(8300..8308).collect::<Vec<_>>()))?;
    let agent = bed.agent(&config)?;
    let ask = |name: &str| -> Result<String> {
        let command = bed.client_command(LOOKUP)?.args([&bed.addresses(SERVER).v4.to_string(), name]);
        Ok(command.args(["--patience", "300"]).run()?.success()?.text())
    };
    ensure!(ask("other.example")? == "2\n" && ask(HOST)? == "nothing\n");
    let answers = |result| agent.metrics().map(|metrics| metrics.sum(ANSWERS, &[("result", result)]));
    ensure!(answers("learned")? == 1.0 && answers("refused")? == 1.0);
    Ok(())
}

/// As the seed's rules, on these ports.
fn rules_on(host: &str, ports: &[u16]) -> String {
    let name = host.replace('.', "-");
    let each = |text: &dyn Fn(u16) -> String| ports.iter().map(|port| text(*port)).collect::<String>();
    let entries =
        each(&|port| format!("    - {{number: {port}, name: http-{port}, protocol: HTTP, targetPort: 443}}\n"));
    let settings = each(&|port| format!("      - {{port: {{number: {port}}}, tls: {{mode: SIMPLE}}}}\n"));
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}}}\nspec:\n  hosts: [{host}]\n  \
         resolution: DNS\n  ports:\n{entries}---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}}}\n\
         spec:\n  host: {host}\n  trafficPolicy:\n    portLevelSettings:\n{settings}"
    )
}

/// A GET for a host on a port, at an address that the client was told before.
fn get_on(bed: &TestBed, host: &str, port: u16, address: IpAddr) -> Result<Response> {
    let place = SocketAddr::new(address, port).to_string();
    let place = place.strip_suffix(&format!(":{port}")).unwrap_or_default();
    bed.curl(&format!("http://{host}:{port}/"))?.args(["--resolve", &format!("{host}:{port}:{place}")]).response()
}
