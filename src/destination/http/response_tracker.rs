//! Follows one answer while hyper reads it, so that a status line that came is known even if hyper cannot parse the rest.
//!
//! ```text
//!  begin ─▶ status line ─▶ headers ─▶ blank line ─▶ body (not looked at)
//!              ▲                          │
//!              └── 100, 102 … 199 ────────┘  at most INFORMATIONAL_MAX of them
//! ```
//!
//! Pure: bytes in, what is known out.

use crate::core::text::shown;
use http::StatusCode;
use http::header::{HeaderName, HeaderValue};
use std::fmt;

/// Informational answers (`100 Continue`, `103 Early Hints`) before the final one. Real servers send one or two; a server that
/// reports progress with `102 Processing` every 10 s fits in as well.
pub(super) const INFORMATIONAL_MAX: usize = 32;

/// Bytes of these answers together, with their headers and any blank lines before a status line.
pub(super) const INFORMATIONAL_BYTES_MAX: usize = 32 * 1024;

/// Bytes of a head that are kept: enough for a status line and the headers of an ordinary answer.
const HEAD_KEPT_BYTES: usize = 4096;

/// Bytes of an answer that is not HTTP that are shown to people.
const SAMPLE_BYTES: usize = 100;

/// What a server that speaks TLS answers a request without TLS: an alert, of any version.
const TLS_ALERT: [u8; 2] = [0x15, 0x03];

/// What is known of the answer to the request that is in flight.
#[derive(Debug)]
pub(super) struct ResponseTracker {
    state: ParseState,
    /// The beginning of the head that is being read; after its end, the beginning of the final head.
    head: Vec<u8>,
    line_is_blank: bool,
    /// A byte of the request was written.
    is_asked: bool,
    /// A byte came, of whatever kind.
    has_begun: bool,
    informational: usize,
    informational_bytes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ParseState {
    /// No request was sent yet, or the head of its answer is complete.
    Passed(Option<StatusCode>),
    StatusLine,
    Headers(StatusCode),
    /// The first line was not a status line.
    NotHttp,
}

/// The peer sends more before its final answer than is read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooMuchBeforeResponse;

impl fmt::Display for TooMuchBeforeResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "more than {INFORMATIONAL_MAX} informational (1xx) answers or {INFORMATIONAL_BYTES_MAX} bytes came before \
             the final answer"
        )
    }
}

impl std::error::Error for TooMuchBeforeResponse {}

impl ResponseTracker {
    pub(super) fn new() -> Self {
        Self {
            state: ParseState::Passed(None),
            head: Vec::new(),
            line_is_blank: true,
            is_asked: false,
            has_begun: false,
            informational: 0,
            informational_bytes: 0,
        }
    }

    /// Expects the answer to the next request.
    pub(super) fn begin(&mut self) {
        let mut head = std::mem::take(&mut self.head);
        head.clear();
        *self = Self { state: ParseState::StatusLine, head, ..Self::new() };
    }

    /// A byte of the request was written.
    pub(super) fn asked(&mut self) {
        self.is_asked = true;
    }

    /// Whether the bytes that come belong to a head, so that [`read`](Self::read) has to see them.
    pub(super) fn is_in_head(&self) -> bool {
        matches!(self.state, ParseState::StatusLine | ParseState::Headers(_))
    }

    /// Whether the final status line came, and the end of its headers did not.
    pub(super) fn is_in_final_head(&self) -> bool {
        matches!(self.state, ParseState::Headers(status) if is_final(status))
    }

    /// Takes the next bytes of the connection. Those after the head are not looked at.
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> Result<(), TooMuchBeforeResponse> {
        self.has_begun |= !bytes.is_empty();
        while !bytes.is_empty() && self.is_in_head() {
            let end = bytes.iter().position(|&byte| byte == b'\n');
            let (line, rest) = bytes.split_at(end.map_or(bytes.len(), |end| end + 1));
            bytes = rest;
            let room = HEAD_KEPT_BYTES - self.head.len();
            self.head.extend_from_slice(&line[..line.len().min(room)]);
            self.line_is_blank &= line.iter().all(|byte| b"\r\n".contains(byte));
            if !self.is_in_final_head() {
                self.informational_bytes += line.len();
            }
            if end.is_some() {
                self.line_ended();
            }
            if self.informational > INFORMATIONAL_MAX || self.informational_bytes > INFORMATIONAL_BYTES_MAX {
                return Err(TooMuchBeforeResponse);
            }
        }
        Ok(())
    }

    fn line_ended(&mut self) {
        let is_blank = std::mem::replace(&mut self.line_is_blank, true);
        match self.state {
            // Blank lines before a status line mean nothing (RFC 9112, 2.2).
            ParseState::StatusLine if is_blank => self.head.clear(),
            ParseState::StatusLine => {
                self.state = status_of(&self.head).map_or(ParseState::NotHttp, ParseState::Headers);
                if let ParseState::Headers(status) = self.state {
                    self.informational += usize::from(!is_final(status));
                    if is_final(status) {
                        // A status line has far fewer bytes. It does not count as something before itself.
                        self.informational_bytes = self.informational_bytes.saturating_sub(self.head.len());
                    }
                }
            }
            ParseState::Headers(status) if is_blank && is_final(status) => {
                self.state = ParseState::Passed(Some(status))
            }
            ParseState::Headers(_) if is_blank => {
                self.state = ParseState::StatusLine;
                self.head.clear();
            }
            ParseState::Headers(_) | ParseState::Passed(_) | ParseState::NotHttp => {}
        }
    }

