//! The parts of a guest: a kernel with its modules, and QEMU. Uses the machine's own if they
//! suffice. Otherwise it unpacks the distribution's packages into a cache (`~/.cache/sixhop`) and
//! installs nothing.
//!
//! Only Debian is supported. apt fetches the packages from the machine's configured mirror and
//! verifies its signatures. Packages that affect measurements are also pinned, by version and
//! checksum.

use std::cmp::Reverse;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};

/// A kernel and its modules.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// Its `uname -r`.
    pub release: String,
    /// Its bootable image.
    pub image: PathBuf,
    /// The directory that holds its modules, in `lib/modules/RELEASE`.
    pub base: PathBuf,
}

/// QEMU, the machine emulator.
#[derive(Debug, Clone)]
pub struct Qemu {
    /// Its version.
    pub version: String,
    program: PathBuf,
    /// Where it was unpacked; `None` for the machine's own.
    root: Option<PathBuf>,
}

/// The first release with zero-copy in igb (Linux 6.14); virtio_net has it since 6.11.
const ZERO_COPY_SINCE: (u32, u32) = (6, 14);

/// The first QEMU with an igb.
const IGB_SINCE: u32 = 8;

/// The kernel that is fetched by default.
const RELEASE: &str = "7.3.4+deb13-amd64";

/// The suite that has such kernels, and the one that has such a QEMU for Debian 12. Later releases
/// of Debian include that QEMU.
const KERNELS: &str = "trixie-backports";
const QEMU: &str = "bookworm-backports";

/// Packages that affect measurements: name, version, and SHA-256 of the file.
const PINNED: [(&str, &str, &str); 6] = [
    (
        "linux-binary-7.3.4+deb13-amd64",
        "7.3.4-1~bpo13+1",
        "7e3248d03a84dcdda88c567aa8c4038f2e7795d2dd167b112c56f8901b6f513f",
    ),
    (
        "linux-modules-7.3.4+deb13-amd64",
        "7.3.4-1~bpo13+1",
        "b3ea01922c9f133767a83cf6891c19b3693858ded617bf22d1e34f95382c08ea",
    ),
    (
        "qemu-system-x86",
        "1:10.0.2+ds-2+deb13u1~bpo12+1",
        "4a6b1856c8b0d7df4ff8e70249e12c473ccf8d516aadb4ae14d3d938faed0c65",
    ),
    (
        "qemu-system-common",
        "1:10.0.2+ds-2+deb13u1~bpo12+1",
        "23a4672a138832d7173855e981aa8282c73ef5e04e080fa7ada9f82c6b34f507",
    ),
    (
        "qemu-system-data",
        "1:10.0.2+ds-2+deb13u1~bpo12+1",
        "2d831088187087013b3fcbd19bdfb955b182a2d5a08f6dafa0ad1c6d2007fb4e",
    ),
    (
        "seabios",
        "1.16.3-2~bpo12+1",
        "48390d0a534c66d11789e39518aa219773a9d3677b29fe1af8799dfb563ec713",
    ),
];

impl Kernel {
    /// Finds the kernel that `wanted` names: a directory like /lib/modules/RELEASE that holds
    /// `vmlinuz` and the modules, or a Debian release (`6.12.95+deb12-amd64`). By default it takes
    /// the machine's newest kernel with zero-copy, or else fetches Debian's. Calls `show` before
    /// each slow step.
    ///
    /// # Errors
    /// If no kernel is found, and none can be fetched.
    pub fn find(wanted: Option<&str>, show: &mut dyn FnMut(&str)) -> Result<Self> {
        match wanted {
            Some(directory) if directory.contains('/') => Self::at(Path::new(directory)),
            Some(release) => Self::fetched(release, show),
            None => match Self::of_machine() {
                Some(kernel) => Ok(kernel),
                None => Self::fetched(RELEASE, show),
            },
        }
    }

    fn at(directory: &Path) -> Result<Self> {
        let directory = directory
            .canonicalize()
            .with_context(|| format!("cannot open {}", directory.display()))?;
        let release = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let base = directory.parent().filter(|modules| modules.ends_with("lib/modules"));
        let base = base.and_then(|modules| modules.parent()?.parent()).with_context(|| {
            format!(
                "{} is not a kernel's directory: name one like /lib/modules/6.18.0",
                directory.display()
            )
        })?;
        let images = [directory.join("vmlinuz"), base.join(format!("boot/vmlinuz-{release}"))];
        let [first, _] = &images;
        let missing = format!("there is no kernel at {}", first.display());
        let image = images.into_iter().find(|image| File::open(image).is_ok()).context(missing)?;
        Ok(Self { release, image, base: base.to_owned() })
    }

