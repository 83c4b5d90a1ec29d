//! Tracks a response while hyper reads it, so that the status is known even if hyper cannot parse the rest.
//!
//! ```text
//!  begin ─▶ status line ─▶ headers ─▶ blank line ─▶ body (not examined)
//!              ▲                          │
//!              └── 100, 102 … 199 ────────┘  at most INFORMATIONAL_MAX of them
//! ```
//!
//! It does no I/O: bytes go in, and what is known comes out.

use crate::core::text::shown;
use http::StatusCode;
use http::header::{HeaderName, HeaderValue};

/// Informational responses (`100 Continue`, `103 Early Hints`) before the final one. Usual servers send one or two. A server
/// that reports progress with `102 Processing` every 10 s fits within the limit as well.
pub(super) const INFORMATIONAL_MAX: usize = 32;

/// Bytes of all informational responses of one request, including blank lines before a status line.
pub(super) const INFORMATIONAL_BYTES_MAX: usize = 32 * 1024;

/// Bytes of a head that are kept. This is enough for a status line and the headers of a usual response.
const HEAD_KEPT_BYTES: usize = 4096;

/// Bytes of a response that is not HTTP that an error shows.
const SAMPLE_BYTES: usize = 100;

/// The first bytes that a TLS server sends in response to a request without TLS: an alert, of any version.
const TLS_ALERT: [u8; 2] = [0x15, 0x03];

/// What is known about the response to the request in flight.
#[derive(Debug)]
pub(super) struct ResponseTracker {
    state: ParseState,
    /// The first bytes of the head that is being read. After the final head has ended, the first bytes of that head.
    head: Vec<u8>,
    line_is_blank: bool,
    /// Whether a byte of the request was written.
    is_requested: bool,
    /// Whether any byte was received.
    has_received: bool,
    informational: usize,
    informational_bytes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ParseState {
    /// No request was sent yet, or the head of its response is complete.
    Complete(Option<StatusCode>),
    StatusLine,
    Headers(StatusCode),
    /// The first line is not a status line.
    NotHttp,
}

/// The server sent more before its final response than eventd reads.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "more than {INFORMATIONAL_MAX} informational (1xx) answers or {INFORMATIONAL_BYTES_MAX} bytes came before the final answer"
)]
pub(super) struct TooMuchBeforeResponse;

impl ResponseTracker {
    pub(super) fn new() -> Self {
        Self {
            state: ParseState::Complete(None),
            head: Vec::new(),
            line_is_blank: true,
            is_requested: false,
            has_received: false,
            informational: 0,
            informational_bytes: 0,
        }
    }

    /// Forgets the last response and expects the one to the next request.
    pub(super) fn begin_request(&mut self) {
        let mut head = std::mem::take(&mut self.head);
        head.clear();
        *self = Self { state: ParseState::StatusLine, head, ..Self::new() };
    }

    /// Notes that a byte of the request was written.
    pub(super) fn request_written(&mut self) {
        self.is_requested = true;
    }

    /// Whether the next bytes belong to a head, so that they must be passed to [`read`](Self::read).
    pub(super) fn is_in_head(&self) -> bool {
        matches!(self.state, ParseState::StatusLine | ParseState::Headers(_))
    }

    /// Whether the final status line was received but the end of its headers was not.
    pub(super) fn is_in_final_head(&self) -> bool {
        matches!(self.state, ParseState::Headers(status) if is_final(status))
    }

