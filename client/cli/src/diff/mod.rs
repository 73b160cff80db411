//! `diff`: the keys in which two nodes differ. Always over HTTP.

mod search;

use std::borrow::Cow;
use std::time::Instant;

use anyhow::Result;
use bitacora_program::console::{print, tell};
use bitacora_protocol::Position;
use bitacora_protocol::http::{DigestRanges, MAX_RANGE_ENTRIES};
use reqwest::Url;
use serde::Serialize;

use self::search::{Difference, Division, Found, Held, Nodes, Range, Search};
use crate::api::{Failure, Kind};
use crate::cli::{self, Connection, Output};
use crate::http::Http;
use crate::members::name_of;
use crate::output::{self, json_line, raw_line};

/// The two nodes over HTTP.
struct HttpNodes {
    http: Http,
    urls: [Url; 2],
    /// What is compared, as the query has it; empty for all partitions.
    partitions: String,
    /// Store format and log of the first node, which both must have.
    of: (String, String),
}

/// A line of JSON.
#[derive(Serialize)]
struct Line<'a> {
    partition: Option<i32>,
    key: Cow<'a, str>,
    /// Of a key that is no text: its bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    a: Option<LineHeld<'a>>,
    b: Option<LineHeld<'a>>,
}

#[derive(Serialize)]
struct LineHeld<'a> {
    /// `None`: bytes that are no record.
    position: Option<Position>,
    digest: &'a str,
}

pub async fn run(connection: &Connection, arguments: &cli::Diff, output: Option<Output>) -> Result<()> {
    let began = Instant::now();
    let nodes = HttpNodes::begin(connection, arguments).await?;
    let names = nodes.names();
    let mut search = Search::new(nodes, arguments.limit as usize, arguments.patience);
    let outcome = search.run().await;
    let found = std::mem::take(&mut search.found);
    show(&found.differences, &names, Output::of_list(output))?;
    outcome?;
    conclude(&found, &names, began)
}

/// The last sentence, and the exit code.
fn conclude(found: &Found, [a, b]: &[String; 2], began: Instant) -> Result<()> {
    let Found { differences, undecided, entries, calls, is_cut } = found;
    let seconds = began.elapsed().as_secs_f64();
    let cost = format!("{entries} entries, {calls} calls, {seconds:.1} s");
    let unclear = format!(
        "{undecided} keys are not decided: they are being written all the time, or a node is behind or no longer complete; \
         give more --patience, or run it again"
    );
    let count = differences.len();
    if count > 0 {
        if *undecided > 0 {
            tell(format_args!("bitacora: {unclear}"));
        }
        let more = if *is_cut { "; there may be more (--limit)" } else { "" };
        let keys = if count == 1 { "key differs" } else { "keys differ" };
        return Err(
            Failure::new(Kind::Differ, format!("{count} {keys} between {a} and {b}{more} ({cost})")).into()
        );
    }
    if *undecided > 0 {
        return Err(Failure::new(Kind::Unclear, format!("{unclear} ({cost})")).into());
    }
    tell(format_args!("bitacora: {a} and {b} hold the same ({cost})"));
    Ok(())
}

impl HttpNodes {
    /// Asks both nodes what they are, and leaves out the partitions that can't be compared.
    async fn begin(connection: &Connection, arguments: &cli::Diff) -> Result<Self, Failure> {
        let urls = [arguments.a.clone(), arguments.b.clone()];
        let (http, partitions) = (Http::new(&urls, connection)?, String::new());
        let mut nodes = Self { http, urls, partitions, of: (String::new(), String::new()) };
        // A range that is empty.
        let a = nodes.call(0, &[("from", "AA"), ("to", "AA")]).await?;
        let b = nodes.call(1, &[("from", "AA"), ("to", "AA")]).await?;
        nodes.of = (a.format.to_string(), a.log.clone());
        nodes.check(1, &b)?;
        let wanted: Vec<i32> = match arguments.partition {
            Some(partition) => vec![partition],
            None => a.partitions.iter().chain(&b.partitions).map(|partition| partition.partition).collect(),
        };
        let mut compared = Vec::new();
        let mut left_out = 0;
        for partition in wanted {
            let lacking = [&a, &b].iter().position(|answer| {
                !answer.partitions.iter().any(|it| it.partition == partition && it.comparable)
            });
            match lacking {
                _ if compared.contains(&partition) => {}
                None => compared.push(partition),
                Some(node) => {
                    left_out += 1;
                    tell(format_args!(
                        "bitacora: partition {partition} is left out: {} may lack something of it, or does not know it",
                        nodes.names()[node]
                    ));
                }
            }
        }
        if compared.is_empty() {
            let sentence =
                "there is no partition that both nodes hold wholly, so that there is nothing to compare";
            return Err(Failure::new(Kind::Unavailable, sentence));
        }
        if left_out > 0 || arguments.partition.is_some() {
            let numbers: Vec<_> = compared.iter().map(ToString::to_string).collect();
            nodes.partitions = numbers.join(",");
        }
        Ok(nodes)
    }

