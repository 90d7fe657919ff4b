//! ROTATION: keeps a timetable's addresses live while they move, from one step to the next.
//!
//! ```text
//!   step            k-2    k-1     k     k+1    k+2
//!   live in k               ███   ███   ███
//!   live_map, in k:      ─────────── chunk by chunk ──────────► ░░░   entered, but silent: at the
//!                                                                     boundary one store moves the
//!                                                                     window
//!   kernel, in k:    ███ ─ chunk by chunk, in half the step ─► ███    live as soon as it is there
//! ```
//!
//! Each chunk is a few clients: their newest addresses are added, and then the processor is free
//! until the next chunk's turn. Addresses of k-2 are no longer live. The kernel must be told to
//! remove them: they are computed again, not stored.

use std::collections::HashSet;
use std::net::Ipv6Addr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::time::{ClockId, clock_gettime};

use super::{BindContext, Binder, Interrupted, LiveSet, Method, Phases, Progress, Timed, Told};
use crate::address::mt6d::{Timetable, window};
use crate::host::time::{self, Moment, System, Time};
use crate::net::netlink::Connection;
use crate::xdp::LiveAddresses;

pub use crate::events::Rotated;

/// Share of a step for preparing the addresses of the next, if they are not live before it. The
/// rest is a reserve in case others need the processor.
const SHARE_AHEAD: f64 = 0.8;

/// The same if an address is live as soon as it is added: clients that are half a step ahead use it
/// from the middle of the step on.
const SHARE_AT_ONCE: f64 = 0.5;

/// How often an idle thread checks the stop flag, and whether the clock was set.
const DOZE: Duration = Duration::from_millis(100);

/// A thread that wakes up this much later than planned had no processor. Less than half of the
/// shortest step, so that no step passes unseen.
const STALL: Duration = Duration::from_millis(400);

/// Clients whose addresses are entered in one go before the server answers.
const FILL: u64 = 1024;

const NO_ROOM: &str = "no room for so many addresses that move";

/// A step's work.
struct Work {
    /// The step in which to do it.
    step: u64,
    /// Steps whose addresses must be there at the end.
    target: Range<u64>,
    /// Clients whose addresses are there.
    done: u64,
    /// Does not continue from the end of the step before: all addresses are entered again, at once.
    anew: bool,
    /// When the step ends, by the steady clock.
    ends: u64,
    /// There was no processor meanwhile, so the duration means nothing.
    disturbed: bool,
    wall: Duration,
    /// CPU time of the thread at the beginning.
    cpu: Duration,
}

/// Which steps' addresses are there, for which clients: consecutive ranges of clients, with the
/// steps of each.
#[derive(Debug, Default)]
struct Holdings(Vec<(Range<u64>, Range<u64>)>);

impl Holdings {
    /// Records that `clients` have the addresses of `steps`.
    fn put(&mut self, clients: Range<u64>, steps: Range<u64>) {
        let mut parts = Vec::with_capacity(self.0.len() + 2);
        for (others, held) in self.0.drain(..) {
            parts.push((others.start..others.end.min(clients.start), held.clone()));
            parts.push((others.start.max(clients.end)..others.end, held));
        }
        parts.push((clients, steps));
        parts.retain(|(clients, _)| !clients.is_empty());
        parts.sort_by_key(|(clients, _)| clients.start);
        for (clients, steps) in parts {
            match self.0.last_mut() {
                Some((last, held)) if *held == steps => last.end = clients.end,
                _ => self.0.push((clients, steps)),
            }
        }
    }

    /// The parts that overlap `clients`.
    fn of(&self, clients: &Range<u64>) -> Vec<(Range<u64>, Range<u64>)> {
        let cut =
            |others: &Range<u64>| others.start.max(clients.start)..others.end.min(clients.end);
        let parts = self.0.iter().map(|(others, steps)| (cut(others), steps.clone()));
        parts.filter(|(clients, _)| !clients.is_empty()).collect()
    }

    /// The steps of all clients, if they are the same.
    fn uniform(&self) -> Option<&Range<u64>> {
        if let [(_, steps)] = &self.0[..] { Some(steps) } else { None }
    }
}

/// The moving addresses of a timetable, live until this is dropped.
pub struct Rotation {
    timetable: Arc<Timetable>,
    method: Method,
    binder: Box<dyn Binder>,
    /// A steering program in addition to addresses of the kernel.
    steering: Option<LiveAddresses>,
    /// For engines without such a program, and services that need the client of an address.
    set: Option<Arc<LiveSet>>,
    /// The step at the last reading of the clock.
    step: u64,
    held: Holdings,
    work: Option<Work>,
    time: Box<dyn Time>,
    /// The clocks at the last reading.
    seen: Moment,
    /// Set by others if addresses may have been lost.
    renew: Arc<AtomicBool>,
    /// To look after an error whether the kernel takes addresses at the moment.
    socket: Connection,
    index: u32,
    /// Whether the last piece of work failed although the kernel accepts addresses.
    has_failed: bool,
    phases: Phases,
}

