//! What is wrong with a configuration file: where, what was found, what is allowed, what to do.
#![forbid(unsafe_code)]

use std::fmt;
use std::ops::Range;

/// One thing that is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Diagnostic {
    /// Octets of the file that it is about.
    pub span: Range<usize>,
    /// The key, such as `rule[0].remote`; tables in a list are counted from 0.
    pub key: String,
    /// What was found there.
    pub found: String,
    /// What is allowed there.
    pub allowed: String,
    /// What to do about it.
    pub help: String,
}

/// All that is wrong with a file. Its text is what `plait run --check` prints.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigErrors {
    /// Path of the file.
    pub file: String,
    /// What it holds.
    pub text: String,
    /// At least one, in the order of the file.
    pub errors: Vec<Diagnostic>,
}

impl ConfigErrors {
    pub(super) fn new(file: &str, text: &str, mut errors: Vec<Diagnostic>) -> ConfigErrors {
        errors.sort_by_key(|e| (e.span.start, e.span.end));
        ConfigErrors { file: file.to_owned(), text: text.to_owned(), errors }
    }
}

impl std::error::Error for ConfigErrors {}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.errors.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write_one(f, &self.file, &self.text, error)?;
        }
        Ok(())
    }
}

fn write_one(f: &mut fmt::Formatter<'_>, file: &str, text: &str, e: &Diagnostic) -> fmt::Result {
    let place = Place::of(text, e.span.start);
    writeln!(f, "{file}:{}:{}: {}: {}", place.line, place.column, e.key, e.found)?;
    let number = place.line.to_string();
    let margin = " ".repeat(number.len());
    let marked = text.get(e.span.clone()).and_then(|t| t.lines().next()).map_or(1, |t| {
        let room = place.source.chars().count().saturating_sub(place.column - 1);
        t.chars().count().clamp(1, room.max(1))
    });
    writeln!(f, "  {number} | {}", place.source)?;
    writeln!(f, "  {margin} | {}{}", " ".repeat(place.column - 1), "^".repeat(marked))?;
    writeln!(f, "  {margin} = allowed: {}", e.allowed)?;
    writeln!(f, "  {margin} = do: {}", e.help)
}

/// A place in a text; line and column count from 1, columns in characters.
pub(super) struct Place<'a> {
    pub line: usize,
    pub column: usize,
    /// The whole line, tabs as one blank so that columns line up.
    pub source: std::borrow::Cow<'a, str>,
}

impl Place<'_> {
    pub(super) fn of(text: &str, offset: usize) -> Place<'_> {
        let mut offset = offset.min(text.len());
        while !text.is_char_boundary(offset) {
            offset -= 1;
        }
        let (before, after) = text.split_at(offset);
        let start = before.rfind('\n').map_or(0, |i| i + 1);
        let end = after.find('\n').map_or(text.len(), |i| offset + i);
        let source = text[start..end].trim_end_matches('\r');
        Place {
            line: before.matches('\n').count() + 1,
            column: text[start..offset].chars().count() + 1,
            source: if source.contains('\t') {
                source.replace('\t', " ").into()
            } else {
                source.into()
            },
        }
    }
}

/// The one of `allowed` that is spelled most like `word`, if any is near.
pub(super) fn nearest<'a>(
    word: &str,
    allowed: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    allowed
        .into_iter()
        .map(|a| (distance(word, a), a))
        .filter(|&(d, a)| d <= 1 + a.chars().count() / 4)
        .min()
        .map(|(_, a)| a)
}

/// Levenshtein's distance, letters' case and `_` for `-` not counted.
fn distance(a: &str, b: &str) -> usize {
    let fold = |s: &str| s.to_lowercase().replace('_', "-").chars().collect::<Vec<_>>();
    let (a, b) = (fold(a), fold(b));
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (slot, y) in row.iter_mut().skip(1).zip(&b) {
            let cost = (diagonal + usize::from(x != y)).min(*slot + 1).min(left + 1);
            diagonal = *slot;
            *slot = cost;
            left = cost;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_counts_lines_and_characters_from_one() {
        let text = "a = 1\nß = \"x\"\r\n";
        let place = Place::of(text, text.find("\"x").unwrap());
        assert_eq!((place.line, place.column, &*place.source), (2, 5, "ß = \"x\""));
        let end = Place::of(text, 999);
        assert_eq!((end.line, end.column), (3, 1));
    }

    #[test]
    fn nearest_forgives_a_typing_error_but_does_not_guess_wildly() {
        assert_eq!(nearest("tcp_ports", ["tcp-ports", "to"]), Some("tcp-ports"));
        assert_eq!(nearest("adresses", ["addresses", "device"]), Some("addresses"));
        assert_eq!(nearest("lam", ["lan", "wan1"]), Some("lan"));
        assert_eq!(nearest("colour", ["addresses", "device"]), None);
    }
}
