//! KERNEL BYPASS: the steering program, the memory and rings that packets go through, and the
//! card's XDP capabilities.
//!
//! This room makes system calls and maps memory, and has most of the crate's `unsafe` code. Its
//! public interface is safe, and counts frames so that none gets lost unnoticed. Only the kernel
//! program knows about requests and replies.

mod error;
mod fallback;
mod kernel;
mod multicast;
mod program;
mod ring;
mod rings;
mod shared;
mod socket;
mod umem;
mod variables;

pub mod capability;
pub mod model;
pub mod stacked;

pub use error::ModeError;
pub use fallback::Fallback;
pub(crate) use kernel::{TcHook, attach_tc, run};
pub use multicast::AllMulticast;
pub use program::{
    AttachRequest, Attachment, Fate, LiveAddresses, MovingAddresses, Program, ProgramConfig,
    Reflect, Screen, Verdict, VerdictSource, occupied,
};
pub(crate) use program::{prepare_to_load, sums};
pub use rings::{Census, Doorbell, LevelSource, RingLevels, Rings};
pub use socket::{
    BusyPoll, CopyMode, CopyRequest, CounterSource, KernelCounters, RingSizes, Socket,
    SocketConfig, spare_frames,
};
pub use umem::{Frame, Packet, Umem};
pub(crate) use variables::SharedWord;
pub use variables::Station;
