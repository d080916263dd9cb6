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
