//! Opens a gate: checks, programs, addresses, and last the kernel's acceptance of the prefix and
//! the sandbox.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{
    Arrivals, GateAttachment, GateConfig, GateError, GateProgram, GateProgramConfig, GateService,
    listeners,
};
use crate::address::{Prefix, Schedule, mt6d};
use crate::engine::Follower;
use crate::events::{GateReady, Method, Moving, ServiceFound};
use crate::host::Environment;
use crate::host::sandbox::{Role, Sandbox};
use crate::live::{BindContext, Delivering, Progress, Rotation};
use crate::net::ethtool;
use crate::net::netlink::{self, Delivery, KernelAddresses, Link, Opener};
use crate::net::quirks::{self, Act};
use crate::server;
use crate::server::watch::Watcher;
use crate::xdp::{AllMulticast, MovingAddresses, Station};

/// UDP flows, and addresses in use, that the programs remember: some 25 MiB.
const FLOWS: u32 = 1 << 16;

/// How long solicitations are answered for an expired address after the last packet of one of its
/// connections. As long as the kernel lets a connection idle before it sends a keep-alive
/// (tcp_keepalive_time): a neighbour that forgot the address meanwhile asks again.
const KEPT: Duration = Duration::from_secs(7200);

/// How often an idle thread checks the stop flag.
const DOZE: Duration = Duration::from_millis(100);

/// A gate that is open.
pub struct Gate {
    // Dropped in this order: nothing is let in any more before anything else goes.
    pub(super) attachment: GateAttachment,
    pub(super) delivering: Delivering,
    pub(super) rotation: Box<Rotation>,
    pub(super) program: GateProgram,
    pub(super) own: OwnAddresses,
    pub(super) watcher: Watcher,
    pub(super) arrivals: Arrivals,
    pub(super) services: Vec<GateService>,
    pub(super) sandbox: Sandbox,
    pub(super) ready: GateReady,
    _multicast: AllMulticast,
}

impl Gate {
    /// Opens a gate. `step` is called with the number of addresses entered so far, and can stop it.
    ///
    /// # Errors
    /// What is missing and what to do about it. Nothing is left behind.
    pub fn open(config: &GateConfig, step: &mut Progress) -> Result<Self> {
        let started = Instant::now();
        let link = may_open(config)?;
        let timetable = &config.timetable;
        let (subnet, prefix) = (timetable.subnet(), timetable.subnet().prefix());
        let program = GateProgram::load(&GateProgramConfig {
            addresses: MovingAddresses { subnet, clients: timetable.clients() },
            services: config.services.clone(),
            flows: FLOWS,
            idle: config.idle,
            kept: KEPT,
            revoked: 1,
        })?;
        let mut own = OwnAddresses { kernel: KernelAddresses::watch()?, prefix };
        own.tell(&program)?;
        let live_addresses = Some(program.live_addresses()?);
        let place = BindContext { link: &link, prefix, live_addresses };
        // It claims the interface: from here on no other gate or server has it, and what a killed
        // one left is gone.
        let rotation = Rotation::start(Method::LiveMap, place, timetable.clone(), None, step)?;
        let multicast = AllMulticast::on(&link)?;
        let attachment = program.attach(&link)?;
        // Last: the kernel accepts only what the program marks.
        let delivery = Delivery::begin(&link, prefix, Opener::Gate)?;
        let delivering = Delivering::start(delivery, config.sandbox)?;
        let watcher = watch(&link, &program, timetable.clients())?;
        let ready = ready(config, &link, &rotation, started)?;
        let arrivals = program.arrivals()?;
        // From here on, nothing that needs a privilege is opened.
        config.sandbox.enter_main(Role::Main, false)?;
        Ok(Self {
            attachment,
            delivering,
            rotation: Box::new(rotation),
            program,
            own,
            watcher,
            arrivals,
            services: config.services.clone(),
            sandbox: config.sandbox,
            ready,
            _multicast: multicast,
        })
    }

    /// What it actually got.
    #[must_use]
    pub fn ready(&self) -> &GateReady {
        &self.ready
    }
}

