//! THIS MACHINE'S OWN SERVICES on moving addresses, and the client's side of it.

#[cfg(feature = "cli")]
pub mod resolver;
