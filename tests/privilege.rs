//! What a server needs of privileges, and what it has left once it answers, each on a lab of its
//! own (see `common`).
//!
//! | test | what is tried |
//! |---|---|
//! | `each_engine_*` | another user, with the unit file's capabilities and filter; without each |
//! | `threads_*` | `/proc/PID/task/*/status` of a server of each engine, and without a sandbox |
//! | `addresses_are_taken_back_*` | each way of binding, out of the sandbox |
//! | `a_call_*` | what becomes of a thread that makes a call that is not on its list |

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

/// Words by which this program is started as something else than a test.
const AS_UNIT: &str = "--as-unit";
const VIOLATE: &str = "--violate";

/// What this program does where a test of this file has started it.
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

/// KiB that may be locked, for a command that is run [`as_unit`].
const LOCKED: &str = "SIXHOP_TEST_LOCKED_KIB";

/// Runs a command under the filter of the unit file.
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

/// Enters the role of that name on a thread, and makes a call that is on nobody's list.
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

/// Files that everybody may run, removed when dropped.
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

    /// `sixhop` with these arguments on one side of the lab, as somebody else, with these
    /// capabilities and no others.
    fn run(&self, lab: &TestLab, side: Side, capabilities: &[&str], arguments: &str) -> Command {
        let names: Vec<_> = capabilities
            .iter()
            .map(|name| format!("+{}", &name["CAP_".len()..].to_lowercase()))
            .collect();
        let list = std::iter::once("-all".to_owned()).chain(names).collect::<Vec<_>>().join(",");
        let mut command = Command::new(SIXHOP);
        command.args(["lab", "--name", lab.name(), "exec", &side.to_string(), "--", "setpriv"]);
        // The frames of a queue are all that a user may lock by default, and the kernel takes its
        // time to let go of them: each is another user.
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

/// The capabilities without one of which an engine does not start.
fn needed(engine: &str) -> &'static [&'static str] {
    about(engine).capabilities
}

/// With what stands in for the unit's LimitMEMLOCK: a limit cannot be raised everywhere where this
/// runs.
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
            // Neighbour discovery is answered out of rings.
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
    // The generator too.
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
    // `probe` says which, and the line that gives it.
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
    ensure!(addresses(&lab)?.len() == 1, "addresses are left");
    Ok(())
}

/// The frames of a queue take 8 MiB in copy mode, and more while zero-copy is tried.
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
    ensure!(why.contains("fewer may be locked (ulimit -l "), "{}", server.ready);
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

/// What /proc says of each thread of the process: its number, and the fields.
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

/// Waits until all workers have the filters of main, engine and worker (the latter two of two
/// parts): all are where they belong.
fn settled(server: &Server, workers: usize) -> Result<BTreeMap<u32, BTreeMap<String, String>>> {
    let give_up = Instant::now() + PATIENCE;
    loop {
        let threads = threads(server.child.id())?;
        let filters = |fields: &BTreeMap<String, String>| {
            fields["Seccomp_filters"].parse::<u32>().unwrap_or_default()
        };
        let depths: Vec<_> = threads.values().map(filters).collect();
        // One that was joined may take a moment to be gone.
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
    // Workers, among them that of the socket behind.
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
        // One keeps the route by which the kernel takes what the program passes.
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
        // So many that netlink-down takes them back by setting the link down.
        let server = Server::start(&lab, &format!("--addresses 300 --bind {bind}"))?;
        ensure!(server.ready["sandbox"] == true, "{}", server.ready);
        let expected = if bind == "live-map" { 1 } else { 301 };
        ensure!(addresses(&lab)?.len() == expected, "{bind}: {} addresses", addresses(&lab)?.len());
        server.stop().with_context(|| bind.to_owned())?;
        ensure!(addresses(&lab)?.len() == 1, "{bind}: addresses are left");
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
