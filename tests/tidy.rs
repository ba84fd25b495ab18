//! Rules about the sources that no compiler and no lint checks: which module may use which, which
//! files may allow themselves `unsafe`, which crates may be named. Reads files only; needs no KVM.
//!
//! What stands behind `unsafe`, and that no unfinished work is left, `make check` says: both
//! workspaces deny it in their `[lints]`.
#![expect(
    clippy::unwrap_used,
    reason = "a test's helpers are tests too: a panic is their way to fail"
)]

use std::fs;
use std::path::Path;

/// Longest source file, in lines, its tests included. Most have fewer than 300. One that lists every
/// case of one thing (each step of a page, each change of a mapping) may be longer; what has more
/// lines than this has a second job.
const LINES_MAX: usize = 750;

/// Each module of `src/`, in dependency order, and what it may name under `crate::`: whole modules,
/// or one path of a module where that is all it needs. A module only uses modules above itself.
const EDGES: &[(&str, &[&str])] = &[
    ("units", &[]),
    ("words", &["units"]),
    ("sys", &["units", "words"]),
    ("threads", &["sys"]),
    ("out", &["threads"]),
    ("policy", &["units", "words"]),
    ("config", &["policy", "units", "words"]),
    ("link", &["units", "words"]),
    ("page", &["units", "words"]),
    ("mem", &["page", "sys", "units", "words"]),
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
    // Keys are made by the function that VM processes use; who connects is asked of the kernel.
    (
        "host",
        &[
            "link",
            "page::key",
            "policy",
            "out::printable",
            "out::rate_limit",
            "sys::cgroup",
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
            "mem::tasks::swap::ROOM_PAGES",
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
            "threads::jail",
            "vm",
            "words",
        ],
    ),
];

/// Files that may lift the denial of `unsafe` in Cargo.toml; folders end with a slash.
const UNSAFE: &[&str] = &[
    "src/sys/",
    // Makes system calls by their numbers, as an attacker does.
    "tests/escape/",
    // Arms a page that nobody serves.
    "tests/stuck_fault.rs",
    // Has the kernel swap and merge the test's own memory.
    "tests/pager/os.rs",
];

/// Every crate that the root package names.
const DEPENDENCIES: &[&str] = &[
    "acpi_tables",
    "aes-gcm",
    "clap",
    "criterion",
    "env_logger",
    "fastrand",
    "hashbrown",
    "kvm-bindings",
    "kvm-ioctls",
    "libc",
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
    "tidemark-guest-model",
    "tidemark-guest-protocol",
    "toml",
    "virtio-bindings",
    "virtio-queue",
    "vm-memory",
    "vm-superio",
    "vmm-sys-util",
    "xxhash-rust",
];

