//! Nodes log in to Kafka, by each way that librdkafka has here, and say why where they are not let in.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::certificates::Certified;
use e2e::cluster::{Node, Options};
use e2e::runner::{Ctx, Test};
use e2e::secured_kafka::{PASSWORD, SecuredKafka, USER};
use e2e::token_server::{AUDIENCE, CLIENT_ID, CLIENT_SECRET, SCOPE, Signer, TokenServer};
use e2e::{ports, tests, wait};
use reqwest::Method;

pub fn tests() -> Vec<Test> {
    tests![Deployment:
        nodes_log_in_by_password_and_by_certificate,
        nodes_log_in_by_tokens_and_renew_them,
        nodes_without_a_good_token_say_why_and_get_in_when_it_is_mended,
    ]
}

const SOON: Duration = Duration::from_secs(60);
const WRONG_PASSWORD: &str = "not-that-password";

/// An authority and a certificate in a folder of their own.
fn certified(ctx: &Ctx, name: &str) -> Result<Certified> {
    let folder = ctx.dir.join(name);
    std::fs::create_dir_all(&folder)?;
    Certified::create(&folder)
}

async fn nodes_log_in_by_password_and_by_certificate(ctx: Ctx) -> Result<()> {
    let folder = |name: &str| certified(&ctx, name);
    let (broker, node, stranger) = (folder("broker")?, folder("node")?, folder("stranger")?);
    let kafka = SecuredKafka::start(&broker, &node, &Signer::new()?.key_set()).await?;
    let password = ctx.dir.join("password");
    std::fs::write(&password, PASSWORD)?;
    let wrong_password = ctx.dir.join("wrong-password");
    std::fs::write(&wrong_password, WRONG_PASSWORD)?;
    let authority = format!("ssl.ca.location={}", broker.authority.display());
    let sasl = |protocol: &str, mechanism: &str, password: &std::path::Path| {
        format!(
            "security.protocol={protocol};{authority};sasl.mechanism={mechanism};sasl.username={USER};sasl.password=@{}",
            password.display()
        )
    };
    let certificate = |of: &Certified| {
        format!(
            "security.protocol=SSL;{authority};ssl.certificate.location={};ssl.key.location={}",
            of.certificate.display(),
            of.key.display()
        )
    };
    for (brokers, properties) in [
        (&kafka.sasl, sasl("SASL_PLAINTEXT", "PLAIN", &password)),
        (&kafka.sasl, sasl("SASL_PLAINTEXT", "SCRAM-SHA-256", &password)),
        (&kafka.sasl, sasl("SASL_PLAINTEXT", "SCRAM-SHA-512", &password)),
        (&kafka.sasl_over_tls, sasl("SASL_SSL", "PLAIN", &password)),
        (&kafka.sasl_over_tls, sasl("SASL_SSL", "SCRAM-SHA-256", &password)),
        (&kafka.sasl_over_tls, sasl("SASL_SSL", "SCRAM-SHA-512", &password)),
        (&kafka.mutual_tls, certificate(&node)),
    ] {
        let options = Options::new().brokers(brokers).env("KAFKA_PROPERTIES", &properties);
        let cluster = ctx.cluster_with(1, options).await?;
        let [node] = &cluster.nodes[..] else { unreachable!("one node") };
        node.api().set("key", &properties).await?.expect(200);
        node.has("key", Some(&properties)).await;
        let status = node.api().status().await?.to_string();
        ensure!(!status.contains(PASSWORD), "{status}");
        ensure!(!std::fs::read_to_string(&node.log)?.contains(PASSWORD), "the log has the password");
    }
    for (brokers, properties, says) in [
        (&kafka.sasl, sasl("SASL_PLAINTEXT", "PLAIN", &wrong_password), "Authentication failed"),
        (&kafka.sasl_over_tls, sasl("SASL_SSL", "SCRAM-SHA-512", &wrong_password), "Authentication failed"),
        (&kafka.mutual_tls, certificate(&stranger), "No matching issuer"),
        (&kafka.mutual_tls, format!("security.protocol=SSL;{authority}"), "SSL"),
        // The broker is of another authority.
        (
            &kafka.mutual_tls,
            certificate(&node)
                .replace(&authority, &format!("ssl.ca.location={}", stranger.authority.display())),
            "certificate",
        ),
        (&kafka.sasl, "security.protocol=PLAINTEXT".to_owned(), "(BROKER_LIST) does not answer"),
    ] {
        let options = Options::new().brokers(brokers).env("KAFKA_PROPERTIES", &properties);
        let mut cluster = ctx.no_nodes(options).await?;
        let node = cluster.add().await?;
        node.spawn()?;
        wait::until(&format!("it says why, with {properties}"), SOON, || async {
            let log = std::fs::read_to_string(&node.log).map_err(|error| error.to_string())?;
            if log.contains(says) { Ok(()) } else { Err(log) }
        })
        .await;
        node.api().health().await?.expect(503);
        ensure!(!std::fs::read_to_string(&node.log)?.contains(WRONG_PASSWORD), "the log has the password");
    }
    Ok(())
}

