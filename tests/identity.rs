//! Identities of clients: `enrol` writes them, `where`, `load` and `serve` use them.
//!
//! | test | what it shows |
//! |---|---|
//! | `each_client_gets_*` | a file a client, mode 600, whose address is the server's for it |
//! | `a_stolen_identity_*` | nothing of the secret or of other clients is in it |
//! | `a_load_with_*` | a server that has the secret answers who has one identity |
//! | `dig_gets_*` | `resolver`, asked by BIND's dig |
//! | `what_cannot_*`, `what_is_no_*` | one line on standard error |

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::net::Ipv6Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use crate::common::server::{PREFIX, SIXHOP, Server, sixhop};
use crate::common::{TestLab, rootless, trial};
use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use sixhop::address::Secret;
use sixhop::address::mt6d::{Clock, Subnet, Timetable};
use sixhop::host::identity;
use sixhop::host::time::unix_time;
use sixhop::lab::Side;

const SECRET: &[u8] = b"not a secret, since it is here";
const ROTATE: Duration = Duration::from_secs(10);

pub fn trials() -> Vec<Trial> {
    vec![
        rootless("each_client_gets_a_file_with_the_servers_address_for_it", each_client),
        rootless("a_stolen_identity_gives_one_client_away_and_no_other", stolen),
        rootless("what_cannot_be_enrolled_is_said_in_one_line", refused),
        rootless("what_is_no_identity_is_said_in_one_line", no_identity),
        rootless("an_interrupted_enrolment_says_how_far_it_came", interrupted),
        rootless("what_cannot_be_resolved_is_said_in_one_line", no_resolver),
        dig("dig_gets_the_address_of_now_over_udp_and_tcp", resolver),
        trial("a_load_with_an_identity_is_answered", load),
        trial("a_server_with_an_identity_answers_that_client_alone", serve),
    ]
}

/// A test by dig: ignored where it is not there. `make test` installs it.
#[track_caller]
fn dig(name: &str, test: fn() -> Result<()>) -> Trial {
    let is_there = Command::new("dig").arg("-v").output().is_ok();
    let trial = rootless(name, test).with_ignored_flag(!is_there);
    if is_there { trial } else { trial.with_kind("no dig") }
}

/// A directory with a secret, and identities where `enrol` puts them.
struct Desk(tempfile::TempDir);

impl Desk {
    fn new() -> Result<Self> {
        let desk = Self(tempfile::tempdir()?);
        fs::write(desk.secret(), SECRET)?;
        fs::set_permissions(desk.secret(), Permissions::from_mode(0o600))?;
        Ok(desk)
    }

    fn secret(&self) -> PathBuf {
        self.0.path().join("secret")
    }

    fn identity(&self, client: u32) -> PathBuf {
        self.0.path().join(format!("clients/client-{client:06}.toml"))
    }

    /// `enrol` with these flags besides those that it must have.
    fn enrol(&self, clients: &str, flags: &str) -> Result<Output> {
        let mut command = Command::new(SIXHOP);
        command.args(["enrol", "--prefix", PREFIX, "--rotate", "10s", "--clients", clients]);
        command.arg("--secret").arg(self.secret());
        command.arg("--out").arg(self.0.path().join("clients"));
        Ok(command.args(flags.split_whitespace()).output()?)
    }

    /// Flags of a server or a load for so many clients.
    fn flags(&self, clients: u32) -> String {
        let secret = self.secret();
        format!(
            "--prefix {PREFIX} --schedule mt6d --clients {clients} --rotate 10s --secret {}",
            secret.display()
        )
    }
}

/// Standard output, where the command has succeeded.
fn done(output: Output) -> Result<String> {
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && words.is_empty(), "{}: {words}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

/// Checks that the command has failed with `status`, and with one line that has `wanted` in it.
fn fails(output: &Output, status: i32, wanted: &str) -> Result<()> {
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(status), "{:?}, {words}", output.status);
    ensure!(words.lines().count() == 1 && words.contains(wanted), "{words}, not '{wanted}'");
    ensure!(output.stdout.is_empty());
    Ok(())
}