/// CPU time of the calling thread.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

impl Rotation {
    /// Makes the addresses of `timetable` live at `place`: those of the current step and its
    /// neighbours. `set` receives all changes, for an engine that asks it.
    ///
    /// # Errors
    /// Those of [`binder`](super::binder) and [`Binder::bind`]. None of the addresses is live then.
    pub fn start(
        method: Method,
        place: BindContext,
        timetable: Arc<Timetable>,
        set: Option<Arc<LiveSet>>,
        told: &mut Progress,
    ) -> Result<Self> {
        ensure!(
            method.moves(),
            "{method} makes no address live by itself, and so none that moves: use live-map \
             or netlink-batch"
        );
        let index = place.link.index;
        let binder = super::binder(method, place)?;
        Self::start_with((method, index), binder, timetable, set, Box::new(System), told)
    }

    /// The same with this binder and these clocks.
    fn start_with(
        (method, index): (Method, u32),
        binder: Box<dyn Binder>,
        timetable: Arc<Timetable>,
        set: Option<Arc<LiveSet>>,
        time: Box<dyn Time>,
        told: &mut Progress,
    ) -> Result<Self> {
        let (began, socket) = (time.now(), Connection::open()?);
        let step = timetable.clock().step(began.wall);
        let mut held = Holdings::default();
        held.put(0..timetable.clients(), 0..0);
        let mut rotation = Self {
            timetable,
            method,
            binder,
            steering: None,
            set,
            step,
            held,
            work: None,
            time,
            seen: began,
            renew: Arc::default(),
            socket,
            index,
            has_failed: false,
            phases: Phases::default(),
        };
        rotation.turn(step);
        rotation.phases = rotation.bind_window(told)?;
        rotation.catch_up_since(&began, told)?;
        Ok(rotation)
    }

    /// Makes the first window's addresses live.
    fn bind_window(&mut self, told: &mut Progress) -> Result<Phases> {
        if self.binder.ahead() > 0 {
            let mut phases = Phases::default();
            phases.time("add", || self.catch_up(told))?;
            return Ok(phases);
        }
        // All at once: some methods have special means for this.
        let clients = 0..self.timetable.clients();
        let target = self.target(self.step);
        let all: Vec<_> =
            target.clone().map(|step| self.addresses(step, clients.clone())).collect();
        let list: Vec<_> = all.iter().flat_map(|timed| timed.addresses.iter().copied()).collect();
        let phases = self.binder.bind(&list, told)?;
        self.enter_in_set(&all)?;
        self.held.put(clients, target);
        Ok(phases)
    }

    /// Follows the steps that went by since it `began`. Gives up after a whole step: work that
    /// takes longer than a step never catches up.
    fn catch_up_since(&mut self, began: &Moment, told: &mut Progress) -> Result<()> {
        loop {
            let now = self.time.now();
            let step = self.timetable.clock().step(now.wall);
            self.turn(step);
            let held = self.held.uniform();
            if held.is_some_and(|held| window(step).all(|step| held.contains(&step)))
                || now.since(began) >= self.timetable.clock().period()
            {
                return Ok(());
            }
            self.catch_up(told)?;
        }
    }

    /// Makes a steering program know the addresses as well, in addition to the kernel.
    ///
    /// # Errors
    /// When it has no space for them.
    pub fn steer(&mut self, mut steering: LiveAddresses) -> Result<()> {
        steering.set_step(self.step);
        for (clients, steps) in &self.held.0 {
            for step in steps.clone() {
                steering.enter(&self.addresses(step, clients.clone()).addresses, step)?;
            }
        }
        self.steering = Some(steering);
        Ok(())
    }

    /// A flag that requests to make lost addresses live again: the kernel removes its own when the
    /// link is set down.
    #[must_use]
    pub fn renewal(&self) -> Arc<AtomicBool> {
        self.renew.clone()
    }

    /// The live addresses, for other threads; `None` if only the steering program knows them.
    #[must_use]
    pub fn live(&self) -> Option<Arc<LiveSet>> {
        self.set.clone().filter(|_| self.binder.ahead() == 0)
    }

    /// Which addresses move, and when.
    #[must_use]
    pub fn timetable(&self) -> &Timetable {
        &self.timetable
    }

