//! Which privileges a server needs, and which it keeps once it answers. Each test has a lab of its
//! own (see `common`).
//!
//! | test | what is tried |
//! |---|---|
//! | `each_engine_*` | another user with the unit file's capabilities and filter, or one less |
//! | `threads_*` | `/proc/PID/task/*/status` of a server of each engine, sandboxed or not |
//! | `addresses_are_taken_back_*` | each binder, from within the sandbox |
//! | `a_call_*` | a thread that makes a system call outside its list |

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::server::{PATIENCE, PREFIX, SIXHOP, Server, about, engines, sixhop};
use crate::common::{TestLab, addresses, trial};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use nix::sys::resource::{Resource, setrlimit};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use serde_json::Value;
use sixhop::host::sandbox::{Role, Sandbox, UNIT_CAPABILITIES, unit_calls};
use sixhop::lab::Side;

/// First arguments that make this program do something other than run tests.
const AS_UNIT: &str = "--as-unit";
const VIOLATE: &str = "--violate";

/// Runs instead of the tests if a test of this file started this process.
pub fn child() {
    let arguments: Vec<_> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some(AS_UNIT) => as_unit(&arguments[2..]),
        Some(VIOLATE) => violate(&arguments[2]),
        _ => {}
    }
}

pub fn trials() -> Vec<Trial> {
    vec![
        trial(
            "each_engine_answers_with_its_capabilities",
            each_engine_answers_with_its_capabilities,
        ),
        trial("each_capability_that_is_missing_is_named", each_capability_that_is_missing_is_named),
        trial("too_little_memory_that_may_be_locked_is_named", too_little_locked_memory),
        trial("threads_have_what_they_need_and_no_more", threads_have_what_they_need),
        trial("without_a_sandbox_nothing_is_given_up", without_a_sandbox),
        trial("addresses_are_taken_back_out_of_the_sandbox", addresses_are_taken_back),
        trial("a_call_that_is_not_on_the_list_ends_the_process", a_call_that_is_not_on_the_list),
    ]
}

/// Environment variable with the KiB that a command run by [`as_unit`] may lock.
const LOCKED: &str = "SIXHOP_TEST_LOCKED_KIB";

/// Runs a command under the unit file's system call filter.
fn as_unit(command: &[String]) -> ! {
    if let Ok(kib) = std::env::var(LOCKED) {
        let bytes = kib.parse::<u64>().unwrap() << 10;
        setrlimit(Resource::RLIMIT_MEMLOCK, bytes, bytes).unwrap();
    }
    let rules: BTreeMap<_, _> =
        unit_calls().into_iter().map(|(_, number)| (number, vec![])).collect();
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    let architecture = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, refuse, SeccompAction::Allow, architecture).unwrap();
    seccompiler::apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
    panic!("{}", Command::new(&command[0]).args(&command[1..]).exec());
}

/// Enters the named role on a thread, then makes a system call that no role allows.
fn violate(role: &str) -> ! {
    let role = Role::ALL.into_iter().find(|known| known.name() == role).unwrap();
    let thread = thread::spawn(move || {
        let sandbox = Sandbox::new(true);
        sandbox.enter(role).unwrap();
        println!("entered");
        let _ = nix::unistd::chroot("/");
        println!("went on");
    });
    let _ = thread.join();
    std::process::exit(0)
}

/// Executables that every user may run, deleted on drop.
struct Programs(PathBuf);

impl Programs {
    fn new(name: &str) -> Result<Self> {
        let directory = std::env::temp_dir().join(format!("sixhop-{name}-{}", std::process::id()));
        fs::create_dir_all(&directory)?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
        fs::copy(SIXHOP, directory.join("sixhop"))?;
        fs::copy(std::env::current_exe()?, directory.join("test"))?;
        Ok(Self(directory))
    }