fn timetable(clients: u32) -> Result<Timetable> {
    let (subnet, clock) = (Subnet::new(PREFIX.parse()?)?, Clock::new(ROTATE)?);
    Ok(Timetable::new(subnet, clock, &Secret::new(SECRET.to_vec())?, clients, 1))
}

/// What `where --json` says.
fn whereabouts(path: &Path) -> Result<Value> {
    let output = Command::new(SIXHOP).arg("where").arg(path).arg("--json").output()?;
    Ok(serde_json::from_str(&done(output)?)?)
}

fn each_client() -> Result<()> {
    let desk = Desk::new()?;
    let said = done(desk.enrol("3-12", "--service ssh=22 --service https=443 --json")?)?;
    let said: Value = serde_json::from_str(&said)?;
    let directory = desk.0.path().join("clients").display().to_string();
    ensure!(said["event"] == "enrolled" && said["directory"] == directory, "{said}");
    ensure!(said["first"] == 3 && said["last"] == 12, "{said}");
    ensure!(fs::read_dir(&directory)?.count() == 10);
    ensure!(fs::metadata(&directory)?.permissions().mode() & 0o777 == 0o700);
    let all = timetable(13)?;
    for client in 3..=12 {
        let path = desk.identity(client);
        ensure!(fs::metadata(&path)?.permissions().mode() & 0o777 == 0o600);
        let own = identity::read(&path)?;
        ensure!(own.client() == client && own.services().len() == 2, "{own:?}");
        for step in [0, 7, 178_000_000] {
            ensure!(own.address(step) == all.address(client.into(), step), "{client}, {step}");
        }
        let before = all.clock().step(unix_time());
        let found = whereabouts(&path)?;
        let after = all.clock().step(unix_time());
        let step = found["step"].as_u64().context("a step")?;
        ensure!(found["event"] == "where" && (before..=after).contains(&step), "{found}");
        let address: Ipv6Addr = found["address"].as_str().context("an address")?.parse()?;
        ensure!(address == all.address(client.into(), step), "{found}");
        let until = humantime::parse_rfc3339(found["until"].as_str().context("a time")?)?;
        let until = until.duration_since(std::time::UNIX_EPOCH)?;
        ensure!(until == Duration::from_secs(10 * (step + 1)), "{found}");
    }
    let text = done(Command::new(SIXHOP).arg("where").arg(desk.identity(3)).output()?)?;
    ensure!(text.starts_with("2001:db8:1:") && text.contains("until 20"), "{text}");
    // One, and for people.
    let said = done(desk.enrol("20", "")?)?;
    ensure!(said.starts_with("1 file in ") && desk.identity(20).exists(), "{said}");
    Ok(())
}

fn stolen() -> Result<()> {
    let desk = Desk::new()?;
    done(desk.enrol("0-9", "")?)?;
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let values = |client| -> Result<Vec<String>> {
        let table: toml::Table = fs::read_to_string(desk.identity(client))?.parse()?;
        let value = |name| Some(table.get(name)?.as_str()?.to_owned());
        Ok(["seed", "tunnel_key"].into_iter().filter_map(value).collect())
    };
    let all = timetable(10)?;
    for client in 0..10 {
        let file = fs::read(desk.identity(client))?;
        let text = String::from_utf8(file)?;
        let secret = String::from_utf8(SECRET.to_vec())?;
        ensure!(!text.contains(&secret) && !text.contains(&hex(&SECRET[..8])), "{text}");
        let own = identity::read(&desk.identity(client))?;
        for other in (0..10).filter(|other| *other != client) {
            let of_other = values(other)?;
            ensure!(of_other.len() == 2, "{text}");
            for part in of_other.iter().flat_map(|value| value.as_bytes().chunks(16)) {
                ensure!(!text.contains(std::str::from_utf8(part)?), "{client} has of {other}");
            }
            for step in 0..100 {
                ensure!(own.address(step) != all.address(other.into(), step), "{other}");
            }
        }
    }
    Ok(())
}

