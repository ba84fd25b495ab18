//! What a guest learns about its CPU: what KVM supports, with this vCPU's identity.

use kvm_bindings::CpuId;

/// Leaf 1, ecx: running under a hypervisor.
const HYPERVISOR: u32 = 1 << 31;

/// Adapts KVM's supported leaves to the vCPU `apic_id` of `cpus`.
pub fn adapt(supported: &CpuId, apic_id: u8, cpus: u8) -> CpuId {
    let mut cpuid = supported.clone();
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            1 => {
                entry.ecx |= HYPERVISOR;
                // Initial APIC id, number of logical processors; the rest stays.
                entry.ebx = entry.ebx & 0xffff | u32::from(cpus) << 16 | u32::from(apic_id) << 24;
            }
            // Extended topology: x2APIC id.
            0xb | 0x1f => entry.edx = u32::from(apic_id),
            _ => {}
        }
    }
    cpuid
}

#[cfg(test)]
mod tests {
    use kvm_bindings::kvm_cpuid_entry2;

    use super::*;

    #[test]
    fn each_vcpu_has_its_own_identity() {
        let leaf = |function| kvm_cpuid_entry2 {
            function,
            ebx: 0xaabb_1234,
            ..Default::default()
        };
        let supported = CpuId::from_entries(&[leaf(0), leaf(1), leaf(0xb)]).unwrap();
        let adapted = adapt(&supported, 3, 4);
        let adapted = adapted.as_slice();
        assert_eq!(adapted[0].ebx, 0xaabb_1234);
        assert_eq!(adapted[1].ebx, 0x0304_1234);
        assert_eq!(adapted[1].ecx, HYPERVISOR);
        assert_eq!(adapted[2].edx, 3);
    }
}