/// Makes all checks, and returns the interface.
fn may_open(config: &GateConfig) -> Result<Link> {
    let above = server::may_hide(&config.as_server())?;
    let link = netlink::link(&config.interface)?;
    if let Some(above) = above {
        let in_vrf = quirks::of_kind(above.kind.as_deref()).has(Act::LeavePorts);
        let (interface, above) = (link.name, above.name);
        let error = if in_vrf {
            GateError::InVrf { interface, above }
        } else {
            GateError::IsPort { port: interface, above }
        };
        return Err(error.into());
    }
    if !link.up {
        return Err(GateError::Down(link.name).into());
    }
    let own: Vec<_> = netlink::addresses(0)?.into_iter().map(|address| address.ip).collect();
    config.check_services(&own)?;
    Ok(link)
}

fn watch(link: &Link, program: &GateProgram, clients: u64) -> Result<Watcher> {
    // Attaching may have made the driver reset the link.
    let now = netlink::link_at(link.index)?;
    let now = now.with_context(|| format!("{} has gone meanwhile", link.name))?;
    let known =
        Link { up: true, carrier_losses: now.carrier_losses, ipv6: now.ipv6, ..link.clone() };
    // Unlike a hidden server, a gate gets nothing any more once the link is a port: Method::None
    // says so.
    let watcher = Watcher::new(known, None, Method::None, mt6d::WINDOW * clients)?;
    let follower = GateFollower { station: program.station() };
    Ok(watcher.with_follower(Some(Box::new(follower))))
}

fn ready(
    config: &GateConfig,
    link: &Link,
    rotation: &Rotation,
    started: Instant,
) -> Result<GateReady> {
    let timetable = &config.timetable;
    let found = |(service, listens): (&GateService, bool)| ServiceFound {
        name: service.to_string(),
        listener: service.listener.to_string(),
        listens,
    };
    let services = config.services.iter().zip(listeners::listening(&config.services));
    let services: Vec<_> = services.map(found).collect();
    let missing = services.iter().filter(|service| !service.listens).map(|service| {
        let ServiceFound { name, listener, .. } = service;
        format!("nothing listens on {listener} for {name}: its clients meet silence until it does")
    });
    Ok(GateReady {
        interface: link.name.clone(),
        driver: ethtool::driver(&link.name)?,
        prefix: timetable.subnet().prefix().to_string(),
        addresses: mt6d::WINDOW * timetable.clients(),
        moving: Moving {
            schedule: Schedule::Mt6d,
            clients: timetable.clients(),
            rotate: timetable.clock().period().as_secs_f64(),
            step: rotation.step(),
        },
        notes: missing.collect(),
        services,
        open_seconds: started.elapsed().as_secs_f64(),
        bind_seconds: rotation.phases().seconds(),
        kernel_memory: rotation.kernel_memory(),
        environment: Environment::of(link),
        sandbox: config.sandbox.is_on(),
    })
}

/// The machine's own addresses under the prefix, which stay the kernel's.
pub(super) struct OwnAddresses {
    kernel: KernelAddresses,
    prefix: Prefix,
}

impl OwnAddresses {
    /// Keeps the program up to date until `stop` is set: addresses come and go, those of
    /// autoconfiguration by themselves.
    pub fn keep(mut self, program: &GateProgram, stop: &AtomicBool) -> Result<()> {
        while !stop.load(Ordering::Relaxed) {
            if self.kernel.changed(DOZE)? {
                self.tell(program)?;
            }
        }
        Ok(())
    }

    fn tell(&mut self, program: &GateProgram) -> Result<()> {
        let mut addresses = self.kernel.read()?;
        addresses.retain(|address| self.prefix.contains(*address));
        program.set_kernel_addresses(&addresses)
    }
}

/// Adapts the programs to changes of their interface.
struct GateFollower {
    station: Station,
}

impl Follower for GateFollower {
    fn set_address(&self, mac: [u8; 6]) {
        self.station.set(mac);
    }

    fn set_mtu(&self, _mtu: u32) -> Result<()> {
        Ok(()) // the kernel's stack has no frames of fixed size
    }
}
