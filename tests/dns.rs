//! examples/dns.rs, asked by programs that are none of ours: `dig` of BIND, and `kxdpgun` of Knot
//! DNS, which sends from AF_XDP rings of its own.
//!
//! | test | what it shows |
//! |---|---|
//! | `dig_gets_*` | each kind of answer, at addresses that stay |
//! | `addresses_that_move_*` | answers at the address of now, silence at an expired one |
//! | `what_is_no_query_*` | responses to what dig does not send |
//! | `a_zone_that_cannot_*` | the line on standard error |
//! | `kxdpgun_gets_*` | 99.9 % of 50,000 queries/s |

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv6Addr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use crate::common::server::{PATIENCE, PREFIX, SIXHOP};
use crate::common::{TestLab, fails_with, resolve, rootless, trial};
use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sixhop::address::mt6d::{Clock, Subnet, Timetable};
use sixhop::address::{Pool, Secret};
use sixhop::host::time::unix_time;
use sixhop::lab::Side;

const ZONE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/example.zone");
const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/dns.rs");

pub fn trials() -> Vec<Trial> {
    vec![
        with("dig", "dig_gets_the_right_answers", right_answers),
        with("dig", "addresses_that_move_answer_and_expire", moving),
        trial("what_is_no_query_is_refused_or_met_by_silence", no_queries),
        rootless("a_zone_that_cannot_be_served_is_named", bad_zones),
    ]
}

/// What is measured takes the whole machine.
pub fn alone() -> Vec<Trial> {
    vec![with("kxdpgun", "kxdpgun_gets_999_of_1000_answers_at_50000_a_second", rate)]
}

/// A test by this program: ignored where it is not there. `make test` installs it.
#[track_caller]
fn with(program: &str, name: &str, test: fn() -> Result<()>) -> Trial {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&paths).chain([PathBuf::from("/usr/sbin")]);
    if places.any(|place| place.join(program).exists()) {
        return trial(name, test);
    }
    rootless(name, || Ok(())).with_ignored_flag(true).with_kind(format!("no {program}"))
}

/// The example as cargo has built it.
fn example() -> Result<PathBuf> {
    let path = Path::new(SIXHOP).with_file_name("examples").join("dns");
    let build = "cargo build --example dns (cargo test without --test does)";
    let built = fs::metadata(&path).with_context(|| format!("{}: {build}", path.display()))?;
    ensure!(built.modified()? >= fs::metadata(SOURCE)?.modified()?, "it is outdated: {build}");
    Ok(path)
}

/// A program in one side of the lab.
fn command(lab: &TestLab, side: Side, program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(SIXHOP);
    command.args(["lab", "--name", lab.name(), "exec", &side.to_string(), "--"]);
    command.arg(program.as_ref()).stdin(Stdio::null());
    command
}

/// The example while it runs, killed when dropped.
struct Dns {
    child: Child,
    output: BufReader<ChildStdout>,
    ready: String,
}

impl Dns {
    fn start(lab: &TestLab, flags: &[&str]) -> Result<Self> {
        let mut child = command(lab, Side::Server, example()?)
            .args([Side::Server.interface(), PREFIX, ZONE])
            .args(flags)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let output = BufReader::new(child.stdout.take().context("a pipe")?);
        let mut dns = Self { child, output, ready: String::new() };
        dns.output.read_line(&mut dns.ready)?;
        if !dns.ready.starts_with("ready: ") {
            let mut words = String::new();
            dns.child.stderr.take().context("a pipe")?.read_to_string(&mut words)?;
            bail!("not ready: {words}");
        }
        Ok(dns)
    }

