//! Answers until it is stopped, reports what happens meanwhile, and takes everything back.
//!
//! ```text
//!   engine ────► answers              a thread, which starts its workers
//!   rotation ──► moves addresses      a thread, if they move
//!   this one ──► every 20 ms: are all workers alive, what do the others report
//!                every 100 ms: has the interface changed
//!                every second: statistics
//! ```

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::error::ServerError;
use super::opened::{Held, Opened};
use super::silence::Silence;
use super::symptoms::{Symptom, Symptoms};
use super::watch::Watcher;
use super::{Occasion, Totals};
use crate::address::Prefix;
use crate::engine::supervise::{self, Thread};
use crate::engine::{CounterSet, Engine};
use crate::events::{Counters, Moves, Ready, Stats};
use crate::host::sandbox::{Role, Sandbox};
use crate::host::settings::Changed;
use crate::live::{Bound, LiveSet, Phases, Rotated, Told};

/// How long the main thread sleeps. A signal sets `stop` but cannot wake it, so this is short
/// enough not to keep anybody waiting.
const NAP: Duration = Duration::from_millis(20);

/// How often statistics are shown.
const PERIOD: Duration = Duration::from_secs(1);

/// How often the interface is checked: one query to the kernel, some 20 µs.
const LOOK: Duration = Duration::from_millis(100);

/// The main thread's state while the others serve.
struct Running<'a, T> {
    stop: &'a AtomicBool,
    tell: T,
    started: Instant,
    counters: Option<Box<dyn CounterSet>>,
    /// The workers' beats when all of them were last alive.
    beats: Vec<u64>,
    news: News,
    moves: Option<Moves>,
    /// How late the last step was, in seconds.
    lag: Option<f64>,
    symptoms: Symptoms,
    silence: Silence,
    watcher: Watcher,
    /// When to show statistics, and to check the interface, next.
    next_stats: Instant,
    next_look: Instant,
}

/// Reports from other threads.
struct News {
    rotated: mpsc::Receiver<Rotated>,
    notices: mpsc::Receiver<String>,
}

/// The sending ends.
struct Tellers {
    rotated: mpsc::Sender<Rotated>,
    notices: mpsc::Sender<String>,
}

/// The addresses while it serves.
struct Serving<'a> {
    /// The prefix of all of them.
    prefix: Prefix,
    /// Moving ones leave by themselves when they are no longer live.
    live: Option<Arc<LiveSet>>,
    renewal: Renewal<'a>,
}

/// How lost addresses are made live again.
enum Renewal<'a> {
    /// By the main thread.
    Here(&'a mut Bound),
    /// By the thread that moves them, on request.
    Asked(Arc<AtomicBool>),
}

/// Runs a server until `stop` is set, its engine ends, or the interface makes it end.
pub(super) fn run<T: FnMut(Occasion)>(
    opened: Opened,
    ready: &Ready,
    stop: &AtomicBool,
    tell: T,
    told: &mut Told,
) -> Result<Totals, ServerError> {
    // If this panics, what is left is dropped in the reverse of this order.
    let Opened { prefix, silence, watcher, mut bound, settings, sandbox, counters, engine } =
        opened;
    let (tellers, news) = channels();
    let moves = ready.moving.as_ref().map(|moving| Moves::none(moving.step, ready.addresses));
    let mut running = Running::new(stop, tell, counters, (watcher, silence), (moves, news));
    let (seen, served) = thread::scope(|scope| {
        let role = ready.bind.rotates_as();
        let (mut serving, rotation) =
            serve_addresses(scope, stop, (&mut bound, prefix), tellers, (sandbox, role));
        let engine = engine.map(|engine| start_engine(scope, stop, engine, sandbox));
        let ended = || engine.as_ref().is_some_and(Thread::is_finished);
        let seen = running.watch_over(&mut serving, ended);
        (seen, wait_for(engine, rotation))
    });
    let seen = running.or_gone(seen, &served);
    let stats = running.finish();
    let put_back: Vec<_> = settings.into_iter().map(Changed::put_back).collect();
    let released = bound.release(told);
    let (unbind, notes) = outcome(seen, served, released, put_back)?;
    Ok(Totals { stats, unbind, notes })
}

