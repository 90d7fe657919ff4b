//! Single bpf(2) calls for loaded programs: attaches one by a link, runs one on a packet.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

/// Where a tc program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TcHook {
    /// On incoming packets, before other programs.
    Ingress,
    /// On outgoing packets, after other programs: it sees packets as they leave.
    Egress,
}

/// Runs `program` on an interface until the link is dropped. Needs Linux 6.6 (tcx).
pub(crate) fn attach_tc(program: &OwnedFd, interface: u32, hook: TcHook) -> io::Result<OwnedFd> {
    let (kind, flags) = match hook {
        TcHook::Ingress => (libbpf_sys::BPF_TCX_INGRESS, libbpf_sys::BPF_F_BEFORE),
        TcHook::Egress => (libbpf_sys::BPF_TCX_EGRESS, libbpf_sys::BPF_F_AFTER),
    };
    create_link(program, interface, kind, flags)
}

pub(super) fn create_link(
    program: &OwnedFd,
    interface: u32,
    kind: u32,
    flags: u32,
) -> io::Result<OwnedFd> {
    let options = libbpf_sys::bpf_link_create_opts {
        sz: size_of::<libbpf_sys::bpf_link_create_opts>() as libbpf_sys::size_t,
        flags,
        ..Default::default()
    };
    // SAFETY: `options` is valid, has its own size, and contains no pointers.
    let fd = unsafe {
        libbpf_sys::bpf_link_create(program.as_raw_fd(), interface as i32, kind, &raw const options)
    };
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Words of `struct __sk_buff` (linux/bpf.h), with some to spare for those that kernels add, and
/// which of them are `mark` and `ifindex`.
const SK_BUFF: usize = 64;
const MARK: usize = 2;
const IFINDEX: usize = 10;

/// The result of a run.
#[derive(Debug)]
pub(crate) struct ProgramRun {
    /// What it returned.
    pub action: u32,
    pub packet: Vec<u8>,
    /// The mark that a tc program left on it.
    pub mark: u32,
    /// The mean of a run.
    pub duration: Duration,
}

/// Runs `program` on `packet` (BPF_PROG_TEST_RUN) `repeat` times, the packet as the run before left
/// it. For a tc program, the packet comes in on `interface`.
pub(crate) fn run(
    program: &OwnedFd,
    packet: &[u8],
    repeat: u32,
    interface: Option<u32>,
) -> Result<ProgramRun> {
    let mut after = vec![0; packet.len() + 256];
    let mut context = [0u32; SK_BUFF];
    let mut run = libbpf_sys::bpf_test_run_opts {
        sz: size_of::<libbpf_sys::bpf_test_run_opts>() as libbpf_sys::size_t,
        data_in: packet.as_ptr().cast(),
        data_size_in: packet.len() as u32,
        data_out: after.as_mut_ptr().cast(),
        data_size_out: after.len() as u32,
        repeat: repeat as i32,
        ..Default::default()
    };
    if let Some(interface) = interface {
        context[IFINDEX] = interface;
        run.ctx_in = (&raw const context).cast();
        run.ctx_size_in = size_of_val(&context) as u32;
        run.ctx_out = (&raw mut context).cast();
        run.ctx_size_out = size_of_val(&context) as u32;
    }
    // SAFETY: packets and context are valid for the sizes given with them.
    let result = unsafe { libbpf_sys::bpf_prog_test_run_opts(program.as_raw_fd(), &raw mut run) };
    if result < 0 {
        let error = anyhow!(io::Error::from_raw_os_error(-result));
        return Err(error).context("BPF_PROG_TEST_RUN failed");
    }
    after.truncate(run.data_size_out as usize);
    Ok(ProgramRun {
        action: run.retval,
        packet: after,
        mark: context[MARK],
        duration: Duration::from_nanos(run.duration.into()),
    })
}