    fn terminate(&self) -> Result<()> {
        Ok(kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM)?)
    }

    /// Waits for its end, which somebody has brought about. Returns how many queries it answered.
    fn stopped(mut self) -> Result<u64> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        ensure!(self.child.wait()?.success(), "{line}");
        let count = line.strip_prefix("stopped: ").and_then(|rest| rest.split(' ').next());
        Ok(count.with_context(|| line.clone())?.parse()?)
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What dig shows of a response: its status, its flags, and the records of all sections after their
/// first letters, fields separated by one blank.
fn dig(lab: &TestLab, address: Ipv6Addr, question: &str) -> Result<String> {
    let output = command(lab, Side::Client, "dig")
        .arg(format!("@{address}"))
        .args("+norec +noquestion +nostats +nocmd +ignore +tries=5 +time=10".split(' '))
        .args(question.split(' '))
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(output.status.success(), "dig {question}: {text}");
    let (mut words, mut section) = (Vec::new(), ' ');
    for line in text.lines() {
        let fields = line.split_whitespace().collect::<Vec<_>>().join(" ");
        if let Some((_, rest)) = line.split_once("status: ") {
            words.extend(rest.split(',').next().map(str::to_owned));
        } else if let Some(rest) = line.strip_prefix(";; flags: ") {
            words.extend(rest.split(';').next().map(str::to_owned));
        } else if let Some(rest) = line.strip_prefix("; EDNS: ") {
            words.push(rest.to_owned());
        } else if line.ends_with(" SECTION:") {
            section = line.chars().nth(3).unwrap_or_default();
        } else if !line.starts_with(';') && !line.is_empty() {
            words.push(format!("{section} {fields}"));
        }
    }
    Ok(words.join("\n"))
}

const EDNS: &str = "version: 0, flags:; udp: 1232";
const SOA: &str = "A example.org. 300 IN SOA ns.example.org. hostmaster.example.org. 2026010101 \
                   7200 1800 604800 300";
const APEX: &str = "A example.org. 3600 IN SOA ns.example.org. hostmaster.example.org. 2026010101 \
                    7200 1800 604800 300";
const WWW: [&str; 2] = [
    "A www.example.org. 600 IN AAAA 2001:db8:80::1",
    "A www.example.org. 600 IN AAAA 2001:db8:80::2",
];
const WWW4: &str = "A www.example.org. 600 IN A 192.0.2.80";
const CHAIN: [&str; 2] = [
    "A alias.example.org. 3600 IN CNAME other.example.org.",
    "A other.example.org. 3600 IN CNAME www.example.org.",
];
const SUB: [&str; 3] = [
    "A sub.example.org. 3600 IN NS ns.sub.example.org.",
    "A sub.example.org. 3600 IN NS ns.example.com.",
    "A ns.sub.example.org. 3600 IN AAAA 2001:db8:80::53",
];
const TEXT: &str = r#"A text.example.org. 3600 IN TXT "one string" "and \"another\"""#;
const WILD: &str = r#"A x.y.wild.example.org. 3600 IN TXT "anything""#;
const MX: [&str; 2] = [
    "A example.org. 3600 IN MX 10 mail.example.org.",
    "A example.org. 3600 IN MX 20 mail2.example.org.",
];
const DANGLING: &str = "A dangling.example.org. 3600 IN CNAME nowhere.example.org.";
const AWAY: &str = "A away.example.org. 3600 IN CNAME www.example.com.";
const INSIDE: &str = "A inside.example.org. 3600 IN CNAME host.sub.example.org.";
const LOOP: [&str; 2] = [
    "A loop.example.org. 3600 IN CNAME pool.example.org.",
    "A pool.example.org. 3600 IN CNAME loop.example.org.",
];