/// The properties of a node that gets its tokens there.
fn by_tokens(protocol: &str, broker: &Certified, url: &str, secret: &Path) -> String {
    format!(
        "security.protocol={protocol};ssl.ca.location={};sasl.mechanism=OAUTHBEARER;sasl.oauthbearer.method=oidc;\
         sasl.oauthbearer.token.endpoint.url={url};sasl.oauthbearer.client.id={CLIENT_ID};\
         sasl.oauthbearer.client.secret=@{};sasl.oauthbearer.scope={SCOPE}",
        broker.authority.display(),
        secret.display()
    )
}

/// Whether a node keeps to itself what it shows.
async fn tells_no_secret(node: &Node, tokens: &[String]) -> Result<()> {
    let log = std::fs::read_to_string(&node.log)?;
    let status = node.api().status().await?.to_string();
    let (health, metrics) =
        (node.api().health().await?.text(), node.api().call(Method::GET, "/metrics").await?.text());
    for (place, text) in [("log", &log), ("/status", &status), ("/health", &health), ("/metrics", &metrics)] {
        let secrets = tokens.iter().map(String::as_str).chain([CLIENT_SECRET]);
        ensure!(secrets.into_iter().all(|secret| !text.contains(secret)), "{place} has a secret: {text}");
    }
    Ok(())
}

async fn nodes_log_in_by_tokens_and_renew_them(ctx: Ctx) -> Result<()> {
    /// Seconds. Longer than a login is good for, so that some show the same token again.
    const LIFE: u64 = 5;
    let (broker, endpoint) = (certified(&ctx, "broker")?, certified(&ctx, "endpoint")?);
    let signer = Signer::new()?;
    let kafka = SecuredKafka::start(&broker, &broker, &signer.key_set()).await?;
    let secret = ctx.dir.join("secret");
    std::fs::write(&secret, CLIENT_SECRET)?;
    let plain = TokenServer::start(ports::free(), &signer, LIFE, None).await?;
    let over_tls = TokenServer::start(ports::free(), &signer, LIFE, Some(&endpoint)).await?;
    let trusted = format!(";https.ca.location={}", endpoint.authority.display());
    for (brokers, protocol, server, more) in [
        (&kafka.sasl, "SASL_PLAINTEXT", &plain, ""),
        (&kafka.sasl_over_tls, "SASL_SSL", &over_tls, trusted.as_str()),
    ] {
        let properties = by_tokens(protocol, &broker, &server.url, &secret) + more;
        let options = Options::new().brokers(brokers).env("KAFKA_PROPERTIES", &properties);
        let earlier = &kafka.logins().await?;
        let cluster = ctx.cluster_with(1, options).await?;
        let [node] = &cluster.nodes[..] else { unreachable!("one node") };
        let (given_before, before) = (server.given().len(), kafka.logins().await?);
        let mut writes = 0;
        wait::until("each client has logged in again with new tokens, while writes go on", SOON, || {
            writes += 1;
            let value = writes.to_string();
            let (kafka, before) = (&kafka, &before);
            async move {
                let set = node.api().set("key", &value).await;
                set.map(|answer| answer.expect(200)).expect("each write is answered");
                let given = server.given().len() - given_before;
                let logins = kafka.logins().await.map_err(|error| format!("{error:#}"))?;
                // Twice for each connection there was, on the average; those that are closed after a question don't last for one.
                let connections = logins.first - earlier.first;
                let enough = given >= 3 && logins.again - before.again >= 2 * connections;
                if enough {
                    Ok(())
                } else {
                    Err(format!("{given} tokens, {connections} connections, {logins:?}"))
                }
            }
        })
        .await;
        let failed = kafka.logins().await?.failed;
        ensure!(failed.is_empty(), "{failed:?}");
        node.has("key", Some(&writes.to_string())).await;
        let log = std::fs::read_to_string(&node.log)?;
        ensure!(log.contains("logs in to Kafka with tokens of"), "{log}");
        ensure!(!log.contains("there is no new token"), "{log}");
        tells_no_secret(node, &server.given()).await?;
    }
    Ok(())
}

