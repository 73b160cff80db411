//! Patterns of the texts that the calls read: regular expressions as ECMA-262 has them.

use std::time::Duration;

/// Of Unicode's white space, as [`str::trim`] knows it.
const BLANKS: &str = r"\t-\r \u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000";

/// In base64url without padding: three bytes, and what is left at the end.
const BASE64: &str = "[A-Za-z0-9_-]{4}";
const BASE64_END: &str = "[A-Za-z0-9_-][AQgw]|[A-Za-z0-9_-]{2}[AEIMQUYcgkosw048]";

const UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Of a position, `P:O`: 2:1047, or 2:-1 for nothing of a partition.
const POSITION: &str = "(?:0|[1-9][0-9]{0,8}):(?:-1|0|[1-9][0-9]{0,17})";
const VERSION: &str = "(?:0|[1-9][0-9]{0,8}):(?:0|[1-9][0-9]{0,17})";

/// A key: not blank, and not one of the nodes' own.
pub fn key() -> String {
    format!(r"^(?:[^\u0000{BLANKS}]|[{BLANKS}][\s\S]*[^{BLANKS}])")
}

/// A key as bytes, perhaps an empty one.
pub fn key_bytes() -> String {
    format!("^(?:{BASE64})*(?:{BASE64_END})?$")
}

/// Keys as bytes, with commas between; none is empty.
pub fn keys_bytes() -> String {
    let key = format!("(?:(?:{BASE64})+(?:{BASE64_END})?|{BASE64_END})");
    format!("^{key}(?:,{key})*$")
}

pub fn position() -> String {
    format!("^{POSITION}$")
}

/// Positions of several partitions.
pub fn positions() -> String {
    format!("^{POSITION}(?:,{POSITION})*$")
}

/// The condition of a write that names a version, or any; as a header, or as a field of a line.
pub fn condition(quote: &str) -> String {
    format!(r"^(?:\*|{quote}{VERSION}{quote})$")
}

/// A UUID as records have it. Not as a format: of that, generators make a type that is no text, which no header takes.
pub fn uuid() -> String {
    "^[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$".to_owned()
}

/// Tags that the reader of something has already.
pub fn tags() -> String {
    let tag = r#"(?:W/)?"[!#-~]*""#;
    format!(r"^(?:\*|{tag}(?:, *{tag})*)$")
}

/// A time with its unit, above zero and of at most `longest`.
pub fn time(longest: Duration) -> String {
    let longest = longest.as_millis() as u64;
    let of = |(unit, ms): &(&str, u64)| format!("0*(?:{}){unit}", up_to(longest / ms));
    format!("^(?:{})$", UNITS.iter().map(of).collect::<Vec<_>>().join("|"))
}

/// The same, but zero is one too, and ms need no unit.
pub fn time_or_ms(longest: Duration) -> String {
    from_zero(longest, "(?:ms)?")
}

/// The same, but only zero needs no unit.
pub fn time_or_zero(longest: Duration) -> String {
    from_zero(longest, "ms").replace("^(?:", "^(?:0+|")
}

/// A time from zero on; `ms` is how its unit is written if that is ms.
fn from_zero(longest: Duration, ms: &str) -> String {
    let longest = longest.as_millis() as u64;
    let of = |(unit, length): &(&str, u64)| match longest / length {
        0 => format!("0+{unit}"),
        most => format!("0*(?:0|{}){}", up_to(most), if *length == 1 { ms } else { unit }),
    };
    format!("^(?:{})$", UNITS.iter().map(of).collect::<Vec<_>>().join("|"))
}

/// A time with its unit that is longer than anybody's.
pub fn any_time() -> String {
    "^0*[1-9][0-9]{0,10}(?:ms|s|m|h|d)$".to_owned()
}

/// Numbers from 1 to `most`, without leading zeros.
fn up_to(most: u64) -> String {
    let digits = most.to_string();
    let mut ways = vec![digits.clone()];
    for (at, digit) in digits.char_indices() {
        let (before, after) = (&digits[..at], digits.len() - at - 1);
        let lowest = if at == 0 { '1' } else { '0' };
        if digit > lowest {
            let below = char::from(digit as u8 - 1);
            let rest = if after == 0 { String::new() } else { format!("[0-9]{{{after}}}") };
            ways.push(format!("{before}[{lowest}-{below}]{rest}"));
        }
    }
    if digits.len() > 1 {
        ways.push(format!("[1-9][0-9]{{0,{}}}", digits.len() - 2));
    }
    ways.join("|")
}
