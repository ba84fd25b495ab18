//! What a guest learns about its CPU: what KVM supports, with this vCPU's identity and a topology of
//! one socket with as many cores as there are vCPUs.
//!
//! Taken away: nested virtualisation, performance counters and power management, which nobody
//! serves here; the host's topology, which is not the guest's.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Leaf 1, ecx: performance capabilities, VMX, TSC-deadline timer, under a hypervisor.
const PDCM: u32 = 1 << 15;
const VMX: u32 = 1 << 5;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, edx: more than one logical processor.
const MULTI_THREADING: u32 = 1 << 28;
/// Leaf 0x80000001, ecx: legacy multi-core, SVM, topology extensions, performance counters.
const LEGACY_MULTI_CORE: u32 = 1 << 1;
const SVM: u32 = 1 << 2;
const TOPOLOGY_EXTENSIONS: u32 = 1 << 22;
const EXTENDED_COUNTERS: u32 = 0b11 << 23 | 1 << 28;
/// Leaf 4, eax: cores of the package, processors that share the cache.
const CACHE_TOPOLOGY: u32 = 0xffff_c000;

/// Whether the vCPU has an interrupt controller in KVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeadlineTimer {
    /// KVM offers no such timer, or nobody could take its interrupt.
    Absent,
    /// The timer is there; KVM does not list it among the supported features.
    Present,
}

/// Adapts KVM's supported leaves to the vCPU `apic_id` of `cpus`.
pub fn adapt(supported: &CpuId, apic_id: u8, cpus: u8, timer: DeadlineTimer) -> CpuId {
    let id = u32::from(apic_id);
    let last = u32::from(cpus.saturating_sub(1));
    let mut entries: Vec<kvm_cpuid_entry2> = supported
        .as_slice()
        .iter()
        .copied()
        .filter(|entry| !matches!(entry.function, 0xb | 0x1f))
        .collect();
    for entry in &mut entries {
        match entry.function {
            1 => {
                entry.ecx = entry.ecx & !(VMX | PDCM) | HYPERVISOR;
                if timer == DeadlineTimer::Present {
                    entry.ecx |= TSC_DEADLINE;
                }
                // Initial APIC id, number of logical processors; the rest stays.
                entry.ebx = entry.ebx & 0xffff | u32::from(cpus) << 16 | id << 24;
                set(&mut entry.edx, MULTI_THREADING, cpus > 1);
            }
            // Each core has its caches to itself.
            4 if entry.eax & 0x1f != 0 => entry.eax = entry.eax & !CACHE_TOPOLOGY | last << 26,
            // Power management, performance counters.
            6 | 0xa => {
                (entry.eax, entry.ebx) = (0, 0);
                (entry.ecx, entry.edx) = (0, 0);
            }
            0x8000_0001 => {
                entry.ecx &= !(SVM | TOPOLOGY_EXTENSIONS | EXTENDED_COUNTERS);
                set(&mut entry.ecx, LEGACY_MULTI_CORE, cpus > 1);
            }
            // Number of cores; the width of the core's part of the APIC id follows from it.
            0x8000_0008 => entry.ecx = last,
            0x8000_000a | 0x8000_001e => {
                (entry.eax, entry.ebx) = (0, 0);
                (entry.ecx, entry.edx) = (0, 0);
            }
            _ => {}
        }
    }
    let basic = entries.iter().find(|entry| entry.function == 0);
    if basic.is_some_and(|entry| entry.eax >= 0xb) {
        entries.extend(extended_topology(id, cpus));
    }
    CpuId::from_entries(&entries).unwrap_or_else(|_| supported.clone())
}

/// Leaf 0xb: one thread a core, all cores in one package, the x2APIC id.
fn extended_topology(id: u32, cpus: u8) -> [kvm_cpuid_entry2; 2] {
    const LEVEL_THREAD: u32 = 1 << 8;
    const LEVEL_CORE: u32 = 2 << 8;
    let level = |index, shift, count, kind| kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: kind | index,
        edx: id,
        ..Default::default()
    };
    let width = u32::from(cpus).next_power_of_two().trailing_zeros();
    [
        level(0, 0, 1, LEVEL_THREAD),
        level(1, width, cpus.into(), LEVEL_CORE),
    ]
}

fn set(word: &mut u32, bit: u32, on: bool) {
    *word = if on { *word | bit } else { *word & !bit };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            eax: if function == 0 { 0xd } else { 0 },
            ebx: 0xaabb_1234,
            ecx: if function == 1 { VMX } else { u32::MAX },
            ..Default::default()
        }
    }

    #[test]
    fn each_vcpu_has_its_own_identity() {
        let leaves = [leaf(0), leaf(1), leaf(0xb), leaf(0x8000_0001)];
        let supported = CpuId::from_entries(&leaves).unwrap();
        let adapted = adapt(&supported, 3, 4, DeadlineTimer::Present);
        let adapted = adapted.as_slice();
        assert_eq!(adapted[0].ebx, 0xaabb_1234);
        assert_eq!(adapted[1].ebx, 0x0304_1234);
        assert_eq!(adapted[1].ecx, HYPERVISOR | TSC_DEADLINE);
        assert_eq!(adapted[1].edx, MULTI_THREADING);
        assert_eq!(adapted[2].ecx & (SVM | TOPOLOGY_EXTENSIONS), 0);
        let topology = &adapted[3..];
        assert_eq!(topology.len(), 2);
        assert!(topology.iter().all(|entry| entry.edx == 3));
        assert_eq!((topology[1].eax, topology[1].ebx), (2, 4));
    }

    #[test]
    fn a_single_vcpu_has_no_siblings() {
        let supported = CpuId::from_entries(&[leaf(1)]).unwrap();
        let adapted = adapt(&supported, 0, 1, DeadlineTimer::Absent);
        let adapted = adapted.as_slice();
        assert_eq!((adapted.len(), adapted[0].edx), (1, 0));
        assert_eq!(adapted[0].ecx, HYPERVISOR);
    }
}
