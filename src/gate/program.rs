//! The gate's two tc programs: loads them, tells them services and addresses, attaches them by
//! links that the kernel drops with the process, and reads their counters.

use std::fmt;
use std::fs;
use std::io;
use std::mem::{MaybeUninit, offset_of};
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, MapHandle, RingBuffer, RingBufferBuilder};

use crate::net::denied;
use crate::net::memory::Memory;
use crate::net::netlink::Link;
use crate::xdp::{
    LiveAddresses, MovingAddresses, SharedWord, Station, TcHook, attach_tc, prepare_to_load, run,
    sums,
};

mod skeleton {
    #![allow(missing_docs, clippy::all, clippy::pedantic, clippy::undocumented_unsafe_blocks)]
    #![allow(clippy::multiple_unsafe_ops_per_block)]
    include!(concat!(env!("OUT_DIR"), "/gate.skel.rs"));
}

type GateVariables = skeleton::types::bss;

/// Most services of a gate: `services` in bpf/gate.h.
const SERVICES: usize = 256;

/// What a gate is loaded for.
#[derive(Debug, Clone)]
pub struct GateProgramConfig {
    /// The addresses, and the prefix that is theirs alone.
    pub addresses: MovingAddresses,
    /// What is reached there.
    pub services: Vec<GateService>,
    /// UDP flows, and addresses with connections or flows, to remember. Of more, the kernel forgets
    /// those that were used longest ago.
    pub flows: u32,
    /// How long an unused UDP flow may go on at an address that has expired.
    pub idle: Duration,
    /// How long Neighbour Solicitations for an address that has expired are still answered, after
    /// its last packet of a connection or flow.
    pub kept: Duration,
    /// Most addresses that are revoked at a time.
    pub revoked: u32,
}

/// A service of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GateService {
    /// Its transport.
    pub protocol: Protocol,
    /// The port by which clients ask for it.
    pub port: u16,
    /// Where it listens. An unspecified address stands for a socket that is bound to any.
    pub listener: SocketAddrV6,
}

/// The transport of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Connections.
    Tcp,
    /// Flows: datagrams between the same two addresses and ports.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl Protocol {
    fn number(self) -> u8 {
        match self {
            Self::Tcp => libc::IPPROTO_TCP as u8,
            Self::Udp => libc::IPPROTO_UDP as u8,
        }
    }
}

/// Names each outcome once, in the order of `enum outcome` in bpf/gate.h.
macro_rules! outcomes {
    ($($(#[$doc:meta])* $outcome:ident = $name:literal,)*) => {
        /// What became of a packet to, for or from a hidden address. One counter each.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(usize)]
        pub enum GateVerdict {
            $($(#[$doc])* $outcome,)*
        }

        impl GateVerdict {
            /// All of them, in the order of their counters.
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$outcome),*];

            /// The name under which it is counted in the statistics.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$outcome => $name,)*
                }
            }
        }
    };
}

