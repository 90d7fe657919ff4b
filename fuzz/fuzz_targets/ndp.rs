//! See `sixhop::fuzz::ndp`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sixhop::fuzz::ndp(bytes));
