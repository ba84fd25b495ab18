//! The balloon behind its registers, driven by virtio-queue's mock driver: no KVM.

mod driver;
mod good;
mod malformed;
