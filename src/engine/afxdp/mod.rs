//! The engines that have an XDP program. afxdp: for each queue a socket, its rings, and a pinned
//! worker that owns both. reflect: the program answers by itself, and there are queues only where
//! neighbour discovery has to be answered.

mod options;

use std::io;
use std::net::Ipv6Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use crate::address::{Prefix, Targets};
use crate::engine::behind::Behind;
use crate::engine::multicast_router::MulticastRouter;
use crate::engine::reply;
use crate::engine::statistics::{Shown, Tally};
use crate::engine::udp::SocketCounters;
use crate::engine::worker::{BATCH, Worker};
use crate::engine::{
    About, Advertiser, CounterSet, Engine, EngineConfig, EngineError, EngineKind, Follower,
    LinkAddress, Modes, pin, supervise,
};
use crate::events::{Counters, QueueCounters};
use crate::host::sandbox::{Role, Sandbox};
use crate::live::Method;
use crate::net::ethtool;
use crate::net::netdev::xdp_features;
use crate::net::netlink::{self, AttachMode, Delivery, KernelAddresses, Link};
use crate::net::quirks::{self, Act, CARRIER_TIMEOUT};
use crate::service::Service;
use crate::wire::OVERHEAD;
use crate::xdp::{
    AllMulticast, Attachment, CopyMode, CounterSource, Doorbell, Fate, Frame, KernelCounters,
    LevelSource, LiveAddresses, MovingAddresses, Program, ProgramConfig, Reflect, RingLevels,
    Rings, Screen, Socket, SocketConfig, Station, Verdict, VerdictSource, spare_frames,
};

pub use options::Options;

/// Frames of each queue. They are the queue of requests that wait while the worker is kept from its
/// processor: at 100,000 requests/s they hold 40 ms of them, which is more than a scheduler takes
/// away at a time.
pub const FRAMES: u32 = 4096;

/// Descriptors of the tx and completion rings. As many as frames: 409 requests of ten replies in
/// flight, and the kernel's budget of one system call.
const SEND_RING: u32 = 4096;

/// A worker that found nothing to do looks again for this long before it sleeps. On the machine of
/// the README a request that finds it asleep is answered after some 130 µs, one that finds it awake
/// after 4; looking costs only what nobody else wants.
const PATIENCE: Duration = Duration::from_micros(50);

/// A sleeping worker looks up this often whether it is to stop.
const DOZE: Duration = Duration::from_millis(100);

/// The same while replies are on their way: nothing announces a completion.
const NAP: Duration = Duration::from_millis(1);

/// A worker that is to stop waits so long for its last replies to leave.
const DRAIN: Duration = Duration::from_millis(100);

/// Frames of each queue that are kept for what a service sends without being asked.
const KEPT: u32 = 64;

/// Bytes that the kernel takes of each frame before the packet (XDP_PACKET_HEADROOM), Ethernet
/// header and VLAN tags.
const FRAME_OVERHEAD: u32 = 256 + 14 + 8;

/// Frames of a queue, for so many replies to each request, where the card's own receive ring is as
/// large as `card_ring`.
pub fn frames(copy: CopyMode, card_ring: Option<u32>, replies: u16) -> u32 {
    FRAMES + if copy == CopyMode::Zero { spare_frames(card_ring, elsewhere(replies)) } else { 0 }
}

/// Frames of a queue that are on their way out, or in the worker's hands, at most.
fn elsewhere(replies: u16) -> u32 {
    SEND_RING / u32::from(replies.max(1)) + BATCH as u32
}

/// Bytes of a frame that holds packets of `mtu` bytes, as far as any does: there are none larger
/// than 4,096.
pub fn frame_size(mtu: u32) -> u32 {
    if mtu.saturating_add(FRAME_OVERHEAD) <= 2048 { 2048 } else { 4096 }
}

/// Bytes of the largest request that fits into such a frame, behind XDP_PACKET_HEADROOM.
pub fn largest_request(frame_size: u32) -> u32 {
    frame_size.saturating_sub(256 + OVERHEAD as u32)
}

impl EngineKind {
    /// AF_XDP rings.
    pub const AFXDP: Self = Self::named("afxdp");
}

