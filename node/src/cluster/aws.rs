//! How a node on AWS learns the address that others reach it by: from ECS' task metadata endpoint (version 4) and from
//! EC2's instance metadata service (version 2, a token first; version 1 never).

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use backon::{BackoffBuilder, ExponentialBuilder};
use reqwest::{Client, RequestBuilder, StatusCode};
use serde::Deserialize;
use tokio::time::{Instant, sleep};

use crate::cluster::Address;
use crate::http_client;
use crate::read_text_limited;

/// Set in a task's containers by ECS: where the metadata of this container are.
const TASK_METADATA_VARIABLE: &str = "ECS_CONTAINER_METADATA_URI_V4";
/// The same of version 3, which older agents set alone.
const TASK_METADATA_V3_VARIABLE: &str = "ECS_CONTAINER_METADATA_URI";
/// Where EC2's service is, if not at its own address; AWS' SDKs read it too.
const INSTANCE_METADATA_VARIABLE: &str = "AWS_EC2_METADATA_SERVICE_ENDPOINT";
const DEFAULT_INSTANCE_METADATA: &str = "http://169.254.169.254";

const TOKEN_TTL_HEADER: &str = "X-aws-ec2-metadata-token-ttl-seconds";
const TOKEN_HEADER: &str = "X-aws-ec2-metadata-token";

/// How long ECS is asked: its agent learns the ports of a bridge only after the container has started.
const TASK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long EC2 is asked.
const INSTANCE_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause before it is asked again the first time, and the longest one; chance makes each up to twice as long.
const SHORTEST_RETRY_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_RETRY_PAUSE: Duration = Duration::from_millis(500);
/// How long one question may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);
/// A longer answer is refused. A container's metadata have some thousand bytes.
const MAX_METADATA_BYTES: usize = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ports {
    api: u16,
    avro: u16,
}

/// The address that others reach this node by, which listens on these two ports.
///
/// # Errors
/// Says who did not answer and what to set; after 16 s at the latest.
pub async fn address(api_port: u16, avro_port: u16) -> Result<Address> {
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let task = variable(TASK_METADATA_VARIABLE);
    if task.is_none() && variable(TASK_METADATA_V3_VARIABLE).is_some() {
        bail!(
            "this ECS agent has no task metadata of version 4 ({TASK_METADATA_VARIABLE} is not set): update it to 1.39.0 or later \
             (Fargate: platform version 1.4.0), or set NODE_ADDRESS"
        );
    }
    let instance =
        variable(INSTANCE_METADATA_VARIABLE).unwrap_or_else(|| DEFAULT_INSTANCE_METADATA.to_owned());
    Metadata::new(task, &instance)?.address(Ports { api: api_port, avro: avro_port }).await
}

struct Metadata {
    task: Option<String>,
    /// Without a slash at its end.
    instance: String,
    http: Client,
}

impl Metadata {
    fn new(task: Option<String>, instance: &str) -> Result<Self> {
        let http = http_client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(REQUEST_TIMEOUT)
            .build()
            .context("no HTTP client")?;
        Ok(Self { task, instance: instance.trim_end_matches('/').to_owned(), http })
    }

    async fn address(&self, own: Ports) -> Result<Address> {
        let (host, ports) = match &self.task {
            Some(task) => self.of_task(task, own).await?,
            None => (None, own),
        };
        let host = match host {
            Some(host) => host,
            None => self.of_instance().await?.to_string(),
        };
        Ok(Address { host, api_port: ports.api, avro_port: ports.avro })
    }

    /// `None` for the address of the instance.
    async fn of_task(&self, task: &str, own: Ports) -> Result<(Option<String>, Ports)> {
        let ask = async || {
            let text = body(self.http.get(task)).await?;
            let container: Container = serde_json::from_str(&text)
                .map_err(|error| format!("its answer is not a container's metadata: {error}"))?;
            container.reached(own)
        };
        ask_until_answered(TASK_TIMEOUT, ask).await.map_err(|error| {
            anyhow!(
                "ECS' task metadata ({TASK_METADATA_VARIABLE}={task}) don't tell where others reach this node: {error}; or set NODE_ADDRESS"
            )
        })
    }

