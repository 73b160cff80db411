//! The peers that a node is measured beside: bare servers, nginx, Redis. One that is not installed is named, and not stood in for.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::bare::{Kind, ProducingServer, Server};
use super::child::{self, Job};
use super::load::{Call, Load};
use super::{cpu, key, value};
use crate::certificates::Certified;
use crate::cluster::node_binary;
use crate::process::Process;
use crate::topic::Topic;
use crate::{ports, wait};

const START: Duration = Duration::from_secs(20);

/// A server that runs until this is dropped.
pub struct Peer {
    pub port: u16,
    processes: Vec<Process>,
}

impl Peer {
    /// Its processes, and those that they have started.
    ///
    /// # Errors
    /// When the system is not Linux.
    pub fn pids(&self) -> Result<Vec<u32>> {
        let families = self.processes.iter().map(|process| cpu::with_children(process.pid()));
        Ok(families.collect::<Result<Vec<_>>>()?.concat())
    }

    async fn listening(port: u16, processes: Vec<Process>) -> Peer {
        wait::until("the server listens", START, || async {
            TcpStream::connect(("127.0.0.1", port)).await.map(drop).map_err(|error| error.to_string())
        })
        .await;
        Peer { port, processes }
    }

    /// A bare server that answers everything with this body.
    ///
    /// # Errors
    /// When its process can't be started.
    pub async fn bare(kind: Kind, body: &str, dir: &Path) -> Result<Peer> {
        let port = ports::free();
        let job = Job::Serve(Server { kind, port, body: body.to_owned() });
        let process = child::start(&job, &dir.join(format!("{kind:?}.log")))?;
        Ok(Peer::listening(port, vec![process]).await)
    }

    /// A bare server that writes what it is sent to a topic, and answers with this body.
    ///
    /// # Errors
    /// When its process can't be started.
    pub async fn producing(topic: &Topic, body: &str, dir: &Path) -> Result<Peer> {
        let (port, brokers, topic) = (ports::free(), topic.brokers.clone(), topic.name.clone());
        let job = Job::ServeProducing(ProducingServer { port, brokers, topic, body: body.to_owned() });
        let process = child::start(&job, &dir.join("producing.log"))?;
        Ok(Peer::listening(port, vec![process]).await)
    }

    /// nginx with `return 200` and this body, a process for each core; `None` if it is not installed.
    ///
    /// Each is started by itself and shares the port: the workers of a master that is killed would outlive it.
    ///
    /// # Errors
    /// When a process can't be started.
    pub async fn nginx(body: &str, dir: &Path) -> Result<Option<Peer>> {
        Peer::nginx_with(body, dir, "").await
    }

    /// As [`Peer::nginx`], over TLS with this certificate.
    ///
    /// # Errors
    /// As [`Peer::nginx`].
    pub async fn nginx_over_tls(body: &str, dir: &Path, certified: &Certified) -> Result<Option<Peer>> {
        let (certificate, key) = (certified.certificate.display(), certified.key.display());
        let tls = format!("ssl_certificate {certificate};\nssl_certificate_key {key};\n");
        Peer::nginx_with(body, dir, &tls).await
    }

    /// `tls`: the directives about it; none for plain text.
    async fn nginx_with(body: &str, dir: &Path, tls: &str) -> Result<Option<Peer>> {
        let Some(program) = program("nginx") else { return Ok(None) };
        let (port, cores) = (ports::free(), std::thread::available_parallelism()?.get());
        let mut processes = Vec::new();
        for number in 0..cores {
            let folder = dir.join(format!("nginx-{number}"));
            std::fs::create_dir_all(&folder)?;
            let config = folder.join("nginx.conf");
            std::fs::write(&config, nginx_config(&folder, port, body, tls))?;
            let mut command = Command::new(&program);
            command.arg("-p").arg(&folder).arg("-c").arg(&config).arg("-e").arg(folder.join("error.log"));
            processes.push(Process::spawn(command, &dir.join(format!("nginx-{number}.log")))?);
        }
        Ok(Some(Peer::listening(port, processes).await))
    }

    /// Redis, with its append-only file written every second or without; `None` if it is not installed.
    ///
    /// # Errors
    /// When its process can't be started.
    pub async fn redis(append_only: bool, dir: &Path) -> Result<Option<Peer>> {
        let Some(program) = program("redis-server") else { return Ok(None) };
        let port = ports::free();
        let folder = dir.join(format!("redis-{port}"));
        std::fs::create_dir_all(&folder)?;
        let mut command = Command::new(program);
        command
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--dir"])
            .arg(&folder);
        command.args(["--appendonly", if append_only { "yes" } else { "no" }, "--appendfsync", "everysec"]);
        let process = Process::spawn(command, &dir.join("redis.log"))?;
        Ok(Some(Peer::listening(port, vec![process]).await))
    }
}

