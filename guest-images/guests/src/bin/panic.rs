//! Panics: prints where and exits with code 101.
#![no_std]
#![no_main]

use tidemark_guest_runtime::{BootInfo, println};

tidemark_guest_runtime::guest!(main);

fn main(_boot: BootInfo) -> u32 {
    println!("about to panic");
    panic!("as asked")
}
