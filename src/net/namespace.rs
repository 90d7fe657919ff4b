//! NAMED NETWORK NAMESPACES, compatible with `ip netns`: each is a file in /run/netns with the
//! namespace mounted on it. This code changes /run/netns, and the calling thread's namespace where
//! a function says so.

use std::fs::{self, DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

use crate::net::denied;

const DIRECTORY: &str = "/run/netns";

/// An existing namespace. It lives until its name is removed, this value is dropped and its last
/// process has ended.
#[derive(Debug)]
pub(crate) struct Namespace(File);

impl Namespace {
    /// Opens the namespace of that name, if it exists. A run killed between creating the file and
    /// mounting onto it leaves an empty file, which counts as no namespace.
    pub fn open(name: &str) -> Result<Option<Self>> {
        let path = path(name);
        let file = match File::open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file.with_context(|| format!("cannot open {}", path.display()))?,
        };
        let kind = fstatfs(&file).with_context(|| format!("cannot look at {}", path.display()))?;
        if kind.filesystem_type() == NSFS_MAGIC {
            Ok(Some(Self(file)))
        } else if file.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() == 0) {
            Ok(None)
        } else {
            bail!(
                "{} is not a network namespace: remove it, or choose another name",
                path.display()
            )
        }
    }

    /// Creates an empty namespace of that name.
    pub fn create(name: &str) -> Result<Self> {
        prepare_directory().with_context(|| format!("cannot prepare {DIRECTORY}"))?;
        let path = path(name);
        File::create_new(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let made = thread::scope(|scope| {
            // unshare(2) moves the calling thread into the new namespace. A thread that ends
            // afterwards need not come back.
            let maker = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET)?;
                bind_mount(Path::new("/proc/thread-self/ns/net"), &path)
            });
            maker.join().unwrap_or(Err(Errno::UnknownErrno))
        });
        if let Err(error) = made {
            let _ = fs::remove_file(&path);
            return Err(error).with_context(|| format!("cannot make network namespace {name}"));
        }
        Self::open(name)?.with_context(|| format!("network namespace {name} disappeared at once"))
    }

    /// Removes the name, whether it belongs to a namespace or an unused file. False if it does not
    /// exist.
    pub fn remove(name: &str) -> Result<bool> {
        let path = path(name);
        match umount2(&path, MntFlags::MNT_DETACH) {
            // No such file, or nothing mounted on it.
            Ok(()) | Err(Errno::ENOENT | Errno::EINVAL) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("cannot unmount {}", path.display()));
            }
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            removed => {
                removed.map(|()| true).with_context(|| format!("cannot remove {}", path.display()))
            }
        }
    }

    /// Moves the calling thread, and no other, into the namespace.
    pub fn enter(&self) -> Result<()> {
        setns(&self.0, CloneFlags::CLONE_NEWNET).map_err(|error| match error {
            Errno::EPERM => {
                let why = denied::explain("it", &["CAP_SYS_ADMIN"], "setns(2)");
                anyhow!("cannot enter a network namespace: {why}")
            }
            _ => anyhow!("cannot enter a network namespace: {error}"),
        })
    }

    /// Runs `f` in the namespace, on its own thread, and returns its result.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.enter()?;
                f()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl std::os::fd::AsFd for Namespace {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn path(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

/// Makes /run/netns a shared mount, as `ip netns add` does. Otherwise a process with a private
/// mount namespace would keep a network namespace alive after its removal here.
fn prepare_directory() -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(DIRECTORY)?;
    let directory = Path::new(DIRECTORY);
    // The lock that `ip` takes too, so that two processes do not mount on top of each other.
    let _lock =
        Flock::lock(File::open(directory)?, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
    let share = || {
        let flags = MsFlags::MS_SHARED | MsFlags::MS_REC;
        mount(None::<&str>, directory, None::<&str>, flags, None::<&str>)
    };
    match share() {
        // Not a mount point yet.
        Err(Errno::EINVAL) => {
            bind_mount(directory, directory)?;
            Ok(share()?)
        }
        shared => Ok(shared?),
    }
}

fn bind_mount(what: &Path, onto: &Path) -> Result<(), Errno> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(what), onto, None::<&str>, flags, None::<&str>)
}
