//! Rules about the sources that no compiler checks: which module may use which, where `unsafe` may
//! stand, what must not be left behind. Reads files only; needs no KVM.
#![expect(
    clippy::unwrap_used,
    reason = "a test's helpers are tests too: a panic is their way to fail"
)]

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// Longest source file, in lines. The largest stands near it on purpose: what grows is split.
const LINES_MAX: usize = 900;

/// Each module of `src/`, in dependency order, and what it may name under `crate::`: whole modules,
/// or one path of a module where that is all it needs. A module only uses modules above itself.
const EDGES: &[(&str, &[&str])] = &[
    ("units", &[]),
    ("sys", &["units"]),
    ("out", &[]),
    ("policy", &["units"]),
    ("config", &["policy", "units"]),
    ("link", &["policy::sampling", "policy::types", "units"]),
    // The type of a page's key is a word of the link.
    ("page", &["link::message::Key", "units"]),
    // The pager speaks the link's words (keys, reports), and never sees a socket.
    ("mem", &["link::message", "page", "sys", "units"]),
    // Guest RAM and its layout; the words in which a VM's guest is reported.
    (
        "devices",
        &[
            "link::message::GuestReport",
            "policy::types::GuestMemoryStats",
            "sys",
            "units",
        ],
    ),
    // Whole-range checks of guest addresses stand in one place, and that is with the devices.
    ("boot", &["devices::guest_range", "sys", "units"]),
    (
        "vm",
        &[
            "boot",
            "config",
            "devices",
            "link",
            "mem",
            "out",
            "policy::sampling",
            "policy::types",
            "sys",
            "units",
        ],
    ),
    // Keys are made by the function that VM processes use; sizes in `set` read as in a fleet file;
    // who connects is asked of the kernel.
    (
        "host",
        &[
            "config::size",
            "link",
            "page::key",
            "policy",
            "sys::peer",
            "units",
        ],
    ),
    // Model guests speak the link's words and keep the pager's credit account.
    (
        "sim",
        &[
            "config",
            "host",
            "link::message",
            "mem::credit",
            "mem::reclaim::BATCH_PAGES",
            "policy",
            "units",
        ],
    ),
    (
        "cli",
        &[
            "boot::builtin",
            "config",
            "host",
            "link",
            "out",
            "policy",
            "sim",
            "sys",
            "units",
            "vm",
        ],
    ),
];

/// Where `unsafe` may stand: folders end with a slash.
const UNSAFE: &[&str] = &[
    "src/sys/",
    // Arms a page that nobody serves.
    "tests/stuck_fault.rs",
    // Has the kernel swap and merge the test's own memory.
    "tests/pager/os.rs",
    // They own a machine.
    "guest-images/runtime/src/",
    "guest-images/guests/src/",
];

/// Every crate that the root package names.
const DEPENDENCIES: &[&str] = &[
    "acpi_tables",
    "clap",
    "criterion",
    "env_logger",
    "fastrand",
    "kvm-bindings",
    "kvm-ioctls",
    "libc",
    "acpi_tables",
    "log",
    "lz4_flex",
    "postcard",
    "proptest",
    "rustix",
    "seccompiler",
    "serde",
    "serde_bytes",
    "serde_json",
    "signal-hook",
    "tempfile",
    "thiserror",
    "tidemark-guest-protocol",
    "toml",
    "virtio-bindings",
    "virtio-queue",
    "vm-memory",
    "vm-superio",
    "vmm-sys-util",
    "xxhash-rust",
];

/// Macros of unfinished work.
const UNFINISHED: &[&str] = &["todo!", "unimplemented!", "dbg!"];

/// Lines between an unsafe block and its comment, at most: the head of one statement.
const STATEMENT_LINES_MAX: usize = 8;

#[test]
fn the_sources_are_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut files = 0;
    for folder in ["src", "tests", "benches", "examples", "guest-images"] {
        for_each_source(root, Path::new(folder), &mut |path, text| {
            files += 1;
            found.extend(problems(path, text));
        });
    }
    found.extend(problems(
        "build.rs",
        &fs::read_to_string(root.join("build.rs")).unwrap(),
    ));
    found.extend(unlisted(
        &fs::read_to_string(root.join("Cargo.toml")).unwrap(),
    ));
    assert!(files > 50, "only {files} source files were found");
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn modules_use_modules_above_themselves() {
    for (place, (module, uses)) in EDGES.iter().enumerate() {
        for path in *uses {
            let used = path.split("::").next().unwrap();
            let above = EDGES[..place].iter().any(|(name, _)| *name == used);
            assert!(above, "{module} uses {used}, which does not stand above it");
        }
    }
}

