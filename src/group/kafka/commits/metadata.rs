//! The metadata of a commit: what is stored next to the offset, as ASCII text.
//!
//! ```text
//!   1 <topic id> <settled map>                 the state is stored here
//!   2 <topic id> <offset, parts, snapshot>     the state is stored in the state topic
//!   3 <topic id> <reset id, settled map>       like 1, after an offset reset
//!   4 <topic id>                               no owner has started the partition yet
//!   5 <topic id> <everything>                  like 1, with listed users or control state
//! ```
//!
//! The first character is the format. The topic id is a UUID in base64url. Numbers are varints in base64url.

use crate::core::progress::{PartitionState, unknown_format};
use crate::core::varint;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use uuid::Uuid;

const INLINE: char = '1';
const POINTER: char = '2';
const INLINE_AFTER_RESET: char = '3';
const NOT_STARTED: char = '4';
const INLINE_FULL: char = '5';

/// The formats of metadata that hold a whole state, with the format that [`PartitionState::encode`] gives it.
const INLINE_FORMATS: [(char, char); 3] = [(INLINE, '1'), (INLINE_AFTER_RESET, '2'), (INLINE_FULL, '3')];

/// Characters of a topic id in base64url.
const ID_CHARS: usize = 22;

/// What the metadata of a commit says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum CommitMetadata {
    State {
        topic_id: Uuid,
        state: PartitionState,
    },
    Pointer {
        topic_id: Uuid,
        pointer: SnapshotPointer,
    },
    /// The marker of group initialization.
    NotStarted {
        topic_id: Uuid,
    },
    /// An operator's tool or another program wrote the commit.
    Foreign,
}

/// Where a snapshot is stored in the state topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SnapshotPointer {
    /// The offset of its first part.
    pub(super) offset: i64,
    pub(super) parts: u64,
    /// The id that each of its parts carries.
    pub(super) snapshot: u64,
}

impl CommitMetadata {
    /// The text for a state that is stored in the metadata.
    pub(super) fn inline(topic_id: Uuid, state: &PartitionState) -> String {
        // The encoded state starts with a format digit of its own, which the first character here replaces.
        let state = state.encode();
        let format = INLINE_FORMATS.into_iter().find(|(_, format)| state.starts_with(*format));
        let (format, _) = format.expect("every format of a state has one of metadata");
        format!("{format}{}{}", URL_SAFE_NO_PAD.encode(topic_id), &state[1..])
    }

    /// The text for a state that is stored in the state topic.
    pub(super) fn pointer(topic_id: Uuid, pointer: SnapshotPointer) -> String {
        let mut bytes = Vec::new();
        for number in [pointer.offset as u64, pointer.parts, pointer.snapshot] {
            varint::put(number, &mut bytes);
        }
        format!("{POINTER}{}{}", URL_SAFE_NO_PAD.encode(topic_id), URL_SAFE_NO_PAD.encode(bytes))
    }

    /// The text of a partition that no owner has started yet.
    pub(super) fn not_started(topic_id: Uuid) -> String {
        format!("{NOT_STARTED}{}", URL_SAFE_NO_PAD.encode(topic_id))
    }

