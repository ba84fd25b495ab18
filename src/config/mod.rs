//! Configuration: a fleet file or command-line flags in, checked specs out.
//!
//! Whatever a VM is described by, it goes through one checker: a `[[vm]]` table and the flags of
//! `tidemark vm` and `tidemark run --kernel ...` both become [`VmArgs`] (texts as the user
//! wrote them), and only the checker turns those into a [`VmSpec`]. A spec is therefore always
//! valid: an [`Allocation`](crate::words::Allocation) that keeps its rules, a name that can stand in
//! a path, files that exist (what is in them is checked by `vm::files`). The manager starts a VM
//! process with [`VmSpec::to_args`], which that process parses with the same [`VmArgs`].
//!
//! Every mistake is one line that says where, which key, which value and what it must be; only the
//! first is reported. Paths in a file are relative to the file's folder. What the host computer has (free
//! memory, built-in guests) is an argument ([`Resources`]), so all of this is testable anywhere.
//!
//! **Seeds.** Built-in guests of one fleet must not all write the same data, or they would share
//! what no real guests share. So a built-in guest whose `cmdline` has no word `seed=...` gets one
//! appended: the host's `seed` (default 1) plus the VM's position in the fleet.
//!
//! | file | job |
//! |---|---|
//! | `file` | the TOML shape of a fleet file |
//! | `beside` | tables in which allocation keys stand beside others |
//! | `args` | one VM as a user writes it: a table, or flags |
//! | `check` | from there to a spec: every rule about a single VM but its allocation's |
//! | `fleet` | `[host]`, `count`, seeds: rules about VMs together |
//! | `open` | opens files that may be pipes, devices, or without end |
//! | `room` | what a fleet may have to swap, and where |
//! | `switch` | a key that is on or off |
//! | `spec` | what comes out |
//! | `error` | the one line |

pub mod args;
mod beside;
mod check;
mod error;
mod file;
mod fleet;
mod open;
mod room;
mod spec;
mod switch;
#[cfg(test)]
mod tests;

pub use args::VmArgs;
pub(crate) use beside::Beside;
pub(crate) use check::Place;
pub use error::{COMMAND_LINE, ConfigError};
pub(crate) use file::parse as parse_toml;
pub use fleet::{HostArgs, Resources};
pub use open::Unfit;
pub(crate) use open::{IMAGE_BYTES_MAX, Kind, open_file, read_text};
pub use spec::{Boot, FleetSpec, HostSpec, VmSpec};