    /// The instance's private address.
    async fn of_instance(&self) -> Result<IpAddr> {
        let ask = async || {
            let put =
                self.http.put(format!("{}/latest/api/token", self.instance)).header(TOKEN_TTL_HEADER, "60");
            let token = match put.send().await {
                Err(error) if error.is_timeout() => {
                    return Err(format!(
                        "no token within {REQUEST_TIMEOUT:?}. A container on a bridge gets one only if the instance's \
                         HttpPutResponseHopLimit is 2 or more (aws ec2 modify-instance-metadata-options \
                         --http-put-response-hop-limit 2) and no firewall rule of the instance is in between"
                    ));
                }
                Ok(answer) if answer.status() == StatusCode::FORBIDDEN => {
                    return Err(
                        "it gives no token (403 Forbidden): the instance's HttpEndpoint is disabled \
                         (aws ec2 modify-instance-metadata-options --http-endpoint enabled)"
                            .to_owned(),
                    );
                }
                answer => text(answer, "PUT /latest/api/token").await?,
            };
            let get = self.http.get(format!("{}/latest/meta-data/local-ipv4", self.instance));
            let answer = body(get.header(TOKEN_HEADER, token.trim())).await?;
            answer.trim().parse().map_err(|_| format!("its local-ipv4 is '{}', no address", shown(&answer)))
        };
        ask_until_answered(INSTANCE_TIMEOUT, ask).await.map_err(|error| {
            let no_task = if self.task.is_none() {
                format!("{TASK_METADATA_VARIABLE} is not set, and ")
            } else {
                String::new()
            };
            anyhow!(
                "{no_task}EC2's instance metadata (IMDSv2 at {}) don't tell this machine's address: {error}; \
                 or set NODE_ADDRESS, or ADDRESS_SOURCE=route where this is not AWS",
                self.instance
            )
        })
    }
}

/// Asks until there is an answer; at the end of the time the last error is what remains.
async fn ask_until_answered<T>(
    time: Duration,
    mut ask: impl AsyncFnMut() -> Result<T, String>,
) -> Result<T, String> {
    let pauses = ExponentialBuilder::default()
        .with_min_delay(SHORTEST_RETRY_PAUSE)
        .with_max_delay(LONGEST_RETRY_PAUSE)
        .with_jitter()
        .without_max_times();
    let (mut pauses, deadline) = (pauses.build(), Instant::now() + time);
    loop {
        let pause = pauses.next().unwrap_or(LONGEST_RETRY_PAUSE);
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(error) if Instant::now() + pause > deadline => return Err(error),
            Err(error) => tracing::debug!(error, "metadata are asked for again"),
        }
        sleep(pause).await;
    }
}

async fn body(request: RequestBuilder) -> Result<String, String> {
    let (client, request) = request.build_split();
    let request = request.map_err(|error| format!("{:#}", anyhow!(error)))?;
    let what = format!("{} {}", request.method(), request.url().path());
    text(client.execute(request).await, &what).await
}

async fn text(answer: reqwest::Result<reqwest::Response>, what: &str) -> Result<String, String> {
    let read = async {
        let answer = answer?;
        let status = answer.status();
        Ok((status, read_text_limited(answer, MAX_METADATA_BYTES).await?))
    };
    match read.await.map_err(|error: reqwest::Error| format!("{:#}", anyhow!(error)))? {
        (StatusCode::OK, text) => Ok(text),
        (status, text) => {
            Err(format!("{what} is answered with {status} {}", shown(&text)).trim_end().to_owned())
        }
    }
}

fn shown(text: &str) -> String {
    text.trim().chars().take(100).collect()
}

/// What the endpoint says of a container, as far as it matters here.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Container {
    #[serde(default)]
    networks: Vec<Network>,
    #[serde(default)]
    ports: Vec<Mapping>,
}

#[derive(Deserialize)]
struct Network {
    #[serde(rename = "NetworkMode")]
    mode: String,
    #[serde(default, rename = "IPv4Addresses")]
    v4: Vec<String>,
    #[serde(default, rename = "IPv6Addresses")]
    v6: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Mapping {
    container_port: u16,
    host_port: Option<u16>,
    host_ip: Option<String>,
    protocol: Option<String>,
}

impl Container {
    /// Its own address, or `None` for its instance's, and the ports there.
    fn reached(&self, own: Ports) -> Result<(Option<String>, Ports), String> {
        let network = self.networks.first().ok_or("they name no network yet")?;
        let mode = network.mode.as_str();
        let reached = match mode {
            "awsvpc" => {
                let own_address = network.v4.iter().chain(&network.v6).next();
                (Some(own_address.ok_or("they name no address yet")?.clone()), own)
            }
            "host" => (None, own),
            "bridge" | "default" => {
                let ports = Ports {
                    api: self.host_port(own.api, "API_PORT")?,
                    avro: self.host_port(own.avro, "AVRO_PORT")?,
                };
                (None, ports)
            }
            other => {
                return Err(format!(
                    "with the network mode '{other}' nobody can; use awsvpc, bridge or host"
                ));
            }
        };
        tracing::info!(mode, "network of the ECS task");
        Ok(reached)
    }

