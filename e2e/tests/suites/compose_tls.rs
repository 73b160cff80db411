//! The deployment in which everything is encrypted, as users start it: `docker compose -f compose/tls.yaml up`.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bitacora_protocol::tls::ClientTls;
use bitacora_protocol::token::Token;
use e2e::cluster::is;
use e2e::deployment::{Deployment, docker};
use e2e::http::{Api, raw};
use e2e::runner::{Ctx, Test};
use e2e::zookeeper::ZkClient;
use e2e::{tests, wait};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use reqwest::Method;
use tokio::net::TcpStream;

use super::compose::{reads, scraped, sees_members};

pub fn tests() -> Vec<Test> {
    let tests = tests![Deployment: it_serves_nobody_without_tls_and_a_token];
    tests.into_iter().map(|test| test.within(Duration::from_secs(600))).collect()
}

const SOON: Duration = Duration::from_secs(60);
const NODES: [&str; 3] = ["node-1", "node-2", "node-3"];
const NODE_PORTS: [&str; 3] = ["NODE_1_PORT", "NODE_2_PORT", "NODE_3_PORT"];
/// Whoever has it names every node as the real ones are named, but it is of no authority.
const IMPOSTOR: &str = "
    set -e; umask 077
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=node-2 -keyout /tmp/key.pem -out /tmp/request
    openssl x509 -req -in /tmp/request -signkey /tmp/key.pem -days 2 -out /tmp/certificate.pem \
      -extfile <(echo subjectAltName=DNS:node-2,DNS:nodes,DNS:localhost,IP:127.0.0.1)
    mv -f /tmp/key.pem /tmp/certificate.pem /secrets/node-2/
    chown 10001:10001 /secrets/node-2/key.pem /secrets/node-2/certificate.pem";

/// What a user takes out of it, and what follows from that.
struct Client {
    tls: ClientTls,
    token: Token,
    balancer: Api,
    nodes: [Api; 3],
    prometheus: Api,
}

impl Client {
    async fn of(deployment: &Deployment, dir: &Path) -> Result<Client> {
        let dir = tempfile::tempdir_in(dir)?;
        let path = dir.path().join("client");
        deployment.compose(&["cp", "certificates:/secrets/client", &path.to_string_lossy()]).await?;
        let tls = ClientTls::new(&std::fs::read(path.join("ca.pem"))?)?;
        let token: Token =
            std::fs::read_to_string(path.join("token"))?.parse().map_err(anyhow::Error::msg)?;
        let api = |port| Api::over_tls(deployment.port(port), &tls, Some(&token));
        Ok(Client {
            balancer: api("BITACORA_PORT"),
            nodes: NODE_PORTS.map(api),
            prometheus: Api::over_tls(deployment.port("PROMETHEUS_PORT"), &tls, None),
            tls,
            token,
        })
    }

    /// The certificate that is shown at a port, which must be good.
    async fn certificate(&self, port: u16) -> Result<Vec<u8>> {
        let address = format!("127.0.0.1:{port}");
        let stream = TcpStream::connect(&address).await.context("connecting")?;
        let stream = tokio::time::timeout(SOON, self.tls.connect(&address, stream)).await??;
        let chain = stream.get_ref().1.peer_certificates().context("no certificate")?;
        Ok(chain.first().context("an empty chain")?.to_vec())
    }

    async fn node_certificates(&self) -> Result<Vec<Vec<u8>>> {
        let ports = self.nodes.iter().map(|node| self.certificate(node.port));
        futures_util::future::try_join_all(ports).await
    }
}

async fn it_serves_nobody_without_tls_and_a_token(ctx: Ctx) -> Result<()> {
    let deployment = Deployment::tls();
    let outcome = scenario(&deployment, &ctx.dir).await;
    match outcome {
        Ok(()) => Ok(()),
        Err(error) => Err(error.context(deployment.report().await)),
    }
}

