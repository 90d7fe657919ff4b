//! Identity files: TOML, one per client, readable only by the owner.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::str;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::secret::private;
use crate::address::Identity;
use crate::address::identity::{IdentityError, VERSION};

/// Size limit in bytes: room for some thousand services.
const LARGEST: usize = 65_536;

/// The comment at the top of each file.
const HEADER: &str = "\
# Who has this file has one client's addresses: keep it to yourself (mode 600).
# sixhop where FILE prints the address of now.
";

/// The field that identities of every version share.
#[derive(Deserialize)]
struct FormatVersion {
    version: u32,
}

/// Reads the identity file at `path`. It also disables core dumps of this process.
///
/// # Errors
/// When others may read or change the file, it is not a regular file, it does not contain an
/// identity, or its version is another one.
pub fn read(path: &Path) -> Result<Identity> {
    let bytes = private(path, "identity", LARGEST)?;
    let name = path.display();
    let text = str::from_utf8(&bytes).map_err(|_| anyhow!("{name} is no identity: not text"))?;
    // Of an error only its message, never the line that it is in, which may be a key's.
    let wrong = |error: toml::de::Error| anyhow!("{name} is no identity: {}", error.message());
    let FormatVersion { version } = toml::from_str(text).map_err(wrong)?;
    ensure!(version == VERSION, "{name} is no identity: {}", IdentityError::Version(version));
    toml::from_str(text).map_err(wrong)
}

/// Writes `identity` to a new file at `path`, readable only by its owner. With `replace` it takes
/// the place of an existing file.
///
/// # Errors
/// If the file already exists or cannot be written. Nothing is left of it then.
pub fn write(path: &Path, identity: &Identity, replace: bool) -> Result<()> {
    let name = path.display();
    let cannot = || format!("cannot write {name}");
    let fields = Zeroizing::new(toml::to_string(identity).with_context(cannot)?);
    let text = Zeroizing::new([HEADER, &fields].concat());
    if !replace {
        return match create(path, &text) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                bail!("{name} already exists")
            }
            done => done.with_context(cannot),
        };
    }
    // Whoever reads it finds the old or the new one, and all of it.
    let half = path.with_extension("half");
    match fs::remove_file(&half) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(cannot);
        }
        _ => {}
    }
    create(&half, &text)
        .and_then(|()| fs::rename(&half, path).inspect_err(|_| drop(fs::remove_file(&half))))
        .with_context(cannot)
}

fn create(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes()).inspect_err(|_| drop(fs::remove_file(path)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Secret;
    use crate::address::identity::Services;
    use crate::address::mt6d::{Clock, Subnet};
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::time::Duration;

    fn identity(client: u32) -> Identity {
        let subnet = Subnet::new("2001:db8:1::/64".parse().unwrap()).unwrap();
        let clock = Clock::new(Duration::from_secs(10)).unwrap();
        let secret = Secret::new(vec![7; 16]).unwrap();
        Identity::new(subnet, clock, &secret, client, Services::new()).unwrap()
    }

    #[test]
    fn a_file_is_its_owners_alone_and_never_overwritten_unasked() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("client-000001.toml");
        write(&path, &identity(1), false).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read(&path).unwrap(), identity(1));
        let words = format!("{:#}", write(&path, &identity(2), false).unwrap_err());
        assert!(words.contains("already exists"), "{words}");
        assert_eq!(read(&path).unwrap(), identity(1));
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let words = format!("{:#}", read(&path).unwrap_err());
        assert!(words.contains("the identity") && words.contains("chmod 600"), "{words}");
        write(&path, &identity(2), true).unwrap();
        assert_eq!(read(&path).unwrap(), identity(2));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        // Nothing is written through a link that somebody has laid.
        let (link, other) = (directory.path().join("link"), directory.path().join("other"));
        symlink(&other, &link).unwrap();
        assert!(write(&link, &identity(3), false).is_err());
        write(&link, &identity(3), true).unwrap();
        assert!(!other.exists() && read(&link).unwrap() == identity(3));
    }

    #[test]
    fn a_file_of_another_version_or_kind_is_refused_in_one_line_without_its_keys() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("identity");
        write(&path, &identity(1), false).unwrap();
        let good = fs::read_to_string(&path).unwrap();
        let seed = good.split_once("seed = \"").unwrap().1.split('"').next().unwrap().to_owned();
        assert_eq!(seed.len(), 80);
        for (text, wanted) in [
            (good.replace("version = 1", "version = 7\nnew = true"), "of version 7"),
            (good.replace("version = 1", ""), "version"),
            (good.replace(&seed, &seed[1..]), "hexadecimal digits"),
            (good.replace(&format!("\"{seed}\""), &seed), "no identity"),
            (good.replace("1::/64", "1::/56"), "use a /64"),
            ("not a secret, since it is here".into(), "no identity"),
            (String::new(), "version"),
        ] {
            fs::write(&path, &text).unwrap();
            let words = format!("{:#}", read(&path).unwrap_err());
            assert!(words.contains(wanted) && !words.contains('\n'), "{words}");
            assert!(!words.contains(&seed[1..]), "{words}");
        }
        fs::write(&path, [0xff; 10]).unwrap();
        assert!(format!("{:#}", read(&path).unwrap_err()).contains("not text"));
        fs::write(&path, [b'#'; LARGEST + 1]).unwrap();
        assert!(format!("{:#}", read(&path).unwrap_err()).contains("another file"));
    }
}
