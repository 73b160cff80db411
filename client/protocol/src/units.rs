//! Times and sizes as people write them: in settings, on the command line and in the API.

use std::time::Duration;

/// A time with its unit: `500ms`, `30s`, `5m`, `2h` or `7d`; `0` is the same in every unit and may stand alone.
///
/// # Errors
/// Says what a time looks like, that its unit is missing, or that it is too long.
pub fn duration(text: &str) -> Result<Duration, String> {
    let is_bare = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_bare && text.bytes().any(|byte| byte != b'0') {
        // Others count in seconds, and a record's times are in ms: either guess would be wrong for somebody.
        return Err(format!("'{text}' is not a time, since its unit is missing; write {text}s or {text}ms"));
    }
    duration_or_ms(text).map_err(|error| error.replace(NUMBER_OF_MS, ""))
}

const NUMBER_OF_MS: &str = ", or a number of ms";

/// As [`duration`], but a number without a unit counts ms: for the settings of a node, some of which have always been given so.
///
/// # Errors
/// Says what a time looks like, or that it is too long.
pub fn duration_or_ms(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is not a time such as 500ms, 30s, 5m, 2h or 7d{NUMBER_OF_MS}");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
    let unit = match &text[digits..] {
        "" | "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    // The log counts ms in 63 bits.
    let ms = number.checked_mul(unit).filter(|ms| i64::try_from(*ms).is_ok());
    ms.map(Duration::from_millis).ok_or_else(|| format!("'{text}' is too long a time"))
}

/// As [`duration`], but not zero.
///
/// # Errors
/// As [`duration`]; or that it must be above 0.
pub fn positive_duration(text: &str) -> Result<Duration, String> {
    duration(text).and_then(positive)
}

/// As [`duration_or_ms`], but not zero.
///
/// # Errors
/// As [`duration_or_ms`]; or that it must be above 0.
pub fn positive_duration_or_ms(text: &str) -> Result<Duration, String> {
    duration_or_ms(text).and_then(positive)
}

fn positive(time: Duration) -> Result<Duration, String> {
    if time.is_zero() { Err("it must be above 0".to_owned()) } else { Ok(time) }
}

/// A size in bytes: `1000`, `64KiB`, `256MiB`, `1GiB` (also `K`, `M`, `G`).
///
/// # Errors
/// Says what a size looks like, or that it is too large.
pub fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("'{text}' is not a size such as 1000, 64KiB, 256MiB or 1GiB");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
    let shift = match text[digits..].trim() {
        "" | "B" => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        _ => return Err(wrong()),
    };
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes() {
        assert_eq!(duration_or_ms("250"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7_200)));
        assert_eq!(bytes("64KiB"), Ok(65_536));
        for wrong in ["", "ms", "1 s", "-1s", "1.5s", "1w", "99999999999999999999", "999999999999999d", "٣s"]
        {
            assert!(duration(wrong).is_err(), "{wrong:?} was accepted");
            assert!(duration_or_ms(wrong).is_err(), "{wrong:?} was accepted");
        }
        assert!(positive_duration("0").is_err());
        for wrong in ["", "KiB", "-1", "1.5MiB", "1TiB", "99999999999999999999", "99999999999999G"] {
            assert!(bytes(wrong).is_err(), "{wrong:?} was accepted");
        }
    }

    #[test]
    fn a_time_without_its_unit_is_refused() {
        for number in ["60", "1", "007", "99999999999999999999"] {
            let error = duration(number).expect_err(number);
            assert!(error.contains(&format!("{number}s or {number}ms")), "{error}");
            assert_eq!(positive_duration(number), Err(error));
        }
        assert_eq!((duration("0"), duration("0s")), (Ok(Duration::ZERO), Ok(Duration::ZERO)));
        assert_eq!(positive_duration("0"), Err("it must be above 0".to_owned()));
        let error = duration("soon").expect_err("no time");
        assert!(error.ends_with("5m, 2h or 7d"), "{error}");
    }
}