fn for_each_source(root: &Path, folder: &Path, use_it: &mut impl FnMut(&str, &str)) {
    let Ok(entries) = fs::read_dir(root.join(folder)) else {
        return;
    };
    for entry in entries {
        let entry = entry.unwrap();
        let path = folder.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            if !path.ends_with("target") {
                for_each_source(root, &path, use_it);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(root.join(&path)).unwrap();
            use_it(path.to_str().unwrap(), &text);
        }
    }
}

/// Everything that is wrong with one file, a line each.
fn problems(path: &str, text: &str) -> Vec<String> {
    let code = code_of(text);
    let mut found = Vec::new();
    let mut report = |line: usize, what: &str| found.push(format!("{path}:{}: {what}", line + 1));
    let lines: Vec<&str> = text.lines().collect();
    let code_lines: Vec<&str> = code.lines().collect();
    if lines.len() > LINES_MAX {
        let what = format!("{} lines; a file has {LINES_MAX} at most", lines.len());
        report(lines.len() - 1, &what);
    }
    for (line, code) in code_lines.iter().enumerate() {
        for name in UNFINISHED.iter().filter(|name| has_word(code, name)) {
            report(line, &format!("{name} is left behind"));
        }
        if has_word(code, "unsafe") {
            let allowed = UNSAFE
                .iter()
                .any(|place| path == *place || (place.ends_with('/') && path.starts_with(place)));
            if !allowed {
                report(line, "unsafe outside src/sys");
            }
            if opens_unsafe(code) && !is_argued(&lines, &code_lines, line) {
                report(line, "unsafe without a `// SAFETY:` comment above");
            }
        }
        if is_disabled_attribute(lines[line]) && code.trim().is_empty() {
            report(line, "an attribute that is commented out");
        }
    }
    if let Some(module) = top_module(path) {
        for (line, used) in crate_paths(&code) {
            if !may_use(module, &used) {
                report(
                    line,
                    &format!("{module} may not use crate::{used}; see EDGES in tests/tidy.rs"),
                );
            }
        }
    }
    found
}

/// The module of `src/` that a file belongs to; the roots, which only name modules, belong to none.
fn top_module(path: &str) -> Option<&str> {
    let first = path.strip_prefix("src/")?.split('/').next()?;
    let module = first.strip_suffix(".rs").unwrap_or(first);
    (!matches!(module, "lib" | "main")).then_some(module)
}

fn may_use(module: &str, used: &str) -> bool {
    let inside = |path: &str| {
        used.strip_prefix(path)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    };
    inside(module)
        || EDGES
            .iter()
            .any(|(name, uses)| *name == module && uses.iter().any(|path| inside(path)))
}

/// Paths after `crate::`, with their lines: up to a brace or the end of the path. A group directly
/// behind `crate::` yields each of its members' first names.
fn crate_paths(code: &str) -> Vec<(usize, String)> {
    const START: &str = "crate::";
    let mut paths = Vec::new();
    for (at, _) in code.match_indices(START) {
        if code[..at].ends_with(|c: char| is_word(c) || c == '$') {
            continue;
        }
        let line = code[..at].matches('\n').count();
        let rest = &code[at + START.len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 1;
            let mut member = String::new();
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    _ => {}
                }
                if depth == 0 || (depth == 1 && c == ',') {
                    paths.extend(path_at(member.trim()).map(|path| (line, path)));
                    member.clear();
                } else {
                    member.push(c);
                }
                if depth == 0 {
                    break;
                }
            }
        } else {
            paths.extend(path_at(rest).map(|path| (line, path)));
        }
    }
    paths
}

/// The path at the start of `code`: `a::b` of `a::b::{c, d}`.
fn path_at(code: &str) -> Option<String> {
    let end = code
        .find(|c: char| !is_word(c) && c != ':')
        .unwrap_or(code.len());
    let path = code[..end].trim_end_matches(':');
    (!path.is_empty()).then(|| path.to_owned())
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// Whether `word` stands in `code` and is not a part of a longer name.
fn has_word(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(at, _)| {
        let ends_open = word.ends_with(is_word);
        let longer = ends_open && code[at + word.len()..].starts_with(is_word);
        !longer && !code[..at].ends_with(is_word)
    })
}

/// Whether a line starts an unsafe block or implementation, which need an argument each; an unsafe
/// function has a documented contract instead.
fn opens_unsafe(code: &str) -> bool {
    code.match_indices("unsafe").any(|(at, word)| {
        let rest = code[at + word.len()..].trim_start();
        !code[..at].ends_with(is_word) && (rest.starts_with('{') || rest.starts_with("impl"))
    })
}

