//! Secrets: webhook signing keys and the password of the brokers. They come from files or environment variables. They
//! have no flags of their own, because other users of a machine can see the arguments of a process.

use crate::destination::spec::{Spec, Target};
use crate::destination::webhook;
use crate::environment::{self, SASL_PASSWORD, WEBHOOK_SECRET};
use crate::small_file::{self, SECRET_FILE_BYTES_MAX};
use anyhow::{Context, ensure};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The password for the brokers, from the file or else from the variable.
pub(super) fn sasl_password(file: Option<&Path>) -> anyhow::Result<String> {
    match file {
        Some(path) => {
            let text = small_file::read_text(path, SECRET_FILE_BYTES_MAX).map_err(anyhow::Error::new);
            let line = text.and_then(|text| one_line(&text).map(str::to_owned));
            line.with_context(|| format!("--sasl-password-file {}", path.display()))
        }
        None => {
            let text = environment::text(SASL_PASSWORD)?;
            let text = text.with_context(|| {
                format!(
                    "--sasl-mechanism needs a password: set --sasl-password-file PATH, or the variable {SASL_PASSWORD}"
                )
            })?;
            Ok(text.trim_end_matches(['\r', '\n']).to_owned())
        }
    }
}

/// The only line of a file. Line breaks at the end do not count.
fn one_line(text: &str) -> anyhow::Result<&str> {
    let line = text.trim_end_matches(['\r', '\n']);
    ensure!(!line.is_empty(), "the file is empty: write the password into it");
    ensure!(!line.contains(['\r', '\n', '\0']), "the file has more than one line: write the password into one line");
    Ok(line)
}

/// Where the secret of each http destination is stored. The secrets themselves are never logged.
pub(super) struct WebhookSecrets {
    /// Files given as `NAME=PATH`, by the name that the destination has in this version.
    by_name: HashMap<String, PathBuf>,
    /// The file given without a name: for every http destination that has no file of its own.
    for_all: Option<PathBuf>,
}

impl WebhookSecrets {
    /// Reads the values of `--webhook-secret-file`, but not the files yet.
    ///
    /// # Errors
    /// A value names no http destination, or two values are for the same destination.
    pub(super) fn new(typed: &[String], specs: &[Spec]) -> anyhow::Result<Self> {
        let mut secrets = Self { by_name: HashMap::new(), for_all: None };
        for text in typed {
            // The value is not shown, because it is a secret that was typed instead of its file.
            ensure!(
                !text.split('=').take(2).any(|part| part.starts_with(webhook::SECRET_PREFIX))
                    || Path::new(text).exists(),
                "the value of --webhook-secret-file is a secret (whsec_…), but the flag takes the path of a file: write \
                 the secret into a file, or set the variable {WEBHOOK_SECRET}"
            );
            let (name, path) = match text.split_once('=') {
                Some((name, path)) if !name.contains('/') => (Some(name), path),
                _ => (None, text.as_str()),
            };
            ensure!(!path.is_empty(), "--webhook-secret-file {text:?}: the path is missing. Write PATH or NAME=PATH");
            let earlier = match name {
                Some(name) => {
                    let spec = http_destination(specs, name).with_context(|| {
                        format!(
                            "--webhook-secret-file {text:?}: no http destination has the name {name:?}. If this is a path \
                             that contains =, write ./ before it"
                        )
                    })?;
                    secrets.by_name.insert(spec.name.clone(), path.into())
                }
                None => {
                    ensure!(
                        specs.iter().any(is_http),
                        "--webhook-secret-file {text:?} signs http requests, but no --dest is http: leave the flag out"
                    );
                    secrets.for_all.replace(path.into())
                }
            };
            ensure!(
                earlier.is_none(),
                "--webhook-secret-file {text:?} is the second file for the same destination: give one file for each"
            );
        }
        Ok(secrets)
    }

    /// Reads the secret of a destination. `None`: its requests are not signed.
    pub(super) fn read(&self, spec: &Spec) -> anyhow::Result<Option<Vec<u8>>> {
        if !is_http(spec) {
            return Ok(None);
        }
        if let Some(path) = self.by_name.get(&spec.name).or(self.for_all.as_ref()) {
            let text = small_file::read_text(path, SECRET_FILE_BYTES_MAX)
                .with_context(|| format!("--webhook-secret-file {}", path.display()))?;
            return webhook::parse_secret(text.trim())
                .map(Some)
                .with_context(|| format!("the secret in {} (--webhook-secret-file)", path.display()));
        }
        let secret = environment::text(WEBHOOK_SECRET)?;
        secret.map(|text| webhook::parse_secret(text.trim()).context(WEBHOOK_SECRET)).transpose()
    }
}

/// The http destination with this name. If there is none: the destination that had this name in an earlier version.
fn http_destination<'a>(specs: &'a [Spec], name: &str) -> Option<&'a Spec> {
    let http = || specs.iter().filter(|spec| is_http(spec));
    http().find(|spec| spec.name == name).or_else(|| http().find(|spec| spec.earlier_name.as_deref() == Some(name)))
}

pub(super) fn is_http(spec: &Spec) -> bool {
    matches!(spec.target, Target::Http(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_belongs_to_the_destination_of_its_name_even_if_an_earlier_version_derived_the_name() {
        let specs = ["https://h/x?t=a", "b=https://h/y?t=b", "file"].map(|typed| Spec::parse(typed).unwrap());
        let earlier = specs[0].earlier_name.clone().unwrap();
        let files = |names: &[&str]| {
            let typed: Vec<String> = names.iter().map(|name| format!("{name}=/run/{name}")).collect();
            WebhookSecrets::new(&typed, &specs).map(|secrets| secrets.by_name)
        };
        for name in [&specs[0].name, &earlier] {
            let expected = HashMap::from([(specs[0].name.clone(), PathBuf::from(format!("/run/{name}")))]);
            assert_eq!(files(&[name]).unwrap(), expected);
        }
        let twice = files(&[&earlier, &specs[0].name]).unwrap_err().to_string();
        assert!(twice.contains("second file for the same destination"), "{twice}");
        assert!(files(&["file"]).is_err(), "a file destination has no secret");
        assert!(files(&["unknown"]).is_err(), "no destination has this name");
    }

    #[test]
    fn a_name_that_was_typed_wins_over_an_equal_name_of_an_earlier_version() {
        let derived = Spec::parse("https://h/x?t=a").unwrap();
        let earlier = derived.earlier_name.clone().unwrap();
        let typed = Spec::parse(&format!("{earlier}=https://h/x?t=a")).unwrap();
        let both = [derived, typed];
        assert_eq!(http_destination(&both, &earlier), Some(&both[1]));
    }
}
