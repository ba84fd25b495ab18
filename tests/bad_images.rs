//! Files that no VM can boot from: one line that names file, VM, key and reason, status 2, and no VM
//! process started. Needs no KVM.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;

use common::fleet::Folder;
use rustix::fs::{FlockOperation, flock};

/// A bzImage of one setup sector that wants 2 MiB at 16 MiB.
fn bzimage() -> Vec<u8> {
    let mut file = vec![0; 2 * 512 + 112];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x1f4, &7u32.to_le_bytes());
    put(0x1fe, &0xaa55u16.to_le_bytes());
    put(0x200, &[0xeb, 0x66]);
    put(0x202, b"HdrS");
    put(0x206, &0x20fu16.to_le_bytes());
    put(0x211, &[1]);
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(0x236, &1u16.to_le_bytes());
    put(0x258, &0x100_0000u64.to_le_bytes());
    put(0x260, &0x20_0000u32.to_le_bytes());
    file
}

fn patched(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = bzimage();
    file[at..at + bytes.len()].copy_from_slice(bytes);
    file
}

/// An ELF header of that machine, and nothing behind it.
fn elf(machine: u8) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(64, 0);
    (file[18], file[54]) = (machine, 56);
    file
}

fn arm64_image() -> Vec<u8> {
    let mut file = vec![0; 1024];
    file[0x38..0x3c].copy_from_slice(b"ARM\x64");
    file
}

/// The fleet of a good VM and one described by `lines` is refused with all of `words`.
fn refused(folder: &Folder, lines: &str, words: &[&str]) {
    let vm = "[[vm]]\nname = \"first\"\nguest = \"hello\"\nconsole = \"first.log\"\n";
    let text = format!("[host]\nmemory = \"512M\"\n{vm}[[vm]]\nname = \"second\"\n{lines}\n");
    folder.write("fleet.toml", &text);
    let line = folder.fails(&["run", "fleet.toml"], 2);
    assert_eq!(folder.fails(&["check", "fleet.toml"], 2), line);
    for word in ["fleet.toml: vm \"second\": "].iter().chain(words) {
        assert!(line.contains(word), "{lines}: no {word:?} in {line}");
    }
    // A VM process creates its console first of all.
    let files = folder.files();
    assert!(!files.contains(&"first.log".to_owned()), "{files:?}");
}

#[test]
fn kernels_that_cannot_be_booted() {
    let folder = Folder::new();
    let table: &[(Vec<u8>, &[&str])] = &[
        (
            patched(0x206, &[0x0b, 2]),
            &["too old", "2.11", "Linux 3.8"],
        ),
        (patched(0x236, &[0, 0]), &["32-bit bzImage"]),
        (bzimage()[..0x210].to_vec(), &["truncated", "boot header"]),
        (bzimage()[..1030].to_vec(), &["truncated", "kernel"]),
        (
            patched(0x260, &[0, 0, 0, 0x10]),
            &["does not fit", "64.0 MiB"],
        ),
        (elf(183), &["x86-64", "AArch64"]),
        (elf(3), &["x86-64", "i386"]),
        (elf(62), &["no entry note", "PVH"]),
        (elf(62)[..40].to_vec(), &["truncated", "ELF header"]),
        (arm64_image(), &["arm64"]),
        (b"\x1f\x8b\x08rest".to_vec(), &["gzip"]),
        (
            b"no kernel at all".to_vec(),
            &["neither a bzImage nor an ELF file"],
        ),
        (Vec::new(), &["neither a bzImage nor an ELF file"]),
    ];
    for (bytes, words) in table {
        fs::write(folder.path().join("image"), bytes).unwrap();
        let words = [&["kernel = \"image\""], *words].concat();
        refused(&folder, "memory = \"64M\"\nkernel = \"image\"", &words);
    }
}

#[test]
fn an_initrd_must_fit_behind_its_kernel() {
    let folder = Folder::new();
    fs::write(folder.path().join("image"), bzimage()).unwrap();
    let initrd = File::create(folder.path().join("initrd")).unwrap();
    // The kernel ends at 18 MiB of 64.
    initrd.set_len((46 << 20) + 1).unwrap();
    let lines = "memory = \"64M\"\nkernel = \"image\"\ninitrd = \"initrd\"";
    let words = ["initrd = \"initrd\"", "48234497 bytes", "does not fit"];
    refused(&folder, lines, &words);
    // One byte less fits: the next mistake is found instead.
    initrd.set_len(46 << 20).unwrap();
    let lines = format!("{lines}\ndisk = \"short\"");
    folder.write("short", "not a sector");
    refused(&folder, &lines, &["disk = \"short\"", "sectors"]);
}

