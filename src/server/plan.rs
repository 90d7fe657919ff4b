//! What a server will do, decided in advance: a function of the configuration and of what was
//! [found](super::found) on the machine. It asks the kernel nothing and changes nothing.

use std::net::Ipv6Addr;

use super::error::{ConfigError, InterfaceError, Refused};
use super::found::Found;
use super::{ServerConfig, checks, master};
use crate::address::{Sources, Targets};
use crate::engine::EngineKind;
use crate::host::sandbox::Role;
use crate::live::Method;
use crate::xdp::{occupied, stacked};

/// What a server will do.
#[derive(Debug, Clone)]
pub(super) struct ServerPlan {
    /// The engine to open: the requested one, or one that only holds the addresses.
    pub engine: Option<EngineKind>,
    /// Whether it answers requests.
    pub answers: bool,
    /// Whether addresses or engine come first.
    pub order: Order,
    /// Who knows which addresses are live.
    pub decides: Decides,
    /// The queues that the engine serves; empty if the kernel distributes the work of its sockets.
    pub queues: Vec<u32>,
    /// The processors to pin to, at least one.
    pub cores: Vec<usize>,
    /// Who may ask.
    pub sources: Sources,
    /// Addresses of the interface on which the service does not answer.
    pub own: Vec<Ipv6Addr>,
    /// How the kernel should do the receive work of the interface.
    pub receive_work: ReceiveWork,
    /// Receive queues in use now, if a change of their number must end the server.
    pub queues_in_use: Option<u32>,
    /// Whether to report that nobody asks for an address: a switch may be blocking solicitations.
    pub hears_solicitations: bool,
    /// The role of the main thread while the server runs.
    pub role: Role,
    /// Lines for people.
    pub notes: Vec<String>,
}

/// The order of addresses and engine. Addresses that the engine makes live come after it, and all
/// others before it, so that no packet is steered to an address that is not live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    AddressesFirst,
    EngineFirst,
}

/// Who knows which addresses are live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decides {
    /// The pool: they are static.
    Pool,
    /// A set in this process: they move.
    Set,
    /// The steering program: they move. If the kernel also has the addresses, a separate set
    /// decides for the socket behind, which then also gets packets for other addresses.
    Program { and_set: bool },
}

/// How the kernel should do the receive work of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReceiveWork {
    AsItDoes,
    /// So that a polling worker can take it over.
    Polled,
    /// Once every so many microseconds.
    Coalesced(u32),
}

impl ServerPlan {
    /// The plan for `config` on the machine that was found.
    ///
    /// # Errors
    /// How the configuration contradicts itself or the machine, or why the interface cannot be
    /// served as requested.
    pub fn new(config: &ServerConfig, found: &Found) -> Result<Self, Refused> {
        let (engine, hidden) = engine(config)?;
        let steers = engine.is_some_and(EngineKind::steers);
        let (link, answers) = (&found.link, config.engine.is_some());
        let mut notes = Vec::new();
        notes.extend(master::may_serve(link, found.above(), config.bind, answers || hidden)?);
        checks::before(config, found, engine)?;
        let sources = config.allow.clone().unwrap_or_else(|| Sources::new(found.on_link.clone()));
        if answers && sources.prefixes().is_empty() {
            notes.push(format!(
                "{} has no on-link prefix, and no other sources are allowed: nobody is answered",
                link.name
            ));
        }
        let queues = queues(config, found, engine)?;
        let cores = cores(config, found, &queues)?;
        if steers && link.xdp.is_some() {
            // Before thousands of addresses are bound in vain; `attach` checks again.
            return Err(InterfaceError::Occupied(occupied(link).to_string()).into());
        }
        is_free(config, found)?;
        Ok(Self {
            engine,
            answers,
            order: if hidden { Order::EngineFirst } else { Order::AddressesFirst },
            decides: match &config.targets {
                Targets::Pool(_) => Decides::Pool,
                Targets::Moving(_) if steers => Decides::Program { and_set: !hidden },
                Targets::Moving(_) => Decides::Set,
            },
            queues,
            cores,
            sources,
            own: found.own.clone(),
            receive_work: match (config.coalesce, config.options.xdp.busy_poll) {
                (Some(time), _) => ReceiveWork::Coalesced(time),
                (None, Some(_)) => ReceiveWork::Polled,
                (None, None) => ReceiveWork::AsItDoes,
            },
            queues_in_use: steers.then_some(found.queues.in_use),
            hears_solicitations: hidden && answers && !config.multicast_router,
            role: if config.bind.starts_programs() { Role::Commander } else { Role::Main },
            notes,
        })
    }

