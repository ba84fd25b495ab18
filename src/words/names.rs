//! Names of VMs and share groups.

/// What a name may be, for messages.
pub const NAME_FORMS: &str = "1 to 64 of A-Z a-z 0-9 . _ -";

/// What `tidemark set` and the figures call the host: no VM has this name.
pub const HOST: &str = "host";

/// What a VM's name may be, for messages.
pub const VM_NAME_FORMS: &str = "1 to 64 of A-Z a-z 0-9 . _ -, and not `host`";

/// Whether a text may be the name of a VM.
pub fn is_vm_name(text: &str) -> bool {
    is_name(text) && text != HOST
}

/// Whether a text may stand as a name in paths, log prefixes and messages.
pub fn is_name(text: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=64).contains(&text.len()) && text.chars().all(good)
}
