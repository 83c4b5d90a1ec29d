//! The pages for people name files, folders and sections of this repository. Each one that they name has to exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path as File, PathBuf};

/// Folders whose files a page names with their whole path.
const NAMED_FOLDERS: &[&str] = &["src/", "tests/", "benches/", "compose/", "docs/", ".ci/", ".github/"];

fn root() -> &'static File {
    File::new(env!("CARGO_MANIFEST_DIR"))
}

/// The pages, relative to the root.
fn pages() -> Vec<PathBuf> {
    let docs =
        fs::read_dir(root().join("docs")).unwrap().map(|entry| File::new("docs").join(entry.unwrap().file_name()));
    ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"].into_iter().map(PathBuf::from).chain(docs).collect()
}

/// What stands in backticks on a line of text, without the lines of code blocks.
fn quoted(page: &str) -> Vec<&str> {
    let text = page.split("```").step_by(2);
    text.flat_map(|text| text.lines()).flat_map(|line| line.split('`').skip(1).step_by(2)).collect()
}

/// Whether this is the path of a file or folder of ours: from the root, or a Rust file below `src/`.
fn is_path(quoted: &str) -> bool {
    let is_plain = quoted.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
    let from_root = NAMED_FOLDERS.iter().any(|folder| quoted.starts_with(folder));
    is_plain && (from_root || quoted.contains('/') && quoted.ends_with(".rs"))
}

/// The targets of the links of a page that lead to another page, or to a section.
fn links(page: &str) -> Vec<&str> {
    let targets = page.split("](").skip(1).filter_map(|rest| rest.split_once(')').map(|(target, _)| target));
    targets.filter(|target| !target.contains("://")).collect()
}

/// The anchors of the headings of a page, as GitHub makes them.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = page.lines().filter(|line| line.starts_with('#'));
    let kept = |c: &char| c.is_alphanumeric() || " -_".contains(*c);
    headings
        .map(|line| {
            line.trim_start_matches('#')
                .trim()
                .to_lowercase()
                .chars()
                .filter(kept)
                .collect::<String>()
                .replace(' ', "-")
        })
        .collect()
}

/// What a page names and what does not exist.
fn missing(page: &File, text: &str) -> Vec<String> {
    let (folder, own) = (page.parent().unwrap(), anchors(text));
    let exists = |path: &str| root().join(path).exists() || root().join("src").join(path).exists();
    let files = quoted(text).into_iter().filter(|quoted| is_path(quoted) && !exists(quoted)).map(str::to_owned);
    let dead = links(text).into_iter().filter(|link| {
        let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
        let target = root().join(folder).join(file);
        let anchors = if file.is_empty() {
            Some(own.clone())
        } else {
            fs::read_to_string(&target).ok().map(|text| anchors(&text))
        };
        !target.exists() || !anchor.is_empty() && !anchors.is_some_and(|anchors| anchors.contains(anchor))
    });
    files.chain(dead.map(str::to_owned)).collect()
}

#[test]
fn files_and_sections_that_pages_name_exist() {
    let pages = pages();
    assert!(pages.len() > 10, "{pages:?}");
    let named: usize = pages.iter().map(|page| links(&fs::read_to_string(root().join(page)).unwrap()).len()).sum();
    assert!(named > 20, "only {named} links are found");
    let told = |page: &PathBuf| {
        let text = fs::read_to_string(root().join(page)).unwrap();
        missing(page, &text).into_iter().map(|what| format!("{}: {what}", page.display())).collect::<Vec<_>>()
    };
    let missing: Vec<String> = pages.iter().flat_map(told).collect();
    assert!(missing.is_empty(), "pages name what does not exist:\n{}", missing.join("\n"));
}

#[test]
fn a_file_or_section_that_does_not_exist_is_found() {
    for (text, what) in [
        ("see `src/core/no_such_file.rs`", "src/core/no_such_file.rs"),
        ("see `core/no_such_file.rs`", "core/no_such_file.rs"),
        ("see [this](no-such-page.md)", "no-such-page.md"),
        ("see [this](delivery.md#no-such-section)", "delivery.md#no-such-section"),
        ("see [this](#no-such-section)", "#no-such-section"),
    ] {
        assert_eq!(missing(File::new("docs/a.md"), text), [what]);
    }
    let text = "# A title\n`core/progress/mod.rs`, `out/log.jsonl`, [a](delivery.md), [b](#a-title), [c](https://example.com/a.md)";
    assert_eq!(missing(File::new("docs/a.md"), text), [""; 0]);
}
