//! See `sixhop::fuzz::worker`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sixhop::fuzz::worker(bytes));
