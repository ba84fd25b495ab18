use proptest::collection::vec;
use proptest::prelude::*;
use serde_bytes::ByteBuf;

use super::*;
use crate::link::message::*;
use crate::units::{FrameId, Gfn, PAGE_SIZE, Pages};
use crate::words::*;

fn hello() -> impl Strategy<Value = ToHost> {
    any::<Option<[u64; 3]>>().prop_map(|n| match n {
        None => ToHost::Hello,
        Some([first, second, held]) => ToHost::Again {
            token: Token::of([first, second]),
            held: Pages(held),
        },
    })
}

fn report() -> impl Strategy<Value = ToHost> {
    (any::<[u64; 15]>(), any::<bool>(), any::<Option<u64>>()).prop_map(|(n, driver, stat)| {
        ToHost::Report(Box::new(Report {
            holding: Holding {
                private: Pages(n[0]),
                compressed_store: Pages(n[1]),
                orphaned: Pages(n[2]),
            },
            overhead: Pages(n[3]),
            measured: Measured {
                shared: Pages(n[4]),
                gauges: Gauges {
                    zero: Pages::in_bytes(n[5]),
                    ballooned: Pages::in_bytes(n[6]),
                    compressed: Pages::in_bytes(n[7]),
                    swapped: Pages::in_bytes(n[8]),
                    large: Pages::in_bytes(n[14]),
                },
                counters: Counters {
                    swap_in_pages: n[9],
                    swap_errors: n[10],
                    take_refusals: n[11],
                    ..Counters::default()
                },
                take_path: stat.map(|_| TakePath::Copy),
                swap_full: stat.is_some(),
                stalled: stat.is_none(),
                active: stat.map(Pages),
                active_error: Pages(n[12]),
                balloon_driver: driver,
                balloon_actual: Pages(n[13]),
                guest_memory: GuestMemoryStats {
                    free_bytes: stat,
                    ..GuestMemoryStats::default()
                },
                start_us: stat.and_then(|n| u32::try_from(n).ok()),
                guest: stat.map(|n| GuestReport {
                    pages_verified: n,
                    pages_corrupt: 0,
                }),
            },
        }))
    })
}

fn to_host() -> impl Strategy<Value = ToHost> {
    let gfn = any::<u32>().prop_map(Gfn);
    prop_oneof![
        hello(),
        report(),
        any::<u64>().prop_map(|n| ToHost::CreditRequest { pages: Pages(n) }),
        any::<u64>().prop_map(|n| ToHost::CreditReturn { pages: Pages(n) }),
        vec(
            (gfn.clone(), any::<u64>().prop_map(Key)),
            0..=OFFER_PAGES_MAX
        )
        .prop_map(|pages| ToHost::Offer { pages }),
        vec((gfn, any::<u8>()), 0..=CONTENT_PAGES_MAX).prop_map(|pages| ToHost::Content {
            pages: pages
                .into_iter()
                .map(|(gfn, fill)| (gfn, ByteBuf::from(vec![fill; PAGE_SIZE])))
                .collect()
        }),
        vec(any::<u32>().prop_map(FrameId), 0..=LIST_MAX)
            .prop_map(|frames| ToHost::Release { frames }),
        vec(any::<u32>().prop_map(FrameId), 0..=LIST_MAX)
            .prop_map(|frames| ToHost::Claim { frames }),
        Just(ToHost::Claimed),
        any::<(u32, bool)>().prop_map(|(code, message)| ToHost::Exited(Exit {
            reason: ExitReason::Error,
            code,
            message: message.then(|| "why".to_string()),
        })),
    ]
}

