//! TEMPORARY SETTINGS of the machine: changed for a while and then restored, whatever happens to
//! this process.
//!
//! ```text
//!   note in /run/sixhop, locked ─► setting changed  …  setting put back ─► note removed
//!                    └ killed: the note stays, unlocked
//!                         ─► the next run puts the setting back
//! ```
//!
//! Each change has its own note, named after the network namespace, the interface and the setting,
//! and written before the change. A reboot empties /run, and resets the settings too. If somebody
//! else has changed a setting meanwhile, it is left alone, and a message says so. This code changes
//! /run/sixhop and the requested settings, on interfaces of the calling thread's namespace.

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Error, Result, anyhow};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sched::{CloneFlags, setns};
use serde::{Deserialize, Serialize};

use crate::host;
use crate::net::denied;
use crate::net::ethtool::{self, FlowRule};
use crate::net::netlink::{self, Link};

/// Where notes are kept.
const DIRECTORY: &str = "/run/sixhop";

/// Where interface settings are, in one directory for each interface.
const IPV6: &str = "/proc/sys/net/ipv6/conf";
const SYSFS: &str = "/sys/class/net";

/// Values of [`Setting::Rule`].
pub(crate) const RULE_SET: &str = "set";
const RULE_UNSET: &str = "unset";

/// Values of [`Setting::Link`].
const UP: &str = "up";
pub(crate) const DOWN: &str = "down";

/// A setting of an interface, with a text as its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Setting {
    /// A file in /proc/sys or /sys, as the interface's own namespace sees it.
    File(PathBuf),
    /// The RSS indirection table: queue numbers, separated by commas.
    Indirection,
    /// A flow rule of the card: set or unset.
    Rule(FlowRule),
    /// Whether the interface is set up: `up` or `down`.
    Link,
}

impl Setting {
    /// A file of the interface in /sys.
    pub fn sysfs(link: &Link, name: &str) -> Self {
        Self::File(Path::new(SYSFS).join(&link.name).join(name))
    }

    /// One of the interface's IPv6 settings.
    pub fn ipv6(interface: &str, name: &str) -> Self {
        Self::File(Path::new(IPV6).join(interface).join(name))
    }

    /// Its name among the interface's settings; also part of its note's file name.
    fn name(&self) -> String {
        match self {
            Self::File(path) => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            Self::Indirection => "rss-indirection".to_owned(),
            Self::Rule(rule) => format!("flow-rule-{}", rule.location),
            Self::Link => "link-state".to_owned(),
        }
    }

    /// A value, short enough for a line.
    fn show(&self, value: &str) -> String {
        match self {
            Self::Indirection => {
                let mut queues = table(value).unwrap_or_default();
                queues.sort_unstable();
                queues.dedup();
                format!("queues {queues:?}")
            }
            _ => value.to_owned(),
        }
    }

    pub fn read(&self, link: &Link) -> Result<String> {
        let cannot = || format!("cannot read {} of {}", self.name(), link.name);
        match self {
            Self::File(path) => {
                let path = &renamed(path, &link.name);
                at(path, link, || fs::read_to_string(path))
                    .map(|text| text.trim().to_owned())
                    .with_context(cannot)
            }
            Self::Indirection => {
                let table = ethtool::indirection(&link.name).with_context(cannot)?;
                Ok(table.iter().map(u32::to_string).collect::<Vec<_>>().join(","))
            }
            Self::Rule(rule) => Ok(match ethtool::flow_rule(&link.name, rule.location) {
                None => RULE_UNSET.to_owned(),
                Some(found) if found == *rule => RULE_SET.to_owned(),
                Some(_) => "another".to_owned(),
            }),
            Self::Link => {
                let now = netlink::link_at(link.index)?.with_context(cannot)?;
                Ok(if now.up { UP } else { DOWN }.to_owned())
            }
        }
    }

