//! The balloon behind its registers, driven by virtio-queue's mock driver: no KVM.
#![expect(clippy::cast_possible_truncation, reason = "test figures are small")]

mod driver;
mod good;
mod hints;
mod malformed;
