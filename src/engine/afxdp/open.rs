//! OPENING: the program is loaded and attached, then each queue gets its socket and its rings.

use std::thread;

use anyhow::{Context, Result, anyhow};

use super::run::{Hidden, ServedQueue};
use super::{AfXdp, FRAMES, KEPT, SEND_RING, can_send_redirected, chosen_frame_size, elsewhere};
use crate::address::Targets;
use crate::engine::behind::Behind;
use crate::engine::multicast_router::MulticastRouter;
use crate::engine::worker::Worker;
use crate::engine::{Advertiser, EngineConfig, LinkAddress, Modes, pin, reply};
use crate::live::{Delivering, Method};
use crate::net::netlink::{self, AttachMode, Delivery, KernelAddresses, Opener};
use crate::net::quirks::CARRIER_TIMEOUT;
use crate::service::Service;
use crate::xdp::{
    AllMulticast, Attachment, CopyMode, Frame, LiveAddresses, MovingAddresses, Program,
    ProgramConfig, Reflect, Rings, Screen, Socket, SocketConfig,
};

impl<S: Service> AfXdp<S> {
    /// Opens afxdp, or reflect where the program is to answer.
    pub fn open(config: &EngineConfig, service: &S, reflects: bool) -> Result<Self> {
        let EngineConfig { link, handler, targets, sandbox, .. } = config;
        let is_hidden = config.bind == Method::LiveMap;
        let mut program = load(config, reflects)?;
        let mut live = program.live_addresses()?;
        let hidden = tell_addresses(config, &program, &mut live, reflects)?;
        let frame_size = chosen_frame_size(config)?;
        let behind = (handler.port() != 0).then(|| Behind::program(config, service)).transpose()?;
        // Before the sockets are bound: some drivers grant zero-copy only then.
        let attachment = attach(config, &program, reflects)?;
        let link_address = LinkAddress::from(link.mac);
        let served = if reflects && !is_hidden { &[][..] } else { &config.queues };
        let queues = open_queues(config, service, served, &attachment, frame_size, &link_address)?;
        netlink::wait_for_carrier(&link.name, CARRIER_TIMEOUT)?;
        for queue in &queues {
            program.add_socket(queue.number, &queue.socket)?;
        }
        let modes = granted(config, &attachment, &queues, reflects);
        // Last: the kernel then delivers only what the backstop marks.
        let delivering = if is_hidden && behind.is_some() && attachment.lacks_backstop().is_none() {
            let delivery = Delivery::begin(link, targets.prefix(), Opener::Backstop)?;
            Some(Delivering::start(delivery, *sandbox)?)
        } else {
            None
        };
        let router = config.multicast_router.then(|| MulticastRouter::on(link)).transpose()?;
        Ok(Self {
            hidden,
            delivering,
            router,
            attachment,
            program,
            queues,
            live: (is_hidden || matches!(targets, Targets::Moving(_))).then_some(live),
            behind,
            reflected: if reflects { config.replies } else { 0 },
            link_address,
            // The rings of a program that answers take only solicitations.
            frame_bytes: (!reflects).then_some(frame_size),
            modes,
            sandbox: *sandbox,
        })
    }
}

