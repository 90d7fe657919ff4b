//! The XDP program's time for one request, and the share of checking the source: `cargo bench
//! --bench program`, as root.
//!
//! The kernel runs each variant's program on the same request many times (BPF_PROG_TEST_RUN). The
//! variants take turns for several rounds, so that disturbances hit them alike. The request goes to
//! a live address on a queue without a socket, so everything is measured except the driver's part.

use std::net::Ipv6Addr;
use std::time::Duration;

use anyhow::Result;
use etherparse::PacketBuilder;
use sixhop::address::mt6d::Subnet;
use sixhop::address::{Pool, Prefix, Sources};
use sixhop::xdp::{LiveAddresses, MovingAddresses, Program, ProgramConfig, Screen};

const PREFIX: &str = "2001:db8:1::/64";
const ADDRESSES: u32 = 10_000;
const REPEAT: u32 = 1_000_000;
const ROUNDS: usize = 9;

/// A variant: how it checks sources, and how many other prefixes come before the right one.
struct Variant {
    name: &'static str,
    screen: Option<Screen>,
    before: u128,
    moving: bool,
}

fn program(variant: &Variant, pool: &Pool) -> Result<(Program, LiveAddresses)> {
    let prefix: Prefix = PREFIX.parse()?;
    let subnet = Subnet::new(prefix)?;
    let config = ProgramConfig {
        port: 3540,
        addresses: ADDRESSES,
        queues: 1,
        hidden: false,
        moving: variant.moving.then_some(MovingAddresses { subnet, clients: ADDRESSES.into() }),
        reflect: None,
        screen: variant.screen,
    };
    let mut program = Program::load(&config)?;
    for number in 1..=variant.before {
        let other =
            Prefix::new(Ipv6Addr::from_bits(prefix.network().to_bits() + (number << 64)), 64)?;
        program.add_prefix(other)?;
        program.allow(other)?;
    }
    program.add_prefix(prefix)?;
    for prefix in [PREFIX, "fe80::/64"] {
        program.allow(Sources::parse(prefix)?)?;
    }
    let mut live = program.live_addresses()?;
    if variant.moving {
        (0..3).try_for_each(|step| live.enter(&pool.to_vec(1), step))?;
        live.set_step(1);
    } else {
        live.add(&pool.to_vec(1)).map_err(|(_, error)| error)?;
    }
    Ok((program, live))
}

fn main() -> Result<()> {
    let pool = Pool::new(PREFIX.parse()?, ADDRESSES.into(), 1)?;
    let screen = |allow_list, limit| Some(Screen { station: [4; 6], allow_list, limit });
    let plain = |name, screen| Variant { name, screen, before: 0, moving: false };
    let variants = [
        plain("looks at no source", None),
        plain("--allow ::/0", screen(false, None)),
        plain("a list of two prefixes", screen(true, None)),
        plain("the same and a limit", screen(true, Some(1_000_000_000))),
        Variant { before: 4, ..plain("prefixes after four others", screen(true, None)) },
        Variant { moving: true, ..plain("addresses that move", screen(true, None)) },
    ];
    let programs: Vec<_> =
        variants.iter().map(|variant| program(variant, &pool)).collect::<Result<_>>()?;
    let mut request = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv6(
            [0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
            pool.address(7).octets(),
            64,
        )
        .udp(50_000, 3540)
        .write(&mut request, &[7; 32])?;
    let mut times = vec![Vec::new(); variants.len()];
    for _ in 0..ROUNDS {
        for ((program, _live), times) in programs.iter().zip(&mut times) {
            times.push(program.test_runs(&request, REPEAT)?.2);
        }
    }
    let medians: Vec<Duration> = times
        .iter_mut()
        .map(|times| {
            times.sort();
            times[ROUNDS / 2]
        })
        .collect();
    for (Variant { name, .. }, median) in variants.iter().zip(&medians) {
        let ratio = median.as_secs_f64() / medians[0].as_secs_f64();
        println!("{name:28} {:4} ns  {ratio:.2}", median.as_nanos());
    }
    Ok(())
}