    /// The step at the last reading of the clock.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.step
    }

    /// How long making the first addresses live took.
    #[must_use]
    pub fn phases(&self) -> &Phases {
        &self.phases
    }

    /// Bytes of memory that it takes, without the kernel's.
    #[must_use]
    pub fn memory(&self) -> u64 {
        self.timetable.memory() + self.set.as_ref().map_or(0, |set| set.memory())
    }

    /// Bytes of kernel memory that the addresses take, if known.
    #[must_use]
    pub fn kernel_memory(&self) -> Option<u64> {
        self.binder.kernel_memory()
    }

    /// Moves the addresses until `stop` is set. Reports each step's result to `show`. Reports to
    /// `say` if the clock was set, or if a step was missed for want of a processor.
    ///
    /// # Errors
    /// When the kernel refuses an address.
    pub fn run(
        &mut self,
        stop: &AtomicBool,
        mut show: impl FnMut(Rotated),
        mut say: impl FnMut(String),
    ) -> Result<()> {
        // How long this thread meant to take since the last reading. `None`: as long as it took.
        let mut meant = None;
        while !stop.load(Ordering::Relaxed) {
            if self.renew.swap(false, Ordering::Relaxed) && self.binder.ahead() == 0 {
                let entered = self.enter_again();
                match self.unless_refused(entered)? {
                    None => self.renew.store(true, Ordering::Relaxed),
                    Some(words) => words.into_iter().for_each(&mut say),
                }
                meant = None;
            }
            let now = self.follow(meant, &mut show, &mut say);
            meant = Some(self.proceed(&now, &mut show)?);
        }
        Ok(())
    }

    /// Reads the clocks, switches to the current step, and takes up its work.
    fn follow(
        &mut self,
        meant: Option<Duration>,
        show: &mut impl FnMut(Rotated),
        say: &mut impl FnMut(String),
    ) -> Moment {
        let before = self.seen;
        let now = self.look();
        let step = self.timetable.clock().step(now.wall);
        let jump = now.jump_since(&before);
        let late = meant.map_or(Duration::ZERO, |meant| now.since(&before).saturating_sub(meant));
        let stall = (late >= STALL).then_some(late);
        let ends = self.ends(step, &now);
        if let Some(work) = &mut self.work {
            work.disturbed |= stall.is_some();
            if work.step == step {
                work.ends = ends;
            }
        }
        let was = std::mem::replace(&mut self.step, step);
        if step != was {
            self.turn(step);
        }
        if let Some(words) = self.explain(was, jump, stall, now.suspended_since(&before)) {
            say(words);
        }
        if step != was {
            // There is nothing to report about a step that did not reach its end.
            if let (Some(work), None, true) = (&self.work, jump, step > was) {
                show(self.sum_up(work, &now));
            }
            // Its work is now useless. Slewing can also take a step back, but only for a moment.
            if jump.is_some() || stall.is_some() || step < was {
                self.work = None;
            }
        }
        if self.work.is_none() && self.held.uniform() != Some(&self.target(step)) {
            self.begin(step, &now);
        }
        now
    }

    /// Exchanges the next chunk if it is due, and sleeps otherwise. Returns how long it meant to
    /// take.
    fn proceed(&mut self, now: &Moment, show: &mut impl FnMut(Rotated)) -> Result<Duration> {
        let boundary = self.timetable.clock().start(self.step + 1);
        let next = match &self.work {
            Some(work) => {
                let due = self.due(work);
                if now.wall >= due {
                    // In a few large pieces, if nobody has to wait for a turn.
                    let anew = work.anew && self.binder.ahead() > 0;
                    let count = if anew { FILL } else { self.binder.stride() as u64 };
                    return self.exchange(count, now, show);
                }
                due.min(boundary)
            }
            None => boundary,
        };
        let rest = Duration::from_nanos(next.saturating_sub(now.wall)).min(DOZE);
        self.time.sleep(rest);
        Ok(rest)
    }

    /// Exchanges the addresses of the next `count` clients, and reports the work if it is done.
    /// Returns how long it meant to take.
    fn exchange(
        &mut self,
        count: u64,
        now: &Moment,
        show: &mut impl FnMut(Rotated),
    ) -> Result<Duration> {
        let cpu = cpu_time();
        let advanced = self.advance(count);
        let done = self.unless_refused(advanced)?;
        let after = self.time.now();
        if let Some(Some(work)) = done {
            show(self.sum_up(&work, &after));
        }
        // The kernel may block, but a table only takes CPU time.
        let kernel = self.binder.ahead() == 0;
        Ok(if kernel { after.since(now) } else { cpu_time().saturating_sub(cpu) })
    }

    fn look(&mut self) -> Moment {
        self.seen = self.time.now();
        self.seen
    }

    /// What to say after reading the clocks; the step was `was` before.
    fn explain(
        &self,
        was: u64,
        jump: Option<i64>,
        stall: Option<Duration>,
        suspended: Duration,
    ) -> Option<String> {
        let moved = match self.step {
            step if step == was => format!("it is step {step} as before"),
            step => format!(
                "it is step {step}, and it was step {was}: the addresses of {step} are made live \
                 at once"
            ),
        };
        // A step that was not missed needs no message.
        let stalled = stall.filter(|_| self.step != was).map(|stall| {
            let (asleep, seconds) = (suspended >= stall / 2, stall.as_secs_f64());
            let why =
                if asleep { "this machine was suspended" } else { "the server had no processor" };
            format!("{why} for {seconds:.3} s")
        });
        let causes: Vec<_> = jump.map(time::set).into_iter().chain(stalled).collect();
        (!causes.is_empty()).then(|| format!("{}; {moved}", causes.join(", and ")))
    }

    /// Takes the addresses back, reports progress, and returns how long it took. Dropping does the
    /// same, but cannot report failure.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn release(mut self, told: &mut Told) -> Result<Phases> {
        self.take_back(told)
    }

    fn take_back(&mut self, told: &mut Told) -> Result<Phases> {
        let held = std::mem::take(&mut self.held).0;
        let target = self.work.take().map_or(0..0, |work| work.target);
        // A steering program's maps go with the program.
        if self.binder.ahead() > 0 {
            return Ok(Phases::default());
        }
        let mut all = Vec::new();
        for (clients, steps) in held {
            // An exchange that failed half-way may have added some of the target.
            let besides = target.clone().filter(|step| !steps.contains(step));
            for step in steps.clone().chain(besides) {
                all.extend(self.addresses(step, clients.clone()).addresses);
            }
        }
        if all.is_empty() { Ok(Phases::default()) } else { self.binder.unbind(&all, told) }
    }

    /// Steps whose addresses must be there at the end of `step`.
    fn target(&self, step: u64) -> Range<u64> {
        let window = window(step);
        *window.start()..window.end() + 1 + self.binder.ahead()
    }

    fn addresses(&self, step: u64, clients: Range<u64>) -> Timed {
        let first = clients.start;
        let addresses: Vec<Ipv6Addr> =
            clients.map(|client| self.timetable.address(client, step)).collect();
        Timed { step, first, addresses }
    }

    /// Switches to `step`: the moment of rotation.
    fn turn(&mut self, step: u64) {
        self.step = step;
        // First the set: an address that the steering program lets through from now on must already
        // have its client.
        if let Some(set) = &self.set {
            set.set_step(step);
        }
        self.binder.set_step(step);
        if let Some(steering) = &mut self.steering {
            steering.set_step(step);
        }
    }

    fn begin(&mut self, step: u64, now: &Moment) {
        let before = step.checked_sub(1).map(|before| self.target(before));
        self.work = Some(Work {
            step,
            target: self.target(step),
            done: 0,
            anew: before.is_none_or(|before| self.held.uniform() != Some(&before)),
            ends: self.ends(step, now),
            disturbed: false,
            wall: Duration::ZERO,
            cpu: cpu_time(),
        });
    }

    /// When `step` ends by the steady clock, given the current reading `now`.
    fn ends(&self, step: u64, now: &Moment) -> u64 {
        let end = self.timetable.clock().start(step + 1);
        now.steady.saturating_add(end.saturating_sub(now.wall))
    }

    /// When the next chunk of `work` is due, by the wall clock.
    fn due(&self, work: &Work) -> u64 {
        if work.anew {
            return 0;
        }
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
        let (anew, ahead) = (work.anew, self.binder.ahead() > 0);
        for (clients, held) in self.held.of(&clients) {
            let of = |steps: &Range<u64>, without: &Range<u64>| -> Vec<Timed> {
                let steps = steps.clone().filter(|step| !without.contains(step));
                steps.map(|step| self.addresses(step, clients.clone())).collect()
            };
            let fresh = of(&work.target, &held);
            // Steps four apart share a part of the table, so another step may have overwritten
            // earlier entries.
            let entered = if anew { of(&work.target, &(0..0)) } else { fresh.clone() };
            // Addresses entered ahead expire by themselves.
            let (expired, fresh) =
                if ahead { (Vec::new(), &entered) } else { (of(&held, &work.target), &fresh) };
            self.binder.exchange(&expired, fresh)?;
            // The order ensures that nothing is steered that is not live, and that no client has
            // more addresses in between than before or after.
            if let Some(set) = &self.set {
                ensure!(set.enter(&entered), NO_ROOM);
            }
            if let Some(steering) = &mut self.steering {
                for Timed { step, addresses, .. } in &entered {
                    steering.enter(addresses, *step)?;
                }
            }
        }
        let Some(mut work) = self.work.take() else { return Ok(None) };
        work.done = clients.end;
        work.wall += started.elapsed();
        self.held.put(clients, work.target.clone());
        if work.done < self.timetable.clients() {
            self.work = Some(work);
            return Ok(None);
        }
        Ok(Some(work))
    }

    fn enter_in_set(&self, fresh: &[Timed]) -> Result<()> {
        ensure!(self.set.as_ref().is_none_or(|set| set.enter(fresh)), NO_ROOM);
        Ok(())
    }

    /// Does a step's work at once.
    fn catch_up(&mut self, told: &mut Progress) -> Result<()> {
        self.begin(self.step, &self.time.now());
        while let Some(work) = &self.work {
            let entered = work.done * (work.target.end - work.target.start);
            ensure!(told(entered as usize), Interrupted);
            self.advance(FILL)?;
        }
        Ok(())
    }

    /// Returns what was `done`. If the kernel accepts no addresses at the moment, returns `None`
    /// after a pause: try again then.
    fn unless_refused<T>(&mut self, done: Result<T>) -> Result<Option<T>> {
        let error = match done {
            Ok(done) => {
                self.has_failed = false;
                return Ok(Some(done));
            }
            Err(error) => error,
        };
        let link = self.socket.link_at(self.index)?.context("the interface has gone")?;
        // The kernel's state may have changed since the attempt.
        if link.ipv6 && std::mem::replace(&mut self.has_failed, true) {
            return Err(error);
        }
        self.time.sleep(DOZE);
        Ok(None)
    }

    /// Adds missing addresses again, and returns the message about it.
    fn enter_again(&mut self) -> Result<Option<String>> {
        let there = self.held.0.iter().flat_map(|(clients, steps)| {
            steps.clone().map(|step| self.addresses(step, clients.clone()))
        });
        let mut all: Vec<_> = there.collect();
        let list: Vec<_> = all.iter().flat_map(|timed| timed.addresses.iter().copied()).collect();
        let lost: HashSet<_> = self.binder.lost(&list)?.into_iter().collect();
        all.iter_mut().for_each(|timed| timed.addresses.retain(|address| lost.contains(address)));
        self.binder.exchange(&[], &all)?;
        let count = lost.len();
        let words = || format!("{count} of {} addresses had gone, and are live again", list.len());
        Ok((count > 0).then(words))
    }

    /// The result of `work` so far.
    fn sum_up(&self, work: &Work, now: &Moment) -> Rotated {
        let clock = self.timetable.clock();
        let clients = self.timetable.clients();
        let late = now.steady.saturating_sub(work.ends);
        // The wall clock decides when the step is over, and may have been slewed since it was read.
        let late = if self.step > work.step { late.max(1) } else { late };
        let live = |steps: &Range<u64>| {
            window(self.step).filter(|step| steps.contains(step)).count() as u64
        };
        // Extrapolates to the whole work from what is done.
        let share = work.done as f64 / clients as f64;
        let room = clock.period().as_secs_f64() * share / work.wall.as_secs_f64().max(1e-9);
        let carried = clients as f64 * room.powf(1.0 / f64::from(self.method.power()));
        Rotated {
            step: work.step,
            seconds: work.wall.as_secs_f64(),
            cpu_seconds: cpu_time().saturating_sub(work.cpu).as_secs_f64(),
            late_ms: late as f64 / 1e6,
            rotated: work.done,
            live: self.held.0.iter().map(|(of, steps)| (of.end - of.start) * live(steps)).sum(),
            clients_carried: (late > 0 && !work.disturbed).then_some(carried as u64),
        }
    }
}