/// Whether the statement that `line` belongs to has a SAFETY comment: above the line, or above the
/// line on which the statement begins.
fn is_argued(lines: &[&str], code: &[&str], line: usize) -> bool {
    let mut above = line;
    for _ in 0..STATEMENT_LINES_MAX {
        let Some(next) = above.checked_sub(1) else {
            return false;
        };
        above = next;
        let trimmed = lines[above].trim_start();
        if trimmed.starts_with("//") {
            let comment = lines[..=above].iter().rev();
            return comment
                .take_while(|line| line.trim_start().starts_with("//"))
                .any(|line| line.contains("SAFETY:"));
        }
        let ends_other = code[above].trim_end().ends_with([';', '{', '}']);
        if trimmed.is_empty() || (ends_other && !trimmed.starts_with('#')) {
            return false;
        }
    }
    false
}

/// `// #[test]` and the like: a check that is off looks like one that is on.
fn is_disabled_attribute(line: &str) -> bool {
    let Some(comment) = line.trim_start().strip_prefix("//") else {
        return false;
    };
    if comment.starts_with(['/', '!']) {
        return false;
    }
    let comment = comment.trim_start();
    comment.starts_with("#[") || comment.starts_with("#![")
}

/// Crates that Cargo.toml names and [`DEPENDENCIES`] does not.
fn unlisted(manifest: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut inside = false;
    for (line, text) in manifest.lines().enumerate() {
        let text = text.trim();
        let mut name = None;
        if let Some(section) = text.strip_prefix('[') {
            let section = section.trim_matches(['[', ']']);
            inside = section.ends_with("dependencies");
            // The form `[dependencies.name]`.
            name = section
                .rsplit_once("dependencies.")
                .map(|(_, name)| name.to_owned());
        } else if inside && !text.starts_with('#') {
            name = text
                .split_once('=')
                .map(|(key, _)| key.split('.').next().unwrap().trim().to_owned());
        }
        if let Some(name) = name.filter(|name| !DEPENDENCIES.contains(&name.as_str())) {
            found.push(format!(
                "Cargo.toml:{}: {name} is not among DEPENDENCIES in tests/tidy.rs",
                line + 1
            ));
        }
    }
    found
}

/// The text with comments and the insides of literals blanked; every byte keeps its line.
fn code_of(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = String::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let end = match bytes[at] {
            b'/' if bytes[at..].starts_with(b"//") => line_end(bytes, at),
            b'/' if bytes[at..].starts_with(b"/*") => comment_end(bytes, at),
            b'"' => string_end(bytes, at),
            b'r' if !code.ends_with(|c: char| is_word(c) && c != 'b' && c != 'c') => {
                raw_string_end(bytes, at).unwrap_or(at)
            }
            b'\'' => char_end(bytes, at).unwrap_or(at),
            _ => at,
        };
        if end == at {
            code.push(if bytes[at].is_ascii() {
                char::from(bytes[at])
            } else {
                ' '
            });
            at += 1;
            continue;
        }
        for &byte in &bytes[at..end] {
            code.push(if byte == b'\n' { '\n' } else { ' ' });
        }
        at = end;
    }
    code
}

fn line_end(bytes: &[u8], at: usize) -> usize {
    let rest = bytes[at..].iter().position(|&byte| byte == b'\n');
    rest.map_or(bytes.len(), |length| at + length)
}

fn comment_end(bytes: &[u8], start: usize) -> usize {
    let (mut at, mut depth) = (start, 0);
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if bytes[at..].starts_with(b"*/") {
            (depth, at) = (depth - 1, at + 2);
        } else {
            at += 1;
        }
        if depth == 0 {
            return at;
        }
    }
    bytes.len()
}

fn string_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

fn raw_string_end(bytes: &[u8], start: usize) -> Option<usize> {
    let rest = &bytes[start + 1..];
    let hashes = rest.iter().take_while(|&&byte| byte == b'#').count();
    if rest.get(hashes) != Some(&b'"') {
        return None;
    }
    let close = [b"\"".as_slice(), &b"#".repeat(hashes)].concat();
    let body = start + 1 + hashes + 1;
    let length = bytes[body..]
        .windows(close.len())
        .position(|window| window == close)?;
    Some(body + length + close.len())
}

/// The end of a character literal; `None` for a lifetime.
fn char_end(bytes: &[u8], start: usize) -> Option<usize> {
    let limit = bytes.len().min(start + 12);
    let body = start + 1;
    if bytes.get(body) == Some(&b'\\') {
        let rest = bytes[body + 2..limit].iter();
        return rest
            .clone()
            .position(|&byte| byte == b'\'')
            .map(|length| body + 2 + length + 1);
    }
    let width = match bytes.get(body)? {
        0..=0x7f => 1,
        0x80..=0xdf => 2,
        0xe0..=0xef => 3,
        _ => 4,
    };
    (bytes.get(body + width) == Some(&b'\'')).then_some(body + width + 1)
}

/// One problem, whose line and text are these.
#[track_caller]
fn finds(path: &str, text: &str, line: usize, words: &str) {
    let found = problems(path, text);
    assert_eq!(found.len(), 1, "{text}\n{found:#?}");
    assert!(
        found[0].starts_with(&format!("{path}:{line}: ")),
        "{found:?}"
    );
    assert!(found[0].contains(words), "{found:?}");
}

