//! `GET /status/digests/ranges`: what the node holds of a range of keys, for who looks for the keys in which two nodes differ.

use bitacora_protocol::http::{KeyBytes, MAX_RANGE_ENTRIES, MAX_RANGE_PARTS};
use warp::http::StatusCode;

use super::answers::{self, Reply};
use super::error::HttpError;
use super::params::{Params, query_params};
use crate::service::error::OperationError;
use crate::service::status::NodeStatus;
use crate::store::{Division, RangeQuery};

/// What it may have in its query.
pub(super) const FIELDS: &[&str] = &["from", "to", "partitions", "parts", "at", "entries"];

/// Answers with digests of parts of a range, or with its entries.
pub(super) async fn ranges(node: &NodeStatus, query: &str) -> Result<Reply, HttpError> {
    let query = range_query(&query_params(query, FIELDS)?).map_err(HttpError::BadRequest)?;
    let (answer, memory) = node.digests.ranges(query, &node.memory).await.map_err(OperationError::from)?;
    Ok(answers::counted_json(StatusCode::OK, &answer, Some(memory)))
}

/// What is asked for; or what is wrong with it, as a sentence for the client.
fn range_query(params: &Params<'_>) -> Result<RangeQuery, String> {
    let key = |name| key_of(name, params.get(name).unwrap_or_default());
    let (from, to) = (key("from")?, key("to")?);
    let list = |name| params.get(name).into_iter().flat_map(|text| text.split(','));
    let partition =
        |text: &str| text.parse().map_err(|_| format!("partitions: '{text}' is no partition's number"));
    let partitions = list("partitions").map(partition).collect::<Result<Vec<i32>, _>>()?;
    let number = |name: &str, most: usize| {
        let text = params.get(name)?;
        let number = text.parse::<usize>().ok().filter(|number| (1..=most).contains(number));
        Some(number.ok_or_else(|| format!("{name}={text} is not a number from 1 to {most}")))
    };
    let divisions = ["parts", "at", "entries"].into_iter().filter(|name| params.get(name).is_some());
    if divisions.count() > 1 {
        return Err("give one of parts, at and entries".to_owned());
    }
    let division = if let Some(most) = number("entries", MAX_RANGE_ENTRIES) {
        Division::Entries(most?)
    } else if params.get("at").is_some() {
        let keys = list("at").map(|text| key_of("at", text)).collect::<Result<Vec<_>, _>>()?;
        let is_within = |key: &Vec<u8>| *key > from && (to.is_empty() || *key < to);
        if keys.len() >= MAX_RANGE_PARTS || !keys.is_sorted_by(|a, b| a < b) || !keys.iter().all(is_within) {
            return Err(format!(
                "at has at most {} keys, which ascend and lie between from and to, both exclusive",
                MAX_RANGE_PARTS - 1
            ));
        }
        Division::At(keys)
    } else {
        Division::Parts(number("parts", MAX_RANGE_PARTS).unwrap_or(Ok(1))?)
    };
    Ok(RangeQuery { from, to, partitions, division })
}

fn key_of(name: &str, text: &str) -> Result<Vec<u8>, String> {
    let key: Result<KeyBytes, _> = text.parse();
    key.map(|key| key.0).map_err(|error| format!("{name}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str) -> Result<RangeQuery, String> {
        range_query(&Params::parse(query, "the query").expect("parameters"))
    }

    #[test]
    fn a_range_is_divided_in_one_way() {
        assert!(matches!(read("").expect("everything").division, Division::Parts(1)));
        assert!(matches!(read("parts=64").expect("parts").division, Division::Parts(64)));
        assert!(matches!(read("entries=1000").expect("entries").division, Division::Entries(1_000)));
        // a, b and c.
        let query = read("from=YQ&to=Yw&at=Yg&partitions=0,7").expect("at a key");
        assert_eq!((query.from, query.to, query.partitions), (b"a".to_vec(), b"c".to_vec(), vec![0, 7]));
        assert!(matches!(query.division, Division::At(keys) if keys == [b"b".to_vec()]));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (wrong, names) in [
            ("from=%20", "from"),
            ("to=YQ==", "to"),
            ("partitions=", "partitions"),
            ("partitions=1,", "partitions"),
            ("parts=0", "parts=0"),
            ("parts=65", "parts=65"),
            ("entries=1001", "entries=1001"),
            ("parts=2&entries=2", "one of"),
            ("at=", "at"),
            ("at=Yg,YQ", "ascend"),
            ("at=YQ,YQ", "ascend"),
            ("from=YQ&at=YQ", "between"),
            ("to=YQ&at=YQ", "between"),
            ("at=x", "base64url"),
        ] {
            let error = read(wrong).expect_err(wrong);
            assert!(error.contains(names), "{wrong}: {error}");
        }
        let many: Vec<_> = (0..64_u8).map(|n| KeyBytes(vec![b'a', n]).to_string()).collect();
        assert!(read(&format!("at={}", many[1..].join(","))).is_ok());
        assert!(read(&format!("at={}", many.join(","))).is_err());
    }
}
