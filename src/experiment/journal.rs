//! The result file of an experiment: one line per result, appended as soon as it is known. An
//! interrupted experiment, however it ended, reads its earlier results from the file and continues
//! from there.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, bail, ensure};

use crate::events::{Event, Experiment, Plan};
use crate::host::Environment;

/// Called with every result as it arrives.
pub type OnResult<'a> = dyn FnMut(&Event) -> Result<()> + Send + 'a;

/// The results so far, and their file.
pub struct Journal<'a> {
    /// Results of earlier runs that the experiment has not asked for yet.
    recorded: VecDeque<Event>,
    file: Option<(PathBuf, File)>,
    events: Vec<Event>,
    found: &'a mut OnResult<'a>,
}

impl<'a> Journal<'a> {
    /// Creates the file, or continues it if it has the same plan and machine. Without a path,
    /// results stay in memory only.
    ///
    /// # Errors
    /// If the file cannot be written, or belongs to another plan, machine or version of sixhop.
    pub fn open(
        path: Option<&Path>,
        plan: Plan,
        environment: Environment,
        found: &'a mut OnResult<'a>,
    ) -> Result<Self> {
        let started = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let start = Experiment { plan, started, environment };
        match path {
            Some(path) => Self::open_file(path, start, found),
            None => {
                let mut journal =
                    Self { recorded: VecDeque::new(), file: None, events: Vec::new(), found };
                journal.keep(begun(start))?;
                Ok(journal)
            }
        }
    }

    fn open_file(path: &Path, mut start: Experiment, found: &'a mut OnResult<'a>) -> Result<Self> {
        let name = path.display();
        let (mut recorded, length) = recorded(path)?;
        match recorded.pop_front() {
            None => {}
            Some(Event::Experiment(before)) => {
                if let Some(what) = difference(&before, &start) {
                    bail!(
                        "{name} belongs to another {what}: finish it as it was begun, remove it, \
                         or use another --out"
                    );
                }
                start = *before;
            }
            Some(_) => {
                bail!("{name} does not begin with an experiment's plan: use another --out")
            }
        }
        let open = OpenOptions::new().create(true).append(true).open(path);
        let file = open.with_context(|| {
            format!("cannot write {name}: choose a writable directory for --out")
        })?;
        file.set_len(length as u64).with_context(|| format!("cannot write {name}"))?;
        let mut journal =
            Self { recorded, file: Some((path.to_owned(), file)), events: Vec::new(), found };
        let first = begun(start);
        if length == 0 {
            journal.write(&first)?;
        }
        journal.keep(first)?;
        Ok(journal)
    }

    /// Returns the next result: from the file if it is there; otherwise from `find`, and records
    /// it. `is_it` recognises the expected result.
    ///
    /// # Errors
    /// Those of `find`; or if the file cannot be written, or has another result in this place.
    pub fn next(
        &mut self,
        is_it: impl Fn(&Event) -> bool,
        find: impl FnOnce() -> Result<Event>,
    ) -> Result<&Event> {
        let event = match self.recorded.pop_front() {
            Some(event) => {
                ensure!(
                    is_it(&event),
                    "{} has lines in another order: use another --out",
                    self.name()
                );
                event
            }
            None => {
                let event = find()?;
                self.write(&event)?;
                event
            }
        };
        self.keep(event)?;
        self.events.last().context("the event was just added")
    }