fn nginx_config(folder: &Path, port: u16, body: &str, tls: &str) -> String {
    let (at, ssl) = (folder.display(), if tls.is_empty() { "" } else { " ssl" });
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {at}/{name};\n"))
        .concat();
    format!(
        "daemon off;\nmaster_process off;\npid {at}/pid;\nerror_log {at}/error.log;\nevents {{ worker_connections 4096; }}\n\
         http {{\naccess_log off;\n{temporary}{tls}keepalive_requests 1000000000;\ndefault_type application/json;\n\
         server {{ listen 127.0.0.1:{port}{ssl} reuseport; location / {{ return 200 '{body}'; }} }}\n}}\n"
    )
}

/// A program of the path, or of where administrators' programs lie.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(more).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Gives Redis so many keys.
///
/// # Errors
/// When the server does not take them.
pub async fn fill_redis(port: u16, keys: u64, value_bytes: usize) -> Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let (mut input, value) = (vec![0; 64 * 1024], value(value_bytes));
    for start in (0..keys).step_by(1000) {
        let (mut out, end) = (String::new(), keys.min(start + 1000));
        for number in start..end {
            let key = key(number);
            out += &format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${value_bytes}\r\n{value}\r\n", key.len());
        }
        stream.write_all(out.as_bytes()).await?;
        let mut filled = 0;
        while filled < (end - start) as usize * "+OK\r\n".len() {
            let read = stream.read(&mut input[filled..]).await?;
            ensure!(read > 0, "redis closed the connection");
            filled += read;
        }
    }
    Ok(())
}

/// A node of `dev` alone, without Kafka: for what has nothing to do with the log.
pub struct DevNode {
    pub http: u16,
    pub rpc: u16,
    process: Process,
}

impl DevNode {
    /// Its store is in `dir`, which may have one already.
    ///
    /// # Errors
    /// When it can't be built or started.
    pub async fn start(dir: &Path, flags: &[&str]) -> Result<DevNode> {
        let node = DevNode::spawn(dir, flags).await?;
        let api = crate::http::Api::new(node.http);
        wait::until("the node is ready", START, || async {
            let answer = api.health().await.map_err(|error| format!("{error:#}"))?;
            if answer.status == 200 { Ok(()) } else { Err(answer.to_string()) }
        })
        .await;
        Ok(node)
    }

    /// As [`DevNode::start`], of a node that speaks TLS and nothing else; waits until it reads the first key, which must be there.
    ///
    /// # Errors
    /// As [`DevNode::start`].
    pub async fn start_over_tls(dir: &Path, certified: &Certified) -> Result<DevNode> {
        let flags = ["--tls-certificate-file", "--tls-key-file", "--tls-ca-file"];
        let files = [&certified.certificate, &certified.key, &certified.authority];
        let flags: Vec<_> = flags
            .iter()
            .zip(files)
            .flat_map(|(flag, file)| [flag.to_string(), file.display().to_string()])
            .collect();
        let node = DevNode::spawn(dir, &flags).await?;
        let authority = Some(certified.authority_pem.clone());
        let read =
            Job::Load(Load { once: true, authority, ..Load::new(Call::HttpGet, node.http, 1, 1, 0.0) });
        wait::until("the node reads over TLS", START, || async {
            child::run(&read).await.map(drop).map_err(|error| format!("{error:#}"))
        })
        .await;
        Ok(node)
    }

    async fn spawn(dir: &Path, flags: &[impl AsRef<std::ffi::OsStr>]) -> Result<DevNode> {
        let (http, rpc) = ports::pair();
        let mut command = Command::new(node_binary().await?);
        command.args(["dev", "--nodes", "1", "--port", &http.to_string(), "--data-dir"]).arg(dir.join("dev"));
        command.args(flags);
        let process = Process::spawn(command, &dir.join("dev.log"))?;
        Ok(DevNode { http, rpc, process })
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Sets so many keys, and waits until the node shows all of them.
    ///
    /// # Errors
    /// When a set fails.
    pub async fn fill(&self, keys: u64, value_bytes: usize) -> Result<()> {
        let batches = super::bulk::Batches {
            over: super::bulk::Over::Rpc(self.rpc),
            records: keys,
            value_bytes,
            batch: 1000.min(1 + (1 << 20) / value_bytes as u64),
            under_way: 8,
        };
        child::run(&Job::Batches(batches)).await?;
        self.has(keys).await;
        Ok(())
    }

    /// Waits until it holds so many records.
    pub async fn has(&self, records: u64) {
        let api = crate::http::Api::new(self.http);
        wait::until("the node has all records", Duration::from_secs(300), || async {
            let status = api.status().await.map_err(|error| format!("{error:#}"))?;
            if status["store"]["records"] == records { Ok(()) } else { Err(status["store"].to_string()) }
        })
        .await;
    }
}
