//! Names of endpoints: applications may go there for the host that they serve.

use super::*;

/// The node knows no address to send requests to, and none is for clear text.
#[test]
fn what_is_told_of_an_endpoint_is_intercepted() -> Result<()> {
    let bed = bed("endpoint")?;
    let _dns = name_server(&bed, Answer::addresses)?;
    let tripwire = bed.tripwire(&[PLACE])?;
    let config = bed.config_dir()?;
    let entry = format!("resolution: DNS\n  endpoints: [{{address: {HOST}}}]");
    config.write("rules.yaml", &rules("shop.example").replace("resolution: DNS", &entry))?;
    let _agent = bed.agent(&config)?;
    for family in ["-4", "-6"] {
        let response = bed.curl(URL)?.header("Host: shop.example").args([family]).response()?;
        ensure!(response.head.status == 502, "{response:?}");
    }
    tripwire.assert_silent()
}
