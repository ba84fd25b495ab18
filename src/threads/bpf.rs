//! Lists of system calls as a program that the kernel runs before each call.
//!
//! The program searches the call's number in a binary tree: the kernel runs a new program once for
//! every number there is, to know which calls need not be looked at again, and with a list that is
//! gone through one by one that took most of the time of starting a thread. What is not in the
//! list ends the process, which leaves a line with the call's number in the kernel's log.
//!
//! Source: `Documentation/userspace-api/seccomp_filter.rst`, `include/uapi/linux/bpf_common.h`.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, sock_filter};

/// What must hold of an argument: its lower 32 bits under `mask` are `value`. The kernel reads no
/// more of the arguments that are looked at here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Condition {
    /// Its place, 0 to 5.
    pub argument: u8,
    pub mask: u32,
    pub value: u32,
}

/// What becomes of a system call in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Rule {
    /// It is made.
    Allow,
    /// It is made where all conditions of one of these hold; else it ends the process.
    When(Vec<Vec<Condition>>),
    /// It fails with this error.
    Refuse(u16),
}

/// What becomes of each system call.
pub(super) type Rules = BTreeMap<u32, Rule>;

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_NOT_BELOW: u16 = 0x35;
const RETURN: u16 = 0x06;

/// Places in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// `AUDIT_ARCH_X86_64` of `include/uapi/linux/audit.h`. Calls of the x32 kind have it as well, and
/// numbers above [`X32`].
const X86_64: u32 = 0xc000_003e;
/// Bit 30 of a number: no call of any list has it.
const X32: u32 = 1 << 30;

fn statement(code: u16, k: u32) -> sock_filter {
    let (jt, jf) = (0, 0);
    sock_filter { code, jt, jf, k }
}

/// Goes on behind so many instructions where the comparison holds, or does not.
fn branch(code: u16, k: u32, holds: u8, else_: u8) -> sock_filter {
    let (jt, jf) = (holds, else_);
    sock_filter { code, jt, jf, k }
}

fn end() -> sock_filter {
    statement(RETURN, libc::SECCOMP_RET_KILL_PROCESS)
}

/// The program of these rules.
///
/// # Panics
/// When there are none, or one is of an x32 call.
pub(super) fn compile(rules: &Rules) -> BpfProgram {
    let rules: Vec<(u32, &Rule)> = rules.iter().map(|(number, rule)| (*number, rule)).collect();
    assert!(rules.iter().all(|(number, _)| *number < X32), "{rules:?}");
    let mut program = vec![
        statement(LOAD, ARCHITECTURE),
        branch(JUMP_IF_EQUAL, X86_64, 1, 0),
        end(),
        statement(LOAD, NUMBER),
    ];
    program.extend(tree(&rules));
    program
}

fn tree(rules: &[(u32, &Rule)]) -> BpfProgram {
    if let [(number, rule)] = rules {
        let mut leaf = vec![branch(JUMP_IF_EQUAL, *number, 1, 0), end()];
        leaf.extend(body(rule));
        return leaf;
    }
    let (below, from) = rules.split_at(rules.len() / 2);
    let (first, _) = from.first().expect("a list has calls");
    let (below, from) = (tree(below), tree(from));
    // Only the jump of its own reaches as far as a program can be long.
    let far = u32::try_from(below.len()).expect("some hundred instructions");
    let mut program = vec![
        branch(JUMP_IF_NOT_BELOW, *first, 0, 1),
        statement(JUMP, far),
    ];
    program.extend(below.into_iter().chain(from));
    program
}

