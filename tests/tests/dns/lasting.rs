//! How long it counts what applications were told.

use super::*;

/// The node's resolver may say something else the next day, and the application still use what it was told.
#[test]
fn what_the_node_knows_as_well_is_in_use_when_it_is_used() -> Result<()> {
    let bed = TestBed::builder("both").host(SERVER).host(HOST).resolv_conf(RESOLV_CONF).build()?;
    let address = bed.addresses(HOST).v4;
    let _dns = serve(&bed, move |_| Answer::addresses([address.into()]))?;
    let tls = ServerTls::new(bed.pki().server(&[HOST])?);
    let _origin = bed.embedded_origin().tls(&bed.sockets(HOST, 443), &tls)?.handler(way).start()?;
    let agent = agent(&bed)?;
    ensure!(agent.metrics()?.sum("egress_destinations", &[]) >= 1.0);
    bed.client_command(LOOKUP)?.args([&bed.addresses(SERVER).v4.to_string(), HOST]).run()?.success()?;
    let seen = || -> Result<u64> { agent.learned()?.remove(&address.into()).context("nothing was learned") };
    let told = seen()?;
    ensure!(get(&bed, HOST, address.into())?.head.status == 200);
    ensure!(seen()? > told);
    Ok(())
}

#[test]
fn what_was_learned_outlives_its_rule_for_a_while() -> Result<()> {
    let bed = bed("rule")?;
    let _dns = name_server(&bed, Answer::addresses)?;
    let both = bed.embedded_origin().clear(&bed.sockets(PLACE, 80));
    let tls = ServerTls::new(bed.pki().server(&[HOST])?);
    let _origin = both.tls(&bed.sockets(PLACE, 443), &tls)?.handler(way).start()?;
    let config = bed.config_dir()?;
    config.write("wildcard.yaml", &wildcard_rules())?;
    let mut agent = bed.agent(&config)?;
    let address = bed.addresses(PLACE).v4.into();
    ensure!(bed.curl(URL)?.response()?.body == b"over TLS: edition.cnn.com\n");
    // The host has a rule all the time, though another one.
    agent.apply(|| config.write("wildcard.yaml", &rules(HOST)))?;
    ensure!(get(&bed, HOST, address)?.body == b"over TLS: edition.cnn.com\n");
    agent.apply(|| config.remove("wildcard.yaml"))?;
    ensure!(get(&bed, HOST, address)?.body == b"in clear: edition.cnn.com\n");
    // One that comes back is in force for whoever was told before.
    agent.apply(|| config.write("wildcard.yaml", &rules(HOST)))?;
    ensure!(get(&bed, HOST, address)?.body == b"over TLS: edition.cnn.com\n");
    Ok(())
}

#[test]
fn a_dead_agent_s_names_are_still_learned_and_refused() -> Result<()> {
    let bed = bed("dead")?;
    let _dns = name_server(&bed, Answer::addresses)?;
    let _origin = origin(&bed, &[HOST])?;
    let tripwire = bed.tripwire(&[PLACE])?;
    agent(&bed)?.kill();
    for family in ["-4", "-6"] {
        let result = bed.curl(URL)?.args([family]).run()?;
        ensure!(result.exit_code == 7, "{result:?}");
    }
    let _agent = agent(&bed)?;
    ensure!(get(&bed, HOST, bed.addresses(PLACE).v4.into())?.head.status == 200);
    tripwire.assert_silent()
}

/// Applications hold answers for long, and would go on in clear if whoever comes next knew nothing of them.
#[test]
fn what_was_learned_outlives_agents_that_do_not_share_maps() -> Result<()> {
    const OPEN: &[&str] = &["--fail-open"];
    let bed = bed("heirs")?;
    let _dns = name_server(&bed, Answer::addresses)?;
    let _origin = origin(&bed, &[HOST])?;
    let tripwire = bed.tripwire(&[PLACE])?;
    let config = bed.config_dir()?;
    config.write("wildcard.yaml", &wildcard_rules())?;
    let options = |arguments: &[&str]| AgentOptions::new(config.path()).args(arguments);
    let told = || {
        bed.addresses(PLACE).both().into_iter().try_for_each(|address| {
            let body = get(&bed, HOST, address)?.body;
            ensure!(body == b"over TLS: edition.cnn.com\n", "{address}: {body:?}");
            Ok(())
        })
    };
    let first = Agent::start(&bed, &options(&[]))?;
    for family in ["-4", "-6"] {
        ensure!(bed.curl(URL)?.args([family]).response()?.body == b"over TLS: edition.cnn.com\n");
    }
    // One that is dead, with maps of another layout.
    first.kill();
    let pins = bed.bpffs().join("egress");
    let layout = fs::read_dir(&pins)?.next().context("nothing is pinned")??.path();
    fs::rename(&layout, pins.join("layout-0"))?;
    let mut agent = Agent::start(&bed, &options(&[]))?;
    ensure!(!pins.join("layout-0").exists(), "the other layout's pins are still there");
    told()?;
    // Those that run, and give what they know.
    for arguments in [OPEN, OPEN, &[]] {
        let next = Agent::take_over(&bed, &options(arguments))?;
        ensure!(agent.wait()?.code() == Some(0), "{}", agent.log_text());
        agent = next;
        told()?;
    }
    tripwire.assert_silent()
}
