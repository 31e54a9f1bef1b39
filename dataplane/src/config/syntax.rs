//! Mistakes against TOML or the schema, in the words of a [`Diagnostic`].
#![forbid(unsafe_code)]

use super::diagnostic::{Diagnostic, Place, nearest};
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// What `error`, found while reading `text`, means to the one who wrote it.
pub(super) fn explain(text: &str, error: &toml::de::Error) -> Diagnostic {
    let span = error.span().unwrap_or(0..0);
    let table = DeTable::parse(text).ok();
    let key = table.as_ref().and_then(|t| key_at(t.get_ref(), &span));
    let message = error.message();
    let (found, expected) = message.split_once(", expected ").unwrap_or((message, ""));
    let words = || expected.split('`').skip(1).step_by(2);
    let (allowed, help) = if let Some(word) = quoted(found, "unknown field `") {
        let help = match nearest(word, words()) {
            Some(near) => format!("write `{near}`, or remove the line"),
            None => "remove the line, or move it to the table it belongs to".to_owned(),
        };
        (list(words()), help)
    } else if let Some(word) = quoted(found, "unknown variant `") {
        let help = match nearest(word, words()) {
            Some(near) => format!("write \"{near}\""),
            None => "write one of the allowed words".to_owned(),
        };
        (list(words()), help)
    } else if let Some(field) = quoted(found, "missing field `") {
        (format!("`{field}` is required"), format!("add the line: {field} = ..."))
    } else if found.starts_with("invalid type") {
        let allowed = if expected == "i64" { "a whole number, without quotes" } else { expected };
        (allowed.to_owned(), "write the value as docs/CONFIGURATION.md shows it".to_owned())
    } else if table.is_none() {
        let allowed = match expected {
            "" | "nothing" => "TOML (https://toml.io)",
            expected => expected,
        };
        let help = match found.contains("duplicate") {
            true => "remove one of the two",
            false => "correct the notation here or on the line before; texts go in quotes",
        };
        (allowed.to_owned(), help.to_owned())
    } else {
        ("see docs/CONFIGURATION.md".to_owned(), "correct this line".to_owned())
    };
    // Where the notation is broken there is no table to look in: the line has to do.
    let key = key.or_else(|| word_at(text, span.start)).unwrap_or_else(|| "file".to_owned());
    Diagnostic { span, key, found: found.to_owned(), allowed, help }
}

/// The key, or the table's header, on the line of `offset`.
fn word_at(text: &str, offset: usize) -> Option<String> {
    let line = Place::of(text, offset).source;
    let word = line.split('=').next()?.trim().trim_matches(['[', ']']);
    (!word.is_empty()).then(|| word.to_owned())
}

fn quoted<'a>(text: &'a str, start: &str) -> Option<&'a str> {
    text.strip_prefix(start)?.split('`').next()
}

fn list<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let words: Vec<&str> = words.collect();
    words.join(", ")
}

/// The path of the innermost key whose name or value holds `span`.
fn key_at(table: &DeTable<'_>, span: &Range<usize>) -> Option<String> {
    let holds = |outer: Range<usize>| outer.start <= span.start && span.end <= outer.end;
    for (name, value) in table {
        if holds(name.span()) {
            return Some(name.get_ref().to_string());
        }
        if let Some(inner) = inside(value, span) {
            return Some(format!("{}{inner}", name.get_ref()));
        }
        if holds(value.span()) {
            return Some(name.get_ref().to_string());
        }
    }
    None
}

/// The rest of the path below `value`. Spans of tables end with their header, so that tables are searched regardless.
fn inside(value: &Spanned<DeValue<'_>>, span: &Range<usize>) -> Option<String> {
    match value.get_ref() {
        DeValue::Table(table) => key_at(table, span).map(|key| format!(".{key}")),
        DeValue::Array(array) => array.iter().enumerate().find_map(|(i, element)| {
            if let Some(inner) = inside(element, span) {
                return Some(format!("[{i}]{inner}"));
            }
            let outer = element.span();
            (outer.start <= span.start && span.end <= outer.end).then(|| format!("[{i}]"))
        }),
        _ => None,
    }
}
