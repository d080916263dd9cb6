//! Which of several places a request goes to.

use anyhow::{Result, ensure};
use harness::{
    TestBed,
    origin::Reply,
    wait::{PATIENCE, wait_until},
};

use super::{HOST, SECOND, URL, agent, bed, destination, echo, entry, get, origin, service, shares};

/// The host at both places, told apart by labels.
fn at_both(bed: &TestBed, weights: [u32; 2]) -> String {
    let [first, second] = [bed.addresses(HOST).v4, bed.addresses(SECOND).v4];
    let [one, two] = weights;
    entry(
        HOST,
        &format!(
            "resolution: STATIC
  endpoints:
  - {{address: {first}, labels: {{version: v1}}, weight: {one}}}
  - {{address: {second}, labels: {{version: v2}}, weight: {two}}}"
        ),
    )
}

fn ask(bed: &TestBed, count: usize) -> Result<()> {
    // One client each: they must not get used to a connection.
    (0..count).try_for_each(|_| {
        let (status, ..) = get(bed, "/", &[])?;
        ensure!(status == 200, "{status}");
        Ok(())
    })
}

#[test]
fn balancers_and_weights_spread_requests() -> Result<()> {
    const COUNT: usize = 24;
    for (policy, weights, expected) in [
        ("loadBalancer: {simple: ROUND_ROBIN}", [1, 1], 12..=12),
        ("loadBalancer: {simple: ROUND_ROBIN}", [3, 1], 18..=18),
        // By chance alone less would come about once in a million runs.
        ("loadBalancer: {simple: RANDOM}", [1, 1], 1..=23),
        ("loadBalancer: {simple: LEAST_REQUEST}", [1, 1], 1..=23),
        ("loadBalancer: {simple: UNSPECIFIED}", [1, 1], 1..=23),
        ("", [1, 1], 1..=23),
        ("", [1, 9], 0..=12),
    ] {
        let bed = bed("balance")?;
        let origin = origin(&bed, echo)?;
        let (_agent, _config) = agent(&bed, &(at_both(&bed, weights) + &destination(HOST, "", policy, "")))?;
        ask(&bed, COUNT)?;
        let (first, second) = shares(&bed, &origin)?;
        ensure!(first + second == COUNT && expected.contains(&first), "{policy} {weights:?}: {first} and {second}");
    }
    Ok(())
}

#[test]
fn subsets_have_their_share_and_copies_go_beside() -> Result<()> {
    let bed = bed("subsets")?;
    let origin = origin(&bed, echo)?;
    let subsets = "subsets: [{name: one, labels: {version: v1}}, {name: two, labels: {version: v2}}]";
    let rules = at_both(&bed, [1, 1]) + &destination(HOST, "", "", subsets);
    let to =
        |subset: &str, weight: u32| format!("{{destination: {{host: {HOST}, subset: {subset}}}, weight: {weight}}}");
    let routes = |list: &str| service(&format!("  - route: [{list}]\n"));
    let (mut agent, config) =
        agent(&bed, &(rules.clone() + &routes(&format!("{}, {}", to("one", 0), to("two", 100)))))?;
    ask(&bed, 6)?;
    ensure!(shares(&bed, &origin)? == (0, 6));
    agent.apply(|| {
        config.write("rules.yaml", &(rules.clone() + &routes(&format!("{}, {}", to("one", 50), to("two", 50)))))
    })?;
    ask(&bed, 24)?;
    let (first, second) = shares(&bed, &origin)?;
    ensure!(first > 0 && second > 0 && first + second == 24, "{first} and {second}");

    let mirrored = format!("  - route: [{}]\n    mirror: {{host: {HOST}, subset: two}}\n", to("one", 100));
    agent.apply(|| config.write("rules.yaml", &(rules + &service(&mirrored))))?;
    for arguments in [&[][..], &["-d", "content"]] {
        let (status, body, _) = get(&bed, "/mirrored", arguments)?;
        ensure!(status == 200 && body.ends_with("edition.cnn.com /mirrored\n"), "{body}");
        wait_until("the copy", PATIENCE, || origin.requests().len() == 2)?;
        let requests = origin.requests();
        let bodies: Vec<_> = requests.iter().map(|request| &*request.body).collect();
        ensure!(bodies[0] == bodies[1] && requests[0].method == requests[1].method, "{requests:?}");
        ensure!(shares(&bed, &origin)? == (1, 1));
    }
    Ok(())
}

#[test]
fn an_address_that_fails_in_a_row_is_left_out_for_the_pod_that_saw_it() -> Result<()> {
    let mut bed = bed("outlier")?;
    let other = bed.add_pod("other")?;
    let bad = bed.addresses(HOST).v4;
    let origin =
        origin(
            &bed,
            move |request| {
                if request.server.ip() == bad { Reply::status(503, &[], "bad\n") } else { echo(request) }
            },
        )?;
    let policy = "loadBalancer: {simple: ROUND_ROBIN}
    outlierDetection: {consecutiveGatewayErrors: 3, consecutive5xxErrors: 0, baseEjectionTime: 300s, maxEjectionPercent: 50}";
    let (agent, _config) = agent(&bed, &(at_both(&bed, [1, 1]) + &destination(HOST, "", policy, "")))?;
    let mut statuses = Vec::new();
    for _ in 0..20 {
        statuses.push(get(&bed, "/", &[])?.0);
    }
    ensure!(statuses.iter().filter(|status| **status == 503).count() == 3, "{statuses:?}");
    ensure!(statuses[6..].iter().all(|status| *status == 200), "{statuses:?}");
    ensure!(shares(&bed, &origin)? == (3, 17));
    ensure!(agent.log_text().contains("an address is left out for a while"), "{}", agent.log_text());

    // Another pod may have another way there.
    let in_other = |program: &str| bed.pod_command(&other, program)?.in_cgroup(bed.cgroup());
    let _sandbox = in_other("sleep")?.arg("infinity").spawn()?;
    let ask = || in_other("curl")?.args(["-q", "-sS", "--max-time", "15", URL]).run();
    // Until the agent has noticed the pod, its connects are refused.
    wait_until("the other pod to be served", PATIENCE, || ask().is_ok_and(|output| output.code() == 0))?;
    ask()?.success()?;
    let (first, second) = shares(&bed, &origin)?;
    ensure!((first, second) == (1, 1), "{first} and {second}");
    Ok(())
}