async fn scenario(deployment: &Deployment, dir: &Path) -> Result<()> {
    deployment.up(&[]).await?;
    let client = Client::of(deployment, dir).await?;
    it_serves(deployment, &client).await?;
    refuses_strangers(deployment, &client).await?;
    kafka_asks_for_a_login(deployment, dir).await?;
    zookeeper_asks_for_a_login(deployment).await?;
    trusts_no_impostor(deployment, &client).await?;
    serves_new_certificates(deployment, &client).await?;
    tells_no_secret(deployment, &client).await?;
    goes_on_with_what_is_there(deployment, client, dir).await
}

async fn it_serves(deployment: &Deployment, client: &Client) -> Result<()> {
    let Client { balancer, nodes, .. } = client;
    balancer.set("one", "through the balancer").await?.expect(200);
    for node in nodes {
        reads(node, "one", Some("through the balancer")).await?;
        sees_members(node, 3).await?;
    }
    for (i, node) in nodes.iter().enumerate() {
        let key = format!("by node {i}");
        node.set(&key, "value").await?.expect(200);
        reads(balancer, &key, Some("value")).await?;
        for other in nodes {
            reads(other, &key, Some("value")).await?;
        }
    }
    balancer.delete("one").await?.expect(200);
    for node in nodes {
        reads(node, "one", None).await?;
    }
    let read = ["run", "--rm", "-T", "bitacora", "get", "by node 1"];
    ensure!(deployment.compose(&read).await? == "value\n", "the command line reads something else");
    let members = deployment.compose(&["run", "--rm", "-T", "bitacora", "members"]).await?;
    for node in NODES {
        ensure!(members.contains(&format!("\"{node}:8080\"")), "{members}");
    }
    // Members ask one another for their status over TLS, with their token.
    let asked = nodes[0].call(Method::GET, "/status/members").await?.expect(200);
    ensure!(asked.text().matches("\"ready\":true").count() >= 3, "{asked}");

    scraped(&client.prometheus, "sum(up{job=\"bitacora\"})", "3").await?;
    scraped(&client.prometheus, "sum(bitacora_ready)", "3").await?;
    scraped(&client.prometheus, "sum(up{job=~\"haproxy|prometheus\"})", "2").await?;
    scraped(&client.prometheus, "haproxy_backend_active_servers{proxy=\"nodes\"}", "3").await
}

async fn refuses_strangers(deployment: &Deployment, client: &Client) -> Result<()> {
    let names = ["BITACORA_PORT"].into_iter().chain(NODE_PORTS);
    for port in names.clone().map(|name| deployment.port(name)) {
        let stranger = Api::over_tls(port, &client.tls, None);
        stranger.get("by node 1").await?.expect(401);
        stranger.set("by a stranger", "value").await?.expect(401);
        stranger.delete("by node 1").await?.expect(401);
    }
    let stranger = Api::over_tls(client.nodes[0].port, &client.tls, None);
    stranger.call(Method::GET, "/metrics").await?.expect(401);
    reads(&client.balancer, "by node 1", Some("value")).await?;

    for node in &client.nodes {
        let made_up = Api::over_tls(node.port, &client.tls, Some(&Token::of([7; 32])));
        made_up.get("by node 1").await?.expect(401);
    }
    // A user who was given a part of the keys. Until its token is known, nodes answer 401, and soon 429.
    let shop = ["run", "--rm", "-T", "tokens", "shop", "--scopes", "read,write", "--prefix", "shop/"];
    let shop: Token = deployment.compose(&shop).await?.parse().map_err(anyhow::Error::msg)?;
    for node in &client.nodes {
        let shop = Api::over_tls(node.port, &client.tls, Some(&shop));
        let known = wait::try_until(SOON, || async {
            let answer = shop.get("shop/one").await.map_err(|error| format!("{error:#}"))?;
            if answer.status == 404 { Ok(()) } else { Err(answer.to_string()) }
        });
        known.await.map_err(anyhow::Error::msg).context("the node knows the new token")?;
        shop.get("by node 1").await?.expect(403);
    }

    // Plain HTTP gets nothing but an error, wherever it is tried.
    let question = format!(
        "GET /rpc?key=by+node+1 HTTP/1.1\r\nHost: bitacora\r\nAuthorization: {}\r\nConnection: close\r\n\r\n",
        client.token.authorization()
    );
    for name in names.chain(["PROMETHEUS_PORT", "HAPROXY_STATS_PORT"]) {
        if let Some(answer) = raw(deployment.port(name), question.as_bytes(), SOON).await? {
            ensure!(answer.status == 400, "{name} speaks plain HTTP: {answer}");
        }
    }
    Ok(())
}

