//! Reads Rust source as far as the layering tests need it: which paths its code names. It leaves out comments, strings and
//! test code, and follows imports: `use tokio::{task as t}; t::spawn(…)` names `tokio::task::spawn`.
//!
//! It only splits the text into tokens and does not expand macros, so it misses paths that a macro creates.

use std::collections::HashMap;

/// The paths and tokens of one file.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) paths: Vec<Path>,
    /// Its words, marks and strings in order, without comments and code for tests.
    pub(super) tokens: Tokens,
    /// Modules in files of their own that are only compiled for tests: the name, or the path of a `#[path]`.
    pub(super) test_modules: Vec<String>,
}

/// A path after imports were followed, with its line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Path {
    pub(super) line: usize,
    /// `["tokio", "task", "spawn"]`; the last one is `*` for a glob.
    pub(super) words: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    Word(String),
    Text(String),
    /// `::`
    Colons,
    Mark(char),
}

/// Each token and its line.
pub(super) type Tokens = Vec<(usize, Token)>;

impl Source {
    pub(super) fn read(text: &str) -> Self {
        let (tokens, test_modules) = without_test_code(tokens(text));
        Self { paths: paths(&tokens), tokens, test_modules }
    }
}

fn tokens(text: &str) -> Tokens {
    let chars: Vec<char> = text.chars().collect();
    let (mut found, mut at, mut line) = (Vec::new(), 0, 1);
    let peek = |at: usize| chars.get(at).copied().unwrap_or('\0');
    while at < chars.len() {
        let (begin, first_line) = (at, line);
        let token = match peek(at) {
            '/' if peek(at + 1) == '/' => {
                while at < chars.len() && peek(at) != '\n' {
                    at += 1;
                }
                None
            }
            '/' if peek(at + 1) == '*' => {
                at = end_of_comment(&chars, at);
                None
            }
            '"' => {
                at = end_of_string(&chars, at);
                Some(Token::Text(chars[begin + 1..at - 1].iter().collect()))
            }
            // A character literal, or the mark of a lifetime.
            '\'' => {
                at += match (peek(at + 1), peek(at + 2)) {
                    ('\\', _) => 3 + chars[at + 3..].iter().position(|c| *c == '\'').map_or(0, |more| more + 1),
                    (_, '\'') => 3,
                    _ => 1,
                };
                None
            }
            c if c.is_alphanumeric() || c == '_' => {
                while peek(at).is_alphanumeric() || peek(at) == '_' {
                    at += 1;
                }
                let word: String = chars[begin..at].iter().collect();
                match raw_string(&chars, at).filter(|_| ["r", "br", "cr"].contains(&word.as_str())) {
                    Some(end) => {
                        at = end;
                        None
                    }
                    None => Some(Token::Word(word)),
                }
            }
            ':' if peek(at + 1) == ':' => {
                at += 2;
                Some(Token::Colons)
            }
            c => {
                at += 1;
                (!c.is_whitespace()).then_some(Token::Mark(c))
            }
        };
        at = at.min(chars.len());
        line += chars[begin..at].iter().filter(|c| **c == '\n').count();
        found.extend(token.map(|token| (first_line, token)));
    }
    found
}