fn channels() -> (Tellers, News) {
    let (rotated, told_of) = mpsc::channel();
    let (notices, noted) = mpsc::channel();
    (Tellers { rotated, notices }, News { rotated: told_of, notices: noted })
}

/// Starts the thread that moves the addresses, if they move. The calling thread must start it,
/// because it has the privileges that moving needs.
fn serve_addresses<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    stop: &'scope AtomicBool,
    (held, prefix): (&'scope mut Held, Prefix),
    tellers: Tellers,
    (sandbox, role): (Sandbox, Role),
) -> (Serving<'scope>, Option<Thread<'scope>>) {
    let rotation = match held {
        Held::Still { bound, .. } => {
            return (Serving { prefix, live: None, renewal: Renewal::Here(bound) }, None);
        }
        Held::Moving(rotation) => rotation,
    };
    let (live, renewal) = (rotation.live(), Renewal::Asked(rotation.renewal()));
    let thread = supervise::start(scope, stop, move || {
        sandbox.enter(role)?;
        // The main thread listens for as long as this runs.
        let show = |rotated| {
            let _ = tellers.rotated.send(rotated);
        };
        rotation.run(stop, show, |words| {
            let _ = tellers.notices.send(words);
        })
    });
    (Serving { prefix, live, renewal }, Some(thread))
}

fn start_engine<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    stop: &'scope AtomicBool,
    engine: Box<dyn Engine>,
    sandbox: Sandbox,
) -> Thread<'scope> {
    supervise::start(scope, stop, move || {
        sandbox.enter(Role::Engine)?;
        engine.run(stop)
    })
}

/// Waits for both, and returns why the first of them could not continue.
fn wait_for(engine: Option<Thread>, rotation: Option<Thread>) -> Result<(), ServerError> {
    let answered = engine
        .map_or(Ok(()), |engine| engine.join().map_err(|_| anyhow!("the engine panicked"))?);
    let moved = supervise::wait_for(rotation).context("the addresses cannot be moved");
    answered.map_err(ServerError::engine).and(moved.map_err(ServerError::binding))
}

impl<'a, T: FnMut(Occasion)> Running<'a, T> {
    fn new(
        stop: &'a AtomicBool,
        tell: T,
        counters: Option<Box<dyn CounterSet>>,
        (watcher, silence): (Watcher, Silence),
        (moves, news): (Option<Moves>, News),
    ) -> Self {
        let started = Instant::now();
        Self {
            stop,
            tell,
            started,
            beats: beats(counters.as_deref()),
            counters,
            news,
            moves,
            lag: None,
            symptoms: Symptoms::default(),
            silence,
            watcher,
            next_stats: started + PERIOD,
            next_look: started + LOOK,
        }
    }

    /// Loops until `stop` is set or the engine has `ended`.
    ///
    /// # Errors
    /// The change of the interface that ends the server.
    fn watch_over(&mut self, serving: &mut Serving, ended: impl Fn() -> bool) -> Result<()> {
        while !self.stop.load(Ordering::Relaxed) && !ended() {
            thread::sleep(NAP);
            self.look_at_workers();
            self.hear_rotation();
            self.hear_notices();
            self.show_stats();
            let seen = self.look_at_interface(serving);
            if seen.is_err() {
                self.stop.store(true, Ordering::Relaxed);
                return seen;
            }
        }
        Ok(())
    }

    fn look_at_workers(&mut self) {
        let now = beats(self.counters.as_deref());
        if now.iter().zip(&self.beats).all(|(now, before)| now != before) {
            (self.tell)(Occasion::Alive);
            self.beats = now;
        }
    }

    fn hear_rotation(&mut self) {
        for rotated in self.news.rotated.try_iter() {
            (self.tell)(Occasion::Rotation(&rotated));
            if let Some(moves) = &mut self.moves {
                moves.add(&rotated);
            }
            self.lag = Some(rotated.late_ms / 1000.0);
        }
    }

    fn hear_notices(&mut self) {
        for text in self.news.notices.try_iter() {
            (self.tell)(Occasion::Notice { text, symptom: None });
        }
    }