outcomes! {
    /// A connection request, to the listener.
    TcpOpened = "tcp_opened",
    /// The last segment of a handshake by SYN cookie, to the listener.
    TcpCookie = "tcp_cookie",
    /// A segment of a connection that the kernel has.
    TcpFlow = "tcp_flow",
    /// A datagram that begins a flow.
    UdpBegun = "udp_begun",
    /// Another datagram of a flow.
    UdpFlow = "udp_flow",
    /// A Neighbour Solicitation, answered by the program.
    Advertised = "advertised",
    /// An ICMPv6 error about a connection or flow, to the kernel.
    ErrorPassed = "error_passed",
    /// Dropped: a new connection or flow at an address that is not live.
    NotLive = "not_live",
    /// Dropped: a port that no service has.
    NoService = "no_service",
    /// Dropped: for a service that nobody listens for.
    NoListener = "no_listener",
    /// Dropped: a TCP segment that no connection has, and that opens none.
    NoConnection = "no_connection",
    /// Dropped: a Neighbour Solicitation for an address that is not live.
    NotSolicited = "not_solicited",
    /// Dropped: an invalid Neighbour Solicitation.
    BadSolicitation = "bad_solicitation",
    /// Dropped: an ICMPv6 error about nothing of ours.
    ErrorStray = "error_stray",
    /// Dropped: other ICMPv6, such as echo requests.
    IcmpOther = "icmp_other",
    /// Dropped: a fragment.
    Fragmented = "fragmented",
    /// Dropped: another protocol, or extension headers that end nowhere.
    UnknownHeader = "unknown_header",
    /// Dropped: too short for its headers.
    Truncated = "truncated",
    /// Dropped: in a multicast or broadcast frame.
    GroupFrame = "group_frame",
    /// Dropped: to, for or from a revoked address.
    Revoked = "revoked",
    /// Dropped: the kernel would not give it to the listener.
    Unassigned = "unassigned",
    /// A datagram of a service, made to leave from the address that was asked.
    ReplyRenamed = "reply_renamed",
    /// Dropped: a datagram that leaves loopback and that no flow asked for.
    ReplyLate = "reply_late",
    /// Dropped: a fragment of a service's datagram, of which only the first says which flow it
    /// answers.
    ReplyFragmented = "reply_fragmented",
    /// Dropped: ICMPv6 of the kernel that would have told of a hidden address.
    KernelSilenced = "kernel_silenced",
    /// No packet: an arrival that was not told, because nobody read those before.
    ArrivalLost = "arrival_lost",
}

/// A connection whose handshake is complete, or a new UDP flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// Who came.
    pub client: SocketAddrV6,
    /// The address and port that were asked, by which a client of the schedule is known.
    pub asked: SocketAddrV6,
    /// Index of the service in [`GateProgramConfig::services`].
    pub service: usize,
}

impl Arrival {
    /// From a `struct arrival` of bpf/gate.h.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let (client, rest) = bytes.split_first_chunk::<16>()?;
        let (address, rest) = rest.split_first_chunk::<16>()?;
        let (client_port, rest) = rest.split_first_chunk::<2>()?;
        let (port, rest) = rest.split_first_chunk::<2>()?;
        let socket = |address: &[u8; 16], port: &[u8; 2]| {
            SocketAddrV6::new(Ipv6Addr::from(*address), u16::from_be_bytes(*port), 0, 0)
        };
        Some(Self {
            client: socket(client, client_port),
            asked: socket(address, port),
            service: u32::from_ne_bytes(*rest.first_chunk()?) as usize,
        })
    }
}

/// Reads arrivals, from any thread.
#[derive(Debug)]
pub struct Arrivals {
    ring: RingBuffer<'static>,
    parsed: Receiver<Arrival>,
}

impl Arrivals {
    /// Those since the last call, without waiting and without a system call.
    ///
    /// # Errors
    /// When the ring cannot be read.
    pub fn take(&self) -> Result<Vec<Arrival>> {
        self.ring.consume().context("cannot read who came to the gate")?;
        Ok(self.parsed.try_iter().collect())
    }

    /// Those since the last call. Waits for one until `limit` is over.
    ///
    /// # Errors
    /// When the kernel refuses; `EINTR` is no error.
    pub fn read(&self, limit: Duration) -> Result<Vec<Arrival>> {
        match self.ring.poll(limit) {
            Err(error) if error.kind() != libbpf_rs::ErrorKind::Interrupted => {
                Err(error).context("cannot read who came to the gate")
            }
            _ => Ok(self.parsed.try_iter().collect()),
        }
    }
}

/// Which of the two programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GateSide {
    /// For what comes in.
    In,
    /// For what goes out.
    Out,
}

/// What a program made of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestRun {
    /// What it returned: an action of linux/pkt_cls.h, or -1 to hand the packet on.
    pub action: i32,
    /// The packet afterwards.
    pub packet: Vec<u8>,
    /// Its mark.
    pub mark: u32,
}

