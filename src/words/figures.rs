//! What a VM process measures, in the parts in which it travels.
//!
//! [`Counters`] and [`Gauges`] go as they are from the pager through a [`super::Report`] into the
//! host manager's figures, and are printed as JSON by the names that stand here. A new figure is one
//! field of one of them, with its bound in `within` and its row in the README.

use serde::{Deserialize, Serialize};

use crate::units::Pages;

/// Counters end here, so that sums over all VMs of a host stay far from overflow.
const COUNTER_MAX: u64 = u64::MAX >> 16;

/// `counter`, or the most that a counter of a VM can be.
pub(super) fn bounded(counter: u64) -> u64 {
    counter.min(COUNTER_MAX)
}

/// Counters of one VM, from its start; the names of the JSON contract.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Pages read or decompressed back, on touch or need.
    pub swap_in_pages: u64,
    /// Pages written to the swap file or compressed.
    pub swap_out_pages: u64,
    /// Shared pages that the guest wrote.
    pub cow_breaks: u64,
    /// Pages that stayed in memory because the swap file failed or was full.
    pub swap_errors: u64,
    /// Page faults that were served with zeroes, for a run of pages each.
    pub zero_fills: u64,
    /// Page faults that waited for credit.
    pub credit_waits: u64,
    /// Pages that were found equal to a frame and mapped to it.
    pub merged_pages: u64,
    /// Pages that the kernel would not let go of when they were to be taken out.
    pub take_refusals: u64,
    /// First touches that got a large page.
    pub large_fills: u64,
    /// Large pages that the kernel would not split when a part was to be dropped.
    pub split_refusals: u64,
    /// Pages that were dropped because the guest, when asked, called them free.
    pub hinted_pages: u64,
}

impl Counters {
    /// The same counters, none beyond what a counter can be.
    #[must_use]
    pub fn within(self) -> Counters {
        // Without `..`: a new counter must be given its bound here.
        let Counters {
            swap_in_pages,
            swap_out_pages,
            cow_breaks,
            swap_errors,
            zero_fills,
            credit_waits,
            merged_pages,
            take_refusals,
            large_fills,
            split_refusals,
            hinted_pages,
        } = self;
        Counters {
            swap_in_pages: bounded(swap_in_pages),
            swap_out_pages: bounded(swap_out_pages),
            cow_breaks: bounded(cow_breaks),
            swap_errors: bounded(swap_errors),
            zero_fills: bounded(zero_fills),
            credit_waits: bounded(credit_waits),
            merged_pages: bounded(merged_pages),
            take_refusals: bounded(take_refusals),
            large_fills: bounded(large_fills),
            split_refusals: bounded(split_refusals),
            hinted_pages: bounded(hinted_pages),
        }
    }
}

/// How much of the guest's memory is not small pages of its own: by what took it, and in large ones.
/// The encoded form is that of the JSON contract: bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gauges {
    /// Found to be all zero and discarded, and still unbacked.
    #[serde(rename = "zero_bytes", with = "in_bytes")]
    pub zero: Pages,
    /// Held by the balloon.
    #[serde(rename = "ballooned_bytes", with = "in_bytes")]
    pub ballooned: Pages,
    /// In the compressed store.
    #[serde(rename = "compressed_bytes", with = "in_bytes")]
    pub compressed: Pages,
    /// In the swap file.
    #[serde(rename = "swapped_bytes", with = "in_bytes")]
    pub swapped: Pages,
    /// In large pages of 2 MiB.
    #[serde(rename = "large_bytes", with = "in_bytes")]
    pub large: Pages,
}

impl Gauges {
    /// Compressed and in the swap file.
    pub fn taken_out(&self) -> Pages {
        self.compressed + self.swapped
    }

    /// The same with figures that a VM of `size` can have: no page is compressed and swapped.
    #[must_use]
    pub fn within(self, size: Pages) -> Gauges {
        // Without `..`: a new gauge must be given its bound here.
        let Gauges {
            zero,
            ballooned,
            compressed,
            swapped,
            large,
        } = self;
        let compressed = compressed.min(size);
        Gauges {
            zero: zero.min(size),
            ballooned: ballooned.min(size),
            compressed,
            swapped: swapped.min(size - compressed),
            large: large.min(size),
        }
    }
}

/// Memory that a VM holds out of its credit: all that backs its guest but its part of live frames.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// Anonymous pages that back the guest, those in flight included.
    pub private: Pages,
    /// Memory of the compressed store.
    pub compressed_store: Pages,
    /// Pages that map a frame of an earlier host manager: nobody else accounts for them.
    pub orphaned: Pages,
}

impl Holding {
    /// Private pages, and nothing else.
    pub fn private(private: Pages) -> Holding {
        Holding {
            private,
            ..Holding::default()
        }
    }

    /// All of it.
    pub fn total(&self) -> Pages {
        self.private + self.compressed_store + self.orphaned
    }

    /// The same holding with `most` in all: what is too much is cut off the private pages first,
    /// then off the store, then off the orphaned pages.
    #[must_use]
    pub fn at_most(self, most: Pages) -> Holding {
        let orphaned = self.orphaned.min(most);
        let compressed_store = self.compressed_store.min(most - orphaned);
        let private = self.private.min(most - orphaned - compressed_store);
        Holding {
            private,
            compressed_store,
            orphaned,
        }
    }

    /// The same holding as a VM of `size` can have it, `compressed` of whose pages are in its store.
    ///
    /// A guest page is private, orphaned or compressed, never two of them, and a compressed page
    /// takes less than a page of the store: so the total is at most the size, and what is too much
    /// is cut off the store first.
    #[must_use]
    pub fn within(self, size: Pages, compressed: Pages) -> Holding {
        let private = self.private.min(size);
        let orphaned = self.orphaned.min(size - private);
        let store_max = (size - private - orphaned).min(compressed);
        Holding {
            private,
            orphaned,
            compressed_store: self.compressed_store.min(store_max),
        }
    }
}

/// Pages that are written in bytes.
mod in_bytes {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::units::Pages;

    pub fn serialize<S: Serializer>(pages: &Pages, serializer: S) -> Result<S::Ok, S::Error> {
        pages.bytes().serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Pages, D::Error> {
        u64::deserialize(deserializer).map(Pages::in_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gauges_are_written_in_bytes() {
        let gauges = Gauges {
            swapped: Pages(3),
            ..Gauges::default()
        };
        let text = serde_json::to_string(&gauges).unwrap();
        assert!(text.contains("\"swapped_bytes\":12288"), "{text}");
        let back: Gauges = serde_json::from_str(&text).unwrap();
        assert_eq!(back, gauges);
    }

    #[test]
    fn a_holding_is_cut_where_others_may_have_the_memory() {
        let holding = Holding {
            private: Pages(10),
            compressed_store: Pages(3),
            orphaned: Pages(2),
        };
        for most in 0..20 {
            let cut = holding.at_most(Pages(most));
            assert_eq!(cut.total(), Pages(most.min(15)), "{most}");
            assert!(
                cut.private == Pages::ZERO || cut.orphaned == Pages(2),
                "{most}"
            );
        }
    }
}