    /// Whether the engine has an XDP program.
    pub fn steers(&self) -> bool {
        self.engine.is_some_and(EngineKind::steers)
    }

    /// Whether the addresses are hidden from the kernel: only the program makes them live.
    pub fn hides(&self) -> bool {
        self.order == Order::EngineFirst
    }
}

/// The required engine, and whether it must make the addresses live.
fn engine(config: &ServerConfig) -> Result<(Option<EngineKind>, bool), ConfigError> {
    let hidden = config.bind == Method::LiveMap;
    let engine = if hidden { config.engine.or(Some(EngineKind::AFXDP)) } else { config.engine };
    if let Some(engine) = engine.filter(|engine| !engine.can(config.bind)) {
        return Err(ConfigError::NeedsProgram(engine));
    }
    if config.options.xdp.busy_poll.is_some() && !engine.is_some_and(EngineKind::has_rings) {
        return Err(ConfigError::BusyPoll);
    }
    if config.options.xdp.limit.is_some() && !engine.is_some_and(EngineKind::steers) {
        return Err(ConfigError::Limit);
    }
    Ok((engine, hidden))
}

/// The queues to serve: each exists, and can send its socket's replies.
fn queues(
    config: &ServerConfig,
    found: &Found,
    engine: Option<EngineKind>,
) -> Result<Vec<u32>, Refused> {
    if !engine.is_some_and(EngineKind::steers) {
        return Ok(vec![]); // the kernel distributes a socket's work
    }
    let link = &found.link;
    let served = if config.options.xdp.queues.is_empty() {
        (0..found.receiving).collect()
    } else {
        existing(config, found, engine)?
    };
    let by_sockets = engine.is_some_and(EngineKind::has_rings) || config.bind == Method::LiveMap;
    if by_sockets && !stacked::runs_below(link.kind.as_deref()) {
        let cannot = stacked::cannot_send(&link.name, found.queues, &served);
        if let Some(why) = cannot {
            return Err(InterfaceError::from(why).into());
        }
    }
    Ok(served)
}

/// The requested queues, if they can be served.
fn existing(
    config: &ServerConfig,
    found: &Found,
    engine: Option<EngineKind>,
) -> Result<Vec<u32>, ConfigError> {
    if engine == Some(EngineKind::REFLECT) {
        return Err(ConfigError::QueuesOfReflect);
    }
    for (index, queue) in config.options.xdp.queues.iter().enumerate() {
        let (interface, count, queue) = (found.link.name.clone(), found.receiving, *queue);
        if queue >= count {
            return Err(ConfigError::NoQueue { interface, count, queue });
        }
        if config.options.xdp.queues[..index].contains(&queue) {
            return Err(ConfigError::QueueTwice(queue));
        }
    }
    Ok(config.options.xdp.queues.clone())
}

/// The processors to pin to, which this process may use: near the interrupts of `queues`, if there
/// are any.
fn cores(config: &ServerConfig, found: &Found, queues: &[u32]) -> Result<Vec<usize>, ConfigError> {
    let allowed = &found.processors;
    if config.cores.is_empty() {
        // An engine without queues of its own has one worker.
        let workers = if queues.is_empty() { &[0] } else { queues };
        let cores = found.nearness.choose(workers, allowed);
        return Ok(if cores.is_empty() { vec![0] } else { cores });
    }
    match config.cores.iter().find(|core| !allowed.contains(core)) {
        Some(core) => Err(ConfigError::NoCore { core: *core, allowed: allowed.clone() }),
        None => Ok(config.cores.clone()),
    }
}

