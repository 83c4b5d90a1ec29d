//! Which of its two names a destination keeps.
//!
//! A version of eventd before this one derived a destination's name from its URL with password and query. This one
//! leaves them out, so the derived name is a different one. A destination that has commits under its earlier name keeps
//! that name. Under a new name it would deliver every event again.

use super::{Groups, JoinError, PastCommits};
use crate::log::Log;
use std::sync::Arc;

/// Whether a destination keeps the name `earlier` instead of its own name, because its commits are stored under it.
pub async fn keeps_earlier_name(
    groups: &dyn Groups,
    log: &Arc<dyn Log>,
    own: &str,
    earlier: &str,
) -> Result<bool, JoinError> {
    let under_own = groups.past_commits(own, log).await?;
    if under_own == PastCommits::Found {
        return Ok(false);
    }
    let under_earlier = groups.past_commits(earlier, log).await?;
    tracing::debug!(destination = %own, %earlier, "looked for commits: {under_own}; under the earlier name: {under_earlier}");
    Ok(is_earlier_name_used(&under_own, &under_earlier))
}

/// The rule, given what is committed under each of the two names.
///
/// A name that this process may not read counts as a name without commits. It is used only if this process may not read
/// the other name either: the join then fails and says which right is missing.
fn is_earlier_name_used(own: &PastCommits, earlier: &PastCommits) -> bool {
    match (own, earlier) {
        (PastCommits::Found, _) | (_, PastCommits::NotAllowed(_)) => false,
        (_, PastCommits::Found) | (PastCommits::NotAllowed(_), PastCommits::None) => true,
        (PastCommits::None, PastCommits::None) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_may_not_be_read_counts_as_one_without_commits_unless_neither_may_be_read() {
        let not_allowed = || PastCommits::NotAllowed("no right".into());
        for (own, earlier, keeps_earlier) in [
            (PastCommits::Found, PastCommits::Found, false),
            (PastCommits::Found, not_allowed(), false),
            (PastCommits::None, PastCommits::None, false),
            (PastCommits::None, PastCommits::Found, true),
            (PastCommits::None, not_allowed(), false),
            (not_allowed(), PastCommits::Found, true),
            (not_allowed(), PastCommits::None, true),
            (not_allowed(), not_allowed(), false),
        ] {
            assert_eq!(is_earlier_name_used(&own, &earlier), keeps_earlier, "{own}; {earlier}");
        }
    }
}
