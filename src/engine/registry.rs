//! THE REGISTRY OF ENGINES. Each engine describes itself in its own file ([`About`]); `engines!` in
//! the room's first file lists them, one a line. Help, checks, tests and pages read it.

use std::str::FromStr;

use super::{EngineError, EngineKind, Modes};
use crate::host::sandbox::Role;
use crate::live::Method;

/// What an engine says of itself.
#[derive(Debug)]
pub struct About {
    /// Its name.
    pub kind: EngineKind,
    /// What it is, in a line of `--help`.
    pub help: &'static str,
    /// Whether it has an XDP program on the interface, which steers requests by their addresses,
    /// queue by queue, and can limit the requests of a source.
    pub steers: bool,
    /// Whether it looks at frames itself, which have to begin with an Ethernet header.
    pub sees_frames: bool,
    /// Whether requests come into AF_XDP rings: their queues can be chosen and busy-polled.
    pub has_rings: bool,
    /// Whether it runs any service; otherwise only the echo.
    pub any_service: bool,
    /// Whether it shares memory with the kernel frame by frame, so that a frame can get lost.
    pub shares_frames: bool,
    /// Whether the kernel may cut equal replies out of one large frame, which its modes then say.
    pub segments: bool,
    /// The capabilities without one of which it does not start, where addresses are the kernel's.
    pub capabilities: &'static [&'static str],
    /// What the threads that answer may do.
    pub roles: &'static [Role],
    /// Each further way in which it works: an option and its value. Tests try each besides the
    /// default.
    pub ways: &'static [(&'static str, &'static str)],
    /// Bytes of the longest request that it answers whole with these modes, and what becomes of a
    /// longer one; `None` where it answers all that the interface receives.
    pub longest: fn(&Modes) -> Option<(u32, &'static str)>,
}

impl About {
    /// One that answers any service from a socket of the kernel, and has nothing special.
    pub(super) const fn new(kind: EngineKind, help: &'static str) -> Self {
        Self {
            kind,
            help,
            steers: false,
            sees_frames: false,
            has_rings: false,
            any_service: true,
            shares_frames: false,
            segments: false,
            capabilities: &["CAP_NET_ADMIN"],
            roles: &[],
            ways: &[],
            longest: |_| None,
        }
    }
}

/// Declares the engines' modules, each of which has its `ABOUT` and its `open`, and the registry of
/// them in this order.
macro_rules! engines {
    ($($(#[$attribute:meta])* $module:ident),* $(,)?) => {
        $($(#[$attribute])* mod $module;)*

        static ENGINES: &[&About] = &[$($(#[$attribute])* &$module::ABOUT),*];

        #[doc(hidden)]
        /// Opens the engine `kind`, whose workers answer by clones of `service`.
        ///
        /// # Errors
        /// When there is no such engine; when the kernel does not give it what it needs, with what
        /// to do about it; and when it only reflects, and the service is no echo.
        pub fn open<S: Service>(
            kind: EngineKind,
            config: &EngineConfig,
            service: &S,
        ) -> Result<Box<dyn Engine>> {
            $(
                $(#[$attribute])*
                if kind == $module::ABOUT.kind {
                    return $module::open(config, service);
                }
            )*
            Err(EngineError::Unknown(kind.name().to_owned()).into())
        }
    };
}
pub(super) use engines;

/// All engines, in the order of `--help`.
pub fn all() -> impl Iterator<Item = &'static About> {
    super::ENGINES.iter().copied()
}

impl FromStr for EngineKind {
    type Err = EngineError;

    fn from_str(name: &str) -> Result<Self, EngineError> {
        let found = all().find(|about| about.kind.name() == name);
        found.map(|about| about.kind).ok_or_else(|| EngineError::Unknown(name.to_owned()))
    }
}

impl EngineKind {
    /// What it says of itself; `None` for an engine that this program does not have, whose name a
    /// result had.
    #[must_use]
    pub fn about(self) -> Option<&'static About> {
        all().find(|about| about.kind == self)
    }

    /// Whether it has an XDP program on the interface, which steers requests by their addresses,
    /// queue by queue.
    #[must_use]
    pub fn steers(self) -> bool {
        self.about().is_some_and(|about| about.steers)
    }

    /// Whether it looks at frames itself, which are to begin with an Ethernet header.
    #[must_use]
    pub fn sees_frames(self) -> bool {
        self.about().is_some_and(|about| about.sees_frames)
    }

    /// Whether requests come into AF_XDP rings.
    #[must_use]
    pub fn has_rings(self) -> bool {
        self.about().is_some_and(|about| about.has_rings)
    }

    /// Whether it can answer on addresses that are made live by `method`: live-map takes a steering
    /// program.
    #[must_use]
    pub fn can(self, method: Method) -> bool {
        method != Method::LiveMap || self.steers()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::sandbox::UNIT_CAPABILITIES;

    #[test]
    fn names_are_found_again_and_others_are_refused_with_those_there_are() {
        for about in all() {
            assert_eq!(about.kind.name().parse::<EngineKind>().unwrap(), about.kind);
        }
        let said = "xdp".parse::<EngineKind>().unwrap_err().to_string();
        assert!(said.contains("'xdp'") && said.contains("afxdp, reflect, socket"), "{said}");
        let names: std::collections::BTreeSet<_> = all().map(|about| about.kind.name()).collect();
        assert_eq!(names.len(), all().count());
    }

    #[test]
    fn the_pages_have_each_engine() {
        let page = include_str!("../../docs/engines.md");
        for about in all().filter(|about| about.kind.name() != "skeleton") {
            let name = about.kind.name();
            let row = format!("| `{name}` |");
            assert!(page.contains(&row), "docs/engines.md: no row {row}");
            let needs = page.split("What they need:").nth(1).unwrap_or_default();
            let needs = needs.split("\n#").next().unwrap_or_default();
            assert!(needs.contains(&format!("`{name}`")), "docs/engines.md: what {name} needs");
        }
    }

    #[test]
    fn the_unit_file_lets_each_engine_start() {
        for about in all() {
            for capability in about.capabilities {
                assert!(UNIT_CAPABILITIES.contains(capability), "{}: {capability}", about.kind);
            }
        }
    }
}
