//! What the threads of a VM process may ask of the kernel: system calls with what must hold of their
//! arguments, by need.
//!
//! What no list has ends the process. A few calls that libraries try, and do without, fail instead
//! ([`REFUSED`]): so does every attempt to open a file. A panic in any thread can still be
//! printed, and end the process.

use super::Need;
use super::bpf::{Condition, Rule, Rules};
use crate::sys::{kvm, pagemap, uffd};

/// A system call that may be made where all conditions hold.
struct Call {
    number: libc::c_long,
    conditions: Vec<Condition>,
}

fn call(number: libc::c_long) -> Call {
    when(number, &[])
}

fn when(number: libc::c_long, conditions: &[Condition]) -> Call {
    let conditions = conditions.to_vec();
    Call { number, conditions }
}

/// Argument number `argument` is `value`, of which it has no more than 32 bits.
fn is(argument: u8, value: i32) -> Condition {
    under(argument, u32::MAX, value.cast_unsigned())
}

/// None of these bits is set in the argument.
fn without(argument: u8, bits: i32) -> Condition {
    under(argument, bits.cast_unsigned(), 0)
}

fn under(argument: u8, mask: u32, value: u32) -> Condition {
    Condition {
        argument,
        mask,
        value,
    }
}

fn ioctl(request: u64) -> Call {
    // The kernel takes 32 bits of it, whatever the C library's type.
    let request = u32::try_from(request).expect("a request has 32 bits");
    when(libc::SYS_ioctl, &[under(1, u32::MAX, request)])
}

/// Every thread: memory of its own that is neither shared nor run, locks, time, signals to this
/// process, writing to what is open, and the end.
fn common() -> Vec<Call> {
    const PLAIN: &[libc::c_long] = &[
        libc::SYS_futex,
        libc::SYS_sched_yield,
        libc::SYS_getcpu,
        libc::SYS_brk,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_getrandom,
        libc::SYS_getpid,
        libc::SYS_gettid,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
        libc::SYS_restart_syscall,
        libc::SYS_clock_gettime,
        libc::SYS_clock_nanosleep,
        libc::SYS_nanosleep,
        libc::SYS_gettimeofday,
        libc::SYS_time,
        libc::SYS_write,
        libc::SYS_writev,
        libc::SYS_poll,
        libc::SYS_ppoll,
        libc::SYS_close,
        libc::SYS_exit,
        libc::SYS_exit_group,
    ];
    let own = std::process::id().cast_signed();
    let mut calls: Vec<Call> = PLAIN.iter().copied().map(call).collect();
    calls.extend([
        when(
            libc::SYS_mmap,
            &[
                without(2, libc::PROT_EXEC),
                under(3, MAP_TYPE, libc::MAP_PRIVATE.cast_unsigned()),
            ],
        ),
        // What the C library keeps random numbers in, from its version 2.41 on.
        when(
            libc::SYS_mmap,
            &[
                without(2, libc::PROT_EXEC),
                under(3, MAP_TYPE, MAP_DROPPABLE),
            ],
        ),
        when(libc::SYS_mprotect, &[without(2, libc::PROT_EXEC)]),
        // A signal of this process for this process: a vCPU's kick, abort(3).
        when(libc::SYS_tgkill, &[is(0, own)]),
        // A debug build looks whether a descriptor is open before it closes it.
        when(libc::SYS_fcntl, &[is(1, libc::F_GETFD)]),
        // A signal's handler writes to a socket of ours. No address: what is connected.
        when(libc::SYS_sendto, &[is(4, 0)]),
        // Whoever panics puts the terminal's modes back.
        when(libc::SYS_ioctl, &[is(0, 0), under(1, u32::MAX, TCSETS)]),
        when(libc::SYS_ioctl, &[is(0, 0), under(1, u32::MAX, TCSETS2)]),
    ]);
    // The C library's allocator, too.
    let advice = [
        libc::MADV_DONTNEED,
        libc::MADV_FREE,
        libc::MADV_HUGEPAGE,
        libc::MADV_NOHUGEPAGE,
    ];
    calls.extend(advice.map(|advice| when(libc::SYS_madvise, &[is(2, advice)])));
    calls
}

