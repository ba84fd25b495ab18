//! Every mistake with its line, and the way from a spec to flags and back.

use std::path::{Path, PathBuf};

use clap::Parser;
use proptest::prelude::*;

use super::*;
use crate::policy::PolicyKind;
use crate::policy::settings::MinFree;
use crate::units::Pages;
use crate::words::{Advice, Allocation, Management, Sharing};

const GUESTS: &[&str] = &["hello", "verify"];
const RESOURCES: Resources<'_> = Resources {
    available: Pages::mib(4096),
    guests: GUESTS,
};

/// A folder with files; what is in them does not matter here.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for name in ["vmlinux", "vmlinuz", "initrd.gz", "notes.txt"] {
        std::fs::write(folder.path().join(name), "x").expect("a writable folder");
    }
    folder
}

fn parse(text: &str) -> Result<FleetSpec, ConfigError> {
    let folder = folder();
    FleetSpec::parse(text, &folder.path().join("fleet.toml"), &RESOURCES)
}

/// The message, with the temporary folder cut out.
fn message(text: &str) -> String {
    let folder = folder();
    let error = FleetSpec::parse(text, &folder.path().join("fleet.toml"), &RESOURCES)
        .expect_err("this file has a mistake");
    let line = error.to_string();
    assert_eq!(line.lines().count(), 1, "{line}");
    line.replace(&format!("{}/", folder.path().display()), "")
}

#[test]
fn the_contract_file_is_understood() {
    let fleet = parse(
        r#"
        [host]
        memory = "512M"
        policy = "esx"
        idle_tax = 50
        min_free = "sliding"

        [[vm]]
        name = "web"
        count = 4
        memory = "256M"
        cpus = 1
        guest = "verify"
        cmdline = "fill=85"
        shares = "normal"
        reservation = "32M"
        limit = "256M"
        dynamic_min = "64M"
        dynamic_max = "256M"
        share_group = "demo"
        console = "web.log"

        [[vm]]
        name = "db"
        memory = 134217728
        kernel = "vmlinuz"
        initrd = "initrd.gz"
        cmdline = "console=ttyS0"
        shares = 7
        "#,
    )
    .expect("the file of the contract");
    assert_eq!(fleet.host.memory, Pages::mib(512));
    assert_eq!(fleet.host.policy, PolicyKind::Esx);
    assert_eq!(fleet.host.settings.idle_tax.percent(), 50);
    assert_eq!(fleet.host.settings.min_free, MinFree::Sliding);
    assert_eq!(fleet.host.swap_dir, Path::new("/var/tmp"));
    let names: Vec<_> = fleet.vms.iter().map(|vm| vm.name.as_str()).collect();
    assert_eq!(names, ["web-0", "web-1", "web-2", "web-3", "db"]);
    let web = &fleet.vms[1];
    assert_eq!(web.cmdline, "fill=85 seed=2");
    let allocation = &web.allocation;
    assert_eq!(
        (allocation.shares, allocation.reservation),
        (2560, Pages::mib(32))
    );
    assert!(
        web.console
            .as_ref()
            .is_some_and(|path| path.ends_with("web-1.log"))
    );
    let db = &fleet.vms[4];
    let expected = Allocation {
        shares: 7,
        ..Allocation::of(Pages::mib(128))
    };
    assert_eq!(db.allocation, expected);
    assert_eq!(db.cmdline, "console=ttyS0");
    assert_eq!(db.share_group, None);
    assert!(matches!(&db.boot, Boot::Kernel { kernel, initrd: Some(_) } if kernel.is_absolute()));
}

#[test]
fn auto_leaves_the_host_a_tenth_and_256_mib_at_least() {
    let host = |available| {
        let resources = Resources {
            available,
            guests: GUESTS,
        };
        HostArgs::default()
            .to_spec(None, &resources)
            .map(|host| host.memory)
    };
    assert_eq!(host(Pages::mib(10_000)).expect("enough"), Pages::mib(9000));
    assert_eq!(host(Pages::mib(1000)).expect("enough"), Pages::mib(744));
    let error = host(Pages::mib(100))
        .expect_err("nothing to spare")
        .to_string();
    assert_eq!(
        error,
        "command line: host: `memory = \"auto\"`: 0.0 MiB, must be 16M to 64T"
    );
}