    /// Its file, open for reading and writing, if it is in /sys.
    fn open(&self, link: &Link) -> Result<Option<File>> {
        match self {
            Self::File(path) if path.starts_with("/sys") => {
                let path = &renamed(path, &link.name);
                let open = at(path, link, || File::options().read(true).write(true).open(path));
                Ok(Some(open.with_context(|| format!("cannot open {}", path.display()))?))
            }
            _ => Ok(None),
        }
    }

    fn write(&self, link: &Link, value: &str) -> Result<()> {
        let cannot =
            || format!("cannot set {} of {} to {}", self.name(), link.name, self.show(value));
        match self {
            Self::File(path) => {
                let path = &renamed(path, &link.name);
                at(path, link, || fs::write(path, value)).with_context(cannot)
            }
            Self::Indirection => {
                ethtool::set_indirection(&link.name, &table(value).with_context(cannot)?)
                    .with_context(cannot)
            }
            Self::Rule(rule) if value == RULE_SET => {
                ethtool::insert_flow_rule(&link.name, rule).with_context(cannot)
            }
            Self::Rule(rule) => {
                ethtool::delete_flow_rule(&link.name, rule.location).with_context(cannot)
            }
            Self::Link => netlink::set_up(link.index, value == UP).with_context(cannot),
        }
    }
}

/// The `path` of a setting after its interface was renamed to `name`.
fn renamed(path: &Path, name: &str) -> PathBuf {
    for root in [IPV6, SYSFS] {
        if let Ok(rest) = path.strip_prefix(root) {
            let mut rest = rest.components();
            rest.next();
            return Path::new(root).join(name).join(rest.as_path());
        }
    }
    path.to_owned()
}

fn table(value: &str) -> Result<Vec<u32>> {
    value.split(',').map(|queue| queue.parse().context("not a list of queues")).collect()
}

/// Accesses the file at `path`. For one in /sys, a /sys of the interface's own namespace is used.
fn at<T: Send>(
    path: &Path,
    link: &Link,
    access: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    if !path.starts_with("/sys") {
        return access();
    }
    let accessed = host::with_own_sys(|| {
        if host::shows(link) {
            access()
        } else if host::is_mounted("/sys") {
            let why = denied::explain("mounting its own", &["CAP_SYS_ADMIN"], "mount(2)");
            Err(io::Error::other(format!("/sys shows another network namespace, and {why}")))
        } else {
            Err(io::Error::other("/sys is not mounted: mount -t sysfs sysfs /sys"))
        }
    });
    accessed.unwrap_or_else(|| Err(io::Error::other("the thread that accessed it panicked")))
}

/// What the note of a change contains.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    /// Index of the interface.
    interface: u32,
    setting: Setting,
    /// Its value before.
    before: String,
    /// The value it is set to.
    set: String,
}

/// The result of putting a setting back.
#[derive(Debug, PartialEq, Eq)]
enum Restored {
    /// It already had the old value.
    AsBefore,
    /// It has the old value again.
    PutBack,
    /// Somebody else has since set it to this value.
    Left(String),
}

impl Note {
    /// `open`: the setting's file, if open.
    fn put_back(&self, link: &Link, open: Option<&File>) -> Result<Restored> {
        let cannot = || format!("cannot put {} of {} back", self.setting.name(), link.name);
        let now = match open {
            Some(file) => read_whole(file).with_context(cannot)?,
            None => self.setting.read(link)?,
        };
        if now == self.before {
            return Ok(Restored::AsBefore);
        }
        if now != self.set {
            return Ok(Restored::Left(now));
        }
        match open {
            Some(file) => file.write_all_at(self.before.as_bytes(), 0).with_context(cannot)?,
            None => self.setting.write(link, &self.before)?,
        }
        Ok(Restored::PutBack)
    }

    /// Describes `outcome` in one line, if it matters; `who` had changed the setting.
    fn words(&self, link: &Link, outcome: &Restored, who: &str) -> Option<String> {
        let Self { setting, before, set, .. } = self;
        let what = format!("{} of {}", setting.name(), link.name);
        let (before, set) = (setting.show(before), setting.show(set));
        match outcome {
            Restored::AsBefore => None,
            Restored::PutBack => {
                Some(format!("{what} was left at {set} by {who}; it is {before} again"))
            }
            Restored::Left(now) => Some(format!(
                "{what} was set to {set} by {who}, and to {} by somebody else since: it stays so \
                 (it was {before} before)",
                setting.show(now)
            )),
        }
    }
}

