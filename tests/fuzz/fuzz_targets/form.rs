#![no_main]

#[allow(dead_code, reason = "each target checks one of them")]
#[path = "../properties.rs"]
mod properties;

libfuzzer_sys::fuzz_target!(|input: &[u8]| properties::form(input));
