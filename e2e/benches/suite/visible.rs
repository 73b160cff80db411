//! From a set on one node until another node shows it, beside Kafka's own way from a producer to a consumer.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use e2e::bare_kafka::BareKafka;
use e2e::cluster::{Node, Options};
use e2e::http::{Api, encode, read_answer_bytes};
use e2e::measure::child::Measured;
use e2e::measure::row::{Figure, Row, Target};
use e2e::measure::{results, value};
use e2e::runner::Ctx;
use hdrhistogram::Histogram;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::size::{PARTITIONS, VALUE_BYTES, size};

/// Before the first round; not counted.
const WARM_UP: usize = 20;

pub async fn run(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster_with(2, Options::new()).await?;
    let kafka = BareKafka::start(&cluster.topic, PARTITIONS, &value(VALUE_BYTES)).await?;
    let [writer, reader] = &cluster.nodes[..] else { unreachable!("two nodes") };
    let pair = Pair::open(writer, reader).await?;
    // In a task of the runtime's own threads, which also wait for the sockets.
    let [acknowledged, sent, kafka] = tokio::spawn(measure(pair, kafka)).await??;
    let row = |work, figure, ours| {
        Row::of_rounds(("visible", work, "Kafka, produced to consumed"), figure, ours, Some(&kafka))
    };
    let (since_acknowledged, since_sent) =
        ("a set on A visible on B, since its acknowledgement", "a set on A visible on B, since it was sent");
    results::add([
        row(since_acknowledged, Figure::P50, &acknowledged).target(Target::Ratio(1.2)),
        row(since_acknowledged, Figure::P99, &acknowledged).target(Target::Ratio(1.2)),
        row(since_sent, Figure::P50, &sent),
        row(since_sent, Figure::P99, &sent),
    ]);
    Ok(())
}

/// A writer, and a connection to who reads.
struct Pair {
    api: Api,
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Pair {
    async fn open(writer: &Node, reader: &Node) -> Result<Pair> {
        let stream = TcpStream::connect(("127.0.0.1", reader.api_port)).await?;
        stream.set_nodelay(true)?;
        Ok(Pair { api: writer.api(), stream, buffer: vec![0; 64 * 1024] })
    }

    /// In µs: until the other node shows it, since the acknowledgement and since it was sent.
    ///
    /// The other node is asked once, for what is not older than the write: it answers as soon as it shows that. To ask it again and again
    /// would take a processor from the nodes and from Kafka, which the consumer that this is compared with does not do.
    async fn sample(&mut self, number: usize) -> Result<[u64; 2]> {
        let key = format!("sample {number}");
        let sent = Instant::now();
        let set = self.api.set(&key, &value(VALUE_BYTES)).await?.expect(200);
        let acknowledged = Instant::now();
        let position = set.header("bitacora-position").context("an acknowledgement without a position")?;
        let request = format!(
            "GET /rpc?key={}&consistency=session&position={position} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
            encode(&key)
        );
        self.stream.write_all(request.as_bytes()).await?;
        let answer = read_answer_bytes(&mut self.stream, &mut self.buffer).await?;
        ensure!(answer.starts_with(b"HTTP/1.1 200"), "not shown: {}", String::from_utf8_lossy(answer));
        Ok([acknowledged, sent].map(|since| since.elapsed().as_micros() as u64))
    }
}

/// Rounds: since the acknowledgement, since it was sent, and of Kafka.
async fn measure(mut pair: Pair, mut kafka: BareKafka) -> Result<[Vec<Measured>; 3]> {
    let mut rounds: [Vec<Measured>; 3] = Default::default();
    let mut number = 0;
    for round in 0..=size().rounds {
        let mut delays = [(); 3].map(|()| Histogram::<u64>::new(3));
        let samples = if round == 0 { WARM_UP } else { size().samples };
        for _ in 0..samples {
            let [acknowledged, sent] = pair.sample(number).await?;
            let consumed = kafka.sample(number).await?.consumed.as_micros() as u64;
            for (delays, delay) in delays.iter_mut().zip([acknowledged, sent, consumed]) {
                delays.as_mut().map_err(|error| anyhow::anyhow!("{error}"))?.record(delay.max(1))?;
            }
            number += 1;
        }
        for (rounds, delays) in rounds.iter_mut().zip(delays).filter(|_| round > 0) {
            let delays = delays?;
            let quantile = |part| delays.value_at_quantile(part) as f64;
            rounds.push(Measured { p50: quantile(0.5), p99: quantile(0.99), ..Measured::default() });
        }
    }
    Ok(rounds)
}