    /// Reads the next bytes of the connection. Bytes after the final head are ignored.
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> Result<(), TooMuchBeforeResponse> {
        self.has_received |= !bytes.is_empty();
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
            // Blank lines before a status line have no meaning (RFC 9112, section 2.2).
            ParseState::StatusLine if is_blank => self.head.clear(),
            ParseState::StatusLine => {
                self.state = status_of(&self.head).map_or(ParseState::NotHttp, ParseState::Headers);
                if let ParseState::Headers(status) = self.state {
                    self.informational += usize::from(!is_final(status));
                    if is_final(status) {
                        // The status line of the final response is not a part of what came before it.
                        self.informational_bytes = self.informational_bytes.saturating_sub(self.head.len());
                    }
                }
            }
            ParseState::Headers(status) if is_blank && is_final(status) => {
                self.state = ParseState::Complete(Some(status))
            }
            ParseState::Headers(_) if is_blank => {
                self.state = ParseState::StatusLine;
                self.head.clear();
            }
            ParseState::Headers(_) | ParseState::Complete(_) | ParseState::NotHttp => {}
        }
    }

    /// Whether no part of a response was received, so that nothing is lost if the request is sent again. Bytes that the server
    /// sent before the request are not a response.
    pub(super) fn is_untouched(&self) -> bool {
        !self.has_received || !self.is_requested
    }

    /// The status of the final response, once its status line was read. Bytes that the server sent before the request do not
    /// count.
    pub(super) fn status(&self) -> Option<StatusCode> {
        match self.state {
            ParseState::Headers(status) | ParseState::Complete(Some(status))
                if self.is_requested && is_final(status) =>
            {
                Some(status)
            }
            _ => None,
        }
    }

    /// A header of the final response, if it is in the kept bytes. It is for heads that hyper could not parse.
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

    /// Whether no byte was received at all.
    pub(super) fn is_silence(&self) -> bool {
        !self.has_received
    }

    /// Text for people that says what was received instead of a final response. `None` if no byte was received.
    pub(super) fn received_instead(&self) -> Option<String> {
        if !self.has_received {
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
            ParseState::NotHttp => format!("the server sent something that is not an HTTP answer: \"{sample}\""),
            ParseState::Headers(_) | ParseState::Complete(_) if !self.is_requested => {
                format!("the server sent something before the request: \"{sample}\"")
            }
            ParseState::Headers(status) | ParseState::Complete(Some(status)) => {
                format!("the answer broke off after {status}")
            }
            ParseState::Complete(None) => "the server sent something that does not belong to an answer".to_owned(),
        })
    }
}

fn is_final(status: StatusCode) -> bool {
    !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS
}

