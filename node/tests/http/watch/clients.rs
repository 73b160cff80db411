//! Clients that do harm, or would like to: what they cost is bounded, and nobody else notices.

use std::collections::BTreeSet;

use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::super::Running;
use super::super::support::PATIENCE;
use super::{Watch, metric, set, until};

const MIB: f64 = 1024.0 * 1024.0;

/// Begins a watch of everything on a connection that takes little at a time.
async fn small_window(node: &Running) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4 * 1024).expect("a size");
    let address = node.address.api().parse().expect("an address");
    let mut stream = socket.connect(address).await.expect("a connection");
    stream.write_all(b"GET /watch HTTP/1.1\r\nHost: node\r\n\r\n").await.expect("sent");
    stream
}

/// Writes some MiB, more than sockets hold, and waits until a client that reads has been told.
async fn write_much(node: &Running, reading: &mut Watch) {
    let value = "v".repeat(100 * 1024);
    for number in 0..200 {
        set(node, &format!("k{}", number % 30), &value).await;
    }
    set(node, "last", "v").await;
    while reading.event("set").await.1["key"] != "last" {}
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_never_reads_is_closed_after_request_timeout() {
    let node = Running::start(&["--request-timeout", "1s"]).await;
    let stalled = [small_window(&node).await, small_window(&node).await];
    let mut reading = Watch::begin(&node, "?values=false", "").await;
    until(async || metric(&node, "bitacora_watchers").await >= 3.0).await;
    write_much(&node, &mut reading).await;
    until(async || metric(&node, "bitacora_watchers").await <= 1.0).await;
    assert!(metric(&node, "bitacora_watch_stalled_total").await >= 2.0);
    // What they held has been given back: there is what one watch that is idle has.
    let held = metric(&node, "bitacora_request_memory_bytes").await;
    assert!(held < 0.1 * MIB, "{held} bytes");
    set(&node, "after", "v").await;
    while reading.event("set").await.1["key"] != "after" {}
    drop(stalled);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_reads_a_byte_at_a_time_costs_little() {
    let node = Running::start(&[]).await;
    let mut slow = small_window(&node).await;
    let mut reading = Watch::begin(&node, "?values=false", "").await;
    until(async || metric(&node, "bitacora_watchers").await >= 2.0).await;
    let value = "v".repeat(100 * 1024);
    let mut byte = [0];
    for number in 0..200 {
        set(&node, &format!("k{number}"), &value).await;
        while reading.event("set").await.1["key"] != format!("k{number}") {}
        timeout(PATIENCE, slow.read_exact(&mut byte)).await.expect("it comes").expect("it is open");
    }
    // What is under way to it, and the page that it would be told next.
    let held = metric(&node, "bitacora_request_memory_bytes").await;
    assert!(held < MIB, "{held} bytes");
    assert!(metric(&node, "bitacora_watch_buffer_bytes").await < 17.0 * MIB);
    node.stop().await;
}

/// Of large values, those that don't read hold a part each if memory is scarce; for one that goes on, the rest is made again.
#[tokio::test(flavor = "multi_thread")]
async fn large_values_are_not_held_by_who_does_not_read() {
    let node = Running::start(&["--request-memory", "64MiB"]).await;
    let mut stalled = Vec::new();
    for _ in 0..100 {
        stalled.push(small_window(&node).await);
    }
    until(async || metric(&node, "bitacora_watchers").await >= 100.0).await;
    let value = "v".repeat(1000 * 1000);
    for number in 0..20 {
        set(&node, &format!("k{number:02}"), &value).await;
    }
    assert_eq!(node.value("k19").await.as_deref(), Some(&*value), "others are not refused");
    until(async || metric(&node, "bitacora_request_memory_bytes").await < 16.0 * MIB).await;
    // The buffer holds the last ones only: the others come from the store.
    let mut late = Watch::answered(stalled.pop().expect("one of them")).await;
    let mut missing: BTreeSet<_> = (0..20).map(|number| format!("k{number:02}")).collect();
    while !missing.is_empty() {
        let (_, data) = late.event("set").await;
        if missing.remove(data["key"].as_str().expect("text")) {
            assert_eq!(data["value"].as_str().map(str::len), Some(value.len()));
        }
    }
    // Those that are sent what has been overwritten end, and go on with their last token.
    set(&node, "k00", "another").await;
    assert_eq!(node.value("k00").await.as_deref(), Some("another"));
    let ended = metric(&node, "bitacora_watch_stalled_total").await;
    for cut in &mut stalled {
        timeout(PATIENCE, cut.read_exact(&mut vec![0; 200_000])).await.expect("it comes").expect("it reads");
    }
    until(async || metric(&node, "bitacora_watch_stalled_total").await > ended).await;
    node.stop().await;
}

/// The connections of the watch's and of the node's ends are of one process here.
fn allow_open_files(files: u64) {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    assert!(limit.maximum.is_none_or(|maximum| maximum >= files), "{limit:?} is too few for this test");
    setrlimit(Resource::Nofile, limit).expect("a soft limit may be raised to the hard one");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_opens_5000_watches_is_refused_most_of_them() {
    allow_open_files(12_000);
    let node = Running::start(&["--max-watchers", "1000"]).await;
    let mut before = Watch::begin(&node, "", "").await;
    let (mut taken, mut refused) = (Vec::new(), Vec::new());
    for _ in 0..5_000 {
        let mut stream = TcpStream::connect(node.address.api()).await.expect("a connection");
        stream.write_all(b"GET /watch HTTP/1.1\r\nHost: node\r\n\r\n").await.expect("sent");
        let mut status = [0; 12];
        timeout(PATIENCE, stream.read_exact(&mut status)).await.expect("an answer").expect("it reads");
        match &status {
            b"HTTP/1.1 200" => taken.push(stream),
            b"HTTP/1.1 503" => refused.push(stream),
            other => panic!("{:?}", String::from_utf8_lossy(other)),
        }
    }
    assert_eq!((taken.len(), refused.len()), (999, 4_001));
    // It is told when to come again, and its connections don't take the place of others'.
    let mut rest = String::new();
    let mut last = refused.pop().expect("one of them");
    timeout(PATIENCE, last.read_to_string(&mut rest)).await.expect("it is closed").expect("it reads");
    assert!(rest.to_ascii_lowercase().contains("retry-after: 1"), "{rest}");
    assert!(rest.contains("MAX_WATCHERS"), "{rest}");
    set(&node, "a", "v").await;
    assert_eq!(before.event("set").await.1["key"], "a");
    assert_eq!(node.value("a").await.as_deref(), Some("v"));
    drop((taken, refused));
    until(async || metric(&node, "bitacora_watchers").await <= 1.0).await;
    Watch::begin(&node, "", "").await.event("current").await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_may_be_as_long_as_a_key() {
    let node = Running::start(&[]).await;
    let longest = "p".repeat(1024);
    let mut watch = Watch::begin(&node, &format!("?prefix={longest}&initial=true"), "").await;
    watch.event("current").await;
    set(&node, &longest[1..], "v").await;
    set(&node, &longest, "v").await;
    assert_eq!(watch.event("set").await.1["key"], longest);
    for path in ["/watch", "/rpc/changes"] {
        let answer = node.ask(&format!("GET {path}?prefix={longest}p"), &[], "").await;
        assert!(answer.refusal(400).contains("1024"), "{answer:?}");
    }
    node.stop().await;
}