impl Drop for Rotation {
    fn drop(&mut self) {
        // A destructor cannot report errors; `release` can.
        let _ = self.take_back(&mut |_| {});
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::mt6d::{Clock, Subnet};
    use crate::address::{Client, Secret};
    use proptest::prelude::*;
    use std::collections::HashSet;
    use std::sync::Mutex;

    const SECOND: u64 = 1_000_000_000;
    const CLIENTS: u64 = 40;
    const PERIOD: u64 = 10;

    fn timetable() -> Arc<Timetable> {
        let subnet = Subnet::new("2001:db8:1::/64".parse().unwrap()).unwrap();
        let clock = Clock::new(Duration::from_secs(PERIOD)).unwrap();
        Arc::new(Timetable::new(
            subnet,
            clock,
            &Secret::new(vec![7; 32]).unwrap(),
            CLIENTS as u32,
            1,
        ))
    }

    /// What happens to the clocks, in nanoseconds.
    #[derive(Debug, Clone, Copy)]
    enum Event {
        Set(i64),
        Stop(u64),
        Suspend(u64),
    }

    /// Clocks that advance a little with each reading, and while somebody sleeps.
    struct Clocks {
        moment: Moment,
        /// Events and the steady times at which they happen, in order.
        events: Vec<(u64, Event)>,
        /// How far a reading advances the clocks.
        tick: u64,
        /// The readings of each sleep.
        checks: Vec<Moment>,
    }

    impl Clocks {
        fn advance(&mut self, by: u64) {
            self.moment.wall += by;
            self.moment.steady += by;
            self.moment.awake += by;
        }

        fn happen(&mut self) {
            while self.events.first().is_some_and(|(at, _)| *at <= self.moment.steady) {
                match self.events.remove(0).1 {
                    Event::Set(by) => self.moment.wall = self.moment.wall.saturating_add_signed(by),
                    Event::Stop(time) => self.advance(time),
                    Event::Suspend(time) => {
                        self.moment.wall += time;
                        self.moment.steady += time;
                    }
                }
            }
        }
    }

    /// Calls `check` on the live addresses whenever the rotation has nothing to do.
    struct Fake<F> {
        clocks: Arc<Mutex<Clocks>>,
        end: u64,
        stop: Arc<AtomicBool>,
        check: F,
    }

    impl<F: Fn(u64) + Send> Time for Fake<F> {
        fn now(&self) -> Moment {
            let mut clocks = self.clocks.lock().unwrap();
            let tick = clocks.tick;
            clocks.advance(tick);
            clocks.happen();
            clocks.moment
        }

        fn sleep(&self, time: Duration) {
            let mut clocks = self.clocks.lock().unwrap();
            let now = clocks.moment;
            (self.check)(now.wall);
            clocks.checks.push(now);
            clocks.advance(time.as_nanos() as u64);
            clocks.happen();
            self.stop.store(now.steady >= self.end, Ordering::Relaxed);
        }
    }

    /// Two kinds of binder: addresses that are live as soon as they are added, and a set with steps
    /// entered ahead.
    enum Binds {
        Kernel(Arc<Mutex<HashSet<Ipv6Addr>>>),
        Map(Arc<LiveSet>),
    }

    impl Binder for Binds {
        fn bind(&mut self, addresses: &[Ipv6Addr], _: &mut Progress) -> Result<Phases> {
            let Self::Kernel(live) = self else { panic!("only for addresses of the kernel") };
            live.lock().unwrap().extend(addresses);
            Ok(Phases::default())
        }

        fn unbind(&mut self, addresses: &[Ipv6Addr], _: &mut Told) -> Result<Phases> {
            let Self::Kernel(live) = self else { panic!("only for addresses of the kernel") };
            let mut live = live.lock().unwrap();
            live.retain(|address| !addresses.contains(address));
            Ok(Phases::default())
        }

        fn exchange(&mut self, expired: &[Timed], fresh: &[Timed]) -> Result<()> {
            match self {
                Self::Map(set) => ensure!(set.enter(fresh), "no room"),
                Self::Kernel(live) => {
                    let mut live = live.lock().unwrap();
                    for address in expired.iter().flat_map(|timed| &timed.addresses) {
                        ensure!(live.remove(address), "{address} was not there");
                    }
                    for address in fresh.iter().flat_map(|timed| &timed.addresses) {
                        ensure!(live.insert(*address), "{address} was there");
                    }
                }
            }
            Ok(())
        }

        fn ahead(&self) -> u64 {
            u64::from(matches!(self, Self::Map(_)))
        }

        fn set_step(&mut self, step: u64) {
            if let Self::Map(set) = self {
                set.set_step(step);
            }
        }

        fn stride(&self) -> usize {
            8
        }
    }

    /// Everything that was reported.
    struct Course {
        rotated: Vec<Rotated>,
        notices: Vec<String>,
        checks: Vec<Moment>,
    }

    /// Whether `set` has the window of `step` and nothing else; the newest only when it is `whole`.
    fn check_set(timetable: &Timetable, set: &LiveSet, step: u64, whole: bool) {
        let of = |step| (0..CLIENTS).map(move |client| (client, step));
        for (client, other) in (step.saturating_sub(6)..=step + 6).flat_map(of) {
            let address = timetable.address(client, other);
            let (in_window, found) = (window(step).contains(&other), set.contains(address));
            assert!(
                found || !in_window || !whole && other > step,
                "{client} in {other} is not live in {step}"
            );
            assert!(in_window || !found, "{client} in {other} is live in {step}");
            let whose = found.then_some(Client { number: client, step: other });
            assert_eq!(set.client(address), whose, "in {step}");
        }
    }

    /// Whether the kernel has three addresses a client: of the window, or, until it is `whole`, of
    /// the step before as well.
    fn check_kernel(timetable: &Timetable, live: &HashSet<Ipv6Addr>, step: u64, whole: bool) {
        // In step 0 there are only two.
        assert!(!whole && step == 1 || live.len() as u64 == CLIENTS * 3.min(step + 2), "in {step}");
        let known = |step: u64| {
            let addresses = (0..CLIENTS).map(|client| timetable.address(client, step));
            addresses.filter(|known| live.contains(known)).count()
        };
        let here = window(step).map(known).sum::<usize>();
        assert!(!whole || here == live.len(), "{here} of {} in {step}", live.len());
        // Besides these, only those of the step before.
        assert_eq!(here + step.checked_sub(2).map_or(0, known), live.len(), "in {step}");
    }

    /// Rotates from `start` on, in nanoseconds since 1970, for so long, while `events` happen;
    /// looks whenever there is time at what is live.
    fn rotate(
        map: bool,
        start: u64,
        seconds: u64,
        tick: u64,
        mut events: Vec<(u64, Event)>,
    ) -> Course {
        let timetable = timetable();
        let clock = timetable.clock();
        events.sort_by_key(|(at, _)| *at);
        let moment = Moment { wall: start, steady: 0, awake: 0, slack: 0 };
        let clocks = Arc::new(Mutex::new(Clocks { moment, events, tick, checks: vec![] }));
        let (set, live) = (
            Arc::new(LiveSet::new(&timetable).with_clients()),
            Arc::<Mutex<HashSet<_>>>::default(),
        );
        let stop = Arc::new(AtomicBool::new(false));
        let check = {
            let (timetable, set, live) = (timetable.clone(), set.clone(), live.clone());
            move |wall: u64| {
                let step = clock.step(wall);
                // The kernel's addresses are added in the first half of a step.
                let whole = map || wall - clock.start(step) > PERIOD * SECOND / 2;
                check_set(&timetable, &set, step, whole);
                if !map {
                    check_kernel(&timetable, &live.lock().unwrap(), step, whole);
                }
            }
        };
        let end = seconds * SECOND;
        let time = Fake { clocks: clocks.clone(), end, stop: stop.clone(), check };
        let (method, binder, set) = match map {
            true => (Method::LiveMap, Binds::Map(set), None),
            false => (Method::Netlink, Binds::Kernel(live.clone()), Some(set)),
        };
        let mut rotation = Rotation::start_with(
            (method, 1),
            Box::new(binder),
            timetable,
            set,
            Box::new(time),
            &mut |_| true,
        )
        .unwrap();
        let (mut rotated, mut notices) = (vec![], vec![]);
        rotation.run(&stop, |work| rotated.push(work), |words| notices.push(words)).unwrap();
        rotation.release(&mut |_| {}).unwrap();
        assert!(live.lock().unwrap().is_empty());
        let checks = std::mem::take(&mut clocks.lock().unwrap().checks);
        Course { rotated, notices, checks }
    }

    const START: u64 = 1_700_000_000 * SECOND;

    /// The steady time of the first check after `at` that found nothing to do.
    fn settled(course: &Course, at: u64) -> u64 {
        course.checks.iter().map(|check| check.steady).find(|steady| *steady > at).unwrap()
    }

    #[test]
    fn undisturbed_nothing_is_said() {
        for map in [true, false] {
            let course = rotate(map, START, 69, 1000, vec![]);
            assert_eq!(course.notices, [""; 0]);
            assert_eq!(course.rotated.len(), 6); // the first step's were there at the start
            for (rotated, step) in course.rotated.iter().zip(START / SECOND / PERIOD + 1..) {
                assert_eq!(
                    (rotated.rotated, rotated.live, rotated.late_ms),
                    (CLIENTS, 3 * CLIENTS, 0.0)
                );
                assert_eq!(rotated.step, step);
            }
        }
    }

    #[test]
    fn slewing_is_no_jump() {
        // 8 ms in each tenth of a second, across boundaries and back.
        for by in [-8_000_000, 8_000_000] {
            let events = (1..400).map(|look| (look * SECOND / 10, Event::Set(by))).collect();
            let course = rotate(true, START, 60, 1000, events);
            assert_eq!(course.notices, [""; 0]);
            assert!(
                course.rotated.iter().all(|rotated| rotated.late_ms == 0.0),
                "{:?}",
                course.rotated
            );
        }
    }

    #[test]
    fn a_clock_that_is_set_is_followed_at_once_and_told_once() {
        // 3 s into the second step: by 12 steps, by the table's number of parts, by one step, and
        // by less.
        for (jump, words) in [
            (-120, "back by 120.000 s; it is step 169999989, and it was step 170000001"),
            (-40, "back by 40.000 s"),
            (-10, "back by 10.000 s; it is step 170000000"),
            (-2, "back by 2.000 s; it is step 170000001 as before"),
            (2, "ahead by 2.000 s"),
            (10, "ahead by 10.000 s; it is step 170000002"),
            (20, "ahead by 20.000 s"),
            (40, "ahead by 40.000 s"),
            (1_000_000, "ahead by 1000000.000 s"),
            (-1_800_000_000, "back by 1700000013.000 s; it is step 0"),
        ] {
            for map in [true, false] {
                let at = 13 * SECOND;
                let course =
                    rotate(map, START, 100, 1000, vec![(at, Event::Set(jump * SECOND as i64))]);
                let [notice] = &course.notices[..] else { panic!("{jump}: {:?}", course.notices) };
                assert!(notice.contains(words), "{notice}");
                // Nothing waits for the schedule's pace: a few readings of 1 µs each, and one doze.
                let settled = settled(&course, at);
                assert!(settled < at + SECOND / 5, "{jump}: {settled}");
                assert!(
                    course.rotated.iter().all(|rotated| rotated.late_ms == 0.0),
                    "{:?}",
                    course.rotated
                );
            }
        }
    }

    #[test]
    fn a_stop_is_told_as_what_it_is() {
        for (event, seconds, words) in [
            (Event::Stop(30 * SECOND), 70, "the server had no processor for 30."),
            (Event::Suspend(3600 * SECOND), 3640, "this machine was suspended for 3600."),
        ] {
            for map in [true, false] {
                let course = rotate(map, START, seconds, 1000, vec![(13 * SECOND, event)]);
                let [notice] = &course.notices[..] else { panic!("{:?}", course.notices) };
                assert!(notice.contains(words) && !notice.contains("clock"), "{notice}");
                // It was late, but a faster method would not have helped.
                assert!(course.rotated.iter().all(|rotated| rotated.clients_carried.is_none()));
            }
        }
        // In the middle of a step, nobody needs to know.
        let course = rotate(true, START, 30, 1000, vec![(2 * SECOND, Event::Stop(3 * SECOND))]);
        assert_eq!(course.notices, [""; 0]);
        assert!(
            course.rotated.iter().all(|rotated| rotated.late_ms == 0.0),
            "{:?}",
            course.rotated
        );
    }

    #[test]
    fn a_jump_while_it_starts_is_followed() {
        for map in [true, false] {
            for jump in [-120, -10, 10, 40] {
                // A reading takes 1 ms: this is after the first.
                let event = Event::Set(jump * SECOND as i64);
                let course = rotate(map, START, 30, 1_000_000, vec![(1_500_000, event)]);
                assert_eq!(course.notices.len(), 1, "{:?}", course.notices);
            }
        }
    }

    #[test]
    fn the_first_step_of_all_has_no_one_before_it() {
        for map in [true, false] {
            let course =
                rotate(map, 0, 59, 1000, vec![(30 * SECOND, Event::Set(-100 * SECOND as i64))]);
            assert_eq!(course.notices.len(), 1);
            assert_eq!(course.rotated.last().unwrap().live, 3 * CLIENTS);
        }
    }

    fn event() -> impl Strategy<Value = Event> {
        let seconds = prop_oneof![
            (-5i64..=5).prop_map(|steps| steps * PERIOD as i64),
            -100i64..100,
            -100_000i64..100_000
        ];
        prop_oneof![
            4 => (seconds, -20i64..20).prop_map(|(seconds, more)| {
                Event::Set(seconds * SECOND as i64 + more * 100_000_000)
            }),
            1 => (0u64..50_000).prop_map(|ms| Event::Stop(ms * 1_000_000)),
            1 => (0u64..50_000).prop_map(|ms| Event::Suspend(ms * 1_000_000)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        /// Whatever the clocks do: whenever it has nothing to do, the addresses of the window are
        /// live, and no others. In half of the cases a reading is slow, up to 100 ms, so that
        /// events find the work half-way.
        #[test]
        fn the_right_addresses_are_live_after_any_jump_or_stop(
            map: bool,
            tick in prop_oneof![Just(1000u64), 1_000_000u64..100_000_000],
            events in proptest::collection::vec((0u64..100_000, event()), 0..12),
        ) {
            let events = events.into_iter().map(|(at, event)| (at * 1_000_000, event)).collect();
            rotate(map, START, 150, tick, events);
        }
    }
}