async fn kafka_asks_for_a_login(deployment: &Deployment, dir: &Path) -> Result<()> {
    let dir = tempfile::tempdir_in(dir)?;
    let ca = dir.path().join("ca.pem").to_string_lossy().into_owned();
    deployment.compose(&["cp", "certificates:/secrets/client/ca.pem", &ca]).await?;
    let password = secret(deployment, "kafka.password").await?;
    let address = format!("127.0.0.1:{}", deployment.port("KAFKA_PORT"));
    let asks = |properties: &[(&str, &str)]| {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &address).set("ssl.ca.location", &ca);
        config.set("sasl.mechanism", "SCRAM-SHA-512").set("sasl.username", "bitacora");
        for (name, value) in properties {
            config.set(*name, *value);
        }
        tokio::task::spawn_blocking(move || {
            let client: BaseConsumer = config.create()?;
            client.fetch_metadata(Some("bitacora"), Duration::from_secs(5))
        })
    };
    let (encrypted, password) = (("security.protocol", "SASL_SSL"), password.as_str());
    let metadata = asks(&[encrypted, ("sasl.password", password)]).await??;
    ensure!(metadata.topics()[0].partitions().len() == 4, "the topic has other partitions");
    let refused = [
        &[("security.protocol", "PLAINTEXT")][..],
        &[("security.protocol", "SSL")],
        &[("security.protocol", "SASL_PLAINTEXT"), ("sasl.password", password)],
        &[encrypted, ("sasl.password", "guessed")],
        &[encrypted, ("sasl.username", "another"), ("sasl.password", password)],
    ];
    let asked = refused.map(|properties| async move { (properties, asks(properties).await) });
    for (properties, answer) in futures_util::future::join_all(asked).await {
        ensure!(answer?.is_err(), "Kafka takes a client with {:?}", &properties[..1]);
    }
    // Of the listeners without TLS none is reached from another container.
    for port in ["19093", "9093"] {
        let connect = format!("exec 3<>/dev/tcp/kafka/{port}");
        let reached = deployment.compose(&["exec", "-T", "node-1", "bash", "-c", &connect]).await;
        let error = reached.err().with_context(|| format!("port {port} of Kafka is open"))?;
        ensure!(format!("{error:#}").contains("refused"), "{error:#}");
    }
    Ok(())
}

async fn zookeeper_asks_for_a_login(deployment: &Deployment) -> Result<()> {
    let hosts = format!("127.0.0.1:{}", deployment.port("ZOOKEEPER_PORT"));
    let zk = ZkClient::connect(&hosts).await.map_err(anyhow::Error::msg)?;
    zk.log_in("bitacora:guessed").await.map_err(anyhow::Error::msg)?;
    let members = zk.children("/bitacora/servers").await.map_err(anyhow::Error::msg)?;
    ensure!(members == NODES.map(|node| format!("{node}:8080")), "the members are {members:?}");
    let refused = |done: Result<(), String>| {
        let error = done.err().context("a stranger may change who is a member")?;
        ensure!(error.contains("NoAuth"), "{error}");
        Ok(())
    };
    let path = format!("/bitacora/servers/{}", members[0]);
    refused(zk.delete(&path).await)?;
    refused(zk.overwrite(&path, "10.0.0.1:1").await)?;
    refused(zk.pose_as_member("10.0.0.1:1").await)?;
    zk.log_in(&secret(deployment, "zookeeper.login").await?).await.map_err(anyhow::Error::msg)?;
    zk.pose_as_member("10.0.0.1:1").await.map_err(anyhow::Error::msg)?;
    zk.delete("/bitacora/servers/10.0.0.1:1").await.map_err(anyhow::Error::msg)?;
    zk.close().await;
    Ok(())
}

