//! What the guest's balloon says, to the pager.

use std::sync::Arc;

use super::failure::Failure;
use crate::devices::sink::BalloonSink;
use crate::mem::{self, Pager};
use crate::units::{Gfn, GfnRange};

/// The pager as the balloon sees it: a failure stops the VM instead of the device.
#[derive(Debug)]
pub(super) struct PagerSink {
    pub pager: Arc<Pager>,
    pub failure: Arc<Failure>,
}

impl PagerSink {
    fn check(&self, result: Result<(), mem::Error>) {
        if let Err(error) = result {
            self.failure.set(&error);
        }
    }
}

impl BalloonSink for PagerSink {
    fn inflate(&self, gfns: &[Gfn]) {
        self.check(self.pager.inflate(gfns));
    }

    fn deflate(&self, gfns: &[Gfn]) {
        self.pager.deflate(gfns);
    }

    fn report_free(&self, range: GfnRange) {
        self.check(self.pager.report_free(range));
    }
}
