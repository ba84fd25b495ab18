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
    ("words", &["units"]),
    ("threads", &[]),
    ("sys", &["units", "words"]),
    ("out", &["threads"]),
    ("policy", &["units", "words"]),
    ("config", &["policy", "units", "words"]),
    ("link", &["units", "words"]),
    ("page", &["units", "words"]),
    // The pager fills the link's report and never sees a socket.
    (
        "mem",
        &["link::message::Report", "page", "sys", "units", "words"],
    ),
    // Guest RAM and its layout.
    ("devices", &["out::rate_limit", "sys", "units", "words"]),
    ("boot", &["sys", "units"]),
    ("machine", &["boot", "devices", "sys", "threads", "words"]),
    (
        "vm",
        &[
            "boot",
            "config",
            "devices",
            "link",
            "machine",
            "mem",
            "out",
            "policy::sampling",
            "sys",
            "threads",
            "units",
            "words",
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
            "out::rate_limit",
            "sys::peer",
            "sys::proc",
            "units",
            "words",
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
            "words",
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
            "threads::LOG",
            "units",
            "vm",
            "words",
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
    let place = module_path(path);
    if let Some(module) = place.first() {
        for (line, used) in used_paths(&place, &code) {
            if used.is_empty() {
                report(line, "a name for the whole crate hides what is used");
            } else if !may_use(module, &used) {
                report(
                    line,
                    &format!("{module} may not use crate::{used}; see EDGES in tests/tidy.rs"),
                );
            }
        }
    }
    found
}

/// Where the code of a file stands in the tree of modules, `[page, key]` for `src/page/key.rs`. Empty
/// outside `src/`, and for the roots, which only name modules.
fn module_path(path: &str) -> Vec<&str> {
    let Some(inside) = path.strip_prefix("src/") else {
        return Vec::new();
    };
    let module = inside.strip_suffix(".rs").unwrap_or(inside);
    let module = module.strip_suffix("/mod").unwrap_or(module);
    match module {
        "lib" | "main" => Vec::new(),
        _ => module.split('/').collect(),
    }
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

/// All paths in `code` that begin with `crate`, `self` or `super`, from the root of the crate on and
/// with their lines. `place` is where the code stands; modules written out in it are followed.
fn used_paths(place: &[&str], code: &str) -> Vec<(usize, String)> {
    let tokens = tokens(code);
    let text = |at: usize| tokens.get(at).map_or("", |(_, text)| *text);
    let mut paths = Vec::new();
    let mut modules = place.to_vec();
    // For each open brace whether a module ends with it.
    let mut braces = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        match text(at) {
            "{" => {
                let module = at >= 2 && text(at - 2) == "mod";
                if module {
                    modules.push(text(at - 1));
                }
                braces.push(module);
            }
            "}" => {
                if braces.pop() == Some(true) {
                    modules.pop();
                }
            }
            "crate" | "self" | "super" if matches!(text(at + 1), "::" | "as") => {
                let line = tokens[at].0;
                let mut found = Vec::new();
                at = read_path(&tokens, at, modules.clone(), &mut found);
                paths.extend(found.into_iter().map(|path| (line, path.join("::"))));
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    paths
}

/// Reads the path that starts at token `at` inside `base`, and each one of a group; returns the place
/// behind it.
fn read_path<'a>(
    tokens: &[(usize, &'a str)],
    mut at: usize,
    mut base: Vec<&'a str>,
    found: &mut Vec<Vec<&'a str>>,
) -> usize {
    let text = |at: usize| tokens.get(at).map_or("", |(_, text)| *text);
    loop {
        match text(at) {
            "{" => {
                while !matches!(text(at), "}" | "") {
                    at = read_path(tokens, at + 1, base.clone(), found);
                    // A new name, or the comma before the group's end.
                    while !matches!(text(at), "," | "}" | "") {
                        at += 1;
                    }
                }
                return at + 1;
            }
            // Behind the last comma of a group.
            "}" => return at,
            "crate" => base.clear(),
            "super" => drop(base.pop()),
            "self" => {}
            name => base.push(name),
        }
        at += 1;
        if text(at) != "::" {
            found.push(base);
            return at;
        }
        at += 1;
    }
}

/// Words, `::`, and all other characters one by one, with their lines.
fn tokens(code: &str) -> Vec<(usize, &str)> {
    let mut tokens = Vec::new();
    for (line, text) in code.lines().enumerate() {
        let mut rest = text.trim_start();
        while let Some(first) = rest.chars().next() {
            let length = match first {
                _ if rest.starts_with("::") => 2,
                first if is_word(first) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
                first => first.len_utf8(),
            };
            let (token, behind) = rest.split_at(length);
            tokens.push((line, token));
            rest = behind.trim_start();
        }
    }
    tokens
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
    for (path, text, line, words) in [
        (
            "policy/esx.rs",
            "\nuse crate::sys::uffd;",
            2,
            "crate::sys::uffd",
        ),
        ("page/pmap.rs", "use crate::link::Link;", 1, "page may not"),
        (
            "mem/pager.rs",
            "fn f() { crate::policy::decide(); }",
            1,
            "crate::policy",
        ),
        (
            "units.rs",
            "use crate::{\n    units,\n    page::key,\n};",
            1,
            "crate::page",
        ),
        (
            "devices/bus.rs",
            "use crate::{mem as memory, sys};",
            1,
            "crate::mem",
        ),
        ("mem/share.rs", "use crate::link::{self};", 1, "crate::link"),
        ("novel/mod.rs", "use crate::units::Gfn;", 1, "novel may not"),
        ("sys/ram.rs", "use crate::*;", 1, "crate::*"),
        ("sys/ram.rs", "use crate as all;", 1, "whole crate"),
    ] {
        finds_edges(path, text, line, words);
    }
}

#[test]
fn bad_edges_by_way_of_super_are_found() {
    for (path, text, line, words) in [
        ("out.rs", "use super::mem::Pager;", 1, "crate::mem::Pager"),
        ("page/mod.rs", "use super::mem;", 1, "crate::mem"),
        ("page/key.rs", "use super::super::mem;", 1, "crate::mem"),
        (
            "page/key.rs",
            "use self::super::super::mem;",
            1,
            "crate::mem",
        ),
        (
            "page/key.rs",
            "fn f() { super::super::mem::f(); }",
            1,
            "crate::mem::f",
        ),
        (
            "host/server/tests.rs",
            "use super::super::super::mem;",
            1,
            "crate::mem",
        ),
        (
            "page/key.rs",
            "use super::{\n    pmap::{self, Pmap},\n    super::mem::Pager,\n};",
            1,
            "crate::mem::Pager",
        ),
        (
            "page/key.rs",
            "use super::super::{\n    units,\n    mem,\n};",
            1,
            "crate::mem",
        ),
        (
            "page/key.rs",
            "use super::{super::{units::{Gfn, Pages}, link::message}, pmap};",
            1,
            "crate::link::message",
        ),
        ("page/key.rs", "use super::super as all;", 1, "whole crate"),
        (
            "page/key.rs",
            "use super::super::{self as all};",
            1,
            "whole crate",
        ),
        (
            "page/key.rs",
            "mod tests {\n    fn f() {}\n    use super::super::super::mem;\n}",
            3,
            "crate::mem",
        ),
        (
            "page/key.rs",
            "mod tests {\n    fn f() {}\n}\nuse super::super::mem;",
            4,
            "crate::mem",
        ),
    ] {
        finds_edges(path, text, line, words);
    }
}

#[track_caller]
fn finds_edges(path: &str, text: &str, line: usize, words: &str) {
    finds(&format!("src/{path}"), text, line, words);
}

#[test]
fn good_edges_are_not() {
    for text in [
        "use crate::words::Key;",
        "// use crate::sys::uffd;",
        "const TEXT: &str = \"crate::sys\";",
        "use crate::page::state::{PageEvent, PageState};",
        "pub(crate) fn f() {}",
        "pub(super) fn f(&self) -> u8 { self as u8 }",
        "use super::super::{units::Gfn, words::{self, Key}};",
        "use super::{pmap, state::*};",
        "mod tests {\n    use super::super::pmap;\n    mod more {\n        use super::super::super::state;\n    }\n}",
        "mod mem;\nuse self::mem::Part;",
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
