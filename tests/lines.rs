//! No line is wider than 100 columns.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::common::rootless;
use anyhow::{Result, ensure};
use libtest_mimic::Trial;

/// Files to check, as git pathspecs: `*` matches slashes too.
const FILES: [&str; 3] = ["*.rs", "bpf/*", "*.md"];

/// Generated files, and tables that tests parse, whose lines cannot break.
const EXEMPT: [&str; 4] = ["bench/results/", "docs/results/", "fuzz/corpus/", "docs/operations.md"];

const WIDTH: usize = 100;
const TAB: usize = 8;

pub fn trials() -> Vec<Trial> {
    let listed = listed();
    let trial = rootless("lines_end_at_100_columns", {
        let files = listed.clone().unwrap_or_default();
        move || lines_end(&files)
    });
    let trial = if listed.is_some() {
        trial
    } else {
        trial.with_ignored_flag(true).with_kind("not a git repository")
    };
    vec![trial]
}

/// Files that git tracks. As root, git refuses a repository of another user unless `safe.directory`
/// allows it.
fn listed() -> Option<Vec<String>> {
    let output = Command::new("git")
        .args(["-c", "safe.directory=*", "ls-files", "-z", "--"])
        .args(FILES)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .ok()?;
    let files = String::from_utf8(output.stdout).ok()?;
    let files = files.split_terminator('\0').map(str::to_owned).collect();
    output.status.success().then_some(files)
}

fn lines_end(files: &[String]) -> Result<()> {
    ensure!(files.len() > 100, "only {} files", files.len());
    let mut wide = Vec::new();
    for file in files.iter().filter(|file| !EXEMPT.iter().any(|exempt| file.starts_with(exempt))) {
        // The file may be deleted without the deletion being committed.
        let Ok(text) = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)) else {
            continue;
        };
        let width = |line: &str| line.chars().fold(0, advance);
        let lines = text.lines().enumerate().map(|(index, line)| (index + 1, width(line)));
        let found = lines.filter(|(_, width)| *width > WIDTH);
        wide.extend(found.map(|(number, width)| format!("{file}:{number}: {width} columns")));
    }
    ensure!(wide.is_empty(), "lines wider than {WIDTH} columns:\n{}", wide.join("\n"));
    Ok(())
}

fn advance(column: usize, character: char) -> usize {
    if character == '\t' { (column / TAB + 1) * TAB } else { column + 1 }
}