/// The part of mmap(2)'s flags that says private or shared, and a third value: private memory that the
/// kernel may drop (Linux 6.11).
const MAP_TYPE: u32 = 0x0f;
const MAP_DROPPABLE: u32 = 0x08;
/// Of `include/uapi/asm-generic/mman-common.h` (Linux 6.13): a guard page below a thread's stack.
const MADV_GUARD_INSTALL: i32 = 102;
/// Terminal modes, of `include/uapi/asm-generic/ioctls.h` and as tcsetattr(3) asks for them.
const TCSETS: u32 = 0x5402;
const TCSETS2: u32 = 0x402c_542b;

/// What each need adds.
fn of(need: Need) -> Vec<Call> {
    let plain = |calls: &[libc::c_long]| calls.iter().copied().map(call).collect::<Vec<_>>();
    match need {
        Need::Image => plain(&[libc::SYS_pread64]),
        Need::Build => {
            let mut calls = plain(&[libc::SYS_eventfd2]);
            calls.extend([
                // Any request of KVM's.
                when(libc::SYS_ioctl, &[under(1, 0xff00, kvm::REQUEST_TYPE << 8)]),
                // A vCPU's state is shared with the kernel.
                when(libc::SYS_mmap, &[without(2, libc::PROT_EXEC)]),
            ]);
            calls
        }
        Need::Spawn => {
            let mut calls = plain(&[
                libc::SYS_set_robust_list,
                libc::SYS_rseq,
                libc::SYS_sched_getaffinity,
                // The new thread's own confinement, which only ever takes away.
                libc::SYS_seccomp,
                libc::SYS_capset,
                libc::SYS_landlock_create_ruleset,
                libc::SYS_landlock_restrict_self,
            ]);
            calls.push(when(libc::SYS_madvise, &[is(2, MADV_GUARD_INSTALL)]));
            let thread = libc::CLONE_THREAD.cast_unsigned();
            calls.push(when(libc::SYS_clone, &[under(0, thread, thread)]));
            let own = [
                libc::PR_SET_NAME,
                libc::PR_SET_NO_NEW_PRIVS,
                libc::PR_CAPBSET_READ,
                libc::PR_CAPBSET_DROP,
            ];
            calls.extend(own.map(|what| when(libc::SYS_prctl, &[is(0, what)])));
            calls
        }
        Need::Memory => {
            let mut calls = plain(&[
                libc::SYS_read,
                libc::SYS_pread64,
                libc::SYS_epoll_wait,
                libc::SYS_epoll_pwait,
                libc::SYS_epoll_pwait2,
            ]);
            calls.extend(uffd::REQUESTS.map(ioctl));
            calls.push(ioctl(pagemap::PAGEMAP_SCAN));
            let advice = [
                libc::MADV_COLD,
                libc::MADV_POPULATE_READ,
                libc::MADV_POPULATE_WRITE,
                libc::MADV_COLLAPSE,
            ];
            calls.extend(advice.map(|advice| when(libc::SYS_madvise, &[is(2, advice)])));
            calls
        }
        Need::Swap => plain(&[libc::SYS_pread64, libc::SYS_preadv, libc::SYS_pwritev]),
        Need::Disk => plain(&[
            libc::SYS_pread64,
            libc::SYS_pwrite64,
            libc::SYS_fdatasync,
            libc::SYS_fallocate,
        ]),
        Need::Vcpu => kvm::VCPU_REQUESTS.map(ioctl).into(),
        Need::Keys => plain(&[libc::SYS_read]),
        Need::Link => plain(&[
            libc::SYS_read,
            libc::SYS_recvfrom,
            libc::SYS_recvmsg,
            libc::SYS_sendmsg,
            libc::SYS_getsockopt,
            libc::SYS_setsockopt,
            libc::SYS_shutdown,
        ]),
        Need::Door => plain(&[libc::SYS_accept4]),
        Need::Alarms => plain(&[
            libc::SYS_timer_create,
            libc::SYS_timer_settime,
            libc::SYS_timer_delete,
        ]),
    }
}