/// Questions, and the status, flags and records that answer them. Authority and additional section
/// begin with the same letter as the answer: which one it is follows from the flags and the types.
const EXPECTED: [(&str, &str, &str, &[&str]); 29] = [
    ("www.example.org AAAA", "NOERROR", "qr aa", &WWW),
    ("www.example.org A", "NOERROR", "qr aa", &[WWW4]),
    ("text.example.org TXT", "NOERROR", "qr aa", &[TEXT]),
    ("example.org MX", "NOERROR", "qr aa", &MX),
    ("example.org SOA", "NOERROR", "qr aa", &[APEX]),
    // Behind a CNAME: the records of the other name, NODATA, NXDOMAIN, another zone, another's
    // part of this one, and itself.
    ("alias.example.org AAAA", "NOERROR", "qr aa", &[CHAIN[0], CHAIN[1], WWW[0], WWW[1]]),
    ("alias.example.org MX", "NOERROR", "qr aa", &[CHAIN[0], CHAIN[1], SOA]),
    ("dangling.example.org A", "NXDOMAIN", "qr aa", &[DANGLING, SOA]),
    ("away.example.org A", "NOERROR", "qr aa", &[AWAY]),
    ("inside.example.org AAAA", "NOERROR", "qr aa", &[INSIDE, SUB[0], SUB[1], SUB[2]]),
    ("loop.example.org A", "NOERROR", "qr aa", &LOOP),
    ("alias.example.org CNAME", "NOERROR", "qr aa", &[CHAIN[0]]),
    ("www.example.org MX", "NOERROR", "qr aa", &[SOA]),
    ("deep.example.org A", "NOERROR", "qr aa", &[SOA]),
    ("b.deep.example.org A", "NXDOMAIN", "qr aa", &[SOA]),
    ("nowhere.example.org A", "NXDOMAIN", "qr aa", &[SOA]),
    ("x.y.wild.example.org TXT", "NOERROR", "qr aa", &[WILD]),
    ("x.wild.example.org A", "NOERROR", "qr aa", &[SOA]),
    ("x.here.wild.example.org TXT", "NXDOMAIN", "qr aa", &[SOA]),
    ("host.sub.example.org AAAA", "NOERROR", "qr", &SUB),
    ("sub.example.org NS", "NOERROR", "qr", &SUB),
    ("sub.example.org DS", "NOERROR", "qr aa", &[SOA]),
    ("www.example.org ANY +notcp", "NOERROR", "qr aa", &[WWW4]),
    ("www.example.org CH TXT", "REFUSED", "qr", &[]),
    ("www.example.com AAAA", "REFUSED", "qr", &[]),
    ("www.example.org A +opcode=NOTIFY", "NOTIMP", "qr", &[]),
    ("www.example.org A +edns=1 +noednsneg", "BADVERS", "qr", &[]),
    ("long.example.org TXT +bufsize=512", "NOERROR", "qr tc", &[]),
    ("www.example.org AAAA +recurse +bufsize=100", "NOERROR", "qr aa rd", &WWW),
];

fn right_answers() -> Result<()> {
    let lab = TestLab::up()?;
    let dns = Dns::start(&lab, &["--addresses", "20"])?;
    let pool = Pool::new(PREFIX.parse()?, 20, 1)?;
    let first = format!("port 53; the first is {}\n", pool.address(0));
    ensure!(dns.ready.ends_with(&first), "{}", dns.ready);
    for (index, (question, status, flags, records)) in (0..).zip(EXPECTED) {
        let found = dig(&lab, pool.address(index % 20), question)?;
        let wanted = [&[status, flags, EDNS], records].concat().join("\n");
        ensure!(found == wanted, "{question}:\n{found}\nand not\n{wanted}");
    }
    // Without EDNS, and as they were asked for.
    let plain = dig(&lab, pool.address(1), "long.example.org TXT +noedns")?;
    ensure!(plain == "NOERROR\nqr tc", "{plain}");
    let large = dig(&lab, pool.address(1), "long.example.org TXT +bufsize=4096")?;
    ensure!(large.starts_with(&format!("NOERROR\nqr aa\n{EDNS}\nA long.")), "{large}");
    ensure!(large.len() > 512 && large.lines().count() == 4, "{large}");
    let name = dig(&lab, pool.address(1), "wWw.eXample.oRg AAAA")?;
    ensure!(name.contains("A wWw.eXample.oRg. 600 IN AAAA 2001:db8:80::1"), "{name}");
    dns.terminate()?;
    let answered = dns.stopped()?;
    ensure!(answered == EXPECTED.len() as u64 + 3, "{answered}");
    Ok(())
}

