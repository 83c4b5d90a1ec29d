//! The listening sockets of ingest: one for each address that `--listen` resolves to.

use anyhow::{Context, bail, ensure};
use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use tokio::net::{TcpListener, TcpSocket, lookup_host};

/// How many connections the kernel queues for us until they are accepted. A burst of clients that connect at the same
/// time finds room in it.
const BACKLOG: u32 = 4_096;

/// Binds every address that `address` (`host:port`, the value of `--listen`) resolves to.
///
/// # Errors
///
/// The name does not resolve, an address is in use or not permitted, or this machine has none of the addresses.
pub(crate) async fn bind(address: &str) -> anyhow::Result<Vec<TcpListener>> {
    let resolved = lookup_host(address).await.with_context(|| {
        format!("cannot resolve {address:?} (--listen): use the host:port of this machine, such as localhost:8090")
    })?;
    let mut listeners = Vec::new();
    let mut unavailable = None;
    for address in resolved.collect::<BTreeSet<_>>() {
        match bind_one(address) {
            Ok(listener) => listeners.push(listener),
            // `localhost` resolves to ::1 even on machines without IPv6: one of its two addresses is enough.
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable || is_family_unsupported(&error) => {
                unavailable = Some((address, error));
            }
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                bail!("another program uses {address}: stop it, or choose another port with --listen")
            }
            Err(error) => return Err(error).with_context(|| format!("cannot listen on {address} (--listen)")),
        }
    }
    match unavailable {
        Some((address, error)) if listeners.is_empty() => {
            Err(error).with_context(|| format!("cannot listen on {address} (--listen)"))
        }
        _ => {
            ensure!(!listeners.is_empty(), "{address:?} resolves to no address (--listen)");
            Ok(listeners)
        }
    }
}

fn bind_one(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Without this, a restart could not bind the port until the old connections have timed out.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Whether the machine does not support the address family: EAFNOSUPPORT, for which std has no `ErrorKind`.
fn is_family_unsupported(error: &io::Error) -> bool {
    error.raw_os_error() == Some(97)
}

/// Logs every address that `listeners` are bound to, and a `curl` command to paste. `asked` is the value of `--listen`:
/// the command uses its host name.
///
/// # Errors
///
/// The system does not know the address of a listener.
pub(crate) fn announce(asked: &str, listeners: &[TcpListener]) -> io::Result<()> {
    let mut port = 0;
    for listener in listeners {
        let address = listener.local_addr()?;
        port = address.port();
        tracing::info!(%address, "listening");
    }
    let host = asked.rsplit_once(':').map_or(asked, |(host, _)| host);
    tracing::info!(
        "try it: curl {host}:{port}/events -H 'Content-Type: application/json' \
         --data-raw '[{{\"UserID\": \"user-1\",\"Payload\": \"event-1-payload\"}}]'"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_address_of_a_name_is_bound_and_port_zero_picks_a_free_port() {
        let listeners = bind("localhost:0").await.unwrap();
        assert!(!listeners.is_empty());
        for listener in &listeners {
            let address = listener.local_addr().unwrap();
            assert!(address.ip().is_loopback() && address.port() > 0, "{address}");
        }
    }

    #[tokio::test]
    async fn an_address_that_is_in_use_or_does_not_resolve_is_named_in_the_error() {
        let taken = bind("127.0.0.1:0").await.unwrap();
        let address = taken[0].local_addr().unwrap().to_string();
        for (asked, expected) in [(address.as_str(), address.as_str()), ("localhost", "\"localhost\"")] {
            let error = bind(asked).await.unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("--listen"), "{error}");
        }
    }
}
