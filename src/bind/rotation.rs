//! MOVING: keeps the addresses of a timetable live while they move, from one time step to the next.
//!
//! ```text
//!   step            k-2    k-1     k     k+1    k+2
//!   live in k               ███   ███   ███
//!   live_map, in k:      ─────────── chunk by chunk ──────────► ░░░   entered, and silent: at the boundary one store moves the window
//!   kernel, in k:    ███ ─ chunk by chunk, in half the step ─► ███    live as soon as it is there
//! ```
//!
//! Each chunk is a few clients: their newest addresses come, and then the processor is free until it is the next chunk's turn. Those of
//! k-2 are not live any more, whoever has them. The kernel must be told so: they are computed again, not stored.

use std::collections::HashSet;
use std::net::Ipv6Addr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::{Binder, Interrupted, LiveSet, Method, Phases, Place, Step, Timed, Told};
use crate::address::mt6d::{Timetable, window};
use crate::netlink::Socket;
use crate::xdp::LiveAddresses;

/// Share of a step in which the addresses of the next are prepared, where they are not live before that: the rest is for the case
/// that others want the processor.
const SHARE_AHEAD: f64 = 0.8;

/// The same where an address is live as soon as it is there: from the middle of the step on, clients that are half a step ahead
/// ask on it.
const SHARE_AT_ONCE: f64 = 0.5;

/// Who has nothing to do looks up this often whether to stop.
const DOZE: Duration = Duration::from_millis(100);

/// Clients whose addresses are entered in one go before anybody is served.
const FILL: u64 = 1024;

/// How one step went: told when its work is done, and while it is not, whenever a step ends.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rotated {
    /// The step in which it was to be done.
    pub step: u64,
    /// Seconds of work, without the pauses between the chunks.
    pub seconds: f64,
    /// Seconds of processor time, all that the rotation took in that step.
    pub cpu_seconds: f64,
    /// Milliseconds after the end of the step until the work was done; if it is not done, until now.
    pub late_ms: f64,
    /// Clients whose addresses were exchanged: all of them, unless the step ended before.
    pub rotated: u64,
    /// Addresses that are live now.
    pub live: u64,
    /// Where it was late: for how many clients a step is long enough, as the work of this one lets expect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clients_carried: Option<u64>,
}

/// A step's work.
struct Work {
    /// The step in which it is to be done.
    step: u64,
    /// Steps whose addresses are to be there in the end.
    target: Range<u64>,
    /// Clients of whom they are.
    done: u64,
    wall: Duration,
    /// Of the thread, when it began.
    cpu: Duration,
}

/// The addresses of a timetable, live while they move, until this goes.
pub struct Rotation {
    timetable: Arc<Timetable>,
    method: Method,
    binder: Box<dyn Binder>,
    /// A steering program that runs beside addresses of the kernel.
    steering: Option<LiveAddresses>,
    /// What engines without such a program ask.
    set: Option<Arc<LiveSet>>,
    /// What the clock showed when it was looked at last.
    step: u64,
    /// Steps whose addresses are there, of all clients; while there is work, of those that it has not come to.
    held: Range<u64>,
    work: Option<Work>,
    /// Set by others when some may have been lost.
    renew: Arc<AtomicBool>,
    /// Who is told that addresses were lost, and are live again.
    notices: Option<Sender<String>>,
    /// To look after an error whether the kernel takes addresses at the moment.
    socket: Socket,
    index: u32,
    /// Whether the last piece of work failed although it does.
    has_failed: bool,
    phases: Phases,
}

/// Nanoseconds since 1970, by this machine's clock.
#[must_use]
pub fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64)
}

/// Processor time of the calling thread.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

