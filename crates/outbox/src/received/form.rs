//! A form is decoded as PHP does it, to bytes, from the body as it came.
//!
//! A framework's decoder trims, merges the query string, replaces what is not UTF-8 or keeps the first of two, and any of that
//! breaks the signature of a genuine alert.

use std::borrow::Cow;

use percent_encoding::percent_decode;

/// A field, decoded: its name and its value.
pub type Field<'b> = (Cow<'b, [u8]>, Cow<'b, [u8]>);

/// The field that is the signature over all others.
pub const SIGNATURE: &[u8] = b"p_signature";

/// The fields, sorted by name: `+` is a space, a bad escape stays as it is, a name without `=` has an empty value.
pub fn decode(body: &[u8]) -> Vec<Field<'_>> {
    let mut fields: Vec<Field<'_>> = body
        .split(|byte| *byte == b'&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let at = pair.iter().position(|byte| *byte == b'=');
            let (name, value) = at.map_or((pair, &[][..]), |at| (&pair[..at], &pair[at + 1..]));
            (decode_part(name), decode_part(value))
        })
        .collect();
    fields.sort();
    fields
}

fn decode_part(part: &[u8]) -> Cow<'_, [u8]> {
    if !part.contains(&b'+') {
        return percent_decode(part).into();
    }
    let spaced: Vec<u8> = part.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
    percent_decode(&spaced).collect::<Vec<u8>>().into()
}
