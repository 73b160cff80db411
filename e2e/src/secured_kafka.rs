//! A broker that nobody gets into without a login: by password or by token over SASL, or by a certificate over TLS.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use testcontainers::core::IntoContainerPort;
use testcontainers::runners::AsyncRunner;
use testcontainers::{ContainerAsync, GenericImage, ImageExt};

use crate::backends::{CONTAINER_LABEL, KAFKA_VERSION, broker_options};
use crate::certificates::Certified;
use crate::ports;
use crate::token_server::{AUDIENCE, ISSUER};

/// The only user.
pub const USER: &str = "bitacora";
/// Its password. It is no secret: the broker lives as long as a test.
pub const PASSWORD: &str = "a-password-of-a-test";
/// Where the broker finds the keys that sign tokens.
const TOKEN_KEYS: &str = "file:///tmp/token-keys.json";
/// How long a login by token is good, in ms, if the token is good for longer.
const LOGIN_AGAIN_MS: u64 = 2_000;
/// The broker's words, with a line for each login.
const LOGGING: &str = "
Configuration:
  Appenders:
    Console:
      name: STDOUT
      PatternLayout:
        pattern: \"[%d] %p %m (%c)%n\"
  Loggers:
    Root:
      level: INFO
      AppenderRef:
        - ref: STDOUT
    Logger:
      - name: org.apache.kafka.common.network.Selector
        level: DEBUG
";
const CLUSTER: &str = "Yml0YWNvcmEtbG9naW4tLQ";

/// The broker, until it is dropped.
pub struct SecuredKafka {
    /// `host:port` where a user logs in by SASL, without TLS.
    pub sasl: String,
    /// The same over TLS.
    pub sasl_over_tls: String,
    /// Where a certificate is asked for.
    pub mutual_tls: String,
    container: ContainerAsync<GenericImage>,
}

impl SecuredKafka {
    /// `own` is the broker's certificate; clients show one of `clients`' authority, or a token that was signed by a key of `token_keys`.
    ///
    /// # Errors
    /// When the container can't be started.
    pub async fn start(own: &Certified, clients: &Certified, token_keys: &str) -> Result<SecuredKafka> {
        let [sasl, sasl_over_tls, mutual_tls] = [ports::free(), ports::free(), ports::free()];
        let read = |path: &Path| std::fs::read_to_string(path).with_context(|| path.display().to_string());
        // Kafka takes both as one file.
        let keystore = read(&own.key)? + &read(&own.certificate)?;
        let config = format!(
            "process.roles=broker,controller\n\
             node.id=1\n\
             controller.quorum.voters=1@127.0.0.1:9095\n\
             controller.listener.names=CONTROLLER\n\
             inter.broker.listener.name=LOCAL\n\
             listener.security.protocol.map=CONTROLLER:PLAINTEXT,LOCAL:PLAINTEXT,SASL:SASL_PLAINTEXT,SECRET:SASL_SSL,MUTUAL:SSL\n\
             listeners=SASL://:9092,SECRET://:9093,MUTUAL://:9094,LOCAL://127.0.0.1:9096,CONTROLLER://127.0.0.1:9095\n\
             advertised.listeners=SASL://127.0.0.1:{sasl},SECRET://127.0.0.1:{sasl_over_tls},MUTUAL://127.0.0.1:{mutual_tls},LOCAL://127.0.0.1:9096\n\
             sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER\n\
             sasl.oauthbearer.jwks.endpoint.url={TOKEN_KEYS}\n\
             sasl.oauthbearer.expected.audience={AUDIENCE}\n\
             sasl.oauthbearer.expected.issuer={ISSUER}\n\
             sasl.oauthbearer.clock.skew.seconds=0\n\
             {logins}\
             ssl.keystore.type=PEM\n\
             ssl.keystore.location=/tmp/keystore.pem\n\
             ssl.truststore.type=PEM\n\
             ssl.truststore.location=/tmp/clients.pem\n\
             listener.name.mutual.ssl.client.auth=required\n\
             log.dirs=/tmp/data\n\
             auto.create.topics.enable=false\n\
             offsets.topic.replication.factor=1\n\
             transaction.state.log.replication.factor=1\n\
             transaction.state.log.min.isr=1\n\
             group.initial.rebalance.delay.ms=0\n",
            logins = logins(),
        );
        let start = format!(
            "cd /opt/kafka/bin && ./kafka-storage.sh format --cluster-id {CLUSTER} --config /tmp/server.properties \
             --add-scram 'SCRAM-SHA-256=[name={USER},password={PASSWORD}]' --add-scram 'SCRAM-SHA-512=[name={USER},password={PASSWORD}]' \
             && exec ./kafka-server-start.sh /tmp/server.properties"
        );
        let container = GenericImage::new("apache/kafka", KAFKA_VERSION)
            .with_mapped_port(sasl, 9092.tcp())
            .with_mapped_port(sasl_over_tls, 9093.tcp())
            .with_mapped_port(mutual_tls, 9094.tcp())
            .with_copy_to("/tmp/server.properties", config.into_bytes())
            .with_copy_to("/tmp/keystore.pem", keystore.into_bytes())
            .with_copy_to("/tmp/log4j2.yaml", LOGGING.as_bytes().to_vec())
            .with_copy_to(TOKEN_KEYS.trim_start_matches("file://"), token_keys.as_bytes().to_vec())
            .with_copy_to("/tmp/clients.pem", clients.authority_pem.clone().into_bytes())
            .with_env_var("KAFKA_HEAP_OPTS", broker_options().join(" "))
            .with_env_var(
                "KAFKA_OPTS",
                format!("-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={TOKEN_KEYS}"),
            )
            .with_env_var("KAFKA_LOG4J_OPTS", "-Dlog4j2.configurationFile=/tmp/log4j2.yaml")
            .with_cmd(["bash", "-c", &start])
            .with_label(CONTAINER_LABEL, std::process::id().to_string())
            .with_startup_timeout(Duration::from_secs(300))
            .start()
            .await
            .context("starting the broker's container")?;
        let [sasl, sasl_over_tls, mutual_tls] =
            [sasl, sasl_over_tls, mutual_tls].map(|port| format!("127.0.0.1:{port}"));
        Ok(SecuredKafka { sasl, sasl_over_tls, mutual_tls, container })
    }

