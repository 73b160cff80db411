//! The W3C `traceparent`: of which trace, and which span of it, something is a part.
//! <https://www.w3.org/TR/trace-context/#traceparent-header>

use std::fmt;

use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

/// A `traceparent`, as it comes with HTTP requests and is kept in the log's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    trace: [u8; 16],
    span: [u8; 8],
    flags: u8,
}

impl TraceParent {
    /// Name of the HTTP header, and of the Kafka header.
    pub const HEADER: &str = "traceparent";
    /// Bytes of [`TraceParent::to_bytes`].
    pub const BYTES: usize = 25;

    /// Reads `version-trace-span-flags`. `None` if it is malformed, or its trace or span is 0. What a later version adds
    /// behind the flags is ignored, as the standard has it.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let (head, rest) = text.split_at_checked(55)?;
        let version = hex::<1>(head.get(..2)?)?[0];
        let well_formed = match version {
            0 => rest.is_empty(),
            0xff => false,
            _ => rest.first().is_none_or(|next| *next == b'-'),
        };
        let dashes = [2, 35, 52].iter().all(|at| head.get(*at) == Some(&b'-'));
        let trace = hex(head.get(3..35)?)?;
        let span = hex(head.get(36..52)?)?;
        let [flags] = hex(head.get(53..55)?)?;
        let known = trace != [0; 16] && span != [0; 8];
        (well_formed && dashes && known).then_some(Self { trace, span, flags })
    }

    /// Trace, span and flags.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..16].copy_from_slice(&self.trace);
        bytes[16..24].copy_from_slice(&self.span);
        bytes[24] = self.flags;
        bytes
    }

    /// The inverse of [`TraceParent::to_bytes`].
    #[must_use]
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        let (trace, rest) = bytes.split_first_chunk()?;
        let (span, flags) = rest.split_first_chunk()?;
        Some(Self { trace: *trace, span: *span, flags: *flags.first()? })
    }

    /// Whether who began the trace wants it to be recorded.
    #[must_use]
    pub fn is_sampled(self) -> bool {
        self.flags & 1 == 1
    }

    pub(super) fn of(context: &SpanContext) -> Self {
        Self {
            trace: context.trace_id().to_bytes(),
            span: context.span_id().to_bytes(),
            flags: context.trace_flags().to_u8(),
        }
    }

    pub(super) fn context(self) -> SpanContext {
        let (trace, span) = (TraceId::from_bytes(self.trace), SpanId::from_bytes(self.span));
        SpanContext::new(trace, span, TraceFlags::new(self.flags & 1), true, TraceState::default())
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (trace, span) = (u128::from_be_bytes(self.trace), u64::from_be_bytes(self.span));
        write!(out, "00-{trace:032x}-{span:016x}-{:02x}", self.flags)
    }
}

/// Lower-case hexadecimal digits; others are malformed.
fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    if text.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    proptest! {
        #[test]
        fn any_text_is_read_or_ignored(text: Vec<u8>, like in "[0-9a-g]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-x)?") {
            let _ = TraceParent::parse(&text);
            if let Some(parent) = TraceParent::parse(like.as_bytes()) {
                prop_assert_eq!(&parent.to_string()[2..], &like[2..55]);
                prop_assert_eq!(TraceParent::parse(parent.to_string().as_bytes()), Some(parent));
                prop_assert_eq!(TraceParent::from_bytes(&parent.to_bytes()), Some(parent));
                prop_assert_eq!(TraceParent::of(&parent.context()).trace, parent.trace);
            }
        }
    }

    #[test]
    fn the_standards_example_is_read() {
        let parent = TraceParent::parse(EXAMPLE.as_bytes()).expect("well formed");
        assert!(parent.is_sampled());
        assert_eq!(parent.to_string(), EXAMPLE);
        let later = EXAMPLE.replace("00-4", "01-4") + "-more";
        assert_eq!(TraceParent::parse(later.as_bytes()), Some(parent));
    }

    #[test]
    fn what_is_malformed_is_ignored() {
        let (zero, upper) = ("0".repeat(32), EXAMPLE.to_uppercase());
        for text in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            &EXAMPLE.replace("00-4", "ff-4"),
            &EXAMPLE.replace("4bf92f3577b34da6a3ce929d0e0e4736", &zero),
            &EXAMPLE.replace("00f067aa0ba902b7", &zero[..16]),
            &EXAMPLE.replace("-01", "_01"),
            &format!("{EXAMPLE}-more"),
            &upper,
        ] {
            assert_eq!(TraceParent::parse(text.as_bytes()), None, "{text}");
        }
    }
}