/// A node whose certificate is of another authority gets no calls and no token, whatever names it has.
async fn trusts_no_impostor(deployment: &Deployment, client: &Client) -> Result<()> {
    let impose = ["run", "--rm", "-T", "--entrypoint", "bash", "certificates", "-c", IMPOSTOR];
    deployment.compose(&impose).await?;
    // Connections that are open would stay.
    deployment.compose(&["restart", "node-2"]).await?;
    let container = deployment.container_of("node-2").await?;
    let healthy = wait::try_until(SOON, || async {
        let inspected = docker(&["inspect", "--format", "{{.State.Health.Status}}", &container]).await;
        let status = inspected.map_err(|error| format!("{error:#}"))?;
        if status.trim() == "healthy" { Ok(()) } else { Err(status) }
    });
    healthy.await.map_err(anyhow::Error::msg).context("the impostor serves")?;
    scraped(&client.prometheus, "count(up{job=\"bitacora\"} == 0)", "1").await?;
    // The balancer's check fails in the handshake, and not as that of a node that is being restarted does.
    scraped(&client.prometheus, "sum(haproxy_server_check_status{proxy=\"nodes\",state=\"L6RSP\"})", "1")
        .await?;
    scraped(&client.prometheus, "haproxy_backend_active_servers{proxy=\"nodes\"}", "2").await?;
    let error =
        client.certificate(client.nodes[1].port).await.err().context("a client trusts the impostor")?;
    ensure!(format!("{error:#}").contains("UnknownIssuer"), "{error:#}");
    let asked = wait::try_until(SOON, || async {
        let answer = client.nodes[0].call(Method::GET, "/status/members").await;
        let answer = answer.map_err(|error| format!("{error:#}"))?;
        if answer.text().matches("\"ready\":true").count() == 2 { Ok(()) } else { Err(answer.to_string()) }
    });
    asked.await.map_err(anyhow::Error::msg).context("a member asks the impostor")?;
    client.balancer.set("beside the impostor", "value").await?.expect(200);

    // What is not of the authority is replaced without being asked to.
    deployment.compose(&["run", "--rm", "-T", "certificates"]).await?;
    scraped(&client.prometheus, "haproxy_backend_active_servers{proxy=\"nodes\"}", "3").await?;
    scraped(&client.prometheus, "sum(up{job=\"bitacora\"})", "3").await
}

/// New certificates are shown by the nodes that run, and no call of a load through the balancer fails meanwhile.
async fn serves_new_certificates(deployment: &Deployment, client: &Client) -> Result<()> {
    let before = client.node_certificates().await?;
    let started = started(deployment).await?;
    let ended = AtomicBool::new(false);
    let load = async {
        let lanes = (0..4).map(|lane| load(&client.balancer, lane, &ended));
        let calls = futures_util::future::try_join_all(lanes).await?;
        anyhow::Ok(calls.into_iter().sum::<u32>())
    };
    let replace = async {
        let replaced = async {
            deployment.compose(&["run", "--rm", "-T", "certificates", "renew"]).await?;
            let shown = wait::try_until(SOON, || async {
                let shown = client.node_certificates().await.map_err(|error| format!("{error:#}"))?;
                let new = shown.iter().zip(&before).filter(|(shown, before)| shown != before).count();
                if new == before.len() { Ok(()) } else { Err(format!("{new} nodes show a new certificate")) }
            });
            shown.await.map_err(anyhow::Error::msg)
        };
        let replaced = replaced.await;
        ended.store(true, Ordering::Relaxed);
        replaced
    };
    let (calls, replaced) = tokio::join!(load, replace);
    replaced?;
    let calls = calls.context("a call failed while certificates were replaced")?;
    ensure!(calls > 100, "only {calls} calls were made meanwhile");
    ensure!(self::started(deployment).await? == started, "a container was started anew");
    for node in &client.nodes {
        sees_members(node, 3).await?;
    }
    scraped(&client.prometheus, "haproxy_backend_active_servers{proxy=\"nodes\"}", "3").await
}