pub(super) const ABOUT: About = About {
    steers: true,
    sees_frames: true,
    has_rings: true,
    shares_frames: true,
    capabilities: &["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_BPF", "CAP_PERFMON"],
    roles: &[Role::Ring],
    longest,
    ..About::new(EngineKind::AFXDP, "AF_XDP rings: no socket buffers, no system call per packet")
};

fn longest(modes: &Modes) -> Option<(u32, &'static str)> {
    let why = "larger ones do not fit into a frame of the rings and are dropped (xdp.rx_dropped)";
    modes.rings.map(|rings| (largest_request(rings.frame_size), why))
}

pub(super) fn open<S: Service>(config: &EngineConfig, service: &S) -> Result<Box<dyn Engine>> {
    Ok(Box::new(AfXdp::open(config, service, false)?))
}

pub(super) struct AfXdp<S> {
    // Fields are dropped in this order: first the kernel gets nothing for live addresses, then
    // nothing is steered any more, then the sockets go.
    delivering: Option<Delivering>,
    hidden: Option<Hidden>,
    /// Where switches are to be told that there is one.
    router: Option<MulticastRouter>,
    attachment: Attachment,
    program: Program,
    queues: Vec<Queue<S>>,
    /// For who makes addresses live or moves them.
    live: Option<LiveAddresses>,
    /// Where there is a service.
    behind: Option<Behind<S>>,
    /// Replies to each request that the program itself sends; 0 where it sends none.
    reflected: u16,
    /// What its advertisements name.
    link_address: LinkAddress,
    /// Packets of this MTU fit into its frames; `None` where there are none, or of the largest size
    /// that there is.
    fits: Option<Frames>,
    modes: Modes,
    sandbox: Sandbox,
}

/// Frames that are not of the largest size.
#[derive(Debug, Clone, Copy)]
struct Frames {
    bytes: u32,
}

/// What there is besides where the addresses are not the kernel's.
struct Hidden {
    /// The kernel's own, which the program leaves to it where they lie under `prefix`.
    kernel: KernelAddresses,
    prefix: Prefix,
    /// The interface's own elsewhere, which a program that answers wants to know as well.
    elsewhere: Vec<Ipv6Addr>,
    _multicast: AllMulticast,
}

struct Queue<S> {
    number: u32,
    core: usize,
    worker: Worker<S>,
    rings: Rings,
    socket: Socket,
    shown: Arc<Shown>,
}

