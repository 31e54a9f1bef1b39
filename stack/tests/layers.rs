//! Which module of this crate may use which, and what every file has to look like.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Bottom to top: a module and the modules that it may use.
const FLOORS: &[(&str, &[&str])] = &[
    ("checksum", &[]),
    ("time", &[]),
    ("rng", &[]),
    ("buf", &["checksum"]),
    ("blocks", &[]),
    ("wheel", &["time", "blocks"]),
    ("wire", &["buf", "checksum"]),
    ("tcp", &["wire", "buf", "time", "rng", "checksum"]),
    ("mptcp", &["tcp", "wire", "buf", "time", "rng", "checksum"]),
    ("shard", &["tcp", "wire", "buf", "time", "rng", "blocks", "wheel"]),
    ("mcp", &["shard", "mptcp", "tcp", "wire", "buf", "time", "rng"]),
    (
        "testkit",
        &["mcp", "shard", "mptcp", "tcp", "wire", "buf", "time", "rng", "wheel", "checksum"],
    ),
];

/// Lines of a file before its tests.
const MAX_LINES: usize = 650;

/// The only file that may hold unsafe code.
const UNSAFE: &str = "buf/pool.rs";

/// A source file: its path below `src`, its code without comments, and where its tests begin.
struct Source {
    path: PathBuf,
    text: String,
    code: String,
    tests: String,
}