    /// How many connections have logged in so far, how often some did so again, and the lines about those that were not let in.
    ///
    /// # Errors
    /// When the container's output can't be read.
    pub async fn logins(&self) -> Result<Logins> {
        let output = String::from_utf8_lossy(&self.container.stdout_to_vec().await?).into_owned();
        // Those of the broker itself come from 127.0.0.1.
        let lines = || output.lines().filter(|line| !line.contains("with /127.0.0.1"));
        let count = |words: &str| lines().filter(|line| line.contains(words)).count();
        let failed = lines().filter(|line| {
            line.contains("Failed authentication") || line.contains("Failed re-authentication")
        });
        Ok(Logins {
            first: count("Successfully authenticated with "),
            again: count("Successfully re-authenticated with "),
            failed: failed.map(str::to_owned).collect(),
        })
    }
}

/// What a broker tells of logins.
#[derive(Debug)]
pub struct Logins {
    pub first: usize,
    pub again: usize,
    pub failed: Vec<String>,
}

/// The users of each listener and mechanism.
fn logins() -> String {
    let plain = "org.apache.kafka.common.security.plain.PlainLoginModule";
    let scram = "org.apache.kafka.common.security.scram.ScramLoginModule";
    let oauth = "org.apache.kafka.common.security.oauthbearer";
    let mut lines = String::new();
    for listener in ["sasl", "secret"] {
        lines += &format!(
            "listener.name.{listener}.plain.sasl.jaas.config={plain} required user_{USER}=\"{PASSWORD}\";\n"
        );
        for mechanism in ["scram-sha-256", "scram-sha-512"] {
            lines += &format!("listener.name.{listener}.{mechanism}.sasl.jaas.config={scram} required;\n");
        }
        let tokens = format!("listener.name.{listener}.oauthbearer");
        lines += &format!(
            "{tokens}.sasl.jaas.config={oauth}.OAuthBearerLoginModule required;\n\
             {tokens}.sasl.server.callback.handler.class={oauth}.OAuthBearerValidatorCallbackHandler\n\
             {tokens}.connections.max.reauth.ms={LOGIN_AGAIN_MS}\n"
        );
    }
    lines
}