#[test]
fn a_seed_of_the_user_stays_and_kernels_get_none() {
    let fleet = parse(
        "[host]\nmemory = \"512M\"\nseed = 40\n[[vm]]\nname = \"a\"\nguest = \"verify\"\ncmdline = \"seed=7\"\n\
         [[vm]]\nname = \"b\"\nguest = \"hello\"\n[[vm]]\nname = \"c\"\nkernel = \"vmlinux\"\n",
    )
    .expect("a good file");
    let lines: Vec<_> = fleet.vms.iter().map(|vm| vm.cmdline.as_str()).collect();
    assert_eq!(lines, ["seed=7", "seed=41", ""]);
}

#[test]
fn mistakes_in_a_vm() {
    // (lines of the [[vm]] table beside its name, message behind `fleet.toml: vm "web": `)
    let table = [
        (
            "guest = \"verify\"\nreservation = \"512M\"\nlimit = \"128M\"",
            "`reservation = \"512M\"`: must be at most `limit = \"128M\"`",
        ),
        (
            "guest = \"verify\"\nlimit = \"1G\"",
            "`limit = \"1G\"`: must be at most `memory` (256.0 MiB by default)",
        ),
        (
            "guest = \"verify\"\nlimit = 0",
            "`limit = 0`: must be a page at least; a VM without the key has no limit but its memory",
        ),
        (
            "guest = \"verify\"\ndynamic_min = \"128M\"\ndynamic_max = \"64M\"",
            "`dynamic_min = \"128M\"`: must be at most `dynamic_max = \"64M\"`",
        ),
        (
            "guest = \"verify\"\nmemory = \"64M\"\ndynamic_max = \"65M\"",
            "`dynamic_max = \"65M\"`: must be at most `memory = \"64M\"`",
        ),
        (
            "guest = \"verify\"\nmemory = \"lots\"",
            "`memory = \"lots\"`: not a valid size, e.g. 512M, 512MiB, 2G or a number of bytes",
        ),
        (
            "guest = \"verify\"\nmemory = -1",
            "`memory = -1`: not a valid size, e.g. 512M, 512MiB, 2G or a number of bytes",
        ),
        (
            "guest = \"verify\"\nmemory = 5000000",
            "`memory = 5000000`: must be whole 4 KiB pages, a multiple of 4096 bytes",
        ),
        (
            "guest = \"verify\"\nmemory = \"4K\"",
            "`memory = \"4K\"`: must be 1M to 512G",
        ),
        (
            "guest = \"verify\"\nmemory = \"2T\"",
            "`memory = \"2T\"`: must be 1M to 512G",
        ),
        (
            "guest = \"verify\"\ncpus = 0",
            "`cpus = 0`: must be 1 to 64",
        ),
        (
            "guest = \"verify\"\ncpus = 65",
            "`cpus = 65`: must be 1 to 64",
        ),
        (
            "guest = \"verify\"\nshares = \"huge\"",
            "`shares = \"huge\"`: must be high, normal, low or 0 to 1000000000",
        ),
        (
            "guest = \"nosuch\"",
            "`guest = \"nosuch\"`: must be one of hello, verify",
        ),
        (
            "",
            "nothing to boot: must have `guest`, one of hello, verify, or `kernel`, a file",
        ),
        (
            "guest = \"verify\"\nkernel = \"vmlinux\"",
            "`guest = \"verify\"`: there is a `kernel` too; a VM boots one of them",
        ),
        (
            "guest = \"verify\"\ninitrd = \"initrd.gz\"",
            "`initrd = \"initrd.gz\"`: a built-in guest takes none; only a `kernel` does",
        ),
        (
            "kernel = \"nosuch\"",
            "`kernel = \"nosuch\"`: nosuch: No such file or directory (os error 2)",
        ),
        (
            "kernel = \".\"",
            "`kernel = \".\"`: is a folder, must be a file",
        ),
        (
            "kernel = \"vmlinux\"\ninitrd = \"nosuch\"",
            "`initrd = \"nosuch\"`: nosuch: No such file or directory (os error 2)",
        ),
        (
            "kernel = \"vmlinux\"\ndisk = \"nosuch\"",
            "`disk = \"nosuch\"`: nosuch: No such file or directory (os error 2)",
        ),
        (
            "guest = \"verify\"\ndisk_read_only = true",
            "`disk_read_only = true`: there is no `disk` to which it could apply",
        ),
        (
            "guest = \"verify\"\nshare_group = \"a b\"",
            "`share_group = \"a b\"`: must be 1 to 64 of A-Z a-z 0-9 . _ -",
        ),
        (
            "guest = \"verify\"\nshare_group = \"g\"\nsharing = \"soft\"",
            "`sharing = \"soft\"`: must be one of plain, hardened",
        ),
        (
            "guest = \"verify\"\nsharing = \"hardened\"",
            "`sharing = \"hardened\"`: there is no `share_group` to which it could apply",
        ),
        (
            "guest = \"verify\"\ncmdline = \"a\\nb\"",
            "`cmdline = \"a\\nb\"`: must be one line of at most 2047 bytes, without NUL",
        ),
        (
            "guest = \"verify\"\ncount = 0",
            "`count = 0`: must be 1 to 10000 VMs in all",
        ),
    ];
    for (lines, expected) in table {
        let text = format!("[host]\nmemory = \"512M\"\n[[vm]]\nname = \"web\"\n{lines}\n");
        assert_eq!(
            message(&text),
            format!("fleet.toml: vm \"web\": {expected}"),
            "{lines}"
        );
    }
}

