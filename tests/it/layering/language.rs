//! Plain English: some forms that made this code hard to read are refused in code, tests and documents. Only a reader can
//! judge a text, but a program can find these forms.

use super::source::{Source, Token, Tokens};
use super::tree;
use std::fs;
use std::path::Path as File;

/// What is searched. The lists in this file are the one place that has to quote the forms.
const SEARCHED: &[&str] = &["src", "tests", "benches", "docs", "README.md", "CONTRIBUTING.md", "CHANGELOG.md"];
const THIS_FILE: &str = "tests/it/layering/language.rs";

/// Refused everywhere, with what to write instead.
const FORMS: &[(&str, &str)] =
    &[("is no ", "is not a, has no"), ("are no ", "are not, have no"), ("Where another", "If another")];

/// Refused in comments and documents. Elsewhere they may be the data of a test.
const FORMS_OF_PROSE: &[(&str, &str)] = &[
    ("nobody", "name the actor"),
    ("somebody", "name the actor"),
    ("whoever", "name the actor"),
    ("lets go", "releases"),
    ("goes on", "continues"),
];

/// Natural English that contains a refused form.
const NATURAL: &[&str] =
    &["here is no ", "here are no ", "is no longer", "are no longer", "is no more than", "are no more than"];

/// How a doc comment must not begin, because it is then incomplete on its own.
const BEGINNINGS: &[&str] = &["The same", "Of ", "That of", "So many", "See the module", "As ", "Whose "];

/// The macros of `tracing`. Their fields are read by people and programs: none of them is a dump of a Rust type.
const LOG_MACROS: &[&str] = &["trace", "debug", "info", "warn", "error", "event"];

/// Which refused forms this text has, a line each. A form may be split by the end of a line.
fn refused_forms(file: &str, text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let next = lines.get(at + 1).map_or("", |next| without_comment_marks(next));
        let joined = format!("{} {next}", line.trim_end());
        let is_prose = file.ends_with(".md") || line.trim_start().starts_with("//");
        let forms = FORMS.iter().chain(if is_prose { FORMS_OF_PROSE } else { &[] });
        let refused = forms.filter(|(form, _)| begins_in(&joined, form, line.trim_end().len()));
        found.extend(refused.map(|(form, instead)| format!("{file}:{}: {form:?}: write: {instead}", at + 1)));
        let first = at == 0 || doc_comment(lines[at - 1]).is_none();
        if let Some(text) = doc_comment(line).filter(|_| first) {
            let beginnings = BEGINNINGS.iter().filter(|beginning| text.starts_with(**beginning));
            let told = |beginning| format!("{file}:{}: a doc comment begins with {beginning:?}", at + 1);
            found.extend(beginnings.map(told));
        }
    }
    found
}

/// Whether the form begins in the first `len` bytes, and is not a part of natural English.
fn begins_in(text: &str, form: &str, len: usize) -> bool {
    text.match_indices(form).any(|(at, _)| {
        let natural = |phrase: &&&str| {
            let offset = phrase.find(form.trim_end());
            offset.and_then(|offset| text.get(at.checked_sub(offset)?..)).is_some_and(|rest| rest.starts_with(**phrase))
        };
        // A word that only ends like the form is another word: "this no".
        let whole_word = text[..at].chars().next_back().is_none_or(|before| !before.is_alphanumeric());
        at < len && whole_word && NATURAL.iter().find(natural).is_none()
    })
}

fn without_comment_marks(line: &str) -> &str {
    line.trim_start().trim_start_matches(['/', '!', '#', '*']).trim_start()
}

fn doc_comment(line: &str) -> Option<&str> {
    let line = line.trim_start();
    line.strip_prefix("///").or_else(|| line.strip_prefix("//!")).map(str::trim_start)
}

