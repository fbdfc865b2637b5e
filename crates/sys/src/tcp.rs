//! What the system knows of a TCP connection.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    time::Duration,
};

use crate::check;

/// Probes of a closed window that may be on their way without meaning anything.
const PROBES: u8 = 2;

/// Whether the other end's system owes an answer and has given none for `limit`.
///
/// TCP_USER_TIMEOUT does not tell this: it also ends connections whose other end answers that it has no room, which a
/// client that is stopped does for as long as it likes.
///
/// # Errors
/// When the descriptor is no TCP socket.
pub fn is_lost(socket: BorrowedFd<'_>, limit: Duration) -> io::Result<bool> {
    // SAFETY: plain numbers, for which zeroes are valid.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut size = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `size` bytes to a structure that is as large.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut size,
        )
    })?;
    let is_owed = info.tcpi_unacked > 0 || info.tcpi_probes > PROBES;
    let silent = Duration::from_millis(info.tcpi_last_ack_recv.into());
    Ok(is_owed && silent >= limit)
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        net::{TcpListener, TcpStream},
        os::fd::AsFd,
    };

    use super::*;

    #[test]
    fn one_that_answers_is_not_lost_even_if_it_takes_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let client = TcpStream::connect(address).expect("a connection");
        let (mut server, _) = listener.accept().expect("a client");
        assert!(!is_lost(server.as_fd(), Duration::ZERO).expect("idle"));
        server.set_nonblocking(true).expect("a socket");
        // Until the other end has no room.
        while server.write(&[0; 64 << 10]).is_ok() {}
        assert!(!is_lost(server.as_fd(), Duration::from_secs(30)).expect("full"));
        drop(client);
        assert!(is_lost(io::stdin().as_fd(), Duration::ZERO).is_err());
    }
}