fn refused() -> Result<()> {
    let desk = Desk::new()?;
    done(desk.enrol("4", "")?)?;
    let old = fs::read(desk.identity(4))?;
    let again = desk.enrol("2-6", "--service ssh=22")?;
    fails(&again, 1, "client-000004.toml already exists: --force replaces it")?;
    fails(&again, 1, "2 of 5 files are written")?;
    ensure!(fs::read(desk.identity(4))? == old && desk.identity(3).exists());
    done(desk.enrol("2-6", "--service ssh=22 --force")?)?;
    ensure!(identity::read(&desk.identity(4))?.services()["ssh"] == 22);
    for (clients, flags, wanted) in [
        ("7-3", "", "such as 0-99"),
        ("x", "", "such as 0-99"),
        ("7", "--service ssh", "NAME=PORT"),
        ("7", "--service SSH=22", "no name for a service"),
        ("7", "--service ssh=0", "port 0"),
        ("7", "--service ssh=22 --service ssh=23", "given twice"),
    ] {
        fails(&desk.enrol(clients, flags)?, 2, wanted)?;
    }
    for (flags, wanted) in [
        (["2001:db8:1::/48", "10s"], "use a /64"),
        ([PREFIX, "10ms"], "one second"),
        ([PREFIX, "1s 5us"], "whole milliseconds"),
    ] {
        let mut command = Command::new(SIXHOP);
        command.args(["enrol", "--clients", "7", "--prefix", flags[0], "--rotate", flags[1]]);
        command.arg("--secret").arg(desk.secret()).arg("--out").arg(desk.0.path());
        fails(&command.output()?, 2, wanted)?;
    }
    ensure!(!desk.identity(7).exists());
    fs::set_permissions(desk.secret(), Permissions::from_mode(0o640))?;
    fails(&desk.enrol("7", "")?, 1, "is open to others (mode 640): chmod 600")?;
    fs::set_permissions(desk.secret(), Permissions::from_mode(0o600))?;
    fs::write(desk.secret(), "short")?;
    fails(&desk.enrol("7", "")?, 1, "5 bytes can be guessed")?;
    let file = desk.0.path().join("file");
    fs::write(&file, "")?;
    fs::write(desk.secret(), SECRET)?;
    let out = file.join("below").display().to_string();
    let mut command = Command::new(SIXHOP);
    command.args(["enrol", "--clients", "7", "--prefix", PREFIX, "--rotate", "10s"]);
    command.arg("--secret").arg(desk.secret()).args(["--out", &out]);
    fails(&command.output()?, 1, &format!("cannot make {out}"))
}

fn no_identity() -> Result<()> {
    let desk = Desk::new()?;
    done(desk.enrol("5", "")?)?;
    let path = desk.identity(5);
    let good = fs::read_to_string(&path)?;
    let ask = || -> Result<Output> { Ok(Command::new(SIXHOP).arg("where").arg(&path).output()?) };
    for (from, to, wanted) in [
        ("version = 1", "version = 9", "of version 9"),
        ("1::/64", "1::/65", "use a /64"),
        ("= 10000", "= 10", "one second"),
        ("client = 5", "", "client"),
    ] {
        fs::write(&path, good.replace(from, to))?;
        fails(&ask()?, 1, wanted)?;
    }
    fs::write(&path, &good)?;
    fs::set_permissions(&path, Permissions::from_mode(0o604))?;
    fails(&ask()?, 1, "is open to others (mode 604): chmod 600")?;
    fs::remove_file(&path)?;
    fails(&ask()?, 1, "No such file")?;
    // The secret itself is none either.
    let output = Command::new(SIXHOP).arg("where").arg(desk.secret()).output()?;
    fails(&output, 1, "is no identity")?;
    let flags = format!("--interface lo --rate 1 --requests 1 --identity {}", path.display());
    for (flags, wanted) in [
        (format!("load {flags} --prefix {PREFIX}"), "--prefix"),
        (format!("load {flags} {}", desk.flags(3)), "cannot be used with"),
        ("load --interface lo --rate 1 --requests 1".into(), "--prefix"),
    ] {
        let output = Command::new(SIXHOP).args(flags.split_whitespace()).output()?;
        fails(&output, 2, wanted)?;
    }
    Ok(())
}