/// Writes and reads one after the other until it is told to stop. None may fail.
async fn load(balancer: &Api, lane: u32, ended: &AtomicBool) -> Result<u32> {
    let mut calls = 0;
    while !ended.load(Ordering::Relaxed) {
        let key = format!("load {lane} {calls}");
        let written = balancer.set(&key, "value").await?;
        ensure!(written.status == 200, "{written}");
        let read = balancer.get_with(&key, "consistency=latest").await?;
        ensure!(is(&read, Some("value")), "{read}");
        calls += 2;
    }
    Ok(calls)
}

/// When each container was started.
async fn started(deployment: &Deployment) -> Result<Vec<String>> {
    let mut started = Vec::new();
    for service in NODES.into_iter().chain(["haproxy", "kafka"]) {
        let container = deployment.container_of(service).await?;
        started.push(docker(&["inspect", "--format", "{{.State.StartedAt}}", &container]).await?);
    }
    Ok(started)
}

/// Nobody who may look at containers and their logs, and no more, learns a secret.
async fn tells_no_secret(deployment: &Deployment, client: &Client) -> Result<()> {
    let login = secret(deployment, "zookeeper.login").await?;
    let (_, zookeeper) = login.split_once(':').context("the login has a password")?;
    let kafka = secret(deployment, "kafka.password").await?;
    let member =
        deployment.compose(&["exec", "-T", "node-1", "cat", "/tokens/member.token"]).await?.trim().to_owned();
    let scraper = deployment.compose(&["exec", "-T", "prometheus", "cat", "/secrets/token"]).await?;
    let secrets = [client.token.secret(), &member, scraper.trim(), zookeeper, &kafka, "PRIVATE KEY"];
    ensure!(secrets.iter().all(|secret| secret.len() > 10), "a secret is missing");
    let containers = deployment.compose(&["ps", "--all", "--quiet"]).await?;
    let inspected = docker(&[&["inspect"], &*containers.lines().collect::<Vec<_>>()].concat()).await?;
    ensure!(inspected.contains("TLS_KEY_FILE"), "nothing is inspected");
    let logs = deployment.compose(&["logs", "--no-color"]).await?;
    for secret in secrets {
        ensure!(!inspected.contains(secret), "docker inspect tells a secret");
        ensure!(!logs.contains(secret), "a log tells a secret");
    }
    Ok(())
}

/// The second `up` keeps data, authority and tokens, also where all containers are new.
async fn goes_on_with_what_is_there(deployment: &Deployment, client: Client, dir: &Path) -> Result<()> {
    let certificates = client.node_certificates().await?;
    deployment.compose(&["down", "--timeout", "30"]).await?;
    deployment.up(&[]).await?;
    // By the files that were taken out before, and by those that would be taken out now.
    let now = Client::of(deployment, dir).await?;
    for client in [&client, &now] {
        reads(&client.balancer, "by node 1", Some("value")).await?;
        for node in &client.nodes {
            reads(node, "beside the impostor", Some("value")).await?;
            sees_members(node, 3).await?;
        }
        ensure!(
            client.node_certificates().await? == certificates,
            "certificates were replaced without a need"
        );
    }
    ensure!(now.token == client.token, "there is another token");
    now.balancer.set("after it all", "value").await?.expect(200);
    // The nodes have other addresses now, and Prometheus goes on to tell of those from before.
    let scraped_now = "count(timestamp(up{job=\"bitacora\"}) > time() - 15 and up{job=\"bitacora\"} == 1)";
    scraped(&now.prometheus, scraped_now, "3").await
}

/// What a node has in one of its files.
async fn secret(deployment: &Deployment, file: &str) -> Result<String> {
    let text = deployment.compose(&["exec", "-T", "node-1", "cat", &format!("/secrets/{file}")]).await?;
    Ok(text.trim().to_owned())
}