    /// `sixhop` with these arguments on one side of the lab, as another user, with exactly these
    /// capabilities.
    fn run(&self, lab: &TestLab, side: Side, capabilities: &[&str], arguments: &str) -> Command {
        let names: Vec<_> = capabilities
            .iter()
            .map(|name| format!("+{}", &name["CAP_".len()..].to_lowercase()))
            .collect();
        let list = std::iter::once("-all".to_owned()).chain(names).collect::<Vec<_>>().join(",");
        let mut command = Command::new(SIXHOP);
        command.args(["lab", "--name", lab.name(), "exec", &side.to_string(), "--", "setpriv"]);
        // A user may by default lock only enough for one queue's frames, and the kernel unlocks
        // them late. So each command gets a user of its own.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let user =
            100_000 + 100 * (std::process::id() % 100_000) + COUNT.fetch_add(1, Ordering::Relaxed);
        command.args([format!("--reuid={user}"), format!("--regid={user}")]);
        command.args(["--clear-groups", "--no-new-privs"]);
        command.args([format!("--inh-caps={list}"), format!("--ambient-caps={list}")]);
        command.arg(format!("--bounding-set={list}"));
        command.arg(self.0.join("test")).arg(AS_UNIT).arg(self.0.join("sixhop"));
        command.args(arguments.split_whitespace());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn serve(flags: &str) -> String {
    format!("serve --interface server0 --json --prefix {PREFIX} --addresses 20 {flags}")
}

/// The capabilities that an engine needs. It does not start if one is missing.
fn needed(engine: &str) -> &'static [&'static str] {
    about(engine).capabilities
}

/// Adds CAP_IPC_LOCK in place of the unit's LimitMEMLOCK, since a limit cannot be raised
/// everywhere.
fn with_memory<'a>(capabilities: &[&'a str]) -> Vec<&'a str> {
    [capabilities, &["CAP_IPC_LOCK"]].concat()
}

fn ask(lab: &TestLab) -> Result<()> {
    let flags = format!(
        "load --interface client0 --prefix {PREFIX} --addresses 20 --json --rate 200 --requests 40"
    );
    let output = sixhop(lab, Side::Client, &flags).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    complete(&output.stdout)
}

fn complete(line: &[u8]) -> Result<()> {
    let result: Value = serde_json::from_slice(line)?;
    ensure!(result["complete"] == 40 && result["replies"] == 400, "{result}");
    Ok(())
}

fn each_engine_answers_with_its_capabilities() -> Result<()> {
    let programs = Programs::new("capable")?;
    for engine in engines() {
        let lab = TestLab::up()?;
        for bind in ["netlink", "live-map"] {
            if bind == "live-map" && !about(engine).steers {
                continue;
            }
            // With live-map, rings answer neighbour discovery.
            let capabilities =
                if bind == "live-map" { &UNIT_CAPABILITIES[..] } else { needed(engine) };
            let capabilities = with_memory(capabilities);
            let flags = serve(&format!("--engine {engine} --bind {bind}"));
            let server = Server::of(programs.run(&lab, Side::Server, &capabilities, &flags));
            let server = server.with_context(|| format!("{engine} {bind}"))?;
            ensure!(server.ready["sandbox"] == true, "{}", server.ready);
            ask(&lab).with_context(|| format!("{engine} {bind}"))?;
            server.stop().with_context(|| format!("{engine} {bind}"))?;
            let left = addresses(&lab)?.len();
            ensure!(left == 1, "{engine} {bind}: {left} addresses");
        }
    }
    // The generator works unprivileged too.
    let lab = TestLab::up()?;
    let server = Server::start(&lab, "--addresses 20")?;
    let flags = format!(
        "load --interface client0 --prefix {PREFIX} --addresses 20 --json --rate 200 --requests 40"
    );
    let output =
        programs.run(&lab, Side::Client, &with_memory(&UNIT_CAPABILITIES), &flags).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    complete(&output.stdout)?;
    server.stop()?;
    Ok(())
}

fn each_capability_that_is_missing_is_named() -> Result<()> {
    let programs = Programs::new("incapable")?;
    let lab = TestLab::up()?;
    for engine in ["afxdp", "reflect", "socket-gso", "raw"] {
        for missing in needed(engine) {
            let others: Vec<_> =
                needed(engine).iter().filter(|name| *name != missing).copied().collect();
            let flags = serve(&format!("--engine {engine}"));
            let output = programs.run(&lab, Side::Server, &others, &flags).output()?;
            let words = String::from_utf8(output.stderr)?;
            ensure!(
                output.status.code() == Some(1) && output.stdout.is_empty(),
                "{engine} {missing}: {words}"
            );
            ensure!(
                words.lines().count() == 1 && words.contains(missing),
                "{engine} {missing}: {words}"
            );
        }
    }
    // `probe` names the missing capabilities, and the line that grants them.
    let output = programs
        .run(&lab, Side::Server, &["CAP_NET_ADMIN", "CAP_BPF"], "probe server0 --json")
        .output()?;
    let probe: Value = serde_json::from_slice(&output.stdout)?;
    let obstacle = &probe["verdict"]["obstacles"][0];
    ensure!(obstacle["why"] == "this process lacks CAP_NET_RAW, CAP_PERFMON", "{obstacle}");
    ensure!(
        obstacle["cure"].as_str().is_some_and(|cure| cure.contains("setcap cap_net_admin,")),
        "{obstacle}"
    );
    ensure!(addresses(&lab)?.len() == 1, "addresses remain");
    Ok(())
}