fn end_of_comment(chars: &[char], mut at: usize) -> usize {
    let mut depth = 0;
    while at < chars.len() {
        match chars[at..] {
            ['/', '*', ..] => (depth, at) = (depth + 1, at + 2),
            ['*', '/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn end_of_string(chars: &[char], mut at: usize) -> usize {
    at += 1;
    while at < chars.len() && chars[at] != '"' {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

/// The end of a raw string whose `#…#"` begins here.
fn raw_string(chars: &[char], at: usize) -> Option<usize> {
    let hashes = chars[at..].iter().take_while(|c| **c == '#').count();
    let begin = at + hashes + 1;
    if chars.get(begin - 1) != Some(&'"') {
        return None;
    }
    let mut end = vec!['"'];
    end.extend(vec!['#'; hashes]);
    let len = chars[begin..].windows(end.len()).position(|window| window == end);
    Some(len.map_or(chars.len(), |len| begin + len + end.len()))
}

/// Removes items with `#[cfg(test)]`, and returns which of them are modules in files of their own.
fn without_test_code(tokens: Tokens) -> (Tokens, Vec<String>) {
    let (mut kept, mut modules, mut at) = (Vec::new(), Vec::new(), 0);
    while at < tokens.len() {
        let Some((attribute, after)) = attribute(&tokens, at) else {
            kept.push(tokens[at].clone());
            at += 1;
            continue;
        };
        let says = |word: &str| attribute.iter().any(|(_, token)| *token == Token::Word(word.into()));
        if !(says("cfg") && says("test")) || says("not") {
            kept.extend_from_slice(attribute);
            at = after;
            continue;
        }
        let end = end_of_item(&tokens, after);
        modules.extend(module_in_a_file(&tokens[after..end]));
        at = end;
    }
    (kept, modules)
}

/// The attribute that begins here, and its end.
fn attribute(tokens: &Tokens, at: usize) -> Option<(&[(usize, Token)], usize)> {
    let marks = |at: usize, mark: char| tokens.get(at).is_some_and(|(_, token)| *token == Token::Mark(mark));
    if !(marks(at, '#') && marks(at + 1, '[')) {
        return None;
    }
    let mut depth = 0;
    for end in at + 1..tokens.len() {
        depth += i32::from(marks(end, '[')) - i32::from(marks(end, ']'));
        if depth == 0 {
            return Some((&tokens[at..=end], end + 1));
        }
    }
    None
}

fn end_of_item(tokens: &Tokens, mut at: usize) -> usize {
    while let Some((_, after)) = attribute(tokens, at) {
        at = after;
    }
    const ITEMS: [&str; 13] = [
        "pub",
        "mod",
        "fn",
        "use",
        "struct",
        "enum",
        "impl",
        "trait",
        "const",
        "static",
        "type",
        "async",
        "macro_rules",
    ];
    // A field, variant or argument ends at its comma. An item may contain commas.
    let is_item = matches!(tokens.get(at), Some((_, Token::Word(word))) if ITEMS.contains(&word.as_str()));
    let mut depth = 0;
    while at < tokens.len() {
        match tokens[at].1 {
            Token::Mark('{' | '(' | '[') => depth += 1,
            Token::Mark('}') if depth == 1 => return at + 1,
            Token::Mark('}' | ')' | ']') if depth == 0 => return at,
            Token::Mark('}' | ')' | ']') => depth -= 1,
            Token::Mark(';') if depth == 0 => return at + 1,
            Token::Mark(',') if depth == 0 && !is_item => return at + 1,
            _ => {}
        }
        at += 1;
    }
    at
}

fn module_in_a_file(item: &[(usize, Token)]) -> Option<String> {
    let words: Vec<&Token> = item.iter().map(|(_, token)| token).collect();
    let named = words.windows(3).find_map(|window| match window {
        [Token::Word(word), Token::Word(name), Token::Mark(';')] if word == "mod" => Some(name.clone()),
        _ => None,
    })?;
    let path = words.iter().find_map(|token| match token {
        Token::Text(path) => Some(path.trim_end_matches(".rs").to_owned()),
        _ => None,
    });
    Some(path.unwrap_or(named))
}

fn paths(tokens: &Tokens) -> Vec<Path> {
    let (mut named, mut imports, mut at) = (Vec::new(), HashMap::new(), 0);
    let mut loose = Vec::new();
    while at < tokens.len() {
        match &tokens[at] {
            // The `use<…>` of a type is not an import.
            (_, Token::Word(word)) if word == "use" && !matches!(tokens.get(at + 1), Some((_, Token::Mark('<')))) => {
                let (line, begin) = (tokens[at].0, at + 1);
                at = (begin..tokens.len()).find(|at| tokens[*at].1 == Token::Mark(';')).unwrap_or(tokens.len());
                let mut tree = Tree { tokens: &tokens[begin..at], at: 0, found: Vec::new() };
                tree.read(&[]);
                for (words, name) in tree.found {
                    imports.insert(name, words.clone());
                    named.push(Path { line, words });
                }
            }
            (line, Token::Word(word)) => {
                let follows = at > 0 && matches!(tokens[at - 1].1, Token::Colons | Token::Mark('.'));
                let mut words = vec![word.clone()];
                while let Some([(_, Token::Colons), (_, Token::Word(word))]) = tokens.get(at + 1..at + 3) {
                    words.push(word.clone());
                    at += 2;
                }
                if !follows {
                    loose.push(Path { line: *line, words });
                }
            }
            _ => {}
        }
        at += 1;
    }
    // An import may come after its use.
    for mut path in loose {
        if let Some(import) = imports.get(&path.words[0]).filter(|import| import[0] != path.words[0]) {
            path.words.splice(..1, import.iter().cloned());
        } else if path.words.len() == 1 {
            continue;
        }
        named.push(path);
    }
    named
}

/// The tree of a `use`: every path in it with the name that it gets.
struct Tree<'a> {
    tokens: &'a [(usize, Token)],
    at: usize,
    found: Vec<(Vec<String>, String)>,
}

impl Tree<'_> {
    fn read(&mut self, above: &[String]) {
        let mut words = above.to_vec();
        while let Some((_, token)) = self.tokens.get(self.at) {
            self.at += 1;
            match token {
                Token::Word(word) if word == "as" => {
                    let Some((_, Token::Word(name))) = self.tokens.get(self.at) else { return };
                    self.found.push((words, name.clone()));
                    self.at += 1;
                    return;
                }
                // In `{self, …}`, `self` is the path before the braces.
                Token::Word(word) if word == "self" && !words.is_empty() => {}
                Token::Word(word) => words.push(word.clone()),
                Token::Mark('*') => words.push("*".into()),
                Token::Mark('{') => {
                    while self.tokens.get(self.at).is_some_and(|(_, token)| *token != Token::Mark('}')) {
                        self.read(&words);
                        // Skip the comma that ended the path, but not the closing brace.
                        if self.tokens.get(self.at).is_some_and(|(_, token)| *token != Token::Mark('}')) {
                            self.at += 1;
                        }
                    }
                    self.at += 1;
                    return;
                }
                Token::Mark(_) => {
                    self.at -= 1;
                    break;
                }
                Token::Colons | Token::Text(_) => {}
            }
        }
        if let Some(name) = words.last().cloned() {
            self.found.push((words, name));
        }
    }
}
