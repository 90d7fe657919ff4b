//! The processors near a card: those that its queues interrupt, and those of its NUMA node.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::Path;

use super::{file, shows, with_own_sys};
use crate::net::netlink::Link;

/// Processors near a card.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Nearness {
    /// The processors that the interrupt of each receive queue goes to.
    interrupted: BTreeMap<u32, Vec<usize>>,
    /// The processors of the card's NUMA node; empty if it has none, as on a machine with only one
    /// node.
    node: Vec<usize>,
}

/// The kernel's own limit on processors (NR_CPUS).
const PROCESSORS: usize = 8192;

impl Nearness {
    /// The nearness to the card behind `link`; empty for a virtual interface such as a veth.
    #[must_use]
    pub fn of(link: &Link) -> Self {
        with_own_sys(|| {
            let device = Path::new("/sys/class/net").join(&link.name).join("device");
            let Some(device) = fs::canonicalize(device).ok().filter(|_| shows(link)) else {
                return Self::default();
            };
            // A virtio card gets its interrupts and its node from the PCI device above it.
            let mut places = device.ancestors().take(2);
            let Some(place) = places.find(|place| place.join("irq").exists()) else {
                return Self::default();
            };
            let messages = fs::read_dir(place.join("msi_irqs")).into_iter().flatten().flatten();
            let messages = messages.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
            let mut irqs: HashSet<u32> = messages.collect();
            if irqs.is_empty() {
                irqs.extend(file(place.join("irq")).and_then(|line| line.parse::<u32>().ok()));
            }
            let table = fs::read_to_string("/proc/interrupts").unwrap_or_default();
            let interrupted = interrupts(&table, &irqs).into_iter().map(|(queue, irq)| {
                let list = file(format!("/proc/irq/{irq}/effective_affinity_list"));
                let list = list.or_else(|| file(format!("/proc/irq/{irq}/smp_affinity_list")));
                (queue, processors(&list.unwrap_or_default()))
            });
            let node = file(place.join("numa_node")).and_then(|node| node.parse::<usize>().ok());
            let node =
                node.and_then(|node| file(format!("/sys/devices/system/node/node{node}/cpulist")));
            Self { interrupted: interrupted.collect(), node: processors(&node.unwrap_or_default()) }
        })
        .unwrap_or_default()
    }

    /// Chooses a processor out of `allowed` for the worker of each of `queues`. A processor without
    /// a worker comes first; among those, one that the queue interrupts, then one of the card's
    /// node.
    ///
    /// The kernel receives packets on the interrupted processor, so the rings stay in one cache,
    /// and a queue costs a single processor. The price is that worker and kernel share it. If there
    /// are spare processors, `--cores` can name a neighbour that shares a cache; if not, busy
    /// polling makes the two take turns.
    #[must_use]
    pub fn choose(&self, queues: &[u32], allowed: &[usize]) -> Vec<usize> {
        let mut chosen: Vec<usize> = Vec::with_capacity(queues.len());
        for queue in queues {
            let rank = |core: &usize| {
                let interrupted =
                    self.interrupted.get(queue).is_some_and(|cores| cores.contains(core));
                let workers = chosen.iter().filter(|taken| *taken == core).count();
                (workers, !interrupted, !self.node.contains(core))
            };
            chosen.extend(allowed.iter().min_by_key(|core| rank(core)));
        }
        chosen
    }
}

/// The interrupt of each receive queue, from the lines of /proc/interrupts for `irqs`. The driver
/// names an interrupt after its queue; a card's only interrupt serves queue 0.
fn interrupts(table: &str, irqs: &HashSet<u32>) -> BTreeMap<u32, u32> {
    let lines = table.lines().filter_map(|line| {
        let (irq, rest) = line.trim_start().split_once(':')?;
        let irq = irq.parse().ok().filter(|irq| irqs.contains(irq))?;
        Some((irq, rest.split([' ', ',']).find_map(queue)))
    });
    let lines: Vec<(u32, Option<u32>)> = lines.collect();
    if let [(irq, _)] = lines[..] {
        return BTreeMap::from([(0, irq)]);
    }
    let mut queues = BTreeMap::new();
    for (irq, queue) in lines {
        if let Some(queue) = queue {
            queues.entry(queue).or_insert(irq);
        }
    }
    queues
}

/// The receive queue in an interrupt's name, as drivers write it: eth0-TxRx-3 and eth0-rx-3 (igb,
/// igc, ixgbe), i40e-eth0-TxRx-3 (i40e, and ice alike), virtio0-input.3,
/// mlx5_comp3@pci:0000:3b:00.0, eth0-Tx-Rx-3 (ena), eth0-rxtx-3 (vmxnet3).
fn queue(name: &str) -> Option<u32> {
    let name = name.split('@').next().unwrap_or_default();
    let stem = name.trim_end_matches(|digit: char| digit.is_ascii_digit());
    let number = name[stem.len()..].parse().ok()?;
    let stem = stem.trim_end_matches(['-', '.']).to_ascii_lowercase();
    let kinds = ["-rx", "-txrx", "-rxtx", "-input", "mlx5_comp"];
    kinds.iter().any(|kind| stem.ends_with(kind)).then_some(number)
}

