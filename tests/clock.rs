//! The clock jumps while addresses move by it: ahead, back, and while the server is stopped.
//! libfaketime moves the server's clock. The sandbox would keep it from reading its file, so it is
//! off here; tests/vm.rs sets a guest's clock with the sandbox on.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::common;
use crate::common::server::{PATIENCE, PREFIX, Server, sixhop};
use crate::common::{TestLab, rootless, trial, wait_for_no_program};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use serde_json::Value;
use sixhop::lab::Side;
use tempfile::TempDir;

const CLIENTS: u64 = 200;

pub fn trials() -> Vec<Trial> {
    let fakes = library();
    let with_library = |name: &str, test: fn(&Path) -> Result<()>| match fakes.clone() {
        Some(library) => trial(name, move || test(&library)),
        None => rootless(name, || Ok(())).with_ignored_flag(true).with_kind("no libfaketime"),
    };
    vec![
        with_library("live_map_follows_a_clock_that_is_set", |library| {
            follows(library, "afxdp", "live-map")
        }),
        with_library("reflect_follows_a_clock_that_is_set", |library| {
            follows(library, "reflect", "live-map")
        }),
        with_library("addresses_of_the_kernel_follow_and_the_rings_too", |library| {
            follows(library, "afxdp", "netlink-batch")
        }),
        with_library("addresses_of_the_kernel_follow_and_a_socket_too", |library| {
            follows(library, "socket-gso", "netlink-batch")
        }),
        trial("a_server_that_was_stopped_says_so_and_advises_nothing_that_is_so", stopped),
    ]
}

/// From Debian's package `faketime`.
fn library() -> Option<PathBuf> {
    let name = Path::new("faketime/libfaketimeMT.so.1");
    let places = fs::read_dir("/usr/lib").ok()?.flatten().map(|entry| entry.path());
    places
        .chain([PathBuf::from("/usr/lib64")])
        .map(|place| place.join(name))
        .find(|file| file.exists())
}

/// A secret, and a file with the offset of the server's clock.
struct Files(TempDir);

impl Files {
    fn new() -> Result<Self> {
        let files = Self(tempfile::tempdir()?);
        fs::write(files.secret(), "a secret of no value, long enough")?;
        fs::set_permissions(files.secret(), fs::Permissions::from_mode(0o600))?;
        files.set(0)?;
        Ok(files)
    }

    fn secret(&self) -> PathBuf {
        self.0.path().join("secret")
    }

    fn offset(&self) -> PathBuf {
        self.0.path().join("offset")
    }

    /// Replaces the file in one step.
    fn set(&self, seconds: i64) -> Result<()> {
        let new = self.0.path().join("new");
        fs::write(&new, format!("{seconds:+}\n"))?;
        Ok(fs::rename(new, self.offset())?)
    }

    fn flags(&self, period: u64) -> String {
        format!(
            "--schedule mt6d --clients {CLIENTS} --rotate {period}s --secret {}",
            self.secret().display()
        )
    }
}

/// The result of a load by a clock that is `offset` seconds ahead.
fn load(lab: &TestLab, flags: &str, offset: i64) -> Result<Value> {
    let flags = format!(
        "load --interface client0 --prefix {PREFIX} {flags} --rate 500 --requests {CLIENTS} \
         --clock-offset {offset} --json"
    );
    let output = sixhop(lab, Side::Client, &flags).output()?;
    wait_for_no_program(lab, Side::Client)?;
    serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

/// The clock is set back and ahead, once by exactly as many steps as a table has parts. The
/// addresses of the new step are live at once, those of the old one are silent, and one line says
/// why.
fn follows(library: &Path, engine: &str, bind: &str) -> Result<()> {
    const PERIOD: u64 = 4;
    let lab = TestLab::up()?;
    let files = Files::new()?;
    let flags = files.flags(PERIOD);
    let serve = format!(
        "serve --interface server0 --prefix {PREFIX} {flags} --engine {engine} --bind {bind} \
         --no-sandbox --json"
    );
    let mut command = sixhop(&lab, Side::Server, &serve);
    command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", files.offset()).envs(
        ["NO_CACHE", "DONT_FAKE_MONOTONIC", "DISABLE_SHM"]
            .map(|name| (format!("FAKETIME_{name}"), "1")),
    );
    let mut server = Server::of(command)?;
    let first = server.ready["step"].as_u64().context("a step")?;
    server
        .wait_for(|event| event["event"] == "rotation" && event["step"].as_u64() > Some(first))?;
    let mut was = 0;
    for offset in [-120, -104, 16 * 60] {
        files.set(offset)?;
        let way = if offset < was { "back" } else { "ahead" };
        let words = format!("this machine's clock was set {way} by {}.000 s", offset.abs_diff(was));
        server.wait_for(|event| {
            let text = event["text"].as_str().unwrap_or_default();
            event["event"] == "notice"
                && text.starts_with(&words)
                && text.contains("made live at once")
        })?;
        // The kernel needs time for each address, even after it has acknowledged it.
        server.wait_for(|event| event["event"] == "rotation" && event["rotated"] == CLIENTS)?;
        let give_up = Instant::now() + PATIENCE;
        let result = loop {
            let result = load(&lab, &flags, offset)?;
            if result["complete"] == CLIENTS || Instant::now() > give_up {
                break result;
            }
        };
        ensure!(result["complete"] == CLIENTS && result["wrong_source"] == 0, "{offset}: {result}");
        let result = load(&lab, &flags, was)?;
        ensure!(result["answered"] == 0, "{was} after {offset}: {result}");
        was = offset;
    }
    let mut errors = server.child.stderr.take().context("stderr taken twice")?;
    let totals = server.stop()?;
    // If little of a step was left when the clock was set, the kernel may be too slow for it.
    ensure!(bind != "live-map" || totals["moves"]["late"] == 0, "{totals}");
    let mut said = String::new();
    errors.read_to_string(&mut said)?;
    ensure!(said.matches("this machine's clock was set").count() == 3, "{said}");
    let left = common::addresses(&lab)?;
    ensure!(left.len() == 1, "addresses are left: {left:?}");
    Ok(())
}

fn stopped() -> Result<()> {
    let lab = TestLab::up()?;
    let files = Files::new()?;
    let flags = files.flags(1);
    let mut server = Server::start(&lab, &format!("{flags} --bind live-map"))?;
    server.wait_for(|event| event["event"] == "rotation")?;
    server.signal(Signal::SIGSTOP)?;
    thread::sleep(Duration::from_millis(3500)); // three steps
    server.signal(Signal::SIGCONT)?;
    server.wait_for(|event| {
        let text = event["text"].as_str().unwrap_or_default();
        event["event"] == "notice" && text.starts_with("the server had no processor for 3.")
    })?;
    let result = load(&lab, &flags, 0)?;
    ensure!(result["complete"] == CLIENTS, "{result}");
    let mut errors = server.child.stderr.take().context("stderr taken twice")?;
    server.stop()?;
    let mut said = String::new();
    errors.read_to_string(&mut said)?;
    ensure!(!said.contains("--bind live-map") && !said.contains("this machine's clock"), "{said}");
    Ok(())
}
