//! The proxies under test: how each is started, alone and as two in a row.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::available_parallelism;

use super::children::{Child, Failable, free_address};
use super::measure;

/// A program that can be a proxy.
#[derive(Clone, Debug)]
pub(crate) struct Family {
    pub(crate) name: String,
    pub(crate) program: PathBuf,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ollana,
    /// With a key: the hop between client and server is encrypted.
    Paired,
    Nginx,
    Haproxy,
}

/// Next to the upstream, or in front of another of its family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Server,
    Client,
}

/// One way to the upstream.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    /// Index of its family; `None` for the direct one.
    pub(crate) family: Option<usize>,
    /// Proxies on it.
    pub(crate) hops: usize,
    pub(crate) address: SocketAddr,
    /// The proxies' processes.
    pub(crate) pids: Vec<u32>,
}

/// Every family that is here, Ollana first; `skipped` ones are left out.
pub(crate) fn families(skipped: &[String], with_paired: bool) -> Vec<Family> {
    let own = std::env::var_os("OLLANA_BENCH_BIN")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_ollana")), PathBuf::from);
    let of_own = |name: &str, kind| Family { name: name.to_owned(), program: own.clone(), kind };
    let mut found = vec![of_own("ollana", Kind::Ollana)];
    if with_paired {
        found.push(of_own("paired", Kind::Paired));
    }
    if let Some(other) = std::env::var_os("OLLANA_BENCH_OTHER") {
        let program = PathBuf::from(other);
        found.push(Family { name: "other".to_owned(), program, kind: Kind::Ollana });
    }
    for (name, kind) in [("nginx", Kind::Nginx), ("haproxy", Kind::Haproxy)] {
        if skipped.iter().any(|skip| skip == name) {
            continue;
        }
        match find(name) {
            Some(program) => found.push(Family { name: name.to_owned(), program, kind }),
            None => println!("{name} is not installed (apt-get install {name}): left out"),
        }
    }
    found
}

fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let places = path.split(':').chain(["/usr/sbin", "/usr/local/sbin"]);
    places.map(|place| Path::new(place).join(name)).find(|program| program.is_file())
}

impl Family {
    pub(crate) fn is_ollana(&self) -> bool {
        matches!(self.kind, Kind::Ollana | Kind::Paired)
    }