impl<S: Service> AfXdp<S> {
    /// Opens afxdp, or reflect where the program is to answer.
    pub fn open(config: &EngineConfig, service: &S, reflects: bool) -> Result<Self> {
        let EngineConfig { link, handler, targets, .. } = config;
        let highest = config.queues.iter().max().copied().unwrap_or(0);
        let is_hidden = config.bind == Method::LiveMap;
        let (still, moving) = match targets {
            Targets::Pool(pool) => (pool.count(), None),
            Targets::Moving(timetable) => {
                let (subnet, clients) = (timetable.subnet(), timetable.clients());
                (0, Some(MovingAddresses { subnet, clients }))
            }
        };
        let addresses = u32::try_from(still)
            .context("the steering program holds no more than 2^32 addresses")?;
        let mut program = Program::load(&ProgramConfig {
            port: handler.port(),
            addresses,
            queues: highest + 1,
            hidden: is_hidden,
            moving,
            reflect: reflects.then_some(Reflect { replies: config.replies, interface: link.index }),
            screen: Some(Screen {
                station: link.mac,
                allow_list: !handler.sources().is_all(),
                limit: config.options.xdp.limit,
            }),
        })?;
        program.add_prefix(targets.prefix())?;
        handler.sources().prefixes().iter().try_for_each(|prefix| program.allow(*prefix))?;
        let mut live = program.live_addresses()?;
        // Nobody else may ask from the interface's own addresses; those that steer only leave it to
        // the handler.
        let mut own = if reflects { handler.interface().to_vec() } else { vec![] };
        let hidden = if is_hidden {
            own.retain(|address| !targets.prefix().contains(*address));
            let mut hidden = Hidden {
                kernel: KernelAddresses::watch()?,
                prefix: targets.prefix(),
                elsewhere: own,
                _multicast: AllMulticast::on(link)?,
            };
            hidden.tell(&program)?;
            Some(hidden)
        } else {
            if let Targets::Pool(pool) = targets {
                live.add(&pool.to_vec(1)).map_err(|(_, error)| error)?;
            }
            program.set_kernel_addresses(&own)?;
            None
        };
        let frame_size = chosen_frame_size(config)?;
        let behind = (handler.port() != 0).then(|| Behind::program(config, service)).transpose()?;
        // Attached before the sockets are bound: some drivers grant zero-copy only then.
        let attachment = program.attach(link, config.options.xdp.attach)?;
        if reflects && attachment.mode() == AttachMode::Native {
            can_send_redirected(link)?;
        }
        // Some drivers reset the link when a program comes.
        netlink::wait_for_carrier(&link.name, CARRIER_TIMEOUT)?;

        let link_address = LinkAddress::from(link.mac);
        let mut queues = Vec::new();
        let mut mode = CopyMode::Zero;
        let served = if reflects && !is_hidden { &[][..] } else { &config.queues };
        let mut fallbacks: Vec<_> = attachment.fallback().cloned().into_iter().collect();
        for (index, &queue) in served.iter().enumerate() {
            let core = config.cores[index % config.cores.len()];
            let socket_config = SocketConfig {
                interface: &link.name,
                index: link.index,
                queue,
                copy: config.options.xdp.copy,
                attach: attachment.mode(),
                frames: FRAMES,
                elsewhere: elsewhere(config.replies),
                frame_size,
                hugepages: config.options.xdp.hugepages,
                busy_poll: config.options.xdp.busy_poll,
                send_ring: SEND_RING,
                fill: FRAMES - if S::UNASKED { KEPT } else { 0 },
            };
            let (socket, rings, kept) = open_on(core, &socket_config)?;
            // What holds for every queue is said once.
            let fallback = socket.fallback().filter(|step| !fallbacks.contains(step)).cloned();
            fallbacks.extend(fallback);
            if socket.mode() == CopyMode::Copy {
                mode = CopyMode::Copy;
            }
            let worker = Worker::new(handler.clone(), service.clone())
                .with_room(reply::room(link))
                .with_kept(kept, &rings);
            queues.push(Queue {
                number: queue,
                core,
                worker: if is_hidden {
                    worker.with_advertiser(Advertiser::new(link_address.clone()))
                } else {
                    worker
                },
                rings,
                socket,
                shown: Arc::default(),
            });
        }
        netlink::wait_for_carrier(&link.name, CARRIER_TIMEOUT)?;
        for (queue, number) in queues.iter().zip(served) {
            program.add_socket(*number, &queue.socket)?;
        }
        let mut modes = Modes {
            attach: Some(attachment.mode()),
            fallbacks,
            busy_poll: queues.first().and_then(|queue| queue.socket.busy_poll()),
            queues: config.queues.clone(),
            cores: queues.iter().map(|queue| queue.core).collect(),
            ..Modes::default()
        };
        // Requests do not come into the rings of a program that answers them.
        if !reflects {
            modes.copy = Some(mode);
            modes.hugepages = Some(queues.iter().all(|queue| queue.rings.umem().hugepages()));
            modes.rings = queues.first().map(|queue| queue.socket.rings());
        }
        let reflected = if reflects { config.replies } else { 0 };
        // The last: only what the backstop marks is delivered.
        let delivering = if is_hidden && behind.is_some() && attachment.lacks_backstop().is_none() {
            Some(Delivering::start(Delivery::begin(link, targets.prefix())?, config.sandbox)?)
        } else {
            None
        };
        let router = config.multicast_router.then(|| MulticastRouter::on(link)).transpose()?;
        let live = (is_hidden || matches!(targets, Targets::Moving(_))).then_some(live);
        let sandbox = config.sandbox;
        // Only solicitations come into the rings of a program that answers by itself.
        let fits = (!reflects).then_some(Frames { bytes: frame_size });
        Ok(Self {
            hidden,
            delivering,
            router,
            attachment,
            program,
            queues,
            live,
            behind,
            reflected,
            link_address,
            fits,
            modes,
            sandbox,
        })
    }
}

