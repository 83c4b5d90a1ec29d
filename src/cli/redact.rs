//! Removes secrets from clap's errors, which repeat what was typed.

/// Texts with an `@` that are part of clap's own messages: the names of values, and examples in errors.
const HELP_WITH_AT: [&str; 2] = ["@FILE>", "@1767350000"];

/// Replaces what may be a secret in an error of clap by `***`: the text before an `@`, and the query of a URL. A person
/// may have typed a URL in the wrong place, for example `eventd up https://user:password@host`.
pub fn without_secrets(error: &str) -> String {
    error.split_inclusive('\n').map(line_without_secrets).collect()
}

fn line_without_secrets(line: &str) -> String {
    let url = line.find("://").map(|at| at + "://".len());
    // The argument starts after the scheme of a URL, or else after the single quote that clap puts before it.
    let start = url.or_else(|| line.find('\'').map(|at| at + 1)).unwrap_or(0);
    let (before, argument) = line.split_at(start);
    let is_help = |at: usize| HELP_WITH_AT.iter().any(|help| argument[at..].starts_with(help));
    let at = argument.match_indices('@').map(|(at, _)| at).rfind(|at| *at > 0 && !is_help(*at));
    let (hidden, argument) = at.map_or(("", argument), |at| ("***@", &argument[at + 1..]));
    match argument.split_once('?') {
        Some((path, query)) if url.is_some() || query.contains('\'') => {
            let after = query.rfind('\'').map_or("", |quote| &query[quote..]);
            format!("{before}{hidden}{path}?***{after}")
        }
        _ => format!("{before}{hidden}{argument}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_repeats_an_argument_shows_no_secret_of_it() {
        for (error, shown) in [
            ("unexpected argument '--urk' found\n", "unexpected argument '--urk' found\n"),
            ("argument 'https://u:p@h/a' found\nUsage", "argument 'https://***@h/a' found\nUsage"),
            ("argument 'https://h/?token=a'b' found", "argument 'https://h/?***' found"),
            ("'kafka://u:p@ss@h:9092,i:9092'", "'kafka://***@h:9092,i:9092'"),
            ("'x=http://u:p@h/?q=a@b'", "'x=http://***@b'"),
            ("argument 'u:p'w@h:9092' found", "argument '***@h:9092' found"),
            ("cannot be used with '--user <USER|@FILE>'", "cannot be used with '--user <USER|@FILE>'"),
            ("'u:p@h' for '--user <USER|@FILE>'", "'***@h' for '--user <USER|@FILE>'"),
            ("'yesterday': 10:30, @1767350000) or", "'yesterday': 10:30, @1767350000) or"),
            ("value '@5' for", "value '@5' for"),
            ("'u:p@h': 10:30, @1767350000) or", "'***@h': 10:30, @1767350000) or"),
            ("argument 'sqlite:x.db?password=p' found", "argument 'sqlite:x.db?***' found"),
            ("a value is required for '--dest <DEST>'?", "a value is required for '--dest <DEST>'?"),
        ] {
            assert_eq!(without_secrets(error), shown);
        }
    }
}