impl Rotation {
    /// Makes the addresses of `timetable` live at `place`, those of the step that it is and of its neighbours. `set` is told of all
    /// changes, if an engine asks it.
    ///
    /// # Errors
    /// Those of [`binder`](super::binder) and [`Binder::bind`]. None of the addresses is live then.
    pub fn start(
        method: Method,
        place: Place,
        timetable: Arc<Timetable>,
        set: Option<Arc<LiveSet>>,
        told: &mut Step,
    ) -> Result<Self> {
        ensure!(
            method.moves(),
            "--bind {method} makes no address live by itself, and so none that moves: use live-map or netlink-batch"
        );
        let step = timetable.clock().step(unix_time());
        let (socket, index) = (Socket::open()?, place.link.index);
        let binder = super::binder(method, place)?;
        let mut rotation = Self {
            timetable,
            method,
            binder,
            steering: None,
            set,
            step,
            held: 0..0,
            work: None,
            renew: Arc::default(),
            notices: None,
            socket,
            index,
            has_failed: false,
            phases: Phases::default(),
        };
        rotation.turn(step);
        let began = Instant::now();
        if rotation.binder.ahead() > 0 {
            let mut phases = Phases::default();
            phases.time("add", || rotation.catch_up(told))?;
            rotation.phases = phases;
        } else {
            // All at once, for which some methods have means of their own.
            let target = rotation.target(step);
            let all: Vec<_> = target
                .clone()
                .map(|step| rotation.addresses(step, 0..rotation.timetable.clients()))
                .collect();
            let list: Vec<_> = all.iter().flat_map(|timed| timed.addresses.iter().copied()).collect();
            rotation.phases = rotation.binder.bind(&list, told)?;
            rotation.enter_in_set(&all)?;
            rotation.held = target;
        }
        // That took its time. Where it takes longer than a step lasts, there is no catching up.
        while began.elapsed() < rotation.timetable.clock().period() || rotation.held.is_empty() {
            let step = rotation.timetable.clock().step(unix_time());
            rotation.turn(step);
            if window(step).all(|step| rotation.held.contains(&step)) {
                break;
            }
            rotation.catch_up(told)?;
        }
        Ok(rotation)
    }

    /// Has a steering program beside addresses of the kernel know them too, from now on.
    ///
    /// # Errors
    /// When it has no room for them.
    pub fn steer(&mut self, mut steering: LiveAddresses) -> Result<()> {
        steering.set_step(self.step);
        for step in self.held.clone() {
            steering.enter(&self.addresses(step, 0..self.timetable.clients()).addresses, step)?;
        }
        self.steering = Some(steering);
        Ok(())
    }

    /// A way to have it make addresses live again that were lost: the kernel takes its own away when the link is set down.
    #[must_use]
    pub fn renewal(&self) -> Arc<AtomicBool> {
        self.renew.clone()
    }

    /// Has `notices` told when addresses that were lost are live again.
    pub(crate) fn tell(&mut self, notices: Sender<String>) {
        self.notices = Some(notices);
    }

    /// Which addresses are live, for other threads; `None` where only the steering program knows.
    #[must_use]
    pub fn live(&self) -> Option<Arc<LiveSet>> {
        self.set.clone()
    }

    /// Which addresses move, and when.
    #[must_use]
    pub fn timetable(&self) -> &Timetable {
        &self.timetable
    }

