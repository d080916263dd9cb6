//! What an origin says as it ends a connection.

use super::*;

#[test]
fn the_reason_of_a_goodbye_is_told_of_what_does_not_come_to_its_end_after_it() -> Result<()> {
    let bed = TestBed::new("http2-goodbye")?;
    let _origin = origin_http2(&bed)?
        .frames(|mut frames| async move {
            frames.greet(100).await?;
            let stream = frames.request().await?;
            frames.go_away(stream, code::ENHANCE_YOUR_CALM).await
        })
        .start()?;
    let config = configure(&bed)?;
    let agent = agent_with_one_worker(&bed, &config)?;
    let output = curl(&bed, &["-o", "/dev/null", "-w", "%{http_code}"])?;
    ensure!(output.text() == "502", "{output:?}");
    let record = &agent.wait_for_records(1)?[0];
    ensure!(record.text("cause") == "connection_lost", "{record:?}");
    ensure!(record.text("error").contains("the other end had ended it (ENHANCE_YOUR_CALM): "), "{record:?}");
    Ok(())
}

#[test]
fn a_goodbye_that_asks_for_http1_has_it_used_from_then_on() -> Result<()> {
    let bed = TestBed::new("http2-goodbye-http1")?;
    let origin = origin_http2(&bed)?
        .handler(|_| Reply::Raw(EMPTY.into()))
        .frames(|mut frames| async move {
            frames.greet(100).await?;
            frames.request().await?;
            frames.go_away(0, code::HTTP_1_1_REQUIRED).await?;
            frames.closed().await
        })
        .start()?;
    let config = configure(&bed)?;
    let agent = agent_with_one_worker(&bed, &config)?;
    for _ in 0..3 {
        curl(&bed, &["-d", "amount=100"])?.success()?;
    }
    let requests = origin.wait_for_requests(3)?;
    ensure!(requests.iter().all(|request| request.version == "HTTP/1.1" && request.body == b"amount=100"));
    ensure!(origin.connections() == 2, "{} connections", origin.connections());
    ensure!(agent.wait_for_records(3)?.iter().all(|record| record.text("protocol") == "HTTP/1.1"));
    Ok(())
}