fn body(rule: &Rule) -> BpfProgram {
    let allow = statement(RETURN, libc::SECCOMP_RET_ALLOW);
    match rule {
        Rule::Allow => vec![allow],
        Rule::Refuse(errno) => {
            vec![statement(
                RETURN,
                libc::SECCOMP_RET_ERRNO | u32::from(*errno),
            )]
        }
        Rule::When(alternatives) => {
            let mut program = Vec::new();
            for conditions in alternatives {
                let mut left = conditions.len();
                for condition in conditions {
                    left -= 1;
                    let place = ARGUMENTS + 8 * u32::from(condition.argument);
                    // Over the other conditions and the answer to the next alternative.
                    let past = u8::try_from(3 * left + 1).expect("two or three conditions");
                    program.push(statement(LOAD, place));
                    program.push(statement(AND, condition.mask));
                    program.push(branch(JUMP_IF_EQUAL, condition.value, 0, past));
                }
                program.push(allow.clone());
            }
            program.push(end());
            program
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the kernel does with a program.
    fn run(program: &BpfProgram, data: [u32; 16]) -> (u32, usize) {
        let (mut at, mut value, mut steps) = (0, 0, 0);
        loop {
            let now = &program[at];
            (at, steps) = (at + 1, steps + 1);
            let mut go = |holds: bool| at += usize::from(if holds { now.jt } else { now.jf });
            match now.code {
                LOAD => value = data[now.k as usize / 4],
                AND => value &= now.k,
                JUMP => at += now.k as usize,
                JUMP_IF_EQUAL => go(value == now.k),
                JUMP_IF_NOT_BELOW => go(value >= now.k),
                RETURN => return (now.k, steps),
                code => panic!("{code:#x}"),
            }
        }
    }

    fn data(architecture: u32, number: u32, arguments: [u32; 6]) -> [u32; 16] {
        let mut data = [0; 16];
        (data[0], data[1]) = (number, architecture);
        for (place, argument) in arguments.into_iter().enumerate() {
            data[4 + 2 * place] = argument;
            // The upper half, which nobody reads.
            data[5 + 2 * place] = 0xdead;
        }
        data
    }

    /// The same in words.
    fn expected(rules: &Rules, number: u32, arguments: [u32; 6]) -> u32 {
        let holds = |condition: &Condition| {
            arguments[usize::from(condition.argument)] & condition.mask == condition.value
        };
        match rules.get(&number) {
            Some(Rule::Allow) => libc::SECCOMP_RET_ALLOW,
            Some(Rule::Refuse(errno)) => libc::SECCOMP_RET_ERRNO | u32::from(*errno),
            Some(Rule::When(any)) if any.iter().any(|all| all.iter().all(holds)) => {
                libc::SECCOMP_RET_ALLOW
            }
            _ => libc::SECCOMP_RET_KILL_PROCESS,
        }
    }

    fn condition() -> impl Strategy<Value = Condition> {
        (0..6u8, 0..4u32, 0..4u32).prop_map(|(argument, mask, value)| Condition {
            argument,
            mask,
            value,
        })
    }

    fn rule() -> impl Strategy<Value = Rule> {
        let conditions = prop::collection::vec(condition(), 1..4);
        prop_oneof![
            Just(Rule::Allow),
            (1..100u16).prop_map(Rule::Refuse),
            prop::collection::vec(conditions, 1..20).prop_map(Rule::When),
        ]
    }

    proptest! {
        #[test]
        fn a_program_does_what_its_rules_say(
            rules in prop::collection::btree_map(0..500u32, rule(), 1..80),
            arguments in prop::array::uniform6(0..4u32),
        ) {
            let program = compile(&rules);
            for number in 0..500 {
                let (answer, _) = run(&program, data(X86_64, number, arguments));
                prop_assert_eq!(answer, expected(&rules, number, arguments), "{}", number);
                // The same numbers as other calls.
                for other in [data(X86_64, number | X32, arguments), data(0x4000_0003, number, arguments)] {
                    prop_assert_eq!(run(&program, other).0, libc::SECCOMP_RET_KILL_PROCESS);
                }
            }
        }
    }

    #[test]
    fn a_number_is_found_in_few_steps() {
        let rules: Rules = (0..128).map(|number| (3 * number, Rule::Allow)).collect();
        let program = compile(&rules);
        for number in 0..500 {
            let (_, steps) = run(&program, data(X86_64, number, [0; 6]));
            assert!(steps <= 3 + 2 * 7 + 3, "{number}: {steps}");
        }
    }
}
