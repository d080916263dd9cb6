//! nginx as the origin: a server that was not written by the people who wrote the proxy.

use std::{
    fmt::Write as _,
    fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{
    pki::Identity,
    process::{Command, Running},
    testbed::TestBed,
    wait::{PATIENCE, wait_for, wait_until},
};

/// What nginx is to serve.
#[derive(Debug)]
pub struct NginxBuilder<'bed> {
    bed: &'bed TestBed,
    sites: Vec<Site>,
    files: Vec<(String, Vec<u8>)>,
}

/// One or several virtual hosts with one certificate.
#[derive(Debug)]
pub struct Site {
    names: Vec<String>,
    identity: Identity,
    port_80_redirects: bool,
    http2: bool,
    clear: bool,
    directives: String,
}

impl Site {
    /// A site for these names, on port 443 of the addresses of all of them: TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1.
    pub fn new(names: &[&str], identity: Identity) -> Self {
        Self {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            identity,
            port_80_redirects: false,
            http2: true,
            clear: false,
            directives: String::new(),
        }
    }

    /// On port 80 it answers with a redirect to `https://`, as the origin in the seed does.
    #[must_use]
    pub fn redirecting_port_80(mut self) -> Self {
        self.port_80_redirects = true;
        self
    }

    /// It speaks HTTP/1.1 alone.
    #[must_use]
    pub fn without_http2(mut self) -> Self {
        self.http2 = false;
        self
    }

    /// It speaks HTTP in clear, on the port where TLS should be.
    #[must_use]
    pub fn in_clear(mut self) -> Self {
        self.clear = true;
        self
    }

    /// Adds lines to the server block, such as `ssl_protocols TLSv1.2;`.
    #[must_use]
    pub fn directives(mut self, lines: &str) -> Self {
        self.directives += lines;
        self.directives.push('\n');
        self
    }
}

impl<'bed> NginxBuilder<'bed> {
    pub(crate) fn new(bed: &'bed TestBed) -> Self {
        Self { bed, sites: Vec::new(), files: Vec::new() }
    }

    /// Adds a site.
    #[must_use]
    pub fn site(mut self, site: Site) -> Self {
        self.sites.push(site);
        self
    }

    /// Adds a file that all sites serve at `/name`.
    #[must_use]
    pub fn file(mut self, name: &str, content: impl Into<Vec<u8>>) -> Self {
        self.files.push((name.to_owned(), content.into()));
        self
    }

    /// Starts it and waits until it accepts connections.
    pub fn start(self) -> Result<Nginx> {
        let prefix = tempfile::Builder::new().prefix("nginx-").tempdir_in(self.bed.dir())?.keep();
        let root = prefix.join("www");
        fs::create_dir(&root)?;
        fs::write(root.join("politics"), "<!doctype html><title>Politics</title>\n")?;
        for (name, content) in &self.files {
            fs::write(root.join(name), content)?;
        }
        let configuration = prefix.join("nginx.conf");
        fs::write(&configuration, self.configuration(&prefix)?)?;
        let mut running = Command::new("nginx")
            .args(["-e", "stderr", "-p"])
            .arg(&prefix)
            .arg("-c")
            .arg(&configuration)
            .in_netns(self.bed.origin())?
            .spawn()
            .context("nginx is missing (package nginx-light)")?;
        let first = self.sites.first().context("nginx without a site")?;
        let address = self.bed.sockets(&first.names[0], 443)[0];
        let ready = wait_for("nginx to listen", PATIENCE, || {
            let up = self.bed.origin().run(|| Ok(TcpStream::connect(address)?)).is_ok();
            if up { Some(true) } else { (!running.is_running()).then_some(false) }
        });
        if !matches!(ready, Ok(true)) {
            bail!("nginx does not start:\n{}", running.stderr().join("\n"));
        }
        Ok(Nginx { running, access_log: prefix.join("access.log") })
    }

