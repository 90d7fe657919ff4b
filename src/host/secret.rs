//! The file with the shared secret: read once, and only if nobody else can read it.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{Resource, setrlimit};
use zeroize::Zeroizing;

use crate::address::Secret;

/// Size limit in bytes: a larger file is not a secret.
const LARGEST: usize = 4096;

/// The mode bits that let group and others read, write or execute a file.
const OTHERS: u32 = 0o077;

/// Reads the whole secret file at `path`. It also disables core dumps of this process, which would
/// contain the secret.
///
/// # Errors
/// When others may read or change the file, it is not a regular file, or it does not contain a
/// secret.
pub fn read(path: &Path) -> Result<Secret> {
    let name = path.display();
    setrlimit(Resource::RLIMIT_CORE, 0, 0)
        .context("cannot disable core dumps, which would contain the secret")?;
    // Without O_NONBLOCK, opening a pipe without a writer would block.
    let mut options = File::options();
    let mut file = options
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .with_context(|| format!("cannot read the secret {name}"))?;
    // Check the open file: the name may point elsewhere by now.
    let about = file.metadata().with_context(|| format!("cannot stat the secret {name}"))?;
    ensure!(about.is_file(), "the secret {name} is not a regular file");
    ensure!(
        about.mode() & OTHERS == 0,
        "the secret {name} is open to others (mode {:03o}): chmod 600 {name}",
        about.mode() & 0o777
    );
    // One byte more than the limit. The buffer never grows, as reallocating would leave a copy
    // behind.
    let mut bytes = Zeroizing::new(vec![0; LARGEST + 1]);
    let mut length = 0;
    while length < bytes.len() {
        match file
            .read(&mut bytes[length..])
            .with_context(|| format!("cannot read the secret {name}"))?
        {
            0 => break,
            count => length += count,
        }
    }
    ensure!(length <= LARGEST, "{name} has more than {LARGEST} bytes, so it is not a secret");
    Secret::new(bytes[..length].to_vec()).with_context(|| format!("{name} is not a secret"))
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
        assert!(refused(directory.path()).contains("not a regular file"));
        let pipe = directory.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(refused(&pipe).contains("not a regular file"));
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, [7; 15]).unwrap();
        assert!(refused(&path).contains("15 bytes"));
        fs::write(&path, [7; LARGEST + 1]).unwrap();
        assert!(refused(&path).contains("not a secret"));
    }
}
