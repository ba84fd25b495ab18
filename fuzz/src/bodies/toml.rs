//! Files of keys and values, written by a program: most of them right.

use super::input::Input;

/// A key, and what may stand there, as it is written.
pub type Key = (&'static str, &'static [&'static str]);

/// The keys of a VM's allocation.
pub const ALLOCATION: &[Key] = &[
    ("memory", SIZES),
    ("reservation", SMALL),
    ("limit", SIZES),
    (
        "shares",
        &["0", "1", "'high'", "'low'", "1000000000", "1000000001"],
    ),
    ("dynamic_min", SMALL),
    ("dynamic_max", SIZES),
];
/// What a VM may have, and a host.
pub const SIZES: &[&str] = &[
    "'64M'",
    "'128M'",
    "'256MiB'",
    "134217728",
    "'48M'",
    "'1G'",
    "'32768k'",
    "'512G'",
    "'1M'",
];
/// Parts of that.
pub const SMALL: &[&str] = &["0", "'4k'", "'1M'", "'16M'", "'32M'", "'64M'", "8192"];
/// Times of some steps.
pub const TIMES: &[&str] = &[
    "'0s'", "'100ms'", "'300ms'", "'1s'", "'2s'", "'50ms'", "'24h'",
];

/// Whether an input is such a program; the others are text.
pub fn is_program(data: &[u8]) -> bool {
    data.first().is_some_and(|first| !first.is_ascii())
}

/// Writes some of the keys, none of them twice; one in eight has any value.
pub fn write(text: &mut String, keys: &[Key], input: &mut Input<'_>) {
    let mut unused = keys.to_vec();
    for _ in 0..input.below(6) {
        if unused.is_empty() {
            return;
        }
        let (key, values) = unused.remove(usize::from(input.u8()) % unused.len());
        let value = match input.u8() {
            0..=7 => format!("{:?}", String::from_utf8_lossy(input.bytes(6))),
            8..=15 => input.number(1 << 28).to_string(),
            16..=19 => format!("'{}M'", input.number(1 << 9)),
            20..=23 => format!("'{}ms'", input.number(1000)),
            24 => "[1, {}]".to_owned(),
            other => values[usize::from(other) % values.len()].to_owned(),
        };
        text.push_str(&format!("{key} = {value}\n"));
    }
}
