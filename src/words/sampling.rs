//! How a VM's working set is sampled.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How a VM estimates its working set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sampling {
    /// Pages of a sample; zero: no sampling.
    pub pages: u32,
    /// Length of a period in the VM's free time.
    pub period: Duration,
}