fn moving() -> Result<()> {
    let lab = TestLab::up()?;
    let secret = tempfile::NamedTempFile::new()?;
    let bytes = b"not a secret, since it is here";
    fs::write(secret.path(), bytes)?;
    fs::set_permissions(secret.path(), fs::Permissions::from_mode(0o600))?;
    let path = secret.path().to_str().context("its name is text")?;
    let flags = ["--clients", "50", "--rotate", "10s", "--secret", path, "--stop-on-eof"];
    let mut dns = Dns::start(&lab, &flags)?;
    let (subnet, clock) = (Subnet::new(PREFIX.parse()?)?, Clock::new(Duration::from_secs(10))?);
    let table = Timetable::new(subnet, clock, &Secret::new(bytes.to_vec())?, 50, 1);
    for client in [0, 7, 49] {
        let now = clock.step(unix_time());
        let answer = dig(&lab, table.address(client, now), "www.example.org AAAA")?;
        ensure!(WWW.iter().all(|record| answer.contains(record)), "{answer}");
        let expired = table.address(client, now - 3);
        let silence = dig(&lab, expired, "www.example.org AAAA +tries=1 +time=1");
        fails_with(silence, "no servers could be reached")?;
    }
    drop(dns.child.stdin.take()); // it stops
    let answered = dns.stopped()?;
    ensure!(answered == 3, "{answered}");
    Ok(())
}

/// A message with these flags and numbers of records, and this behind the header.
fn message(id: u16, flags: u16, counts: [u16; 4], rest: &[&[u8]]) -> Vec<u8> {
    let header = [[id, flags].as_slice(), &counts].concat();
    let header: Vec<_> = header.into_iter().flat_map(u16::to_be_bytes).collect();
    [header, rest.concat()].concat()
}

fn no_queries() -> Result<()> {
    let lab = TestLab::up()?;
    let dns = Dns::start(&lab, &["--addresses", "1", "--port", "5353"])?;
    let address = Pool::new(PREFIX.parse()?, 1, 1)?.address(0);
    let name = b"\x03www\x07example\x03org\x00";
    let (aaaa, axfr): (&[u8], &[u8]) = (&[0, 28, 0, 1], &[0, 252, 0, 1]);
    let opt: &[u8] = &[0, 0, 41, 16, 0, 0, 0, 0, 0, 0, 0];
    let right = |id| message(id, 0, [1, 0, 0, 0], &[name, aaaa]);
    let silent = [
        vec![],
        right(1)[..11].to_vec(),
        message(2, 0x8000, [1, 0, 0, 0], &[name, aaaa]),
        message(3, 0x8005, [0; 4], &[]),
    ];
    let (formerr, refused) = (1, 5);
    let answered = [
        (message(10, 0, [0; 4], &[]), formerr),
        (message(11, 0, [2, 0, 0, 0], &[name, aaaa, name, aaaa]), formerr),
        (message(12, 0, [1, 0, 0, 0], &[&name[..9]]), formerr),
        (message(13, 0, [1, 0, 0, 0], &[&[0xc0, 12], aaaa]), formerr),
        (message(14, 0, [1, 0, 0, 2], &[name, aaaa, opt, opt]), formerr),
        (message(15, 0, [1, 0, 0, 1], &[name, aaaa, &opt[..7]]), formerr),
        (message(16, 0, [1, 0, 0, 0], &[name, axfr]), refused),
        (message(17, 0, [1, 0, 0, 0], &[name, aaaa, &[7; 1000]]), 0),
    ];
    lab.run_in(Side::Client, || {
        let socket = UdpSocket::bind((Side::Client.address(), 0))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut got = [0; 2000];
        for query in &silent {
            socket.send_to(query, (address, 5353))?;
        }
        // Nothing came for those before it.
        for (query, rcode) in answered.iter().chain([&(right(18), 0)]) {
            socket.send_to(query, (address, 5353))?;
            let length = socket.recv(&mut got)?;
            let (response, shown) = (&got[..length], &query[..query.len().min(60)]);
            ensure!(response.len() >= 12 && response[..2] == query[..2], "{shown:x?}");
            let [high, low] = [response[2], response[3]];
            ensure!(high & 0x80 != 0 && low & 0x0f == *rcode, "{shown:x?}: {response:x?}");
        }
        Ok(())
    })?;
    dns.terminate()?;
    let count = dns.stopped()?;
    ensure!(count == answered.len() as u64 + 1, "{count}");
    Ok(())
}

