//! Which rule of which RFC is kept where, and which test shows it: `docs/COMPLIANCE.md`, made from citations.
//!
//! `docs/requirements/rfc<n>.toml` lists the rules. A comment cites one by its name: `MUST-36` (RFC 9293 numbers its own) or
//! `RFC 8985 6.2(c)`. This test fails on a rule that is not accounted for, on a citation of a rule that is not listed, and when
//! the page is not what the citations say: `BLESS=1 cargo test -p plait-stack --test compliance` writes it.

use regex_lite::Regex;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// What the rules of RFC 9293 are called wherever they are cited.
const OWN_NUMBERS: u32 = 9293;
/// Where citations count.
const SOURCES: [&str; 6] =
    ["stack/src", "stack/tests", "dataplane/src", "dataplane/tests", "tools/src", "tools/tests"];

/// A rule: the RFC, and its name in the catalogue (`MUST-36`, `6.2(c)`).
type RuleId = (u32, String);

/// One file of `docs/requirements`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Catalogue {
    title: String,
    #[serde(default)]
    must: BTreeMap<String, String>,
    #[serde(default)]
    should: BTreeMap<String, String>,
    #[serde(default)]
    may: BTreeMap<String, String>,
    /// Steps of an algorithm, which have no keyword.
    #[serde(default)]
    step: BTreeMap<String, String>,
    /// Rules that are not kept, or not by this program, and why.
    #[serde(default)]
    except: BTreeMap<String, String>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Must,
    Should,
    May,
    Step,
}

impl Catalogue {
    fn rules(&self) -> impl Iterator<Item = (Level, &String, &String)> {
        let of = |level, rules| {
            let rules: &BTreeMap<String, String> = rules;
            rules.iter().map(move |(name, text)| (level, name, text))
        };
        of(Level::Must, &self.must)
            .chain(of(Level::Should, &self.should))
            .chain(of(Level::May, &self.may))
            .chain(of(Level::Step, &self.step))
    }
}

/// Where a rule is cited: `file function`, without line numbers, which every edit would change.
#[derive(Default)]
struct Cited {
    code: BTreeSet<String>,
    tests: BTreeSet<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Code,
    Test,
}

/// Finds citations, line by line.
struct Citations {
    pattern: Regex,
    letter: Regex,
    /// The RFC named last in the comment: what follows may name further rules of it by section and letter alone.
    rfc: Option<u32>,
}

impl Citations {
    fn new() -> Citations {
        let section = r"[0-9A-G]+(?:\.[0-9]+)*";
        let own = r"\b((?:MUST|SHLD|MAY|REC)-[0-9]+)\b";
        let named = format!(r"\bRFC ([0-9]+)(?: ({section})((?:\([a-z]\))*))?");
        let bare = format!(
            r"(?:^|[ (])({section})((?:\([a-z]\))+)|(?:, |and |\()([0-9]+(?:\.[0-9]+)+)((?:\([a-z]\))*)"
        );
        let regex = |pattern: &str| Regex::new(pattern).expect("a pattern of ours");
        Citations {
            pattern: regex(&format!("{own}|{named}|{bare}")),
            letter: regex(r"\([a-z]\)"),
            rfc: None,
        }
    }

    /// The rules that the next line of a file cites.
    fn of(&mut self, line: &str) -> Vec<RuleId> {
        let mut found = Vec::new();
        if !line.contains("//") {
            self.rfc = None;
        }
        for m in self.pattern.captures_iter(line) {
            if let Some(own) = m.get(1) {
                found.push((OWN_NUMBERS, own.as_str().to_owned()));
                continue;
            }
            if let Some(rfc) = m.get(2) {
                self.rfc = rfc.as_str().parse().ok();
            }
            let Some(rfc) = self.rfc else { continue };
            let Some(section) = m.get(3).or(m.get(5)).or(m.get(7)) else { continue };
            let letters = m.get(4).or(m.get(6)).or(m.get(8)).map_or("", |letters| letters.as_str());
            let section = section.as_str();
            if letters.is_empty() {
                found.push((rfc, section.to_owned()));
            }
            let letters = self.letter.find_iter(letters);
            found.extend(letters.map(|letter| (rfc, format!("{section}{}", letter.as_str()))));
        }
        found
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> =
        fs::read_dir(dir).expect("a directory").map(|e| e.expect("an entry").path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs" || e == "pkt") {
            found.push(path);
        }
    }
}

fn is_test(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "pkt")
        || path.components().any(|c| matches!(c.as_os_str().to_str(), Some("tests" | "tests.rs")))
}