#[test]
fn mistakes_in_names_and_files_together() {
    let vm = |rest: &str| format!("[[vm]]\nguest = \"verify\"\n{rest}\n");
    let host = "[host]\nmemory = \"512M\"\n";
    let table = [
        (
            vm("name = \"a/b\""),
            "vm \"a/b\": `name = \"a/b\"`: must be 1 to 64 of A-Z a-z 0-9 . _ -, and not `host`",
        ),
        (
            vm("name = \"\""),
            "vm \"\": `name = \"\"`: must be 1 to 64 of A-Z a-z 0-9 . _ -, and not `host`",
        ),
        (
            vm("name = \"a\"\nshare_group = \"g\"\nsharing = \"hardened\"")
                + &vm("name = \"b\"\nshare_group = \"g\""),
            "vm \"b\": `sharing = \"plain\"`: vm \"a\" of the same share_group \"g\" has \
             \"hardened\", must be the same",
        ),
        (
            vm("name = \"w\"\ncount = 2") + &vm("name = \"w-1\""),
            "vm \"w-1\": `name = \"w-1\"`: is used twice, must be one VM's alone",
        ),
        (
            vm("name = \"a\"\ndisk = \"notes.txt\"\ncount = 2"),
            "vm \"a-1\": `disk = \"notes.txt\"`: is used twice, must be one VM's alone",
        ),
        (String::new(), "no VM: must have a [[vm]] table or more"),
    ];
    for (text, expected) in table {
        assert_eq!(
            message(&format!("{host}{text}")),
            format!("fleet.toml: {expected}")
        );
    }
}

#[test]
fn mistakes_in_the_host() {
    let table = [
        (
            "memory = \"x\"",
            "`memory = \"x\"`: not a valid size, e.g. 512M, 512MiB, 2G or a number of bytes",
        ),
        (
            "memory = \"1M\"",
            "`memory = \"1M\"`: 1.0 MiB, must be 16M to 64T",
        ),
        (
            "policy = \"best\"",
            "`policy = \"best\"`: must be one of esx, proportional, self, pref, pressure",
        ),
        (
            "idle_tax = 100",
            "`idle_tax = 100`: must be 0 to 99 percent",
        ),
        (
            "min_free = \"some\"",
            "`min_free = \"some\"`: must be one of percent, sliding",
        ),
        (
            "swap_dir = \"/nosuch\"",
            "`swap_dir = \"/nosuch\"`: must be a folder that exists",
        ),
    ];
    for (line, expected) in table {
        let text = format!("[host]\n{line}\n[[vm]]\nname = \"a\"\nguest = \"hello\"\n");
        assert_eq!(message(&text), format!("fleet.toml: host: {expected}"));
    }
}

