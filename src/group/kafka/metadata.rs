//! What stands beside the offset of a commit: plain ASCII, a format digit, the topic's id, then the settled map or where
//! it is, as varints in base64url; nothing, where no owner has begun the partition yet.

use crate::core::progress::PartitionState;
use crate::core::varint;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use uuid::Uuid;

/// The first character of a commit's metadata: the map is in it, or it points at the map. A map behind a move of the
/// position has a format of its own.
const INLINE: char = '1';
const POINTER: char = '2';
const INLINE_MOVED: char = '3';
/// No owner has begun the partition yet: that is all.
const NOT_BEGUN: char = '4';

/// Characters of a topic's id in it.
const ID_CHARS: usize = 22;

/// What a commit says beside its offset.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Metadata {
    Map {
        topic_id: Uuid,
        state: PartitionState,
    },
    Pointer {
        topic_id: Uuid,
        pointer: Pointer,
    },
    /// The group has begun, and with it this partition's wait for its first owner.
    NotBegun {
        topic_id: Uuid,
    },
    /// An operator's tool, or another program.
    Foreign,
}

/// Where a snapshot stands in the state topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pointer {
    pub(super) offset: i64,
    pub(super) parts: u64,
    pub(super) snapshot: u64,
}

impl Metadata {
    pub(super) fn of_map(topic_id: Uuid, state: &PartitionState) -> String {
        // The map's own format digit is told by the first character here.
        let map = state.encode_settled();
        let format = if state.last_reset.is_some() { INLINE_MOVED } else { INLINE };
        format!("{format}{}{}", URL_SAFE_NO_PAD.encode(topic_id), &map[1..])
    }

    pub(super) fn of_pointer(topic_id: Uuid, pointer: Pointer) -> String {
        let mut bytes = Vec::new();
        for number in [pointer.offset as u64, pointer.parts, pointer.snapshot] {
            varint::put(number, &mut bytes);
        }
        format!("{POINTER}{}{}", URL_SAFE_NO_PAD.encode(topic_id), URL_SAFE_NO_PAD.encode(bytes))
    }

    pub(super) fn of_not_begun(topic_id: Uuid) -> String {
        format!("{NOT_BEGUN}{}", URL_SAFE_NO_PAD.encode(topic_id))
    }

    pub(super) fn read(watermark: i64, metadata: &str) -> Result<Self, String> {
        let format = metadata.chars().next();
        if !matches!(format, Some('0'..='9')) {
            return Ok(Self::Foreign);
        }
        let (topic_id, rest) = topic_id_of(&metadata[1..])?;
        match format {
            Some(INLINE) => Ok(Self::Map { topic_id, state: PartitionState::decode(watermark, &format!("1{rest}"))? }),
            Some(INLINE_MOVED) => {
                Ok(Self::Map { topic_id, state: PartitionState::decode(watermark, &format!("2{rest}"))? })
            }
            Some(POINTER) => {
                let bytes = URL_SAFE_NO_PAD.decode(rest).map_err(|error| error.to_string())?;
                let mut rest = bytes.as_slice();
                let mut next = || varint::take(&mut rest).ok_or("a pointer that is cut short");
                let (offset, parts, snapshot) = (next()?, next()?, next()?);
                let offset = i64::try_from(offset).map_err(|error| error.to_string())?;
                Ok(Self::Pointer { topic_id, pointer: Pointer { offset, parts, snapshot } })
            }
            Some(NOT_BEGUN) if rest.is_empty() => Ok(Self::NotBegun { topic_id }),
            other => Err(format!("progress in a format that this eventd does not know: {other:?}")),
        }
    }
}

/// The text behind the id of the topic that it is of.
pub(super) fn with_topic_id(topic_id: Uuid, text: &str) -> String {
    format!("{}{text}", URL_SAFE_NO_PAD.encode(topic_id))
}

/// Takes the topic's id off the front.
pub(super) fn topic_id_of(text: &str) -> Result<(Uuid, &str), String> {
    let (id, rest) = text.get(..ID_CHARS).zip(text.get(ID_CHARS..)).ok_or("progress that is cut short")?;
    let id = URL_SAFE_NO_PAD.decode(id).ok().and_then(|bytes| Uuid::from_slice(&bytes).ok());
    Ok((id.ok_or("progress without a topic's id")?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_a_commit_says_comes_back(
            id in any::<u128>(), watermark in 0i64..1 << 50,
            gaps in proptest::collection::vec((1i64..1_000, 1i64..1_000), 0..40),
            offset in 0i64..1 << 50, parts in 1u64..100, snapshot in any::<u64>(),
            moved in any::<Option<u64>>(),
        ) {
            let mut state = PartitionState::at(watermark);
            let mut at = watermark;
            for (gap, len) in gaps {
                state.settled.push(at + gap..at + gap + len);
                at += gap + len;
            }
            state.last_reset = moved;
            let topic_id = Uuid::from_u128(id);
            let map = Metadata::of_map(topic_id, &state);
            prop_assert!(map.is_ascii());
            prop_assert_eq!(Metadata::read(watermark, &map), Ok(Metadata::Map { topic_id, state }));
            let pointer = Pointer { offset, parts, snapshot };
            let text = Metadata::of_pointer(topic_id, pointer);
            prop_assert_eq!(Metadata::read(watermark, &text), Ok(Metadata::Pointer { topic_id, pointer }));
            let text = Metadata::of_not_begun(topic_id);
            prop_assert!(text.is_ascii());
            prop_assert_eq!(Metadata::read(watermark, &text), Ok(Metadata::NotBegun { topic_id }));
            prop_assert!(Metadata::read(watermark, &format!("{text}{snapshot}")).is_err(), "of a newer eventd");
        }

        #[test]
        fn what_is_no_progress_is_an_error_or_foreign_and_never_a_panic(text in ".{0,60}", watermark in 0i64..9) {
            let _ = Metadata::read(watermark, &text);
        }
    }

    #[test]
    fn what_others_commit_is_told_from_a_newer_format() {
        for foreign in ["", "NoMetadata", "x1"] {
            assert_eq!(Metadata::read(3, foreign), Ok(Metadata::Foreign), "{foreign:?}");
        }
        let newer = Metadata::of_map(Uuid::nil(), &PartitionState::at(3)).replacen('1', "7", 1);
        assert!(Metadata::read(3, &newer).unwrap_err().contains("does not know"), "{newer}");
    }
}