    fn say(&mut self, notices: impl IntoIterator<Item = String>) {
        for text in notices {
            (self.tell)(Occasion::Notice { text, symptom: None });
        }
    }

    fn show_symptoms(&mut self, symptoms: impl IntoIterator<Item = (String, Symptom)>) {
        for (text, symptom) in symptoms {
            (self.tell)(Occasion::Notice { text, symptom: Some(symptom) });
        }
    }

    fn show_stats(&mut self) {
        if Instant::now() < self.next_stats {
            return;
        }
        self.next_stats += PERIOD;
        let stats = self.stats();
        (self.tell)(Occasion::Stats(&stats));
        let symptoms = self.symptoms.look(&stats.counters);
        let silence = self.silence.look(&stats).map(|words| (words, Symptom::NobodyAsks));
        self.show_symptoms(symptoms.into_iter().chain(silence));
    }

    fn stats(&self) -> Stats {
        let counters = self.counters.as_ref().map(|counters| counters.read());
        Stats {
            seconds: self.started.elapsed().as_secs_f64(),
            moves: self.moves,
            counters: Counters { rotation_lag_seconds: self.lag, ..counters.unwrap_or_default() },
        }
    }

    /// Applies changes of the interface, and has lost addresses made live again.
    ///
    /// # Errors
    /// Why the server cannot continue.
    fn look_at_interface(&mut self, serving: &mut Serving) -> Result<()> {
        if Instant::now() < self.next_look {
            return Ok(());
        }
        self.next_look = Instant::now() + LOOK;
        let (live, prefix) = (serving.live.as_deref(), serving.prefix);
        let is_ours =
            |address| live.map_or_else(|| prefix.contains(address), |live| live.contains(address));
        let found = self.watcher.look(is_ours);
        // The engine has ended and detached its own program.
        if self.stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.say(found.notices);
        if let Some(name) = found.renamed {
            (self.tell)(Occasion::Renamed(name));
        }
        found.end.map_or(Ok(()), Err)?;
        self.renew(&mut serving.renewal, found.renew)
    }

    /// Has addresses made live again if some are `lost`. Nothing announces the loss of addresses
    /// that are not the kernel's, so this also checks those.
    fn renew(&mut self, renewal: &mut Renewal, lost: bool) -> Result<()> {
        let bound = match renewal {
            Renewal::Asked(renew) => {
                renew.fetch_or(lost, Ordering::Relaxed);
                return Ok(());
            }
            Renewal::Here(bound) => bound,
        };
        if lost || !bound.seems_live().unwrap_or(true) {
            let renewed = bound.renew(&mut |_| !self.stop.load(Ordering::Relaxed));
            let words = self.watcher.restored(renewed, self.stop)?;
            self.say(words);
        }
        Ok(())
    }

    /// The engine may have noticed first that the interface is gone, and reported less.
    fn or_gone(&mut self, seen: Result<()>, served: &Result<(), ServerError>) -> Result<()> {
        if seen.is_err() || served.is_ok() {
            return seen;
        }
        let end = self.watcher.look(|_| false).end;
        end.filter(|_| self.watcher.has_gone()).map_or(Ok(()), Err)
    }

    /// Reports what is left to report, and returns the final counts.
    fn finish(&mut self) -> Stats {
        (self.tell)(Occasion::Stopping);
        let stats = self.stats();
        self.hear_notices();
        let symptoms = self.symptoms.look(&stats.counters);
        self.show_symptoms(symptoms);
        stats
    }
}

fn beats(counters: Option<&dyn CounterSet>) -> Vec<u64> {
    counters.map(CounterSet::beats).unwrap_or_default()
}

