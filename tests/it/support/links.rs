//! Carries the traffic between the nodes of a broker that was started with `--links`, and can cut one node off from the
//! others. Clients still reach that node.
//!
//! ```text
//!  node 1 ──▶ 127.0.1.2:port of node 2 ──▶ a link ──▶ 127.0.0.1:port of node 2
//!                                            ✂ cut: nothing passes, and no connection is closed, as if cables were pulled
//! ```

use super::wait::PATIENCE;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

/// How often the file with the ports is checked. Nodes take seconds to start.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// The node that is cut off, or `None` while all nodes reach each other.
type Cut = watch::Receiver<Option<u8>>;

/// The links of one cluster. They end when the value is dropped.
pub(crate) struct Links {
    cut: Option<watch::Sender<Option<u8>>>,
    thread: Option<JoinHandle<()>>,
}

impl Links {
    /// Starts to carry the traffic of the cluster in this folder as soon as its ports are known.
    pub(crate) fn start(folder: &Path) -> Self {
        let (cut, is_cut) = watch::channel(None);
        let nodes = folder.join("nodes");
        let thread = std::thread::spawn(move || super::block_on(carry(&nodes, is_cut)));
        Self { cut: Some(cut), thread: Some(thread) }
    }

    /// Cuts this node off from the others, in both directions.
    pub(crate) fn cut_off(&self, node: i32) {
        self.set(Some(u8::try_from(node).unwrap()));
    }

    /// Reconnects the node. Bytes that were on their way arrive now.
    pub(crate) fn heal(&self) {
        self.set(None);
    }

    fn set(&self, node: Option<u8>) {
        self.cut.as_ref().unwrap().send(node).expect("the links still run");
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        drop(self.cut.take());
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(()))), "the links panicked");
    }
}

async fn carry(nodes: &PathBuf, mut cut: Cut) {
    let began = Instant::now();
    let text = loop {
        match std::fs::read_to_string(nodes) {
            Ok(text) if text.ends_with('\n') => break text,
            _ if cut.has_changed().is_err() => return,
            _ => assert!(began.elapsed() < PATIENCE, "no broker was started: {} is missing", nodes.display()),
        }
        sleep(LOOK_INTERVAL).await;
    };
    // A line has the node's number, and its ports for clients, for brokers and for controllers.
    let numbers = |line: &str| line.split(' ').map(|number| number.parse().unwrap()).collect::<Vec<u16>>();
    let nodes: Vec<Vec<u16>> = text.lines().map(numbers).collect();
    for from in &nodes {
        for to in nodes.iter().filter(|to| to[0] != from[0]) {
            for port in &to[2..] {
                let ends = [from[0] as u8, to[0] as u8];
                let listener = TcpListener::bind((Ipv4Addr::new(127, 0, ends[0], ends[1]), *port)).await.unwrap();
                tokio::spawn(link(listener, *port, ends, cut.clone()));
            }
        }
    }
    while cut.changed().await.is_ok() {}
}

async fn link(listener: TcpListener, port: u16, ends: [u8; 2], cut: Cut) {
    while let Ok((from, _)) = listener.accept().await {
        let mut cut = cut.clone();
        tokio::spawn(async move {
            passes(&mut cut, ends).await?;
            let to = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.ok()?;
            let ((from_there, to_there), (from_here, to_here)) = (to.into_split(), from.into_split());
            tokio::join!(pump(from_here, to_there, ends, cut.clone()), pump(from_there, to_here, ends, cut));
            Some(())
        });
    }
}

/// Waits while one of the two ends is cut off. `None` means that the links have ended.
async fn passes(cut: &mut Cut, ends: [u8; 2]) -> Option<()> {
    let open = cut.wait_for(|node| node.is_none_or(|node| !ends.contains(&node))).await;
    open.ok().map(drop)
}

async fn pump(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, ends: [u8; 2], mut cut: Cut) {
    let mut chunk = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut chunk).await {
        if passes(&mut cut, ends).await.is_none() || to.write_all(&chunk[..read]).await.is_err() {
            return;
        }
    }
    // The end of a connection must not pass a cut either.
    if passes(&mut cut, ends).await.is_some() {
        let _ = to.shutdown().await;
    }
}
