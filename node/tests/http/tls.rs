//! TLS of both ports and between members: what is served, what is refused, and how, and files that change.

#[path = "../support/certificates.rs"]
mod certificates;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bitacora_client::{Client, ClientTls};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use self::certificates::{Authority, Certified, HOST, files, write};
use super::support::{self, PATIENCE, ready};
use super::{Answer, Running, embedded_log, request};

/// A node with this certificate.
async fn start(
    own: &Certified,
    authority: &Authority,
    clients: Option<&Authority>,
    more: &[&str],
) -> Running {
    let folder = tempfile::tempdir().expect("a folder");
    let files = files(&folder.path().join("tls"), own, authority, clients);
    let flags: Vec<&str> = files.iter().map(String::as_str).chain(more.iter().copied()).collect();
    let log = Arc::new(embedded_log(folder.path()));
    Running::start_over(folder, log, &flags).await
}

async fn read_all(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("the node ends it");
    if bytes.is_empty() { read.map(|_| bytes) } else { Ok(bytes) }
}

/// The answer to a request over a TLS connection of its own.
async fn ask(address: &str, tls: &ClientTls, line: &str) -> Result<Answer, String> {
    let text = |error: std::io::Error| error.to_string();
    let stream = TcpStream::connect(address).await.map_err(text)?;
    let mut stream =
        timeout(PATIENCE, tls.connect(address, stream)).await.expect("it shakes hands").map_err(text)?;
    stream.write_all(&request(line, &[], b"")).await.map_err(text)?;
    let answer = read_all(&mut stream).await.map_err(text)?;
    Ok(Answer::parse(&String::from_utf8_lossy(&answer)))
}

async fn rpc(address: &str, tls: Option<ClientTls>) -> Client {
    let builder = Client::builder().nodes([address]).deadline(Duration::from_secs(20));
    let builder = tls.into_iter().fold(builder, bitacora_client::ClientBuilder::tls);
    builder.build().await.expect("the settings are right")
}

impl Running {
    fn tls_folder(&self) -> PathBuf {
        self.folder.path().join("tls")
    }

    async fn ask_over_tls(&self, tls: &ClientTls, line: &str) -> Result<Answer, String> {
        ask(&self.address.api(), tls, line).await
    }

    async fn rpc(&self, tls: Option<ClientTls>) -> Client {
        rpc(&self.address.avro(), tls).await
    }

    /// Why the library does not get to this node.
    async fn rpc_failure(&self, tls: Option<ClientTls>) -> String {
        let builder = Client::builder().nodes([self.address.avro()]).deadline(Duration::from_secs(1));
        let builder = tls.into_iter().fold(builder, bitacora_client::ClientBuilder::tls);
        let client = builder.build().await.expect("the settings are right");
        client.get("k").await.expect_err("it is refused").to_string()
    }

