//! The file that the shared secret is in: read once, by nobody else readable. Identities are read
//! the same way.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{Resource, setrlimit};
use zeroize::Zeroizing;

use crate::address::Secret;

/// Bytes of the largest file that is taken for a secret: a larger one is another file.
const LARGEST: usize = 4096;

/// Bits of a file's mode by which group and others may read, write or execute it.
const OTHERS: u32 = 0o077;

/// Reads the secret in the file at `path`, all of it. From then on this process leaves no core
/// dump, which would hold it.
///
/// # Errors
/// When others may read or change the file, it is no regular file, or what it holds is no secret.
pub fn read(path: &Path) -> Result<Secret> {
    let bytes = private(path, "secret", LARGEST)?;
    Secret::new(bytes.to_vec()).with_context(|| format!("{} is no secret", path.display()))
}

/// Reads all of a file, at most `largest` bytes, that holds a `what` and that nobody else may read
/// or change. From then on this process leaves no core dump.
pub(super) fn private(path: &Path, what: &str, largest: usize) -> Result<Zeroizing<Vec<u8>>> {
    let name = path.display();
    setrlimit(Resource::RLIMIT_CORE, 0, 0)
        .with_context(|| format!("cannot rule out core dumps, which would hold the {what}"))?;
    // A pipe that nobody writes to would be waited for.
    let mut options = File::options();
    let mut file = options
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .with_context(|| format!("cannot read the {what} {name}"))?;
    // Of what was opened: the name may lead elsewhere by now.
    let about = file.metadata().with_context(|| format!("cannot look at the {what} {name}"))?;
    ensure!(about.is_file(), "the {what} {name} is no regular file");
    ensure!(
        about.mode() & OTHERS == 0,
        "the {what} {name} is open to others (mode {:03o}): chmod 600 {name}",
        about.mode() & 0o777
    );
    // One byte more than it may have, and never grown: what is copied to larger memory leaves a
    // copy behind.
    let mut bytes = Zeroizing::new(vec![0; largest + 1]);
    let mut length = 0;
    while length < bytes.len() {
        match file
            .read(&mut bytes[length..])
            .with_context(|| format!("cannot read the {what} {name}"))?
        {
            0 => break,
            count => length += count,
        }
    }
    ensure!(
        length <= largest,
        "the {what} {name} has more than {largest} bytes: it is another file"
    );
    bytes.truncate(length);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn only_a_file_of_ones_own_with_enough_in_it_is_a_secret() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        let refused = |path: &Path| format!("{:#}", read(path).unwrap_err());
        assert!(refused(&path).contains("No such file"));
        fs::write(&path, [7; 16]).unwrap();
        for mode in [0o640, 0o604, 0o620, 0o601, 0o666] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let words = refused(&path);
            assert!(words.contains(&format!("chmod 600 {}", path.display())), "{words}");
        }
        for mode in [0o600, 0o400] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            read(&path).unwrap();
        }
        assert!(refused(directory.path()).contains("no regular file"));
        let pipe = directory.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(refused(&pipe).contains("no regular file"));
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, [7; 15]).unwrap();
        assert!(refused(&path).contains("15 bytes"));
        fs::write(&path, [7; LARGEST + 1]).unwrap();
        assert!(refused(&path).contains("another file"));
    }
}
