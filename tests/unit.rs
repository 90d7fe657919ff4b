//! The unit file of systemd: its lists are those of the program, and systemd itself finds no fault
//! with it.

use std::collections::BTreeSet;
use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Failed, Trial};
use sixhop::host::sandbox::{UNIT_CAPABILITIES, UNIT_FAMILIES, unit_calls};

const UNIT: &str = include_str!("../dist/sixhop@.service");

fn main() -> ExitCode {
    let lists =
        Trial::test("lists_are_those_of_the_program", || said(lists_are_those_of_the_program()));
    let has_analyze = Command::new("systemd-analyze").arg("--version").output().is_ok();
    let exposure = Trial::test("exposure_is_under_2", || said(exposure_is_under_2()));
    let exposure = if has_analyze {
        exposure
    } else {
        exposure.with_ignored_flag(true).with_kind("needs systemd-analyze")
    };
    libtest_mimic::run(&Arguments::from_args(), vec![lists, exposure]).exit_code()
}

fn said(done: Result<(), String>) -> Result<(), Failed> {
    done.map_err(Failed::from)
}

fn values(key: &str) -> BTreeSet<&'static str> {
    let lines = UNIT.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    lines.flat_map(str::split_whitespace).collect()
}

fn lists_are_those_of_the_program() -> Result<(), String> {
    let calls: BTreeSet<_> = unit_calls().into_iter().map(|(name, _)| name).collect();
    let wanted = [
        ("CapabilityBoundingSet", BTreeSet::from(UNIT_CAPABILITIES)),
        ("AmbientCapabilities", BTreeSet::from(UNIT_CAPABILITIES)),
        ("RestrictAddressFamilies", BTreeSet::from(UNIT_FAMILIES)),
        ("SystemCallFilter", calls),
    ];
    for (key, wanted) in wanted {
        let found = values(key);
        if key == "SystemCallFilter" && !cfg!(target_arch = "x86_64") {
            // The file has those of x86-64, which are more.
            if wanted.is_subset(&found) {
                continue;
            }
        }
        if found != wanted {
            let line = wanted.into_iter().collect::<Vec<_>>().join(" ");
            return Err(format!("{key} should be:\n{key}={line}"));
        }
    }
    Ok(())
}

fn exposure_is_under_2() -> Result<(), String> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/dist/sixhop@.service");
    let arguments = ["security", "--offline=true", "--threshold=20", "--no-pager", file];
    let output = Command::new("systemd-analyze")
        .args(arguments)
        .output()
        .map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    let overall = text.lines().find(|line| line.contains("Overall exposure level"));
    match overall {
        Some(_) if output.status.success() => Ok(()),
        _ => Err(format!("{text}{}", String::from_utf8_lossy(&output.stderr))),
    }
}