/// A queue's frames take 8 MiB in copy mode, and more while zero-copy is tried.
fn too_little_locked_memory() -> Result<()> {
    let programs = Programs::new("unlocked")?;
    let lab = TestLab::up()?;
    let locking = |kib: &str, arguments: &str| {
        let mut command = programs.run(&lab, Side::Server, needed("afxdp"), arguments);
        command.env(LOCKED, kib);
        command
    };
    let obstacles = |kib: &str| -> Result<Value> {
        let output = locking(kib, "probe server0 --json").output()?;
        Ok(serde_json::from_slice::<Value>(&output.stdout)?["verdict"]["obstacles"].take())
    };
    ensure!(obstacles("8192")? == serde_json::json!([]), "{}", obstacles("8192")?);
    let server = Server::of(locking("8192", &serve("--engine afxdp")))?;
    ensure!(server.ready["copy"] == "copy", "{}", server.ready);
    let why = server.ready["fallbacks"][0]["why"].as_str().unwrap_or_default();
    ensure!(why.contains("less may be locked (ulimit -l "), "{}", server.ready);
    ask(&lab)?;
    server.stop()?;

    let obstacles = obstacles("8191")?;
    ensure!(obstacles[0]["name"] == "locked-memory", "{obstacles}");
    let output = locking("8191", &serve("--engine afxdp --copy copy")).output()?;
    let words = String::from_utf8(output.stderr)?;
    ensure!(output.status.code() == Some(1) && words.lines().count() == 1, "{words}");
    ensure!(words.contains("ulimit -l 8192"), "{words}");
    let output = locking("8192", &serve("--engine afxdp --copy zero")).output()?;
    let words = String::from_utf8(output.stderr)?;
    ensure!(output.status.code() == Some(1) && words.contains("use --copy auto"), "{words}");
    Ok(())
}

/// The fields of /proc/PID/task/TID/status for each thread, by thread id.
pub fn threads(pid: u32) -> Result<BTreeMap<u32, BTreeMap<String, String>>> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))?;
    let status = |entry: fs::DirEntry| {
        let id = entry.file_name().to_str()?.parse().ok()?;
        let text = fs::read_to_string(entry.path().join("status")).ok()?;
        let fields = text.lines().filter_map(|line| line.split_once(':'));
        Some((id, fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()))
    };
    Ok(tasks.flatten().filter_map(status).collect())
}