#[test]
fn bad_edges_are_found() {
    finds(
        "src/policy/esx.rs",
        "\nuse crate::sys::uffd;\n",
        2,
        "crate::sys::uffd",
    );
    finds(
        "src/page/pmap.rs",
        "use crate::link::socket::Link;",
        1,
        "page may not",
    );
    finds(
        "src/mem/pager.rs",
        "fn f() { crate::policy::decide(); }",
        1,
        "crate::policy",
    );
    finds(
        "src/units.rs",
        "use crate::{\n    units,\n    page::{key, state},\n};",
        1,
        "crate::page",
    );
    finds(
        "src/devices/bus.rs",
        "use crate::{mem as memory, sys};",
        1,
        "crate::mem",
    );
    finds(
        "src/novel/mod.rs",
        "use crate::units::Gfn;",
        1,
        "novel may not",
    );
}

#[test]
fn good_edges_are_not() {
    for text in [
        "use crate::link::message::Key;",
        "// use crate::sys::uffd;",
        "const TEXT: &str = \"crate::sys\";",
        "use crate::page::state::{PageEvent, PageState};",
        "pub(crate) fn f() {}",
    ] {
        assert_eq!(
            problems("src/page/key.rs", text),
            Vec::<String>::new(),
            "{text}"
        );
    }
}

#[test]
fn bad_unsafe_is_found() {
    let argued = "// SAFETY: why.\nlet a = unsafe { f() };";
    finds("src/mem/pager.rs", argued, 2, "outside src/sys");
    let block = "let a = b;\nlet c = unsafe { f() };";
    finds("src/sys/ram.rs", block, 2, "SAFETY");
    let other = "// SAFETY: why.\nlet a = unsafe { f() };\nlet b = unsafe { g() };";
    finds("src/sys/ram.rs", other, 3, "SAFETY");
    finds(
        "src/sys/ram.rs",
        "// Why.\nunsafe impl Send for A {}",
        2,
        "SAFETY",
    );
    finds(
        "src/sys/ram.rs",
        "\"// SAFETY: no.\";\nunsafe { f() };",
        2,
        "SAFETY",
    );
}

#[test]
fn good_unsafe_is_not() {
    for text in [
        "// SAFETY: of two\n// lines.\nlet a =\n    unsafe { f() };",
        "match a {\n    // SAFETY: why.\n    Ok(b) => Ok(unsafe { f(b) }),\n}",
        "/// # Safety\n/// Never.\npub unsafe fn f() {}",
        "#![expect(unsafe_code)]",
    ] {
        assert_eq!(
            problems("src/sys/ram.rs", text),
            Vec::<String>::new(),
            "{text}"
        );
    }
}

#[test]
fn leftovers_are_found() {
    finds("src/units.rs", "fn f() {\n    todo!()\n}", 2, "todo!");
    finds("tests/cli.rs", "let a = dbg!(b);", 1, "dbg!");
    finds(
        "build.rs",
        "fn f() { unimplemented!(\"later\") }",
        1,
        "unimplemented!",
    );
    finds("tests/cli.rs", "// #[test]\nfn f() {}", 1, "commented out");
    finds(
        "src/lib.rs",
        "    //#![deny(unsafe_code)]",
        1,
        "commented out",
    );
    let mut long = String::new();
    for line in 0..=LINES_MAX {
        writeln!(long, "// {line}").unwrap();
    }
    finds("src/units.rs", &long, LINES_MAX + 1, "901 lines");
}

#[test]
fn what_only_looks_like_leftovers_is_not() {
    for text in [
        "/// #[test]\nfn f() {}",
        "// A todo!() in a comment, and 'a' lifetime.",
        "let a = r#\"todo!() \"quoted\" dbg!()\"#;",
        "fn f<'a>(b: &'a str) { let c = '\"'; let d = '\\''; g(b, c, d, \"dbg!\"); }",
        "my_todo!();",
        "/* todo!() /* nested */ dbg!() */",
    ] {
        assert_eq!(
            problems("src/units.rs", text),
            Vec::<String>::new(),
            "{text}"
        );
    }
}

#[test]
fn unlisted_dependencies_are_found() {
    let manifest = "[package]\nname = \"x\"\n[dependencies]\nlibc = \"0.2\"\n# a = 1\nanyhow = \"1\"\n\
                    [dev-dependencies]\nrand.workspace = true\n[build-dependencies.cc]\nversion = \"1\"\n";
    let found = unlisted(manifest);
    assert_eq!(found.len(), 3, "{found:#?}");
    for (found, name) in found.iter().zip(["6: anyhow", "8: rand", "9: cc"]) {
        assert!(found.contains(name), "{found}");
    }
}
