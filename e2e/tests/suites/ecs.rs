//! Nodes on AWS: what they register with each kind of metadata, and that the others reach them there.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::aws::{Container, HOST, Instance, MetadataServer, document, inspect, run_options, validate};
use e2e::backends::KAFKA_VERSION;
use e2e::cluster::{Node, Options, START, node_binary};
use e2e::deployment::{AWS_IMAGE, Deployment};
use e2e::runner::{Ctx, Test};
use e2e::zookeeper::ZkClient;
use e2e::{ports, tests, wait};
use futures_util::future::try_join_all;
use serde_json::{Value, json};

use super::bad_start::gives_up_within;

pub fn tests() -> Vec<Test> {
    tests![
        Deployment: awsvpc_nodes_are_reached_by_their_own_addresses,
            bridge_nodes_are_reached_by_dynamic_ports,
            nodes_on_ec2_alone_are_reached_by_their_instances, the_image_without_metadata_stops_and_says_why,
            the_examples_properties_log_in_by_scram;
        Servers: host_mode_uses_the_instance_or_a_given_address;
        Nothing: missing_or_wrong_metadata_stop_the_node,
            the_examples_agree_with_the_node_and_with_each_other;
        Python: the_examples_fit_ecs_own_model_and_broken_ones_do_not
    ]
}

const SERVERS: &str = "/bitacora/servers";
const SOCKETS: &str = "/bitacora/sockets";
const TASK: &str = "ECS_CONTAINER_METADATA_URI_V4";
const INSTANCE: &str = "AWS_EC2_METADATA_SERVICE_ENDPOINT";
/// All of the node's own patience, and the start of a debug build.
const GIVES_UP: Duration = Duration::from_secs(40);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// A task with an address of its own.
    Awsvpc,
    /// A task behind its instance's dynamic ports.
    Bridge,
    /// No task: a container in the place of an EC2 instance.
    Ec2,
}

async fn awsvpc_nodes_are_reached_by_their_own_addresses(_: Ctx) -> Result<()> {
    cluster(Kind::Awsvpc).await
}

async fn bridge_nodes_are_reached_by_dynamic_ports(_: Ctx) -> Result<()> {
    cluster(Kind::Bridge).await
}

async fn nodes_on_ec2_alone_are_reached_by_their_instances(_: Ctx) -> Result<()> {
    cluster(Kind::Ec2).await
}

/// ZooKeeper and Kafka of the Compose deployment, and beside them containers of the ECS image.
async fn cluster(kind: Kind) -> Result<()> {
    let deployment = Deployment::new();
    let metadata = MetadataServer::start().await?;
    let outcome = scenario(kind, &deployment, &metadata).await;
    let unauthorized = metadata.requests().into_iter().filter(|request| request.ends_with(" 401")).count();
    match outcome {
        Ok(()) => {
            ensure!(unauthorized == 0, "IMDS was asked without a token: {:?}", metadata.requests());
            Ok(())
        }
        Err(error) => {
            let requests = metadata.requests().join("\n");
            Err(error.context(format!("{}metadata requests:\n{requests}", deployment.report().await)))
        }
    }
}

