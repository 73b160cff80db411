//! Addresses in ZooKeeper that are not those of nodes: what they are sent, and what becomes of their answers.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cluster::Cluster;
use e2e::http::{Api, RawConnection};
use e2e::runner::Ctx;
use e2e::zookeeper::ZkClient;
use e2e::{ports, wait};
use reqwest::Method;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::certificates::Authority;
use super::tls::{good_settings, serves, with};
use super::{PATIENCE, Tokens, ask, told};

/// What a service that trusts its network tells everybody, and no caller of a node may get to see.
const CREDENTIALS: &str = "the-credentials-of-the-machine";

/// A server of something else, which keeps what it is sent.
struct Stranger {
    port: u16,
    received: Arc<Mutex<Vec<u8>>>,
    task: JoinHandle<()>,
}

impl Stranger {
    /// With `acceptor`, over TLS.
    async fn start(answer: String, acceptor: Option<TlsAcceptor>) -> Result<Stranger> {
        let port = ports::free();
        let listener = TcpListener::bind(("127.0.0.1", port)).await.context("listening")?;
        let received = Arc::<Mutex<Vec<u8>>>::default();
        let kept = Arc::clone(&received);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (kept, answer, acceptor) = (Arc::clone(&kept), answer.clone(), acceptor.clone());
                connections.spawn(async move {
                    match acceptor {
                        None => serve(stream, &kept, &answer).await,
                        Some(acceptor) => match acceptor.accept(stream).await {
                            Ok(stream) => serve(stream, &kept, &answer).await,
                            Err(error) => note(&kept, format!("[no handshake: {error}]").as_bytes()),
                        },
                    }
                });
            }
        });
        Ok(Stranger { port, received, task })
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn received(&self) -> String {
        String::from_utf8_lossy(&self.received.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// The method and path of each request, without those that came twice.
    fn lines(&self) -> Vec<String> {
        let received = self.received();
        let lines = received.lines().filter_map(|line| line.strip_suffix(" HTTP/1.1"));
        let mut lines: Vec<String> = lines.map(str::to_owned).collect();
        lines.sort();
        lines.dedup();
        lines
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn note(kept: &Mutex<Vec<u8>>, bytes: &[u8]) {
    kept.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
}

async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, kept: &Mutex<Vec<u8>>, answer: &str) {
    let mut piece = [0; 4096];
    while let Ok(read @ 1..) = stream.read(&mut piece).await {
        note(kept, &piece[..read]);
        if piece[..read].ends_with(b"\r\n\r\n") && stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

fn response(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len())
}

/// Has these be members by ZooKeeper, for as long as what is returned lives, and waits until the node knows them.
async fn register(
    cluster: &Cluster,
    names: &[String],
    is_known: impl AsyncFn() -> Result<bool>,
) -> Result<ZkClient> {
    let zk = cluster.zk().await;
    for name in names {
        // The folder is made by the node, once it is ready.
        let posed = wait::try_until(PATIENCE, || zk.pose_as_member(name));
        posed.await.map_err(anyhow::Error::msg)?;
    }
    let known = wait::try_until(PATIENCE, || async {
        let known = is_known().await.map_err(|error| format!("{error:#}"))?;
        if known { Ok(()) } else { Err("they are not known".to_owned()) }
    });
    known.await.map_err(anyhow::Error::msg)?;
    Ok(zk)
}

fn addresses(status: &Value) -> Vec<String> {
    let members = status["members"].as_array().cloned().unwrap_or_default();
    members.iter().filter_map(|member| member.as_str().map(str::to_owned)).collect()
}

pub async fn a_rogue_znode_gets_the_questions_of_members_and_no_more(ctx: Ctx) -> Result<()> {
    let tokens = Tokens::create(&ctx)?;
    // Every miss asks the members.
    let options = tokens.options.clone().env("PEER_READS", "always").env("EXTERNAL_REQUEST_TIMEOUT", "1s");
    let cluster = tokens.node_with_secret(&ctx, options).await?;
    let node = &cluster.nodes[0];
    let json = format!(r#"{{"Code":"Success","AccessKeyId":"{CREDENTIALS}","Token":"{CREDENTIALS}"}}"#);
    let metadata =
        Stranger::start(response("200 OK", "content-type: application/json\r\n", &json), None).await?;
    let internal = Stranger::start(response("200 OK", "", CREDENTIALS), None).await?;
    let location = format!("location: http://{}/latest/meta-data/iam\r\n", internal.address());
    let redirects =
        ["301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"];
    let mut redirecting = Vec::new();
    for status in redirects {
        redirecting.push(Stranger::start(response(status, &location, CREDENTIALS), None).await?);
    }
    // Names that would lead to another path or host, if they were taken into a URL as they are.
    let target = Stranger::start(response("200 OK", "", CREDENTIALS), None).await?;
    let crooked =
        ["127.0.0.1:PORT?a=", "127.0.0.1:PORT#", "user:word@127.0.0.1:PORT", "127.0.0.1:PORT\\x", "x y:PORT"];
    let crooked = crooked.map(|name| name.replace("PORT", &target.port.to_string()));
    let mut names = vec![metadata.address()];
    names.extend(redirecting.iter().map(Stranger::address));
    let expected = names.len() + 1;
    names.extend(crooked.iter().cloned());
    let get = async |path: &str| {
        let mut connection = RawConnection::open(node.api_port).await?;
        ask(&mut connection, &format!("GET {path}"), Some(&tokens.all)).await
    };
    let zk =
        register(&cluster, &names, async || Ok(addresses(&get("/status").await?.json()).len() == expected))
            .await?;

    for path in [
        "/rpc?key=missing",
        "/rpc?key=latest%2Fmeta-data%2Fiam%3Fa%3Db%23",
        "/rpc?key=..%2F..%2Flatest",
        "/rpc?key=missing%0D%0AX-Header%3A+a",
        "/status/members",
        "/rpc?key=missing&consistency=strong",
    ] {
        let answer = get(path).await?;
        ensure!(!answer.text().contains(CREDENTIALS), "{path}: {answer}");
        ensure!(matches!(answer.status, 404 | 503) || path == "/status/members", "{path}: {answer}");
    }
    let mut connection = RawConnection::open(node.api_port).await?;
    let written =
        ask(&mut connection, "POST /rpc?key=k&value=v&visible=all&timeout=1s", Some(&tokens.all)).await?;
    ensure!(written.status == 200 && !written.text().contains(CREDENTIALS), "{written}");
    ensure!(!node.log_tail(100_000).contains(CREDENTIALS), "the log tells what a stranger answered");

    let lines = metadata.lines();
    ensure!(
        lines.iter().any(|line| line.starts_with("GET /rpc/cluster?key=missing")),
        "it was not asked: {lines:?}"
    );
    for stranger in redirecting.iter().chain([&metadata]) {
        for line in stranger.lines() {
            let (method, path) = line.split_once(' ').context("a request line")?;
            let own = ["/rpc/cluster?key=", "/status", "/snapshot"].iter().any(|own| path.starts_with(own));
            ensure!(
                own && matches!(method, "GET" | "HEAD") && !path.contains(['#', '\\']),
                "a node asks for {line}"
            );
        }
        ensure!(!stranger.lines().is_empty(), "{} was not asked", stranger.port);
        ensure!(!stranger.received().lines().any(|line| line.starts_with("X-Header")), "a key adds a header");
        ensure!(!stranger.received().contains(tokens.all.secret()), "a client's token is passed on");
    }
    ensure!(internal.received().is_empty(), "a redirect is followed: {}", internal.received());
    ensure!(target.received().is_empty(), "a name is taken for a URL: {}", target.received());
    let shown = metadata.received().contains(tokens.member.secret());
    told(
        "a znode with the address of something else, members without TLS",
        &format!(
            "it is sent {lines:?}, with the member token: {shown}; of {} redirects none is followed, of {} names that would lead to another \
             path or host none is asked; nothing of the answers gets to a caller or into the log",
            redirecting.len(),
            crooked.len(),
        ),
    );
    zk.close().await;
    Ok(())
}

/// Accepts TLS with a certificate of this authority.
fn acceptor(authority: &Authority) -> Result<TlsAcceptor> {
    let own = authority.certify();
    e2e::certificates::acceptor(own.certificate.as_bytes(), own.key.as_bytes())
}

pub async fn over_tls_a_rogue_znode_gets_nothing(ctx: Ctx) -> Result<()> {
    let (authority, foreign) = (Authority::new(), Authority::new());
    let tokens = Tokens::create(&ctx)?;
    let options = tokens.options.clone().env("PEER_READS", "always").env("EXTERNAL_REQUEST_TIMEOUT", "1s");
    let mut cluster = ctx.no_nodes(with(options, &good_settings(&ctx, &authority))).await?;
    let node = cluster.add().await?;
    node.spawn()?;
    let trusted = authority.trusted();
    serves(node, &trusted).await;
    let api = Api::over_tls(node.api_port, &trusted, Some(&tokens.all));
    let answer = response("200 OK", "", CREDENTIALS);
    let plain = Stranger::start(answer.clone(), None).await?;
    let of_others = Stranger::start(answer.clone(), Some(acceptor(&foreign)?)).await?;
    // One that a certificate of the authority was made for is a member, as far as anybody can tell.
    let certified = Stranger::start(answer, Some(acceptor(&authority)?)).await?;
    let names = [&plain, &of_others, &certified].map(Stranger::address);
    let zk = register(&cluster, &names, async || Ok(addresses(&api.status().await?).len() == 4)).await?;
    let told_to_strangers = || {
        let all = format!("{}{}", plain.received(), of_others.received());
        let untold = [tokens.member.secret(), "Bearer", "GET ", "HEAD ", "missing"];
        untold.into_iter().find(|text| all.contains(text)).map(|text| format!("{text:?} in {all}"))
    };
    let asked = wait::try_until(PATIENCE, || async {
        let read = api.get("missing").await.map_err(|error| format!("{error:#}"))?;
        let members = api.call(Method::GET, "/status/members").await.map_err(|error| format!("{error:#}"))?;
        let leaks = read.text().contains(CREDENTIALS) || members.text().contains(CREDENTIALS);
        assert!(!leaks, "{read}\n{members}");
        if let Some(told) = told_to_strangers() {
            panic!("a stranger is told {told}");
        }
        // The token would be seen.
        let all = !plain.received().is_empty()
            && of_others.received().contains("[no handshake: ")
            && certified.received().contains(tokens.member.secret());
        if all { Ok(()) } else { Err("not all of them were asked".to_owned()) }
    });
    asked.await.map_err(anyhow::Error::msg)?;
    // Each was asked several times by now, and more would come within this.
    wait::holds("they are told nothing", Duration::from_millis(500), || async {
        told_to_strangers().map_or(Ok(()), Err)
    })
    .await;
    ensure!(plain.received().as_bytes().first() == Some(&22), "{}", plain.received());
    told(
        "a znode with the address of something else, members with TLS",
        "one that speaks plain text gets the beginning of a handshake, one with a foreign certificate an alert; neither a request nor the \
         token. One with a certificate of TLS_CA_FILE for its name is asked as a member, with the token, and its answers are no values",
    );
    zk.close().await;
    Ok(())
}
