//! The machines, clients and servers of the measurements.

use maud::{Markup, html};

use super::super::response::trials;
use super::Data;
use super::summed::readies;
use super::text::{driver, link, modes, once, thousands};
use crate::events::{Event, Ready};
use crate::host::{Environment, Nic};
use crate::net::quirks::{self, Act};
use crate::xdp::RingSizes;

/// The section. Each machine is folded, since most lines are the same for all.
pub fn section(data: &Data) -> Markup {
    let clients = clients(data);
    html! {
        section {
            h2 { "Machines" }
            @if !clients.is_empty() {
                h3 { "Load generator" }
                ul { @for client in clients { li { (client) } } }
            }
            @for (what, environment) in machines(data) {
                details { summary { (what) } (machine(environment)) }
            }
            @for ready in servers(data) { (server(ready)) }
        }
    }
}

fn machines(data: &Data) -> Vec<(String, &Environment)> {
    let mut machines: Vec<(String, &Environment)> = Vec::new();
    for (what, events) in [
        ("Figure 2, the client", &data.response),
        ("Figure 1", &data.bind),
        ("Moving addresses, the client", &data.rotation),
    ] {
        if let Some(Event::Experiment(start)) = events.first() {
            machines.push((format!("{what}, begun {}", start.started), &start.environment));
        }
    }
    let compared = data.compare.iter().find_map(|event| match event {
        Event::Engine(result) => Some(&result.environment),
        _ => None,
    });
    machines.extend(compared.map(|of| ("Comparison, the client".to_owned(), of)));
    machines
}

/// Servers that differ in engine, method, modes or interface.
fn servers(data: &Data) -> Vec<&Ready> {
    let mut servers: Vec<&Ready> = Vec::new();
    for ready in [&data.response, &data.rotation, &data.compare]
        .into_iter()
        .flat_map(|events| readies(events))
    {
        let same = |other: &&Ready| {
            (other.engine, other.bind) == (ready.engine, ready.bind)
                && other.modes == ready.modes
                && other.environment.nic == ready.environment.nic
        };
        if !servers.iter().any(same) {
            servers.push(ready);
        }
    }
    servers
}

fn clients(data: &Data) -> Vec<String> {
    once(trials(&data.response).map(|trial| {
        let load = &trial.load;
        let rings = load.rings.map_or(String::new(), |rings| format!("; {}", ring_words(rings)));
        match (load.attach, load.copy) {
            (Some(attach), Some(copy)) => {
                format!("{}, XDP {attach}, {copy} mode{rings}", load.client)
            }
            _ => load.client.to_string(),
        }
    }))
}

fn server(ready: &Ready) -> Markup {
    let engine = ready.engine.map_or(String::new(), |engine| engine.to_string());
    let asked = format!("attach {}, copy {}", ready.attach_asked, ready.copy_asked);
    let places = format!("{:?}, {:?}", ready.modes.queues, ready.modes.cores);
    html! {
        details {
            summary {
                "Server: " (engine) ", " (ready.bind) " · " (modes(ready)) " · "
                (link(&ready.driver))
            }
            dl {
                (pair("mode", &modes(ready)))
                (pair("asked for", &asked))
                (pair("queues, processors", &places))
                @if let Some(rings) = ready.modes.rings { (pair("rings", &ring_words(rings))) }
                @if let Some(depth) = ready.modes.queue_depth {
                    (pair("message queue", &depth.to_string()))
                }
                @if let Some(bytes) = ready.modes.receive_buffer {
                    (pair("receive buffer", &format!("{} bytes", thousands(bytes as u64))))
                }
            }
            (machine(&ready.environment))
        }
    }
}

fn machine(environment: &Environment) -> Markup {
    let Environment { sixhop, revision, guest, command, kernel, cpu, processors, .. } = environment;
    let revision = if revision.is_empty() { "unknown" } else { revision };
    let governor = environment.governor.as_deref().unwrap_or(UNKNOWN);
    let cores = &environment.cores;
    html! {
        dl {
            (pair("sixhop", &format!("{sixhop}, revision {revision}")))
            @if let Some(guest) = guest {
                (pair("virtual machine", &format!(
                    "{guest}: only ratios within it mean anything"
                )))
            }
            (pair("kernel", kernel))
            (pair("processor", &format!("{cpu}, {processors} processors; used: {cores:?}")))
            (pair("governor", governor))
            (interface(&environment.nic))
            dt { "command" } dd { code { (command.join(" ")) } }
        }
    }
}

const UNKNOWN: &str = "not stated";

fn interface(nic: &Nic) -> Markup {
    let unknown = || UNKNOWN.to_owned();
    let device = nic.device.as_ref().map_or(String::new(), |device| format!("PCI {device}, "));
    let firmware = match nic.firmware.as_str() {
        "" => String::new(),
        firmware => format!("firmware {firmware}, "),
    };
    let name = format!(
        "{}, {}, {device}{firmware}mtu {}, {} queue(s)",
        nic.interface,
        driver(&nic.driver),
        nic.mtu,
        nic.queues
    );
    let speed = match (nic.speed_mbps, quirks::of_driver(&nic.driver).find(Act::CallMemory)) {
        (Some(_), Some(quirk)) => format!("none: {}", quirk.why),
        (Some(speed), None) => format!("{} Mbit/s", thousands(speed.into())),
        (None, _) => unknown(),
    };
    let rings = nic.rings.map_or_else(unknown, |(rx, tx)| format!("rx {rx}, tx {tx}"));
    let napi = format!(
        "{}; gro_flush_timeout {}, napi_defer_hard_irqs {}",
        nic.receive_work(),
        nic.napi.gro_flush_timeout_ns.map_or_else(unknown, |value| value.to_string()),
        nic.napi.defer_hard_irqs.map_or_else(unknown, |value| value.to_string()),
    );
    html! {
        (pair("interface", &name))
        (pair("link speed", &speed))
        (pair("card's rings", &rings))
        (pair("receive work (NAPI)", &napi))
        (pair("offloads enabled", &nic.offloads.join(", ")))
    }
}

fn pair(name: &str, value: &str) -> Markup {
    html! { dt { (name) } dd { (value) } }
}

fn ring_words(rings: RingSizes) -> String {
    format!(
        "rx {}, tx {}, fill {}, completion {}; {} frames of {} bytes",
        rings.rx, rings.tx, rings.fill, rings.completion, rings.frames, rings.frame_size
    )
}