#[test]
fn mistakes_in_the_syntax_name_line_and_key() {
    let table = [
        (
            "[host]\nmemroy = \"1G\"\n",
            "fleet.toml:2: memroy: unknown field `memroy`, expected one of \
            `memory`, `policy`, `idle_tax`, `min_free`, `sample_pages`, `sample_period`, `swap_dir`, `seed`",
        ),
        (
            "[host]\nmemory = true\n",
            "fleet.toml:2: memory: invalid type: boolean `true`, expected a \
            text or a whole number",
        ),
        (
            "[host]\nmemory = \"1G\n",
            "fleet.toml:2: memory: invalid basic string, expected `\"`",
        ),
        (
            "[host]\n[[vm]]\nmemory = \"64M\"\n",
            "fleet.toml: [[vm]] number 1 has no `name`",
        ),
        (
            "[host]\n[vm]\nguest = \"hello\"\n",
            "fleet.toml:2: there may be several of these tables: write [[vm]]",
        ),
        (
            "[[vm]]\nname = \"a\"\nlimt = \"1G\"\n",
            "fleet.toml:3: limt: unknown field `limt`, expected one of `name`, `cpus`, `guest`, \
             `kernel`, `initrd`, `cmdline`, `disk`, `disk_read_only`, `memory_management`, \
             `advise`, `large_pages`, `encrypt_swap`, `share_group`, `sharing`, `console`, `count`, `memory`, `shares`, `reservation`, `limit`, `dynamic_min`, `dynamic_max`",
        ),
        (
            "[[vm]]\nname = \"a\"\nlimit = true\n",
            "fleet.toml:3: limit: invalid type: boolean `true`, expected a text or a whole number",
        ),
        (
            "[[vm]]\nname = \"a\"\ncpus = true\n",
            "fleet.toml:3: cpus: invalid type: boolean `true`, expected a text or a whole number",
        ),
        (
            "[host]\n[vms]\n",
            "fleet.toml:2: unknown field `vms`, expected `host` or `vm`",
        ),
        ("what\n", "fleet.toml:1: key with no value, expected `=`"),
    ];
    for (text, expected) in table {
        assert_eq!(message(text), expected, "{text}");
    }
}

#[test]
fn an_unreadable_file_is_named() {
    let error = FleetSpec::load(Path::new("/nosuch/fleet.toml"), &RESOURCES).expect_err("no file");
    assert!(
        error
            .to_string()
            .starts_with("/nosuch/fleet.toml: cannot read the fleet file: No such")
    );
}

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    vm: VmArgs,
    #[command(flatten)]
    host: HostArgs,
    #[arg(long)]
    count: Option<String>,
}

#[test]
fn flags_make_a_fleet() {
    let cli = Cli::try_parse_from([
        "run",
        "--guest=verify",
        "--memory",
        "64M",
        "--count",
        "2",
        "--host-memory=128M",
    ])
    .expect("flags of the contract");
    let fleet = FleetSpec::from_args(&cli.host, &cli.vm, cli.count.as_deref(), &RESOURCES)
        .expect("good flags");
    assert_eq!(fleet.host.memory, Pages::mib(128));
    assert_eq!(
        (fleet.vms[1].name.as_str(), fleet.vms[1].cmdline.as_str()),
        ("verify-1", "seed=2")
    );
    let cli = Cli::try_parse_from(["run", "--guest=verify", "--memory=-5"]).expect("checked later");
    let error = cli
        .vm
        .to_spec(&RESOURCES)
        .expect_err("a negative size")
        .to_string();
    assert!(
        error.starts_with("command line: vm \"verify\": `memory = \"-5\"`: not a valid size"),
        "{error}"
    );
}

prop_compose! {
    fn any_spec(folder: PathBuf)(
        name in "[A-Za-z0-9._-]{1,64}", memory in 256_u64..1 << 27, cpus in 1_u8..=64,
        kernel in proptest::option::of(any::<bool>()), cmdline in "[ -~é]{0,60}",
        shares in 0_u64..=1_000_000_000, parts in proptest::array::uniform4(0_u64..=100),
        disk in proptest::option::of(any::<bool>()), share_group in proptest::option::of("[a-z-]{1,9}"), console in any::<bool>(),
        plain in proptest::option::of(0_usize..4), large_pages in any::<bool>(),
        encrypt_swap in any::<bool>(),
    ) -> VmSpec {
        let management = match plain {
            None => Management::Managed,
            Some(number) => Management::Plain(Advice::ALL.get(number).copied()),
        };
        let parts = match plain {
            None => parts,
            Some(_) => [100; 4],
        };
        let limit = (memory * parts[0] / 100).max(1);
        let dynamic_max = memory * parts[1] / 100;
        VmSpec {
            name, cpus, cmdline, management,
            large_pages: large_pages || plain.is_some(),
            encrypt_swap: encrypt_swap && plain.is_none(),
            share_group: share_group.clone().filter(|_| plain.is_none()),
            sharing: match share_group.filter(|_| plain.is_none() && large_pages) {
                Some(_) => Sharing::Hardened,
                None => Sharing::Plain,
            },
            allocation: Allocation {
                size: Pages(memory),
                reservation: Pages(limit * parts[2] / 100),
                limit: Pages(limit),
                shares,
                dynamic_min: Pages(dynamic_max * parts[3] / 100),
                dynamic_max: Pages(dynamic_max),
            },
            boot: match kernel {
                None => Boot::Guest("verify".into()),
                Some(initrd) => Boot::Kernel {
                    kernel: folder.join("vmlinux"),
                    initrd: initrd.then(|| folder.join("initrd.gz")),
                },
            },
            disk: disk.map(|_| folder.join("notes.txt")),
            disk_read_only: disk == Some(true),
            console: console.then(|| PathBuf::from("-odd name.log")),
            swap_dir: "/var/tmp".into(),
        }
    }
}

