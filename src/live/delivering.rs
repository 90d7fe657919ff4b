//! A thread that keeps the kernel accepting what a program passes for live addresses.

use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::host::sandbox::{Role, Sandbox};
use crate::net::netlink::Delivery;

/// How often the thread checks whether to end.
const DOZE: Duration = Duration::from_millis(100);

/// The kernel accepts what the program passes for live addresses until this is dropped. Drop it
/// before or with the program. The thread is started while everything is still allowed, and keeps
/// the capability that it needs.
pub(crate) struct Delivering {
    /// Dropping it ends the thread.
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Delivering {
    /// Starts the thread, and waits until it is in its role.
    ///
    /// # Errors
    /// When the sandbox refuses.
    pub fn start(mut delivery: Delivery, sandbox: Sandbox) -> Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let (entered, has_entered) = mpsc::channel();
        let thread = thread::spawn(move || {
            let is_in = sandbox.enter(Role::Binding);
            let goes_on = is_in.is_ok();
            let _ = entered.send(is_in);
            while goes_on && stopped.try_recv() == Err(mpsc::TryRecvError::Empty) {
                // Fails while the link is down.
                if delivery.keep(DOZE).is_err() {
                    thread::sleep(DOZE);
                }
            }
        });
        let delivering = Self { stop: Some(stop), thread: Some(thread) };
        has_entered.recv().context("a thread panicked")??;
        Ok(delivering)
    }
}

impl Drop for Delivering {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().map(JoinHandle::join);
    }
}
