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

/// How often it looks whether it is to end.
const LOOK: Duration = Duration::from_millis(100);
/// What names lead to of which nothing else is said: an address for documentation.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

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
    let (mut at, mut name) = (12, String::new());
    loop {
        let length = usize::from(*question.get(at)?);
        if length == 0 {
            break;
        }
        let label = question.get(at + 1..at + 1 + length)?;
        name += &String::from_utf8_lossy(label).to_ascii_lowercase();
        name.push('.');
        at += 1 + length;
    }
    let kind = u16::from_be_bytes([*question.get(at + 1)?, *question.get(at + 2)?]);
    let asked = question.get(12..at + 5)?;
    let first = name.split('.').next().unwrap_or_default();
    let v4 = match first {
        "loopback" => Some(Ipv4Addr::LOCALHOST),
        "metadata" => Some(Ipv4Addr::new(169, 254, 169, 254)),
        "unspecified" => Some(Ipv4Addr::UNSPECIFIED),
        "mapped" => None,
        _ => Some(ELSEWHERE),
    };
    let data = match (kind, v4) {
        (1, Some(v4)) => v4.octets().to_vec(),
        (28, None) => Ipv4Addr::LOCALHOST.to_ipv6_mapped().octets().to_vec(),
        _ => Vec::new(),
    };
    let mut answer = question.get(..2)?.to_vec();
    let count = u8::from(!data.is_empty());
    answer.extend([0x81, 0x80, 0, 1, 0, count, 0, 0, 0, 0]);
    answer.extend(asked);
    if !data.is_empty() {
        answer.extend([0xc0, 12]);
        answer.extend(kind.to_be_bytes());
        answer.extend([0, 1, 0, 0, 0, 1]);
        answer.extend((data.len() as u16).to_be_bytes());
        answer.extend(data);
    }
    Some(answer)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_question_is_answered_by_its_first_word() {
        let ask = |name: &str, kind: u8| {
            let mut question = vec![1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            for label in name.split('.') {
                question.push(label.len() as u8);
                question.extend(label.as_bytes());
            }
            question.extend([0, 0, kind, 0, 1]);
            answer(&question).unwrap()
        };
        assert!(ask("loopback.attack.test", 1).ends_with(&[127, 0, 0, 1]));
        assert!(ask("Other.test", 1).ends_with(&ELSEWHERE.octets()));
        assert!(ask("mapped.test", 28).ends_with(&[0xff, 0xff, 127, 0, 0, 1]));
        assert_eq!(ask("loopback.test", 28)[7], 0);
        assert!(answer(&[0; 12]).is_none());
        assert!(answer(&[9; 40]).is_none());
    }
}