async fn scenario(kind: Kind, deployment: &Deployment, metadata: &MetadataServer) -> Result<()> {
    deployment.up(&["zookeeper", "kafka"]).await?;
    let network = inspect(&deployment.network()).await?;
    let host: Ipv4Addr = network["IPAM"]["Config"][0]["Gateway"]
        .as_str()
        .and_then(|gateway| gateway.parse().ok())
        .with_context(|| format!("the network has no gateway: {network}"))?;

    let mut tasks = Vec::new();
    for i in 1..=3 {
        tasks.push(start(kind, deployment, metadata, host, &format!("task-{i}"), &[]).await?);
    }
    for task in &tasks {
        task.execs(&["bitacora-node", "health", "--live"], |_| true).await?;
        task.execs(&["bitacora-node", "health"], |_| true).await?;
    }

    let (mut servers, mut sockets) = (Vec::new(), Vec::new());
    for task in &tasks {
        let (address, api, avro) = match kind {
            Kind::Awsvpc | Kind::Ec2 => (task.address().await?, 8080, 8081),
            Kind::Bridge => (host.to_string(), task.host_port(8080).await?, task.host_port(8081).await?),
        };
        servers.push(format!("{address}:{api}"));
        sockets.push(format!("{address}:{avro}"));
    }
    let zk = ZkClient::connect(&format!("127.0.0.1:{}", deployment.port("ZOOKEEPER_PORT")))
        .await
        .map_err(anyhow::Error::msg)?;
    for (folder, expected) in [(SERVERS, &servers), (SOCKETS, &sockets)] {
        registers(&zk, folder, expected).await?;
        println!("ecs, {kind:?}: {folder} {}", expected.join(" "));
    }

    for (i, task) in tasks.iter().enumerate() {
        let (key, value) = (format!("by task {i}"), format!("value {i}"));
        let printed = format!("{value}\n");
        task.exec(&["bitacora", "set", &key, &value]).await?;
        for (j, other) in tasks.iter().enumerate() {
            // By its own interfaces, when the log has brought it there; and by what it registered, from the others.
            other.execs(&["bitacora", "get", &key], |seen| seen == printed).await?;
            let http = format!("http://{}", servers[j]);
            let interfaces = [["--http", http.as_str()], ["--rpc", sockets[j].as_str()]];
            for [flag, address] in interfaces {
                let read = task.exec(&["bitacora", flag, address, "get", &key]).await?;
                ensure!(read == printed, "{} at {address} from {}: {read:?}", other.name, task.name);
            }
        }
    }
    // A client finds them too.
    let found = ["bitacora", "--zookeeper", "zookeeper:2181", "get", "by task 0"];
    ensure!(tasks[2].exec(&found).await? == "value 0\n");

    // One that can't read the log has nothing of its own: what it answers is its peers'.
    let lone = [("BROKER_LIST", "127.0.0.1:1".to_string()), ("EXTERNAL_REQUEST_TIMEOUT", "5s".to_string())];
    let lone = start(kind, deployment, metadata, host, "lone", &lone).await?;
    let http = ["bitacora", "--http", "http://127.0.0.1:8080", "get", "by task 1"];
    lone.execs(&http, |seen| seen == "value 1\n").await?;
    lone.execs(&["bitacora-node", "health", "--live"], |_| true).await?;
    ensure!(lone.exec(&["bitacora-node", "health"]).await.is_err(), "it is ready without a log");
    registers(&zk, SERVERS, &servers).await?;

    if kind == Kind::Awsvpc {
        let code = tasks[0].stop().await?;
        ensure!(
            code == 0,
            "stopped by the task definition's timeout with {code}:\n{}",
            tasks[0].logs().await
        );
        registers(&zk, SERVERS, &servers[1..]).await?;
        registers(&zk, SOCKETS, &sockets[1..]).await?;
    }
    zk.close().await;
    Ok(())
}

/// Starts a container as the example for its kind says, its metadata and this deployment's servers apart.
async fn start(
    kind: Kind,
    deployment: &Deployment,
    metadata: &MetadataServer,
    host: Ipv4Addr,
    name: &str,
    env: &[(&str, String)],
) -> Result<Container> {
    let name = deployment.container(name);
    let of_the_task = match kind {
        Kind::Awsvpc => vec![(TASK, metadata.task(&name, "awsvpc"))],
        Kind::Bridge => vec![
            (TASK, metadata.task(&name, "bridge")),
            (INSTANCE, metadata.instance(HOST, &name, Instance::At(host))),
        ],
        Kind::Ec2 => vec![(INSTANCE, metadata.instance(HOST, &name, Instance::Container(name.clone())))],
    };
    let servers = [
        ("BROKER_LIST", "kafka:19092".to_string()),
        ("KAFKA_PROPERTIES", String::new()),
        ("ZOOKEEPER_HOSTS", "zookeeper:2181".to_string()),
        ("CACHE_BYTES", "16MiB".to_string()),
        // Nothing of this may go through it.
        ("HTTP_PROXY", "http://127.0.0.1:1".to_string()),
        ("http_proxy", "http://127.0.0.1:1".to_string()),
    ];
    let definition = document(if kind == Kind::Awsvpc {
        "fargate/task-definition.json"
    } else {
        "ec2/task-definition.json"
    })?;
    let mut container = definition["containerDefinitions"][0].clone();
    if kind == Kind::Ec2 {
        // Nothing maps the ports of an instance.
        container["portMappings"] = json!([]);
    }
    let mut options = run_options(&container, &[&servers[..], &of_the_task, env].concat());
    options.extend(["--network".to_string(), deployment.network()]);
    Container::run(&name, AWS_IMAGE, &options, &[]).await
}

