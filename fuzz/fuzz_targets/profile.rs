//! See `sixhop::fuzz::profile`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sixhop::fuzz::profile(bytes));