fn interrupted() -> Result<()> {
    let desk = Desk::new()?;
    let mut command = Command::new(SIXHOP);
    command.args(["enrol", "--prefix", PREFIX, "--rotate", "10s", "--clients", "0-4000000"]);
    command.arg("--secret").arg(desk.secret()).arg("--out").arg(desk.0.path().join("clients"));
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = child.spawn()?;
    while !desk.identity(10).exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT)?;
    let output = child.wait_with_output()?;
    fails(&output, 1, "interrupted: ")?;
    let words = String::from_utf8(output.stderr)?;
    let written = fs::read_dir(desk.0.path().join("clients"))?.count();
    ensure!(words.contains(&format!("{written} of 4000001 files are written")), "{words}");
    ensure!(words.contains(&format!("the next is client {written}")), "{words}");
    Ok(())
}

/// A running resolver, killed when dropped.
#[derive(Debug)]
struct Resolver {
    child: Child,
    port: String,
    names: Value,
}

impl Resolver {
    fn start(flags: &[&str], identities: &[PathBuf]) -> Result<Self> {
        let mut command = Command::new(SIXHOP);
        command.args(["resolver", "--json", "--listen", "[::1]:0"]).args(flags).args(identities);
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("a pipe")?).read_line(&mut line)?;
        let ready: Value = serde_json::from_str(&line)?;
        ensure!(ready["event"] == "resolving", "{ready}");
        let port = ready["listen"].as_str().and_then(|listen| listen.strip_prefix("[::1]:"));
        let port = port.context("a port")?.to_owned();
        Ok(Self { child, port, names: ready["names"].clone() })
    }

    /// What dig shows of the response: status, flags, and the records of the answer.
    fn dig(&self, question: &str) -> Result<String> {
        let mut command = Command::new("dig");
        command.args(["@::1", "-p", &self.port]).args(question.split(' '));
        command.args("+noall +comments +answer +tries=5 +time=10".split(' '));
        let output = command.output()?;
        let text = String::from_utf8(output.stdout)?;
        ensure!(output.status.success(), "dig {question}: {text}");
        Ok(text)
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn resolver() -> Result<()> {
    let desk = Desk::new()?;
    done(desk.enrol("0-9", "")?)?;
    let home = format!("--name=home={}", desk.identity(4).display());
    let mut resolver = Resolver::start(&[&home], &[desk.identity(7)])?;
    ensure!(resolver.names == json!(["home.sixhop", "client-000007.sixhop"]), "{resolver:?}");
    let all = timetable(10)?;
    for (question, client) in [
        ("home.sixhop AAAA", 4),
        ("home.sixhop AAAA +tcp", 4),
        ("HoMe.sixhop AAAA +noedns", 4),
        ("client-000007.sixhop AAAA", 7),
    ] {
        let before = unix_time();
        let text = resolver.dig(question)?;
        let after = unix_time();
        let record = text.lines().find(|line| line.contains("AAAA")).context(text.clone())?;
        let fields: Vec<_> = record.split_whitespace().collect();
        let [_, ttl, "IN", "AAAA", address] = fields[..] else { bail!("{record}") };
        let steps = all.clock().step(before)..=all.clock().step(after);
        let step = steps.into_iter().find(|step| all.address(client, *step).to_string() == address);
        let step = step.with_context(|| format!("not of now: {text}"))?;
        // The TTL is that of a moment in between, and never goes beyond the step.
        let left = |now| all.clock().start(step + 1).saturating_sub(now) / 1_000_000_000;
        let ttl: u64 = ttl.parse()?;
        ensure!((left(after).max(1)..=left(before).max(1)).contains(&ttl), "{text}");
        ensure!(text.contains("status: NOERROR") && text.contains("flags: qr aa"), "{text}");
    }
    for (question, status) in [
        ("home.sixhop A", "NOERROR"),
        ("home.sixhop HTTPS", "NOERROR"),
        ("home.sixhop AAAA +opcode=NOTIFY", "NOTIMP"),
        ("home.sixhop AAAA +edns=1 +noednsneg", "BADVERS"),
        ("client-000004.sixhop AAAA", "REFUSED"),
        ("sixhop SOA", "REFUSED"),
        ("example.org AAAA", "REFUSED"),
        ("example.org AAAA +tcp", "REFUSED"),
    ] {
        let text = resolver.dig(question)?;
        ensure!(text.contains(&format!("status: {status}")), "{text}");
        ensure!(text.contains("ANSWER: 0, AUTHORITY: 0"), "{text}");
    }
    // One who connects and says nothing does not keep it from its end.
    let address = format!("[::1]:{}", resolver.port);
    let idle = std::net::TcpStream::connect(address)?;
    kill(Pid::from_raw(resolver.child.id() as i32), Signal::SIGTERM)?;
    ensure!(resolver.child.wait()?.success());
    drop(idle);
    Ok(())
}

fn no_resolver() -> Result<()> {
    let desk = Desk::new()?;
    done(desk.enrol("0-1", "")?)?;
    let run = |flags: &str| -> Result<Output> {
        let flags = flags.replace("FILE", &desk.identity(0).display().to_string());
        let flags = format!("resolver {flags}");
        Ok(Command::new(SIXHOP).args(flags.split_whitespace()).output()?)
    };
    for (flags, wanted) in [
        ("", "IDENTITY"),
        ("--name home", "NAME=IDENTITY"),
        ("FILE FILE", "two identities are named client-000000.sixhop: use --name"),
        ("--name a..b=FILE", "cannot be a name"),
        ("--listen here FILE", "--listen"),
    ] {
        fails(&run(flags)?, 2, wanted)?;
    }
    let taken = std::net::UdpSocket::bind("[::1]:0")?;
    let listen = taken.local_addr()?;
    fails(&run(&format!("--listen {listen} FILE"))?, 1, &format!("listen on {listen}, UDP"))?;
    fs::set_permissions(desk.identity(0), Permissions::from_mode(0o644))?;
    fails(&run("FILE")?, 1, "is open to others")
}

/// The result of a load from the client's side of the lab.
fn ask(lab: &TestLab, flags: &str) -> Result<Value> {
    let flags = format!("load --interface client0 --rate 500 --requests 200 --json {flags}");
    let output = sixhop(lab, Side::Client, &flags).output()?;
    let words = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).with_context(|| words.into_owned())
}

