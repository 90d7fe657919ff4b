//! Compiles `bpf/*.bpf.c` into Rust skeletons with clang and the kernel's user-space headers, and
//! determines the git revision.
use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

use libbpf_cargo::SkeletonBuilder;

/// Everything that the program is built from.
const SOURCES: [&str; 6] = ["src", "bpf", "bench/profiles", "build.rs", "Cargo.toml", "Cargo.lock"];

fn main() {
    println!("cargo::rustc-env=SIXHOP_REVISION={}", revision());
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".into());
    println!("cargo::rerun-if-env-changed=CLANG");
    if Command::new(&clang).arg("--version").output().is_err() {
        fail(&format!(
            "{clang} not found: install the package 'clang', which compiles the BPF programs"
        ));
    }

    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let mut arguments = vec!["-Wall".to_owned(), "-Werror".to_owned()];
    // Debian and Ubuntu keep asm/types.h under the machine's triple. clang does not look there for
    // the bpf target.
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets CARGO_CFG_TARGET_ARCH");
    let multiarch = format!("/usr/include/{arch}-linux-gnu");
    if Path::new(&multiarch).exists() {
        arguments.extend(["-I".to_owned(), multiarch]);
    } else if !Path::new("/usr/include/asm/types.h").exists() {
        fail("kernel headers not found: install the package 'linux-libc-dev'");
    }
    for object in ["steer", "gate"] {
        let source = format!("bpf/{object}.bpf.c");
        let mut builder = SkeletonBuilder::new();
        builder.source(&source).clang(&clang).clang_args(&arguments);
        if let Err(error) = builder.build_and_generate(out.join(format!("{object}.skel.rs"))) {
            fail(&format!("{source} does not compile: {error:?}"));
        }
    }
}

/// The checked-out commit, with `-dirty` if the sources differ from it; empty outside git.
/// Recomputed when either changes, since published figures carry it.
fn revision() -> String {
    let git = |arguments: &[&str]| {
        let output =
            Command::new("git").args(arguments).env("GIT_OPTIONAL_LOCKS", "0").output().ok()?;
        let words = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| words.trim().to_owned())
    };
    let of_git = ["HEAD", "logs/HEAD"].map(|file| git(&["rev-parse", "--git-path", file]));
    for path in of_git.into_iter().flatten().chain(SOURCES.map(String::from)) {
        if Path::new(&path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else { return String::new() };
    let status = git(&[&["status", "--porcelain", "--"], &SOURCES[..]].concat());
    if status.is_some_and(|changes| changes.is_empty()) { commit } else { commit + "-dirty" }
}

/// Fails with one line instead of a backtrace of this script.
fn fail(what: &str) -> ! {
    println!("cargo::error={what}");
    exit(1)
}