/// What of the interface program and workers keep.
struct Followed {
    station: Station,
    link_address: LinkAddress,
    fits: Option<Frames>,
}

impl Follower for Followed {
    fn set_address(&self, mac: [u8; 6]) {
        self.station.set(mac);
        self.link_address.set(mac);
    }

    fn set_mtu(&self, mtu: u32) -> Result<()> {
        let Some(Frames { bytes }) = self.fits else { return Ok(()) };
        ensure!(
            frame_size(mtu) <= bytes,
            "packets may be larger than its frames of {bytes} bytes, and would be dropped"
        );
        Ok(())
    }
}

/// Refuses a card that takes no frames from a program: the kernel would drop every reply, and say
/// nothing. A veth takes them once its other end polls, by an XDP program there or GRO, which may
/// come later than this server.
fn can_send_redirected(link: &Link) -> Result<()> {
    let features = xdp_features(link.index).ok().flatten();
    let can = features.is_none_or(|features| features.has("ndo-xmit"));
    if can || quirks::of_driver(&ethtool::driver(&link.name)?).has(Act::ReflectAllTheSame) {
        return Ok(());
    }
    Err(EngineError::SendsNoFrames(link.name.clone()).into())
}

/// Bytes in a frame, as they are asked for or as packets need.
fn chosen_frame_size(config: &EngineConfig) -> Result<u32> {
    let Link { name, mtu, .. } = &config.link;
    let needed = frame_size(*mtu);
    let size = config.options.xdp.frame_size.unwrap_or(needed);
    if size >= needed {
        return Ok(size);
    }
    let (interface, mtu) = (name.clone(), *mtu);
    let largest_mtu = size.saturating_sub(FRAME_OVERHEAD);
    Err(EngineError::FrameTooSmall { size, interface, mtu, needed, largest_mtu }.into())
}

/// Opens a socket from processor `core`: the kernel takes the memory of frames and rings from the
/// NUMA node of the processor that touches it first, which is then the worker's.
fn open_on(core: usize, config: &SocketConfig) -> Result<(Socket, Rings, Vec<Frame>)> {
    thread::scope(|scope| {
        let opener = scope.spawn(|| {
            pin(core);
            Socket::open(config)
        });
        opener.join().map_err(|_| anyhow!("the thread that opens a socket panicked"))?
    })
}

impl<S: Service> Engine for AfXdp<S> {
    fn modes(&self) -> &Modes {
        &self.modes
    }

    fn notes(&self) -> Vec<String> {
        let lacks = self.attachment.lacks_backstop().filter(|_| self.behind.is_some());
        lacks.map(str::to_owned).into_iter().collect()
    }

    fn counters(&self) -> Result<Box<dyn CounterSet>> {
        Ok(Box::new(AfXdpCounters {
            verdicts: self.program.verdicts()?,
            hidden: self.hidden.is_some(),
            reflected: self.reflected,
            counts_frames: self.attachment.counts_frames(),
            behind: self.behind.as_ref().map(Behind::counters),
            queues: self
                .queues
                .iter()
                .map(|queue| QueueSource {
                    queue: queue.number,
                    shown: queue.shown.clone(),
                    kernel: queue.socket.counters(),
                    levels: queue.rings.levels(),
                    sent: AtomicU64::new(0),
                })
                .collect(),
            lost: Mutex::default(),
        }))
    }

    fn live_addresses(&mut self) -> Option<LiveAddresses> {
        self.live.take()
    }

    fn follower(&self) -> Option<Box<dyn Follower>> {
        let (station, link_address) = (self.program.station(), self.link_address.clone());
        Some(Box::new(Followed { station, link_address, fits: self.fits }))
    }

    fn run(self: Box<Self>, stop: &AtomicBool) -> Result<()> {
        let Self {
            attachment, program, queues, hidden, delivering, router, behind, sandbox, ..
        } = *self;
        let work = || {
            Self::work((attachment, delivering), &program, queues, (hidden, router), sandbox, stop)
        };
        match behind {
            Some(behind) => behind.beside(stop, work),
            None => work(),
        }
    }
}