/// Collects the citations of one file.
fn scan(path: &Path, name: &str, rules: &mut BTreeMap<RuleId, Cited>) {
    let mut citations = Citations::new();
    let text = fs::read_to_string(path).expect("source text");
    let mut place = if is_test(path) { Place::Test } else { Place::Code };
    let function =
        Regex::new(r"^\s*(?:pub(?:\([a-z ]+\))? )?(?:const )?fn ([a-z0-9_]+)").expect("");
    let lines: Vec<&str> = text.lines().collect();
    let mut around = None;
    for (i, line) in lines.iter().enumerate() {
        if line.starts_with("#[cfg(test)]") {
            place = Place::Test;
        }
        if let Some(m) = function.captures(line) {
            around = Some(m[1].to_owned());
        } else if *line == "}" {
            around = None;
        }
        let cited = citations.of(line);
        if cited.is_empty() || name.ends_with("compliance.rs") {
            continue;
        }
        // A comment in front of a function is about that function.
        let is_comment =
            |l: &&&str| l.trim_start().starts_with("//") || l.trim_start().starts_with("#[");
        let ahead = lines[i..].iter().find(|l| !is_comment(l)).and_then(|l| function.captures(l));
        let function =
            ahead.filter(|_| line.trim_start().starts_with("//")).map(|m| m[1].to_owned());
        let at = match function.or_else(|| around.clone()) {
            Some(function) => format!("{name} {function}"),
            None => name.to_owned(),
        };
        for rule in cited {
            let cited = rules.entry(rule).or_default();
            match place {
                Place::Code => cited.code.insert(at.clone()),
                Place::Test => cited.tests.insert(at.clone()),
            };
        }
    }
}

fn citations() -> BTreeMap<RuleId, Cited> {
    let root = root();
    let mut rules = BTreeMap::new();
    for source in SOURCES {
        let mut found = Vec::new();
        files(&root.join(source), &mut found);
        for path in found {
            let name =
                path.strip_prefix(&root).expect("below the root").to_string_lossy().into_owned();
            scan(&path, &name, &mut rules);
        }
    }
    rules
}

fn catalogues() -> BTreeMap<u32, Catalogue> {
    let dir = root().join("docs/requirements");
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).expect("docs/requirements") {
        let path = entry.expect("an entry").path();
        let stem = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let number = stem.strip_prefix("rfc").and_then(|n| n.parse().ok());
        let number = number.unwrap_or_else(|| panic!("{}: not rfc<n>.toml", path.display()));
        let text = fs::read_to_string(&path).expect("text");
        let read = toml::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        found.insert(number, read);
    }
    found
}

/// `6.10(b)` comes after `6.2(a)`, `MUST-10` after `MUST-9`.
fn natural(name: &str) -> Vec<(u32, String)> {
    let mut parts = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, after) = rest.split_at(digits);
        let word = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (word, after) = after.split_at(word);
        parts.push((number.parse().unwrap_or(0), word.to_owned()));
        rest = after;
    }
    parts
}

/// What is wrong with one rule, if anything is.
fn fault(level: Level, excuse: Option<&String>, cited: Option<&Cited>) -> Option<&'static str> {
    let code = cited.is_some_and(|c| !c.code.is_empty());
    let tests = cited.is_some_and(|c| !c.tests.is_empty());
    match (excuse, level) {
        (Some(_), _) if tests => Some("is an exception, and yet a test shows that it is kept"),
        (Some(_), _) => None,
        (None, Level::Must) if code && !tests => Some("is cited in code and in no test"),
        (None, Level::Must) if !tests => Some("is cited nowhere: build it, or say why not"),
        (None, Level::Should | Level::May | Level::Step) if !code && !tests => {
            Some("is cited nowhere: build it, or say why not")
        }
        _ => None,
    }
}

fn short(at: &str) -> String {
    let (file, function) = at.split_once(' ').unwrap_or((at, ""));
    let file = file.replace("/src/", "/").replace("stack/tests/scripts/", "scripts/");
    if function.is_empty() { format!("`{file}`") } else { format!("`{file}` `{function}`") }
}

fn cell(places: Option<&BTreeSet<String>>) -> String {
    const MOST: usize = 3;
    let places = places.into_iter().flatten();
    let all: Vec<String> = places.map(|at| short(at)).collect();
    let mut cell = all[..all.len().min(MOST)].join("<br>");
    if all.len() > MOST {
        let _ = write!(cell, "<br>and {} more", all.len() - MOST);
    }
    cell
}

fn page(catalogues: &BTreeMap<u32, Catalogue>, cited: &BTreeMap<RuleId, Cited>) -> String {
    let mut page = String::from(
        "# Compliance\n\nRules of the RFCs that Plait's TCP keeps, where, and the test that shows it. Made from citations in code and tests by \
         `stack/tests/compliance.rs`\n(`BLESS=1 cargo test -p plait-stack --test compliance`), which fails when a rule is not accounted for. \
         The wording is ours.\n",
    );
    for (rfc, catalogue) in catalogues {
        let _ = write!(
            page,
            "\n## RFC {rfc}: {}\n\n| | Rule | Kept in | Shown by |\n|---|---|---|---|\n",
            catalogue.title
        );
        let mut rules: Vec<_> = catalogue.rules().collect();
        rules.sort_by_key(|(level, name, _)| {
            (if *rfc == OWN_NUMBERS { Some(*level) } else { None }, natural(name))
        });
        for (level, name, text) in rules {
            let label = match (*rfc == OWN_NUMBERS, level) {
                (true, _) => name.clone(),
                (false, Level::Must) => format!("{name} MUST"),
                (false, Level::Should) => format!("{name} SHOULD"),
                (false, Level::May) => format!("{name} MAY"),
                (false, Level::Step) => name.clone(),
            };
            let places = cited.get(&(*rfc, name.clone()));
            match catalogue.except.get(name) {
                Some(reason) => {
                    let _ = writeln!(page, "| {label} | {text} | not kept: {reason} | |");
                }
                None => {
                    let code = cell(places.map(|p| &p.code));
                    let tests = cell(places.map(|p| &p.tests));
                    let _ = writeln!(page, "| {label} | {text} | {code} | {tests} |");
                }
            }
        }
    }
    page
}

