//! What every test guest stands on: entry code, console, clock, its memory, its virtio balloon.
//!
//! A guest is a program in ring 3 that owns its machine. [`entry`] brings it there, [`Guest`] is the
//! "operating system" of the behaviours: pages with contents to keep, a cache to drop, a balloon to
//! serve. One thread, no interrupts, no heap.
#![no_std]

pub mod balloon;
pub mod boot;
pub mod clock;
pub mod console;
pub mod entry;
pub mod guest;
mod language;
pub mod memory;
pub mod mmio;
pub mod page;
pub mod port;
pub mod queue;

pub use boot::BootInfo;
pub use guest::Guest;

/// Makes a function of type `fn(BootInfo) -> u32` the program; what it returns is the exit code.
#[macro_export]
macro_rules! guest {
    ($main:path) => {
        #[unsafe(no_mangle)]
        extern "Rust" fn guest_main(boot: $crate::BootInfo) -> u32 {
            $main(boot)
        }
    };
}
