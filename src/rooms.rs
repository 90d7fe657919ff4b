//! THE ORDER OF THE ROOMS, enforced by a test: a room may use only rooms above it in [`ROOMS`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The rooms, from the ground up. docs/architecture.md says what each is for.
const ROOMS: &[&str] = &[
    "wire",
    "address",
    "events",
    "net",
    "host",
    "xdp",
    "live",
    "policy",
    "service",
    "engine",
    "server",
    "gate",
    "load",
    "lab",
    "probe",
    "experiment",
    "report",
    "cli",
    "fuzz",
];

/// Uses that still go the wrong way: from, to, reason. The test fails on one that is no longer
/// needed.
const EXCEPTIONS: &[(&str, &str, &str)] = &[];

/// Files that are not rooms: the crate root, the program's entry point, and what tests the sources.
const LOOSE: &[&str] = &["lib", "main", "names", "rooms"];

#[test]
fn arrows_run_one_way() {
    let mut edges = BTreeMap::new();
    collect(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")), &[], &mut edges);
    let place = |room: &str| ROOMS.iter().position(|known| *known == room);
    let mut faults = Vec::new();
    let mut needed = BTreeSet::new();
    for ((from, to), files) in &edges {
        let (Some(above), Some(below)) = (place(to), place(from)) else {
            faults.push(format!("{from} uses {to}: one of them is not a room ({files:?})"));
            continue;
        };
        if above < below {
            continue;
        }
        match EXCEPTIONS.iter().find(|(room, other, _)| room == from && other == to) {
            Some(exception) => {
                needed.insert(exception);
            }
            None => faults.push(format!("{from} uses {to}, which is below it: {files:?}")),
        }
    }
    for exception in EXCEPTIONS.iter().filter(|exception| !needed.contains(exception)) {
        let (from, to, _) = exception;
        faults.push(format!("{from} no longer uses {to}: remove it from EXCEPTIONS"));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// From, to, and the files with the imports.
type Edges = BTreeMap<(String, String), BTreeSet<String>>;

fn collect(folder: &Path, parents: &[String], edges: &mut Edges) {
    for entry in fs::read_dir(folder).expect("sources").map(|entry| entry.expect("an entry").path())
    {
        let name = entry.file_stem().and_then(|name| name.to_str()).expect("a name").to_owned();
        let mut module = parents.to_vec();
        if name != "mod" {
            module.push(name);
        }
        if entry.is_dir() {
            collect(&entry, &module, edges);
        } else if !(module.len() == 1 && LOOSE.contains(&module[0].as_str())) {
            let source = fs::read_to_string(&entry).expect("a source file");
            for used in rooms_used(&source, module.len()) {
                if used != module[0] {
                    let files = edges.entry((module[0].clone(), used)).or_default();
                    files.insert(entry.display().to_string());
                }
            }
        }
    }
}

/// `source` without comments, and without the tests at its end.
pub(crate) fn code_of(source: &str) -> String {
    let lines: Vec<_> = source.lines().collect();
    let tests = lines.windows(2).position(|pair| {
        pair[0] == "#[cfg(test)]" && pair[1].contains("mod ") && pair[1].ends_with('{')
    });
    lines[..tests.unwrap_or(lines.len())]
        .iter()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n")
}

/// The rooms that a module `depth` levels below the crate root names, without its tests and
/// comments.
fn rooms_used(source: &str, depth: usize) -> BTreeSet<String> {
    let code = code_of(source);
    let mut rooms = BTreeSet::new();
    for root in ["crate::".to_owned(), "super::".repeat(depth)] {
        for (at, _) in code.match_indices(&root) {
            let line = &code[code[..at].rfind('\n').map_or(0, |end| end + 1)..at];
            // `super` in an inline module stays in the file.
            let inner = root != "crate::" && line.starts_with(' ');
            let longer = line.ends_with(|before: char| before.is_alphanumeric() || before == '_');
            if inner || longer || line.ends_with("::") {
                continue;
            }
            let rest = &code[at + root.len()..];
            assert!(!rest.starts_with('{'), "{root}{{…}}: name one room in a `use`");
            let name: String =
                rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            rooms.insert(name);
        }
    }
    rooms
}

#[test]
fn paths_are_read_as_the_compiler_does() {
    let source = "use crate::wire::Stamp; // crate::cli\nuse super::super::net;\n\
                  mod x {\n    use super::y;\n}\n\
                  #[cfg(test)]\nmod tests {\n    use crate::lab;\n}\n";
    assert_eq!(rooms_used(source, 2), ["net", "wire"].map(str::to_owned).into());
    assert_eq!(rooms_used("use super::net;", 1), ["net".to_owned()].into());
}

/// Rooms that any program may use: their messages name causes, and src/cli/advice.rs the flags.
const FLAGLESS: &[&str] =
    &["address", "events", "net", "host", "xdp", "live", "policy", "service", "engine", "server"];

/// Flags that may be named: in which file, which (all where it is empty), and why.
const FLAGGED: &[(&str, &str, &str)] = &[
    ("server/guard.rs", "", "starts this program again, as the guard of a server"),
    ("net/denied.rs", "--security-opt", "is docker's"),
];

#[test]
fn messages_of_the_library_name_causes_and_no_flags() {
    let mut files = Vec::new();
    for room in FLAGLESS {
        let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")).join(room);
        if path.is_dir() {
            sources(&path, &mut files)
        } else {
            files.push(path.with_extension("rs"))
        }
    }
    let mut faults = Vec::new();
    let mut needed = BTreeSet::new();
    for file in files {
        let code = code_of(&fs::read_to_string(&file).expect("a source file"));
        for line in code.lines().filter(|line| names_a_flag(line)) {
            let excepted =
                |(name, flag, _): &&(&str, &str, &str)| file.ends_with(name) && line.contains(flag);
            match FLAGGED.iter().find(excepted) {
                Some((name, ..)) => drop(needed.insert(name)),
                None => faults.push(format!("{}: {}", file.display(), line.trim())),
            }
        }
    }
    for (name, ..) in FLAGGED.iter().filter(|(name, ..)| !needed.contains(name)) {
        faults.push(format!("{name} names no flag: remove it from FLAGGED"));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

fn sources(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("sources").map(|entry| entry.expect("an entry").path())
    {
        if entry.is_dir() { sources(&entry, files) } else { files.push(entry) }
    }
}

/// Whether a line of code, which has no comment, has `--` and a letter: nothing but a literal can.
fn names_a_flag(line: &str) -> bool {
    line.match_indices("--")
        .any(|(at, _)| line[at + 2..].starts_with(|next: char| next.is_ascii_lowercase()))
}

#[test]
fn a_flag_is_told_from_a_dash() {
    for (line, names) in [
        (r#"bail!("use --bind netlink")"#, true),
        (r#"         --frame-size {needed}, or set \"#, true),
        (r#""ip link set {0} up""#, false),
        ("x -= 1; -(-y)", false),
        (r#""/----\\ --> --""#, false),
    ] {
        assert_eq!(names_a_flag(line), names, "{line}");
    }
}