impl<S: Service> AfXdp<S> {
    /// Has each queue answered until `stop` is set, and the program told what it needs.
    fn work(
        (attachment, delivering): (Attachment, Option<Delivering>),
        program: &Program,
        queues: Vec<Queue<S>>,
        (hidden, router): (Option<Hidden>, Option<MulticastRouter>),
        sandbox: Sandbox,
        stop: &AtomicBool,
    ) -> Result<()> {
        thread::scope(|scope| {
            let keeper = hidden.map(|hidden| {
                supervise::start(scope, stop, move || {
                    sandbox.enter(Role::Addresses)?;
                    hidden.keep(program, stop)
                })
            });
            let announcer = router.map(|router| {
                supervise::start(scope, stop, move || {
                    sandbox.enter(Role::Packet)?;
                    router.keep(stop);
                    Ok(())
                })
            });
            let start = |queue: Queue<S>| {
                supervise::start(scope, stop, move || {
                    sandbox.enter(Role::Ring)?;
                    queue.run(stop).context("the interface or its socket is gone")
                })
            };
            let workers: Vec<_> = queues.into_iter().map(start).collect();
            if workers.is_empty() {
                while !stop.load(Ordering::Relaxed) {
                    thread::sleep(DOZE);
                }
            }
            let worked = supervise::wait_for(workers);
            let kept = supervise::wait_for(keeper.into_iter().chain(announcer));
            drop(delivering);
            drop(attachment);
            worked.and(kept)
        })
    }
}