    /// Neither a byte of an answer came, nor anything else that would be lost if the request was sent again. (What a peer says
    /// before it is asked is not an answer.)
    pub(super) fn is_untouched(&self) -> bool {
        !self.has_begun || !self.is_asked
    }

    /// The status of the final answer, once its status line has been read. A peer that speaks before it is asked has not
    /// answered.
    pub(super) fn status(&self) -> Option<StatusCode> {
        match self.state {
            ParseState::Headers(status) | ParseState::Passed(Some(status)) if self.is_asked && is_final(status) => {
                Some(status)
            }
            _ => None,
        }
    }

    /// A header of the final head, as far as it was kept: for a head that hyper could not parse.
    pub(super) fn header(&self, wanted: &HeaderName) -> Option<HeaderValue> {
        self.status()?;
        let lines = self.head.split(|&byte| byte == b'\n').skip(1);
        let mut headers = lines.filter_map(|line| {
            let colon = line.iter().position(|&byte| byte == b':')?;
            Some((line[..colon].trim_ascii(), line[colon + 1..].trim_ascii()))
        });
        let (_, value) = headers.find(|(name, _)| name.eq_ignore_ascii_case(wanted.as_str().as_bytes()))?;
        HeaderValue::from_bytes(value).ok()
    }

    /// Whether no byte came at all.
    pub(super) fn is_silence(&self) -> bool {
        !self.has_begun
    }

    /// Says, for people, what came instead of a final answer. `None` if nothing came at all.
    pub(super) fn instead(&self) -> Option<String> {
        if !self.has_begun {
            return None;
        }
        let sample = shown(self.head.trim_ascii_end(), SAMPLE_BYTES);
        Some(match self.state {
            ParseState::StatusLine | ParseState::NotHttp if self.head.starts_with(&TLS_ALERT) => {
                "the server speaks TLS: write https:// in the URL".to_owned()
            }
            ParseState::StatusLine if self.informational > 0 && self.head.is_empty() => {
                "informational (1xx) answers came, but no final answer".to_owned()
            }
            ParseState::StatusLine if self.head.is_empty() => "only blank lines came".to_owned(),
            ParseState::StatusLine => format!("the answer broke off in its status line: \"{sample}\""),
            ParseState::NotHttp => format!("what came is not an HTTP answer: \"{sample}\""),
            ParseState::Headers(_) | ParseState::Passed(_) if !self.is_asked => {
                format!("the server spoke before it was asked: \"{sample}\"")
            }
            ParseState::Headers(status) | ParseState::Passed(Some(status)) => {
                format!("the answer broke off after {status}")
            }
            ParseState::Passed(None) => "bytes came that belong to no answer".to_owned(),
        })
    }
}

fn is_final(status: StatusCode) -> bool {
    !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS
}