/// Parses a processor list such as 0-3,8.
fn processors(list: &str) -> Vec<usize> {
    let ranges = list.trim().split(',').filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.parse().ok()?..=last.parse::<usize>().ok()?.min(PROCESSORS))
    });
    ranges.flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines of /proc/interrupts, one card each.
    const IGB: &str = "
            CPU0       CPU1
 40:          1          0  PCI-MSIX-0000:03:00.0   0-edge      eth1
 41:       9000          0  PCI-MSIX-0000:03:00.0   1-edge      eth1-TxRx-0
 42:          0       8000  PCI-MSIX-0000:03:00.0   2-edge      eth1-TxRx-1
 50:          0          9  PCI-MSIX-0000:04:00.0   1-edge      eth2-TxRx-0
NMI:          0          0   Non-maskable interrupts";
    const SPLIT: &str = "
 40:          1          0  IR-PCI-MSI 1572864-edge      eth1
 41:          1          0  IR-PCI-MSI 1572865-edge      eth1-rx-0
 42:          1          0  IR-PCI-MSI 1572866-edge      eth1-tx-0";
    const VIRTIO: &str = "
 37:          0          0 PCI-MSIX-0000:00:03.0   0-edge      virtio2-config
 38:          0      12100 PCI-MSIX-0000:00:03.0   1-edge      virtio2-input.0
 39:       8142          0 PCI-MSIX-0000:00:03.0   2-edge      virtio2-output.0
 40:          0      12100 PCI-MSIX-0000:00:03.0   3-edge      virtio2-input.1
 41:       8142          0 PCI-MSIX-0000:00:03.0   4-edge      virtio2-output.1";
    const I40E: &str = "
 40:  1  0  IR-PCI-MSIX-0000:18:00.0    0-edge      i40e-0000:18:00.0:misc
 41:  1  0  IR-PCI-MSIX-0000:18:00.0    1-edge      i40e-eth1-TxRx-0
 42:  1  0  IR-PCI-MSIX-0000:18:00.0    2-edge      i40e-eth1-TxRx-1";
    const MLX5: &str = "
 40:  1  0  IR-PCI-MSIX-0000:3b:00.0    0-edge      mlx5_async0@pci:0000:3b:00.0
 41:  1  0  IR-PCI-MSIX-0000:3b:00.0    1-edge      mlx5_comp0@pci:0000:3b:00.0
 42:  1  0  IR-PCI-MSIX-0000:3b:00.0    2-edge      mlx5_comp1@pci:0000:3b:00.0";
    const ONE: &str = " 44:  1  0  IR-PCI-MSI 512000-edge      eth0";

    #[test]
    fn interrupts_of_queues_are_known_by_their_names() {
        let all: HashSet<u32> = (37..45).collect();
        for (table, expected) in [
            (IGB, vec![(0, 41), (1, 42)]),
            (SPLIT, vec![(0, 41)]),
            (VIRTIO, vec![(0, 38), (1, 40)]),
            (I40E, vec![(0, 41), (1, 42)]),
            (MLX5, vec![(0, 41), (1, 42)]),
            (ONE, vec![(0, 44)]),
            ("", vec![]),
        ] {
            assert_eq!(interrupts(table, &all), BTreeMap::from_iter(expected), "{table}");
        }
        assert_eq!(queue("eth0-Tx-Rx-7"), Some(7));
        assert_eq!(queue("eth0-rxtx-7"), Some(7));
        for other in
            ["eth0-tx-7", "virtio0-output.7", "7", "", "eth0-rx-", "eth0-rx-99999999999", "é7"]
        {
            assert_eq!(queue(other), None, "{other}");
        }
        assert!(interrupts(IGB, &HashSet::new()).is_empty());
    }

    #[test]
    fn lists_of_processors_are_read_whatever_they_hold() {
        assert_eq!(processors("0-3,8\n"), [0, 1, 2, 3, 8]);
        assert_eq!(processors("5"), [5]);
        assert!(
            processors("").is_empty()
                && processors("x-y,-").is_empty()
                && processors("3-1").is_empty()
        );
        assert_eq!(processors("0-99999999999").len(), PROCESSORS + 1);
    }

    #[test]
    fn workers_get_what_is_near_and_no_processor_twice_before_all_have_one() {
        let allowed = [0, 1, 2, 3];
        let nothing = Nearness::default();
        assert_eq!(nothing.choose(&[0, 1], &allowed), [0, 1]);
        assert_eq!(nothing.choose(&[0, 1, 2], &[4, 6]), [4, 6, 4]);
        assert!(nothing.choose(&[0], &[]).is_empty());
        let near = Nearness {
            interrupted: BTreeMap::from([(0, vec![3]), (1, vec![3]), (2, vec![9])]),
            node: vec![2, 3],
        };
        assert_eq!(near.choose(&[0], &allowed), [3]);
        assert_eq!(
            near.choose(&[1, 0, 2], &allowed),
            [3, 2, 0],
            "a processor of its own before a near one"
        );
        assert_eq!(near.choose(&[2], &allowed), [2], "one that is not allowed is none");
    }

    #[test]
    fn nothing_is_near_to_loopback() {
        assert_eq!(Nearness::of(&crate::net::netlink::link("lo").unwrap()), Nearness::default());
    }
}
