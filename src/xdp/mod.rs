//! KERNEL BYPASS PLUMBING: the program that steers, the memory and rings that packets go through,
//! and the questions that only the card can answer.
//!
//! This room makes system calls and maps memory, and has most of the `unsafe` of the crate: what it
//! gives to others is safe to use, and counts frames so that none is lost unseen. Only the program
//! in the kernel knows anything of requests and replies.

mod error;
mod fallback;
mod multicast;
mod program;
mod ring;
mod rings;
mod shared;
mod socket;
mod umem;

pub mod capability;
pub mod model;
pub mod stacked;

pub use error::ModeError;
pub use fallback::Fallback;
pub use multicast::AllMulticast;
pub use program::{
    AttachRequest, Attachment, Fate, LiveAddresses, MovingAddresses, Program, ProgramConfig,
    Reflect, Screen, Station, Verdict, VerdictSource, occupied,
};
pub use rings::{Census, Doorbell, LevelSource, RingLevels, Rings};
pub use socket::{
    BusyPoll, CopyMode, CopyRequest, CounterSource, KernelCounters, RingSizes, Socket,
    SocketConfig, spare_frames,
};
pub use umem::{Frame, Packet, Umem};
