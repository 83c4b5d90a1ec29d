//! A receiver of webhooks that keeps the requests and answers with the status that the test chooses.

use super::wait::eventually;
use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// One request that was answered with 2xx.
#[derive(Debug, Clone)]
pub(crate) struct Hook {
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: String,
    pub(crate) at: Instant,
}

impl Hook {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    pub(crate) fn user(&self) -> &str {
        self.header("eventd-user")
    }

    /// The id of the replay that sent the request, or an empty string for live traffic.
    pub(crate) fn replay(&self) -> &str {
        self.header("eventd-replay")
    }
}

/// Chooses the status for a request. It may block: then the answer to this request waits.
type Answer = Arc<dyn Fn(&Hook) -> u16 + Send + Sync>;

pub(crate) struct Receiver {
    pub(crate) url: String,
    shared: Arc<Shared>,
}

struct Shared {
    answer: Mutex<Answer>,
    taken: Mutex<Vec<Hook>>,
    refused: Mutex<u64>,
}

impl Receiver {
    /// Starts a receiver that answers every request with 200.
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            answer: Mutex::new(Arc::new(|_| 200)),
            taken: Mutex::default(),
            refused: Mutex::default(),
        });
        let accepting = shared.clone();
        std::thread::spawn(move || {
            // The thread ends with the test's process.
            for stream in listener.incoming().map_while(Result::ok) {
                let shared = accepting.clone();
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        Self { url, shared }
    }

    /// Changes how requests are answered from now on.
    pub(crate) fn answers(&self, answer: impl Fn(&Hook) -> u16 + Send + Sync + 'static) {
        *self.shared.answer.lock().unwrap() = Arc::new(answer);
    }

    /// Removes and returns the requests that were answered with 2xx since the last call.
    pub(crate) fn take(&self) -> Vec<Hook> {
        std::mem::take(&mut self.shared.taken.lock().unwrap())
    }

    pub(crate) fn count(&self) -> usize {
        self.shared.taken.lock().unwrap().len()
    }

    /// The number of requests that were answered with any other status.
    pub(crate) fn refused(&self) -> u64 {
        *self.shared.refused.lock().unwrap()
    }

    /// Waits until this many requests were accepted since the last [`take`](Self::take).
    pub(crate) fn wait_for(&self, count: usize) {
        eventually(|| match self.count() {
            taken if taken >= count => Ok(()),
            taken => Err(format!("the receiver has {taken} of {count}")),
        });
    }
}

/// For each user, the bodies in the order in which they arrived.
pub(crate) fn bodies(hooks: &[Hook]) -> BTreeMap<String, Vec<String>> {
    let mut bodies = BTreeMap::<_, Vec<_>>::new();
    for hook in hooks {
        bodies.entry(hook.user().to_owned()).or_default().push(hook.body.clone());
    }
    bodies
}

fn serve(stream: TcpStream, shared: &Shared) {
    let mut stream = BufReader::new(stream);
    while let Some(hook) = read(&mut stream) {
        let answer = Arc::clone(&*shared.answer.lock().unwrap());
        let status = answer(&hook);
        // The request is stored before it is answered. So a sender that is killed after the answer finds it delivered.
        match status {
            200..300 => shared.taken.lock().unwrap().push(hook),
            _ => *shared.refused.lock().unwrap() += 1,
        }
        let answer = format!("HTTP/1.1 {status} chosen\r\ncontent-length: 0\r\n\r\n");
        if stream.get_mut().write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// Reads one request. `None` means that the connection ended.
fn read(stream: &mut BufReader<TcpStream>) -> Option<Hook> {
    let mut line = String::new();
    let mut headers = HashMap::new();
    loop {
        line.clear();
        if stream.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end().split_once(':') {
            Some((name, value)) => _ = headers.insert(name.to_ascii_lowercase(), value.trim().to_owned()),
            None if line.trim_end().is_empty() => break,
            None => {}
        }
    }
    let mut body = vec![0; headers.get("content-length")?.parse().ok()?];
    stream.read_exact(&mut body).ok()?;
    Some(Hook { headers, body: String::from_utf8(body).ok()?, at: Instant::now() })
}
