//! The harness itself, without an agent: what the other tests rely on.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use harness::{
    TestBed,
    clients::Language,
    nginx::Site,
    origin::{Reply, ServerTls},
    topology::DEVICE,
    udp::UdpEcho,
    wait::PATIENCE,
};

const HOST: &str = "edition.cnn.com";
const CLIENT: &str = env!("CARGO_BIN_EXE_client");

#[test]
fn curl_reaches_nginx_in_clear_and_over_tls_by_either_family() -> Result<()> {
    let bed = TestBed::new("nginx")?;
    let nginx = bed.nginx().site(Site::new(&[HOST], bed.pki().server(&[HOST])?).redirecting_port_80()).start()?;
    for family in ["-4", "-6"] {
        let result = bed.curl("http://edition.cnn.com/politics")?.follow().args([family]).run()?;
        ensure!(result.statuses() == [301, 200], "{family}: {result:?}");
        ensure!(result.responses[1].version == "HTTP/2", "{result:?}");
    }
    let requests = nginx.wait_for_requests(4)?;
    ensure!(requests[0].get("port") == "80" && requests[0].get("sni").is_empty(), "{requests:?}");
    ensure!(requests[1].get("port") == "443" && requests[1].get("sni") == HOST, "{requests:?}");
    ensure!(requests[3].get("client").contains(':'), "{requests:?}");
    Ok(())
}

#[test]
fn nginx_keeps_a_body_and_echoes_a_head() -> Result<()> {
    let bed = TestBed::new("nginx-echo")?;
    let site = Site::new(&[HOST], bed.pki().server(&[HOST])?).without_http2();
    let nginx = bed.nginx().site(site).file("blob", vec![b'x'; 100_000]).start()?;
    let echo = bed.curl("https://edition.cnn.com/echo")?.header("X-Test: 1").response()?;
    ensure!(String::from_utf8_lossy(&echo.body).contains("x-test: 1"), "{echo:?}");
    bed.curl("https://edition.cnn.com/sink")?.body("a=1").response()?;
    ensure!(nginx.wait_for_requests(2)?[1].get("body") == "a=1");
    ensure!(bed.curl("https://edition.cnn.com/blob")?.response()?.body.len() == 100_000);
    Ok(())
}

#[test]
fn the_embedded_origin_records_http1_to_the_byte() -> Result<()> {
    let bed = TestBed::new("http1")?;
    let tls = ServerTls::new(bed.pki().server(&[HOST])?).http1_only();
    let origin = bed.embedded_origin().tls(&bed.sockets(HOST, 443), &tls)?.start()?;
    bed.curl("https://edition.cnn.com/a/../b?q=%7E")?
        .args(["--path-as-is", "-A", "test"])
        .header("X-Odd-CASE: kept")
        .header("Transfer-Encoding: chunked")
        .body("hello")
        .response()?;
    let request = origin.only_request()?;
    let head = String::from_utf8_lossy(&request.head);
    ensure!(head.starts_with("POST /a/../b?q=%7E HTTP/1.1\r\nHost: edition.cnn.com\r\nUser-Agent: test\r\n"), "{head}");
    ensure!(head.contains("X-Odd-CASE: kept\r\n"), "{head}");
    ensure!(request.body == b"hello" && request.framed_body == b"5\r\nhello\r\n0\r\n\r\n", "{request:?}");
    let tls = request.tls.context("not over TLS")?;
    ensure!(tls.sni.as_deref() == Some(HOST) && tls.version == "TLSv1_3", "{tls:?}");
    Ok(())
}

#[test]
fn the_embedded_origin_speaks_http2() -> Result<()> {
    let bed = TestBed::new("http2")?;
    let tls = ServerTls::new(bed.pki().server(&[HOST])?);
    let origin = bed.embedded_origin().tls(&bed.sockets(HOST, 443), &tls)?.start()?;
    let response = bed.curl("https://edition.cnn.com/bytes/100000")?.response()?;
    ensure!(response.head.version == "HTTP/2" && response.body.len() == 100_000, "{:?}", response.head);
    let request = origin.only_request()?;
    ensure!((request.version.as_str(), request.host.as_str()) == ("HTTP/2", HOST), "{request:?}");
    Ok(())
}

