//! Connections that may create replication slots with a snapshot, which SQL cannot.
//!
//! `CREATE_REPLICATION_SLOT` belongs to the streaming replication protocol: the same wire
//! protocol with one more parameter at the start, which the client library does not know. So
//! its first message is completed on the way ([`Completed`]); everything after it is as ever.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use postgres::config::{Host, SslMode};
use postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use postgres::{NoTls, SimpleQueryMessage};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::{Builder, Runtime};
use tokio_postgres::{Client, Config};

use crate::database::postgres::error::{connecting, failed};
use crate::database::postgres::pgoutput::Lsn;
use crate::database::postgres::tls::Tls;
use crate::database::postgres::{Server, quoted};
use crate::error::{Error, Kind, Result};

/// Protocol version 3.0 at the front of a startup message, behind its length.
const VERSION: [u8; 4] = [0, 3, 0, 0];
const PARAMETER: &[u8] = b"replication\0database\0";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How often whoever waits for a slot hears of it.
pub(super) const WAIT_STEP: Duration = Duration::from_millis(500);

/// A connection of the replication protocol to one database.
pub(super) struct ReplicationSession {
    // Before the runtime, so that the connection is told.
    client: Client,
    runtime: Runtime,
    backend: i32,
}

/// A slot, just created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CreatedSlot {
    /// What was committed before it is not told by the slot, everything else is.
    pub(super) consistent_point: Lsn,
    /// Name of a snapshot of that moment, until the session does anything else.
    pub(super) snapshot: Option<String>,
}

/// How long a slot lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SlotLife {
    /// Until it is dropped.
    Lasting,
    /// As long as its session, with a snapshot of its beginning.
    OfSession,
}

impl ReplicationSession {
    /// Connects.
    ///
    /// # Errors
    /// As [`Server::connect`]; [`Kind::Blocked`] for a role that may not replicate.
    pub(super) fn connect(server: &Server) -> Result<ReplicationSession> {
        let what = format!("connect to `{}` for replication", server.shown());
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|cause| Error::io(what.clone(), cause))?;
        let client = runtime.block_on(async {
            match server.config().get_ssl_mode() {
                SslMode::Disable => connect_any(server, NoTls, &what).await,
                _ => connect_any(server, Tls::new(server.trust())?, &what).await,
            }
        })?;
        let rows = runtime
            .block_on(client.simple_query("SELECT pg_catalog.pg_backend_pid()"))
            .map_err(failed(&what))?;
        let backend = first_row(&rows).and_then(|row| row.get(0)?.parse().ok());
        let backend = backend.ok_or_else(|| unreadable(&what))?;
        Ok(ReplicationSession { client, runtime, backend })
    }

    /// Creates a slot for `pgoutput`.
    ///
    /// The server waits for every transaction that has written and still runs. Meanwhile
    /// `waiting` is called twice a second with the process that waits; its error ends the wait.
    ///
    /// # Errors
    /// Those of `waiting`; [`Kind::InTheWay`] when there is such a slot,
    /// [`Kind::Blocked`] when the server has no slot left.
    pub(super) fn create_slot(
        &self,
        name: &str,
        life: SlotLife,
        waiting: &mut dyn FnMut(i32) -> Result<()>,
    ) -> Result<CreatedSlot> {
        let (temporary, snapshot) = match life {
            SlotLife::Lasting => ("", "NOEXPORT_SNAPSHOT"),
            SlotLife::OfSession => ("TEMPORARY ", "EXPORT_SNAPSHOT"),
        };
        let what = format!("create the replication slot `{name}`");
        let sql = format!(
            "CREATE_REPLICATION_SLOT {} {temporary}LOGICAL pgoutput {snapshot}",
            quoted(name)
        );
        let mut created = pin!(self.client.simple_query(&sql));
        let rows = loop {
            // What is done meanwhile blocks too, so it is done between two steps.
            let step = async { tokio::time::timeout(WAIT_STEP, created.as_mut()).await };
            match self.runtime.block_on(step) {
                Ok(rows) => break rows.map_err(failed(&what))?,
                Err(_) => waiting(self.backend)?,
            }
        };
        let read = || {
            let row = first_row(&rows)?;
            Some(CreatedSlot {
                consistent_point: parse_lsn(row.get("consistent_point")?)?,
                snapshot: row.get("snapshot_name").map(str::to_owned),
            })
        };
        read().ok_or_else(|| unreadable(&what))
    }
}

