//! Asking the host's name servers.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query as Question, ResponseCode},
    rr::{DNSClass, Name, RecordType},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
};

use crate::files::{Watched, parse_resolv_conf};

/// Servers are tried at most this often for one question, each at most twice.
const MAX_TRIES: usize = 4;

/// The longest reply asked for over UDP, in bytes; a longer one is fetched over TCP.
const PAYLOAD: u16 = 1232;

/// Why nobody answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamError {
    #[error("no name server is configured")]
    None,
    #[error("the question cannot be encoded")]
    Encode(#[source] hickory_proto::ProtoError),
    #[error("{server} did not answer in time")]
    Timeout { server: SocketAddr },
    #[error("{server} cannot be asked")]
    Io {
        server: SocketAddr,
        source: io::Error,
    },
    #[error("{server} answered {code}")]
    Refused {
        server: SocketAddr,
        code: ResponseCode,
    },
    #[error("{server} answered over tcp with something else")]
    Mismatch { server: SocketAddr },
}

/// The name servers to ask.
pub(crate) struct Upstream {
    file: Watched<Vec<SocketAddr>>,
    /// Used instead of the file's if there are any.
    fixed: Arc<Vec<SocketAddr>>,
    /// Our own addresses: a host that uses us as its name server must not make us ask ourselves.
    own: Vec<SocketAddr>,
    /// Which server answered last. One that fails is not the first to be asked next time.
    preferred: AtomicUsize,
    one_try: Duration,
}

impl Upstream {
    pub(crate) fn new(
        resolv_conf: PathBuf,
        fixed: Vec<SocketAddr>,
        own: Vec<SocketAddr>,
        one_try: Duration,
    ) -> Self {
        Self {
            file: Watched::new(resolv_conf, parse_resolv_conf),
            fixed: Arc::new(fixed),
            own,
            preferred: AtomicUsize::new(0),
            one_try,
        }
    }

    /// Asks one server after the other until one answers, and returns the answer and its length in
    /// bytes.
    pub(crate) async fn ask(
        &self,
        name: &Name,
        kind: RecordType,
    ) -> Result<(Message, usize), UpstreamError> {
        let servers = if self.fixed.is_empty() {
            self.file.get()
        } else {
            Arc::clone(&self.fixed)
        };
        let servers: Vec<_> = servers.iter().filter(|s| !self.own.contains(s)).collect();
        if servers.is_empty() {
            return Err(UpstreamError::None);
        }
        let first = self.preferred.load(Ordering::Relaxed);
        let mut last = UpstreamError::None;
        for step in 0..MAX_TRIES.min(2 * servers.len()) {
            let server = *servers[(first + step) % servers.len()];
            match tokio::time::timeout(self.one_try, ask_one(server, name, kind)).await {
                Ok(Ok(found)) => {
                    if step > 0 {
                        self.preferred
                            .store((first + step) % servers.len(), Ordering::Relaxed);
                    }
                    return Ok(found);
                }
                Ok(Err(error)) => last = error,
                Err(_) => last = UpstreamError::Timeout { server },
            }
            tracing::debug!(error = %last, "name server failed");
        }
        Err(last)
    }
}

/// Asks one server: over UDP from a port and with a number that nobody can guess, then over TCP if the
/// reply did not fit.
async fn ask_one(
    server: SocketAddr,
    name: &Name,
    kind: RecordType,
) -> Result<(Message, usize), UpstreamError> {
    let mut question = Message::new();
    let id = rand::random();
    let mut edns = Edns::new();
    edns.set_max_payload(PAYLOAD);
    question
        .set_id(id)
        .set_message_type(MessageType::Query)
        .set_op_code(OpCode::Query)
        .set_recursion_desired(true)
        .add_query(Question::query(name.to_lowercase(), kind))
        .set_edns(edns);
    let bytes = question.to_vec().map_err(UpstreamError::Encode)?;
    let expected = Expected { id, name, kind };
    let failed = |source| UpstreamError::Io { server, source };

    let mut found = over_udp(server, &bytes, &expected).await.map_err(failed)?;
    if found.0.truncated() {
        let reply = over_tcp(server, &bytes).await.map_err(failed)?;
        let message = expected
            .read(&reply)
            .ok_or(UpstreamError::Mismatch { server })?;
        found = (message, reply.len());
    }
    match found.0.response_code() {
        ResponseCode::NoError | ResponseCode::NXDomain => Ok(found),
        code => Err(UpstreamError::Refused { server, code }),
    }
}

async fn over_udp(
    server: SocketAddr,
    question: &[u8],
    expected: &Expected<'_>,
) -> io::Result<(Message, usize)> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    // A socket of its own for each question: the kernel picks a random port, and once connected passes
    // on nothing from other addresses.
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // What does not match may be forged: the true answer may still come.
        if let Some(message) = expected.read(&buffer[..length]) {
            return Ok((message, length));
        }
    }
}

async fn over_tcp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(question.len()).map_err(io::Error::other)?;
    let mut stream = TcpStream::connect(server).await?;
    stream
        .write_all(&[&length.to_be_bytes(), question].concat())
        .await?;
    let mut reply = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut reply).await?;
    Ok(reply)
}

/// What a reply must say to be the reply to our question.
struct Expected<'a> {
    id: u16,
    name: &'a Name,
    kind: RecordType,
}

impl Expected<'_> {
    fn read(&self, bytes: &[u8]) -> Option<Message> {
        let header = bytes.first_chunk::<12>()?;
        let records: usize = [6, 8, 10]
            .iter()
            .map(|at| usize::from(u16::from_be_bytes([header[*at], header[at + 1]])))
            .sum();
        // The shortest record has 11 bytes. Looked at before parsing: the parser makes room for as many
        // as the header claims.
        if header[4..6] != [0, 1] || records * 11 > bytes.len() {
            return None;
        }
        let message = Message::from_vec(bytes).ok()?;
        let question = message.queries().first()?;
        (message.id() == self.id
            && message.message_type() == MessageType::Response
            && message.op_code() == OpCode::Query
            && question.name() == self.name
            && question.query_type() == self.kind
            && question.query_class() == DNSClass::IN)
            .then_some(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn any_reply_is_read(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let name = Name::from_ascii("a.example.").unwrap();
            let expected = Expected { id: 1, name: &name, kind: RecordType::A };
            prop_assert!(expected.read(&bytes).is_none());
        }
    }

    #[test]
    fn only_the_reply_to_our_question_counts() {
        let name = Name::from_ascii("a.example.").unwrap();
        let expected = Expected {
            id: 1,
            name: &name,
            kind: RecordType::A,
        };
        let mut good = Message::new();
        good.set_id(1)
            .set_message_type(MessageType::Response)
            .add_query(Question::query(
                Name::from_ascii("A.Example.").unwrap(),
                RecordType::A,
            ));
        let reads = |m: &Message| expected.read(&m.to_vec().unwrap()).is_some();
        assert!(reads(&good));
        for change in [
            (&|m: &mut Message| _ = m.set_id(2)) as &dyn Fn(&mut Message),
            &|m| _ = m.set_message_type(MessageType::Query),
            &|m| _ = m.set_op_code(OpCode::Notify),
            &|m| _ = m.queries_mut()[0].set_name(Name::from_ascii("b.example.").unwrap()),
            &|m| _ = m.queries_mut()[0].set_query_type(RecordType::MX),
            &|m| _ = m.take_queries(),
        ] {
            let mut bad = good.clone();
            change(&mut bad);
            assert!(!reads(&bad));
        }
    }
}
