//! Neighbour discovery for addresses that are live without being the kernel's: which solicitations are answered, and how
//! many.

use std::time::{Duration, Instant};

use super::handler::Handler;
use crate::wire::{self, Refusal, Solicitation};

/// Answers in a second, of one worker. An answer is no larger than its question and goes to who asked, so it amplifies nothing;
/// this bounds what a flood of questions takes from the requests: as many packets as 1,000 of those with ten replies.
const RATE: u32 = 10_000;

/// Answers at once: a neighbour's table holds 1,024 addresses unless it is told otherwise (gc_thresh3), so that one neighbour may
/// ask for as many in one go.
const BURST: u32 = 1024;

/// Decides over solicitations.
#[derive(Debug)]
pub struct Advertiser {
    link_address: [u8; 6],
    /// When the bucket of answers will be full again: it holds [`BURST`], and fills at [`RATE`].
    full: Instant,
}

impl Advertiser {
    /// For an interface with that Ethernet address.
    #[must_use]
    pub fn new(link_address: [u8; 6]) -> Self {
        Self { link_address, full: Instant::now() }
    }

    /// Takes the solicitation in `frame`, if it is one and to be answered `now`.
    ///
    /// # Errors
    /// Why it is not.
    pub fn decide(&mut self, frame: &[u8], handler: &Handler, now: Instant) -> Result<Solicitation, Refusal> {
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

    /// Writes the answer into the beginning of `frame` and returns its length, as [`Solicitation::advertise`].
    pub fn answer(&self, solicitation: &Solicitation, frame: &mut [u8]) -> Option<usize> {
        solicitation.advertise(self.link_address, frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Pool;
    use crate::wire::solicitation_frame;

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
        assert_eq!(at(Duration::ZERO, "2001:db8:1::77".parse().unwrap()), Err(Refusal::DestinationNotOurs));
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