#[test]
fn the_sources_are_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut files = 0;
    for folder in [
        "src",
        "tests",
        "benches",
        "examples",
        "fuzz",
        "guest-images",
    ] {
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

#[test]
fn every_edge_is_used() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut used = Vec::new();
    for_each_source(root, Path::new("src"), &mut |path, text| {
        let place = module_path(path);
        let module = place.first().copied().unwrap_or("the crate");
        for (_, path) in used_paths(&place, &code_of(text)) {
            used.push((module.to_owned(), path));
        }
    });
    for (module, uses) in EDGES {
        for path in *uses {
            let found = used
                .iter()
                .any(|(by, used)| by == module && is_inside(used, path));
            assert!(found, "{module} uses {path} no more");
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
    if lines.len() > LINES_MAX {
        let what = format!("{} lines; a file has {LINES_MAX} at most", lines.len());
        report(lines.len() - 1, &what);
    }
    for (line, text) in lines.iter().enumerate() {
        if lifts_unsafe(text) && !may_lift_unsafe(path) {
            report(line, "unsafe outside src/sys");
        }
        if is_disabled_attribute(text) {
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
    let row = EDGES.iter().find(|(name, _)| *name == module);
    let allowed = row.is_some_and(|(_, uses)| uses.iter().any(|path| is_inside(used, path)));
    allowed || is_inside(used, module)
}

fn is_inside(used: &str, path: &str) -> bool {
    used.strip_prefix(path)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
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
                let is_module = braces.pop() == Some(true);
                if is_module {
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

/// Whether a line is an attribute that allows or expects `unsafe`.
fn lifts_unsafe(line: &str) -> bool {
    let line = line.trim_start();
    line.starts_with('#')
        && line.contains("unsafe_code")
        && ["allow", "expect", "warn"]
            .iter()
            .any(|level| line.contains(level))
}

fn may_lift_unsafe(path: &str) -> bool {
    UNSAFE
        .iter()
        .any(|place| path == *place || (place.ends_with('/') && path.starts_with(place)))
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

/// The text without comments and literals; every piece of code keeps its line.
fn code_of(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skipped = no_code(rest);
        let (piece, behind) = rest.split_at(skipped.max(first.len_utf8()));
        match skipped {
            0 => code.push(first),
            _ => code.extend(piece.chars().map(|c| if c == '\n' { c } else { ' ' })),
        }
        rest = behind;
    }
    code
}

/// Length of the comment or literal that `text` begins with; zero where there is none. Of characters
/// only those are seen that could be taken for something else.
fn no_code(text: &str) -> usize {
    let through = |open: &str, close: &str| {
        let end = text[open.len()..].find(close);
        end.map_or(text.len(), |end| open.len() + end + close.len())
    };
    if text.starts_with("//") {
        return text.find('\n').unwrap_or(text.len());
    }
    if text.starts_with("/*") {
        return through("/*", "*/");
    }
    if text.starts_with("r#\"") {
        return through("r#\"", "\"#");
    }
    if let Some(string) = text.strip_prefix('"') {
        let mut escaped = false;
        let end = string.find(|c| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        return end.map_or(text.len(), |end| end + 2);
    }
    let characters = ["'{'", "'}'", "'\"'", "'\\''", "'\\\\'"];
    let found = characters.iter().find(|each| text.starts_with(**each));
    found.map_or(0, |found| found.len())
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
        "/* use crate::sys; */ const TEXT: &str = \"\\\"crate::sys\";",
        "const TEXT: &str = r#\"a \"quoted\" crate::sys\"#;",
        "mod tests {\n    use super::super::pmap;\n    const BRACES: (char, &str) = ('{', \"}\");\n    use super::state;\n}",
        "fn f<'a>(b: &'a str) { g('\"', '\\'', \"crate::sys\", b) }",
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
fn unsafe_is_lifted_in_few_places() {
    for line in [
        "#![expect(unsafe_code)]",
        "    #[allow(unsafe_code, dead_code)]",
    ] {
        finds("src/mem/pager.rs", line, 1, "outside src/sys");
        finds("tests/cli.rs", line, 1, "outside src/sys");
        assert_eq!(problems("src/sys/ram.rs", line), Vec::<String>::new());
    }
    let denied = "#![deny(unsafe_code)]\n// unsafe_code is denied here\n";
    assert_eq!(problems("src/lib.rs", denied), Vec::<String>::new());
}

#[test]
fn disabled_attributes_are_found() {
    finds("tests/cli.rs", "// #[test]\nfn f() {}", 1, "commented out");
    finds(
        "src/lib.rs",
        "    //#![deny(unsafe_code)]",
        1,
        "commented out",
    );
    for text in ["/// #[test]\nfn f() {}", "// See #[test].", "#[test]"] {
        assert_eq!(
            problems("src/units.rs", text),
            Vec::<String>::new(),
            "{text}"
        );
    }
}

#[test]
fn long_files_are_found() {
    let line = "fn f() {}\n";
    let most = line.repeat(LINES_MAX);
    assert_eq!(problems("src/units.rs", &most), Vec::<String>::new());
    let long = most + line;
    finds("src/units.rs", &long, LINES_MAX + 1, "751 lines");
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