    fn of_machine() -> Option<Self> {
        let installed = fs::read_dir("/lib/modules").ok()?.flatten();
        let kernels = installed.filter_map(|entry| Self::at(&entry.path()).ok());
        let mut kernels: Vec<_> = kernels
            .filter_map(|kernel| Some((version(&kernel.release)?, kernel)))
            .filter(|(version, _)| *version >= ZERO_COPY_SINCE)
            .collect();
        kernels.sort_by_key(|(version, _)| Reverse(*version));
        kernels.into_iter().map(|(_, kernel)| kernel).next()
    }

    fn fetched(release: &str, show: &mut dyn FnMut(&str)) -> Result<Self> {
        let root = cached(&format!("linux-{release}"), |apt, root| {
            // Older releases have one package. Newer ones have two, and an empty one by the old
            // name.
            let old = [format!("linux-image-{release}")];
            let new = ["binary", "modules"].map(|part| format!("linux-{part}-{release}"));
            let names =
                if apt.knows(&new[0])? && apt.knows(&new[1])? { &new[..] } else { &old[..] };
            ensure!(
                apt.knows(&names[0])?,
                "Debian has no kernel {release}, or no longer: name another with --kernel, such as \
                 {}, or a directory like /lib/modules/6.18.0",
                apt.kernels()?
            );
            apt.download(names, show)?;
            apt.unpack(root)?;
            // Older packages still use lib rather than usr/lib.
            let base =
                if root.join("lib/modules").exists() { root.to_owned() } else { root.join("usr") };
            run("depmod", Command::new(tool("depmod")).arg("-b").arg(base).arg(release))?;
            Ok(())
        })?;
        let bases = [root.clone(), root.join("usr")];
        let found = bases.iter().find(|base| base.join("lib/modules").exists());
        let base = found.with_context(|| format!("no modules in {}", root.display()))?;
        let image = [
            base.join(format!("lib/modules/{release}/vmlinuz")),
            root.join(format!("boot/vmlinuz-{release}")),
        ]
        .into_iter()
        .find(|image| image.exists())
        .with_context(|| format!("no kernel in {}", root.display()))?;
        Ok(Self { release: release.to_owned(), image, base: base.clone() })
    }

    /// The files of module `name` and the modules that it needs, in load order. Empty if it is
    /// built into the kernel.
    ///
    /// # Errors
    /// If modprobe is not installed.
    pub fn modules(&self, name: &str) -> Result<Vec<PathBuf>> {
        let mut modprobe = Command::new(tool("modprobe"));
        modprobe.arg("-d").arg(&self.base).args(["-S", &self.release, "--show-depends", name]);
        let output = modprobe.output().map_err(missing("modprobe"))?;
        // modprobe fails for built-in modules, since the packages do not list them.
        let lines = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(lines.lines().filter_map(module).map(Into::into).collect())
    }
}

/// The file in a line of modprobe's output. Options from this machine's configuration may follow
/// it.
fn module(line: &str) -> Option<&str> {
    let path = line.strip_prefix("insmod ")?;
    let end = path.find(".ko").and_then(|at| Some(at + path[at..].find(' ')?));
    Some(path[..end.unwrap_or(path.len())].trim())
}

impl Qemu {
    /// Finds the machine's own QEMU, or fetches one. Calls `show` before each slow step.
    ///
    /// # Errors
    /// If there is none and it cannot be fetched.
    pub fn find(show: &mut dyn FnMut(&str)) -> Result<Self> {
        if let Ok(own) = Self::at("qemu-system-x86_64".into(), None) {
            if version(&own.version).is_some_and(|(major, _)| major >= IGB_SINCE) {
                return Ok(own);
            }
        }
        let root = cached("qemu", |apt, root| {
            apt.download_with_libraries("qemu-system-x86", show)?;
            apt.unpack(root)
        })?;
        Self::at(root.join("usr/bin/qemu-system-x86_64"), Some(root))
    }

    fn at(program: PathBuf, root: Option<PathBuf>) -> Result<Self> {
        let mut qemu = Self { version: String::new(), program, root };
        let output = qemu.command().arg("--version").output();
        let output = output.with_context(|| format!("cannot run {}", qemu.program.display()))?;
        let words = String::from_utf8_lossy(&output.stdout).into_owned();
        let version =
            words.strip_prefix("QEMU emulator version ").and_then(|rest| rest.split(' ').next());
        let unwilling = || {
            let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            format!("{} does not report its version: {why}", qemu.program.display())
        };
        qemu.version = version.with_context(unwilling)?.trim().to_owned();
        Ok(qemu)
    }

