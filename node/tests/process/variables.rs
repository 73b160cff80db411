//! The environment as Compose and Kubernetes make it.

use std::process::Stdio;

use super::program::{Program, command, output, ports, stderr};

/// All variables of `serve`, by its own help.
fn variables() -> Vec<String> {
    use clap::CommandFactory as _;
    let cli = bitacora_node::settings::Cli::command();
    let serve = cli.find_subcommand("serve").expect("a command");
    let names = serve.get_arguments().filter_map(|it| it.get_env());
    names.map(|name| name.to_string_lossy().into_owned()).collect()
}

/// `API_PORT: ${API_PORT:-}` in a Compose file.
#[test]
fn empty_ones_count_as_unset() {
    let data = tempfile::tempdir().expect("a folder");
    let all = variables();
    assert!(all.len() > 30, "{all:?}");
    // One that is not a setting of `dev` is not read by it at all, so `serve` reads them here.
    let port = ports(2);
    let mut serve = command(&["serve", "--api-port", &port.to_string(), "--broker-list", "127.0.0.1:1"]);
    serve.args(["--zookeeper-hosts", "127.0.0.1:1", "--bind-address", "127.0.0.1", "--data-dir"]);
    serve.arg(data.path()).stdout(Stdio::null()).stderr(Stdio::piped());
    serve.envs(all.iter().map(|name| (name, "")));
    let mut node = Program::run(serve, port);
    node.answers("/health/live", 200);
}

#[test]
fn empty_ones_count_as_unset_for_every_command() {
    let mut health = command(&["health"]);
    health.env("API_PORT", "").env("BIND_ADDRESS", "");
    let ended = output(&mut health);
    assert_eq!(ended.status.code(), Some(1), "{}", stderr(&ended));
    assert!(stderr(&ended).contains("127.0.0.1:8080"), "{}", stderr(&ended));
    let mut restore = command(&["restore", "no-such-file"]);
    let folder = tempfile::tempdir().expect("a folder");
    let ended = output(restore.env("DATA_DIR", "").current_dir(folder.path()));
    assert!(!stderr(&ended).contains("a value is required"), "{}", stderr(&ended));
}

#[test]
fn an_empty_one_that_a_property_names_counts_as_unset() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut serve = command(&["serve"]);
    serve.env("KAFKA_PROPERTIES", "sasl.password=$PASSWORD").env("PASSWORD", "");
    let ended = output(serve.env("DATA_DIR", folder.path()).env("BIND_ADDRESS", "127.0.0.9"));
    assert_eq!(ended.status.code(), Some(1), "{}", stderr(&ended));
    assert!(stderr(&ended).contains("the variable of 'sasl.password' is not set"), "{}", stderr(&ended));
}

/// A Service named `api` gives every pod of its namespace `API_PORT=tcp://…`.
/// The value of a property that librdkafka does not know may be a secret all the same.
#[test]
fn the_value_of_a_property_that_is_refused_is_not_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("password");
    std::fs::write(&file, "s3cret").expect("written");
    for value in ["s3cret".to_owned(), "$PASSWORD".to_owned(), format!("@{}", file.display())] {
        let mut serve = command(&["serve"]);
        serve.env("KAFKA_PROPERTIES", format!("sasl.passwd={value}")).env("PASSWORD", "s3cret");
        serve.env("DATA_DIR", folder.path().join("data")).env("NODE_ADDRESS", "127.0.0.1");
        let ended = output(serve.env("API_PORT", ports(2).to_string()).env("BIND_ADDRESS", "127.0.0.1"));
        let told = stderr(&ended);
        assert!(
            !ended.status.success() && told.contains("sasl.passwd") && !told.contains("s3cret"),
            "{told}"
        );
    }
}

#[test]
fn a_service_link_of_kubernetes_is_refused_with_its_origin() {
    for (name, commands) in [
        ("API_PORT", &["serve", "health", "backup"][..]),
        ("AVRO_PORT", &["serve"]),
        ("MAX_CONNECTIONS", &["dev"]),
    ] {
        for command_name in commands {
            let file = tempfile::tempdir().expect("a folder").path().join("f");
            let mut it = command(&[command_name]);
            if *command_name == "backup" {
                it.arg(file);
            }
            let ended = output(it.env(name, "tcp://10.0.0.1:80"));
            let said = stderr(&ended);
            assert_eq!(ended.status.code(), Some(2), "{said}");
            let service = name.strip_suffix("_PORT").map(str::to_lowercase);
            let service = service.map(|service| format!("'{service}'")).unwrap_or_default();
            for words in [name, "tcp://10.0.0.1:80", "Kubernetes", "enableServiceLinks: false", &service] {
                assert!(said.contains(words), "{name}, {command_name}: {words:?} is not in: {said}");
            }
        }
    }
}