/// How many polls must find nothing before a card's deferred interrupts are enabled again. The
/// value is the kernel documentation's for preferred busy polling
/// (Documentation/networking/napi.rst, and the commit that introduced it, Linux 5.11).
const DEFER_HARD_IRQS: u32 = 2;

/// Microseconds until the kernel polls if no socket does, from the same source: interrupts come
/// back by themselves when nobody polls.
const POLLED: u32 = 200;

/// Changes settings in one network namespace, from any thread.
#[derive(Debug, Clone)]
pub(crate) struct Keeper {
    directory: PathBuf,
    /// The namespace's cookie, and a file to enter it.
    namespace: u64,
    entrance: Arc<File>,
}

impl Keeper {
    /// For the namespace of the calling thread.
    pub fn open() -> Result<Self> {
        let namespace = crate::net::option::namespace_cookie().context(
            "network namespaces have no cookies in this kernel: use Linux 5.14 or newer",
        )?;
        let entrance =
            File::open("/proc/thread-self/ns/net").context("cannot open the network namespace")?;
        Ok(Self { directory: DIRECTORY.into(), namespace, entrance: entrance.into() })
    }

    /// Runs `f` in the namespace, on a separate thread if the calling one is elsewhere.
    fn inside<T: Send>(&self, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        if crate::net::option::namespace_cookie().is_ok_and(|here| here == self.namespace) {
            return f();
        }
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&*self.entrance, CloneFlags::CLONE_NEWNET)
                    .context("cannot enter a network namespace")?;
                f()
            });
            inside
                .join()
                .map_err(|_| anyhow!("the thread in another network namespace panicked"))?
        })
    }

    /// Sets `setting` of `link` to `value` until the result is dropped.
    pub fn change(&self, link: &Link, setting: Setting, value: &str) -> Result<Changed> {
        self.inside(|| self.change_here(link, setting, value))
    }

    /// Leaves the receive work of `link` to sockets that poll, until the result is dropped.
    pub fn have_polled(&self, link: &Link) -> Result<Vec<Changed>> {
        self.have_coalesced(link, POLLED).context("cannot set up busy polling")
    }

    /// Makes the kernel receive packets of `link` in batches, a timer's `microseconds` apart, as
    /// long as packets keep coming, until the result is dropped. This is software interrupt
    /// coalescing (Documentation/networking/napi.rst).
    pub fn have_coalesced(&self, link: &Link, microseconds: u32) -> Result<Vec<Changed>> {
        let nanoseconds = u64::from(microseconds) * 1000;
        [("napi_defer_hard_irqs", DEFER_HARD_IRQS.into()), ("gro_flush_timeout", nanoseconds)]
            .into_iter()
            .map(|(name, value)| self.change(link, Setting::sysfs(link, name), &value.to_string()))
            .collect()
    }

    fn change_here(&self, link: &Link, setting: Setting, value: &str) -> Result<Changed> {
        // The interface may since have a new name or Ethernet address.
        let link = &netlink::link_at(link.index)?.unwrap_or_else(|| link.clone());
        let name = setting.name();
        let path = self.directory.join(format!("{}-{}-{name}", self.namespace, link.index));
        let mut file = self.note_file(link, &name, &path)?;
        // Without this, the note of a change that never happened would stay for good.
        let taken_back = |error| {
            let _ = fs::remove_file(&path);
            error
        };
        let before = setting.read(link).map_err(taken_back)?;
        // An existing note is from a killed run whose setting could not be put back. Its `before`
        // is the true original value.
        let before = match parse(&mut file) {
            Some(old) if old.set == before => old.before,
            _ => before,
        };
        let note = Note { interface: link.index, setting, before, set: value.to_owned() };
        // One write replaces the old note.
        file.set_len(0).with_context(|| cannot_note(&path))?;
        let text = serde_json::to_vec(&note)?;
        file.write_all_at(&text, 0).with_context(|| cannot_note(&path))?;
        let open = note.setting.open(link).with_context(|| {
            format!(
                "cannot write {name} of {}: this needs CAP_NET_ADMIN, and for a file in /sys \
                     root or CAP_DAC_OVERRIDE",
                link.name
            )
        });
        let open = open.map_err(taken_back)?;
        // From here on, dropping `changed` puts the setting back.
        let changed = Changed {
            keeper: self.clone(),
            link: link.clone(),
            note,
            path,
            open,
            file: Some(file),
        };
        changed.note.setting.write(link, value)?;
        Ok(changed)
    }

    /// Opens and locks the note for setting `name` of `link`.
    fn note_file(&self, link: &Link, name: &str, path: &Path) -> Result<Flock<File>> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&self.directory)
            .with_context(|| cannot_note(path))?;
        lock(path, true).with_context(|| cannot_note(path))?.with_context(|| {
            format!(
                "{name} of {} is changed by another sixhop that still runs: stop it first",
                link.name
            )
        })
    }

    /// Puts back what killed runs left changed in this namespace, which must be the calling
    /// thread's. Returns one line for each finding.
    pub fn put_right(&self) -> Result<Vec<String>> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.with_context(|| {
                format!("cannot list {}: run as root", self.directory.display())
            })?,
        };
        let prefix = format!("{}-", self.namespace);
        let ours = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
        };
        let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).filter(ours).collect();
        paths.sort();
        let links = netlink::links()?;
        let mut words = Vec::new();
        for path in paths {
            let locked = lock(&path, false).with_context(|| {
                format!(
                    "cannot read {}, which may name a setting to put back: run as root",
                    path.display()
                )
            })?;
            // A living run has it, or it is gone.
            let Some(mut file) = locked else { continue };
            let put_back = match parse(&mut file) {
                // Killed while writing the note, before any change.
                None => Ok(None),
                Some(note) => match links.iter().find(|link| link.index == note.interface) {
                    // The interface is gone, and its settings with it.
                    None => Ok(None),
                    Some(link) => note
                        .put_back(link, None)
                        .map(|outcome| note.words(link, &outcome, "a sixhop that was killed"))
                        .map_err(|error| unable(&note, link, &error)),
                },
            };
            match put_back {
                Ok(said) => {
                    words.extend(said);
                    // While the note is still locked.
                    let _ = fs::remove_file(&path);
                }
                // The note stays, so that the next run tries again.
                Err(error) => words.push(error.to_string()),
            }
        }
        Ok(words)
    }
}

