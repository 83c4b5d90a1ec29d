//! Reads what the file destination has written.

use serde::Deserialize;
use std::path::Path;

/// One line of a destination's file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Line {
    pub(crate) user: String,
    pub(crate) payload: String,
    pub(crate) id: String,
    pub(crate) partition: u32,
    pub(crate) offset: i64,
}

/// The complete lines of the file. A last line without a line break is not delivered yet. A missing file has no lines.
pub(crate) fn lines(path: &Path) -> Vec<Line> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => panic!("{}: {error}", path.display()),
    };
    let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
    whole.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}
