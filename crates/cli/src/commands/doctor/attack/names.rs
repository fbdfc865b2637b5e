//! A name server of the attack's own, behind the server under attack: what a hostile owner of a name answers.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hickory_proto::{
    op::{Message, MessageType},
    rr::{RData, Record, RecordType},
};

/// How often it looks whether it is to end.
const LOOK: Duration = Duration::from_millis(100);
/// What names lead to of which nothing else is said: an address for documentation.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

/// Where clouds tell their machines about themselves.
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// It, until this is dropped.
pub(super) struct Names {
    address: Ipv4Addr,
    is_over: Arc<AtomicBool>,
}

impl Names {
    /// Starts it on a loopback address that nobody else has, port 53.
    pub(super) fn start() -> io::Result<Self> {
        let mut last = io::Error::from(io::ErrorKind::AddrInUse);
        for n in 0..200_u8 {
            let address = Ipv4Addr::new(127, 83, (std::process::id() & 0xff) as u8, n + 1);
            match UdpSocket::bind(SocketAddrV4::new(address, 53)) {
                Ok(socket) => {
                    socket.set_read_timeout(Some(LOOK))?;
                    let is_over = Arc::new(AtomicBool::new(false));
                    let flag = is_over.clone();
                    std::thread::spawn(move || serve(&socket, &flag));
                    return Ok(Self { address, is_over });
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// A file that says where it is.
    pub(super) fn resolv_conf(&self, directory: &Path) -> io::Result<PathBuf> {
        let path = directory.join("resolv.conf");
        std::fs::write(&path, format!("nameserver {}\n", self.address))?;
        Ok(path)
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

fn serve(socket: &UdpSocket, is_over: &AtomicBool) {
    let mut question = [0; 512];
    while !is_over.load(Ordering::Relaxed) {
        if let Ok((length, from)) = socket.recv_from(&mut question)
            && let Some(answer) = answer(&question[..length])
        {
            let _ = socket.send_to(&answer, from);
        }
    }
}

/// What is asked and its answer, for one question with an address of either kind.
fn answer(question: &[u8]) -> Option<Vec<u8>> {
    let asked = Message::from_vec(question).ok()?;
    let query = asked.queries().first()?;
    let name = query.name();
    let first = name.iter().next().unwrap_or_default().to_ascii_lowercase();
    let data = match (query.query_type(), &first[..]) {
        (RecordType::AAAA, b"mapped") => {
            Some(RData::AAAA(Ipv4Addr::LOCALHOST.to_ipv6_mapped().into()))
        }
        (RecordType::A, b"mapped") => None,
        (RecordType::A, b"loopback") => Some(RData::A(Ipv4Addr::LOCALHOST.into())),
        (RecordType::A, b"metadata") => Some(RData::A(METADATA.into())),
        (RecordType::A, b"unspecified") => Some(RData::A(Ipv4Addr::UNSPECIFIED.into())),
        (RecordType::A, _) => Some(RData::A(ELSEWHERE.into())),
        _ => None,
    };
    let mut answer = Message::new();
    answer
        .set_id(asked.id())
        .set_message_type(MessageType::Response)
        .set_recursion_desired(true)
        .set_recursion_available(true)
        .add_query(query.clone())
        .add_answers(data.map(|data| Record::from_rdata(name.clone(), 1, data)));
    answer.to_vec().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use hickory_proto::{op::Query, rr::Name};

    use super::*;

    #[test]
    fn the_question_is_answered_by_its_first_word() {
        let ask = |name: &str, kind: RecordType| {
            let mut question = Message::new();
            question.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
            let answer = answer(&question.to_vec().unwrap()).unwrap();
            let answer = Message::from_vec(&answer).unwrap();
            answer
                .answers()
                .iter()
                .map(|record| record.data().to_string())
                .collect::<String>()
        };
        assert_eq!(ask("loopback.attack.test.", RecordType::A), "127.0.0.1");
        assert_eq!(ask("Other.test.", RecordType::A), ELSEWHERE.to_string());
        assert_eq!(ask("mapped.test.", RecordType::AAAA), "::ffff:127.0.0.1");
        assert_eq!(ask("loopback.test.", RecordType::AAAA), "");
        assert!(answer(&[0; 12]).is_none());
        assert!(answer(&[9; 40]).is_none());
    }
}