fn unable(note: &Note, link: &Link, error: &Error) -> Error {
    anyhow!(
        "{} of {} was left at {} by a sixhop that was killed, and cannot be put back to {}: \
         {error:#}",
        note.setting.name(),
        link.name,
        note.setting.show(&note.set),
        note.setting.show(&note.before)
    )
}

fn cannot_note(path: &Path) -> String {
    format!(
        "cannot note in {} what to put back: run as root, or give this user /run/sixhop, as the \
         unit file does",
        path.display()
    )
}

/// Locks the note at `path`, and with `make` creates an empty one if there is none. `None` if there
/// is none, or if a living process holds it.
fn lock(path: &Path, make: bool) -> io::Result<Option<Flock<File>>> {
    loop {
        let file =
            match File::options().read(true).write(true).create(make).truncate(false).open(path) {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                file => file?,
            };
        let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
            locked => locked.map_err(|(_, error)| error)?,
        };
        // The previous holder may have removed the file meanwhile, and another process may have
        // recreated it.
        let inode = file.metadata()?.ino();
        if fs::metadata(path).is_ok_and(|metadata| metadata.ino() == inode) {
            return Ok(Some(file));
        }
    }
}

/// The current contents of a file that holds one value.
fn read_whole(file: &File) -> io::Result<String> {
    let mut value = [0; 256];
    let length = file.read_at(&mut value, 0)?;
    Ok(String::from_utf8_lossy(&value[..length]).trim().to_owned())
}

