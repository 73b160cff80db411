//! Old versions and weak ciphers of TLS, plain text where TLS is spoken and the reverse, and certificates that are not good.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use bitacora_client::{Client, ClientTls};
use e2e::cluster::{Node, Options};
use e2e::command_line::CommandLine;
use e2e::http::Api;
use e2e::runner::Ctx;
use e2e::wait;
use reqwest::Method;
use tokio::net::TcpStream;

use super::certificates::{Authority, Certified, write};
use super::{PATIENCE, exchange, statuses, told};

/// The settings of a node that has this certificate, in files of their own.
fn settings(
    folder: &Path,
    own: &Certified,
    authority: &Authority,
    clients: Option<&Authority>,
) -> Vec<(&'static str, String)> {
    std::fs::create_dir_all(folder).expect("a folder");
    own.write(folder);
    write(&folder.join("ca.pem"), &authority.pem);
    let mut files =
        vec![("TLS_CERTIFICATE_FILE", "node.pem"), ("TLS_KEY_FILE", "node.key"), ("TLS_CA_FILE", "ca.pem")];
    if let Some(clients) = clients {
        write(&folder.join("clients.pem"), &clients.pem);
        files.push(("TLS_CLIENT_CA_FILE", "clients.pem"));
    }
    files.into_iter().map(|(name, file)| (name, folder.join(file).display().to_string())).collect()
}

