//! A server in a process of its own, started by the command line and read by its JSON lines.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::report::{Event, Ready, Stats};

/// A running `sixhop serve`. It ends when this is dropped, and when this process ends.
pub struct ServerProcess {
    child: Child,
    /// The server stops when this closes.
    input: Option<ChildStdin>,
    events: Receiver<Event>,
    ready: Ready,
}

/// Binding takes its time: the paper needed 216 s for 55,000 addresses.
const START: Duration = Duration::from_secs(300);

/// Taking them back as well.
const STOP: Duration = Duration::from_secs(300);

impl ServerProcess {
    /// Runs `command`, which is to print the JSON lines of `serve`, and waits until it is ready.
    ///
    /// # Errors
    /// What the server says on standard error, when it ends before that.
    pub fn start(command: &[OsString]) -> Result<Self> {
        let (program, arguments) = command.split_first().context("no command")?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", program.to_string_lossy()))?;
        let input = child.stdin.take();
        let output = child.stdout.take().context("no pipe from the server")?;
        let (sender, events) = mpsc::channel();
        // Ends with the server's output, or when nobody listens any more.
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if serde_json::from_str(&line).is_ok_and(|event| sender.send(event).is_err()) {
                    break;
                }
            }
        });
        match events.recv_timeout(START) {
            Ok(Event::Ready(ready)) => Ok(Self { child, input, events, ready }),
            Ok(_) => bail!("the server did not say 'ready' first"),
            Err(_) => {
                drop(input);
                let mut words = String::new();
                if let Some(mut stderr) = child.stderr.take() {
                    let _ = stderr.read_to_string(&mut words);
                }
                let _ = child.wait();
                let words = words.trim().trim_start_matches("sixhop: ");
                bail!(if words.is_empty() {
                    "the server did not get ready".to_owned()
                } else {
                    words.to_owned()
                })
            }
        }
    }

    /// What the server said it got.
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// Stops the server and returns its totals.
    ///
    /// # Errors
    /// When it ended before, or badly.
    pub fn stop(mut self) -> Result<Stats> {
        self.input = None;
        let totals = loop {
            match self.events.recv_timeout(STOP) {
                Ok(Event::Stopped(totals)) => break totals,
                Ok(_) => {}
                Err(_) => return Err(anyhow!("the server ended without its totals")),
            }
        };
        let status = self.child.wait().context("the server cannot be waited for")?;
        ensure!(status.success(), "the server ended with {status}");
        Ok(totals)
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        self.input = None;
        // It stops by itself now; being waited for, it leaves no zombie behind.
        let _ = self.child.wait();
    }
}