fn parse(file: &mut File) -> Option<Note> {
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

/// A changed setting, put back on drop.
#[derive(Debug)]
pub(crate) struct Changed {
    keeper: Keeper,
    link: Link,
    note: Note,
    path: PathBuf,
    /// A file in /sys, kept open: putting it back then needs neither its path nor permission to
    /// open it.
    open: Option<File>,
    /// The lock on the note; `None` once the setting is put back.
    file: Option<Flock<File>>,
}

impl Changed {
    /// Puts the setting back. Returns a message if somebody else has changed it since, and it was
    /// left alone. Dropping does the same, but silently.
    pub fn put_back(mut self) -> Result<Option<String>> {
        self.finish()
    }

    fn finish(&mut self) -> Result<Option<String>> {
        let Some(file) = self.file.take() else { return Ok(None) };
        let (link, outcome) = self.keeper.inside(|| {
            Ok(match netlink::link_at(self.note.interface)? {
                Some(link) => {
                    let outcome = self.note.put_back(&link, self.open.as_ref())?;
                    (link, outcome)
                }
                None => {
                    // The settings went with the interface, unless it moved to another namespace.
                    if let Some(file) = &self.open {
                        let _ = self.note.put_back(&self.link, Some(file));
                    }
                    (self.link.clone(), Restored::AsBefore)
                }
            })
        })?;
        let _ = fs::remove_file(&self.path);
        drop(file);
        Ok(match outcome {
            Restored::Left(_) => self.note.words(&link, &outcome, "this server"),
            Restored::AsBefore | Restored::PutBack => None,
        })
    }
}

impl Drop for Changed {
    fn drop(&mut self) {
        // A destructor cannot report errors; if this fails, the note stays.
        let _ = self.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A test's own directory, with a file that plays the setting.
    struct Room(PathBuf);

    impl Room {
        fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("sixhop-settings-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("setting"), "1\n").unwrap();
            Self(path)
        }

        fn keeper(&self) -> Keeper {
            Keeper { directory: self.0.join("notes"), ..Keeper::open().unwrap() }
        }

        fn setting(&self) -> Setting {
            Setting::File(self.0.join("setting"))
        }

        fn value(&self) -> String {
            fs::read_to_string(self.0.join("setting")).unwrap().trim().to_owned()
        }

        fn set(&self, value: &str) {
            fs::write(self.0.join("setting"), value).unwrap();
        }

        fn notes(&self) -> usize {
            fs::read_dir(self.0.join("notes")).map_or(0, |entries| entries.count())
        }

        /// As if its process were killed: the lock goes, and nothing else happens.
        fn kill(changed: Changed) {
            let mut changed = std::mem::ManuallyDrop::new(changed);
            changed.file = None;
        }
    }

    impl Drop for Room {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn loopback() -> Link {
        netlink::link("lo").unwrap()
    }

    #[test]
    fn a_change_is_put_back_when_it_goes_and_leaves_no_note() {
        let room = Room::new("back");
        let changed = room.keeper().change(&loopback(), room.setting(), "5").unwrap();
        assert_eq!((room.value().as_str(), room.notes()), ("5", 1));
        let error = room.keeper().change(&loopback(), room.setting(), "6").unwrap_err().to_string();
        assert!(error.contains("setting of lo is changed by another sixhop"), "{error}");
        assert_eq!(
            room.keeper().put_right().unwrap(),
            Vec::<String>::new(),
            "it is not left, it is in use"
        );
        drop(changed);
        assert_eq!((room.value().as_str(), room.notes()), ("1", 0));
    }

    #[test]
    fn what_a_killed_run_left_is_put_right_and_said() {
        let room = Room::new("killed");
        Room::kill(room.keeper().change(&loopback(), room.setting(), "5").unwrap());
        assert_eq!((room.value().as_str(), room.notes()), ("5", 1));
        let other = Keeper { namespace: u64::MAX, ..room.keeper() };
        assert!(other.put_right().unwrap().is_empty(), "it is of another namespace");
        let words = room.keeper().put_right().unwrap();
        assert_eq!(
            words,
            ["setting of lo was left at 5 by a sixhop that was killed; it is 1 again"]
        );
        assert_eq!((room.value().as_str(), room.notes()), ("1", 0));
        assert!(room.keeper().put_right().unwrap().is_empty());
    }

    #[test]
    fn what_somebody_else_has_set_since_is_left_and_said() {
        let room = Room::new("else");
        Room::kill(room.keeper().change(&loopback(), room.setting(), "5").unwrap());
        room.set("9");
        let words = room.keeper().put_right().unwrap();
        assert!(words.len() == 1 && words[0].contains("to 9 by somebody else since"), "{words:?}");
        let changed = room.keeper().change(&loopback(), room.setting(), "5").unwrap();
        room.set("8");
        let words = changed.put_back().unwrap().unwrap();
        assert!(
            words.contains("was set to 5 by this server, and to 8 by somebody else"),
            "{words}"
        );
        assert_eq!((room.value().as_str(), room.notes()), ("8", 0));
    }

    #[test]
    fn notes_of_what_was_never_changed_and_of_what_has_gone_are_removed() {
        let room = Room::new("gone");
        let changed = room.keeper().change(&loopback(), room.setting(), "5").unwrap();
        let path = changed.path.clone();
        let note = Note { interface: u32::MAX, ..changed.note.clone() };
        Room::kill(changed);
        for text in [String::new(), "{\"interf".to_owned(), serde_json::to_string(&note).unwrap()] {
            fs::write(&path, text).unwrap();
            assert!(room.keeper().put_right().unwrap().is_empty());
            assert_eq!((room.value().as_str(), room.notes()), ("5", 0));
        }
    }

    #[test]
    fn a_change_after_a_killed_one_goes_back_to_what_was_first() {
        let room = Room::new("twice");
        Room::kill(room.keeper().change(&loopback(), room.setting(), "5").unwrap());
        drop(room.keeper().change(&loopback(), room.setting(), "6").unwrap());
        assert_eq!((room.value().as_str(), room.notes()), ("1", 0));
    }

    #[test]
    fn what_does_not_exist_is_an_error_and_leaves_no_note() {
        let room = Room::new("none");
        let none = Setting::File(room.0.join("none"));
        let error = format!("{:#}", room.keeper().change(&loopback(), none, "5").unwrap_err());
        assert!(error.contains("cannot read none of lo"), "{error}");
        assert_eq!(room.notes(), 0);
    }

    #[test]
    fn a_setting_is_where_its_interface_is_called_now() {
        let is =
            |path: &str, now: &str| assert_eq!(renamed(Path::new(path), "lan0"), Path::new(now));
        is("/proc/sys/net/ipv6/conf/eth0/accept_dad", "/proc/sys/net/ipv6/conf/lan0/accept_dad");
        is("/sys/class/net/eth0/gro_flush_timeout", "/sys/class/net/lan0/gro_flush_timeout");
        is("/tmp/eth0/setting", "/tmp/eth0/setting");
    }

    #[test]
    fn settings_are_shown_in_few_words_and_noted_as_they_are() {
        let rule = FlowRule { location: 15, port: 3540, queue: 1 };
        assert_eq!(Setting::Indirection.show("1,0,1,0"), "queues [0, 1]");
        assert_eq!(Setting::Rule(rule).name(), "flow-rule-15");
        let settings = [
            Setting::Indirection,
            Setting::Rule(rule),
            Setting::Link,
            Setting::ipv6("eth0", "accept_dad"),
        ];
        for setting in settings {
            let text = serde_json::to_string(&setting).unwrap();
            assert_eq!(serde_json::from_str::<Setting>(&text).unwrap(), setting);
        }
    }
}