pub fn with(options: Options, settings: &[(&'static str, String)]) -> Options {
    settings.iter().fold(options, |options, (name, value)| options.env(name, value))
}

/// The settings of a node with a good certificate.
pub fn good_settings(ctx: &Ctx, authority: &Authority) -> Vec<(&'static str, String)> {
    settings(&ctx.dir.join("tls"), &authority.certify(), authority, None)
}

/// Waits until a node is ready, for callers that trust it.
pub async fn serves(node: &Node, tls: &ClientTls) {
    wait::until(&format!("{} serves over TLS", node.name), PATIENCE, || async {
        let answer = Api::over_tls(node.api_port, tls, None).health().await;
        match answer.map_err(|error| format!("{error:#}"))? {
            answer if answer.status == 200 => Ok(()),
            answer => Err(answer.to_string()),
        }
    })
    .await;
}

/// A client's first message: of a version, with these ciphers, and with what a server needs to take them.
fn client_hello(version: [u8; 2], ciphers: &[[u8; 2]]) -> Vec<u8> {
    let extension = |kind: u8, data: &[u8]| [&[0, kind, 0, data.len() as u8][..], data].concat();
    let list = |values: &[[u8; 2]]| [&[0, 2 * values.len() as u8][..], &values.concat()].concat();
    let extensions = [
        // Groups: x25519, P-256. Points as they are.
        extension(10, &list(&[[0, 29], [0, 23]])),
        extension(11, &[1, 0]),
        // Signatures: ECDSA with P-256 and SHA-256, RSA with SHA-256 and SHA-1.
        extension(13, &list(&[[4, 3], [4, 1], [2, 1]])),
    ]
    .concat();
    let hello = [
        &version[..],
        &[7; 32],
        &[0],
        &list(ciphers),
        &[1, 0],
        &(extensions.len() as u16).to_be_bytes(),
        &extensions,
    ]
    .concat();
    let message = [&[1, 0][..], &(hello.len() as u16).to_be_bytes(), &hello].concat();
    [&[22, 3, 1][..], &(message.len() as u16).to_be_bytes(), &message].concat()
}

const GOOD: [u8; 2] = [0xc0, 0x2b];
/// No encryption, export, RC4, DES, 3DES, CBC, no forward secrecy, nobody's key.
const WEAK: [(&str, [u8; 2]); 14] = [
    ("TLS_RSA_WITH_NULL_SHA", [0x00, 0x02]),
    ("TLS_RSA_EXPORT_WITH_RC4_40_MD5", [0x00, 0x03]),
    ("TLS_RSA_WITH_RC4_128_SHA", [0x00, 0x05]),
    ("TLS_RSA_WITH_DES_CBC_SHA", [0x00, 0x09]),
    ("TLS_RSA_WITH_3DES_EDE_CBC_SHA", [0x00, 0x0a]),
    ("TLS_RSA_WITH_AES_128_CBC_SHA", [0x00, 0x2f]),
    ("TLS_DHE_RSA_WITH_AES_128_CBC_SHA", [0x00, 0x33]),
    ("TLS_DH_anon_WITH_AES_128_CBC_SHA", [0x00, 0x34]),
    ("TLS_RSA_WITH_AES_128_GCM_SHA256", [0x00, 0x9c]),
    ("TLS_ECDHE_ECDSA_WITH_NULL_SHA", [0xc0, 0x06]),
    ("TLS_ECDHE_ECDSA_WITH_RC4_128_SHA", [0xc0, 0x07]),
    ("TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA", [0xc0, 0x09]),
    ("TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256", [0xc0, 0x23]),
    ("TLS_ECDH_anon_WITH_AES_128_CBC_SHA", [0xc0, 0x18]),
];

/// Whether what came is one alert, fatal, and nothing else. Its number says why.
fn alert(received: &[u8]) -> Option<u8> {
    match received {
        [21, 3, _, 0, 2, 2, number] => Some(*number),
        _ => None,
    }
}

/// Whether openssl shakes hands with these flags; `None` if it is not there.
async fn openssl_shakes_hands(port: u16, flags: &[&str]) -> Result<Option<bool>> {
    let mut command = tokio::process::Command::new("openssl");
    command.args(["s_client", "-connect", &format!("127.0.0.1:{port}")]).args(flags);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let Ok(child) = command.spawn() else { return Ok(None) };
    let output =
        tokio::time::timeout(PATIENCE, child.wait_with_output()).await.context("openssl does not end")??;
    let said = String::from_utf8_lossy(&output.stdout);
    Ok(Some(output.status.success() && said.contains("BEGIN CERTIFICATE")))
}

pub async fn old_and_weak_tls_is_refused(ctx: Ctx) -> Result<()> {
    let authority = Authority::new();
    let mut cluster = ctx.no_nodes(with(Options::new(), &good_settings(&ctx, &authority))).await?;
    let node = cluster.add().await?;
    node.spawn()?;
    serves(node, &authority.trusted()).await;
    for (interface, port) in [("HTTP", node.api_port), ("RPC", node.avro_port)] {
        // A good one is answered: the others are refused for what they are.
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        let mut first = [0; 6];
        let greet = async {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            stream.write_all(&client_hello([3, 3], &[GOOD])).await?;
            stream.read_exact(&mut first).await
        };
        tokio::time::timeout(PATIENCE, greet).await.context("no greeting")??;
        ensure!((first[0], first[5]) == (22, 2), "{interface}: a good greeting is answered {first:?}");
        let every: Vec<[u8; 2]> = WEAK.iter().map(|(_, cipher)| *cipher).chain([GOOD]).collect();
        let mut versions = Vec::new();
        for (what, version) in [("SSL 3.0", [3, 0]), ("TLS 1.0", [3, 1]), ("TLS 1.1", [3, 2])] {
            let received = exchange(port, &client_hello(version, &every)).await?;
            let number = alert(&received).with_context(|| format!("{interface}, {what}: {received:?}"))?;
            versions.push(format!("{what} alert {number}"));
        }
        let weak: Vec<[u8; 2]> = WEAK.iter().map(|(_, cipher)| *cipher).collect();
        for (what, cipher) in
            WEAK.iter().map(|(what, cipher)| (*what, vec![*cipher])).chain([("all of them", weak)])
        {
            let received = exchange(port, &client_hello([3, 3], &cipher)).await?;
            ensure!(alert(&received) == Some(40), "{interface}, {what}: {received:?}");
        }
        let mut said = "openssl is not there".to_owned();
        if let Some(shaken) = openssl_shakes_hands(port, &["-tls1_2"]).await? {
            ensure!(shaken, "{interface}: openssl does not shake hands over TLS 1.2");
            for flags in [
                &["-tls1", "-cipher", "ALL:@SECLEVEL=0"][..],
                &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"],
                &["-tls1_2", "-cipher", "AES128-SHA:ECDHE-ECDSA-AES128-SHA:AES128-GCM-SHA256:@SECLEVEL=0"],
            ] {
                let shaken = openssl_shakes_hands(port, flags).await?;
                ensure!(shaken == Some(false), "{interface}: openssl shakes hands with {flags:?}");
            }
            said = "openssl's client is refused in the same way, and let in by TLS 1.2".to_owned();
        }
        told(
            &format!("downgrade of TLS, {interface} port"),
            &format!(
                "{}; TLS 1.2 with each of {} weak ciphers alone, and all of them: alert 40 (handshake_failure); {said}",
                versions.join(", "),
                WEAK.len()
            ),
        );
    }
    Ok(())
}

pub async fn plain_text_and_tls_get_no_answer(ctx: Ctx) -> Result<()> {
    let authority = Authority::new();
    let plain = ctx.cluster_with(1, Options::new()).await?;
    let mut encrypted = ctx.no_nodes(with(Options::new(), &good_settings(&ctx, &authority))).await?;
    let node = encrypted.add().await?;
    node.spawn()?;
    serves(node, &authority.trusted()).await;
    let get = b"GET /status HTTP/1.1\r\nHost: node\r\n\r\n";
    let received = exchange(node.api_port, get).await?;
    ensure!(
        statuses(&received) == [400] && !super::holds(&received, "members"),
        "plain HTTP: {:?}",
        String::from_utf8_lossy(&received)
    );
    let of_rpc = exchange(node.avro_port, get).await?;
    ensure!(of_rpc.is_empty(), "HTTP to the port of the RPC: {of_rpc:?}");
    let frame = [&[0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 4][..], b"none"].concat();
    let of_frame = exchange(node.avro_port, &frame).await?;
    ensure!(of_frame.is_empty(), "a frame in plain text: {of_frame:?}");
    told(
        "plain text to ports that speak TLS",
        "HTTP: 400 and closed, without a word of what is asked; RPC: closed without an answer",
    );
    let hello = client_hello([3, 3], &[GOOD]);
    let node = &plain.nodes[0];
    let of_http = exchange(node.api_port, &[&hello[..], b"\r\n\r\n"].concat()).await?;
    ensure!(statuses(&of_http) == [400], "{of_http:?}");
    let mut short = 0;
    for port in [node.api_port, node.avro_port] {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        let (tls, address) = (authority.trusted(), format!("127.0.0.1:{port}"));
        match tokio::time::timeout(std::time::Duration::from_secs(5), tls.connect(&address, stream)).await {
            Ok(shaken) => ensure!(shaken.is_err(), "a node without TLS shakes hands"),
            Err(_) => short += 1,
        }
    }
    node.api().health().await?.expect(200);
    told(
        "TLS to ports that speak plain text",
        &format!(
            "HTTP: 400 and closed; the client's handshake fails on both ports ({short} of 2 only when the client gave up)"
        ),
    );
    Ok(())
}

/// Why the library and both ways of the command line do not get to a node, if they do not.
async fn refusals(
    ctx: &Ctx,
    node: &Node,
    tls: ClientTls,
    flags: &[(&str, String)],
) -> Result<Vec<Option<String>>> {
    let builder =
        Client::builder().nodes([node.rpc_address()]).tls(tls).deadline(std::time::Duration::from_secs(2));
    let client = builder.build().await.context("a client can be built")?;
    let mut all = vec![match client.get("nothing").await {
        Err(bitacora_client::Error::NotFound { .. }) => None,
        Err(error) => Some(error.to_string()),
        Ok(_) => None,
    }];
    let https = format!("https://127.0.0.1:{}", node.api_port);
    for way in [["--rpc", &node.rpc_address()], ["--http", &https]] {
        let command = CommandLine::new(ctx, &way);
        let command = flags.iter().fold(command, |command, (flag, value)| command.with(flag, value));
        let said = command.with("--timeout", "2s").run(&["get", "nothing"]).await?;
        all.push((!said.stderr.contains("not found")).then_some(said.stderr));
    }
    Ok(all)
}

pub async fn certificates_that_are_not_good_are_refused(ctx: Ctx) -> Result<()> {
    let (authority, foreign) = (Authority::new(), Authority::new());
    let ca = ctx.dir.join("ca-of-clients.pem");
    write(&ca, &authority.pem);
    let trust = ("--ca-file", ca.display().to_string());
    let nodes = [
        ("good", authority.certify(), ""),
        ("expired", authority.certify_expired(), "expired"),
        ("foreign", foreign.certify(), "UnknownIssuer"),
        ("of another name", authority.certify_as("node.example", |_| ()), "not valid for name"),
    ];
    let mut cluster = ctx.no_nodes(Options::new()).await?;
    for (what, own, _) in &nodes {
        let node = cluster.add().await?;
        for (name, value) in settings(&ctx.dir.join(format!("tls-{what}")), own, &authority, None) {
            node.set_env(name, value);
        }
        node.spawn()?;
    }
    let good = &cluster.nodes[0];
    serves(good, &authority.trusted()).await;
    for (node, (what, _, why)) in cluster.nodes.iter().zip(&nodes) {
        // It is a member, by its own word, whoever believes it.
        wait::until(&format!("{what} is up"), PATIENCE, || async {
            let log = node.log_tail(1000);
            if log.contains("registered path=") { Ok(()) } else { Err(log) }
        })
        .await;
        for refusal in refusals(&ctx, node, authority.trusted(), std::slice::from_ref(&trust)).await? {
            let refusal = refusal.unwrap_or_default();
            ensure!(refusal.is_empty() == why.is_empty() && refusal.contains(why), "{what}: {refusal:?}");
        }
    }
    let members = wait::try_until(PATIENCE, || async {
        let api = Api::over_tls(good.api_port, &authority.trusted(), None);
        let asked = api.call(Method::GET, "/status/members").await.map_err(|error| format!("{error:#}"))?;
        let members = asked.json()["members"].as_array().cloned().unwrap_or_default();
        if members.len() == nodes.len() { Ok(members) } else { Err(asked.to_string()) }
    });
    let members = members.await.map_err(anyhow::Error::msg).context("all are registered")?;
    for (node, (what, _, why)) in cluster.nodes.iter().zip(&nodes).skip(1) {
        let address = format!("127.0.0.1:{}", node.api_port);
        let member = members.iter().find(|member| member["address"] == *address).context("it is there")?;
        let error = member["error"].as_str().unwrap_or_default();
        ensure!(
            error.contains(why) && member["status"].is_null(),
            "a member believes the one {what}: {member}"
        );
    }
    told(
        "a node whose certificate is expired, foreign, or of another name",
        "the library, the command line (RPC and HTTP) and the other members end the handshake and say why",
    );
    drop(cluster);
    certificates_of_clients(&ctx, &authority, &foreign, trust).await
}

async fn certificates_of_clients(
    ctx: &Ctx,
    authority: &Authority,
    foreign: &Authority,
    trust: (&'static str, String),
) -> Result<()> {
    let clients = Authority::new();
    let settings = settings(&ctx.dir.join("tls-mutual"), &authority.certify(), authority, Some(&clients));
    let mut cluster = ctx.no_nodes(with(Options::new(), &settings)).await?;
    let node = cluster.add().await?;
    node.spawn()?;
    let shown = [
        ("good", Some(clients.certify_as("client.example", |_| ())), ""),
        ("none", None, "CertificateRequired"),
        ("expired", Some(clients.certify_expired()), "CertificateExpired"),
        ("foreign", Some(foreign.certify()), "UnknownCA"),
    ];
    let mut said = Vec::new();
    for (what, own, alert) in &shown {
        let mut flags = vec![trust.clone()];
        let mut tls = authority.trusted();
        if let Some(own) = own {
            let folder = ctx.dir.join(format!("client-{what}"));
            std::fs::create_dir_all(&folder)?;
            own.write(&folder);
            for (flag, file) in [("--cert-file", "node.pem"), ("--key-file", "node.key")] {
                flags.push((flag, folder.join(file).display().to_string()));
            }
            tls = own.shown_to(authority);
        }
        if alert.is_empty() {
            serves(node, &tls).await;
        }
        for refusal in refusals(ctx, node, tls, &flags).await? {
            let is_refused = refusal.is_some();
            let refusal = refusal.unwrap_or_default();
            ensure!(is_refused != alert.is_empty(), "a client's certificate, {what}: {refusal:?}");
            // A client that is still sending may see the end of the connection before it sees why.
            said.push(refusal.contains(alert) && is_refused);
        }
    }
    let with_reason = said.iter().filter(|with_reason| **with_reason).count();
    told(
        "a client without a certificate, with an expired and a foreign one, where nodes ask for it",
        &format!(
            "refused by both ports in the handshake; {with_reason} of 9 refusals come with the alert that says why"
        ),
    );
    Ok(())
}