    /// What it says of its version.
    pub(crate) fn version(&self) -> String {
        let flag = if self.is_ollana() { "--version" } else { "-v" };
        let Ok(said) = Command::new(&self.program).arg(flag).output() else { return String::new() };
        let said = [said.stdout, said.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let number = said
            .split([' ', '/', '\n'])
            .find(|word| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.'));
        number.map_or(String::new(), |number| {
            number.split(['-', '+']).next().unwrap_or("").to_owned()
        })
    }

    /// The arguments that make it a proxy from `listen` to `target`; its files go to `dir`.
    pub(crate) fn arguments(
        &self,
        dir: &Path,
        role: Role,
        listen: SocketAddr,
        target: SocketAddr,
    ) -> Failable<Vec<String>> {
        let cores = available_parallelism().map_or(2, usize::from);
        let text = match self.kind {
            Kind::Ollana => return Ok(ollana_arguments(dir, role, listen, target)),
            Kind::Paired => {
                let mut words = ollana_arguments(dir, role, listen, target);
                words.extend(["--key-file".to_owned(), key_file(dir)?.display().to_string()]);
                return Ok(words);
            }
            Kind::Nginx => nginx_config(dir, cores, listen, target),
            Kind::Haproxy => haproxy_config(cores, listen, target),
        };
        let file = dir.join(format!("{}-{}.conf", self.name, listen.port()));
        fs::write(&file, text)?;
        let file = file.display().to_string();
        let prefix = dir.display().to_string();
        Ok(match self.kind {
            Kind::Nginx => vec!["-p".to_owned(), prefix, "-c".to_owned(), file],
            _ => vec!["-db".to_owned(), "-q".to_owned(), "-f".to_owned(), file],
        })
    }

    /// Starts it and waits until it answers.
    pub(crate) fn start(
        &self,
        dir: &Path,
        role: Role,
        target: SocketAddr,
    ) -> Failable<(Child, SocketAddr)> {
        let listen = free_address()?;
        let args = self.arguments(dir, role, listen, target)?;
        let mut child = Child::start(dir, &self.program, &args)?;
        child.wait_ready(listen)?;
        Ok((child, listen))
    }
}

/// Starts two of each family, and lists all routes: direct, one hop, two hops.
pub(crate) fn start_all(
    families: &[Family],
    dir: &Path,
    upstream: SocketAddr,
) -> Failable<(Vec<Child>, Vec<Route>)> {
    let mut children = Vec::new();
    let mut routes = vec![Route { family: None, hops: 0, address: upstream, pids: Vec::new() }];
    let mut chains = Vec::new();
    for (index, family) in families.iter().enumerate() {
        let (server, near) = family.start(dir, Role::Server, upstream)?;
        let (client, far) = family.start(dir, Role::Client, near)?;
        let mut pids = measure::family(server.pid());
        let family = Some(index);
        routes.push(Route { family, hops: 1, address: near, pids: pids.clone() });
        pids.extend(measure::family(client.pid()));
        chains.push(Route { family, hops: 2, address: far, pids });
        children.extend([client, server]);
    }
    routes.extend(chains);
    Ok((children, routes))
}

/// A secret that the paired ones share.
fn key_file(dir: &Path) -> Failable<PathBuf> {
    let path = dir.join("secret");
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&path)?;
    writeln!(file, "{}", "5eed".repeat(16))?;
    Ok(path)
}

fn ollana_arguments(dir: &Path, role: Role, listen: SocketAddr, target: SocketAddr) -> Vec<String> {
    let (mode, option, value) = match role {
        Role::Server => ("server", "--ollama", format!("http://{target}")),
        Role::Client => ("client", "--server", target.to_string()),
    };
    let words = ["--mode", mode, option, &value, "--discovery-port", "0", "--log-level", "warn"];
    let place = ["--listen".to_owned(), listen.to_string(), "--state-dir".to_owned()];
    let place = place.into_iter().chain([dir.display().to_string()]);
    words.into_iter().map(str::to_owned).chain(place).collect()
}

/// For streaming: nothing is gathered in either direction, connections to the upstream are kept.
/// The buffer is what nginx reads at a time when it doesn't gather; the default of 4 KiB would
/// make its bulk figures worse, and this is what Ollana uses.
fn nginx_config(dir: &Path, workers: usize, listen: SocketAddr, target: SocketAddr) -> String {
    let dir = dir.display();
    format!(
        "daemon off;
worker_processes {workers};
worker_rlimit_nofile 16384;
pid {dir}/nginx-{port}.pid;
error_log stderr error;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  client_body_temp_path {dir}/nginx-body;
  proxy_temp_path {dir}/nginx-proxy;
  fastcgi_temp_path {dir}/nginx-fastcgi;
  uwsgi_temp_path {dir}/nginx-uwsgi;
  scgi_temp_path {dir}/nginx-scgi;
  client_max_body_size 0;
  keepalive_requests 100000000;
  keepalive_timeout 300s;
  upstream ollama {{
    server {target};
    keepalive 1024;
    keepalive_requests 100000000;
    keepalive_timeout 300s;
  }}
  server {{
    listen {listen} backlog=4096;
    location / {{
      proxy_pass http://ollama;
      proxy_http_version 1.1;
      proxy_set_header Connection \"\";
      proxy_buffering off;
      proxy_buffer_size 32k;
      proxy_buffers 8 32k;
      proxy_request_buffering off;
      proxy_read_timeout 1h;
      proxy_send_timeout 1h;
    }}
  }}
}}
",
        port = listen.port()
    )
}

/// `http-no-delay` is the option for streaming, `abortonclose` passes hang-ups on; buffers keep
/// their default of 16 KiB.
fn haproxy_config(threads: usize, listen: SocketAddr, target: SocketAddr) -> String {
    format!(
        "global
  maxconn 8192
  nbthread {threads}
defaults
  mode http
  option http-no-delay
  option abortonclose
  http-reuse always
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  timeout http-keep-alive 300s
frontend near
  bind {listen} backlog 4096
  default_backend ollama
backend ollama
  server ollama {target}
"
    )
}