    fn configuration(&self, prefix: &Path) -> Result<String> {
        let mut text = HEAD.replace("@PREFIX@", &prefix.display().to_string());
        for site in &self.sites {
            let mut addresses: Vec<SocketAddr> = Vec::new();
            for address in site.names.iter().flat_map(|name| self.bed.sockets(name, 443)) {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
            let names = site.names.join(" ");
            writeln!(text, "  server {{\n    server_name {names};")?;
            for address in &addresses {
                let protocol = match (site.clear, site.http2) {
                    (true, _) => "",
                    (false, true) => " ssl http2",
                    (false, false) => " ssl",
                };
                writeln!(text, "    listen {address}{protocol};")?;
            }
            writeln!(text, "    ssl_certificate {};", site.identity.certificate_file.display())?;
            writeln!(text, "    ssl_certificate_key {};", site.identity.key_file.display())?;
            text += &site.directives;
            text += LOCATIONS;
            text += "  }\n";
            if site.port_80_redirects {
                writeln!(text, "  server {{\n    server_name {names};")?;
                for address in &addresses {
                    writeln!(text, "    listen {};", SocketAddr::new(address.ip(), 80))?;
                }
                text += "    return 301 https://$host$request_uri;\n  }\n";
            }
        }
        text += "}\n";
        Ok(text)
    }
}

/// A running nginx.
#[derive(Debug)]
pub struct Nginx {
    running: Running,
    access_log: PathBuf,
}

/// A request as nginx logged it.
#[derive(Clone, Debug)]
pub struct NginxRequest(Value);

impl NginxRequest {
    /// A field of the log format: `sni`, `protocol`, `host`, `method`, `uri`, `request`, `tls`, `cipher`, `curve`, `alpn`,
    /// `connection`, `client`, `client_certificate`, `body`, `status`, `port`, and `resumed`, which is `r` if the session was. A field without a value is empty.
    pub fn get(&self, field: &str) -> &str {
        self.0.get(field).and_then(Value::as_str).unwrap_or_else(|| panic!("the access log has no field {field}"))
    }
}

impl Nginx {
    /// The requests so far, oldest first. nginx logs a request after it has answered: prefer `wait_for_requests`.
    pub fn requests(&self) -> Result<Vec<NginxRequest>> {
        // What comes as a request on a port in clear need not be text.
        let log = fs::read(&self.access_log)?;
        String::from_utf8_lossy(&log)
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'))
            .map(|line| Ok(NginxRequest(serde_json::from_str(line).context("a line of nginx's access log")?)))
            .collect()
    }

    /// Waits until there are `count` requests, and fails if there are more.
    pub fn wait_for_requests(&self, count: usize) -> Result<Vec<NginxRequest>> {
        wait_until(&format!("nginx to log {count} requests"), PATIENCE, || {
            self.requests().is_ok_and(|requests| requests.len() >= count)
        })?;
        let requests = self.requests()?;
        if requests.len() > count {
            bail!("{count} requests were expected, nginx had {}: {requests:?}", requests.len());
        }
        Ok(requests)
    }

    /// What it said on standard error.
    pub fn errors(&self) -> Vec<String> {
        self.running.stderr()
    }

    /// Ends it, as an origin that goes away.
    pub fn kill(&mut self) {
        self.running.kill();
    }
}

const HEAD: &str = r#"daemon off;
master_process off;
pid @PREFIX@/nginx.pid;
error_log stderr notice;
events { worker_connections 1024; }
http {
  client_body_temp_path @PREFIX@/body;
  proxy_temp_path @PREFIX@/proxy;
  fastcgi_temp_path @PREFIX@/fastcgi;
  uwsgi_temp_path @PREFIX@/uwsgi;
  scgi_temp_path @PREFIX@/scgi;
  root @PREFIX@/www;
  default_type text/html;
  client_max_body_size 64m;
  client_body_buffer_size 1m;
  ssl_protocols TLSv1.2 TLSv1.3;
  log_format json escape=json '{"connection":"$connection","client":"$remote_addr","port":"$server_port",'
    '"sni":"$ssl_server_name","alpn":"$ssl_alpn_protocol","tls":"$ssl_protocol","cipher":"$ssl_cipher",'
    '"curve":"$ssl_curve","client_certificate":"$ssl_client_s_dn","protocol":"$server_protocol","host":"$http_host",'
    '"resumed":"$ssl_session_reused","method":"$request_method","uri":"$request_uri","request":"$request","status":"$status","body":"$request_body"}';
  access_log @PREFIX@/access.log json;
  server {
    listen unix:@PREFIX@/sink.sock;
    access_log off;
    return 200 "received\n";
  }
  upstream sink { server unix:@PREFIX@/sink.sock; }
"#;

/// `/echo` answers with the request's head. `/sink` reads a body, which is then in the log.
const LOCATIONS: &str = r#"
    location = /echo {
      return 200 "$request\nhost: $http_host\nuser-agent: $http_user_agent\naccept: $http_accept\nx-test: $http_x_test\nforwarded: $http_forwarded\nx-forwarded-for: $http_x_forwarded_for\nx-forwarded-proto: $http_x_forwarded_proto\nvia: $http_via\n";
    }
    location = /sink {
      proxy_pass http://sink;
    }
"#;