#[test]
fn every_rule_is_accounted_for() {
    let (catalogues, cited) = (catalogues(), citations());
    let mut faults = Vec::new();
    for (rfc, catalogue) in &catalogues {
        let mut known = BTreeSet::new();
        for (level, name, _) in catalogue.rules() {
            assert!(known.insert(name), "RFC {rfc}: {name} is listed twice");
            let places = cited.get(&(*rfc, name.clone()));
            if let Some(fault) = fault(level, catalogue.except.get(name), places) {
                faults.push(format!("RFC {rfc} {name} {fault}"));
            }
        }
        let strange = catalogue.except.keys().filter(|name| !known.contains(name));
        faults.extend(strange.map(|name| format!("RFC {rfc} {name} is an exception to no rule")));
    }
    for ((rfc, name), places) in &cited {
        let names_a_rule = name.contains('(') || *rfc == OWN_NUMBERS && name.contains('-');
        let listed = catalogues.get(rfc).is_some_and(|c| c.rules().any(|(_, n, _)| n == name));
        if names_a_rule && !listed {
            let at = places.code.iter().chain(&places.tests).next().expect("cited somewhere");
            faults.push(format!("RFC {rfc} {name} is cited in {at} but not listed"));
        }
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));

    let file = root().join("docs/COMPLIANCE.md");
    let page = page(&catalogues, &cited);
    if std::env::var_os("BLESS").is_some() {
        fs::write(&file, &page).expect("docs/COMPLIANCE.md is written");
    }
    let stored = fs::read_to_string(&file).unwrap_or_default();
    assert!(
        stored == page,
        "docs/COMPLIANCE.md is old: BLESS=1 cargo test -p plait-stack --test compliance"
    );
}

#[test]
fn citations_are_found_as_they_are_written() {
    let of = |line| Citations::new().of(line);
    let id = |rfc, name: &str| (rfc, name.to_owned());
    assert_eq!(of("// MUST-36: probed"), [id(9293, "MUST-36")]);
    assert_eq!(of("/// RFC 8985 6.2(c): once"), [id(8985, "6.2(c)")]);
    assert_eq!(of("// RFC 5961 3.2(a)(b)."), [id(5961, "3.2(a)"), id(5961, "3.2(b)")]);
    assert_eq!(of("// RFC 7323 5.3. Also SHLD-4"), [id(7323, "5.3"), id(9293, "SHLD-4")]);
    assert_eq!(of("let n = f(36);"), []);
    let mut comment = Citations::new();
    assert_eq!(comment.of("// RFC 3168 6.1.1(b): ECE alone."), [id(3168, "6.1.1(b)")]);
    assert_eq!(comment.of("// 6.1.3(a): echoed, in 1.5 s (see 4)."), [id(3168, "6.1.3(a)")]);
    assert_eq!(comment.of("// by 6.1.4, 6.1.5"), [id(3168, "6.1.5")]);
    assert_eq!(comment.of("+0 < S 0:0(0)"), []);
    assert_eq!(comment.of("// 6.1.3(a)"), [], "of which RFC?");
}

#[test]
fn a_must_needs_a_test_and_an_exception_must_not_have_one() {
    let cited = |code: &[&str], tests: &[&str]| Cited {
        code: code.iter().map(|s| (*s).to_owned()).collect(),
        tests: tests.iter().map(|s| (*s).to_owned()).collect(),
    };
    let reason = String::from("a reason");
    let (both, code, test) = (cited(&["a"], &["b"]), cited(&["a"], &[]), cited(&[], &["b"]));
    assert_eq!(fault(Level::Must, None, Some(&both)), None);
    assert_eq!(fault(Level::Must, None, Some(&test)), None, "kept by what is not there");
    assert!(fault(Level::Must, None, Some(&code)).is_some());
    assert!(fault(Level::Must, None, None).is_some());
    assert_eq!(fault(Level::Should, None, Some(&code)), None);
    assert!(fault(Level::Should, None, None).is_some());
    assert_eq!(fault(Level::Must, Some(&reason), None), None);
    assert!(fault(Level::Must, Some(&reason), Some(&both)).is_some());
}
