//! Figure 1: what it takes to compute, bind and unbind n addresses.

use super::machine;
use crate::engine::Totals;
use crate::report::{BindResult, Ready};

/// What a server's addresses took, from what it said when they were live and when they were taken back.
#[must_use]
pub fn bound(ready: &Ready, totals: &Totals) -> BindResult {
    let count = ready.addresses as f64;
    let each = |seconds: f64| seconds * 1e9 / count;
    let unbind_seconds = totals.unbind.seconds();
    BindResult {
        method: ready.bind,
        addresses: ready.addresses,
        generate_ns: each(ready.generate_seconds),
        bind_ns: each(ready.bind_seconds),
        unbind_ns: each(unbind_seconds),
        seconds: ready.generate_seconds + ready.bind_seconds + unbind_seconds,
        bytes_per_address: ready.kernel_memory.map(|kernel| (kernel + ready.process_memory) as f64 / count),
        bind_phases: ready.bind_phases.clone(),
        unbind_phases: totals.unbind.clone(),
        interface: ready.interface.clone(),
        driver: ready.driver.clone(),
        kernel: machine::kernel(),
        cpu: machine::processor(),
    }
}
