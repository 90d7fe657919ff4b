//! Checks the licences and sources of all built-in packages against deny.toml, without a network.
//! `make audit` has cargo-deny check them again, and advisories too, whose database comes from the
//! network.

use std::collections::BTreeSet;
use std::process::Command;

use crate::common::rootless;
use libtest_mimic::Trial;
use serde_json::Value;

pub fn trials() -> Vec<Trial> {
    let test = |name: &str, test: fn()| {
        rootless(name, move || {
            test();
            Ok(())
        })
    };
    vec![
        test("licences_are_those_of_deny_toml", licences_are_those_of_deny_toml),
        test(
            "everything_comes_from_the_default_registry_or_from_here",
            everything_comes_from_the_default_registry_or_from_here,
        ),
        test(
            "a_server_alone_takes_fewer_than_70_packages_and_none_of_the_laboratory",
            a_server_alone_takes_fewer_than_70_packages_and_none_of_the_laboratory,
        ),
    ]
}

/// Every package in a build for this machine, as cargo describes it.
fn packages() -> Vec<Value> {
    let rustc = Command::new("rustc").arg("-vV").output().unwrap();
    let words = String::from_utf8(rustc.stdout).unwrap();
    let host = words.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked", "--offline", "--all-features"])
        .args(["--filter-platform", host])
        .args(["--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

fn licences_are_those_of_deny_toml() {
    let policy: toml::Table = include_str!("../deny.toml").parse().unwrap();
    let allowed: Vec<_> = policy["licenses"]["allow"]
        .as_array()
        .unwrap()
        .iter()
        .map(|name| name.as_str().unwrap())
        .collect();
    let packages = packages();
    assert!(packages.len() > 100, "{}", packages.len());
    let mut met = vec![false; allowed.len()];
    for package in &packages {
        let (name, licence) = (&package["name"], package["license"].as_str().unwrap_or_default());
        // Cargo's old syntax uses a slash for OR.
        let expression = spdx::Expression::parse_mode(licence, spdx::ParseMode::LAX);
        let expression = expression.unwrap_or_else(|error| panic!("{name}: {error}"));
        let accepted = expression.evaluate(|requirement| {
            let place = requirement
                .license
                .id()
                .filter(|_| requirement.addition.is_none())
                .and_then(|id| allowed.iter().position(|allowed| *allowed == id.name));
            place.inspect(|place| met[*place] = true).is_some()
        });
        assert!(accepted, "{name} is under {licence}, which deny.toml does not allow");
    }
    let unused: Vec<_> = allowed.iter().zip(&met).filter(|(_, met)| !**met).collect();
    assert!(unused.is_empty(), "nothing needs {unused:?}: take them out of deny.toml");
}

fn everything_comes_from_the_default_registry_or_from_here() {
    let policy: toml::Table = include_str!("../deny.toml").parse().unwrap();
    let sources = policy["sources"].as_table().unwrap();
    assert!(
        sources["unknown-registry"].as_str() == Some("deny")
            && sources["unknown-git"].as_str() == Some("deny")
    );
    assert!(!sources.contains_key("allow-registry") && !sources.contains_key("allow-git"));
    for package in packages() {
        match package["source"].as_str() {
            None => assert_eq!(package["name"], "sixhop"),
            Some(source) => {
                assert!(source.contains("crates.io"), "{} comes from {source}", package["name"])
            }
        }
    }
    assert_eq!(
        policy["advisories"]["ignore"].as_array().map(Vec::len),
        Some(0),
        "deny.toml ignores other advisories: say why there, and update this number"
    );
}

fn a_server_alone_takes_fewer_than_70_packages_and_none_of_the_laboratory() {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--offline", "--no-default-features"])
        .args(["--edges=normal", "--prefix=none", "--no-dedupe", "--format={p}"])
        .args(["--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let packages: BTreeSet<_> = text.lines().collect();
    assert!(packages.len() < 70, "{}: {packages:#?}", packages.len());
    let name = |package: &str| package.split(' ').next().unwrap_or_default().to_owned();
    let names: BTreeSet<_> = packages.iter().map(|package| name(package)).collect();
    assert!(names.contains("libbpf-rs"), "{names:?}");
    let foreign = ["clap", "comfy-table", "csv", "indicatif", "maud", "plotters", "tempfile"];
    for package in foreign {
        assert!(!names.contains(package), "{package} is for the command line or the laboratory");
    }
}
