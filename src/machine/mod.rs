//! One virtual machine: KVM, its vCPU threads and its devices.
//!
//! [`Machine`] is built of a [`MachineSpec`] around guest RAM. Who provides that RAM, and what
//! happens to its pages, is not its concern: a vCPU that touches a page which is not there waits, and
//! what the balloon says goes to a sink. [`gate::Gate`] holds the vCPUs. How the machine ended is an
//! [`Exit`](crate::words::Exit), and the first one counts.
//!
//! | file | job |
//! |---|---|
//! | `build` | a machine from its description |
//! | `platform` | which device is where |
//! | `seats` | threads that wait for vCPUs |
//! | `lifecycle` | start, end, and what the owner reaches of it meanwhile |
//! | `vcpu` | the loop of one vCPU, and why it ends |
//! | `gate` | who may enter the guest |
//! | `exit` | how it ended |
//! | `error` | what goes wrong until it runs |

mod build;
mod error;
mod exit;
pub mod gate;
mod lifecycle;
mod platform;
pub mod seats;
mod vcpu;

pub use self::build::{MachineSpec, open_kvm};
pub use self::error::Error;
pub use self::lifecycle::Machine;
