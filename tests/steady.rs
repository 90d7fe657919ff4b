//! One long run at a steady rate, with no other test beside it: server and client each need a
//! processor. Cargo runs test programs one after another.

use std::process::{Command, Stdio};

use crate::common::{TestLab, trial};
use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;

const SIXHOP: &str = env!("CARGO_BIN_EXE_sixhop");

pub fn trials() -> Vec<Trial> {
    vec![trial("200000_requests_at_20000_a_second_are_all_answered", steady)]
}

fn steady() -> Result<()> {
    let lab = TestLab::up()?;
    let addresses = "--prefix 2001:db8:1::/64 --addresses 2000";
    let run = |side: &str, flags: String| {
        let mut command = Command::new(SIXHOP);
        command.args(["lab", "--name", lab.name(), "exec", side, "--", SIXHOP]);
        command.args(flags.split_whitespace());
        command
    };
    let serve = format!(
        "serve --interface server0 {addresses} --bind netlink-down --cores 0 --stop-on-eof --json"
    );
    let mut server = run("server", serve).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut lines =
        std::io::BufRead::lines(std::io::BufReader::new(server.stdout.take().expect("piped")));
    let ready: Value = serde_json::from_str(&lines.next().expect("a line")?)?;
    let load =
        format!("load --interface client0 {addresses} --rate 20000 --requests 200000 --json");
    let output = run("client", load).stdin(Stdio::null()).output();
    drop(server.stdin.take()); // it stops
    let last = lines.last().expect("a line");
    server.wait()?;
    let stopped: Value = serde_json::from_str(&last?)?;
    ensure!(ready["event"] == "ready" && stopped["event"] == "stopped", "{ready} {stopped}");
    let output = output?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let result: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(result["complete"] == 200_000 && result["replies"] == 2_000_000, "{result} {stopped}");
    for nothing in ["duplicates", "wrong_source", "corrupt"] {
        ensure!(result[nothing] == 0, "{nothing}: {result}");
    }
    ensure!(
        stopped["answered"] == 200_000 && stopped["frames_lost"] == 0 && stopped["invalid"] == 0,
        "{stopped}"
    );
    Ok(())
}