/// The loaded programs with their maps, attached to nothing yet.
#[derive(Debug)]
pub struct GateProgram {
    gate_in: OwnedFd,
    gate_out: OwnedFd,
    addresses: MovingAddresses,
    services: usize,
    variables: Arc<Memory>,
    timed_addresses: MapHandle,
    kernel_addresses: MapHandle,
    revoked: MapHandle,
    arrivals: MapHandle,
    arrived: MapHandle,
    outcomes: MapHandle,
}

/// The programs on an interface. The kernel detaches them when this is dropped or the process ends,
/// however it ends.
#[derive(Debug)]
pub struct GateAttachment {
    _in: OwnedFd,
    _out: OwnedFd,
}

/// Reads the counters of a gate, from any thread.
#[derive(Debug)]
pub struct GateVerdictSource {
    outcomes: MapHandle,
    arrived: MapHandle,
    services: usize,
}

impl GateVerdictSource {
    /// Packets by outcome since the programs were loaded, added up over all processors.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn read(&self) -> Result<[u64; GateVerdict::ALL.len()]> {
        sums(&self.outcomes)
    }

    /// Arrivals at each service, in the order of [`GateProgramConfig::services`].
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn arrived(&self) -> Result<Vec<u64>> {
        Ok(sums::<SERVICES>(&self.arrived)?[..self.services].to_vec())
    }
}

impl GateProgram {
    /// Loads the programs.
    ///
    /// # Errors
    /// When the kernel refuses them, when two services have one port, or there are more than 256.
    pub fn load(config: &GateProgramConfig) -> Result<Self> {
        prepare_to_load()?;
        let mut storage = MaybeUninit::uninit();
        let mut open =
            skeleton::GateSkelBuilder::default().open(&mut storage).map_err(explain_load)?;
        configure(&mut open, config)?;
        let loaded = open.load().map_err(explain_load)?;
        let keep = |fd: BorrowedFd| fd.try_clone_to_owned().context("cannot keep the program");
        let maps = &loaded.maps;
        let variables = MapHandle::try_from(&maps.bss)?;
        let variables = Memory::of_file(variables.as_fd(), size_of::<GateVariables>(), 0)
            .context("cannot map the variables of the gate")?;
        let program = Self {
            gate_in: keep(loaded.progs.gate_in.as_fd())?,
            gate_out: keep(loaded.progs.gate_out.as_fd())?,
            addresses: config.addresses,
            services: config.services.len(),
            variables: Arc::new(variables),
            timed_addresses: MapHandle::try_from(&maps.timed_addresses)?,
            kernel_addresses: MapHandle::try_from(&maps.kernel_addresses)?,
            revoked: MapHandle::try_from(&maps.revoked)?,
            arrivals: MapHandle::try_from(&maps.arrivals)?,
            arrived: MapHandle::try_from(&maps.arrived)?,
            outcomes: MapHandle::try_from(&maps.outcomes)?,
        };
        program.set_idle(config.idle);
        program.word(offset_of!(GateVariables, kept)).store(nanoseconds(config.kept));
        add_services(&MapHandle::try_from(&maps.services)?, &config.services)?;
        Ok(program)
    }

    fn word(&self, offset: usize) -> SharedWord {
        SharedWord::new(&self.variables, offset)
    }