    async fn counted(&self, tls: &ClientTls, series: &str) -> u64 {
        let metrics = self.ask_over_tls(tls, "GET /metrics").await.expect("an answer").body;
        let value = metrics.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok());
        value.unwrap_or_else(|| panic!("{series} is not there: {metrics}"))
    }

    async fn failures(&self, tls: &ClientTls, interface: &str, reason: &str) -> u64 {
        let labels = format!("{{interface=\"{interface}\",reason=\"{reason}\"}}");
        self.counted(tls, &format!("bitacora_tls_handshake_failures_total{labels}")).await
    }

    /// Waits until so many handshakes have failed for this reason.
    async fn has_failures(&self, tls: &ClientTls, interface: &str, reason: &str, count: u64) {
        let reached = async {
            while self.failures(tls, interface, reason).await != count {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("{interface} {reason}: not {count}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_ports_speak_tls() {
    let authority = Authority::new();
    let running = start(&authority.certify(), &authority, None, &[]).await;
    let tls = authority.trusted();
    let client = running.rpc(Some(tls.clone())).await;
    // Larger than the buffers on the way.
    let value = "v".repeat(900_000);
    client.set("large", &value).await.expect("written");
    client.set("k", "v").await.expect("written");
    let shown = async {
        while client.get("k").await.is_err() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, shown).await.expect("the node applies what it wrote");
    assert_eq!(client.get("large").await.expect("found").value, value);
    let answer = running.ask_over_tls(&tls, "GET /rpc?key=large").await.expect("an answer");
    assert_eq!((answer.status, answer.json()["value"].as_str()), (200, Some(&*value)));
    // The only protocol of this port, and it is said.
    let stream = TcpStream::connect(running.address.api()).await.expect("a connection");
    let connector = tokio_rustls::TlsConnector::from(Arc::new(tls.http_config()));
    let name = HOST.try_into().expect("a name");
    let stream = connector.connect(name, stream).await.expect("a handshake");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    // The page finds the members where they are.
    let page = running.ask_over_tls(&tls, "GET /").await.expect("an answer");
    let policy = page.header("content-security-policy").expect("a policy");
    assert!(policy.ends_with(&format!("https://{}", running.address.api())), "{policy}");
    assert!(page.body.contains("<meta name=\"members\" content=\"https\">"));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_certificate_is_not_good_is_not_believed() {
    let (authority, other) = (Authority::new(), Authority::new());
    for (own, trusted, why) in [
        (authority.certify_expired(), &authority, "certificate expired"),
        (authority.certify(), &other, "UnknownIssuer"),
        (authority.certify_as("node.example", |_| ()), &authority, "not valid for name"),
    ] {
        let running = start(&own, &authority, None, &[]).await;
        let error = running.ask_over_tls(&trusted.trusted(), "GET /health").await.expect_err(why);
        assert!(error.contains(why), "{error}");
        let error = running.rpc_failure(Some(trusted.trusted())).await;
        assert!(error.contains(why), "{error}");
        running.stop().await;
    }
    let running = start(&authority.certify(), &authority, None, &[]).await;
    let _ = running.ask_over_tls(&other.trusted(), "GET /health").await.expect_err("a foreign authority");
    running.has_failures(&authority.trusted(), "http", "refused_by_client", 1).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_show_a_certificate_where_they_must() {
    let (authority, clients, foreign) = (Authority::new(), Authority::new(), Authority::new());
    let good = clients.certify_as("client.example", |_| ()).shown_to(&authority);
    let bad = [
        ("expired", clients.certify_expired().shown_to(&authority)),
        ("foreign", foreign.certify().shown_to(&authority)),
    ];
    let none = authority.trusted();
    for (asked, is_needed) in [(None, true), (Some("required"), true), (Some("optional"), false)] {
        let more: Vec<&str> =
            asked.into_iter().flat_map(|asked| ["--tls-client-certificates", asked]).collect();
        let running = start(&authority.certify(), &authority, Some(&clients), &more).await;
        assert_eq!(running.ask_over_tls(&good, "GET /health").await.expect("an answer").status, 200);
        running.rpc(Some(good.clone())).await.set("k", "v").await.expect("written");
        for (number, (what, bad)) in (1..).zip(&bad) {
            let answer = running.ask_over_tls(bad, "GET /health").await;
            assert!(answer.is_err(), "{asked:?}, {what}: {answer:?}");
            running.has_failures(&good, "http", "certificate", number).await;
            running.rpc_failure(Some(bad.clone())).await;
        }
        let answer = running.ask_over_tls(&none, "GET /health").await;
        if is_needed {
            // It gets to know why.
            assert!(answer.as_ref().is_err_and(|error| error.contains("CertificateRequired")), "{answer:?}");
            assert!(running.rpc_failure(Some(none.clone())).await.contains("CertificateRequired"));
            running.has_failures(&good, "http", "certificate", 3).await;
        } else {
            assert_eq!(answer.expect("an answer").status, 200);
            running.rpc(Some(none.clone())).await.set("k", "v").await.expect("written");
        }
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_text_and_tls_do_not_meet() {
    let authority = Authority::new();
    let running = start(&authority.certify(), &authority, None, &[]).await;
    let tls = authority.trusted();
    let answer = running.ask("GET /health", &[], "").await;
    assert!(answer.refusal(400).contains("TLS"), "{answer:?}");
    assert_eq!(answer.header("connection"), Some("close"));
    running.has_failures(&tls, "http", "not_tls", 1).await;
    // As a client of the RPC begins: the first bytes of a frame.
    let mut plain = TcpStream::connect(running.address.avro()).await.expect("a connection");
    plain.write_all(&[0; 12]).await.expect("sent");
    assert!(read_all(&mut plain).await.is_ok_and(|told| told.is_empty()));
    running.has_failures(&tls, "rpc", "not_tls", 1).await;
    running.rpc_failure(None).await;
    running.stop().await;

    let running = Running::start(&[]).await;
    for address in [running.address.api(), running.address.avro()] {
        let stream = TcpStream::connect(&address).await.expect("a connection");
        let shaken = timeout(PATIENCE, tls.connect(&address, stream)).await.expect("it ends");
        assert!(shaken.is_err());
    }
    assert!(running.rpc_failure(Some(tls)).await.contains("TLS"));
    running.stop().await;
}

/// The beginning of a client's first message of this version, TLS 1.1 as 0x0302, as a whole record.
fn client_hello(version: [u8; 2]) -> Vec<u8> {
    // No session, one cipher (TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA), no compression, one algorithm of signatures.
    let algorithms = [0, 8, 0, 13, 0, 4, 0, 2, 4, 3];
    let hello = [&version[..], &[7; 32], &[0], &[0, 2, 0xc0, 0x13], &[1, 0], &algorithms].concat();
    let message = [&[1, 0, 0, hello.len() as u8][..], &hello].concat();
    [&[22, 3, 1, 0, message.len() as u8][..], &message].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn old_versions_are_refused() {
    let authority = Authority::new();
    let running = start(&authority.certify(), &authority, None, &[]).await;
    for version in [[3, 1], [3, 2]] {
        for address in [running.address.api(), running.address.avro()] {
            let mut stream = TcpStream::connect(address).await.expect("a connection");
            stream.write_all(&client_hello(version)).await.expect("sent");
            let told = read_all(&mut stream).await.expect("an alert");
            // A fatal alert: protocol_version.
            assert_eq!((told.first(), &told[told.len() - 2..]), (Some(&21), &[2, 70][..]), "{told:?}");
        }
    }
    for interface in ["http", "rpc"] {
        running.has_failures(&authority.trusted(), interface, "protocol", 2).await;
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_does_not_go_on_is_ended() {
    let authority = Authority::new();
    let tls = authority.trusted();
    let slow = ["--request-timeout", "300ms", "--max-connections", "1"];
    let running = start(&authority.certify(), &authority, None, &slow).await;
    for (number, begun) in (1..).zip([&b""[..], &client_hello([3, 3])[..20]]) {
        for interface in ["http", "rpc"] {
            let address = if interface == "http" { running.address.api() } else { running.address.avro() };
            let mut stream = TcpStream::connect(address).await.expect("a connection");
            stream.write_all(begun).await.expect("sent");
            assert!(read_all(&mut stream).await.is_ok_and(|told| told.is_empty()), "{interface}");
            // It counted as a connection, of which there may be one, and counts no more.
            running.has_failures(&tls, interface, "timeout", number).await;
        }
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_under_way_holds_up_nobody() {
    let authority = Authority::new();
    let tls = authority.trusted();
    let running = start(&authority.certify(), &authority, None, &["--shutdown-grace", "30s"]).await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        for address in [running.address.api(), running.address.avro()] {
            silent.push(TcpStream::connect(address).await.expect("a connection"));
        }
    }
    assert_eq!(running.ask_over_tls(&tls, "GET /health").await.expect("an answer").status, 200);
    running.rpc(Some(tls)).await.set("k", "v").await.expect("written");
    let stopping = tokio::time::Instant::now();
    running.stop().await;
    assert!(stopping.elapsed() < Duration::from_secs(10), "{:?}", stopping.elapsed());
}

/// Who sends requests and reads no answers is given up, as without TLS.
#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_over_tls_is_given_up() {
    let authority = Authority::new();
    let tls = authority.trusted();
    let running = start(&authority.certify(), &authority, None, &["--request-timeout", "300ms"]).await;
    let client = running.rpc(Some(tls.clone())).await;
    client.set("k", &"v".repeat(900_000)).await.expect("written");
    let shown = async {
        while client.get("k").await.is_err() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, shown).await.expect("the node applies what it wrote");
    let address = running.address.api();
    let stream = TcpStream::connect(&address).await.expect("a connection");
    let mut stream = tls.connect(&address, stream).await.expect("a handshake");
    let line = b"GET /rpc?key=k HTTP/1.1\r\nHost: node\r\n\r\n";
    stream.write_all(&line.repeat(20)).await.expect("sent");
    stream.flush().await.expect("sent");
    let open = "bitacora_connections{interface=\"http\"}";
    let given_up = async {
        // The one that asks.
        while running.counted(&tls, open).await > 1 {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, given_up).await.expect("the node gives up");
    drop(stream);
    running.stop().await;
}

/// The certificate that the node shows now.
async fn shown(address: &str, tls: &ClientTls) -> Vec<u8> {
    let stream = TcpStream::connect(address).await.expect("a connection");
    let stream = tls.connect(address, stream).await.expect("a handshake");
    stream.get_ref().1.peer_certificates().expect("certificates")[0].to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_change_under_load_and_bad_ones_change_nothing() {
    let authority = Authority::new();
    let tls = authority.trusted();
    let running = start(&authority.certify(), &authority, None, &[]).await;
    let (done, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    // One keeps its connection, one makes a new one each time, over either interface.
    let kept = running.rpc(Some(tls.clone())).await;
    kept.set("k", "v").await.expect("written");
    let load = {
        let (api, avro) = (running.address.api(), running.address.avro());
        let (tls, done, calls) = (tls.clone(), Arc::clone(&done), Arc::clone(&calls));
        tokio::spawn(async move {
            while !done.load(Ordering::Relaxed) {
                let answer = ask(&api, &tls, "GET /health").await;
                assert_eq!(answer.expect("an answer").status, 200);
                rpc(&avro, Some(tls.clone())).await.set("k", "v").await.expect("written");
                kept.set("k", "v").await.expect("written");
                calls.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    let changes = async |before: &[u8]| {
        for address in [running.address.api(), running.address.avro()] {
            let changed = async {
                while shown(&address, &tls).await == before {
                    sleep(Duration::from_millis(50)).await;
                }
            };
            timeout(PATIENCE, changed).await.expect("the files are followed");
        }
    };
    // The year is that of the certificate that is shown, not of the first one.
    for year in 2091..=2093 {
        let before = shown(&running.address.api(), &tls).await;
        let until =
            |params: &mut rcgen::CertificateParams| params.not_after = rcgen::date_time_ymd(year, 1, 1);
        authority.certify_as(HOST, until).write(&running.tls_folder());
        changes(&before).await;
    }
    let expiry = running.counted(&tls, "bitacora_tls_certificate_expiry_timestamp_seconds").await;
    assert_eq!(expiry.cast_signed(), rcgen::date_time_ymd(2093, 1, 1).unix_timestamp());
    assert_eq!(running.counted(&tls, "bitacora_tls_files_failures_total").await, 0);
    // A key of another certificate, then no certificate at all.
    let before = shown(&running.address.api(), &tls).await;
    let key = running.tls_folder().join("node.key");
    for (number, wrong) in (1..).zip([authority.certify().key, "no key".to_owned()]) {
        write(&key, &wrong);
        let noticed = async {
            while running.counted(&tls, "bitacora_tls_files_failures_total").await != number {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(PATIENCE, noticed).await.expect("the files are followed");
        assert_eq!(shown(&running.address.api(), &tls).await, before, "the one of before stays");
    }
    authority.certify().write(&running.tls_folder());
    changes(&before).await;
    done.store(true, Ordering::Relaxed);
    load.await.expect("no call failed");
    assert!(calls.load(Ordering::Relaxed) > 10);
    running.stop().await;
}

/// What the second of two nodes is told by the first, whose certificate is of `of_first`: of its status, and of whether it shows a write.
/// Both trust `authority`, and ask for certificates of it.
async fn told_by(of_first: &Authority, authority: &Authority) -> (Value, Option<String>) {
    let folder = TempDir::new().expect("a folder");
    let log = Arc::new(embedded_log(folder.path()));
    let flags = |name: &str, own: &Authority| {
        files(&folder.path().join(name), &own.certify(), authority, Some(authority))
    };
    let of_first = flags("tls-first", of_first);
    let of_first: Vec<&str> = of_first.iter().map(String::as_str).collect();
    let (first, address) = support::start(&folder.path().join("first"), log.clone(), &of_first, None).await;
    ready(&first).await;
    let of_second = flags("tls", authority);
    let of_second: Vec<&str> = of_second.iter().map(String::as_str).collect();
    let other = Some(address.api());
    let (node, address) = support::start(&folder.path().join("second"), log.clone(), &of_second, other).await;
    ready(&node).await;
    let running = Running { node, address, folder };
    let tls = authority.certify_as("client.example", |_| ()).shown_to(authority);
    let told = running.ask_over_tls(&tls, "GET /status/members").await.expect("an answer").json();
    let line = "POST /rpc?key=k&value=v&visible=all&timeout=5s";
    let written = running.ask_over_tls(&tls, line).await.expect("an answer");
    assert_eq!(written.status, 200, "{written:?}");
    running.stop().await;
    first.stop().await;
    let members = told["members"].as_array().expect("members");
    let first = members.iter().find(|member| member["address"] != told["members"][0]["address"]);
    (first.expect("another one").clone(), written.header("bitacora-not-visible").map(str::to_owned))
}

#[tokio::test(flavor = "multi_thread")]
async fn members_ask_one_another_over_tls() {
    let authority = Authority::new();
    let (told, not_visible) = told_by(&authority, &authority).await;
    assert_eq!(told["status"]["ready"], true, "{told}");
    assert_eq!(not_visible, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_of_another_authority_is_not_believed() {
    let (authority, other) = (Authority::new(), Authority::new());
    let (told, not_visible) = told_by(&other, &authority).await;
    let error = told["error"].as_str().unwrap_or_default();
    assert!(error.contains("TLS with it fails") && error.contains("UnknownIssuer"), "{told}");
    assert!(not_visible.is_some());
}

/// What can't work is told before anything runs: which setting, which file, what is wrong.
#[test]
fn settings_and_files_that_make_no_sense_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let (authority, own) = (Authority::new(), Authority::new().certify());
    let all = files(folder.path(), &own, &authority, Some(&authority));
    let error = |flags: &[&str]| {
        let metrics = Arc::new(bitacora_node::metrics::Metrics::new().expect("metrics"));
        let tls = support::settings(flags).tls("127.0.0.1", metrics);
        tls.err().unwrap_or_else(|| panic!("{flags:?} was accepted"))
    };
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    for (flags, words) in [
        (&all[..2], "not set: TLS_KEY_FILE, TLS_CA_FILE"),
        (&all[..4], "not set: TLS_CA_FILE"),
        (&all[6..], "not set: TLS_CERTIFICATE_FILE, "),
        (&["--tls-client-certificates", "required"], "not set: TLS_CERTIFICATE_FILE, "),
    ] {
        assert!(error(flags).contains(words), "{}", error(flags));
    }
    let optional = [&all[..6], &["--tls-client-certificates", "optional"]].concat();
    assert!(error(&optional).contains("without TLS_CLIENT_CA_FILE"));
    for (at, setting) in
        [(1, "TLS_CERTIFICATE_FILE"), (3, "TLS_KEY_FILE"), (5, "TLS_CA_FILE"), (7, "TLS_CLIENT_CA_FILE")]
    {
        let good = std::fs::read(all[at]).expect("there");
        let begins = format!("{setting} {}: ", all[at]);
        for (content, words) in [
            (Some(&b"no PEM"[..]), "in PEM"),
            (Some(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), "can't be used"),
            (Some(b"\xff\xfe\0"), "in PEM"),
            (None, "can't be read"),
        ] {
            // A certificate is looked at when it is compared with its key.
            if setting == "TLS_KEY_FILE" && words == "can't be used" {
                continue;
            }
            match content {
                Some(content) => std::fs::write(all[at], content).expect("written"),
                None => std::fs::remove_file(all[at]).expect("removed"),
            }
            let told = error(&all);
            assert!(told.starts_with(&begins) && told.contains(words), "{told}");
        }
        std::fs::write(all[at], good).expect("written");
    }
    write(Path::new(all[3]), &Authority::new().certify().key);
    let told = error(&all);
    assert!(told.starts_with("TLS_KEY_FILE ") && told.contains(all[1]), "{told}");
    own.write(folder.path());
    assert!(
        support::settings(&all)
            .tls("127.0.0.1", Arc::new(bitacora_node::metrics::Metrics::new().expect("metrics")))
            .is_ok()
    );
}