    /// The command that starts it, without arguments. The kernel kills QEMU when the thread that
    /// started it ends.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(&self.program);
        if let Some(root) = &self.root {
            let libraries = ["usr/lib", "lib"].map(|lib| root.join(lib).join("x86_64-linux-gnu"));
            command.env("LD_LIBRARY_PATH", std::env::join_paths(libraries).unwrap_or_default());
            for firmware in ["usr/share/qemu", "usr/share/seabios"] {
                command.arg("-L").arg(root.join(firmware));
            }
        }
        command
    }
}

/// apt, with a state of its own.
struct Apt {
    directory: PathBuf,
    config: PathBuf,
}

impl Apt {
    /// Configures this machine's own suite and the backports, with all state in `directory`.
    fn new(directory: &Path) -> Result<Self> {
        let codename = codename()?;
        let format = "$(REPO_URI) $(CODENAME) $(ORIGIN)";
        let targets = output(Command::new("apt-get").args(["indextargets", "--format", format]))?;
        let mut targets = targets.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let mirror = targets.find_map(|target| match target[..] {
            [mirror, suite, "Debian"] if suite == codename => Some(mirror.to_owned()),
            _ => None,
        });
        let mirror = mirror
            .with_context(|| format!("apt lists no mirror of {codename}: run 'apt-get update'"))?;
        let apt = Self { directory: directory.to_owned(), config: directory.join("apt.conf") };
        for part in ["state/lists/partial", "archives/partial"] {
            fs::create_dir_all(directory.join(part))?;
        }
        let suites = [codename.as_str(), QEMU, KERNELS];
        let key = "/usr/share/keyrings/debian-archive-keyring.gpg";
        let source = |suite| format!("deb [signed-by={key}] {mirror} {suite} main\n");
        fs::write(directory.join("sources.list"), suites.map(source).concat())?;
        let at = directory.display();
        fs::write(
            &apt.config,
            format!(
                "Dir::State \"{at}/state\";\nDir::State::status \"/var/lib/dpkg/status\";\n\
                 Dir::Cache \"{at}\";\n\
                 Dir::Etc::sourcelist \"{at}/sources.list\";\nDir::Etc::sourceparts \"-\";\n\
                 APT::Sandbox::User \"root\";\nAcquire::Languages \"none\";\n"
            ),
        )?;
        run("apt-get update", apt.command("apt-get").args(["update", "-qq"]))?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("APT_CONFIG", &self.config)
            .env("LC_ALL", "C")
            .current_dir(self.directory.join("archives"));
        command
    }

    fn knows(&self, package: &str) -> Result<bool> {
        Ok(!output(self.command("apt-cache").args(["madison", package]))?.trim().is_empty())
    }

    /// The newest available kernel releases.
    fn kernels(&self) -> Result<String> {
        let names = output(self.command("apt-cache").args(["pkgnames", "linux-modules-"]))?;
        let releases = names.lines().filter_map(|name| name.strip_prefix("linux-modules-"));
        let mut releases: Vec<_> =
            releases.filter(|release| release.ends_with("deb13-amd64")).collect();
        releases.sort_by_key(|release| Reverse(version(release)));
        releases.truncate(3);
        Ok(releases.join(", "))
    }

    fn download(&self, packages: &[String], show: &mut dyn FnMut(&str)) -> Result<()> {
        show(&format!("fetching {}", packages.join(", ")));
        run("apt-get download", self.command("apt-get").args(["download", "-qq"]).args(packages))
    }

    /// Also downloads the dependencies that this machine lacks.
    fn download_with_libraries(&self, package: &str, show: &mut dyn FnMut(&str)) -> Result<()> {
        show(&format!("fetching {package}"));
        let mut command = self.command("apt-get");
        command.args(["install", "-qq", "-y", "--download-only", "--no-install-recommends"]);
        if codename()? == "bookworm" {
            command.args(["-t", QEMU]);
        }
        run("apt-get install --download-only", command.arg(package))
    }

    /// Verifies every downloaded package and unpacks it into `root`.
    fn unpack(&self, root: &Path) -> Result<()> {
        for entry in fs::read_dir(self.directory.join("archives"))? {
            let path = entry?.path();
            if path.extension() != Some(OsStr::new("deb")) {
                continue;
            }
            let field = |name| output(Command::new("dpkg-deb").arg("-f").arg(&path).arg(name));
            let (package, version) = (field("Package")?, field("Version")?);
            verify(&path, package.trim(), version.trim())?;
            run("dpkg-deb", Command::new("dpkg-deb").arg("-x").arg(&path).arg(root))?;
        }
        Ok(())
    }
}

/// Rejects a package with the pinned version but another checksum. Other versions pass: `--kernel`
/// or another Debian asked for them, and apt has verified them.
fn verify(file: &Path, package: &str, version: &str) -> Result<()> {
    let pinned = PINNED.iter().find(|(name, pinned, _)| *name == package && *pinned == version);
    let Some((_, _, expected)) = pinned else { return Ok(()) };
    let mut hasher = Sha256::new();
    io::copy(&mut File::open(file)?, &mut hasher)?;
    let found: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    ensure!(
        found == **expected,
        "{package} {version} differs from the pinned file: its SHA-256 is {found}"
    );
    Ok(())
}