/// Loads the program, and tells it the prefix and who may ask.
fn load(config: &EngineConfig, reflects: bool) -> Result<Program> {
    let EngineConfig { link, handler, targets, .. } = config;
    let highest = config.queues.iter().max().copied().unwrap_or(0);
    let (still, moving) = match targets {
        Targets::Pool(pool) => (pool.count(), None),
        Targets::Moving(timetable) => {
            let (subnet, clients) = (timetable.subnet(), timetable.clients());
            (0, Some(MovingAddresses { subnet, clients }))
        }
    };
    let mut program = Program::load(&ProgramConfig {
        port: handler.port(),
        addresses: u32::try_from(still)
            .context("the steering program holds no more than 2^32 addresses")?,
        queues: highest + 1,
        hidden: config.bind == Method::LiveMap,
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
    Ok(program)
}

/// Tells the program the kernel's addresses, and those of a pool that the kernel has.
fn tell_addresses(
    config: &EngineConfig,
    program: &Program,
    live: &mut LiveAddresses,
    reflects: bool,
) -> Result<Option<Hidden>> {
    let EngineConfig { link, handler, targets, .. } = config;
    // Nobody else may ask from the interface's own addresses. A program that only steers leaves
    // that to the handler.
    let mut own = if reflects { handler.interface().to_vec() } else { vec![] };
    if config.bind == Method::LiveMap {
        own.retain(|address| !targets.prefix().contains(*address));
        let mut hidden = Hidden {
            kernel: KernelAddresses::watch()?,
            prefix: targets.prefix(),
            elsewhere: own,
            _multicast: AllMulticast::on(link)?,
        };
        hidden.tell(program)?;
        return Ok(Some(hidden));
    }
    if let Targets::Pool(pool) = targets {
        live.add(&pool.to_vec(1)).map_err(|(_, error)| error)?;
    }
    program.set_kernel_addresses(&own)?;
    Ok(None)
}

fn attach(config: &EngineConfig, program: &Program, reflects: bool) -> Result<Attachment> {
    let link = &config.link;
    let attachment = program.attach(link, config.options.xdp.attach)?;
    if reflects && attachment.mode() == AttachMode::Native {
        can_send_redirected(link)?;
    }
    // Some drivers reset the link when a program comes.
    netlink::wait_for_carrier(&link.name, CARRIER_TIMEOUT)?;
    Ok(attachment)
}

/// Opens the `served` queues. Their workers send from `own`, and answer solicitations (live-map).
fn open_queues<S: Service>(
    config: &EngineConfig,
    service: &S,
    served: &[u32],
    attachment: &Attachment,
    frame_size: u32,
    own: &LinkAddress,
) -> Result<Vec<ServedQueue<S>>> {
    let (link, options) = (&config.link, &config.options.xdp);
    let open = |(index, &number): (usize, &u32)| {
        let core = config.cores[index % config.cores.len()];
        let socket_config = SocketConfig {
            interface: &link.name,
            index: link.index,
            queue: number,
            copy: options.copy,
            attach: attachment.mode(),
            frames: FRAMES,
            elsewhere: elsewhere(config.replies),
            frame_size,
            hugepages: options.hugepages,
            busy_poll: options.busy_poll,
            send_ring: SEND_RING,
            fill: FRAMES - if S::UNASKED { KEPT } else { 0 },
        };
        let (socket, rings, kept) = open_on(core, &socket_config)?;
        let mut worker = Worker::new(config.handler.clone(), service.clone())
            .with_room(reply::room(link))
            .with_kept(kept, &rings, own.clone());
        if config.bind == Method::LiveMap {
            worker = worker.with_advertiser(Advertiser::new(own.clone()));
        }
        Ok(ServedQueue { number, core, worker, rings, socket, shown: Default::default() })
    };
    served.iter().enumerate().map(open).collect()
}

/// The modes that the kernel granted.
fn granted<S>(
    config: &EngineConfig,
    attachment: &Attachment,
    queues: &[ServedQueue<S>],
    reflects: bool,
) -> Modes {
    let mut fallbacks: Vec<_> = attachment.fallback().cloned().into_iter().collect();
    for fallback in queues.iter().filter_map(|queue| queue.socket.fallback()) {
        // What holds for every queue is said once.
        if !fallbacks.contains(fallback) {
            fallbacks.push(fallback.clone());
        }
    }
    let mut modes = Modes {
        attach: Some(attachment.mode()),
        fallbacks,
        busy_poll: queues.first().and_then(|queue| queue.socket.busy_poll()),
        queues: config.queues.clone(),
        cores: queues.iter().map(|queue| queue.core).collect(),
        ..Modes::default()
    };
    // No request reaches the rings of a program that answers by itself.
    if !reflects {
        let is_copy = queues.iter().any(|queue| queue.socket.mode() == CopyMode::Copy);
        modes.copy = Some(if is_copy { CopyMode::Copy } else { CopyMode::Zero });
        modes.hugepages = Some(queues.iter().all(|queue| queue.rings.umem().hugepages()));
        modes.rings = queues.first().map(|queue| queue.socket.rings());
    }
    modes
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
