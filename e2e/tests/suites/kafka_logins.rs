//! Nodes log in to Kafka, by each way that librdkafka has here, and say why where they are not let in.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::certificates::Certified;
use e2e::cluster::Options;
use e2e::runner::{Ctx, Test};
use e2e::secured_kafka::{PASSWORD, SecuredKafka, USER};
use e2e::{tests, wait};

pub fn tests() -> Vec<Test> {
    tests![Deployment: nodes_log_in_by_password_and_by_certificate]
}

const SOON: Duration = Duration::from_secs(60);
const WRONG_PASSWORD: &str = "not-that-password";

async fn nodes_log_in_by_password_and_by_certificate(ctx: Ctx) -> Result<()> {
    let folder = |name: &str| {
        let folder = ctx.dir.join(name);
        std::fs::create_dir_all(&folder)?;
        Certified::create(&folder)
    };
    let (broker, node, stranger) = (folder("broker")?, folder("node")?, folder("stranger")?);
    let kafka = SecuredKafka::start(&broker, &node).await?;
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
