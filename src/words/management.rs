//! Who manages the memory of a VM: tidemark, or the host's kernel as it does any program's.

use std::fmt;

/// Who manages a VM's memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Management {
    /// tidemark: it is handed out on touch, shared, ballooned and swapped.
    #[default]
    Managed,
    /// The host's kernel alone. The VM is promised all of its memory, and holds it as far as its
    /// guest has touched it.
    Plain(Option<Advice>),
}

impl Management {
    /// Whether tidemark manages it.
    pub fn is_managed(self) -> bool {
        self == Management::Managed
    }
}

/// What the kernel is told about memory that it manages: madvise(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advice {
    /// Large pages wherever they can be had.
    HugePage,
    /// No large pages.
    NoHugePage,
    /// KSM may merge it.
    Mergeable,
}

impl Advice {
    /// Each of them.
    pub const ALL: [Advice; 3] = [Advice::HugePage, Advice::NoHugePage, Advice::Mergeable];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Advice::HugePage => "hugepage",
            Advice::NoHugePage => "nohugepage",
            Advice::Mergeable => "mergeable",
        }
    }

    /// The advice of that name.
    pub fn named(name: &str) -> Option<Advice> {
        Advice::ALL.into_iter().find(|advice| advice.name() == name)
    }
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
