//! KERNEL BYPASS PLUMBING: the program that steers, the memory and rings that packets go through, and the questions
//! that only the card can answer.
//!
//! This room makes system calls and maps memory, and has most of the `unsafe` of the crate: what it gives to others is
//! safe to use, and counts frames so that none is lost unseen. It knows nothing of requests and replies.

mod memory;
mod multicast;
mod program;
mod ring;
mod rings;
mod socket;
mod umem;

pub mod ethtool;
pub mod model;

pub(crate) use memory::Memory;
pub use multicast::AllMulticast;
pub use program::{
    AttachRequest, Attachment, LiveAddresses, Program, ProgramConfig, Verdict, VerdictSource, occupied,
};
pub use rings::{Census, Doorbell, Rings};
pub use socket::{CopyMode, CopyRequest, CounterSource, KernelCounters, RingSizes, Socket, SocketConfig};
pub use umem::{Frame, Packet, Umem};
