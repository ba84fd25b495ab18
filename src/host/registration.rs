//! What a launcher says of a VM before it joins. The VM itself has no say in any of it.
//!
//! A launcher is who starts VMs: `tidemark run` for its children, `tidemark vm` for itself, before the
//! guest exists. It hands the host manager one end of a socketpair; the VM at the other end is who the
//! launcher said.

use serde::{Deserialize, Serialize};

use crate::words::{Allocation, Sharing, Token};

/// Who joins, and what it is entitled to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registration {
    /// Name, unique on the host: 1 to 64 of `[A-Za-z0-9._-]`.
    pub name: String,
    /// What it is entitled to.
    pub allocation: Allocation,
    /// Whether its memory follows orders. Where it is not managed, the VM is promised all of it and
    /// holds credit for all of it.
    pub managed: bool,
    /// VMs of one group may share pages; `None`: this VM shares only with itself.
    pub share_group: Option<String>,
    /// How the pages of that group are shared: the same for all of its VMs.
    pub sharing: Sharing,
    /// The lease that it redeems, by its token: see [`crate::policy::lease`].
    pub lease: Option<Token>,
}