/// Waits until ZooKeeper has exactly these below `folder`.
async fn registers(zk: &ZkClient, folder: &str, expected: &[String]) -> Result<()> {
    let mut expected = expected.to_vec();
    expected.sort();
    let seen = wait::try_until(START, || async {
        let seen = zk.children(folder).await?;
        if seen == expected { Ok(()) } else { Err(format!("{seen:?}")) }
    });
    seen.await.map_err(anyhow::Error::msg).with_context(|| format!("{folder} holds {expected:?}"))?;
    for name in &expected {
        let znode = zk.znode(&format!("{folder}/{name}")).await.map_err(anyhow::Error::msg)?;
        let data = znode.map(|znode| znode.data);
        ensure!(data.as_ref() == Some(name), "{folder}/{name} holds {data:?}");
    }
    Ok(())
}

async fn the_image_without_metadata_stops_and_says_why(_: Ctx) -> Result<()> {
    let name = Deployment::new().container("alone");
    let options = ["--network", "none"].map(str::to_string);
    let container = Container::run(&name, AWS_IMAGE, &options, &[]).await?;
    let code = container.ended(GIVES_UP).await?;
    let words = container.logs().await;
    println!("ecs, no metadata: exit code {code}: {}", words.trim());
    ensure!(code == 1, "it ended with {code}: {words}");
    for part in [TASK, "IMDSv2", "NODE_ADDRESS"] {
        ensure!(words.contains(part), "{part} is not in its last words: {words}");
    }
    Ok(())
}

async fn host_mode_uses_the_instance_or_a_given_address(ctx: Ctx) -> Result<()> {
    let metadata = MetadataServer::start().await?;
    let mut cluster = ctx.no_nodes(Options::new().env("ADDRESS_SOURCE", "aws")).await?;
    let task = metadata.task_says("host", json!({ "Networks": [{ "NetworkMode": "host" }] }));
    // On Linux any of these is this machine.
    let instance = Ipv4Addr::new(127, 0, 0, 2);
    let instance = metadata.instance("127.0.0.1", "instance", Instance::At(instance));
    for given in [None, Some("127.0.0.3")] {
        let node = cluster.add().await?;
        node.unset_env("NODE_ADDRESS");
        node.set_env("BIND_ADDRESS", "0.0.0.0");
        node.set_env(TASK, &task);
        node.set_env(INSTANCE, &instance);
        if let Some(address) = given {
            node.set_env("NODE_ADDRESS", address);
        }
        let before = metadata.requests().len();
        node.spawn()?;
        node.ready().await;
        let asked = metadata.requests().split_off(before);
        let expected: &[&str] = match given {
            None => &[
                "GET /v4/host 200",
                "PUT /instance/latest/api/token 200",
                "GET /instance/latest/meta-data/local-ipv4 200",
            ],
            Some(_) => &[],
        };
        assert_eq!(asked, expected);
    }
    cluster.know_each_other(2).await;
    let zk = cluster.zk().await;
    let ports = |port: fn(&Node) -> u16| {
        let addresses = ["127.0.0.2", "127.0.0.3"].into_iter().zip(&cluster.nodes);
        addresses.map(|(address, node)| format!("{address}:{}", port(node))).collect::<Vec<_>>()
    };
    let (servers, sockets) = (ports(|node| node.api_port), ports(|node| node.avro_port));
    registers(&zk, SERVERS, &servers).await?;
    registers(&zk, SOCKETS, &sockets).await?;
    println!("ecs, host mode, and NODE_ADDRESS: {SERVERS} {}", servers.join(" "));
    zk.close().await;
    let [first, second] = &cluster.nodes[..] else { unreachable!("two nodes") };
    first.api().set("key", "value").await?.expect(200);
    second.has("key", Some("value")).await;
    Ok(())
}