/// The result of the end: how long taking the addresses back took, and lines for people. After
/// several failures, the most informative error. What was `seen` of a vanished interface says more
/// than the engine's error.
fn outcome(
    seen: Result<()>,
    served: Result<(), ServerError>,
    released: Result<Phases>,
    put_back: Vec<Result<Option<String>>>,
) -> Result<(Phases, Vec<String>), ServerError> {
    seen.map_err(ServerError::changed)?;
    served?;
    let unbind = released.context("some addresses stay").map_err(ServerError::binding)?;
    let put_back: Result<Vec<_>> = put_back.into_iter().collect();
    let put_back = put_back.context("a setting stays changed").map_err(ServerError::setting)?;
    Ok((unbind, put_back.into_iter().flatten().collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Modes;
    use crate::live::{self, BindContext, Method};
    use crate::net::netlink;
    use serde_json::json;

    /// An engine whose worker panics.
    struct Broken(Modes);

    impl Engine for Broken {
        fn modes(&self) -> &Modes {
            &self.0
        }

        fn counters(&self) -> Result<Box<dyn CounterSet>> {
            Ok(Box::new(Nothing))
        }

        fn run(self: Box<Self>, stop: &AtomicBool) -> Result<()> {
            thread::scope(|scope| {
                let worker = supervise::start(scope, stop, || panic!("as a test wants it"));
                supervise::wait_for([worker])
            })
        }
    }

    struct Nothing;

    impl CounterSet for Nothing {
        fn read(&self) -> Counters {
            Counters::default()
        }

        fn beats(&self) -> Vec<u64> {
            vec![]
        }
    }

    #[test]
    fn a_worker_that_panics_ends_the_server_with_an_error_and_all_is_taken_back() {
        let loopback = netlink::link("lo").unwrap();
        let place = BindContext {
            link: &loopback,
            prefix: "2001:db8::/64".parse().unwrap(),
            live_addresses: None,
        };
        let bound = live::bind(Method::None, place, vec![], &mut |_| true).unwrap();
        let ready = json!({
            "engine": "afxdp", "interface": "lo", "driver": "", "port": 3540, "replies": 10,
            "addresses": 0, "bind": "none", "generate_seconds": 0.0, "open_seconds": 0.0,
            "bind_seconds": 0.0, "bind_phases": [], "list_memory": 0, "queues": [], "cores": [],
        });
        let ready: Ready = serde_json::from_value(ready).unwrap();
        let opened = Opened {
            engine: Some(Box::new(Broken(Modes::default()))),
            counters: Some(Box::new(Nothing)),
            sandbox: Sandbox::default(),
            settings: vec![],
            bound: Held::Still { bound, generate_seconds: 0.0 },
            watcher: Watcher::new(loopback.clone(), None, Method::None, 0).unwrap(),
            prefix: "2001:db8::/64".parse().unwrap(),
            silence: Silence::on(&loopback, false),
        };
        let stop = AtomicBool::new(false);
        let error = run(opened, &ready, &stop, |_| {}, &mut |_| {}).unwrap_err();
        assert_eq!(error.to_string(), "a worker panicked");
        assert!(stop.load(Ordering::Relaxed));
    }

    #[test]
    fn of_all_that_failed_the_error_that_says_most_is_told() {
        let failed = |words: &'static str, fails: bool| {
            if fails { Err(anyhow!(words)) } else { Ok(()) }
        };
        let end = |[seen, served, released, put_back]: [bool; 4]| {
            outcome(
                failed("it has gone", seen),
                failed("no ring", served).map_err(ServerError::engine),
                failed("no address", released).map(|()| Phases::default()),
                vec![
                    failed("no setting", put_back).map(|()| None),
                    Ok(Some("somebody has changed it".to_owned())),
                ],
            )
        };
        for (fails, expected) in [
            ([true, true, true, true], "it has gone"),
            ([false, true, true, true], "no ring"),
            ([false, false, true, true], "some addresses stay: no address"),
            ([false, false, false, true], "a setting stays changed: no setting"),
        ] {
            let error = end(fails).unwrap_err();
            let is_of_its_kind = match error {
                ServerError::Changed(_) => fails[0],
                ServerError::Engine(_) => fails[1],
                ServerError::Binding(_) => fails[2],
                _ => matches!(error, ServerError::Setting(_)),
            };
            assert!(is_of_its_kind, "{error:?}");
            assert_eq!(format!("{:#}", anyhow!(error)), expected);
        }
        let (_, notes) = end([false; 4]).unwrap();
        assert_eq!(notes, ["somebody has changed it"]);
    }
}
