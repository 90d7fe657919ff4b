//! See `sixhop::fuzz::results`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sixhop::fuzz::results(bytes));
