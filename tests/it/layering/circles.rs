//! No two neighbours name each other: within one folder of `src/`, files and folders only name one another in one
//! direction, so that each can be read after those that it needs.

use super::source::{Path, Source};
use super::{module_of, tree};
use std::collections::BTreeSet;

/// The path from the root of the crate: `super::wait::Hub` in `sqlite::writer` is `["sqlite", "wait", "Hub"]`.
fn absolute(module: &[String], path: &Path) -> Option<Vec<String>> {
    let supers = path.words.iter().take_while(|word| *word == "super").count();
    match path.words[0].as_str() {
        "crate" => Some(path.words[1..].to_vec()),
        "self" => Some([module, &path.words[1..]].concat()),
        "super" => Some([&module[..module.len().checked_sub(supers)?], &path.words[supers..]].concat()),
        _ => None,
    }
}

/// Pairs of neighbours that name each other, as `sqlite: wait, writer`.
fn circles(files: &[(String, Source)]) -> Vec<String> {
    let modules: BTreeSet<Vec<String>> = files.iter().map(|(file, _)| module_of(file)).collect();
    let mut arrows = BTreeSet::new();
    for (file, source) in files {
        let module = module_of(file);
        for named in source.paths.iter().filter_map(|path| absolute(&module, path)) {
            let shared = module.iter().zip(&named).take_while(|(own, other)| own == other).count();
            // If one path ends at the shared folder, it is the folder itself and not a neighbour.
            if let (Some(own), Some(_)) = (module.get(shared), named.get(shared))
                && modules.contains(&named[..=shared])
            {
                arrows.insert((module[..shared].join("::"), own.clone(), named[shared].clone()));
            }
        }
    }
    let mutual = |(folder, one, other): &&(String, String, String)| {
        one < other && arrows.contains(&(folder.clone(), other.clone(), one.clone()))
    };
    let told = arrows.iter().filter(mutual).map(|(folder, one, other)| format!("{folder}: {one}, {other}"));
    told.collect()
}

#[test]
fn no_two_neighbours_name_each_other() {
    let found = circles(&tree("src"));
    assert!(found.is_empty(), "these neighbours name each other:\n{}", found.join("\n"));
}

#[test]
fn a_circle_is_found_and_a_parent_is_not_one() {
    let files = [
        ("src/a/mod.rs", "use self::b::B; pub struct A;"),
        ("src/a/b.rs", "use super::A; use super::c::C; fn f() { crate::d::g() }"),
        ("src/a/c/mod.rs", "fn f(b: super::b::B) {}"),
        ("src/d.rs", "fn g() {}"),
    ];
    let files = files.map(|(file, text)| (file.to_owned(), Source::read(text)));
    assert_eq!(circles(&files), ["a: b, c"]);
}