fn load() -> Result<()> {
    let (lab, desk) = (TestLab::up()?, Desk::new()?);
    done(desk.enrol("0-30", "")?)?;
    let serve = format!("--bind live-map --engine afxdp {}", desk.flags(20));
    let server = Server::start_in(&lab, Side::Server, "server0", &serve)?;
    for client in [0, 7, 19] {
        let flags = format!("--identity {}", desk.identity(client).display());
        let result = ask(&lab, &flags)?;
        ensure!(result["answered"] == 200 && result["sent"] == 200, "{result}");
    }
    // A clock that is wrong is found by an identity as well.
    let flags = format!("--clock-offset -50 --identity {}", desk.identity(7).display());
    let result = ask(&lab, &flags)?;
    ensure!(result["answered"] == 0 && result["clock_steps"].as_i64() <= Some(-4), "{result}");
    // Client 30 is enrolled, and the server has 20.
    let flags = format!("--identity {}", desk.identity(30).display());
    let flags = format!("load --interface client0 --rate 500 --requests 20 {flags}");
    let output = sixhop(&lab, Side::Client, &flags).output()?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "{words}");
    ensure!(words.contains("nobody answers for") && words.contains("within 32 steps"), "{words}");
    server.stop()?;
    Ok(())
}

fn serve() -> Result<()> {
    let (lab, desk) = (TestLab::up()?, Desk::new()?);
    done(desk.enrol("0-3", "")?)?;
    let flags = format!("--identity {}", desk.identity(2).display());
    let serve = format!("--bind live-map --engine afxdp {flags}");
    let server = Server::start_in(&lab, Side::Server, "server0", &serve)?;
    ensure!(server.ready["clients"] == 1 && server.ready["rotate"] == 10.0, "{}", server.ready);
    let result = ask(&lab, &flags)?;
    ensure!(result["answered"] == 200, "{result}");
    let totals = server.stop()?;
    ensure!(totals["answered"] == 200, "{totals}");
    Ok(())
}