fn bad_zones() -> Result<()> {
    let soa = "example.org. 60 SOA ns.example.org. me.example.org. 1 2 3 4 5\n";
    for (text, wanted) in [
        ("", "has no records"),
        ("www.example.org. 60 A 192.0.2.1\n", "www.example.org A: the SOA must be first"),
        (&format!("{soa}example.com. 60 A 192.0.2.1\n"), "example.com A: it is not under"),
        (&format!("{soa}{soa}"), "a zone has one SOA"),
        (&format!("{soa}example.org. 60 CH A 192.0.2.1\n"), "class"),
        (&format!("{soa}a.example.org. 60 CNAME b\n"), "origin"),
        (
            &format!(
                "{soa}a.example.org. 60 A 192.0.2.1\na.example.org. 60 CNAME b.example.org.\n"
            ),
            "a.example.org has a CNAME and other records",
        ),
        (&format!("{soa}$INCLUDE other.zone\n"), "$INCLUDE is not supported"),
        (&format!("{soa}a.example.org. 60 DNAME b.example.org.\n"), "DNAME is not supported"),
    ] {
        let mut file = tempfile::NamedTempFile::new()?;
        file.write_all(text.as_bytes())?;
        let output =
            Command::new(example()?).args(["no-interface", PREFIX]).arg(file.path()).output()?;
        let words = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success() && words.contains(wanted), "{text}: {words}");
    }
    Ok(())
}

const QUERIES_PER_SECOND: u64 = 50_000;
const SECONDS: u64 = 3;

/// The number behind `label` in the summary of kxdpgun.
fn number(summary: &str, label: &str) -> Result<u64> {
    let rest = summary.lines().find_map(|line| line.strip_prefix(label));
    let digits = rest.and_then(|rest| rest.split_whitespace().next());
    Ok(digits.with_context(|| format!("no '{label}' in: {summary}"))?.parse()?)
}

/// Where the machine had other things to do, that says nothing: it is asked again.
fn rate() -> Result<()> {
    let lab = TestLab::up()?;
    let dns = Dns::start(&lab, &["--addresses", "20"])?;
    let pool = Pool::new(PREFIX.parse()?, 20, 1)?;
    let queries = tempfile::NamedTempFile::new()?;
    let known = "www.example.org. AAAA\nexample.org. MX E\nalias.example.org. AAAA E\n";
    fs::write(queries.path(), format!("{known}nowhere.example.org. A\n"))?;
    let wanted = QUERIES_PER_SECOND * SECONDS;
    let mut found = Vec::new();
    for index in 0..8 {
        let address = pool.address(index);
        resolve(&lab, address)?; // kxdpgun takes it from the kernel's table
        let output = command(&lab, Side::Client, "kxdpgun")
            .args(["-t", &SECONDS.to_string(), "-Q", &QUERIES_PER_SECOND.to_string()])
            .args(["-I", Side::Client.interface(), "-i"])
            .arg(queries.path())
            .arg(address.to_string())
            .output()?;
        let summary = String::from_utf8_lossy(&output.stdout);
        let words = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "kxdpgun: {summary}{words}");
        let sent = number(&summary, "total queries:")?;
        let replies = number(&summary, "total replies:")?;
        if sent >= wanted / 100 * 99 && replies >= sent - sent / 1000 {
            let noerror = number(&summary, "responded NOERROR:")?;
            let nxdomain = number(&summary, "responded NXDOMAIN:")?;
            ensure!(noerror + nxdomain == replies, "{summary}");
            ensure!(nxdomain.abs_diff(replies / 4) <= replies / 100, "{summary}");
            dns.terminate()?;
            let answered = dns.stopped()?;
            ensure!(answered >= replies, "{answered} answered: {summary}");
            return Ok(());
        }
        found.push((sent, replies));
    }
    bail!(
        "of {wanted} queries in {SECONDS} s so many were sent and answered: {found:?}; where fewer \
         were sent this machine is too busy to measure anything"
    )
}