    pub(super) fn read(watermark: i64, metadata: &str) -> Result<Self, String> {
        let format = metadata.chars().next();
        // Every format of eventd, also of a newer one, starts with a digit. Other programs leave the metadata empty or write
        // words into it.
        if !matches!(format, Some('0'..='9')) {
            return Ok(Self::Foreign);
        }
        let format = format.unwrap_or_default();
        let state_format = INLINE_FORMATS.into_iter().find(|(inline, _)| *inline == format).map(|(_, state)| state);
        if state_format.is_none() && ![POINTER, NOT_STARTED].contains(&format) {
            return Err(unknown_format(format));
        }
        let (topic_id, rest) = split_topic_id(&metadata[1..])?;
        if let Some(state_format) = state_format {
            let state = PartitionState::decode(watermark, &format!("{state_format}{rest}"))?;
            return Ok(Self::State { topic_id, state });
        }
        match format {
            POINTER => {
                let bytes = URL_SAFE_NO_PAD.decode(rest).map_err(|error| error.to_string())?;
                let mut rest = bytes.as_slice();
                let mut next = || varint::take(&mut rest).ok_or("its pointer is cut short");
                let (offset, parts, snapshot) = (next()?, next()?, next()?);
                let offset = i64::try_from(offset).map_err(|error| error.to_string())?;
                Ok(Self::Pointer { topic_id, pointer: SnapshotPointer { offset, parts, snapshot } })
            }
            _ if rest.is_empty() => Ok(Self::NotStarted { topic_id }),
            _ => Err("it says that no owner has started the partition, and more".into()),
        }
    }
}

/// The text with the topic's id in front.
pub(super) fn with_topic_id(topic_id: Uuid, text: &str) -> String {
    format!("{}{text}", URL_SAFE_NO_PAD.encode(topic_id))
}

/// Splits a text into the topic's id in front and the rest.
pub(super) fn split_topic_id(text: &str) -> Result<(Uuid, &str), String> {
    let (id, rest) = text.get(..ID_CHARS).zip(text.get(ID_CHARS..)).ok_or("it is cut short")?;
    let id = URL_SAFE_NO_PAD.decode(id).ok().and_then(|bytes| Uuid::from_slice(&bytes).ok());
    Ok((id.ok_or("it has no topic id")?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn encoded_metadata_reads_back_as_itself(
            id in any::<u128>(), watermark in 0i64..1 << 50,
            gaps in proptest::collection::vec((1i64..1_000, 1i64..1_000), 0..40),
            offset in 0i64..1 << 50, parts in 1u64..100, snapshot in any::<u64>(),
            last_reset in any::<Option<u64>>(),
        ) {
            let mut state = PartitionState::at(watermark);
            let mut at = watermark;
            for (gap, len) in gaps {
                state.settled.push(at + gap..at + gap + len);
                at += gap + len;
            }
            state.last_reset = last_reset;
            let topic_id = Uuid::from_u128(id);
            let map = CommitMetadata::inline(topic_id, &state);
            prop_assert!(map.is_ascii());
            prop_assert_eq!(CommitMetadata::read(watermark, &map), Ok(CommitMetadata::State { topic_id, state }));
            let pointer = SnapshotPointer { offset, parts, snapshot };
            let text = CommitMetadata::pointer(topic_id, pointer);
            prop_assert_eq!(CommitMetadata::read(watermark, &text), Ok(CommitMetadata::Pointer { topic_id, pointer }));
            let text = CommitMetadata::not_started(topic_id);
            prop_assert!(text.is_ascii());
            prop_assert_eq!(CommitMetadata::read(watermark, &text), Ok(CommitMetadata::NotStarted { topic_id }));
            let longer = CommitMetadata::read(watermark, &format!("{text}{snapshot}"));
            prop_assert!(longer.is_err(), "a newer eventd may write more: {longer:?}");
        }

        #[test]
        fn any_text_is_an_error_or_foreign_and_never_a_panic(text in ".{0,60}", watermark in 0i64..9) {
            let _ = CommitMetadata::read(watermark, &text);
        }
    }

    #[test]
    fn metadata_of_other_programs_is_told_from_a_newer_format() {
        for foreign in ["", "NoMetadata", "x1"] {
            assert_eq!(CommitMetadata::read(3, foreign), Ok(CommitMetadata::Foreign), "{foreign:?}");
        }
        let newer = CommitMetadata::inline(Uuid::nil(), &PartitionState::at(3)).replacen('1', "7", 1);
        let error = CommitMetadata::read(3, &newer).unwrap_err();
        assert!(error.contains("does not know"), "{error}");
    }
}
