//! The file with the shared secret: read once, and only if nobody else can read it. Identities are
//! read the same way.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::sys::resource::{Resource, setrlimit};
use zeroize::Zeroizing;

use crate::address::{Secret, SecretError};

/// Size limit in bytes: a larger file is not a secret.
const LARGEST: usize = 4096;

/// The mode bits that let group and others read, write or execute a file.
const OTHERS: u32 = 0o077;

/// Why a file gives no secret, or no identity: `what` says which.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SecretFileError {
    /// Core dumps cannot be disabled.
    #[error("cannot disable core dumps, which would contain the {0}")]
    CoreDumps(&'static str, #[source] io::Error),
    /// The file cannot be read.
    #[error("cannot read the {what} {path}")]
    Unreadable {
        /// A secret or an identity.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// The path leads to a directory, a pipe or a device.
    #[error("the {what} {path} is not a regular file")]
    NoFile {
        /// A secret or an identity.
        what: &'static str,
        /// The path.
        path: PathBuf,
    },
    /// Others may read or change it.
    #[error("the {what} {path} is open to others (mode {mode:03o}): chmod 600 {path}")]
    OpenToOthers {
        /// A secret or an identity.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The file is larger than any secret or identity.
    #[error("the {what} {path} has more than {largest} bytes: it is another file")]
    TooLarge {
        /// A secret or an identity.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The limit, in bytes.
        largest: usize,
    },
    /// The content is not a secret.
    #[error("{path} is not a secret")]
    NoSecret {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: SecretError,
    },
}

/// Reads the whole secret file at `path`. It also disables core dumps of this process, which would
/// contain the secret.
///
/// # Errors
/// When others may read or change the file, it is not a regular file, or it does not contain a
/// secret.
pub fn read(path: &Path) -> Result<Secret, SecretFileError> {
    let bytes = private(path, "secret", LARGEST)?;
    Secret::new(bytes.to_vec())
        .map_err(|source| SecretFileError::NoSecret { path: path.to_owned(), source })
}

/// Reads all of a file that holds a `what`, of at most `largest` bytes, and only if nobody else can
/// read or change it. It also disables core dumps of this process.
///
/// # Errors
/// As [`read`], except for the content.
pub(super) fn private(
    path: &Path,
    what: &'static str,
    largest: usize,
) -> Result<Zeroizing<Vec<u8>>, SecretFileError> {
    let name = || path.to_owned();
    let unreadable = |source| SecretFileError::Unreadable { what, path: name(), source };
    setrlimit(Resource::RLIMIT_CORE, 0, 0)
        .map_err(|error| SecretFileError::CoreDumps(what, error.into()))?;
    // Without O_NONBLOCK, opening a pipe without a writer would block.
    let mut options = File::options();
    let mut file =
        options.read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(unreadable)?;
    // Check the open file: the name may point elsewhere by now.
    let about = file.metadata().map_err(unreadable)?;
    if !about.is_file() {
        return Err(SecretFileError::NoFile { what, path: name() });
    }
    if about.mode() & OTHERS != 0 {
        let mode = about.mode() & 0o777;
        return Err(SecretFileError::OpenToOthers { what, path: name(), mode });
    }
    // One byte more than the limit. The buffer never grows, as reallocating would leave a copy
    // behind.
    let mut bytes = Zeroizing::new(vec![0; largest + 1]);
    let mut length = 0;
    while length < bytes.len() {
        match file.read(&mut bytes[length..]).map_err(unreadable)? {
            0 => break,
            count => length += count,
        }
    }
    if length > largest {
        return Err(SecretFileError::TooLarge { what, path: name(), largest });
    }
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
        let refused = |path: &Path| format!("{:#}", anyhow::Error::new(read(path).unwrap_err()));
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
        assert!(refused(&path).contains("another file"));
    }
}