#[test]
fn the_embedded_origin_does_what_it_is_told() -> Result<()> {
    let bed = TestBed::new("replies")?;
    let _origin = bed
        .embedded_origin()
        .clear(&bed.sockets(HOST, 80))
        .handler(|request| match request.target.as_str() {
            "/raw" => Reply::Raw(b"HTTP/1.1 200 Fine By Me\r\nx-CASE: 1\r\nContent-Length: 0\r\n\r\n".to_vec()),
            "/close" => Reply::Close,
            "/reset" => Reply::Reset,
            _ => Reply::Silence,
        })
        .start()?;
    let raw = bed.curl("http://edition.cnn.com/raw")?.response()?;
    ensure!(raw.head.text.starts_with("HTTP/1.1 200 Fine By Me\r\nx-CASE: 1\r\n"), "{raw:?}");
    for (path, exit_code) in [("close", 52), ("reset", 56), ("silence", 28)] {
        let result = bed.curl(&format!("http://edition.cnn.com/{path}"))?.args(["--max-time", "1"]).run()?;
        ensure!(result.exit_code == exit_code, "/{path}: {result:?}");
    }
    Ok(())
}

#[test]
fn curl_refuses_bad_certificates() -> Result<()> {
    let bed =
        TestBed::builder("certificates").host("expired").host("wrong").host("untrusted").host("mutual").build()?;
    let pki = bed.pki();
    let _origin = bed
        .embedded_origin()
        .tls(&bed.sockets("expired", 443), &ServerTls::new(pki.expired(&["expired"])?))?
        .tls(&bed.sockets("wrong", 443), &ServerTls::new(pki.server(&["right"])?))?
        .tls(&bed.sockets("untrusted", 443), &ServerTls::new(pki.untrusted(&["untrusted"])?))?
        .tls(
            &bed.sockets("mutual", 443),
            &ServerTls::new(pki.server(&["mutual"])?).client_certificates_of(pki.client_ca()),
        )?
        .start()?;
    for host in ["expired", "wrong", "untrusted"] {
        let result = bed.curl(&format!("https://{host}/"))?.run()?;
        ensure!(result.exit_code == 60, "{host}: {result:?}");
    }
    // The refusal comes after the handshake of TLS 1.3: while curl sends (55) or receives (56).
    ensure!([55, 56].contains(&bed.curl("https://mutual/")?.run()?.exit_code));
    let client = pki.client("somebody")?;
    let (certificate, key) = (client.certificate_file.into_os_string(), client.key_file.into_os_string());
    bed.curl("https://mutual/")?.args(["--cert".into(), certificate, "--key".into(), key]).response()?;
    Ok(())
}

#[test]
fn the_tripwire_trips_when_touched_and_only_then() -> Result<()> {
    let bed = TestBed::new("tripwire")?;
    let tripwire = bed.tripwire(&[HOST])?;
    tripwire.assert_silent()?;
    let result = bed.curl("http://edition.cnn.com/secret")?.run()?;
    ensure!(result.statuses() == [418], "{result:?}");
    ensure!(tripwire.assert_silent().is_err());
    let touches = tripwire.touches()?;
    ensure!(touches.len() == 1 && touches[0].bytes.starts_with(b"GET /secret "), "{touches:?}");
    Ok(())
}

#[test]
fn a_capture_sees_what_is_in_clear_and_counts_round_trips() -> Result<()> {
    let bed = TestBed::builder("capture").host(HOST).delay(Duration::from_millis(5)).build()?;
    let _origin = bed
        .embedded_origin()
        .clear(&bed.sockets(HOST, 80))
        .tls(&bed.sockets(HOST, 443), &ServerTls::new(bed.pki().server(&[HOST])?))?
        .start()?;
    let capture = bed.capture()?;
    bed.curl("http://edition.cnn.com/politics")?.response()?;
    let trace = capture.stop()?;
    ensure!(trace.contains(b"GET /politics") && trace.packets_of_port(80) > 0);
    // A handshake, and a request with its response.
    ensure!(trace.round_trips() == 2, "{} round trips", trace.round_trips());

    let capture = bed.capture()?;
    bed.curl("https://edition.cnn.com/politics")?.args(["--http1.1"]).response()?;
    let trace = capture.stop()?;
    ensure!(!trace.contains(b"politics") && trace.contains(HOST.as_bytes()));
    ensure!(trace.packets_of_port(80) == 0 && trace.connections_to_port(443).len() == 1);
    // One more, for the handshake of TLS 1.3.
    ensure!(trace.round_trips() == 3, "{} round trips", trace.round_trips());
    Ok(())
}

