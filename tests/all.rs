//! Every test that starts `sixhop` or makes networks, in one program: linking a file takes a
//! second, linking a program ten. Tests in guests have a program of their own (tests/vm.rs).
//!
//! `cargo test --test all -- serve::` runs the tests of tests/serve.rs.

#![allow(clippy::too_many_lines, reason = "tables of cases, and long lives of one server")]

mod common;

mod bind;
mod causes;
mod changes;
mod clock;
mod conformance;
mod dns;
mod faults;
mod gate;
mod granted;
mod identity;
mod lab;
mod lines;
mod links;
mod measure;
mod modes;
mod neighbour;
mod operations;
mod packets;
mod privilege;
mod probe;
mod program;
mod rotation;
mod serve;
mod services;
mod silence;
mod soak;
mod steady;
mod supply;
mod unit;
mod values;

use std::process::ExitCode;

fn main() -> ExitCode {
    bind::child();
    causes::child();
    privilege::child();
    services::child();
    let beside = [
        bind::trials(),
        causes::trials(),
        changes::trials(),
        clock::trials(),
        conformance::trials(),
        dns::trials(),
        faults::trials(),
        gate::trials(),
        granted::trials(),
        identity::trials(),
        lab::trials(),
        lines::trials(),
        links::trials(),
        measure::trials(),
        modes::trials(),
        operations::trials(),
        packets::trials(),
        privilege::trials(),
        probe::trials(),
        program::trials(),
        rotation::trials(),
        serve::trials(),
        services::trials(),
        silence::trials(),
        soak::trials(),
        supply::trials(),
        unit::trials(),
        values::trials(),
    ];
    // The results of these depend on how busy the machine is.
    let alone = [dns::alone(), measure::alone(), neighbour::trials(), steady::trials()];
    common::main(beside.into_iter().flatten().collect(), alone.into_iter().flatten().collect())
}