/// The code of a status line. More is accepted than RFC 9112 has: any version, in any case, more than one space, and no reason
/// phrase. There is no doubt what such a server means.
fn status_of(line: &[u8]) -> Option<StatusCode> {
    let (protocol, rest) = line.split_at_checked(5)?;
    let version_len = rest.iter().position(|byte| b" \t".contains(byte))?;
    let (version, rest) = rest.split_at(version_len);
    let (code, rest) = rest.trim_ascii_start().split_at_checked(3)?;
    let is_version = !version.is_empty() && version.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.');
    let ends = rest.first().is_none_or(|byte| !byte.is_ascii_digit());
    if !protocol.eq_ignore_ascii_case(b"HTTP/") || !is_version || !ends {
        return None;
    }
    StatusCode::from_bytes(code).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::text::is_escaped;
    use http::header::RETRY_AFTER;
    use proptest::prelude::*;

    fn asked() -> ResponseTracker {
        let mut answer = ResponseTracker::new();
        answer.begin();
        answer.asked();
        answer
    }

    fn after(bytes: &[u8]) -> ResponseTracker {
        let mut answer = asked();
        answer.read(bytes).unwrap();
        answer
    }

    #[test]
    fn a_status_line_counts_once_its_line_has_ended() {
        for line in
            ["HTTP/1.1 200 OK", "HTTP/1.1 200", "http/1.1 200 ok", "HTTP/1.0  200", "HTTP/2 200 ", "HTTP/1.1 200.1"]
        {
            assert_eq!(after(line.as_bytes()).status(), None, "{line}");
            for end in ["\n", "\r\n", "\r\nx: y", "\n\n", "\r\n\r\nbody"] {
                let answer = after(format!("\r\n{line}{end}").as_bytes());
                assert_eq!(answer.status(), Some(StatusCode::OK), "{line:?} and {end:?}");
            }
        }
        for line in
            ["HTTP/1.1 20\n", "HTTP/1.1 2000 OK\n", "ICY 200 OK\n", "SSH-2.0-x\n", "HTTP/ 200\n", "HTTP/1.1\n", "x\n"]
        {
            let answer = after(line.as_bytes());
            assert_eq!(answer.status(), None, "{line}");
            assert!(answer.instead().unwrap().contains("not an HTTP answer"), "{:?}", answer.instead());
        }
    }

    #[test]
    fn informational_answers_are_passed_over_up_to_a_limit() {
        let hints = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";
        let mut answer = after(hints.repeat(INFORMATIONAL_MAX).as_bytes());
        assert_eq!((answer.status(), answer.is_in_final_head()), (None, false));
        assert!(answer.instead().unwrap().contains("no final answer"), "{:?}", answer.instead());
        answer.read(b"HTTP/1.1 422 No\r\n").unwrap();
        assert_eq!((answer.status(), answer.is_in_final_head()), (Some(StatusCode::UNPROCESSABLE_ENTITY), true));
        answer.read(b"\r\nHTTP/1.1 200 OK\r\n\r\n").unwrap();
        assert_eq!((answer.status(), answer.is_in_head()), (Some(StatusCode::UNPROCESSABLE_ENTITY), false));

        for endless in [hints.to_owned(), "\r\n".to_owned(), format!("HTTP/1.1 100 {}", "x".repeat(1000))] {
            let endless = endless.repeat(INFORMATIONAL_BYTES_MAX);
            assert_eq!(asked().read(endless.as_bytes()), Err(TooMuchBeforeResponse));
        }
    }

    #[test]
    fn switching_protocols_is_a_final_answer() {
        assert_eq!(after(b"HTTP/1.1 101 Go\r\n\r\n").status(), Some(StatusCode::SWITCHING_PROTOCOLS));
    }

    #[test]
    fn a_peer_that_speaks_before_it_is_asked_has_not_answered() {
        let mut answer = ResponseTracker::new();
        answer.begin();
        answer.read(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        assert_eq!((answer.status(), answer.is_untouched()), (None, true));
        assert!(answer.instead().unwrap().contains("before it was asked"), "{:?}", answer.instead());
    }

    #[test]
    fn a_header_is_found_in_a_head_that_is_not_well_formed() {
        let answer = after(b"HTTP/1.1 503 No\r\nbad header\r\nretry-AFTER : 2.5 \r\nx: \0\r\n\r\n");
        assert_eq!(answer.header(&RETRY_AFTER).unwrap(), "2.5");
        assert_eq!(after(b"HTTP/1.1 503 No\r\nx: y\r\n\r\nretry-after: 3\r\n").header(&RETRY_AFTER), None);
    }

    #[test]
    fn what_is_shown_of_an_answer_is_escaped_and_short() {
        let shown = after(format!("\x1b[31mÜ\u{9b}\u{202e}{}\n", "x".repeat(9000)).as_bytes()).instead().unwrap();
        assert!(shown.contains(r"\u{1b}[31mÜ\u{9b}\u{202e}xx") && shown.ends_with("x…\""), "{shown}");
        assert!(shown.len() < 200 && !shown.chars().any(is_escaped), "{shown}");
    }

    #[test]
    fn the_next_request_begins_anew() {
        let mut answer = after(b"HTTP/1.1 200 OK\r\n\r\n");
        assert!(!answer.is_untouched());
        answer.begin();
        assert_eq!((answer.status(), answer.is_untouched(), answer.instead()), (None, true, None));
    }

    proptest! {
        #[test]
        fn it_does_not_matter_in_which_pieces_an_answer_comes(
            informational in 0..3usize,
            cuts in proptest::collection::vec(0..200usize, 0..6),
            ends in prop_oneof![Just("\r\n"), Just("\n")],
        ) {
            let text = format!("HTTP/1.1 100 Continue{ends}a: b{ends}{ends}").repeat(informational)
                + &format!("HTTP/1.1 503 No{ends}retry-after: 3{ends}{ends}body{ends}{ends}");
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).chain([0, text.len()]).collect();
            cuts.sort_unstable();
            let mut answer = asked();
            for cut in cuts.windows(2) {
                answer.read(&text.as_bytes()[cut[0]..cut[1]]).unwrap();
            }
            prop_assert_eq!(answer.status(), Some(StatusCode::SERVICE_UNAVAILABLE));
            prop_assert_eq!(answer.header(&RETRY_AFTER).unwrap(), "3");
            prop_assert!(!answer.is_in_head());
        }

        #[test]
        fn no_bytes_make_it_panic_or_grow(bytes in proptest::collection::vec(any::<u8>(), 0..9000)) {
            let mut answer = asked();
            let _ = answer.read(&bytes);
            let _ = (answer.status(), answer.header(&RETRY_AFTER), answer.instead());
            prop_assert!(answer.head.len() <= HEAD_KEPT_BYTES);
        }
    }
}