/// Has the kernel take what the program passes for live addresses; only while the program is
/// attached. A thread keeps it, which is started while everything is still allowed, and keeps what
/// that takes.
struct Delivering {
    /// Until this goes.
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Delivering {
    fn start(mut delivery: Delivery, sandbox: Sandbox) -> Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let (entered, has_entered) = mpsc::channel();
        let thread = thread::spawn(move || {
            let is_in = sandbox.enter(Role::Binding);
            let goes_on = is_in.is_ok();
            let _ = entered.send(is_in);
            while goes_on && stopped.try_recv() == Err(mpsc::TryRecvError::Empty) {
                // It fails while the link is down, and is tried again.
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

impl Hidden {
    /// Keeps the program told which addresses are the kernel's, until `stop` is set: they come and
    /// go, those of autoconfiguration by themselves.
    fn keep(mut self, program: &Program, stop: &AtomicBool) -> Result<()> {
        while !stop.load(Ordering::Relaxed) {
            if self.kernel.changed(DOZE)? {
                self.tell(program)?;
            }
        }
        Ok(())
    }

    fn tell(&mut self, program: &Program) -> Result<()> {
        let mut addresses = self.kernel.read()?;
        addresses.retain(|address| self.prefix.contains(*address));
        addresses.extend(&self.elsewhere);
        program.set_kernel_addresses(&addresses)
    }
}

impl<S: Service> Queue<S> {
    fn run(mut self, stop: &AtomicBool) -> io::Result<()> {
        pin(self.core);
        let polling = self.socket.busy_poll();
        let patience = polling
            .map_or(PATIENCE, |poll| PATIENCE.max(Duration::from_micros(poll.microseconds.into())));
        let mut idle_since = None;
        while !stop.load(Ordering::Relaxed) {
            if self.worker.turn(&mut self.rings, &mut self.socket)? {
                idle_since = None;
                self.shown.store(self.worker.tally());
                continue;
            }
            if polling.is_some() {
                // Does the card's receive work, and its completions: no interrupt will.
                self.socket.wake_receiver()?;
            }
            let since = *idle_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= patience {
                self.shown.beat();
                let limit = if self.rings.census().sending > 0 { NAP } else { DOZE };
                // A poll counts milliseconds, and one of none would not sleep.
                self.socket.sleep(limit.min(self.worker.wait().max(NAP)))?;
                idle_since = None;
            }
        }
        let give_up = Instant::now() + DRAIN;
        // Whatever it says of the interface now: what has not left is counted.
        while matches!(self.worker.drain(&mut self.rings, &mut self.socket), Ok(false))
            && Instant::now() < give_up
        {
            let _ = self.socket.sleep(NAP);
        }
        self.shown.close(&self.worker.close(&self.rings));
        Ok(())
    }
}

struct AfXdpCounters {
    verdicts: VerdictSource,
    hidden: bool,
    reflected: u16,
    counts_frames: bool,
    behind: Option<SocketCounters>,
    queues: Vec<QueueSource>,
    lost: Mutex<Lost>,
}

/// What is known of a queue.
struct QueueSource {
    queue: u32,
    /// By its worker.
    shown: Arc<Shown>,
    /// By the kernel.
    kernel: CounterSource,
    levels: LevelSource,
    /// Replies that the kernel had taken when last looked at: a count that others see never falls.
    sent: AtomicU64,
}

impl QueueSource {
    /// What its worker did. While it works, replies that the tx ring still holds are not sent.
    fn tally(&self, levels: &RingLevels, tally: Tally) -> Tally {
        if self.shown.is_closed() {
            return tally;
        }
        let taken = tally.replies.saturating_sub(levels.tx.into());
        let replies = self.sent.fetch_max(taken, Ordering::Relaxed).max(taken);
        Tally { replies, ..tally }
    }

    /// Packets that reached its socket, also those that it had no room for.
    fn arrived(&self) -> u64 {
        let (kernel, ring) = (self.kernel.read(), self.levels.arrived());
        let seen = self.shown.load();
        // The ring's counter has 32 bits, and the worker is never 2^31 packets behind it.
        let seen = seen.received + seen.invalid;
        let ahead = ring.wrapping_sub(seen as u32) as i32;
        seen.saturating_add_signed(ahead.into()) + kernel.rx_dropped + kernel.rx_ring_full
    }
}

impl AfXdpCounters {
    /// Packets that the program redirected into rings and that none took: the kernel counts them
    /// nowhere.
    fn lost(&self) -> u64 {
        // Before what arrived is counted: a packet between the two is not lost.
        let verdicts = self.verdicts.read().unwrap_or_default();
        let steered = verdicts[Verdict::Steered as usize] + verdicts[Verdict::Solicited as usize];
        let arrived = self.queues.iter().map(QueueSource::arrived).sum();
        let is_over = self.queues.iter().all(|queue| queue.shown.is_closed());
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        if is_over {
            lost.at_the_end(steered, arrived)
        } else {
            lost.look(Instant::now(), steered, arrived, self.queues.len() as u64)
        }
    }

    /// What the program did that answered so many requests, and refused others. Where the kernel
    /// does not say which of the replies the driver took, they count as sent: they were handed to
    /// it.
    fn reflected(&self, answered: u64) -> Tally {
        let all = answered * u64::from(self.reflected);
        let replies = if self.counts_frames {
            let [sent, _refused] = self.verdicts.frames().unwrap_or_default();
            sent.min(all)
        } else {
            all
        };
        // Also those that never came as far as the driver: the kernel leaves out a device that
        // takes no frames from programs.
        let unsent = all - replies;
        let refused = self.verdicts.refusals().unwrap_or_default();
        Tally { answered, replies, unsent, refused, ..Tally::default() }
    }
}

impl CounterSet for AfXdpCounters {
    fn read(&self) -> Counters {
        let mut tally = Tally::default();
        let mut xdp = KernelCounters::default();
        let mut queues = Vec::with_capacity(self.queues.len());
        let mut waiting = 0;
        let lost = self.lost();
        for source @ QueueSource { queue, shown, kernel, levels, .. } in &self.queues {
            let (own, kernel, levels) = (shown.load(), kernel.read(), levels.read());
            let own = source.tally(&levels, own);
            waiting += u64::from(levels.rx);
            queues.push(QueueCounters {
                queue: *queue,
                answered: own.answered,
                replies: own.replies,
                levels,
                xdp: kernel,
            });
            tally.add(&own);
            xdp.add(&kernel);
        }
        let verdicts = self.verdicts.read().unwrap_or_default();
        tally.add(&self.reflected(verdicts[Verdict::Reflected as usize]));
        let behind = self.behind.as_ref().map(SocketCounters::tally).unwrap_or_default();
        tally.add(&behind);
        let mut counters = tally.counters();
        // Not by what came to the workers: the program sees what the kernel then finds no room for.
        counters.received = behind.received;
        for (verdict, count) in Verdict::ALL.into_iter().zip(verdicts) {
            match verdict.fate(self.hidden) {
                Fate::Taken => counters.received += count,
                Fate::Dropped => {
                    counters.received += count;
                    counters.drop(verdict.name(), count);
                }
                Fate::Passed => {}
            }
            counters.steering.insert(verdict.name().to_owned(), count);
        }
        counters.drop("rx_ring_full", xdp.rx_ring_full);
        counters.drop("rx_dropped", xdp.rx_dropped);
        counters.drop(REDIRECT_FAILED, lost);
        counters.waiting = waiting;
        counters.xdp = (!self.queues.is_empty()).then_some(xdp);
        counters.queues = queues;
        counters.answered_behind = behind.answered;
        counters.refused_behind = behind.refused.iter().sum();
        match &self.behind {
            Some(behind) => counters.with_socket_dropped(behind.dropped()),
            None => counters,
        }
    }

    fn beats(&self) -> Vec<u64> {
        let behind = self.behind.iter().flat_map(|behind| behind.beats());
        self.queues.iter().map(|queue| queue.shown.beats()).chain(behind).collect()
    }
}

/// The reason for which packets are dropped that reach no ring.
pub(crate) const REDIRECT_FAILED: &str = "redirect_failed";

/// How many packets were redirected into rings and reached none. While more arrive some are always
/// between the program and a ring: so many as certainly are not.
#[derive(Debug, Default)]
struct Lost {
    /// When it was looked at, how many were redirected then, and how many of them had not arrived.
    before: Option<(Instant, u64, u64)>,
    certain: u64,
}

impl Lost {
    /// A packet has arrived after this long, or never will.
    const UNDER_WAY: Duration = Duration::from_millis(100);

    /// Packets that a queue has under way at most: a driver passes on what one poll of its ring
    /// gave it (NAPI_POLL_WEIGHT, 64), and some room.
    const OF_A_QUEUE: u64 = 256;

    /// `arrived` is to be counted after `steered`.
    fn look(&mut self, now: Instant, steered: u64, arrived: u64, queues: u64) -> u64 {
        let missing = steered.saturating_sub(arrived);
        if let Some((then, steered_before, missing_before)) = self.before {
            if now.duration_since(then) < Self::UNDER_WAY {
                return self.certain;
            }
            let idle = steered_before.saturating_sub(arrived);
            let busy = missing.min(missing_before).saturating_sub(Self::OF_A_QUEUE * queues);
            self.certain = self.certain.max(idle).max(busy);
        }
        self.before = Some((now, steered, missing));
        self.certain
    }

    /// When nothing is under way any more.
    fn at_the_end(&mut self, steered: u64, arrived: u64) -> u64 {
        self.certain = steered.saturating_sub(arrived);
        self.certain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_that_reach_no_ring_are_lost_and_those_under_way_are_not() {
        let start = Instant::now();
        let at = |second: u64| start + Duration::from_secs(second);
        let mut none = Lost::default();
        // 64 are always under way.
        let seen =
            (0..10).map(|second| none.look(at(second), 1000 * second + 64, 1000 * second, 1));
        assert_eq!(seen.sum::<u64>(), 0);
        assert_eq!(none.at_the_end(9064, 9064), 0);

        let mut all = Lost::default();
        assert_eq!(all.look(at(0), 4, 0, 1), 0, "they may be under way");
        assert_eq!(all.look(at(0) + Duration::from_millis(1), 5, 0, 1), 0);
        assert_eq!(all.look(at(1), 7, 0, 1), 4);
        assert_eq!(all.look(at(2), 7, 0, 1), 7);
        assert_eq!(all.at_the_end(8, 0), 8);

        // Half of them: also while others arrive, and the count never falls.
        let mut half = Lost::default();
        let counts: Vec<_> =
            (0..5).map(|second| half.look(at(second), 2000 * second, 1000 * second, 2)).collect();
        assert_eq!(counts, [0, 0, 488, 1488, 2488]);
        assert_eq!(half.look(at(5), 8000, 8000, 2), 2488);
        assert_eq!(half.at_the_end(8000, 4000), 4000);
    }
}
