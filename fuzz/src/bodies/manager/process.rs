//! What VM processes say.

use serde_bytes::ByteBuf;
use tidemark::link::message::ToHost;
use tidemark::page::key::key_of;
use tidemark::policy::types::VmId;
use tidemark::units::{Gfn, PAGE_SIZE, Pages};
use tidemark::words::{Exit, ExitReason, GuestMemoryStats, Holding, Report, Token};

use super::super::input::Input;
use super::super::messages;
use super::World;

/// Different contents that pages have.
const CONTENTS: u32 = 5;

impl World {
    /// A VM joins again, or somebody tries to.
    pub(super) fn rejoin(&mut self, input: &mut Input<'_>) {
        let Some(id) = self.any(input) else {
            return;
        };
        let kind = input.u8();
        let held = Pages(input.number(4096));
        let resident = has(input);
        let vm = &self.vms[&id];
        let token = match vm.way {
            Some(way) if kind & 7 > 0 => way.token,
            _ => Token::of([u64::MAX, 0]),
        };
        let other = self.vms.values().find_map(|vm| vm.pool.as_ref());
        let handed = match kind >> 3 & 7 {
            0 => None,
            1 => other,
            _ => vm.pool.as_ref(),
        };
        if self
            .manager
            .rejoin(id, token, [held, resident], handed)
            .is_ok()
        {
            self.vms.get_mut(&id).expect("found above").has_link = true;
        }
    }

    /// What a VM process says that keeps to the protocol, but for its lies about what it has.
    pub(super) fn proper_message(&mut self, input: &mut Input<'_>) -> bool {
        let Some(id) = self.any(input) else {
            return true;
        };
        let credit = self.manager.ledger().credit(id);
        let size = self.manager.size(id).unwrap_or_default();
        let vm = self.vms.get_mut(&id).expect("it is one of them");
        let message = match input.below(16) {
            _ if vm.claims => {
                vm.claims = input.bool();
                match vm.claims {
                    true => ToHost::Claim {
                        frames: std::mem::take(&mut vm.frames),
                    },
                    false => ToHost::Claimed,
                }
            }
            0..=2 => ToHost::CreditRequest {
                pages: Pages(input.number(size.0)),
            },
            3 => ToHost::CreditReturn {
                pages: Pages(u64::from(input.u16()) % (credit.0 + 1)),
            },
            4..=6 => {
                let report = report(input, credit);
                self.tell(id, ToHost::Report(Box::new(report)));
                return false;
            }
            7..=10 => {
                let pages = 1 + u32::from(input.below(16));
                let first = u32::from(input.u8());
                let offer = |gfn| (Gfn(gfn), key_of(&content(Gfn(gfn)), vm.seed));
                ToHost::Offer {
                    pages: (first..first + pages).map(offer).collect(),
                }
            }
            11..=13 => {
                let lies = input.u8() == 0;
                let most = vm.wants.len().min(16);
                let pages = vm.wants.drain(..most).map(|gfn| match lies {
                    true => (gfn, ByteBuf::from([0xff; PAGE_SIZE])),
                    false => (gfn, ByteBuf::from(content(gfn))),
                });
                ToHost::Content {
                    pages: pages.collect(),
                }
            }
            14 => {
                let most = usize::from(input.u8()).min(vm.frames.len());
                ToHost::Release {
                    frames: vm.frames.drain(..most).collect(),
                }
            }
            _ => match input.u8() {
                0 => ToHost::Exited(Exit::plain(ExitReason::Shutdown)),
                _ => ToHost::CreditRequest { pages: Pages(64) },
            },
        };
        self.tell(id, message);
        true
    }

    /// A message over a VM's link. Who breaks the protocol loses the link, and the process ends later.
    pub(super) fn tell(&mut self, id: VmId, message: ToHost) {
        if !self.vms[&id].has_link {
            return;
        }
        if self.manager.message(id, message, self.now).is_err() {
            self.manager.detach(id);
            self.vms.get_mut(&id).expect("found above").has_link = false;
            self.condemned.push(id);
        }
    }
}

/// What a process has. The kernel says so: at most what its address space holds.
pub(super) fn has(input: &mut Input<'_>) -> Pages {
    Pages(input.number(4096).min(1 << 35))
}

/// Content of a page, in every VM the same.
fn content(gfn: Gfn) -> [u8; PAGE_SIZE] {
    let kind = u8::try_from(gfn.0 % CONTENTS).expect("a few contents");
    [kind + 1; PAGE_SIZE]
}

fn report(input: &mut Input<'_>, credit: Pages) -> Report {
    if input.u8() < 32 {
        return messages::report(input);
    }
    let part = u64::from(input.u8());
    let mut report = Report {
        holding: Holding::private(Pages(credit.0 * part / 255)),
        overhead: Pages(512),
        ..Report::default()
    };
    let measured = &mut report.measured;
    measured.balloon_driver = input.bool();
    measured.gauges.ballooned = Pages(input.u8().into());
    measured.gauges.swapped = Pages(input.u8().into());
    measured.swap_full = input.u8() == 0;
    measured.active = input.bool().then(|| Pages(input.u16().into()));
    if input.bool() {
        measured.guest_memory = GuestMemoryStats {
            free_bytes: Some(input.u32().into()),
            total_bytes: Some(input.u32().into()),
            available_bytes: Some(input.u32().into()),
            ..GuestMemoryStats::default()
        };
    }
    report
}