impl Source {
    fn new(path: &Path, text: String) -> Source {
        let is_test = path.components().any(|c| {
            let name = c.as_os_str().to_string_lossy();
            name == "tests" || name == "tests.rs" || name.ends_with("_tests.rs")
        });
        let at = text.lines().position(|l| l.starts_with("#[cfg(test)]")).unwrap_or(usize::MAX);
        let at = if is_test { 0 } else { at };
        let part = |lines: &mut dyn Iterator<Item = &str>| {
            lines.map(|l| l.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n")
        };
        let code = part(&mut text.lines().take(at));
        let tests = part(&mut text.lines().skip(at));
        Source { path: path.to_path_buf(), text, code, tests }
    }

    /// The module under the crate root that the file belongs to; `None` for the root.
    fn module(&self) -> Option<String> {
        let first = self.path.iter().next()?.to_string_lossy().into_owned();
        let name = first.strip_suffix(".rs").unwrap_or(&first).to_owned();
        (name != "lib").then_some(name)
    }

    /// How many `super` lead from the file's module to the crate root.
    fn depth(&self) -> usize {
        let is_mod = self.path.file_name().is_some_and(|n| n == "mod.rs");
        self.path.iter().count() - usize::from(is_mod)
    }
}

fn sources() -> Vec<Source> {
    fn walk(root: &Path, dir: &Path, out: &mut Vec<Source>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(root, &path, out);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                out.push(Source::new(path.strip_prefix(root).unwrap(), text));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut out = Vec::new();
    walk(&root, &root, &mut out);
    assert!(out.len() > 10, "the sources are where they were");
    out
}

/// The identifier at the start of `s`.
fn ident(s: &str) -> &str {
    let end = s.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(s.len());
    &s[..end]
}

/// The first names of what follows `crate::`: one, or all of a `{group}`.
fn heads(after: &str) -> Vec<&str> {
    let Some(group) = after.strip_prefix('{') else { return vec![ident(after)] };
    let (mut depth, mut start, mut out) = (0, true, Vec::new());
    for (i, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => start = true,
            c if start && !c.is_whitespace() => {
                out.push(ident(&group[i..]));
                start = false;
            }
            _ => {}
        }
    }
    out
}

/// Modules of the crate root that `code` names, by `crate::` or by enough `super::`.
fn used(code: &str, depth: usize) -> BTreeSet<&str> {
    let boundary = |at: usize| {
        !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$' || c == ':')
    };
    let mut out = BTreeSet::new();
    let up = "super::".repeat(depth);
    for root in ["crate::", &up] {
        for (at, _) in code.match_indices(root) {
            let after = &code[at + root.len()..];
            if boundary(at) && !after.starts_with("super") {
                out.extend(heads(after));
            }
        }
    }
    out
}

#[test]
fn modules_use_only_the_floors_below_them() {
    let mut wrong = Vec::new();
    for source in sources() {
        let Some(module) = source.module() else { continue };
        let Some((_, allowed)) = FLOORS.iter().find(|(name, _)| *name == module) else {
            wrong.push(format!("{module} has no row in FLOORS"));
            continue;
        };
        let in_code = used(&source.code, source.depth()).into_iter().map(|name| (name, false));
        let in_tests = used(&source.tests, source.depth() + 1).into_iter().map(|name| (name, true));
        for (name, test) in in_code.chain(in_tests) {
            let known = FLOORS.iter().any(|(floor, _)| *floor == name);
            let fine = name == module || allowed.contains(&name) || (test && name == "testkit");
            if known && !fine {
                wrong.push(format!("{} uses crate::{name}", source.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_module_uses_only_rows_above_it_in_the_table() {
    for (row, (module, allowed)) in FLOORS.iter().enumerate() {
        for name in *allowed {
            let at = FLOORS.iter().position(|(floor, _)| floor == name);
            assert!(at.is_some_and(|at| at < row), "{module} is not above {name}");
        }
    }
}

#[test]
fn every_root_module_is_in_the_table() {
    let lib = sources().into_iter().find(|s| s.module().is_none()).unwrap();
    for line in lib.code.lines().filter_map(|l| l.trim().strip_prefix("pub mod ")) {
        assert!(FLOORS.iter().any(|(floor, _)| *floor == ident(line)), "{line}");
    }
}

#[test]
fn every_file_forbids_unsafe_code_itself_or_by_its_parent() {
    let all = sources();
    let forbids = |s: &Source| s.text.lines().any(|l| l == "#![forbid(unsafe_code)]");
    let mut wrong = Vec::new();
    for source in &all {
        let path = source.path.to_string_lossy();
        let parent_of_pool = ["lib.rs", "buf/mod.rs"].contains(&&*path);
        let empty = source.code.trim().is_empty() && source.tests.trim().is_empty();
        let ancestors = source.path.ancestors().skip(1).filter(|a| *a != Path::new(""));
        let parents: Vec<PathBuf> =
            ancestors.flat_map(|a| [a.join("mod.rs"), a.with_extension("rs")]).collect();
        let by_parent = all.iter().any(|s| parents.contains(&s.path) && forbids(s));
        if path == UNSAFE || parent_of_pool || empty || by_parent || forbids(source) {
            continue;
        }
        wrong.push(path.into_owned());
    }
    assert!(wrong.is_empty(), "without #![forbid(unsafe_code)]: {wrong:#?}");
}

#[test]
fn the_parents_of_the_pool_hold_no_unsafe_code_themselves() {
    for source in
        sources().iter().filter(|s| s.path.ends_with("lib.rs") || s.path.ends_with("buf/mod.rs"))
    {
        assert!(!source.code.contains("unsafe "), "{}", source.path.display());
    }
}

#[test]
fn every_file_says_where_you_are() {
    let first = |s: &Source| s.text.lines().next().is_some_and(|l| l.starts_with("//! "));
    let wrong: Vec<PathBuf> = sources().into_iter().filter(|s| !first(s)).map(|s| s.path).collect();
    assert!(wrong.is_empty(), "no `//!` in the first line: {wrong:#?}");
}

#[test]
fn no_file_is_longer_than_one_idea() {
    let long = |s: &Source| s.code.lines().count() > MAX_LINES;
    let wrong: Vec<PathBuf> = sources().into_iter().filter(long).map(|s| s.path).collect();
    assert!(wrong.is_empty(), "more than {MAX_LINES} lines before the tests: {wrong:#?}");
}

#[test]
fn the_scanner_sees_through_groups_and_paths() {
    let names = |code, depth| used(code, depth).into_iter().collect::<Vec<_>>();
    assert_eq!(names("use crate::{buf::{Chain, Pool}, mcp};", 2), ["buf", "mcp"]);
    assert_eq!(names("let x = crate::tcp::Tcb::new();", 2), ["tcp"]);
    assert_eq!(names("use super::super::shard::Shard;", 2), ["shard"]);
    assert_eq!(names("use super::{tcp, mcp};", 1), ["mcp", "tcp"]);
    assert!(names("use super::Chain; pub(in super::super) fn f() {}", 2).is_empty());
    assert!(names("$crate::mcp!(), not_crate::mcp", 2).is_empty());
    let source =
        Source::new(Path::new("tcp/tcb.rs"), "use a; // crate::mcp\n#[cfg(test)]\nuse b;".into());
    assert_eq!(
        (source.code.as_str(), source.tests.trim(), source.depth()),
        ("use a; ", "#[cfg(test)]\nuse b;", 2)
    );
    assert_eq!(source.module().as_deref(), Some("tcp"));
}