async fn missing_or_wrong_metadata_stop_the_node(ctx: Ctx) -> Result<()> {
    let metadata = MetadataServer::start().await?;
    let closed = format!("http://127.0.0.1:{}", ports::free());
    let instance = |name: &str, instance| metadata.instance("127.0.0.1", name, instance);
    let good = instance("good", Instance::At(Ipv4Addr::LOCALHOST));
    let far = instance("far", Instance::OutOfReach);
    let says = |name: &str, text: &str| metadata.task_says(name, text);
    let bridge = r#"{"Networks":[{"NetworkMode":"bridge"}]}"#;
    let cases: [(&[(&str, &str)], &[&str]); 9] = [
        (&[(INSTANCE, &closed)], &[TASK, "is not set", &closed, "NODE_ADDRESS"]),
        (&[(INSTANCE, &far)], &["HttpPutResponseHopLimit", "firewall", "NODE_ADDRESS"]),
        (&[(INSTANCE, &instance("v1", Instance::OnlyV1))], &["PUT /latest/api/token", "404"]),
        (&[(INSTANCE, &instance("off", Instance::Disabled))], &["403", "HttpEndpoint"]),
        (&[(TASK, &closed), (INSTANCE, &good)], &[TASK, &closed, "NODE_ADDRESS"]),
        (&[(TASK, &says("bridge", bridge)), (INSTANCE, &good)], &["API_PORT", "portMappings"]),
        (&[(TASK, &says("text", "<html>")), (INSTANCE, &good)], &[TASK, "not a container's metadata"]),
        (
            &[(TASK, &says("host", r#"{"Networks":[{"NetworkMode":"host"}]}"#)), (INSTANCE, &far)],
            &["HttpPutResponseHopLimit"],
        ),
        (&[("ECS_CONTAINER_METADATA_URI", "http://127.0.0.1:1/v3"), (INSTANCE, &good)], &["1.39.0", TASK]),
    ];
    try_join_all(cases.into_iter().map(async |(env, words)| {
        let node = Node::new(&ctx, Vec::new()).await?;
        node.unset_env("NODE_ADDRESS");
        node.set_env("ADDRESS_SOURCE", "aws");
        for (name, value) in env {
            node.set_env(name, value);
        }
        gives_up_within(GIVES_UP, &node, words).await?;
        let last = node.log_tail(1);
        println!("ecs, {}: {last}", env.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "));
        ensure!(last.starts_with("bitacora-node: "), "not one sentence:\n{}", node.log_tail(30));
        anyhow::Ok(())
    }))
    .await?;
    // Version 1 would have told the address.
    let v1 = metadata.requests().into_iter().filter(|request| request.starts_with("GET /v1/")).count();
    assert_eq!(v1, 0, "IMDSv1 was asked: {:?}", metadata.requests());
    Ok(())
}

/// A broker that takes SCRAM-SHA-512 alone, as MSK does, but without TLS. `PORT` is where it is advertised.
const SCRAM_BROKER: &str = r#"
cat > /tmp/scram.properties <<END
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:9093
controller.listener.names=CONTROLLER
inter.broker.listener.name=CLIENTS
listener.security.protocol.map=CONTROLLER:PLAINTEXT,CLIENTS:SASL_PLAINTEXT
listeners=CLIENTS://:9092,CONTROLLER://127.0.0.1:9093
advertised.listeners=CLIENTS://127.0.0.1:$PORT
sasl.enabled.mechanisms=SCRAM-SHA-512
sasl.mechanism.inter.broker.protocol=SCRAM-SHA-512
listener.name.clients.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required username="bitacora" password="s3;cret";
log.dirs=/tmp/scram
offsets.topic.replication.factor=1
auto.create.topics.enable=false
END
cd /opt/kafka/bin
./kafka-storage.sh format --cluster-id 5L6g3nShT-eMCtK--X86sw --config /tmp/scram.properties \
  --add-scram 'SCRAM-SHA-512=[name=bitacora,password="s3;cret"]'
exec ./kafka-server-start.sh /tmp/scram.properties
"#;

async fn the_examples_properties_log_in_by_scram(ctx: Ctx) -> Result<()> {
    let port = ports::free();
    let options = [
        "--entrypoint=bash".to_string(),
        format!("--env=PORT={port}"),
        format!("--publish=127.0.0.1:{port}:9092"),
        "--env=KAFKA_HEAP_OPTS=-Xmx512m -XX:TieredStopAtLevel=1".to_string(),
    ];
    let image = format!("apache/kafka:{KAFKA_VERSION}");
    let name = Deployment::new().container("scram");
    let broker = Container::run(&name, &image, &options, &["-c", SCRAM_BROKER]).await?;
    let definition = document("fargate/task-definition.json")?;
    let environment =
        definition["containerDefinitions"][0]["environment"].as_array().context("environment")?;
    let properties = environment.iter().find(|variable| variable["name"] == "KAFKA_PROPERTIES");
    let properties =
        properties.and_then(|variable| variable["value"].as_str()).context("KAFKA_PROPERTIES")?;
    // TLS apart, as the example has them.
    let properties = properties.replace("SASL_SSL", "SASL_PLAINTEXT");
    ensure!(properties.contains("SASL_PLAINTEXT"), "{properties}");
    let options = Options::new()
        .brokers(format!("127.0.0.1:{port}"))
        .env("KAFKA_PROPERTIES", properties)
        .env("KAFKA_USERNAME", "bitacora")
        .env("KAFKA_PASSWORD", "s3;cret");
    let mut cluster = ctx.no_nodes(options).await?;
    let node = cluster.add().await?;
    node.spawn()?;
    let set = wait::try_until(Duration::from_secs(90), || async {
        let answer = node.api().set("key", "value").await.map_err(|error| format!("{error:#}"))?;
        if answer.status == 200 { Ok(()) } else { Err(answer.to_string()) }
    });
    if let Err(seen) = set.await {
        anyhow::bail!("{seen}\n{}", broker.logs().await);
    }
    node.ready().await;
    node.has("key", Some("value")).await;

    let stranger = cluster.add().await?;
    stranger.set_env("KAFKA_PASSWORD", "another");
    stranger.spawn()?;
    wait::until("it says that it is not let in", START, || async {
        let words = stranger.log_tail(50);
        if words.to_lowercase().contains("authentication") { Ok(()) } else { Err(words) }
    })
    .await;
    stranger.api().health().await?.expect(503);
    Ok(())
}

const EXAMPLES: [&str; 2] = ["fargate", "ec2"];

async fn the_examples_agree_with_the_node_and_with_each_other(_: Ctx) -> Result<()> {
    let mut help = tokio::process::Command::new(node_binary().await?);
    let help = help.args(["serve", "--help"]).kill_on_drop(true).output().await?;
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    for example in EXAMPLES {
        let task = document(&format!("{example}/task-definition.json"))?;
        let service = document(&format!("{example}/service.json"))?;
        let container = &task["containerDefinitions"][0];
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let variable = |name: &str| {
            let all = list(&container["environment"]);
            let found = all.into_iter().find(|variable| variable["name"] == name);
            found.and_then(|variable| variable["value"].as_str().map(str::to_string))
        };
        let variable = |name: &str| variable(name).with_context(|| format!("{example} has no {name}"));
        for setting in list(&container["environment"]) {
            let name = setting["name"].as_str().context("a name")?;
            ensure!(help.contains(&format!("[env: {name}")), "{example}: the node has no setting {name}");
        }
        for secret in list(&container["secrets"]) {
            let name = format!("${}", secret["name"].as_str().context("a name")?);
            ensure!(variable("KAFKA_PROPERTIES")?.contains(&name), "{example}: nothing uses {name}");
        }
        let seconds = |name: &str| -> Result<u64> {
            let value = variable(name)?;
            value
                .strip_suffix('s')
                .and_then(|number| number.parse().ok())
                .with_context(|| format!("{name}={value}"))
        };
        let stop = container["stopTimeout"].as_u64().context("stopTimeout")?;
        // Two seconds to leave ZooKeeper, and some to close the store.
        let needed = seconds("DRAIN_DELAY")? + seconds("SHUTDOWN_GRACE")? + 10;
        ensure!(stop >= needed, "{example}: stopTimeout {stop} is less than {needed}");
        // What Fargate allows.
        ensure!(stop <= 120, "{example}: stopTimeout {stop}");
        ensure!(container["healthCheck"]["command"] == json!(["CMD", "bitacora-node", "health", "--live"]));
        ensure!(container["logConfiguration"]["logDriver"] == "awslogs");
        ensure!(service["taskDefinition"] == task["family"], "{example}: the service runs another task");
        ensure!(service["launchType"] == task["requiresCompatibilities"][0]);
        ensure!(service["loadBalancers"][0]["containerName"] == container["name"]);
        ensure!(service["loadBalancers"][0]["containerPort"] == 8080);
        let mapped = list(&container["portMappings"]);
        let of = |name: &str| mapped.iter().map(|mapping| mapping[name].clone()).collect::<Vec<_>>();
        assert_eq!(of("containerPort"), [8080, 8081]);
        let (host_port, mode) = if example == "ec2" { (json!(0), "bridge") } else { (Value::Null, "awsvpc") };
        assert_eq!(of("hostPort"), [host_port.clone(), host_port]);
        ensure!(task["networkMode"] == mode);
        ensure!(service["networkConfiguration"].is_null() == (mode == "bridge"));
    }
    Ok(())
}

async fn the_examples_fit_ecs_own_model_and_broken_ones_do_not(ctx: Ctx) -> Result<()> {
    type Break = (&'static str, &'static str, fn(&mut Value), &'static str);
    let broken: [Break; 7] = [
        ("task-definition", "RegisterTaskDefinition", |task| drop(remove(task, "family")), "family"),
        ("task-definition", "RegisterTaskDefinition", |task| task["memorry"] = json!("1"), "memorry"),
        (
            "task-definition",
            "RegisterTaskDefinition",
            |task| task["networkMode"] = json!("awsvpcs"),
            "awsvpcs",
        ),
        (
            "task-definition",
            "RegisterTaskDefinition",
            |task| task["containerDefinitions"][0]["stopTimeout"] = json!("60"),
            "stopTimeout",
        ),
        (
            "task-definition",
            "RegisterTaskDefinition",
            |task| task["containerDefinitions"][0]["logConfiguration"]["logDriver"] = json!("cloudwatch"),
            "cloudwatch",
        ),
        ("service", "CreateService", |service| drop(remove(service, "serviceName")), "serviceName"),
        ("service", "CreateService", |service| service["desiredCount"] = json!("three"), "desiredCount"),
    ];
    for example in EXAMPLES {
        for (name, operation) in [("task-definition", "RegisterTaskDefinition"), ("service", "CreateService")]
        {
            let file = ctx.dir.join("document.json");
            std::fs::write(&file, document(&format!("{example}/{name}.json"))?.to_string())?;
            let valid = validate(operation, &file).await?;
            ensure!(valid.is_ok(), "{example}/{name}.json: {valid:?}");
        }
        for (name, operation, break_it, word) in &broken {
            let mut document = document(&format!("{example}/{name}.json"))?;
            break_it(&mut document);
            let file = ctx.dir.join("broken.json");
            std::fs::write(&file, document.to_string())?;
            let said = validate(operation, &file).await?.err();
            ensure!(said.as_ref().is_some_and(|said| said.contains(word)), "{example}, {word}: {said:?}");
        }
    }
    Ok(())
}

fn remove(document: &mut Value, name: &str) -> Option<Value> {
    document.as_object_mut()?.remove(name)
}
