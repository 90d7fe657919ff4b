//! See `sixhop::fuzz::request`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sixhop::fuzz::request(bytes));