/// The code of a status line. It may deviate from RFC 9112 where the meaning is clear: any version, upper or lower case, more
/// than one space, and a missing reason phrase.
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

    fn tracker_after_request() -> ResponseTracker {
        let mut tracker = ResponseTracker::new();
        tracker.begin_request();
        tracker.request_written();
        tracker
    }

    fn after(bytes: &[u8]) -> ResponseTracker {
        let mut tracker = tracker_after_request();
        tracker.read(bytes).unwrap();
        tracker
    }

    #[test]
    fn a_status_line_counts_once_its_line_has_ended() {
        for line in
            ["HTTP/1.1 200 OK", "HTTP/1.1 200", "http/1.1 200 ok", "HTTP/1.0  200", "HTTP/2 200 ", "HTTP/1.1 200.1"]
        {
            assert_eq!(after(line.as_bytes()).status(), None, "{line}");
            for end in ["\n", "\r\n", "\r\nx: y", "\n\n", "\r\n\r\nbody"] {
                let tracker = after(format!("\r\n{line}{end}").as_bytes());
                assert_eq!(tracker.status(), Some(StatusCode::OK), "{line:?} and {end:?}");
            }
        }
        for line in
            ["HTTP/1.1 20\n", "HTTP/1.1 2000 OK\n", "ICY 200 OK\n", "SSH-2.0-x\n", "HTTP/ 200\n", "HTTP/1.1\n", "x\n"]
        {
            let tracker = after(line.as_bytes());
            assert_eq!(tracker.status(), None, "{line}");
            assert!(
                tracker.received_instead().unwrap().contains("not an HTTP answer"),
                "{:?}",
                tracker.received_instead()
            );
        }
    }

    #[test]
    fn informational_responses_are_skipped_up_to_a_limit() {
        let hints = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";
        let mut tracker = after(hints.repeat(INFORMATIONAL_MAX).as_bytes());
        assert_eq!((tracker.status(), tracker.is_in_final_head()), (None, false));
        assert!(tracker.received_instead().unwrap().contains("no final answer"), "{:?}", tracker.received_instead());
        tracker.read(b"HTTP/1.1 422 No\r\n").unwrap();
        assert_eq!((tracker.status(), tracker.is_in_final_head()), (Some(StatusCode::UNPROCESSABLE_ENTITY), true));
        tracker.read(b"\r\nHTTP/1.1 200 OK\r\n\r\n").unwrap();
        assert_eq!((tracker.status(), tracker.is_in_head()), (Some(StatusCode::UNPROCESSABLE_ENTITY), false));

        for endless in [hints.to_owned(), "\r\n".to_owned(), format!("HTTP/1.1 100 {}", "x".repeat(1000))] {
            let endless = endless.repeat(INFORMATIONAL_BYTES_MAX);
            assert_eq!(tracker_after_request().read(endless.as_bytes()), Err(TooMuchBeforeResponse));
        }
    }

    #[test]
    fn switching_protocols_is_a_final_response() {
        assert_eq!(after(b"HTTP/1.1 101 Go\r\n\r\n").status(), Some(StatusCode::SWITCHING_PROTOCOLS));
    }

    #[test]
    fn bytes_that_the_server_sent_before_the_request_are_not_a_response() {
        let mut tracker = ResponseTracker::new();
        tracker.begin_request();
        tracker.read(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        assert_eq!((tracker.status(), tracker.is_untouched()), (None, true));
        assert!(tracker.received_instead().unwrap().contains("before the request"), "{:?}", tracker.received_instead());
    }

    #[test]
    fn a_header_is_found_in_a_head_with_malformed_lines() {
        let tracker = after(b"HTTP/1.1 503 No\r\nbad header\r\nretry-AFTER : 2.5 \r\nx: \0\r\n\r\n");
        assert_eq!(tracker.header(&RETRY_AFTER).unwrap(), "2.5");
        assert_eq!(after(b"HTTP/1.1 503 No\r\nx: y\r\n\r\nretry-after: 3\r\n").header(&RETRY_AFTER), None);
    }

    #[test]
    fn an_error_shows_a_short_and_escaped_part_of_the_response() {
        let shown =
            after(format!("\x1b[31mÜ\u{9b}\u{202e}{}\n", "x".repeat(9000)).as_bytes()).received_instead().unwrap();
        assert!(shown.contains(r"\u{1b}[31mÜ\u{9b}\u{202e}xx") && shown.ends_with("x…\""), "{shown}");
        assert!(shown.len() < 200 && !shown.chars().any(is_escaped), "{shown}");
    }

    #[test]
    fn nothing_of_a_response_is_left_when_the_next_request_begins() {
        let mut tracker = after(b"HTTP/1.1 200 OK\r\n\r\n");
        assert!(!tracker.is_untouched());
        tracker.begin_request();
        assert_eq!((tracker.status(), tracker.is_untouched(), tracker.received_instead()), (None, true, None));
    }

    proptest! {
        #[test]
        fn a_response_may_arrive_in_any_pieces(
            informational in 0..3usize,
            cuts in proptest::collection::vec(0..200usize, 0..6),
            ends in prop_oneof![Just("\r\n"), Just("\n")],
        ) {
            let text = format!("HTTP/1.1 100 Continue{ends}a: b{ends}{ends}").repeat(informational)
                + &format!("HTTP/1.1 503 No{ends}retry-after: 3{ends}{ends}body{ends}{ends}");
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).chain([0, text.len()]).collect();
            cuts.sort_unstable();
            let mut tracker = tracker_after_request();
            for cut in cuts.windows(2) {
                tracker.read(&text.as_bytes()[cut[0]..cut[1]]).unwrap();
            }
            prop_assert_eq!(tracker.status(), Some(StatusCode::SERVICE_UNAVAILABLE));
            prop_assert_eq!(tracker.header(&RETRY_AFTER).unwrap(), "3");
            prop_assert!(!tracker.is_in_head());
        }

        #[test]
        fn any_bytes_are_read_without_a_panic_and_within_the_memory_limit(bytes in proptest::collection::vec(any::<u8>(), 0..9000)) {
            let mut tracker = tracker_after_request();
            let _ = tracker.read(&bytes);
            let _ = (tracker.status(), tracker.header(&RETRY_AFTER), tracker.received_instead());
            prop_assert!(tracker.head.len() <= HEAD_KEPT_BYTES);
        }
    }
}