    fn host_port(&self, port: u16, setting: &str) -> Result<u16, String> {
        let is_tcp = |mapping: &&Mapping| mapping.protocol.as_deref().is_none_or(|name| name == "tcp");
        let mappings = self.ports.iter().filter(|mapping| mapping.container_port == port).filter(is_tcp);
        // Docker may choose another port for IPv6, and it is the instance's IPv4 address that is registered.
        let is_v6 = |mapping: &&Mapping| mapping.host_ip.as_deref().is_some_and(|ip| ip.contains(':'));
        let chosen = mappings.min_by_key(is_v6).and_then(|mapping| mapping.host_port);
        chosen.filter(|port| *port > 0).ok_or_else(|| {
            format!(
                "they name no host port for the container's port {port} ({setting}); the task definition needs it \
                 among its portMappings"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::damage::{damaged, damages};

    const OWN: Ports = Ports { api: 8080, avro: 8081 };

    proptest! {
        /// The endpoint's answer, with one of its fields being anything, and cut and changed at will.
        #[test]
        fn any_metadata_are_an_address_or_an_error(
            mode in "awsvpc|host|bridge|default|.{0,8}",
            port in prop_oneof![Just(8080_i64), any::<i64>()],
            host in prop_oneof![Just(0_i64), any::<i64>()],
            address in ".{0,8}", damages in damages(), damage: bool,
        ) {
            let metadata = serde_json::json!({
                "Networks": [{ "NetworkMode": mode, "IPv4Addresses": [address] }],
                "Ports": [{ "ContainerPort": port, "HostPort": host, "HostIp": address, "Protocol": "tcp" },
                    { "ContainerPort": 8081, "HostPort": 5 }],
            });
            let mut bytes = serde_json::to_vec(&metadata).expect("JSON");
            if damage {
                bytes = damaged(&bytes, &damages);
            }
            if let Ok(container) = serde_json::from_slice::<Container>(&bytes) {
                match container.reached(OWN) {
                    Ok((_, ports)) => prop_assert!(ports.api > 0 && ports.avro > 0),
                    Err(error) => {
                        prop_assert!(error.starts_with("they ") || error.starts_with("with the network mode"), "{}", error);
                    }
                }
            }
        }
    }

    fn reached(metadata: &str) -> Result<(Option<String>, Ports), String> {
        serde_json::from_str::<Container>(metadata).expect("as the endpoint writes it").reached(OWN)
    }

    #[test]
    fn awsvpc_is_the_containers_own_address_and_ports() {
        // With much beside it, as the endpoint has it.
        let metadata = r#"{"DockerId":"cd189a933e5849daa93386466019ab50-2495160603","Name":"bitacora","Ports":[{
            "ContainerPort":8080,"Protocol":"tcp","HostPort":8080,"HostIp":"0.0.0.0"}],"Networks":[{
            "NetworkMode":"awsvpc","IPv4Addresses":["192.0.2.3"],"AttachmentIndex":0,"MACAddress":"0a:de:f6:10:51:e5",
            "IPv4SubnetCIDRBlock":"192.0.2.0/24","PrivateDNSName":"ip-192-0-2-3.compute.internal"}]}"#;
        assert_eq!(reached(metadata), Ok((Some("192.0.2.3".into()), OWN)));
        let v6 = r#"{"Networks":[{"NetworkMode":"awsvpc","IPv6Addresses":["2001:db8::3"]}]}"#;
        assert_eq!(reached(v6), Ok((Some("2001:db8::3".into()), OWN)));
        assert!(
            reached(r#"{"Networks":[{"NetworkMode":"awsvpc"}]}"#).expect_err("none").contains("no address")
        );
    }

    #[test]
    fn bridge_is_the_instance_and_the_mapped_ports_of_ipv4() {
        let metadata = r#"{"Networks":[{"NetworkMode":"bridge","IPv4Addresses":["172.17.0.2"]}],"Ports":[
            {"ContainerPort":8080,"Protocol":"tcp","HostPort":49155,"HostIp":"::"},
            {"ContainerPort":8080,"Protocol":"udp","HostPort":40000,"HostIp":"0.0.0.0"},
            {"ContainerPort":8080,"Protocol":"tcp","HostPort":32768,"HostIp":"0.0.0.0"},
            {"ContainerPort":8081,"HostPort":32769}]}"#;
        assert_eq!(reached(metadata), Ok((None, Ports { api: 32768, avro: 32769 })));
        let one =
            r#"{"Networks":[{"NetworkMode":"bridge"}],"Ports":[{"ContainerPort":8080,"HostPort":32768}]}"#;
        let error = reached(one).expect_err("the other is not mapped");
        assert!(error.contains("8081 (AVRO_PORT)") && error.contains("portMappings"), "{error}");
    }

    #[test]
    fn host_is_the_instance_and_other_modes_are_refused() {
        assert_eq!(reached(r#"{"Networks":[{"NetworkMode":"host"}]}"#), Ok((None, OWN)));
        assert!(reached(r#"{"Networks":[{"NetworkMode":"none"}]}"#).expect_err("none").contains("'none'"));
        assert!(reached("{}").expect_err("no network").contains("no network"));
    }
}
