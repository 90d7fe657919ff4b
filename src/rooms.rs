//! THE ORDER OF THE ROOMS, enforced by a test: a room may use only rooms above it in [`ROOMS`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

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
