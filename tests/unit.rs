//! The systemd unit: its lists match the program's, and systemd rates it well.

use std::collections::BTreeSet;
use std::process::Command;

use crate::common::rootless;
use anyhow::{Result, bail};
use libtest_mimic::Trial;
use sixhop::host::sandbox::{UNIT_CAPABILITIES, UNIT_FAMILIES, unit_calls};

const UNIT: &str = include_str!("../dist/sixhop@.service");

pub fn trials() -> Vec<Trial> {
    let lists = rootless("lists_are_those_of_the_program", lists_are_those_of_the_program);
    let has_analyze = Command::new("systemd-analyze").arg("--version").output().is_ok();
    let exposure = rootless("exposure_is_under_2", exposure_is_under_2);
    let exposure = if has_analyze {
        exposure
    } else {
        exposure.with_ignored_flag(true).with_kind("needs systemd-analyze")
    };
    vec![lists, exposure]
}

fn values(key: &str) -> BTreeSet<&'static str> {
    let lines = UNIT.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    lines.flat_map(str::split_whitespace).collect()
}

fn lists_are_those_of_the_program() -> Result<()> {
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
            // The file lists the system calls of x86-64, which has more.
            if wanted.is_subset(&found) {
                continue;
            }
        }
        if found != wanted {
            let line = wanted.into_iter().collect::<Vec<_>>().join(" ");
            bail!("{key} should be:\n{key}={line}");
        }
    }
    Ok(())
}

fn exposure_is_under_2() -> Result<()> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/dist/sixhop@.service");
    let arguments = ["security", "--offline=true", "--threshold=20", "--no-pager", file];
    let output = Command::new("systemd-analyze").args(arguments).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let overall = text.lines().find(|line| line.contains("Overall exposure level"));
    match overall {
        Some(_) if output.status.success() => Ok(()),
        _ => bail!("{text}{}", String::from_utf8_lossy(&output.stderr)),
    }
}