/// Waits until every thread is in its final role. A worker's filters are those of main, engine and
/// worker; the last two have two parts each.
fn settled(server: &Server, workers: usize) -> Result<BTreeMap<u32, BTreeMap<String, String>>> {
    let give_up = Instant::now() + PATIENCE;
    loop {
        let threads = threads(server.child.id())?;
        let filters = |fields: &BTreeMap<String, String>| {
            fields["Seccomp_filters"].parse::<u32>().unwrap_or_default()
        };
        let depths: Vec<_> = threads.values().map(filters).collect();
        // A joined thread may take a moment to disappear.
        let confined = threads.values().all(|fields| fields["Seccomp"] == "2");
        let started = threads.len() >= workers + 2;
        if started && confined && depths.iter().filter(|depth| **depth >= 5).count() >= workers {
            return Ok(threads);
        }
        ensure!(Instant::now() < give_up, "{depths:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn threads_have_what_they_need() -> Result<()> {
    const NET_ADMIN: &str = "0000000000001000";
    const NONE: &str = "0000000000000000";
    let lab = TestLab::up()?;
    // The number of workers includes the one of the socket behind the program.
    for (flags, workers, kept) in [
        ("--engine afxdp --metrics 0", 2, NET_ADMIN),
        ("--engine afxdp --bind live-map", 3, NONE),
        ("--engine afxdp --busy-poll 50 --bind live-map", 3, NET_ADMIN),
        ("--engine reflect", 1, NET_ADMIN),
        ("--engine socket", 2, NET_ADMIN),
        ("--engine socket-batch --bind none", 1, NONE),
        ("--engine socket-batch --bind none --coalesce 50", 1, NET_ADMIN),
        ("--engine socket-gso", 1, NET_ADMIN),
        ("--engine uring", 1, NET_ADMIN),
        ("--engine raw", 2, NET_ADMIN),
        ("--engine packet-ring", 2, NET_ADMIN),
    ] {
        let flags = format!("--addresses 20 --cores 0 {flags}");
        let server = Server::start(&lab, &flags)?;
        ensure!(server.ready["sandbox"] == true, "{}", server.ready);
        let threads = settled(&server, workers)?;
        ensure!(threads.len() >= workers + 2, "{flags}: {} threads", threads.len());
        // One thread keeps the route through which the kernel delivers what the XDP program passes.
        let others = threads.iter().filter(|(id, _)| **id != server.child.id());
        let delivering = others.filter(|(_, fields)| fields["CapPrm"] == NET_ADMIN).count();
        ensure!(delivering == usize::from(flags.contains("live-map")), "{flags}: {threads:?}");
        for (id, fields) in &threads {
            let is_main = *id == server.child.id();
            let is_delivering = !is_main && fields["CapPrm"] == NET_ADMIN;
            let expected = if is_main {
                kept
            } else if is_delivering {
                NET_ADMIN
            } else {
                NONE
            };
            for set in ["CapEff", "CapPrm"] {
                ensure!(fields[set] == expected, "{flags}: thread {id} has {set} {}", fields[set]);
            }
            for set in ["CapInh", "CapAmb"] {
                ensure!(fields[set] == NONE, "{flags}: thread {id} has {set} {}", fields[set]);
            }
            ensure!(fields["Seccomp"] == "2" && fields["NoNewPrivs"] == "1", "{flags}: {fields:?}");
        }
        let limits = fs::read_to_string(format!("/proc/{}/limits", server.child.id()))?;
        let core =
            limits.lines().find(|line| line.starts_with("Max core file size")).unwrap_or_default();
        ensure!(core.split_whitespace().nth(4) == Some("0"), "{core}");
        server.stop()?;
    }
    Ok(())
}

fn without_a_sandbox() -> Result<()> {
    let lab = TestLab::up()?;
    let server = Server::start(&lab, "--addresses 20 --no-sandbox")?;
    ensure!(server.ready["sandbox"] == false, "{}", server.ready);
    for fields in threads(server.child.id())?.values() {
        ensure!(fields["Seccomp"] == "0" && fields["CapEff"] != "0000000000000000", "{fields:?}");
    }
    ask(&lab)?;
    server.stop()?;
    Ok(())
}

fn addresses_are_taken_back() -> Result<()> {
    let lab = TestLab::up()?;
    for bind in
        ["netlink", "netlink-batch", "netlink-down", "ioctl", "command", "ifconfig", "live-map"]
    {
        // So many addresses that netlink-down sets the link down to remove them.
        let server = Server::start(&lab, &format!("--addresses 300 --bind {bind}"))?;
        ensure!(server.ready["sandbox"] == true, "{}", server.ready);
        let expected = if bind == "live-map" { 1 } else { 301 };
        ensure!(addresses(&lab)?.len() == expected, "{bind}: {} addresses", addresses(&lab)?.len());
        server.stop().with_context(|| bind.to_owned())?;
        ensure!(addresses(&lab)?.len() == 1, "{bind}: addresses remain");
    }
    Ok(())
}

fn a_call_that_is_not_on_the_list() -> Result<()> {
    for role in Role::ALL {
        let output =
            Command::new(std::env::current_exe()?).args([VIOLATE, role.name()]).output()?;
        let words = String::from_utf8(output.stderr)?;
        ensure!(
            output.stdout == b"entered\n",
            "{role:?}: {}",
            String::from_utf8_lossy(&output.stdout)
        );
        ensure!(output.status.code() == Some(1), "{role:?}: {}", output.status);
        let expected = format!("its {} thread made system call {}", role.name(), libc::SYS_chroot);
        ensure!(words.lines().count() == 1 && words.contains(&expected), "{role:?}: {words}");
    }
    Ok(())
}
