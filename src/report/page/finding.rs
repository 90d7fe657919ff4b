//! The findings: a sentence for each kind of measurement, and a large chart.

use anyhow::Result;
use maud::{Markup, html};

use super::super::response::{self, is_at_least, series_name};
use super::binding::place;
use super::charts::Charts;
use super::comparison::{Pair, pairs};
use super::doubts::Doubts;
use super::large::Bar;
use super::moving::carried;
use super::summed::{Summed, readies};
use super::text::{
    addresses, counted, in_guest, link, machine, modes, modes_of, once, requests, setting,
    thousands, time,
};
use crate::engine::EngineKind;
use crate::events::{
    BindSummary, Cell, Contestant, EngineResult, Event, Plan, Ready, Spread, ThresholdSummary,
};
use crate::live::Method;
use crate::report::chart::Panel;

/// A finding, and the circumstances that it holds in.
#[derive(Debug, Clone, PartialEq)]
pub struct Headline {
    pub sentence: String,
    pub circumstances: String,
}

/// The page header: the first finding as title, a chart, then the other findings.
///
/// # Errors
/// If the chart cannot be drawn.
pub fn section(summed: &Summed, doubts: &Doubts, charts: &mut Charts) -> Result<Markup> {
    let findings = findings(summed);
    let chart = if summed.thresholds.is_empty() {
        compare_chart(&summed.compare, charts)?
    } else {
        response_chart(summed, charts)?
    };
    Ok(html! {
        header {
            p.brand { "Sixhop: results" }
            @match findings.first() {
                Some(first) => {
                    h1 { (first.sentence) }
                    p.lead { (first.circumstances) }
                }
                None => h1 { "No results yet" }
            }
            (chart)
            @for finding in findings.iter().skip(1) {
                p.finding { strong { (finding.sentence) } " " (finding.circumstances) }
            }
            (doubts.overview())
            p.lead { (summed.lead()) }
        }
    })
}