    fn names(&self) -> [String; 2] {
        self.urls.each_ref().map(name_of)
    }

    async fn call(&self, node: usize, query: &[(&str, &str)]) -> Result<DigestRanges, Failure> {
        let name = name_of(&self.urls[node]);
        let answer = self.http.digest_ranges(&self.urls[node], query).await;
        answer.map_err(|Failure { kind, sentence }| match kind {
            Kind::NotFound => {
                Failure::new(Kind::Failed, format!("{name} is of a version that has no digests of ranges"))
            }
            kind => Failure::new(kind, format!("{name}: {sentence}")),
        })
    }

    /// Whether the nodes can be compared at all.
    fn check(&self, node: usize, answer: &DigestRanges) -> Result<(), Failure> {
        let (format, log) = &self.of;
        let why = if *answer.format != **format {
            format!("their stores are of the formats {format} and {}, of different versions", answer.format)
        } else if answer.log != *log {
            format!("their stores are of different logs ({log} and {})", answer.log)
        } else {
            return Ok(());
        };
        let [a, _] = self.names();
        let other = name_of(&self.urls[node]);
        Err(Failure::new(Kind::Failed, format!("{a} and {other} can't be compared: {why}")))
    }
}

impl Nodes for HttpNodes {
    async fn ask(&self, node: usize, range: &Range, division: Division<'_>) -> Result<DigestRanges, Failure> {
        let from = range.from.to_string();
        let to = range.to.as_ref().map(ToString::to_string).unwrap_or_default();
        let (name, value) = match division {
            Division::Parts(parts) => ("parts", parts.to_string()),
            Division::At(keys) => ("at", keys.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")),
            Division::Entries => ("entries", MAX_RANGE_ENTRIES.to_string()),
        };
        let given = [("from", from.as_str()), ("to", &to), ("partitions", &self.partitions), (name, &value)];
        let query: Vec<_> = given.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        let answer = self.call(node, &query).await?;
        // A node may have begun another store meanwhile.
        self.check(node, &answer)?;
        Ok(answer)
    }
}

fn show(differences: &[Difference], [a, b]: &[String; 2], output: Output) -> Result<()> {
    let text = match output {
        Output::Table if differences.is_empty() => return Ok(()),
        Output::Table => {
            let rows = differences.iter().map(|difference| {
                let [partition, key, a, b] = fields(difference);
                [partition, output::shown(&key), a, b]
            });
            output::table(Some(["PARTITION", "KEY", a, b]), rows)
        }
        Output::Json => {
            differences.iter().map(|difference| json_line(&line(difference))).collect::<Result<_, _>>()?
        }
        Output::Raw => differences
            .iter()
            .map(|difference| raw_line(fields(difference).each_ref().map(String::as_str)))
            .collect(),
    };
    Ok(print(text)?)
}

/// Partition, key, and what each node holds.
fn fields(difference: &Difference) -> [String; 4] {
    let Difference { key, partition, held: [a, b] } = difference;
    let held = |held: &Option<Held>| match held {
        None => "-".to_owned(),
        Some(Held { position: Some(position), .. }) => position.to_string(),
        Some(Held { position: None, .. }) => "damaged".to_owned(),
    };
    let partition = partition.map_or_else(|| "-".to_owned(), |partition| partition.to_string());
    [partition, String::from_utf8_lossy(&key.0).into_owned(), held(a), held(b)]
}

fn json_held(held: Option<&Held>) -> Option<LineHeld<'_>> {
    held.map(|Held { position, digest }| LineHeld { position: *position, digest })
}

fn line(difference: &Difference) -> Line<'_> {
    let Difference { key: bytes, partition, held: [a, b] } = difference;
    let key = String::from_utf8_lossy(&bytes.0);
    let key_base64 = matches!(key, Cow::Owned(_)).then(|| bytes.to_string());
    Line { partition: *partition, key, key_base64, a: json_held(a.as_ref()), b: json_held(b.as_ref()) }
}