/// Refuses a pool with an address that the interface already has.
fn is_free(config: &ServerConfig, found: &Found) -> Result<(), ConfigError> {
    let Targets::Pool(pool) = &config.targets else { return Ok(()) };
    match found.own.iter().find(|address| pool.contains(**address)) {
        Some(address) => {
            let interface = found.link.name.clone();
            Err(ConfigError::Taken { address: *address, interface })
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::mt6d::{Clock, Subnet, Timetable};
    use crate::address::{Pool, Prefix, Secret};
    use crate::engine;
    use crate::host::Nearness;
    use crate::net::ethtool::QueueCounts;
    use crate::net::netlink::{Link, TableRoute};
    use crate::server::watch::tests::server0;
    use proptest::prelude::*;
    use std::sync::Arc;
    use std::time::Duration;

    fn engines() -> Vec<EngineKind> {
        engine::all().map(|about| about.kind).collect()
    }

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    fn pool() -> Targets {
        Pool::new(prefix("2001:db8:1::/64"), 1000, 1).unwrap().into()
    }

    fn moving() -> Targets {
        let subnet = Subnet::new(prefix("2001:db8:1::/64")).unwrap();
        let clock = Clock::new(Duration::from_secs(10)).unwrap();
        let secret = Secret::new(vec![7; 32]).unwrap();
        Targets::Moving(Arc::new(Timetable::new(subnet, clock, &secret, 3, 1)))
    }

    fn config(engine: impl Into<Option<EngineKind>>, bind: Method) -> ServerConfig {
        let Targets::Pool(pool) = pool() else { panic!("no pool") };
        let held = ServerConfig::hold("server0".to_owned(), pool, bind);
        ServerConfig { engine: engine.into(), port: 3540, ..held }
    }

    fn queues(in_use: u32, sending: u32) -> QueueCounts {
        let (possible, sending_possible) = (in_use, sending);
        QueueCounts { in_use, possible, combined: false, sending, sending_possible }
    }

    /// A machine with four processors and a veth of two queues.
    fn machine() -> Found {
        let link = Link { xdp: None, ..server0() };
        Found {
            links: vec![link.clone()],
            driver: "veth".to_owned(),
            no_ipv6: None,
            in_vrf: false,
            queues: queues(2, 2),
            receiving: 2,
            on_link: vec![prefix("2001:db8:2::/64")],
            own: vec!["fe80::1".parse().unwrap()],
            routes: Vec::new(),
            processors: vec![0, 1, 2, 3],
            nearness: Nearness::default(),
            spare_memory: Some(1 << 30),
            link,
        }
    }

    /// A machine whose interface is a port of a device of that kind.
    fn port_of(kind: &str) -> Found {
        let above = Link {
            index: 9,
            name: "above0".to_owned(),
            kind: Some(kind.to_owned()),
            ..machine().link
        };
        let link = Link { master: Some(9), ..machine().link };
        Found { links: vec![link.clone(), above], link, ..machine() }
    }

    /// The error of a plan after `change`; without it, the plan succeeds.
    fn fault(change: impl FnOnce(&mut ServerConfig, &mut Found)) -> ConfigError {
        let (mut config, mut found) = (config(EngineKind::AFXDP, Method::LiveMap), machine());
        assert!(ServerPlan::new(&config, &found).is_ok());
        change(&mut config, &mut found);
        match ServerPlan::new(&config, &found) {
            Err(Refused::Config(error)) => *error,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_contradiction_within_a_configuration_has_its_error() {
        let raw = fault(|config, _| config.engine = Some(EngineKind::RAW));
        assert_eq!(raw, ConfigError::NeedsProgram(EngineKind::RAW));
        let polled = fault(|config, _| {
            (config.engine, config.options.xdp.busy_poll) = (Some(EngineKind::REFLECT), Some(50));
        });
        assert_eq!(polled, ConfigError::BusyPoll);
        let limited = fault(|config, _| {
            (config.engine, config.options.xdp.limit) = (Some(EngineKind::URING), Some(5));
            config.bind = Method::Netlink;
        });
        assert_eq!(limited, ConfigError::Limit);
        let reflected = fault(|config, _| {
            (config.engine, config.options.xdp.queues) = (Some(EngineKind::REFLECT), vec![0]);
        });
        assert_eq!(reflected, ConfigError::QueuesOfReflect);
        let twice = fault(|config, _| config.options.xdp.queues = vec![1, 0, 1]);
        assert_eq!(twice, ConfigError::QueueTwice(1));
        let router = fault(|config, _| {
            (config.bind, config.multicast_router) = (Method::Netlink, true);
        });
        assert_eq!(router, ConfigError::MulticastRouter);
        let many = fault(|config, _| {
            config.targets = Pool::new(prefix("2001:db8::/64"), 1 << 40, 1).unwrap().into();
        });
        assert_eq!(many, ConfigError::TooMany(1 << 40));
    }

    #[test]
    fn each_contradiction_of_the_machine_has_its_error() {
        let interface = || "server0".to_owned();
        let Targets::Pool(pool) = pool() else { panic!("no pool") };
        let address = pool.to_vec(1)[7];
        let taken = fault(|_, found| found.own.push(address));
        assert_eq!(taken, ConfigError::Taken { address, interface: interface() });
        let no_queue = fault(|config, _| config.options.xdp.queues = vec![0, 2]);
        let expected = ConfigError::NoQueue { interface: interface(), count: 2, queue: 2 };
        assert_eq!(no_queue, expected);
        let no_core = fault(|config, _| config.cores = vec![3, 4]);
        assert_eq!(no_core, ConfigError::NoCore { core: 4, allowed: vec![0, 1, 2, 3] });
        let no_memory = fault(|_, found| found.spare_memory = Some(9));
        assert!(matches!(no_memory, ConfigError::NoMemory(_)), "{no_memory}");
        let (prefix, route) = (prefix("2001:db8:1::/64"), prefix("2001:db8:1:0:8000::/80"));
        let routed = fault(|_, found| {
            found.routes.push(TableRoute { prefix: route, interface: Some(4), on_link: false });
            found.links.push(Link { index: 4, name: "eth4".to_owned(), ..server0() });
        });
        let (through, bind) = ("eth4".to_owned(), Method::LiveMap);
        let expected = ConfigError::Routed { prefix, route, through, bind, interface: interface() };
        assert_eq!(routed, expected);
    }

    #[test]
    fn an_interface_that_cannot_be_served_so_has_its_error() {
        let of = |config: &ServerConfig, found: &Found| match ServerPlan::new(config, found) {
            Err(Refused::Interface(error)) => error,
            other => panic!("{other:?}"),
        };
        let name = || "server0".to_owned();
        let hidden = config(EngineKind::AFXDP, Method::LiveMap);
        let found = Found { no_ipv6: Some("it is disabled".to_owned()), ..machine() };
        assert_eq!(of(&hidden, &found), InterfaceError::NoIpv6("it is disabled".to_owned()));
        let found = Found { in_vrf: true, ..machine() };
        assert_eq!(of(&hidden, &found), InterfaceError::InVrf(name()));
        assert!(
            ServerPlan::new(&config(None, Method::LiveMap), &found).is_ok(),
            "it gets no fragments"
        );
        let found = Found { driver: "ipvlan".to_owned(), ..machine() };
        let error = of(&hidden, &found);
        assert!(matches!(error, InterfaceError::Unreachable(_)), "{error}");
        assert!(error.to_string().contains(&name()), "{error}");
        let link = Link { xdp: server0().xdp, ..machine().link };
        let words = match of(&hidden, &Found { link, ..machine() }) {
            InterfaceError::Occupied(words) => words,
            other => panic!("{other:?}"),
        };
        assert!(words.contains("(id 7)"), "{words}");
        let found = Found { queues: queues(2, 1), ..machine() };
        let error = of(&hidden, &found);
        assert!(matches!(error, InterfaceError::CannotSend(_)), "{error:?}");
        let mut first = hidden;
        first.options.xdp.queues = vec![0];
        assert!(ServerPlan::new(&first, &found).is_ok(), "the first queue can send");
        let netlink = config(EngineKind::SOCKET_GSO, Method::Netlink);
        let error = of(&netlink, &port_of("bridge"));
        assert!(matches!(error, InterfaceError::IsPort { .. }), "{error:?}");
        assert!(ServerPlan::new(&netlink, &port_of("vrf")).is_ok());
        let tunnel = Link { link_type: 769, ..machine().link };
        let found = Found { link: tunnel, ..machine() };
        for engine in engines() {
            let config = config(engine, Method::Netlink);
            if engine.sees_frames() {
                let expected =
                    InterfaceError::NoEthernet { interface: name(), link_type: 769, engine };
                assert_eq!(of(&config, &found), expected);
            } else {
                assert!(ServerPlan::new(&config, &found).is_ok(), "{engine}");
            }
        }
    }

    #[test]
    fn who_knows_what_is_live_follows_from_engine_and_binding() {
        let of = |engine, bind, targets| {
            let config = ServerConfig { targets, ..config(engine, bind) };
            ServerPlan::new(&config, &machine()).unwrap().decides
        };
        let (program, both) = (EngineKind::AFXDP, Decides::Program { and_set: true });
        assert_eq!(of(program, Method::LiveMap, moving()), Decides::Program { and_set: false });
        assert_eq!(of(program, Method::NetlinkBatch, moving()), both);
        assert_eq!(of(EngineKind::RAW, Method::NetlinkBatch, moving()), Decides::Set);
        assert_eq!(of(program, Method::LiveMap, pool()), Decides::Pool);
        assert_eq!(of(EngineKind::SOCKET, Method::Netlink, pool()), Decides::Pool);
    }

    #[test]
    fn people_are_told_what_such_a_server_does_not_see() {
        let notes =
            |config: &ServerConfig, found: &Found| ServerPlan::new(config, found).unwrap().notes;
        let hidden = config(EngineKind::AFXDP, Method::LiveMap);
        assert_eq!(notes(&hidden, &machine()), Vec::<String>::new());
        let alone = Found { on_link: Vec::new(), ..port_of("bridge") };
        let [port, nobody] = &notes(&hidden, &alone)[..] else { panic!("two sentences") };
        assert!(port.contains("server0 is a port of above0"), "{port}");
        assert!(nobody.contains("nobody is answered"), "{nobody}");
        let named = ServerConfig { allow: Some(Sources::all()), ..hidden.clone() };
        assert_eq!(notes(&named, &alone).len(), 1);
        let plan = ServerPlan::new(&hidden, &machine()).unwrap();
        assert!(plan.hears_solicitations);
        let router = ServerConfig { multicast_router: true, ..hidden };
        assert!(!ServerPlan::new(&router, &machine()).unwrap().hears_solicitations);
        let held = ServerPlan::new(&config(None, Method::LiveMap), &machine()).unwrap();
        assert!(!held.hears_solicitations && !held.answers && held.steers());
    }

    #[test]
    fn what_polls_and_what_coalesces_is_set_up_by_the_kernel() {
        let of = |busy_poll, coalesce| {
            let mut config =
                ServerConfig { coalesce, ..config(EngineKind::AFXDP, Method::LiveMap) };
            config.options.xdp.busy_poll = busy_poll;
            ServerPlan::new(&config, &machine()).unwrap().receive_work
        };
        assert_eq!(of(None, None), ReceiveWork::AsItDoes);
        assert_eq!(of(Some(20), None), ReceiveWork::Polled);
        assert_eq!(of(None, Some(70)), ReceiveWork::Coalesced(70));
        assert_eq!(of(Some(20), Some(70)), ReceiveWork::Coalesced(70), "it says how often");
    }

    fn a_configuration() -> impl Strategy<Value = ServerConfig> {
        (
            prop::option::of(prop::sample::select(engines())),
            prop::sample::select(&Method::ALL[..]),
            any::<bool>(),
            prop::collection::vec(0_u32..5, 0..4),
            prop::collection::vec(0_usize..5, 0..4),
            prop::option::weighted(0.2, 1_u32..9),
            prop::option::weighted(0.2, 1_u32..9),
            any::<bool>(),
        )
            .prop_map(|(engine, bind, moves, queues, cores, limit, poll, router)| {
                let targets = if moves { moving() } else { pool() };
                let mut config = ServerConfig {
                    targets,
                    cores,
                    multicast_router: router && bind == Method::LiveMap,
                    ..config(engine, bind)
                };
                let xdp = &mut config.options.xdp;
                (xdp.queues, xdp.limit, xdp.busy_poll) = (queues, limit, poll);
                config
            })
    }

    fn a_machine() -> impl Strategy<Value = Found> {
        let processors = prop::sample::subsequence(vec![0, 1, 2, 3, 4], 0..=5);
        (1_u32..5, 1_u32..5, 0_u32..3, prop::option::of(Just("bond")), processors).prop_map(
            |(in_use, sending, below, kind, processors)| {
                let kind = kind.map(str::to_owned);
                let more = if kind.is_some() { below } else { 0 };
                Found {
                    link: Link { kind, ..machine().link },
                    queues: queues(in_use, sending),
                    receiving: in_use + more,
                    processors,
                    ..machine()
                }
            },
        )
    }

    proptest! {
        #[test]
        fn a_plan_can_be_carried_out(config in a_configuration(), found in a_machine()) {
            let Ok(plan) = ServerPlan::new(&config, &found) else { return Ok(()) };
            let hidden = config.bind == Method::LiveMap;
            // The engine is the requested one. Another is opened only to hold addresses.
            prop_assert_eq!(plan.answers, config.engine.is_some());
            let default = hidden.then_some(EngineKind::AFXDP);
            prop_assert_eq!(plan.engine, config.engine.or(default));
            // Addresses that the engine makes live come after it, all others before.
            prop_assert_eq!(plan.order == Order::EngineFirst, hidden);
            prop_assert_eq!(plan.hides(), hidden);
            prop_assert!(!hidden || plan.steers());
            // Each queue exists, and is listed once; with a socket of its own it can send.
            let mut queues = plan.queues.clone();
            queues.sort_unstable();
            queues.dedup();
            prop_assert_eq!(queues.len(), plan.queues.len());
            prop_assert_eq!(!queues.is_empty(), plan.steers());
            prop_assert!(queues.iter().all(|queue| *queue < found.receiving));
            if plan.engine == Some(EngineKind::AFXDP) && found.link.kind.is_none() {
                prop_assert!(queues.iter().all(|queue| *queue < found.queues.sending));
            }
            if plan.steers() && !config.options.xdp.queues.is_empty() {
                prop_assert_eq!(&plan.queues, &config.options.xdp.queues);
            }
            // There is a processor for a worker, and this process may use it. If the allowed ones
            // are unknown, the first will do.
            prop_assert!(!plan.cores.is_empty());
            let allowed = |core: &usize| found.processors.contains(core);
            prop_assert!(
                plan.cores.iter().all(allowed)
                    || found.processors.is_empty() && plan.cores == [0]
            );
            prop_assert_eq!(plan.queues_in_use.is_some(), plan.steers());
            prop_assert!(config.options.xdp.limit.is_none() || plan.steers());
        }

        #[test]
        fn whoever_asks_for_nothing_special_gets_a_plan(
            engine in prop::sample::select(engines()),
            bind in prop::sample::select(&Method::ALL[..]),
            found in a_machine(),
        ) {
            let counts = queues(found.queues.in_use, found.queues.in_use);
            let found = Found { queues: counts, ..found };
            let plan = ServerPlan::new(&config(engine, bind), &found);
            prop_assert_eq!(plan.is_ok(), engine.can(bind), "{:?}", plan);
        }
    }
}