    /// Records a result derived from the others.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn add(&mut self, event: Event) -> Result<()> {
        self.write(&event)?;
        self.keep(event)
    }

    fn keep(&mut self, event: Event) -> Result<()> {
        (self.found)(&event)?;
        self.events.push(event);
        Ok(())
    }

    /// Whether the next result comes from the file.
    pub fn is_replaying(&self) -> bool {
        !self.recorded.is_empty()
    }

    /// All results so far.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    fn name(&self) -> String {
        self.file.as_ref().map_or(String::new(), |(path, _)| path.display().to_string())
    }

    fn write(&mut self, event: &Event) -> Result<()> {
        let Some((path, file)) = &mut self.file else { return Ok(()) };
        // One write call: a killed run leaves whole lines, except perhaps the last.
        file.write_all(event.to_line()?.as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

/// The events in the file at `path` up to the first derived one, and their length in bytes. Empty
/// without a file.
fn recorded(path: &Path) -> Result<(VecDeque<Event>, usize)> {
    let name = path.display();
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        text => text.with_context(|| format!("cannot read {name}"))?,
    };
    // A killed run may have left half a line.
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    let (mut recorded, mut length) = (VecDeque::new(), 0);
    for (number, line) in text[..whole].lines().enumerate() {
        let event = Event::parse(line).with_context(|| {
            format!("{name}, line {}: not a result of sixhop: use another --out", number + 1)
        })?;
        if matches!(event, Event::Summary(_) | Event::Threshold(_) | Event::Carried(_)) {
            break; // derived from the lines above: made again
        }
        length += line.len() + 1;
        recorded.push_back(event);
    }
    Ok((recorded, length))
}

fn begun(start: Experiment) -> Event {
    Event::Experiment(Box::new(start))
}

/// What differs between the two that forbids mixing their results.
fn difference(before: &Experiment, now: &Experiment) -> Option<String> {
    let (was, is) = (&before.environment, &now.environment);
    let changed = |what: &str, was: &str, is: &str| {
        (was != is).then(|| format!("{what} ({was:?}, not {is:?})"))
    };
    if before.plan != now.plan {
        return Some("profile".to_owned());
    }
    changed("version of sixhop", &was.sixhop, &is.sixhop)
        .or_else(|| changed("revision of sixhop", &was.revision, &is.revision))
        .or_else(|| changed("kernel", &was.kernel, &is.kernel))
        .or_else(|| changed("processor", &was.cpu, &is.cpu))
        .or_else(|| changed("interface", &was.nic.interface, &is.nic.interface))
        .or_else(|| (was.nic != is.nic).then(|| format!("setting of {}", is.nic.interface)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::EngineKind;
    use crate::events::{Cell, Failed};
    use crate::experiment::Profile;
    use crate::live::Method;

    fn plan() -> Plan {
        Plan::Bind(Profile::load("quick").unwrap().bind.unwrap())
    }

    fn finding(addresses: u64) -> Event {
        let cell = Cell { engine: EngineKind::SOCKET, bind: Method::Netlink, addresses };
        Event::Failed(Failed { cell, why: "of a test".to_owned() })
    }

    fn open(path: &Path) -> Result<Journal<'static>> {
        open_on(path, Environment::default())
    }

    fn open_on(path: &Path, environment: Environment) -> Result<Journal<'static>> {
        Journal::open(Some(path), plan(), environment, Box::leak(Box::new(|_: &Event| Ok(()))))
    }

    /// Asks for results 1 to 3; `find` says whether each may be measured rather than read.
    fn ask(journal: &mut Journal, find: impl Fn(u64) -> bool) {
        for number in 1..=3 {
            let wanted = finding(number);
            let found = journal.next(
                |event| *event == wanted,
                || {
                    assert!(find(number), "{number} was in the file already");
                    Ok(finding(number))
                },
            );
            assert_eq!(*found.unwrap(), wanted);
        }
    }

    #[test]
    fn whatever_a_killed_run_left_the_next_one_ends_with_the_same_file() {
        let directory = std::env::temp_dir().join(format!("sixhop-journal-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("a.jsonl");
        let mut whole = open(&path).unwrap();
        ask(&mut whole, |_| true);
        let text = fs::read_to_string(&path).unwrap();
        for end in 0..=text.len() {
            fs::write(&path, &text[..end]).unwrap();
            let there = text[..end].matches('\n').count() as u64;
            let mut journal = open(&path).unwrap();
            assert_eq!(journal.is_replaying(), there > 1);
            ask(&mut journal, |number| number >= there);
            assert!(!journal.is_replaying());
            let again = fs::read_to_string(&path).unwrap();
            // The first line has the start time.
            if there > 0 {
                assert_eq!(again, text);
            } else {
                assert_eq!(
                    again.lines().skip(1).collect::<Vec<_>>(),
                    text.lines().skip(1).collect::<Vec<_>>()
                );
            }
        }
        // A file that must not be mixed is refused and stays intact.
        let other = Environment { kernel: "7".to_owned(), ..Environment::default() };
        let error = open_on(&path, other).err().unwrap();
        assert!(
            error.to_string().contains("belongs to another kernel (\"\", not \"7\")"),
            "{error}"
        );
        let mut journal = open(&path).unwrap();
        let error = journal.next(|event| *event == finding(7), || unreachable!()).err().unwrap();
        assert!(error.to_string().contains("another order"), "{error}");
        fs::write(&path, "notes of mine\n").unwrap();
        assert!(open(&path).err().unwrap().to_string().contains("line 1: not a result of sixhop"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "notes of mine\n");
        fs::remove_dir_all(&directory).unwrap();
    }
}