#[test]
fn a_spec_survives_its_flags() {
    let folder = folder();
    proptest!(|(spec in any_spec(folder.path().to_owned()))| {
        let args = std::iter::once("vm".into()).chain(spec.to_args());
        let cli = Cli::try_parse_from(args).expect("flags of our own making");
        prop_assert_eq!(cli.vm.to_spec(&RESOURCES).expect("a checked spec"), spec);
    });
}

#[test]
fn a_fleet_file_needs_no_host_table() {
    let vm = "[[vm]]\nname = \"a\"\nguest = \"hello\"\n";
    let without = parse(vm).expect("the defaults hold");
    let with = parse(&format!("[host]\n{vm}")).expect("the same");
    assert_eq!(without.host, with.host);
}

#[test]
fn memory_that_is_not_managed_is_promised_in_full() {
    let vm = |keys: &str| {
        let text = format!("[[vm]]\nname = \"a\"\nguest = \"hello\"\nmemory = \"64M\"\n{keys}");
        parse(&text).map(|fleet| fleet.vms[0].clone())
    };
    for off in ["false", "\"off\"", "\"false\""] {
        let plain = vm(&format!("memory_management = {off}\nadvise = \"hugepage\"")).expect(off);
        assert_eq!(plain.management, Management::Plain(Some(Advice::HugePage)));
        let size = Pages::mib(64);
        let Allocation { shares, .. } = plain.allocation;
        let all = Allocation {
            size,
            reservation: size,
            limit: size,
            shares,
            dynamic_min: size,
            dynamic_max: size,
        };
        assert_eq!(plain.allocation, all);
    }
    for on in ["true", "\"on\""] {
        let managed = vm(&format!("memory_management = {on}")).expect(on);
        assert_eq!(managed.management, Management::Managed);
        assert_eq!(managed.allocation.reservation, Pages::ZERO);
    }
    let off = "memory_management = false\n";
    for (keys, words) in [
        (
            "memory_management = \"no\"",
            ["memory_management", "true or false"],
        ),
        (
            "advise = \"hugepage\"",
            ["advise", "memory_management = false"],
        ),
        (
            &format!("{off}advise = \"large\""),
            ["advise", "nohugepage"],
        ),
        ("large_pages = \"yes\"", ["large_pages", "true or false"]),
        (
            &format!("{off}large_pages = true"),
            ["large_pages = true", "advise"],
        ),
        ("encrypt_swap = \"1\"", ["encrypt_swap", "true or false"]),
        (
            &format!("{off}encrypt_swap = true"),
            ["encrypt_swap = true", "no swap file"],
        ),
        (
            &format!("{off}share_group = \"g\""),
            ["share_group", "not shared"],
        ),
        (
            &format!("{off}reservation = \"32M\""),
            ["reservation = \"32M\"", "all of"],
        ),
        (
            &format!("{off}limit = \"32M\""),
            ["limit = \"32M\"", "all of"],
        ),
        (
            &format!("{off}dynamic_min = \"1M\""),
            ["dynamic_min = \"1M\"", "all of"],
        ),
    ] {
        let error = vm(keys).expect_err(keys).to_string();
        for word in words {
            assert!(error.contains(word), "{keys}: {error}");
        }
    }
}
