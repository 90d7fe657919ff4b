//! Compiles `bpf/*.bpf.c` from source into Rust skeletons, with clang and the kernel's user-space headers.
use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

use libbpf_cargo::SkeletonBuilder;

fn main() {
    println!("cargo::rerun-if-changed=bpf");
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".into());
    println!("cargo::rerun-if-env-changed=CLANG");
    if Command::new(&clang).arg("--version").output().is_err() {
        fail(&format!("{clang} not found: install the package 'clang' (it compiles the XDP program)"));
    }

    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let mut builder = SkeletonBuilder::new();
    builder.source("bpf/steer.bpf.c").clang(&clang).clang_args(["-Wall", "-Werror"]);
    // Debian and Ubuntu keep asm/types.h under the machine's triple, where clang does not look when the target is bpf.
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets CARGO_CFG_TARGET_ARCH");
    let multiarch = format!("/usr/include/{arch}-linux-gnu");
    if Path::new(&multiarch).exists() {
        builder.clang_args(["-Wall", "-Werror", "-I", &multiarch]);
    } else if !Path::new("/usr/include/asm/types.h").exists() {
        fail("kernel headers not found: install the package 'linux-libc-dev'");
    }
    if let Err(error) = builder.build_and_generate(out.join("steer.skel.rs")) {
        fail(&format!("bpf/steer.bpf.c does not compile: {error:?}"));
    }
}

/// One line, and no backtrace of this script.
fn fail(what: &str) -> ! {
    println!("cargo::error={what}");
    exit(1)
}
