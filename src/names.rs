//! ONE NAME A TYPE, enforced by a test: whoever reads a name knows which type it is, in whatever
//! file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::rooms::code_of;

/// Names that several files give to types of their own, each for the same purpose.
const SHARED: &[(&str, &str)] = &[
    ("Args", "the flags of a subcommand, one file each"),
    ("Options", "the options of an engine; outside it has the engine's name too"),
];

#[test]
fn no_two_types_share_a_name() {
    let mut files = BTreeMap::new();
    collect(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")), &mut files);
    files.retain(|_, files: &mut BTreeSet<String>| files.len() > 1);
    let mut faults = Vec::new();
    for (shared, _) in SHARED {
        if files.remove(*shared).is_none() {
            faults.push(format!("only one {shared}: remove it from SHARED"));
        }
    }
    faults.extend(files.iter().map(|(name, files)| format!("{name}: {files:?}")));
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

fn collect(folder: &Path, files: &mut BTreeMap<String, BTreeSet<String>>) {
    for entry in fs::read_dir(folder).expect("sources").map(|entry| entry.expect("an entry").path())
    {
        if entry.is_dir() {
            collect(&entry, files);
            continue;
        }
        let source = fs::read_to_string(&entry).expect("a source file");
        for name in code_of(&source).lines().filter_map(declared) {
            files.entry(name.to_owned()).or_default().insert(entry.display().to_string());
        }
    }
}

/// The type that a line declares. Not one in a function or a trait, which nobody else can name.
fn declared(line: &str) -> Option<&str> {
    let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
    if line.starts_with(' ') {
        return None;
    }
    words.find(|word| matches!(*word, "struct" | "enum" | "union" | "trait" | "type"))?;
    words.next().filter(|name| name.starts_with(char::is_uppercase))
}

#[test]
fn declarations_are_read_as_the_compiler_does() {
    for (line, name) in [
        ("pub(super) struct Slot<'ring>(&'ring mut Ring);", Some("Slot")),
        ("unsafe trait Entry: Copy {}", Some("Entry")),
        ("pub type Progress<'a> = dyn FnMut(usize) -> bool + 'a;", Some("Progress")),
        ("    type Down = Changed;", None),
        ("fn enter(role: Role) {}", None),
    ] {
        assert_eq!(declared(line), name, "{line}");
    }
}