impl ReplicationSession {
    /// Drops a slot of this session.
    ///
    /// # Errors
    /// As [`failed`] says.
    pub(super) fn drop_slot(&self, name: &str) -> Result<()> {
        let sql = format!("DROP_REPLICATION_SLOT {}", quoted(name));
        let dropped = self.runtime.block_on(self.client.simple_query(&sql));
        dropped.map_err(failed(&format!("drop the replication slot `{name}`"))).map(drop)
    }
}

impl std::fmt::Debug for ReplicationSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReplicationSession").field("backend", &self.backend).finish_non_exhaustive()
    }
}

fn first_row(messages: &[SimpleQueryMessage]) -> Option<&postgres::SimpleQueryRow> {
    messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    })
}

fn unreadable(what: &str) -> Error {
    Error::new(Kind::Unsupported, format!("{what}: the server's answer cannot be read"))
}

/// Reads `16/B374D848`.
pub(super) fn parse_lsn(text: &str) -> Option<Lsn> {
    let (high, low) = text.split_once('/')?;
    let half = |text: &str| u32::from_str_radix(text, 16).ok();
    Some(u64::from(half(high)?) << 32 | u64::from(half(low)?))
}

/// Writes `16/B374D848`.
pub(super) fn show_lsn(lsn: Lsn) -> String {
    format!("{:X}/{:X}", lsn >> 32, lsn as u32)
}

/// Connects to the first host that answers.
async fn connect_any<T>(server: &Server, tls: T, what: &str) -> Result<Client>
where
    T: Clone + MakeTlsConnect<Completed<AnySocket>>,
    <T::TlsConnect as TlsConnect<Completed<AnySocket>>>::Future: Send + 'static,
    T::Stream: Send + 'static,
{
    let asked = server.config();
    let mut config = Config::new();
    if let Some(user) = asked.get_user() {
        config.user(user);
    }
    if let Some(password) = asked.get_password() {
        config.password(password);
    }
    if let Some(database) = asked.get_dbname().or(asked.get_user()) {
        config.dbname(database);
    }
    if let Some(options) = asked.get_options() {
        config.options(options);
    }
    config.application_name(asked.get_application_name().unwrap_or("tidemark"));
    config.ssl_mode(asked.get_ssl_mode());
    config.channel_binding(asked.get_channel_binding());

    let timeout = asked.get_connect_timeout().copied().unwrap_or(CONNECT_TIMEOUT);
    let (hosts, addresses, ports) = (asked.get_hosts(), asked.get_hostaddrs(), asked.get_ports());
    let mut last = None;
    for at in 0..hosts.len().max(addresses.len()) {
        let port = ports.get(at).or(ports.first()).copied().unwrap_or(5432);
        let opened = tokio::time::timeout(timeout, async {
            let socket: Box<dyn Socket> = match (addresses.get(at), hosts.get(at)) {
                (Some(address), _) => Box::new(TcpStream::connect((*address, port)).await?),
                (None, Some(Host::Tcp(host))) => {
                    Box::new(TcpStream::connect((host.as_str(), port)).await?)
                }
                (None, Some(Host::Unix(folder))) => {
                    let path = folder.join(format!(".s.PGSQL.{port}"));
                    Box::new(UnixStream::connect(path).await?)
                }
                (None, None) => return Err(io::ErrorKind::NotFound.into()),
            };
            Ok(AnySocket(socket))
        });
        let stream = match opened.await {
            Ok(Ok(stream)) => stream,
            Ok(Err(cause)) => {
                last = Some(nobody_answers(what, cause));
                continue;
            }
            Err(_) => {
                last = Some(nobody_answers(what, io::ErrorKind::TimedOut.into()));
                continue;
            }
        };
        if let (None, Some(Host::Unix(_))) = (addresses.get(at), hosts.get(at)) {
            // As the client library does it: what never leaves the machine is not encrypted.
            config.ssl_mode(SslMode::Disable);
        }
        let host = match hosts.get(at) {
            Some(Host::Tcp(host)) => host.as_str(),
            _ => "localhost",
        };
        let made = tls.clone().make_tls_connect(host);
        let tls = made.map_err(|cause| {
            let message = format!("{what}: `{host}` cannot be checked");
            Error::with_source(Kind::Usage, message, cause.into())
        })?;
        let connecting_now = config.connect_raw(Completed::new(stream), CompletedTls(tls));
        let connected = tokio::time::timeout(timeout, connecting_now).await;
        let (client, connection) = match connected {
            Ok(connected) => connected.map_err(connecting(what))?,
            Err(_) => return Err(nobody_answers(what, io::ErrorKind::TimedOut.into())),
        };
        // What goes wrong with it is told by the requests that wait for it.
        tokio::spawn(async move { drop(connection.await) });
        return Ok(client);
    }
    Err(last.unwrap_or_else(|| nobody_answers(what, io::ErrorKind::NotFound.into())))
}