#[test]
fn disks_that_are_missing_or_taken() {
    let folder = Folder::new();
    let disk = File::create(folder.path().join("disk.img")).unwrap();
    disk.set_len(1 << 20).unwrap();
    symlink("disk.img", folder.path().join("other.img")).unwrap();
    let guest = "guest = \"hello\"\ndisk = \"";
    refused(
        &folder,
        &format!("{guest}nowhere\""),
        &["disk = \"nowhere\"", "No such file"],
    );
    let third = "[[vm]]\nname = \"third\"\nguest = \"hello\"\ndisk = \"";
    for (name, words) in [
        ("disk.img", "is used twice"),
        ("other.img", "in use by another VM"),
    ] {
        folder.write(
            "twice.toml",
            &format!("[host]\nmemory = \"512M\"\n[[vm]]\nname = \"second\"\n{guest}disk.img\"\n{third}{name}\"\n"),
        );
        let line = folder.fails(&["run", "twice.toml"], 2);
        assert!(line.contains("vm \"third\": `disk = "), "{line}");
        assert!(line.contains(name) && line.contains(words), "{line}");
    }
    // What nobody writes may be shared, also with a reader of another fleet: the mistake is the next VM's.
    flock(&disk, FlockOperation::LockShared).unwrap();
    let reader = |name| {
        format!(
            "[[vm]]\nname = \"{name}\"\nguest = \"hello\"\ndisk = \"disk.img\"\ndisk_read_only = true\n"
        )
    };
    let last = "[[vm]]\nname = \"last\"\nguest = \"hello\"\ndisk = \"other.img\"\n";
    let text = format!(
        "[host]\nmemory = \"512M\"\n{}{}{last}",
        reader("a"),
        reader("b")
    );
    folder.write("readers.toml", &text);
    let line = folder.fails(&["run", "readers.toml"], 2);
    assert!(
        line.contains("vm \"last\": `disk = \"other.img\"`"),
        "{line}"
    );
    assert!(line.contains("in use by another VM"), "{line}");
    // Another process has it.
    flock(&disk, FlockOperation::LockExclusive).unwrap();
    let words = ["disk = \"disk.img\"", "in use by another VM"];
    refused(&folder, &format!("{guest}disk.img\""), &words);
}

#[test]
fn flags_are_checked_as_files_are() {
    let folder = Folder::new();
    fs::write(folder.path().join("image"), elf(183)).unwrap();
    let disk = File::create(folder.path().join("disk.img")).unwrap();
    disk.set_len(1 << 20).unwrap();
    flock(&disk, FlockOperation::LockExclusive).unwrap();
    for verb in ["run", "vm"] {
        let line = folder.fails(&[verb, "--kernel", "image"], 2);
        assert!(
            line.contains("command line: vm \"vm\": `kernel = \"image\""),
            "{line}"
        );
        assert!(line.contains("AArch64"), "{line}");
        let line = folder.fails(&[verb, "--guest", "hello", "--disk", "disk.img"], 2);
        assert!(line.contains("in use by another VM"), "{line}");
        if rustix::process::geteuid().is_root() {
            // The process that looks at it sees nothing else.
            let line = folder.fails(&[verb, "--user", "auto", "--kernel", "image"], 2);
            assert!(line.contains("AArch64"), "{line}");
        }
        // Opening it would wait for a writer.
        let line = folder.fails(&[verb, "--kernel", "/dev/null"], 2);
        assert!(line.contains("must be a regular file"), "{line}");
    }
}

#[test]
fn the_linux_example_names_what_its_recipe_makes() {
    let folder = Folder::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::create_dir(folder.path().join("examples")).unwrap();
    fs::copy(
        root.join("examples/linux.toml"),
        folder.path().join("examples/linux.toml"),
    )
    .unwrap();
    // What guest-images/linux/setup.sh leaves, had it made a kernel that is too old.
    let made = folder.path().join("target/linux/guest-6.12");
    fs::create_dir_all(&made).unwrap();
    fs::write(made.join("vmlinuz"), patched(0x206, &[0x0b, 2])).unwrap();
    fs::write(made.join("initrd.gz"), "initrd").unwrap();
    let line = folder.fails(&["run", "examples/linux.toml"], 2);
    assert!(line.contains("vm \"debian-0\": `kernel"), "{line}");
    assert!(line.contains("too old"), "{line}");
}
