//! One page of all results: findings, figures, tables, doubts and machines. It needs no network and
//! no script, and adapts to phones, dark mode and print.

mod binding;
mod charts;
mod comparison;
mod doubts;
mod finding;
mod large;
mod latency;
mod machines;
mod moving;
mod rates;
mod summed;
mod text;

use anyhow::Result;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use charts::Charts;
use doubts::Doubts;
use summed::Summed;

use crate::events::Event;

/// The contents of a results directory, each in file order; empty if the file is missing.
#[derive(Debug, Default)]
pub struct Data {
    /// bind.jsonl.
    pub bind: Vec<Event>,
    /// response.jsonl.
    pub response: Vec<Event>,
    /// rotation.jsonl.
    pub rotation: Vec<Event>,
    /// compare.jsonl.
    pub compare: Vec<Event>,
}

/// A page, and its charts as separate files.
pub struct Page {
    /// The page.
    pub html: String,
    /// Name and contents of each chart.
    pub charts: Vec<(String, String)>,
}

/// Renders the page of `data`.
///
/// # Errors
/// If a chart cannot be drawn.
pub fn page(data: &Data) -> Result<Page> {
    let summed = Summed::of(data);
    let doubts = Doubts::of(&summed);
    let mut charts = Charts::default();
    let finding = finding::section(&summed, &doubts, &mut charts)?;
    let sections = [
        comparison::section(&summed, &doubts),
        binding::section(&summed, &doubts, &mut charts)?,
        rates::section(&summed, &doubts, &mut charts)?,
        moving::section(&data.rotation, &doubts, &mut charts)?,
        latency::section(&summed, &mut charts)?,
        machines::section(data),
    ];
    let html = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "Sixhop: results" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                (finding)
                main { @for section in sections { (section) } }
                (footer())
            }
        }
    };
    Ok(Page { html: html.into_string(), charts: charts.files })
}

fn footer() -> Markup {
    html! {
        footer {
            p {
                "The paper is Morrell, Ransbottom, Marchany and Tront, “Scaling IPv6 Address \
                Bindings in Support of a Moving Target Defense”, 2014, measured on an i7-4770 with \
                an Intel I217-LM. It shows its curves only as pictures: the marks here are figures \
                from its text. The .jsonl files beside this page have every run with its histogram."
            }
        }
    }
}