    /// The step that it was when that was looked at last.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.step
    }

    /// What making the first addresses live took.
    #[must_use]
    pub fn phases(&self) -> &Phases {
        &self.phases
    }

    /// Bytes of memory that it takes, without the kernel's.
    #[must_use]
    pub fn memory(&self) -> u64 {
        self.timetable.memory() + self.set.as_ref().map_or(0, |set| set.memory())
    }

    /// Bytes of kernel memory that the addresses take, where it is known.
    #[must_use]
    pub fn kernel_memory(&self) -> Option<u64> {
        self.binder.kernel_memory()
    }

    /// Moves the addresses until `stop` is set, and tells of each step how it went.
    ///
    /// # Errors
    /// When the kernel refuses an address.
    pub fn run(&mut self, stop: &AtomicBool, mut show: impl FnMut(Rotated)) -> Result<()> {
        let clock = self.timetable.clock();
        while !stop.load(Ordering::Relaxed) {
            if self.renew.swap(false, Ordering::Relaxed) && self.binder.ahead() == 0 {
                let entered = self.enter_again();
                if self.unless_refused(entered)?.is_none() {
                    self.renew.store(true, Ordering::Relaxed);
                }
            }
            let now = unix_time();
            let step = clock.step(now);
            if step != self.step {
                self.turn(step);
                if let Some(work) = &self.work {
                    show(self.sum_up(work, now));
                }
            }
            if self.work.is_none() && self.held != self.target(step) {
                self.begin(step);
            }
            let boundary = clock.start(step + 1);
            let next = match &self.work {
                Some(work) => {
                    let due = self.due(work);
                    if now >= due {
                        let advanced = self.advance(self.binder.stride() as u64);
                        if let Some(Some(work)) = self.unless_refused(advanced)? {
                            show(self.sum_up(&work, unix_time()));
                        }
                        continue;
                    }
                    due.min(boundary)
                }
                None => boundary,
            };
            thread::sleep(Duration::from_nanos(next.saturating_sub(now)).min(DOZE));
        }
        Ok(())
    }

    /// Takes the addresses back, tells how far it is, and returns what that took. Dropping does the same, but cannot say that it failed.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn release(mut self, told: &mut Told) -> Result<Phases> {
        self.take_back(told)
    }

    fn take_back(&mut self, told: &mut Told) -> Result<Phases> {
        let held = std::mem::replace(&mut self.held, 0..0);
        let target = self.work.take().map_or(0..0, |work| work.target);
        // A steering program's maps go with the program.
        if self.binder.ahead() > 0 {
            return Ok(Phases::default());
        }
        let steps = held.clone().chain(target.filter(|step| !held.contains(step)));
        let all = steps.flat_map(|step| self.addresses(step, 0..self.timetable.clients()).addresses);
        let all: Vec<_> = all.collect();
        if all.is_empty() { Ok(Phases::default()) } else { self.binder.unbind(&all, told) }
    }

    /// Steps whose addresses are to be there at the end of `step`.
    fn target(&self, step: u64) -> Range<u64> {
        let window = window(step);
        *window.start()..window.end() + 1 + self.binder.ahead()
    }

    fn addresses(&self, step: u64, clients: Range<u64>) -> Timed {
        let addresses: Vec<Ipv6Addr> = clients.map(|client| self.timetable.address(client, step)).collect();
        Timed { step, addresses }
    }

    /// Has it be `step`: the moment of rotation.
    fn turn(&mut self, step: u64) {
        self.step = step;
        self.binder.set_step(step);
        if let Some(steering) = &mut self.steering {
            steering.set_step(step);
        }
        if let Some(set) = &self.set {
            set.set_step(step);
        }
    }

    fn begin(&mut self, step: u64) {
        let target = self.target(step);
        self.work = Some(Work { step, target, done: 0, wall: Duration::ZERO, cpu: cpu_time() });
    }

    /// When the next chunk of `work` is to be done.
    fn due(&self, work: &Work) -> u64 {
        let clock = self.timetable.clock();
        let share = if self.binder.ahead() > 0 { SHARE_AHEAD } else { SHARE_AT_ONCE };
        let part = share * work.done as f64 / self.timetable.clients() as f64;
        clock.start(work.step) + (clock.period().as_nanos() as f64 * part) as u64
    }

    /// Exchanges the addresses of the next `count` clients, and returns the work if it is done.
    fn advance(&mut self, count: u64) -> Result<Option<Work>> {
        let Some(work) = &self.work else { return Ok(None) };
        let started = Instant::now();
        let clients = work.done..(work.done + count).min(self.timetable.clients());
        let of = |steps: &Range<u64>, without: &Range<u64>| -> Vec<Timed> {
            let steps = steps.clone().filter(|step| !without.contains(step));
            steps.map(|step| self.addresses(step, clients.clone())).collect()
        };
        let fresh = of(&work.target, &self.held);
        // What is entered ahead expires by itself.
        let expired = if self.binder.ahead() == 0 { of(&self.held, &work.target) } else { Vec::new() };
        self.exchange(&expired, &fresh)?;
        let Some(mut work) = self.work.take() else { return Ok(None) };
        work.done = clients.end;
        work.wall += started.elapsed();
        if work.done < self.timetable.clients() {
            self.work = Some(work);
            return Ok(None);
        }
        self.held = work.target.clone();
        Ok(Some(work))
    }

    /// Nothing is steered that is not live, and no client has more addresses in between than before or after.
    fn exchange(&mut self, expired: &[Timed], fresh: &[Timed]) -> Result<()> {
        self.binder.exchange(expired, fresh)?;
        self.enter_in_set(fresh)?;
        if let Some(steering) = &mut self.steering {
            for Timed { step, addresses } in fresh {
                steering.enter(addresses, *step)?;
            }
        }
        Ok(())
    }

    fn enter_in_set(&self, fresh: &[Timed]) -> Result<()> {
        ensure!(
            self.set.as_ref().is_none_or(|set| set.enter(fresh)),
            "no room for so many addresses that move"
        );
        Ok(())
    }

    /// Does a step's work at once.
    fn catch_up(&mut self, told: &mut Step) -> Result<()> {
        self.begin(self.step);
        while let Some(work) = &self.work {
            let entered = work.done * (work.target.end - work.target.start);
            ensure!(told(entered as usize), Interrupted);
            self.advance(FILL)?;
        }
        Ok(())
    }

    /// What was `done`; nothing, after a while, where the kernel takes no addresses at the moment: then it is to be tried again.
    fn unless_refused<T>(&mut self, done: Result<T>) -> Result<Option<T>> {
        let error = match done {
            Ok(done) => {
                self.has_failed = false;
                return Ok(Some(done));
            }
            Err(error) => error,
        };
        let link = self.socket.link_at(self.index)?.context("the interface has gone")?;
        // It may have been so when it was tried, and be otherwise by now.
        if link.ipv6 && std::mem::replace(&mut self.has_failed, true) {
            return Err(error);
        }
        thread::sleep(DOZE);
        Ok(None)
    }

    /// Enters those again that should be there and are not.
    fn enter_again(&mut self) -> Result<()> {
        let clients = self.timetable.clients();
        let (done, target) = self.work.as_ref().map_or((0, 0..0), |work| (work.done, work.target.clone()));
        let moved = target.map(|step| self.addresses(step, 0..done));
        let not_yet = self.held.clone().map(|step| self.addresses(step, done..clients));
        let mut all: Vec<_> = moved.chain(not_yet).collect();
        let list: Vec<_> = all.iter().flat_map(|timed| timed.addresses.iter().copied()).collect();
        let lost: HashSet<_> = self.binder.lost(&list)?.into_iter().collect();
        all.iter_mut().for_each(|timed| timed.addresses.retain(|address| lost.contains(address)));
        self.binder.exchange(&[], &all)?;
        if let (Some(notices), false) = (&self.notices, lost.is_empty()) {
            let count = lost.len();
            // Who listens is there for as long as this runs.
            let _ = notices.send(format!("{count} of {} addresses had gone, and are live again", list.len()));
        }
        Ok(())
    }

    /// What became of `work` by now.
    fn sum_up(&self, work: &Work, now: u64) -> Rotated {
        let clock = self.timetable.clock();
        let clients = self.timetable.clients();
        let late = now.saturating_sub(clock.start(work.step + 1));
        let live = |steps: &Range<u64>| window(self.step).filter(|step| steps.contains(step)).count() as u64;
        // Of the whole work, if the rest takes as long as what is done.
        let share = work.done as f64 / clients as f64;
        let room = clock.period().as_secs_f64() * share / work.wall.as_secs_f64().max(1e-9);
        let carried = clients as f64 * room.powf(1.0 / f64::from(self.method.power()));
        Rotated {
            step: work.step,
            seconds: work.wall.as_secs_f64(),
            cpu_seconds: cpu_time().saturating_sub(work.cpu).as_secs_f64(),
            late_ms: late as f64 / 1e6,
            rotated: work.done,
            live: work.done * live(&work.target) + (clients - work.done) * live(&self.held),
            clients_carried: (late > 0).then_some(carried as u64),
        }
    }
}

impl Drop for Rotation {
    fn drop(&mut self) {
        // A destructor has nobody to tell; who wants to know calls `release`.
        let _ = self.take_back(&mut |_| {});
    }
}
