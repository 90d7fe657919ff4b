//! Formats numbers, modes and machines for people.

use maud::{Markup, html};

use crate::events::words;
use crate::events::{Cell, Ready, Spread};
use crate::host::Environment;
use crate::net::quirks::{self, Act};

/// A name for a table's first column, with the mode of its figures.
pub fn named(name: &str, mode: &str) -> Markup {
    html! { (name) @if !mode.is_empty() { small { (mode) } } }
}

/// The modes of an engine, as the kernel reported them.
pub fn modes(ready: &Ready) -> String {
    match (ready.modes.attach, ready.modes.copy) {
        (Some(attach), Some(copy)) => format!("XDP {attach}, {copy} mode"),
        (Some(attach), None) => format!("XDP {attach}, no rings"),
        _ => "no XDP".to_owned(),
    }
}

/// The modes of the server of `cell`; several if it was restarted in another mode.
pub fn modes_of(readies: &[&Ready], cell: Cell) -> String {
    let is_of = |ready: &&&Ready| {
        (ready.engine, ready.bind, ready.addresses)
            == (Some(cell.engine), cell.bind, cell.addresses)
    };
    once(readies.iter().filter(is_of).map(|ready| modes(ready))).join(" / ")
}

/// The distinct items of `all`, in order of first appearance.
pub fn once<T: PartialEq>(all: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut kept = Vec::new();
    for one in all {
        if !kept.contains(&one) {
            kept.push(one);
        }
    }
    kept
}

/// The networks, guests and modes of the servers.
pub fn setting(readies: &[&Ready]) -> Markup {
    let links = once(readies.iter().map(|ready| link(&ready.driver)));
    let guests = once(readies.iter().filter_map(|ready| ready.environment.guest.as_deref()));
    let label = |ready: &Ready| {
        let engine = ready.engine.map_or("no engine".to_owned(), |engine| engine.to_string());
        let of_engine = readies.iter().filter(|other| other.engine == ready.engine);
        if once(of_engine.map(|other| modes(other))).len() > 1 {
            format!("{engine} ({}, {})", ready.bind, addresses(ready.addresses))
        } else {
            engine
        }
    };
    let groups = once(readies.iter().map(|ready| modes(ready))).into_iter().map(|mode| {
        let of_mode = readies.iter().filter(|ready| modes(ready) == mode);
        format!("{}: {mode}", once(of_mode.map(|ready| label(ready))).join(", "))
    });
    let groups: Vec<_> = groups.collect();
    html! {
        @if !readies.is_empty() {
            p.note.setting {
                "Measured over " (links.join(" and ")) ". "
                (groups.join("; ")) ". "
                @for guest in guests { strong { (in_guest(guest)) } " " }
            }
        }
    }
}

/// How far to trust figures from a virtual machine.
pub fn in_guest(guest: &str) -> String {
    format!("In a virtual machine, {guest}: only the ratios mean anything.")
}

/// Describes a network by the driver of its interface.
pub fn link(driver_name: &str) -> String {
    if quirks::of_driver(driver_name).has(Act::CallMemory) {
        return format!("{driver_name} (memory, no card)");
    }
    format!("a network card ({})", driver(driver_name))
}

/// The driver's name, or a note that there is none.
pub fn driver(name: &str) -> &str {
    if name.is_empty() { "no driver name" } else { name }
}

/// The machine in one line.
pub fn machine(environment: &Environment) -> String {
    format!("Linux {}, {}", environment.kernel, environment.cpu)
}

/// A number of addresses.
pub fn addresses(count: u64) -> String {
    counted(count, "address", "es")
}

/// A number of things; more than one add `plural` to `name`.
pub fn counted(count: u64, name: &str, plural: &str) -> String {
    format!("{} {name}{}", thousands(count), if count == 1 { "" } else { plural })
}

/// Groups digits by three with thin spaces, from five digits on.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 && digits.len() > 4 {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// A rate in requests per second.
pub fn requests(rate: f64) -> String {
    if rate < 100.0 { words::rate(rate) } else { thousands(rate as u64) }
}

/// The range from minimum to maximum.
pub fn from_to(Spread { min, max, .. }: Spread, words: impl Fn(f64) -> String) -> String {
    format!("{}–{}", words(min), words(max))
}

/// A number without a fraction.
pub fn whole(time: f64) -> String {
    format!("{time:.0}")
}

/// A time in nanoseconds, with three digits and a unit.
pub fn time(nanoseconds: f64) -> String {
    let (value, unit) = match nanoseconds {
        n if n < 1e3 => (n, "ns"),
        n if n < 1e6 => (n / 1e3, "µs"),
        n if n < 1e9 => (n / 1e6, "ms"),
        n => (n / 1e9, "s"),
    };
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.digits$}\u{202f}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_read_numbers_and_times() {
        assert_eq!(
            [0, 1234, 12_345, 1_000_000].map(thousands).join(" "),
            "0 1234 12\u{202f}345 1\u{202f}000\u{202f}000"
        );
        assert_eq!(time(1234.0), "1.23\u{202f}µs");
        assert_eq!([addresses(1), addresses(2)], ["1 address", "2 addresses"]);
        assert_eq!(link("veth"), "veth (memory, no card)");
        assert_eq!(link("igb"), "a network card (igb)");
    }
}