const STYLE: &str = include_str!("page.css");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::EngineKind;
    use crate::events::{Cell, Experiment, Plan, Trial};
    use crate::host::Environment;
    use crate::live::Method;
    use crate::report::response::{
        self,
        tests::{profile, trial},
    };

    fn start() -> Event {
        let environment = Environment {
            revision: "0123".to_owned(),
            cpu: "a processor".to_owned(),
            ..Environment::default()
        };
        let plan = Plan::Response(profile());
        Event::Experiment(Box::new(Experiment {
            plan,
            started: "2026-01-02T03:04:05Z".to_owned(),
            environment,
        }))
    }

    /// Two engines, three passes through two rates; the first rate holds, the second does not.
    fn data() -> Data {
        let mut response = vec![start()];
        for engine in [EngineKind::SOCKET, EngineKind::AFXDP] {
            let factor = if engine == EngineKind::AFXDP { 4 } else { 1 };
            for run in 1..=3 {
                response.push(trial(engine, 10, run, 10_000 * factor, 100.0));
                response.push(trial(engine, 10, run, 20_000 * factor, 1e6));
            }
        }
        let thresholds = response::summarize(&profile(), &response);
        response.extend(thresholds.into_iter().map(Event::Threshold));
        Data { response, ..Data::default() }
    }

    fn warnings(data: &Data) -> String {
        let words = Doubts::of(&Summed::of(data)).all.into_iter().map(|doubt| doubt.words);
        words.collect::<Vec<_>>().join("\n")
    }

    /// Changes the trial at `index` of the file.
    fn change(data: &mut Data, index: usize, change: impl FnOnce(&mut Trial)) {
        match &mut data.response[index] {
            Event::Trial(trial) => change(trial),
            _ => panic!("no trial"),
        }
    }

    #[test]
    fn figures_stand_where_their_names_are() {
        let html = page(&data()).unwrap().html;
        let row = |name: &str| {
            let row = html.split("<tr>").skip(1).find(|row| row.contains(name)).unwrap_or_default();
            row.split("</tr>").next().unwrap_or_default().to_owned()
        };
        assert!(row("socket, netlink-down").contains("10\u{202f}000"), "{}", row("socket"));
        let beside = html.split("Compared with the socket server").nth(1).unwrap();
        let cells: Vec<_> =
            beside.split("<td").take(7).map(|cell| cell.split('>').nth(1).unwrap_or("")).collect();
        assert_eq!(
            cells[1..5].join(" "),
            "10</td 40\u{202f}000</td socket, netlink-down</td 10\u{202f}000</td"
        );
        assert!(beside.contains("<strong>4.00</strong>"));
        assert!(html.contains("a processor") && html.contains("2026-01-02"));
        // At 10,000/s all requests took 100 µs.
        let latency = html.split("Response times").nth(1).unwrap();
        assert!(latency.contains("100.0"), "{latency}");
    }

    #[test]
    fn what_makes_a_figure_doubtful_is_said() {
        let sound = warnings(&data());
        assert!(sound.contains("fewer requests than the") && sound.lines().count() == 1, "{sound}");

        let mut data = data();
        change(&mut data, 2, |trial| trial.load.achieved_rate = 19_000.0);
        change(&mut data, 3, |trial| trial.load.outcome.complete = 950);
        change(&mut data, 5, |trial| trial.load.late = 20);
        change(&mut data, 7, |trial| trial.load.outcome.corrupt = 3);
        change(&mut data, 9, |trial| trial.rate = 30_000);
        let said = warnings(&data);
        for words in [
            "socket, netlink-down, 10 addresses: the generator was late from 20\u{202f}000/s on",
            "socket, netlink-down, 10 addresses: up to 5.0 % of the requests lacked a reply",
            "socket, netlink-down, 10 addresses: up to 2.0 % of the requests were sent more than 1 \
             ms late",
            "afxdp, netlink-down, 10 addresses: 3 replies were damaged",
            "Figure 2: 4 of 8 figures vary by more than 20 % from run to run, most of all afxdp",
        ] {
            assert!(said.contains(words), "no '{words}' in:\n{said}");
        }

        data.response.retain(|event| !matches!(event, Event::Threshold(_)));
        assert!(warnings(&data).contains("Figure 2 is not finished"));
        if let Some(Event::Experiment(start)) = data.response.first_mut() {
            start.environment.revision = "0123-dirty".to_owned();
            start.environment.governor = Some("powersave".to_owned());
        }
        let said = warnings(&data);
        assert!(
            said.contains("uncommitted changes") && said.contains("governor 'powersave'"),
            "{said}"
        );
    }

    /// With the afxdp server's own `ready`.
    fn data_of(attach: &str, copy: &str, attach_asked: &str, copy_asked: &str) -> Data {
        let mut ready = serde_json::json!({
            "event": "ready", "engine": "afxdp", "interface": "eth1", "driver": "e1000e",
            "port": 3540, "replies": 10, "addresses": 10, "bind": "netlink-down",
            "generate_seconds": 0, "open_seconds": 0, "bind_seconds": 0, "bind_phases": [],
            "kernel_memory": null, "list_memory": 0, "queues": [0], "cores": [0], "schema": 1
        });
        let modes = [
            ("attach", attach),
            ("copy", copy),
            ("attach_asked", attach_asked),
            ("copy_asked", copy_asked),
        ];
        for (name, mode) in modes {
            ready[name] = mode.into();
        }
        let mut data = data();
        data.response.insert(1, Event::parse(&ready.to_string()).unwrap());
        data
    }

    #[test]
    fn a_mode_that_was_not_asked_for_is_said() {
        let ready = |attach: &str, copy: &str, attach_asked: &str, copy_asked: &str| {
            warnings(&data_of(attach, copy, attach_asked, copy_asked))
        };
        assert!(!ready("native", "zero", "auto", "auto").contains("mode"));
        assert!(!ready("native", "copy", "auto", "copy").contains("mode"));
        assert!(
            ready("native", "copy", "auto", "auto")
                .contains("copy mode, though auto was asked for: zero-copy was not available")
        );
        assert!(ready("native", "copy", "auto", "zero").contains("though zero was asked for"));
        assert!(
            ready("generic", "copy", "native", "copy")
                .contains("generic mode, on socket buffers; native was")
        );
    }

    #[test]
    fn the_page_begins_with_what_was_found_and_in_which_mode() {
        let data = data_of("generic", "copy", "native", "auto");
        let page = page(&data).unwrap();
        let (header, rest) = page.html.split_once("</header>").unwrap();
        let title = header.split("<h1>").nth(1).unwrap();
        let sentence = "afxdp (netlink-down) sustains 4.00 times the rate of the paper's socket \
                        server at 10 addresses with 10 replies: 40\u{202f}000 against \
                        10\u{202f}000 requests/s, median of 3 passes.</h1>";
        assert!(title.starts_with(sentence), "{title}");
        assert!(header.contains("afxdp: XDP generic, copy mode"), "{header}");
        assert!(header.contains("a network card (e1000e)"), "{header}");
        // All doubts are on the page, folded.
        let doubts = Doubts::of(&Summed::of(&data)).all;
        assert_eq!(doubts.len(), 3);
        assert!(header.contains("3 doubts of 2 kinds"), "{header}");
        for doubt in doubts {
            assert!(rest.contains(&doubt.words), "{}", doubt.words);
        }
        // With one number of addresses the page has bars rather than a chart of one point.
        let names: Vec<_> = page.charts.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["figure-2-1.svg"]);
        assert!(rest.contains("at 10 addresses only"), "{rest}");
    }

    #[test]
    fn without_a_socket_server_the_rate_itself_is_what_was_found() {
        let mut data = data();
        data.response.retain(|event| match event {
            Event::Trial(trial) => trial.cell.engine != EngineKind::SOCKET,
            _ => true,
        });
        let sentence = "<h1>afxdp (netlink-down) sustains 40\u{202f}000 requests/s at 10 addresses \
                        with 10 replies, median of 3 passes.</h1>";
        assert!(page(&data).unwrap().html.contains(sentence));
    }

    #[test]
    fn a_doubt_without_a_figure_is_told_as_well() {
        let data = Data { response: vec![start()], bind: vec![start()], ..Data::default() };
        let html = page(&data).unwrap().html;
        for words in ["No results yet", "Figure 2 is not finished", "Figure 1 is not"] {
            assert!(html.contains(words), "{words}");
        }
    }

    #[test]
    fn a_rate_that_may_be_higher_makes_the_ratio_a_bound() {
        let mut data = data();
        // First the highest rate of afxdp holds as well, then that of the socket server.
        for index in [8, 10, 12, 2, 4, 6] {
            change(&mut data, index, |trial| {
                trial.load.outcome.first.as_mut().unwrap().mean_us = 100.0;
            });
            let html = page(&data).unwrap().html;
            let bound = html.contains("sustains at least 8.00 times");
            let unknown = html.contains("sustains an unknown multiple of the rate");
            assert_eq!((bound, unknown), ([10, 12, 2].contains(&index), [4, 6].contains(&index)));
        }
    }

    #[test]
    fn of_an_unfinished_experiment_the_last_pass_does_not_count() {
        let mut data = data();
        // The last pass of the second engine stops after its first rate.
        data.response.retain(|event| !matches!(event, Event::Threshold(_)));
        data.response.pop();
        let summed = Summed::of(&data);
        let runs: Vec<_> = summed.thresholds.iter().map(|summary| summary.runs.len()).collect();
        assert_eq!(runs, [3, 3, 3, 3, 2, 2, 2, 2]);
    }

    #[test]
    fn a_cell_that_could_not_be_had_is_in_the_table() {
        let mut data = data();
        let cell = Cell { engine: EngineKind::SOCKET, bind: Method::Netlink, addresses: 55_000 };
        let failed = crate::events::Failed { cell, why: "it was not ready".to_owned() };
        data.response.insert(1, Event::Failed(failed));
        assert!(page(&data).unwrap().html.contains("it was not ready"));
    }
}
