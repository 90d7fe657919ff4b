//! What the tests in this folder share: the reason why a test cannot run, and a lab for each test.
//!
//! ```text
//!   namespace tPID-N-client                  namespace tPID-N-server
//!   client0  2001:db8:1::1/64  ═══ veth ═══  server0  2001:db8:1::2/64
//! ```
//!
//! Every test makes its own lab and takes it down, so tests and whole runs can go in parallel. The
//! next run removes what a killed run left.

#![allow(dead_code)] // tests/vm.rs uses its share of it

pub mod packet;
pub mod server;

use std::collections::HashSet;
use std::net::Ipv6Addr;
use std::ops::Deref;
use std::panic::Location;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use server::PATIENCE;
use sixhop::lab::{Lab, Side};
use sixhop::net::netlink;
use sixhop::xdp::{AttachRequest, Attachment, Program, ProgramConfig};

/// Tests that run at a time, per processor.
const THREADS: usize = 2;

/// Whether this runs as root.
pub fn root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A test that needs root. Without root it is reported as ignored, not as passed.
#[track_caller]
pub fn trial(name: &str, test: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
    let trial = rootless(name, test).with_ignored_flag(!root());
    if root() { trial } else { trial.with_kind("needs root") }
}

/// A test that needs no privileges. Its name begins with that of its source file. With
/// `SIXHOP_TIMES` set, it prints how long it took.
#[track_caller]
pub fn rootless(name: &str, test: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
    let file = Path::new(Location::caller().file()).file_stem().unwrap_or_default();
    let name = format!("{}::{name}", file.to_string_lossy());
    Trial::test(name.clone(), move || {
        let start = Instant::now();
        let done = test().map_err(|error| Failed::from(format!("{error:#}")));
        if std::env::var_os("SIXHOP_TIMES").is_some() {
            eprintln!("{:6.2} s {name}", start.elapsed().as_secs_f64());
        }
        done
    })
}

/// Runs the tests that the command line selects: first those that may run in parallel, then those
/// that others would disturb, one at a time. Most tests mostly wait, so more run than there are
/// processors.
pub fn main(beside: Vec<Trial>, alone: Vec<Trial>) -> ExitCode {
    let arguments = Arguments::from_args();
    if root() && !arguments.list {
        sweep();
    }
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let threads = arguments.test_threads.unwrap_or(THREADS * processors);
    let mut failed = false;
    for (trials, threads) in [(beside, threads), (alone, 1)] {
        let arguments = Arguments { test_threads: Some(threads), ..arguments.clone() };
        if trials.is_empty() {
            continue;
        }
        if libtest_mimic::run(&arguments, trials).has_failed() {
            failed = true;
        }
    }
    if failed { ExitCode::from(101) } else { ExitCode::SUCCESS }
}

/// A test's own lab, not up yet. Dropping it takes the lab down.
pub struct TestLab(Lab);

impl TestLab {
    pub fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        Ok(Self(Lab::named(&format!("t{}-{number}", std::process::id()))?))
    }

    /// A lab that is up, with one queue per interface.
    pub fn up() -> Result<Self> {
        let lab = Self::new()?;
        lab.0.up(1)?;
        Ok(lab)
    }
}

impl Deref for TestLab {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        &self.0
    }
}

impl Drop for TestLab {
    fn drop(&mut self) {
        if let Err(error) = self.0.down() {
            eprintln!("lab {} stays: {error:#}", self.0.name());
        }
    }
}

/// Runs `ip` with these space-separated arguments.
pub fn ip(arguments: &str) -> Result<()> {
    let output = Command::new("ip").args(arguments.split_whitespace()).output()?;
    ensure!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// Makes the client's end poll for packets (NAPI), by attaching an XDP program that passes
/// everything. A veth takes frames that XDP redirects into it only if the other end polls. A client
/// with plain sockets does not.
pub fn have_client_poll(lab: &Lab) -> Result<Attachment> {
    let config = ProgramConfig {
        port: 0,
        addresses: 1,
        queues: 1,
        hidden: false,
        moving: None,
        reflect: None,
        screen: None,
    };
    lab.run_in(Side::Client, || {
        let client = netlink::link(Side::Client.interface())?;
        Program::load(&config)?.attach(&client, AttachRequest::Native)
    })
}

/// Waits until no XDP program is attached: the kernel may detach it after the close returns.
pub fn wait_for_no_program(lab: &Lab, side: Side) -> Result<()> {
    let give_up = Instant::now() + PATIENCE;
    while link(lab, side)?.xdp.is_some() {
        ensure!(Instant::now() < give_up, "the program stays attached");
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// The server's addresses, without the link-local one: the kernel makes a new one whenever the link
/// is set up.
pub fn addresses(lab: &Lab) -> Result<HashSet<Ipv6Addr>> {
    let addresses =
        lab.run_in(Side::Server, || netlink::addresses(netlink::link("server0")?.index))?;
    let addresses = addresses.into_iter().map(|address| address.ip);
    Ok(addresses.filter(|address| !address.is_unicast_link_local()).collect())
}

pub fn link(lab: &Lab, side: Side) -> Result<netlink::Link> {
    lab.run_in(side, || netlink::link(side.interface()))
}

/// Resolves `address` from the client.
pub fn resolve(lab: &Lab, address: Ipv6Addr) -> Result<[u8; 6]> {
    lab.run_in(Side::Client, || {
        let client = netlink::link("client0")?;
        netlink::resolve(client.index, address, Duration::from_secs(10))
    })
}

pub fn fails_with<T>(result: Result<T>, wanted: &str) -> Result<()> {
    match result {
        Ok(_) => bail!("succeeded, should have failed with '{wanted}'"),
        Err(error) => {
            let text = format!("{error:#}");
            ensure!(text.contains(wanted), "failed with '{text}', not '{wanted}'");
            Ok(())
        }
    }
}

/// Removes the labs of test runs that have ended.
fn sweep() {
    let Ok(entries) = std::fs::read_dir("/run/netns") else {
        return;
    };
    for namespace in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let Some((lab, _side)) = namespace.rsplit_once('-') else {
            continue;
        };
        let Some((pid, _number)) = lab.strip_prefix('t').and_then(|rest| rest.split_once('-'))
        else {
            continue;
        };
        let is_dead = pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists();
        if is_dead && Lab::named(lab).and_then(|lab| lab.down()).is_err() {
            // Not a whole lab: a test left a namespace that a lab must refuse.
            let _ = ip(&format!("netns delete {namespace}"));
        }
    }
}