/// The findings, the most important first.
fn findings(summed: &Summed) -> Vec<Headline> {
    let data = summed.data;
    [
        of_response(summed),
        of_comparison(&summed.compare),
        of_binding(&summed.bind, &data.bind),
        of_rotation(&data.rotation),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn of_response(summed: &Summed) -> Option<Headline> {
    let profile = summed.profile?;
    let pairs = pairs(summed);
    let Some(main) = main_pair(&pairs) else { return without_socket(summed) };
    let (of, base) = (passes(main.rate), passes(main.base));
    let passes = if of == base {
        format!("median of {}", counted(of, "pass", "es"))
    } else {
        format!("medians of {of} and of {}", counted(base, "pass", "es"))
    };
    let socket = if main.socket.bind == main.cell.bind {
        String::new()
    } else {
        format!(" ({})", main.socket.bind)
    };
    let sentence = format!(
        "{} ({}) sustains {} the rate of the paper's socket server{socket} at {} with {}: {} \
         against {} requests/s, {passes}.",
        main.cell.engine,
        main.cell.bind,
        times(main),
        addresses(main.cell.addresses),
        replies(profile.replies.into()),
        rate(main.rate),
        rate(main.base),
    );
    Some(Headline { sentence, circumstances: circumstances(summed, main.cell)? })
}

/// Without a socket server to compare with: the rate of afxdp, or else the highest.
fn without_socket(summed: &Summed) -> Option<Headline> {
    let (profile, threshold) = (summed.profile?, summed.first_threshold()?);
    let held = summed.thresholds.iter().filter(|summary| summary.threshold_ms == threshold);
    let held = held.filter_map(|summary| Some((summary, summary.rate?.median)));
    let (main, _) = held.max_by(|a, b| {
        let is_afxdp = |summary: &ThresholdSummary| summary.cell.engine == EngineKind::AFXDP;
        is_afxdp(a.0).cmp(&is_afxdp(b.0)).then(a.1.total_cmp(&b.1))
    })?;
    let sentence = format!(
        "{} ({}) sustains {} requests/s at {} with {}, median of {}.",
        main.cell.engine,
        main.cell.bind,
        rate(main),
        addresses(main.cell.addresses),
        replies(profile.replies.into()),
        counted(passes(main), "pass", "es"),
    );
    Some(Headline { sentence, circumstances: circumstances(summed, main.cell)? })
}

/// Mode, criterion, network and machine of a rate in Figure 2.
fn circumstances(summed: &Summed, cell: Cell) -> Option<String> {
    let threshold = summed.first_threshold()?;
    let servers = summed.response_servers();
    let mode = match modes_of(&servers, cell) {
        mode if mode.is_empty() => "mode not recorded".to_owned(),
        mode => mode,
    };
    Some(format!(
        "{}: {mode}. A rate counts with a mean of at most {threshold} ms and 90 % of the requests \
         answered. {}{}",
        cell.engine,
        place_of(summed, &servers),
        if summed.finished { "" } else { " Not finished yet." },
    ))
}

/// The number of passes in which a rate held.
fn passes(summary: &ThresholdSummary) -> u64 {
    summary.runs.iter().filter(|run| run.rate.is_some()).count() as u64
}

fn rate(summary: &ThresholdSummary) -> String {
    let least = if is_at_least(summary.limit) { "at least " } else { "" };
    summary.rate.map_or(String::new(), |rate| format!("{least}{}", requests(rate.median)))
}

fn times(pair: &Pair) -> String {
    let ratio = pair.ratio();
    match (is_at_least(pair.rate.limit), is_at_least(pair.base.limit)) {
        (false, false) => format!("{ratio:.2} times"),
        (true, false) => format!("at least {ratio:.2} times"),
        (false, true) => format!("at most {ratio:.2} times"),
        // Both may sustain more, so the ratio is unknown.
        (true, true) => "an unknown multiple of".to_owned(),
    }
}

fn replies(count: u16) -> String {
    if count == 1 { "one reply".to_owned() } else { format!("{count} replies") }
}

/// The pair for the page's title: afxdp, or else the engine with the highest ratio. Prefers the
/// socket server's method, then the most addresses.
fn main_pair<'a, 'b>(pairs: &'a [Pair<'b>]) -> Option<&'a Pair<'b>> {
    let best = pairs.iter().max_by(|a, b| a.ratio().total_cmp(&b.ratio()))?.cell.engine;
    let of = |engine| pairs.iter().filter(move |pair| pair.cell.engine == engine);
    let engine = if of(EngineKind::AFXDP).next().is_some() { EngineKind::AFXDP } else { best };
    of(engine).max_by_key(|pair| (pair.cell.bind == pair.socket.bind, pair.cell.addresses))
}

/// Network, machine and guest of Figure 2.
fn place_of(summed: &Summed, servers: &[&Ready]) -> String {
    let start = summed.starts.iter().find(|start| matches!(start.plan, Plan::Response(_)));
    let environment = start.map(|start| &start.environment);
    let links = once(servers.iter().map(|ready| link(&ready.driver)));
    let over =
        if links.is_empty() { String::new() } else { format!("Over {}. ", links.join(" and ")) };
    let of_servers = servers.iter().filter_map(|ready| ready.environment.guest.as_deref());
    let guests = once(environment.and_then(|of| of.guest.as_deref()).into_iter().chain(of_servers));
    let guests: String = guests.into_iter().map(|guest| format!(" {}", in_guest(guest))).collect();
    format!("{over}{}.{guests}", environment.map_or(String::new(), machine))
}

fn of_comparison(results: &[&EngineResult]) -> Option<Headline> {
    let others = || results.iter().copied().filter(|result| result.engine != SOCKET);
    let best = others().max_by(|a, b| a.sustained_rps.total_cmp(&b.sustained_rps))?;
    let main = others().find(|result| result.engine == AFXDP).unwrap_or(best);
    let socket = results.iter().find(|of| of.engine == SOCKET && of.addresses == main.addresses);
    let conditions = format!("{} with {}", addresses(main.addresses), replies(main.replies));
    let rate = requests(main.sustained_rps);
    let found = match (main.ratio_to_socket, socket) {
        (Some(ratio), Some(socket)) => format!(
            "{ratio:.2} times the rate of the paper's socket server at {conditions}: {rate} \
             against {} requests/s",
            requests(socket.sustained_rps)
        ),
        _ => format!("{rate} requests/s at {conditions}"),
    };
    let searches = match main.runs.len() {
        1 => "one search".to_owned(),
        count => format!("median of {count} searches"),
    };
    let fastest = if best.engine == main.engine {
        String::new()
    } else {
        let ratio = best.ratio_to_socket.map(|ratio| format!(", {ratio:.2} times"));
        let (mode, ratio) = (modes(&best.server), ratio.unwrap_or_default());
        format!(" The fastest is {} ({mode}){ratio}.", best.engine)
    };
    let guest = main.server.environment.guest.as_ref().or(main.environment.guest.as_ref());
    let circumstances = format!(
        "{}: {}. A rate counts with a mean of at most {} ms and 99.9 % of the requests complete. \
         Over {}. {}.{fastest}{}",
        main.engine,
        modes(&main.server),
        main.mean_limit_us / 1000.0,
        link(&main.server.driver),
        machine(&main.environment),
        guest.map_or(String::new(), |guest| format!(" {}", in_guest(guest))),
    );
    let sentence = format!("{} ({}) sustains {found}, {searches}.", main.engine, main.bind);
    Some(Headline { sentence, circumstances })
}

const SOCKET: Contestant = Contestant::Engine(EngineKind::SOCKET);
const AFXDP: Contestant = Contestant::Engine(EngineKind::AFXDP);

/// Compares `live-map` with the kernel's own addresses, at the largest number where both were
/// measured.
fn of_binding(summaries: &[BindSummary], events: &[Event]) -> Option<Headline> {
    let of = |method: Method| summaries.iter().filter(move |summary| summary.method == method);
    let compared = of(Method::LiveMap).filter_map(|map| Some((map, map.faster_than_netlink?)));
    let (map, ratio) = compared.max_by_key(|(map, _)| map.addresses)?;
    let netlink = of(Method::Netlink).find(|netlink| netlink.addresses == map.addresses)?;
    let sentence = format!(
        "live-map makes an address live {ratio:.2} times as fast as netlink at {}: in {} against \
         {}, {}.",
        addresses(map.addresses),
        time(map.bind_ns.median),
        time(netlink.bind_ns.median),
        match (map.runs, netlink.runs) {
            (of, base) if of == base => format!("median of {}", counted(of as u64, "run", "s")),
            (of, base) => format!("medians of {of} and of {}", counted(base as u64, "run", "s")),
        },
    );
    Some(Headline { sentence, circumstances: place(events) })
}

/// The result of the server that carries the most clients.
fn of_rotation(events: &[Event]) -> Option<Headline> {
    let most = carried(events).max_by_key(|carried| carried.clients)?;
    let clients = most.clients?;
    let servers = readies(events)
        .filter(|ready| (ready.engine, ready.bind) == (Some(most.engine), most.bind));
    let servers: Vec<_> = servers.collect();
    let sentence = format!(
        "{} ({}) carries {} whose addresses all change every {} s.",
        most.engine,
        most.bind,
        counted(clients, "client", "s"),
        most.rotate,
    );
    let guests = once(servers.iter().filter_map(|ready| ready.environment.guest.as_deref()));
    let guests: String = guests.into_iter().map(|guest| format!(" {}", in_guest(guest))).collect();
    let circumstances = format!(
        "{}. Over {}. {}.{guests} Limit: {}.",
        once(servers.iter().map(|ready| modes(ready))).join(" / "),
        once(servers.iter().map(|ready| link(&ready.driver))).join(" and "),
        once(servers.iter().map(|ready| machine(&ready.environment))).join(", "),
        most.cause,
    );
    Some(Headline { sentence, circumstances })
}

/// Lines against the number of addresses, or bars if there is only one number.
fn response_chart(summed: &Summed, charts: &mut Charts) -> Result<Markup> {
    let Some(threshold) = summed.first_threshold() else { return Ok(html! {}) };
    let of_threshold = || {
        let all = summed.thresholds.iter();
        all.filter(move |summary| summary.threshold_ms == threshold)
    };
    let none = of_threshold().filter(|summary| summary.rate.is_none()).map(|summary| {
        format!("{}, {}", series_name(summary.cell), addresses(summary.cell.addresses))
    });
    let none: Vec<_> = none.collect();
    let held: Vec<_> =
        of_threshold().filter_map(|summary| Some((summary, summary.rate?))).collect();
    let numbers = once(held.iter().map(|(summary, _)| summary.cell.addresses));
    let what = format!("Requests/s sustained with a mean of at most {threshold} ms");
    let chart = match (numbers.as_slice(), response::all_engines(&summed.thresholds)) {
        ([], _) | (_, None) => html! {},
        ([number], _) => {
            let title = format!("{what}, at {}", addresses(*number));
            charts.large_bars("figure-2-1.svg", &title, &response_bars(summed, &held))?
        }
        (_, Some(panel)) => {
            charts.large_lines("figure-2-1.svg", &Panel { title: what, ..panel })?
        }
    };
    Ok(html! {
        (chart)
        (setting(&summed.response_servers()))
        @if !none.is_empty() {
            p.note { "Not even the lowest rate was sustained by " (none.join("; ")) "." }
        }
    })
}

fn response_bars(summed: &Summed, held: &[(&ThresholdSummary, Spread)]) -> Vec<Bar> {
    let servers = summed.response_servers();
    let bar = |(summary, spread): &(&ThresholdSummary, Spread)| {
        let least = if is_at_least(summary.limit) { "≥ " } else { "" };
        Bar {
            name: series_name(summary.cell),
            mode: modes_of(&servers, summary.cell),
            spread: *spread,
            figure: format!("{least}{}/s", requests(spread.median)),
            is_baseline: summary.cell.engine == EngineKind::SOCKET,
        }
    };
    held.iter().map(bar).collect()
}

/// A bar per engine, and per number of addresses if there are several.
fn compare_chart(results: &[&EngineResult], charts: &mut Charts) -> Result<Markup> {
    let Some(first) = results.first() else { return Ok(html! {}) };
    let limit = first.mean_limit_us / 1000.0;
    let what = format!("Requests/s sustained with a mean of at most {limit} ms");
    let numbers = once(results.iter().map(|result| result.addresses));
    let title = match numbers.as_slice() {
        [number] => format!("{what}, at {}", addresses(*number)),
        _ => what,
    };
    let bar = |result: &&EngineResult| {
        let (name, rate) = (format!("{}, {}", result.engine, result.bind), result.sustained_rps);
        let alone = Spread { min: rate, median: rate, max: rate };
        let ratio = |ratio: f64| format!(" · {ratio:.2} ×");
        Bar {
            name: match numbers.len() {
                1 => name,
                _ => format!("{name}, {}", thousands(result.addresses)),
            },
            mode: modes(&result.server),
            spread: Spread::of(result.runs.iter().copied())
                .map_or(alone, |runs| Spread { median: rate, ..runs }),
            figure: format!(
                "{}/s{}",
                requests(rate),
                result.ratio_to_socket.map_or(String::new(), ratio)
            ),
            is_baseline: result.engine == SOCKET,
        }
    };
    let bars: Vec<_> = results.iter().map(bar).collect();
    let servers: Vec<_> = results.iter().map(|result| &result.server).collect();
    let chart = charts.large_bars("compare-1.svg", &title, &bars)?;
    Ok(html! { (chart) (setting(&servers)) })
}