/// The directory `name` of the cache. If it is missing, `make` fills it; it appears only once
/// complete.
fn cached(name: &str, make: impl FnOnce(&Apt, &Path) -> Result<()>) -> Result<PathBuf> {
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
    let cache = cache.context("cannot place the cache: set HOME or XDG_CACHE_HOME")?.join("sixhop");
    let cannot = || format!("cannot write into {}", cache.display());
    fs::create_dir_all(&cache).with_context(cannot)?;
    let lock = File::create(cache.join("lock")).with_context(cannot)?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .with_context(cannot)?;
    let root = cache.join(name);
    if root.exists() {
        return Ok(root);
    }
    let work = tempfile::tempdir_in(&cache).with_context(cannot)?;
    let fresh = work.path().join("root");
    fs::create_dir(&fresh)?;
    let made = Apt::new(work.path()).and_then(|apt| make(&apt, &fresh));
    made.with_context(|| format!("cannot make {name} from the distribution's packages"))?;
    fs::rename(&fresh, &root).with_context(cannot)?;
    Ok(root)
}

/// The codename of this Debian release.
fn codename() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let field = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        value.unwrap_or_default().trim_matches('"').to_owned()
    };
    ensure!(
        field("ID") == "debian" && cfg!(target_arch = "x86_64"),
        "sixhop fetches guests only for Debian on x86-64: install QEMU 8 or newer, and a kernel of \
         6.14 or newer with its modules"
    );
    Ok(field("VERSION_CODENAME"))
}

/// The major and minor number at the start of a version.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers =
        text.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

/// The path of a system tool: sbin is not in every user's PATH.
fn tool(name: &str) -> PathBuf {
    let directories = ["/usr/sbin", "/sbin"].map(|directory| Path::new(directory).join(name));
    directories.into_iter().find(|path| path.exists()).unwrap_or_else(|| name.into())
}

fn missing(program: &str) -> impl FnOnce(io::Error) -> anyhow::Error {
    let package = match program {
        "modprobe" | "depmod" => "kmod",
        "xz" => "xz-utils",
        program => program,
    };
    move |error| match error.kind() {
        io::ErrorKind::NotFound => anyhow!("no {program}: install the package {package}"),
        _ => anyhow!("cannot run {program}: {error}"),
    }
}

/// Runs `command`, and fails unless it succeeds.
fn run(name: &str, command: &mut Command) -> Result<()> {
    let output = command.output().map_err(missing(name.split(' ').next().unwrap_or(name)))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        let last = words.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no reason given");
        bail!("{name} failed: {last}");
    }
    Ok(())
}

/// The standard output of `command`.
fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(missing(&name))?;
    ensure!(
        output.status.success(),
        "{name} failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The bytes of a module, decompressed.
///
/// # Errors
/// If it cannot be read, or its decompressor is not installed.
pub fn unpacked(module: &Path) -> Result<Vec<u8>> {
    let program = match module.extension().and_then(OsStr::to_str) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::read(module).with_context(|| format!("cannot read {}", module.display())),
    };
    let output = Command::new(program).arg("-dc").arg(module).output().map_err(missing(program))?;
    ensure!(output.status.success(), "cannot unpack {}", module.display());
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_by_number() {
        assert_eq!(version("7.3.4+deb13-amd64"), Some((7, 3)));
        assert_eq!(version("6.14-rc1"), Some((6, 14)));
        assert_eq!(version("10.0.2"), Some((10, 0)));
        assert!(version("6.9.1") < version("6.14.0"));
        assert_eq!(version("linux"), None);
    }

    #[test]
    fn what_is_pinned_must_be_just_that() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (package, pinned, _) = PINNED[0];
        assert!(verify(file.path(), package, pinned).unwrap_err().to_string().contains("SHA-256"));
        assert!(verify(file.path(), package, "other").is_ok());
        assert!(verify(file.path(), "other", pinned).is_ok());
    }

    #[test]
    fn a_kernel_is_known_by_its_directory() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("lib/modules/6.18.1");
        fs::create_dir_all(&directory).unwrap();
        assert!(Kernel::at(&directory).unwrap_err().to_string().contains("no kernel at"));
        fs::write(directory.join("vmlinuz"), "").unwrap();
        let kernel = Kernel::at(&directory).unwrap();
        assert_eq!(
            (kernel.release.as_str(), &kernel.image),
            ("6.18.1", &directory.join("vmlinuz").canonicalize().unwrap())
        );
        assert!(Kernel::at(root.path()).is_err());
    }
}