/// The lines of log macros that show a dump of a Rust type: a field with `?`, or `{:?}` in the message.
fn dumps(tokens: &Tokens) -> Vec<usize> {
    let mut found = Vec::new();
    for at in 0..tokens.len() {
        let is_macro = matches!(&tokens[at].1, Token::Word(word) if LOG_MACROS.contains(&word.as_str()));
        if !is_macro || !matches!(tokens.get(at + 1), Some((_, Token::Mark('!')))) {
            continue;
        }
        let mut depth = 0;
        for inside in at + 2..tokens.len() {
            match &tokens[inside].1 {
                Token::Mark('(') => depth += 1,
                Token::Mark(')') => depth -= 1,
                // A `?` after a value returns an error; one before a value dumps it.
                Token::Mark('?') if matches!(tokens[inside - 1].1, Token::Mark('=' | ',' | '(')) => {
                    found.push(tokens[inside].0);
                }
                Token::Text(text) if dumps_in(text) => found.push(tokens[inside].0),
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    found
}

/// Whether a message has `{:?}`. A constant is allowed: it is a duration, and `{RETRY_AFTER:?}` reads `5s`.
fn dumps_in(message: &str) -> bool {
    let names = message.split('{').skip(1).filter_map(|rest| rest.split_once('}')).filter_map(|(inside, _)| {
        let (name, format) = inside.split_once(':')?;
        format.contains('?').then_some(name)
    });
    names.into_iter().any(|name| name.is_empty() || name.chars().any(|c| c.is_lowercase()))
}

/// Every file that is searched, and its text.
fn searched() -> Vec<(String, String)> {
    let root = File::new(env!("CARGO_MANIFEST_DIR"));
    let mut waiting: Vec<_> = SEARCHED.iter().map(|name| root.join(name)).collect();
    let mut found = Vec::new();
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            waiting.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| ["rs", "md", "sh", "java"].iter().any(|e| extension == *e)) {
            let file = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            found.push((file, fs::read_to_string(&path).unwrap()));
        }
    }
    found.sort();
    found
}

#[test]
fn refused_forms_are_written_nowhere() {
    let files = searched();
    assert!(files.len() > 100, "{} files", files.len());
    let checked = files.iter().filter(|(file, _)| file != THIS_FILE);
    let found: Vec<String> = checked.flat_map(|(file, text)| refused_forms(file, text)).collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn log_lines_show_no_dump_of_a_rust_type() {
    let files = tree("src");
    let dumps = |(file, source): &(String, Source)| {
        dumps(&source.tokens).iter().map(|line| format!("{file}:{line}")).collect::<Vec<_>>()
    };
    let found: Vec<String> = files.iter().flat_map(dumps).collect();
    assert!(found.is_empty(), "these log lines dump a Rust type; show it with Display:\n{}", found.join("\n"));
}

#[test]
fn a_refused_form_is_found() {
    for (text, line) in [
        ("// A probe is no attempt.", 1),
        ("\n/// There are partitions that are\n/// no part of it.", 2),
        ("/// Where another process holds it", 1),
        ("    /// The same, with a limit.\n    fn f() {}", 1),
        ("//! Of the two, the second.", 1),
        ("// The file names nobody.", 1),
    ] {
        let found = refused_forms("a.rs", text);
        assert!(found.len() == 1 && found[0].starts_with(&format!("a.rs:{line}:")), "{text:?}: {found:?}");
    }
}

#[test]
fn natural_english_is_left_alone() {
    for text in [
        "There is no such topic, and there are no partitions.",
        "/// It is no longer assigned\n/// The same holds for a doc comment's second line.",
        "This note is short.",
        "let user = \"nobody\";",
        "/// Often asked",
    ] {
        assert_eq!(refused_forms("a.rs", text), [""; 0], "{text:?}");
    }
}

#[test]
fn a_dump_in_a_log_line_is_found() {
    let found = |text: &str| dumps(&Source::read(text).tokens);
    for text in [
        "fn f() { warn!(?state, \"stopped\"); }",
        "fn f() { tracing::info!(a = 1, state = ?state, \"stopped\") }",
        "fn f() { debug!(\"stopped: {state:?}\") }",
        "fn f() { info!(a = g(1), \"b {:?}\", c) }",
    ] {
        assert_eq!(found(text), [1], "{text}");
    }
    for text in [
        "fn f() { warn!(%state, size_bytes = size()?, \"stopped after {WAIT_MAX:?}\") }",
        "fn f() { panic!(\"{state:?}\") }",
    ] {
        assert_eq!(found(text), [0; 0], "{text}");
    }
}