    /// The live addresses. Any thread may change them while the programs run.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn live_addresses(&self) -> Result<LiveAddresses> {
        let step = self.word(offset_of!(GateVariables, current_step));
        LiveAddresses::moving(self.addresses, &self.timed_addresses, step)
    }

    /// Counts the live addresses by examining all.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn census(&self) -> Result<u64> {
        let step = self.word(offset_of!(GateVariables, current_step)).load();
        self.addresses.census(&self.timed_addresses, step)
    }

    /// A handle to change the interface's Ethernet address in the running programs. Advertisements
    /// carry it.
    #[must_use]
    pub fn station(&self) -> Station {
        Station::new(self.word(offset_of!(GateVariables, station)))
    }

    /// Sets how long an unused UDP flow lasts at an expired address.
    pub fn set_idle(&self, idle: Duration) {
        self.word(offset_of!(GateVariables, idle)).store(nanoseconds(idle));
    }

    /// Replaces the list of the kernel's own addresses, whose packets the programs leave alone.
    ///
    /// # Errors
    /// When there are more than 1,024 of them.
    pub fn set_kernel_addresses(&self, addresses: &[Ipv6Addr]) -> Result<()> {
        let refused = "cannot leave more than 1024 addresses to the kernel";
        set_exactly(&self.kernel_addresses, addresses).context(refused)
    }

    /// Replaces the list of revoked addresses, live or not: nothing to, for or from one passes, not
    /// even of a connection or flow that began before.
    ///
    /// # Errors
    /// When there are more than [`GateProgramConfig::revoked`].
    pub fn set_revoked(&self, addresses: &[Ipv6Addr]) -> Result<()> {
        let refused = "the gate has no room for so many revoked addresses";
        set_exactly(&self.revoked, addresses).context(refused)
    }

    /// A reader of arrivals. Take it once: two readers would each get some of them.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn arrivals(&self) -> Result<Arrivals> {
        let (sender, parsed) = channel();
        let mut builder = RingBufferBuilder::new();
        let told = move |bytes: &[u8]| {
            // Nobody hears of it while the reader is being dropped.
            let _ = Arrival::parse(bytes).map(|arrival| sender.send(arrival));
            0
        };
        builder.add(&self.arrivals, told).context("cannot hear who comes")?;
        let ring = builder.build().context("cannot hear who comes")?;
        Ok(Arrivals { ring, parsed })
    }

    /// A reader of the counters, for any thread.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn outcomes(&self) -> Result<GateVerdictSource> {
        Ok(GateVerdictSource {
            outcomes: MapHandle::try_from(&self.outcomes)?,
            arrived: MapHandle::try_from(&self.arrived)?,
            services: self.services,
        })
    }

    /// Attaches the programs to `link`, beside other programs.
    ///
    /// # Errors
    /// Before Linux 6.6, without CAP_NET_ADMIN, and when frames of `link` have no Ethernet header.
    pub fn attach(&self, link: &Link) -> Result<GateAttachment> {
        let name = &link.name;
        ensure!(link.is_ethernet(), "a gate needs Ethernet frames, and {name} has none");
        self.station().set(link.mac);
        let attach = |program, hook| {
            attach_tc(program, link.index, hook).map_err(|error| explain_attach(link, &error))
        };
        // Replies first: none may leave before they get their addresses.
        let out = attach(&self.gate_out, TcHook::Egress)?;
        Ok(GateAttachment { _in: attach(&self.gate_in, TcHook::Ingress)?, _out: out })
    }

    /// Runs a program on `packet` without any interface (BPF_PROG_TEST_RUN), in the namespace of
    /// the calling thread. The packet counts as one of the loopback interface, whose Ethernet
    /// address is all zeros.
    ///
    /// # Errors
    /// When the kernel does not take the packet: it wants at least an Ethernet header.
    pub fn test_run(&self, side: GateSide, packet: &[u8]) -> Result<TestRun> {
        let program = match side {
            GateSide::In => &self.gate_in,
            GateSide::Out => &self.gate_out,
        };
        let run = run(program, packet, 1, Some(0))?;
        Ok(TestRun { action: run.action as i32, packet: run.packet, mark: run.mark })
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Sets the constants of the programs and the sizes of their maps.
fn configure(open: &mut skeleton::OpenGateSkel, config: &GateProgramConfig) -> Result<()> {
    let maps = &mut open.maps;
    ensure!(
        maps.outcomes.max_entries() as usize == GateVerdict::ALL.len(),
        "the gate's programs count other outcomes than this one"
    );
    let constants = maps.rodata_data.as_deref_mut().context("the gate lost its constants")?;
    constants.subnet = config.addresses.network();
    constants.bits = config.addresses.layout().bits();
    let buckets = config.addresses.buckets()?;
    maps.timed_addresses.set_max_entries(buckets).map_err(explain_load)?;
    maps.flows.set_max_entries(config.flows.max(1)).map_err(explain_load)?;
    maps.used_addresses.set_max_entries(config.flows.max(1)).map_err(explain_load)?;
    maps.replies.set_max_entries(config.flows.max(1)).map_err(explain_load)?;
    maps.revoked.set_max_entries(config.revoked.max(1)).map_err(explain_load)
}

/// Enters the services. No two may have one protocol and port.
fn add_services(map: &MapHandle, services: &[GateService]) -> Result<()> {
    ensure!(services.len() <= SERVICES, "a gate has at most {SERVICES} services");
    for (number, GateService { protocol, port, listener }) in services.iter().enumerate() {
        let [high, low] = port.to_be_bytes();
        let mut value = [0; 24];
        value[..16].copy_from_slice(&listener.ip().octets());
        value[16..20].copy_from_slice(&(number as u32).to_ne_bytes());
        value[20..22].copy_from_slice(&listener.port().to_be_bytes());
        let key = [protocol.number(), 0, high, low];
        map.update(&key, &value, MapFlags::NO_EXIST).with_context(|| {
            format!("two services have port {port}/{protocol}: give one of them another")
        })?;
    }
    Ok(())
}

/// Makes a map contain exactly these addresses. Adds first, so one that stays is never missing.
fn set_exactly(map: &MapHandle, addresses: &[Ipv6Addr]) -> libbpf_rs::Result<()> {
    for address in addresses {
        map.update(&address.octets(), &[0; 4], MapFlags::ANY)?;
    }
    let stay: std::collections::HashSet<_> =
        addresses.iter().map(|address| address.octets().to_vec()).collect();
    let gone: Vec<_> = map.keys().filter(|key| !stay.contains(key)).collect();
    gone.iter().try_for_each(|key| map.delete(key))
}

fn explain_load(error: libbpf_rs::Error) -> anyhow::Error {
    match error.kind() {
        libbpf_rs::ErrorKind::PermissionDenied => {
            let needs = ["CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN"];
            anyhow!(denied::explain("loading the gate's programs", &needs, denied::BPF))
        }
        libbpf_rs::ErrorKind::OutOfMemory => anyhow!(
            "no memory for the maps of the gate: use fewer clients, or allow the process or its \
             control group more memory"
        ),
        _ => anyhow!(
            "the kernel does not take the gate's programs ({error}): Linux 6.6 or newer with \
             CONFIG_BPF_SYSCALL and CONFIG_NET_XGRESS is needed"
        ),
    }
}

/// Says what a refused attachment means.
fn explain_attach(link: &Link, error: &io::Error) -> anyhow::Error {
    let name = &link.name;
    match error.raw_os_error() {
        Some(libc::EPERM) => {
            let needs = ["CAP_NET_ADMIN", "CAP_BPF"];
            anyhow!(denied::explain("attaching the gate's programs", &needs, denied::BPF))
        }
        // Kernels that do not know the kind of link, or were built without it.
        Some(libc::EINVAL | libc::EOPNOTSUPP) => {
            let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
            anyhow!(
                "a gate needs Linux 6.6 or newer (tcx, CONFIG_NET_XGRESS), and this is {}: {name} \
                 takes no tc program by a link ({error})",
                release.trim()
            )
        }
        _ => anyhow!("{name} takes no tc program: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_outcome_has_its_counter_and_name() {
        for (index, outcome) in GateVerdict::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, index);
        }
        let names: std::collections::HashSet<_> = GateVerdict::ALL.map(GateVerdict::name).into();
        assert_eq!(names.len(), GateVerdict::ALL.len());
    }

    #[test]
    fn an_old_kernel_is_named_as_the_reason() {
        let link = crate::net::netlink::link("lo").unwrap();
        let error = explain_attach(&link, &io::Error::from_raw_os_error(libc::EINVAL)).to_string();
        assert!(error.starts_with("a gate needs Linux 6.6 or newer"), "{error}");
    }
}
