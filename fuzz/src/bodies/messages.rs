//! Messages of the link as a program says: right, at the edges, and far beyond.

use std::time::Duration;

use serde_bytes::ByteBuf;
use tidemark::link::message::{
    CONTENT_PAGES_MAX, LIST_MAX, OFFER_PAGES_MAX, Orders, TEXT_BYTES_MAX, ToHost, ToVm, Welcome,
};
use tidemark::units::{FrameId, Gfn, PAGE_SIZE, Pages};
use tidemark::words::{
    Counters, Exit, ExitReason, Gauges, GuestMemoryStats, GuestReport, Holding, Key, Measured,
    MemState, Report, Run, Sampling, TakePath, Token,
};

use super::input::Input;

/// What most figures are near to.
const EDGE: u64 = 4096;

fn pages(input: &mut Input<'_>) -> Pages {
    Pages(input.number(EDGE))
}

fn some<T>(input: &mut Input<'_>, make: impl FnOnce(&mut Input<'_>) -> T) -> Option<T> {
    input.bool().then(|| make(input))
}

/// A length that is short, or around a bound.
fn length(input: &mut Input<'_>, most: usize) -> usize {
    match input.u8() {
        0xff => most + 1,
        0xfe => most,
        short => usize::from(short % 8),
    }
}

fn text(input: &mut Input<'_>) -> String {
    let length = length(input, TEXT_BYTES_MAX);
    let bytes = input.bytes(length).to_vec();
    let mut text = String::from_utf8_lossy(&bytes).into_owned();
    while text.len() < length {
        text.push('x');
    }
    text
}

fn frames(input: &mut Input<'_>) -> Vec<FrameId> {
    let length = length(input, LIST_MAX);
    (0..length).map(|_| FrameId(input.u16().into())).collect()
}

fn token(input: &mut Input<'_>) -> Token {
    Token::of([input.u64(), input.u64()])
}

/// Any message of a VM process.
pub fn to_host(input: &mut Input<'_>) -> ToHost {
    match input.below(11) {
        0 => ToHost::Hello,
        1 => ToHost::Again {
            token: token(input),
            held: pages(input),
        },
        2 => ToHost::Claim {
            frames: frames(input),
        },
        3 => ToHost::Claimed,
        4 => ToHost::CreditRequest {
            pages: pages(input),
        },
        5 => ToHost::CreditReturn {
            pages: pages(input),
        },
        6 => ToHost::Report(Box::new(report(input))),
        7 => {
            let length = length(input, OFFER_PAGES_MAX);
            let page = |input: &mut Input<'_>| (gfn(input), Key(input.number(EDGE)));
            ToHost::Offer {
                pages: (0..length).map(|_| page(input)).collect(),
            }
        }
        8 => {
            let length = length(input, CONTENT_PAGES_MAX);
            ToHost::Content {
                pages: (0..length).map(|_| (gfn(input), content(input))).collect(),
            }
        }
        9 => ToHost::Release {
            frames: frames(input),
        },
        _ => ToHost::Exited(exit(input)),
    }
}

fn gfn(input: &mut Input<'_>) -> Gfn {
    Gfn(u32::try_from(input.number(EDGE)).unwrap_or(u32::MAX))
}

fn content(input: &mut Input<'_>) -> ByteBuf {
    let length = match input.u8() {
        0xff => PAGE_SIZE + 1,
        0xfe => 0,
        _ => PAGE_SIZE,
    };
    ByteBuf::from(vec![input.u8(); length])
}

fn exit(input: &mut Input<'_>) -> Exit {
    let reason = input.pick(&[ExitReason::GuestExit, ExitReason::Killed, ExitReason::Error]);
    Exit {
        reason,
        code: input.u32(),
        message: some(input, text),
    }
}

/// What a VM process may say of itself.
pub fn report(input: &mut Input<'_>) -> Report {
    Report {
        holding: Holding {
            private: pages(input),
            compressed_store: pages(input),
            orphaned: pages(input),
        },
        overhead: pages(input),
        measured: measured(input),
    }
}

fn measured(input: &mut Input<'_>) -> Measured {
    Measured {
        shared: pages(input),
        // They travel in bytes.
        gauges: Gauges {
            zero: in_bytes(input),
            ballooned: in_bytes(input),
            compressed: in_bytes(input),
            swapped: in_bytes(input),
            large: in_bytes(input),
        },
        counters: Counters {
            swap_in_pages: input.number(EDGE),
            swap_out_pages: input.number(EDGE),
            cow_breaks: input.number(EDGE),
            swap_errors: input.number(EDGE),
            merged_pages: input.number(EDGE),
            ..Counters::default()
        },
        take_path: some(input, |input| input.pick(&[TakePath::Copy, TakePath::Move])),
        swap_full: input.bool(),
        stalled: input.bool(),
        active: some(input, pages),
        active_error: pages(input),
        balloon_driver: input.bool(),
        balloon_actual: pages(input),
        guest_memory: GuestMemoryStats {
            free_bytes: some(input, |input| input.number(EDGE << 12)),
            total_bytes: some(input, |input| input.number(EDGE << 12)),
            available_bytes: some(input, |input| input.number(EDGE << 12)),
            caches_bytes: some(input, |input| input.number(EDGE << 12)),
            major_faults: some(input, |input| input.number(EDGE)),
            ..GuestMemoryStats::default()
        },
        start_us: some(input, |input| input.u32()),
        guest: some(input, |input| GuestReport {
            pages_verified: input.number(EDGE),
            pages_corrupt: input.number(EDGE),
        }),
    }
}

fn in_bytes(input: &mut Input<'_>) -> Pages {
    Pages::in_bytes(pages(input).bytes())
}

/// Any message of a host manager.
pub fn to_vm(input: &mut Input<'_>) -> ToVm {
    match input.below(8) {
        0 => ToVm::Welcome(Welcome {
            key_seed: input.u64(),
            pool_frames: input.u32(),
            credit: pages(input),
            credit_batch: pages(input),
            sampling: Sampling {
                pages: input.u32(),
                period: Duration::from_millis(input.u32().into()),
            },
            token: some(input, token),
            adopted: input.bool(),
            hardened: input.bool(),
        }),
        1 => ToVm::Refused {
            reason: text(input),
        },
        2 => ToVm::Credit {
            pages: pages(input),
        },
        3 => ToVm::Orders(Orders {
            state: input.pick(&[
                MemState::High,
                MemState::Soft,
                MemState::Hard,
                MemState::Low,
            ]),
            balloon_target: pages(input),
            hint_rounds: input.u32(),
            private_max: some(input, pages),
            run: input.pick(&[Run::Go, Run::Block]),
            scan_pages_per_second: input.u32(),
        }),
        4 => {
            let length = length(input, LIST_MAX);
            let page = |input: &mut Input<'_>| (gfn(input), FrameId(input.u32()));
            ToVm::Candidates {
                pages: (0..length).map(|_| page(input)).collect(),
            }
        }
        5 => {
            let length = length(input, LIST_MAX);
            ToVm::Want {
                gfns: (0..length).map(|_| gfn(input)).collect(),
            }
        }
        6 => ToVm::Stop,
        _ => ToVm::Knock {
            token: token(input),
        },
    }
}
