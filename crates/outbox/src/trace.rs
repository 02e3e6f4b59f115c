//! Where an alert's trace goes on: the `traceparent` of W3C Trace Context (www.w3.org/TR/trace-context), version 00.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// One span of a trace, as whoever comes next is told of it. Ids alone: it says nothing about anybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    trace: [u8; 16],
    span: [u8; 8],
    flags: u8,
}

/// It is no `traceparent`, and a new trace begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent")]
pub struct NotATraceParent;

impl TraceParent {
    /// Recorded by whoever exports.
    const SAMPLED: u8 = 1;

    pub fn new(trace: [u8; 16], span: [u8; 8], flags: u8) -> Self {
        Self { trace, span, flags }
    }

    /// The beginning of a trace.
    #[must_use]
    pub fn begin() -> Self {
        Self { trace: Uuid::new_v4().into_bytes(), span: span_id(), flags: Self::SAMPLED }
    }

    /// A new span of the same trace.
    #[must_use]
    pub fn child(self) -> Self {
        Self { span: span_id(), ..self }
    }

    pub fn trace(&self) -> [u8; 16] {
        self.trace
    }

    pub fn span(&self) -> [u8; 8] {
        self.span
    }

    pub fn flags(&self) -> u8 {
        self.flags
    }

    /// As logs have it.
    pub fn trace_id(&self) -> String {
        hex_of(&self.trace)
    }
}

/// Eight random bytes, never all zero: the first two bits of this half of a random UUID are its variant, 10.
fn span_id() -> [u8; 8] {
    let [.., a, b, c, d, e, f, g, h] = Uuid::new_v4().into_bytes();
    [a, b, c, d, e, f, g, h]
}

fn hex_of(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        text.push(char::from(b"0123456789abcdef"[usize::from(byte >> 4)]));
        text.push(char::from(b"0123456789abcdef"[usize::from(byte & 15)]));
        text
    })
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-{:02x}", hex_of(&self.trace), hex_of(&self.span), self.flags)
    }
}

impl FromStr for TraceParent {
    type Err = NotATraceParent;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        /// Lower case alone is allowed.
        fn hex<const N: usize>(text: &str) -> Result<[u8; N], NotATraceParent> {
            let digit = |byte: u8| match byte {
                b'0'..=b'9' => Ok(byte - b'0'),
                b'a'..=b'f' => Ok(byte - b'a' + 10),
                _ => Err(NotATraceParent),
            };
            let mut bytes = [0; N];
            if text.len() != 2 * N {
                return Err(NotATraceParent);
            }
            for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
                *byte = digit(pair[0])? << 4 | digit(pair[1])?;
            }
            Ok(bytes)
        }
        let mut parts = text.splitn(5, '-');
        let mut part = || parts.next().ok_or(NotATraceParent);
        let ([version], trace, span, [flags]) = (hex(part()?)?, hex(part()?)?, hex(part()?)?, hex(part()?)?);
        // A later version may go on behind; of it we know this much.
        let is_known = version != 0xff && (version != 0 || parts.next().is_none());
        if !is_known || trace == [0; 16] || span == [0; 8] {
            return Err(NotATraceParent);
        }
        Ok(Self { trace, span, flags: flags & Self::SAMPLED })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_traceparent_is() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let parsed: TraceParent = good.parse().unwrap();
        assert_eq!(parsed.to_string(), good);
        assert_eq!(parsed.trace_id(), "0af7651916cd43dd8448eb211c80319c");
        let later = "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more".parse();
        assert_eq!(later, Ok(parsed));
        for bad in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319-cb7ad6b7169203331-01",
            "00-ann@example.com43dd8448eb211c80-b7ad6b7169203331-01",
        ] {
            assert_eq!(bad.parse::<TraceParent>(), Err(NotATraceParent), "{bad}");
        }
    }

    #[test]
    fn a_child_is_of_the_same_trace() {
        let begun = TraceParent::begin();
        let child = begun.child();
        assert_eq!((begun.trace(), begun.flags()), (child.trace(), child.flags()));
        assert_ne!(begun.span(), child.span());
        assert_ne!(begun.trace(), TraceParent::begin().trace());
        assert_eq!(child.to_string().parse(), Ok(child));
        assert_eq!(child.to_string().len(), 55);
    }
}
