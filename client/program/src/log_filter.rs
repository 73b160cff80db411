//! Filters of log lines, as both programs take them.

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// A level, or directives such as `info,bitacora_node=debug`, for `tracing_subscriber`'s `EnvFilter`.
///
/// # Errors
/// When a directive without `=` is no level. The filter would take it for the name of a target, so a level that is misspelt would
/// silence all others.
pub fn log_filter(text: &str) -> Result<String, String> {
    for directive in text.split(',').map(str::trim) {
        let is_level = LEVELS.iter().any(|level| level.eq_ignore_ascii_case(directive));
        if !is_level && !directive.contains(['=', '[', ']', '{', '}']) {
            return Err(format!(
                "'{directive}' is no level (off, error, warn, info, debug, trace), and no filter such as info,bitacora_node=debug"
            ));
        }
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_level_is_refused() {
        for good in
            ["info", "WARN", "info,bitacora_node=debug", "off, hyper=trace", "[request{id=1,a=2}]=debug"]
        {
            assert_eq!(log_filter(good), Ok(good.to_owned()));
        }
        for wrong in ["wran", "", "info,", "bitacora_node", "info,debg"] {
            assert!(log_filter(wrong).expect_err(wrong).contains("is no level"), "{wrong}");
        }
    }
}
