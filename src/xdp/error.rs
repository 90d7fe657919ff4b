//! Why a mode cannot be had that was asked for.

/// The kernel or the driver does not grant a mode that was asked for, and a lesser one would work:
/// `auto` takes it. The [cause](crate::server::Cause::downcast_ref) of a
/// [`ServerError::Engine`](crate::server::ServerError::Engine) may hold one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ModeError {
    /// The program cannot run in the driver.
    #[error("{0}")]
    NoNative(String),
    /// Frames cannot lie on huge pages.
    #[error("{0}")]
    NoHugePages(String),
    /// Packets have to be copied between the driver's buffers and the rings.
    #[error("no zero-copy on queue {queue}: {why}")]
    NoZeroCopy {
        /// The first queue without it.
        queue: u32,
        /// What the driver lacks.
        why: String,
    },
}
