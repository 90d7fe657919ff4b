//! Neighbour discovery for addresses that are live without being the kernel's: which solicitations
//! are answered, and how many.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::policy::Handler;
use crate::wire::{self, Refusal, Solicitation};

/// Answers in a second, of one worker. An answer is no larger than its question and goes to who
/// asked, so it amplifies nothing; this bounds what a flood of questions takes from the requests:
/// as many packets as 1,000 of those with ten replies.
const RATE: u32 = 10_000;

/// Answers at once: a neighbour's table holds 1,024 addresses unless it is told otherwise
/// (gc_thresh3), so that one neighbour may ask for as many in one go.
const BURST: u32 = 1024;

/// The Ethernet address of an interface, which may change while others read it.
#[derive(Debug, Clone)]
pub struct LinkAddress(Arc<AtomicU64>);

impl LinkAddress {
    fn pack([a, b, c, d, e, f]: [u8; 6]) -> u64 {
        u64::from_be_bytes([0, 0, a, b, c, d, e, f])
    }

    /// What it is now.
    #[must_use]
    pub fn get(&self) -> [u8; 6] {
        let [_, _, address @ ..] = self.0.load(Ordering::Relaxed).to_be_bytes();
        address
    }

    /// Has it be `address`, for all who have a clone.
    pub fn set(&self, address: [u8; 6]) {
        self.0.store(Self::pack(address), Ordering::Relaxed);
    }
}

impl From<[u8; 6]> for LinkAddress {
    fn from(address: [u8; 6]) -> Self {
        Self(Arc::new(Self::pack(address).into()))
    }
}

/// Decides over solicitations.
#[derive(Debug)]
pub struct Advertiser {
    link_address: LinkAddress,
    /// When the bucket of answers will be full again: it holds [`BURST`], and fills at [`RATE`].
    full: Instant,
}

impl Advertiser {
    /// For an interface with that Ethernet address.
    #[must_use]
    pub fn new(link_address: impl Into<LinkAddress>) -> Self {
        Self { link_address: link_address.into(), full: Instant::now() }
    }

    /// Takes the solicitation in `frame`, if it is one and to be answered `now`.
    ///
    /// # Errors
    /// Why it is not.
    pub fn decide(
        &mut self,
        frame: &[u8],
        handler: &Handler,
        now: Instant,
    ) -> Result<Solicitation, Refusal> {
        const INTERVAL: Duration = Duration::from_nanos(1_000_000_000 / RATE as u64);
        let solicitation = wire::solicitation(frame)?;
        if !handler.is_live(solicitation.target()) {
            return Err(Refusal::DestinationNotOurs);
        }
        let full = self.full.max(now) + INTERVAL;
        if full > now + INTERVAL * BURST {
            return Err(Refusal::TooManySolicitations);
        }
        self.full = full;
        Ok(solicitation)
    }

    /// Writes the answer into the beginning of `frame` and returns its length, as
    /// [`Solicitation::advertise`].
    pub fn answer(&self, solicitation: &Solicitation, frame: &mut [u8]) -> Option<usize> {
        solicitation.advertise(self.link_address.get(), frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Pool;
    use crate::wire::solicitation_frame;

    #[test]
    fn the_answer_names_the_address_that_the_interface_has_by_now() {
        let address = LinkAddress::from([2, 0, 0, 0, 0xaa, 1]);
        let advertiser = Advertiser::new(address.clone());
        let target = "2001:db8:1::77".parse().unwrap();
        let solicitation = wire::solicitation(&solicitation_frame(target)).unwrap();
        for mac in [[2, 0, 0, 0, 0xaa, 1], [0xfe, 0xff, 0, 1, 2, 3]] {
            address.set(mac);
            assert_eq!(address.get(), mac);
            let mut frame = [0; 128];
            let length = advertiser.answer(&solicitation, &mut frame).unwrap();
            assert_eq!(frame[6..12], mac);
            assert!(frame[14..length].windows(6).any(|bytes| bytes == mac));
        }
    }

    #[test]
    fn a_burst_is_answered_and_then_so_many_a_second() {
        let pool = Pool::new("2001:db8:1::/64".parse().unwrap(), 10, 1).unwrap();
        let live = pool.address(3);
        let handler = Handler::new(3540, pool, vec![]);
        let mut advertiser = Advertiser::new([2; 6]);
        let start = Instant::now();
        let mut at = |after: Duration, target| {
            advertiser
                .decide(&solicitation_frame(target), &handler, start + after)
                .map(|found| found.target())
        };
        let second = Duration::from_secs(1);
        assert_eq!(
            at(Duration::ZERO, "2001:db8:1::77".parse().unwrap()),
            Err(Refusal::DestinationNotOurs)
        );
        for _ in 0..BURST {
            assert_eq!(at(second, live), Ok(live));
        }
        assert_eq!(at(second, live), Err(Refusal::TooManySolicitations));
        let later = second + second / 100;
        let answered = (0..BURST).filter(|_| at(later, live).is_ok()).count();
        assert_eq!(answered, RATE as usize / 100);
        // However long it was quiet, no more than a burst.
        let answered = (0..2 * BURST).filter(|_| at(100 * second, live).is_ok()).count();
        assert_eq!(answered, BURST as usize);
    }
}