fn to_vm() -> impl Strategy<Value = ToVm> {
    let pair = (any::<u32>().prop_map(Gfn), any::<u32>().prop_map(FrameId));
    prop_oneof![
        any::<(u64, u32, u64, u64)>().prop_map(|(seed, frames, credit, batch)| {
            ToVm::Welcome(Welcome {
                key_seed: seed,
                pool_frames: frames,
                credit: Pages(credit),
                credit_batch: Pages(batch),
                sampling: Sampling::default(),
                token: (frames % 3 == 0).then(|| Token::of([seed, credit])),
                hardened: frames % 5 == 0,
                adopted: frames % 2 == 0,
            })
        }),
        ".{0,200}".prop_map(|reason| ToVm::Refused { reason }),
        any::<u64>().prop_map(|n| ToVm::Credit { pages: Pages(n) }),
        any::<(u64, Option<u64>, u32, bool)>().prop_map(|(balloon, max, scan, go)| {
            ToVm::Orders(Orders {
                state: MemState::Hard,
                balloon_target: Pages(balloon),
                hint_rounds: 3,
                private_max: max.map(Pages),
                run: if go { Run::Go } else { Run::Block },
                scan_pages_per_second: scan,
            })
        }),
        vec(pair, 0..=LIST_MAX).prop_map(|pages| ToVm::Candidates { pages }),
        vec(any::<u32>().prop_map(Gfn), 0..=LIST_MAX).prop_map(|gfns| ToVm::Want { gfns }),
        Just(ToVm::Stop),
        any::<[u64; 2]>().prop_map(|n| ToVm::Knock {
            token: Token::of(n)
        }),
    ]
}

proptest! {
    #[test]
    fn messages_to_the_host_survive_the_trip(message in to_host()) {
        prop_assert_eq!(decode::<ToHost>(&encode(&message).unwrap()), Ok(message));
    }

    #[test]
    fn messages_to_a_vm_survive_the_trip(message in to_vm()) {
        prop_assert_eq!(decode::<ToVm>(&encode(&message).unwrap()), Ok(message));
    }

    #[test]
    fn rubbish_never_panics(mut bytes in vec(any::<u8>(), 0..600)) {
        let _ = decode::<ToHost>(&bytes);
        let _ = decode::<ToVm>(&bytes);
        if let Some(first) = bytes.first_mut() {
            *first = VERSION;
        }
        let _ = decode::<ToHost>(&bytes);
        let _ = decode::<ToVm>(&bytes);
    }

    #[test]
    fn a_truncated_message_is_no_message(message in to_host(), cut in any::<prop::sample::Index>()) {
        let bytes = encode(&message).unwrap();
        prop_assert!(decode::<ToHost>(&bytes[..cut.index(bytes.len())]).is_err());
    }

    #[test]
    fn a_longer_message_is_no_message(message in to_vm(), tail in vec(any::<u8>(), 1..9)) {
        let mut bytes = encode(&message).unwrap();
        bytes.extend(tail);
        prop_assert!(decode::<ToVm>(&bytes).is_err());
    }
}

#[test]
fn oversized_lists_are_refused_on_both_sides() {
    let offer = ToHost::Offer {
        pages: vec![(Gfn(0), Key(0)); OFFER_PAGES_MAX + 1],
    };
    assert!(matches!(encode(&offer), Err(Error::Bound(_))));
    let bytes = postcard::to_extend(&offer, vec![VERSION]).unwrap();
    assert!(matches!(decode::<ToHost>(&bytes), Err(Error::Bound(_))));

    let content = ToHost::Content {
        pages: vec![(Gfn(0), ByteBuf::from(vec![0; PAGE_SIZE - 1]))],
    };
    let bytes = postcard::to_extend(&content, vec![VERSION]).unwrap();
    assert!(matches!(decode::<ToHost>(&bytes), Err(Error::Bound(_))));
}

#[test]
fn oversized_datagrams_and_other_versions_are_refused() {
    let long = vec![VERSION; MESSAGE_BYTES_MAX + 1];
    assert_eq!(
        decode::<ToHost>(&long),
        Err(Error::Oversized { bytes: long.len() })
    );
    assert_eq!(
        decode::<ToHost>(&[VERSION + 1, 0]),
        Err(Error::Version { found: VERSION + 1 })
    );
    assert_eq!(decode::<ToVm>(&[]), Err(Error::Malformed));
}