/// Calls that fail where no list allows them. The allocator looks at a setting of the kernel's before
/// it gives much memory back, counts CPUs before it makes another arena, and may name its memory; the C
/// library tries clone3 and goes on with clone; a panic's backtrace looks for the program's file.
const REFUSED: &[(libc::c_long, i32)] = &[
    (libc::SYS_open, libc::EPERM),
    (libc::SYS_openat, libc::EPERM),
    (libc::SYS_access, libc::EPERM),
    (libc::SYS_stat, libc::EPERM),
    (libc::SYS_newfstatat, libc::EPERM),
    (libc::SYS_statx, libc::EPERM),
    (libc::SYS_readlink, libc::EPERM),
    (libc::SYS_getcwd, libc::EPERM),
    (libc::SYS_sched_getaffinity, libc::EPERM),
    (libc::SYS_prctl, libc::EPERM),
    (libc::SYS_clone3, libc::ENOSYS),
];

/// The rules of a thread that has these needs.
pub(super) fn rules(needs: &[Need]) -> Rules {
    let mut rules = Rules::new();
    let number = |number: libc::c_long| u32::try_from(number).expect("numbers are small");
    let needed = needs.iter().flat_map(|need| of(*need));
    for call in common().into_iter().chain(needed) {
        let rule = rules
            .entry(number(call.number))
            .or_insert_with(|| Rule::When(Vec::new()));
        match rule {
            Rule::When(any) if !call.conditions.is_empty() => any.push(call.conditions),
            _ => *rule = Rule::Allow,
        }
    }
    for (refused, errno) in REFUSED {
        let errno = u16::try_from(*errno).expect("errors are small");
        rules.entry(number(*refused)).or_insert(Rule::Refuse(errno));
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::super::TABLE;
    use super::*;

    /// Whether a thread of these needs may make the call with these arguments.
    fn allowed(rules: &Rules, number: libc::c_long, arguments: [u32; 6]) -> bool {
        let holds = |condition: &Condition| {
            arguments[usize::from(condition.argument)] & condition.mask == condition.value
        };
        match rules.get(&u32::try_from(number).unwrap()) {
            Some(Rule::Allow) => true,
            Some(Rule::When(any)) => any.iter().any(|all| all.iter().all(holds)),
            Some(Rule::Refuse(_)) | None => false,
        }
    }

    #[test]
    fn nobody_makes_memory_that_can_be_run_and_nobody_who_runs_a_guest_shares_any() {
        let flags = [
            libc::MAP_PRIVATE,
            libc::MAP_SHARED,
            libc::MAP_SHARED_VALIDATE,
        ];
        for row in TABLE {
            let rules = rules(row.needs);
            for protection in 0..8u32 {
                let runs = protection & libc::PROT_EXEC.cast_unsigned() != 0;
                for flag in flags {
                    let flag = flag.cast_unsigned() | libc::MAP_FIXED.cast_unsigned();
                    let mapped = allowed(&rules, libc::SYS_mmap, [0, 0, protection, flag, 0, 0]);
                    let private = flag & MAP_TYPE == libc::MAP_PRIVATE.cast_unsigned();
                    let builds = row.needs.contains(&Need::Build);
                    assert_eq!(mapped, !runs && (private || builds), "{}", row.name);
                }
                let changed = allowed(&rules, libc::SYS_mprotect, [0, 0, protection, 0, 0, 0]);
                assert_eq!(changed, !runs, "{}", row.name);
            }
        }
    }

    #[test]
    fn nobody_types_on_a_terminal_or_signals_another_process() {
        let own = std::process::id();
        let tiocsti = u32::try_from(libc::TIOCSTI).unwrap();
        for row in TABLE {
            let rules = rules(row.needs);
            for fd in 0..9 {
                let ioctl = |request| allowed(&rules, libc::SYS_ioctl, [fd, request, 0, 0, 0, 0]);
                assert!(!ioctl(tiocsti), "{}", row.name);
                assert_eq!(ioctl(TCSETS), fd == 0, "{}", row.name);
            }
            let signal = |process| allowed(&rules, libc::SYS_tgkill, [process, 1, 6, 0, 0, 0]);
            assert!(
                signal(own) && !signal(own + 1) && !signal(1),
                "{}",
                row.name
            );
            let fork = allowed(&rules, libc::SYS_clone, [libc::SIGCHLD.cast_unsigned(); 6]);
            assert!(!fork, "{}", row.name);
        }
    }
}
