//! Prints one line and exits with code 0.
#![no_std]
#![no_main]

use tidemark_guest_runtime::{BootInfo, println};

tidemark_guest_runtime::guest!(main);

fn main(_boot: BootInfo) -> u32 {
    println!("hello from tidemark");
    0
}