#[test]
fn the_odd_sockets_work_without_an_agent() -> Result<()> {
    let bed = TestBed::new("sockets")?;
    let _origin = bed.embedded_origin().clear(&bed.sockets(HOST, 80)).handler(|_| Reply::ok("fine")).start()?;
    let [v4, v6] = bed.sockets(HOST, 80).map(|address| address.to_string());
    let source = bed.client_address(bed.addresses(HOST).v4.into()).to_string();
    for (address, arguments) in [
        (&v4, vec![]),
        (&v6, vec![]),
        (&v4, vec!["--mptcp"]),
        (&v4, vec!["--fastopen"]),
        (&v4, vec!["--mapped"]),
        (&v4, vec!["--bind", &source]),
        (&v4, vec!["--device", DEVICE]),
    ] {
        let output = bed.client_command(CLIENT)?.args(["http", address.as_str()]).args(&arguments).run()?.success()?;
        ensure!(output.text().ends_with("fine"), "{arguments:?}: {output:?}");
        let ip = address.rsplit_once(':').context("no port")?.0.trim_matches(['[', ']']);
        ensure!(output.stderr.contains(ip), "{arguments:?}: {output:?}");
        let mptcp = arguments.contains(&"--mptcp");
        ensure!(output.stderr.contains("protocol 262") == mptcp, "{arguments:?}: {output:?}");
    }
    let _echo = UdpEcho::start(bed.origin(), v4.parse()?)?;
    let output = bed.client_command(CLIENT)?.args(["udp", &v4, "ping"]).run()?.success()?;
    ensure!(output.text() == "ping", "{output:?}");
    Ok(())
}

#[test]
fn a_held_connection_and_a_row_of_requests() -> Result<()> {
    let bed = TestBed::new("held")?;
    let origin = bed.embedded_origin().clear(&bed.sockets(HOST, 80)).handler(|_| Reply::ok("fine")).start()?;
    let address = bed.sockets(HOST, 80)[0].to_string();
    let mut held = bed.client_command(CLIENT)?.args(["hold", &address]).spawn()?;
    held.wait_for_output("connected")?;
    ensure!(origin.requests().is_empty());
    held.write_stdin(b"\n")?;
    held.wait_for_output("fine")?;
    ensure!(held.wait(PATIENCE)?.success());

    let mut row = bed.client_command(CLIENT)?.args(["repeat", &address]).spawn()?;
    row.wait_for_output("200\n200\n200\n")?;
    ensure!(row.wait(PATIENCE)?.success());
    Ok(())
}

#[test]
fn every_installed_language_can_get() -> Result<()> {
    let bed = TestBed::new("languages")?;
    let _origin = bed.embedded_origin().clear(&bed.sockets(HOST, 80)).handler(|_| Reply::ok("fine")).start()?;
    for language in Language::installed() {
        let output = language.get(&bed, "http://edition.cnn.com/")?.run()?.success()?;
        ensure!(output.text() == "200\nfine", "{language:?}: {output:?}");
    }
    Ok(())
}

#[test]
fn no_packet_can_leave_and_clients_are_where_they_should_be() -> Result<()> {
    let mut bed = TestBed::new("closed")?;
    for address in ["192.0.2.200:80", "203.0.113.1:80", "8.8.8.8:53", "[2001:db8:ffff::1]:80"] {
        for netns in [bed.client(), bed.node(), bed.origin()] {
            let refused = netns.run(|| Ok(std::net::UdpSocket::bind("[::]:0")?.connect(address).is_err()))?;
            // The node's own gateway is on its link.
            let own = address.starts_with("203") && !netns.name().ends_with("client");
            ensure!(refused != own, "{address} from {}", netns.name());
        }
    }
    let output = bed.client_command("cat")?.args(["/proc/self/cgroup", "/etc/hosts"]).uid(65534).run()?.success()?;
    let own = bed.cgroup().path().file_name().context("no name")?.to_string_lossy().into_owned();
    ensure!(output.text().contains(&own) && output.text().contains(HOST), "{output:?}");
    let output = bed.outside_command("cat")?.arg("/proc/self/cgroup").run()?.success()?;
    ensure!(!output.text().contains(&own), "{output:?}");
    ensure!(!fs::read_to_string("/etc/hosts")?.contains(HOST), "the machine's own hosts file was covered");
    let pod = bed.add_pod("second")?;
    ensure!(pod.cookie()? != bed.client().cookie()?);
    Ok(())
}

#[test]
fn nothing_is_left_behind_also_after_a_panic() -> Result<()> {
    let bed = TestBed::new("removed")?;
    let paths = [
        bed.client().path(),
        bed.node().path(),
        bed.origin().path(),
        bed.cgroup().path().to_owned(),
        bed.dir().to_owned(),
    ];
    let sleeper = bed.client_command("sleep")?.arg("600").spawn()?;
    let process = format!("/proc/{}", sleeper.pid());
    for path in &paths {
        ensure!(path.exists(), "{} is not there", path.display());
    }
    let panicked = std::thread::spawn(move || {
        let _bed = bed;
        std::panic::resume_unwind(Box::new("on purpose"));
    })
    .join();
    ensure!(panicked.is_err());
    for path in &paths {
        ensure!(!path.exists(), "{} stays behind", path.display());
    }
    drop(sleeper);
    ensure!(!Path::new(&process).exists(), "a client stays behind");
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    ensure!(!mounts.contains("-removed"), "{mounts}");
    Ok(())
}