fn nobody_answers(what: &str, cause: io::Error) -> Error {
    Error::with_source(Kind::Transient, format!("{what}: nobody answers"), cause)
}

/// A stream of any kind.
trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Socket for S {}

/// One of them. A type of its own, since the compiler cannot tell that a boxed one may be sent.
struct AnySocket(Box<dyn Socket>);

impl AsyncRead for AnySocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, into)
    }
}

impl AsyncWrite for AnySocket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// A stream whose startup message gets one more parameter.
///
/// Whatever comes before it, a request for encryption, passes unchanged; so does everything
/// once it was seen, or once the bytes are those of a handshake.
struct Completed<S> {
    inner: S,
    is_done: bool,
    /// Bytes of the completed message that were not yet taken.
    pending: Vec<u8>,
}

impl<S> Completed<S> {
    fn new(inner: S) -> Completed<S> {
        Completed { inner, is_done: false, pending: Vec::new() }
    }
}

/// Handshakes whose streams are completed too: inside of them the startup message is sent.
struct CompletedTls<T>(T);

impl<S, T> TlsConnect<S> for CompletedTls<T>
where
    T: TlsConnect<S>,
    T::Future: Send + 'static,
{
    type Stream = Completed<T::Stream>;
    type Error = T::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Completed<T::Stream>, T::Error>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        let handshake = self.0.connect(stream);
        Box::pin(async move { Ok(Completed::new(handshake.await?)) })
    }
}

impl<S: TlsStream + Unpin> TlsStream for Completed<S> {
    fn channel_binding(&self) -> ChannelBinding {
        self.inner.channel_binding()
    }
}

/// The message with the parameter; `None` for what is no whole startup message.
fn complete(message: &[u8]) -> Option<Vec<u8>> {
    let length = u32::from_be_bytes(message.get(..4)?.try_into().ok()?);
    if length as usize != message.len() || message.get(4..8)? != VERSION {
        return None;
    }
    let (&0, parameters) = message.split_last()? else { return None };
    let length = length + PARAMETER.len() as u32;
    Some([&length.to_be_bytes(), &parameters[4..], PARAMETER, &[0]].concat())
}

impl<S: AsyncWrite + Unpin> Completed<S> {
    fn poll_pending(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.pending.is_empty() {
            let written = ready!(Pin::new(&mut self.inner).poll_write(context, &self.pending))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.pending.drain(..written);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Completed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Completed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_pending(context))?;
        if !self.is_done
            && let Some(completed) = complete(bytes)
        {
            self.is_done = true;
            self.pending = completed;
            // Taken as a whole; what the stream does not take now goes with the flush.
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_pending(context))?;
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_pending(context))?;
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A startup message of these parameters.
    fn startup(parameters: &[u8]) -> Vec<u8> {
        let length = 4 + VERSION.len() + parameters.len() + 1;
        [&(length as u32).to_be_bytes(), &VERSION[..], parameters, &[0]].concat()
    }

    #[test]
    fn the_startup_message_gets_the_parameter_and_nothing_else_does() {
        let message = startup(b"user\0me\0");
        let completed = complete(&message).unwrap();
        assert_eq!(completed, startup(b"user\0me\0replication\0database\0"));
        let request_of_encryption = [0, 0, 0, 8, 4, 210, 22, 47];
        let handshake = [22, 3, 1, 0, 5, 1, 0, 0, 1, 3];
        for other in [&request_of_encryption[..], &handshake, b"Q\0\0\0\x05\0", &message[..9], b""]
        {
            assert_eq!(complete(other), None, "{other:x?}");
        }
    }

    #[test]
    fn places_in_the_log_read_back() {
        for text in ["0/0", "16/B374D848", "FFFFFFFF/FFFFFFFF", "0/1"] {
            assert_eq!(show_lsn(parse_lsn(text).unwrap()), text);
        }
        for text in ["", "0", "/", "0/x", "1/2/3", "100000000/0"] {
            assert_eq!(parse_lsn(text), None, "{text}");
        }
    }
}