async fn nodes_without_a_good_token_say_why_and_get_in_when_it_is_mended(ctx: Ctx) -> Result<()> {
    /// Seconds; nothing is renewed meanwhile.
    const LIFE: u64 = 600;
    const FOREIGN: &str = "kafka-of-others";
    let (broker, endpoint) = (certified(&ctx, "broker")?, certified(&ctx, "endpoint")?);
    let stranger = certified(&ctx, "stranger")?;
    let signer = Signer::new()?;
    let kafka = SecuredKafka::start(&broker, &broker, &signer.key_set()).await?;
    let write = |name: &str, text: &str| {
        let path = ctx.dir.join(name);
        std::fs::write(&path, text).map(|()| path)
    };
    let (secret, wrong) = (write("secret", CLIENT_SECRET)?, write("wrong-secret", WRONG_PASSWORD)?);
    let good = TokenServer::start(ports::free(), &signer, LIFE, None).await?;
    let foreign = TokenServer::start(ports::free(), &signer, LIFE, None).await?;
    foreign.set_audience(FOREIGN);
    let over_tls = TokenServer::start(ports::free(), &signer, LIFE, Some(&endpoint)).await?;
    // What the node is told to trust; the right one takes its place later.
    let authority = write("authority.pem", &stranger.authority_pem)?;
    let later = ports::free();
    let later_url = format!("http://127.0.0.1:{later}/oauth/token");
    let of = |url: &str, secret: &Path| by_tokens("SASL_PLAINTEXT", &broker, url, secret);
    let audience = format!("the brokers refuse the token of {}", foreign.url);
    let audience = [audience.as_str(), "sasl.oauthbearer.expected.audience", "(aud) 'kafka-of-others'"];
    let mut waiting = Vec::new();
    for (case, properties, says) in [
        (
            "secret",
            of(&good.url, &wrong),
            &["gives no token: 401 Unauthorized, invalid_client", "look at sasl.oauthbearer.client.id"][..],
        ),
        ("down", of(&later_url, &secret), &["does not answer: ", "look whether it is up"]),
        (
            "certificate",
            of(&over_tls.url, &secret) + &format!(";https.ca.location={}", authority.display()),
            &["is not trusted: ", "https.ca.location names a file"],
        ),
        ("audience", of(&foreign.url, &secret), &audience),
    ] {
        let options = Options::new().brokers(&kafka.sasl).env("KAFKA_PROPERTIES", &properties);
        let mut cluster = ctx.no_nodes(options).await?;
        cluster.add().await?.spawn()?;
        let node = &cluster.nodes[0];
        wait::until(&format!("it says why: {case}"), SOON, || async {
            let log = std::fs::read_to_string(&node.log).map_err(|error| error.to_string())?;
            let health = node.api().health().await.map_err(|error| format!("{error:#}"))?;
            let (text, unready) = (health.text(), health.status == 503);
            let told = says.iter().all(|words| text.contains(words) && log.contains(words));
            if told && unready { Ok(()) } else { Err(format!("/health: {text}\n{log}")) }
        })
        .await;
        waiting.push((case, cluster));
    }
    let opened = TokenServer::start(later, &signer, LIFE, None).await?;
    std::fs::write(&authority, &endpoint.authority_pem)?;
    foreign.set_audience(AUDIENCE);
    let given =
        || [&good, &foreign, &over_tls, &opened].iter().flat_map(|server| server.given()).collect::<Vec<_>>();
    for (case, cluster) in &waiting {
        let node = &cluster.nodes[0];
        if *case != "secret" {
            node.ready_within(SOON).await;
            node.api().set("key", case).await?.expect(200);
            node.has("key", Some(case)).await;
        }
        tells_no_secret(node, &given()).await?;
        let log = std::fs::read_to_string(&node.log)?;
        ensure!(!log.contains(WRONG_PASSWORD), "the log has the secret");
        let told = log.matches("there is no new token for Kafka").count();
        ensure!(told <= 1, "it is told once, not {told} times: {log}");
    }
    Ok(())
}
