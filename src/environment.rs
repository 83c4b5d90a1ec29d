//! Environment variables `EVENTD_…`. Most of them set a flag, and `cli` declares them there. This module has the others,
//! and warns about variables that eventd does not know.

use anyhow::bail;
use std::collections::BTreeSet;

/// Which log lines are written.
pub(crate) const LOG: &str = "EVENTD_LOG";

/// The secret that signs http requests, if `--webhook-secret-file` is not given.
pub(crate) const WEBHOOK_SECRET: &str = "EVENTD_WEBHOOK_SECRET";

/// The password for the brokers, if `--sasl-password-file` is not given.
pub(crate) const SASL_PASSWORD: &str = "EVENTD_SASL_PASSWORD";

const PREFIX: &str = "EVENTD_";

/// Variables that Kubernetes sets in every container if the cluster has a service with the name `eventd`. Nobody typed
/// them, so they are not mistakes.
const OF_KUBERNETES: [&str; 2] = ["EVENTD_SERVICE_", "EVENTD_PORT"];

/// Edits between a wrong name and a known one, up to which the known one is suggested.
const EDITS_MAX: usize = 3;

/// The value of a variable. `None`: the variable is not set.
///
/// # Errors
/// The variable is empty, or not UTF-8. An empty value was more often forgotten than left empty on purpose.
pub(crate) fn text(name: &str) -> anyhow::Result<Option<String>> {
    match std::env::var(name) {
        Ok(text) if text.trim().is_empty() => bail!("the variable {name} is empty: give it a value, or unset it"),
        Ok(text) => Ok(Some(text)),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => bail!("the value of the variable {name} is not UTF-8: correct it"),
    }
}

/// Writes one log line that lists the variables `EVENTD_…` without effect, if there are any. `flags` are the variables
/// that set a flag of any command: a file of variables may be shared by several commands.
pub fn warn_about_unknown(flags: BTreeSet<String>) {
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let unknown = unknown(names, flags);
    if !unknown.is_empty() {
        tracing::warn!("these environment variables have no effect, because eventd does not know them: {unknown}");
    }
}

/// The unknown names, each with the nearest known name, separated by commas.
fn unknown(names: impl Iterator<Item = String>, mut known: BTreeSet<String>) -> String {
    known.extend([LOG, WEBHOOK_SECRET, SASL_PASSWORD].map(str::to_owned));
    let is_unknown = |name: &String| {
        name.starts_with(PREFIX)
            && !known.contains(name)
            && !OF_KUBERNETES.iter().any(|prefix| name.starts_with(prefix))
    };
    let unknown: BTreeSet<String> = names.filter(is_unknown).collect();
    let with_nearest = |name: String| {
        let nearest = known.iter().map(|known| (edits(&name, known), known)).min();
        match nearest.filter(|(edits, _)| *edits <= EDITS_MAX) {
            Some((_, nearest)) => format!("{name} (did you mean {nearest}?)"),
            None => name,
        }
    };
    unknown.into_iter().map(with_nearest).collect::<Vec<_>>().join(", ")
}

/// How many characters have to be inserted, removed or replaced to get from one text to the other (Levenshtein distance).
fn edits(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    // Edits from the characters of `from` read so far to each beginning of `to`.
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (read, from) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = read + 1;
        for (column, to) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_variable_is_listed_with_the_nearest_known_name() {
        let known = BTreeSet::from(["EVENTD_TOPIC", "EVENTD_LISTEN"].map(str::to_owned));
        let listed = |names: &[&str]| unknown(names.iter().map(|name| (*name).to_owned()), known.clone());
        assert_eq!(listed(&["PATH", "EVENTD_TOPIC", "EVENTD_LOG", "EVENTD_SASL_PASSWORD"]), "");
        assert_eq!(listed(&["EVENTD_SERVICE_HOST", "EVENTD_PORT", "EVENTD_PORT_8090_TCP"]), "", "set by Kubernetes");
        assert_eq!(
            listed(&["EVENTD_TOPICS", "EVENTD_COLOUR", "EVENTD_LISEN"]),
            "EVENTD_COLOUR, EVENTD_LISEN (did you mean EVENTD_LISTEN?), EVENTD_TOPICS (did you mean EVENTD_TOPIC?)"
        );
    }

    #[test]
    fn edits_are_counted_as_insertions_removals_and_replacements() {
        for (from, to, count) in
            [("", "", 0), ("", "abc", 3), ("abc", "abc", 0), ("abc", "xbcd", 2), ("kitten", "sitting", 3)]
        {
            assert_eq!(edits(from, to), count, "{from} {to}");
            assert_eq!(edits(to, from), count, "{to} {from}");
        }
    }
}
