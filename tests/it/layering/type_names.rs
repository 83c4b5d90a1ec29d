//! One name means one thing: a type's name exists once in `src/`.

use super::source::{Source, Token, Tokens};
use super::tree;
use std::collections::BTreeMap;

/// Names that are always written with their module (`log::Error`, `dispatch::Config`), so they may exist in several.
const WRITTEN_WITH_THEIR_MODULE: &[&str] = &["Error", "Config"];

/// The types that this source defines outside its tests. Associated types are left out: their name belongs to a trait.
fn types(tokens: &Tokens) -> Vec<String> {
    let mut found = Vec::new();
    // For each open brace, whether it is the body of an `impl` or a `trait`.
    let mut bodies = Vec::new();
    let mut opens_associated_items = false;
    for (at, (_, token)) in tokens.iter().enumerate() {
        match token {
            Token::Mark('{') => bodies.push(std::mem::take(&mut opens_associated_items)),
            Token::Mark('}') => drop(bodies.pop()),
            Token::Mark(';') => opens_associated_items = false,
            Token::Word(word) => {
                let starts_item =
                    at == 0 || !matches!(tokens[at - 1].1, Token::Mark('(' | ',' | ':' | '<' | '&' | '='));
                opens_associated_items |= (word == "impl" && starts_item) || word == "trait";
                let defines = ["struct", "enum", "trait", "union", "type"].contains(&word.as_str());
                let associated = word == "type" && bodies.last() == Some(&true);
                if let (true, false, Some((_, Token::Word(name)))) = (defines, associated, tokens.get(at + 1)) {
                    found.push(name.clone());
                }
            }
            _ => {}
        }
    }
    found
}

/// Each name that several files define, with these files.
fn defined_more_than_once(files: &[(String, Source)]) -> Vec<String> {
    let mut homes: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (file, source) in files {
        for name in types(&source.tokens) {
            homes.entry(name).or_default().push(file);
        }
    }
    let allowed = |name: &str| WRITTEN_WITH_THEIR_MODULE.contains(&name);
    let repeated = homes.into_iter().filter(|(name, files)| files.len() > 1 && !allowed(name));
    repeated.map(|(name, files)| format!("{name}: {}", files.join(", "))).collect()
}

#[test]
fn a_type_name_exists_once_in_the_product() {
    let repeated = defined_more_than_once(&tree("src"));
    assert!(
        repeated.is_empty(),
        "one name means one thing, but these are defined in several files:\n{}",
        repeated.join("\n")
    );
}

#[test]
fn types_are_found_where_they_are_defined() {
    let text = "struct A { of: u8 }\nimpl Iterator for A { type Item = u8; fn f(&self) -> impl B { 1 } }\n\
                pub(crate) trait C { type D; }\ntype E<'a> = Box<dyn Fn() + 'a>;\nenum F { G }\n\
                // struct H;\n#[cfg(test)] mod tests { struct I; }\nfn f(a: impl C) { struct J; }";
    assert_eq!(types(&Source::read(text).tokens), ["A", "C", "E", "F", "J"]);
}

#[test]
fn a_name_that_two_files_define_is_refused() {
    let files =
        [("src/a.rs", "struct Twice;"), ("src/b.rs", "enum Twice {}"), ("src/c.rs", "struct Error; struct Once;")];
    let files = files.map(|(file, text)| (file.to_owned(), Source::read(text)));
    assert_eq!(defined_more_than_once(&files), ["Twice: src/a.rs, src/b.rs"]);
}
