//! The smallest clients there are of HTTP/1.1 and WebSocket: what they take themselves falls on both sides of a ratio
//! and hides a part of it.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

/// Nothing on one host takes that long.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A kept-alive connection.
pub(crate) struct Connection {
    stream: TcpStream,
    host: SocketAddr,
    /// What came and was not looked at.
    buffer: Vec<u8>,
}

impl Connection {
    pub(crate) fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        Ok(Self {
            stream,
            host: address,
            buffer: Vec::new(),
        })
    }

    fn send(&mut self, path: &str, more: &str) -> Result<()> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n{more}\r\n", self.host);
        Ok(self.stream.write_all(request.as_bytes())?)
    }

    /// Waits until `end` is there, and takes everything up to and with it.
    fn take_until(&mut self, end: &[u8]) -> Result<Vec<u8>> {
        loop {
            let found = self
                .buffer
                .windows(end.len())
                .position(|bytes| bytes == end);
            if let Some(at) = found {
                return Ok(self.buffer.drain(..at + end.len()).collect());
            }
            self.fill()?;
        }
    }

    fn fill(&mut self) -> Result<()> {
        let mut piece = [0; 4096];
        let n = self.stream.read(&mut piece)?;
        ensure!(n > 0, "{} closed the connection", self.host);
        self.buffer.extend_from_slice(&piece[..n]);
        Ok(())
    }

    /// The head of an answer, which must have this status.
    fn head(&mut self, status: u16) -> Result<String> {
        let head = String::from_utf8(self.take_until(b"\r\n\r\n")?)?;
        let line = head.lines().next().unwrap_or_default();
        let code = line.split(' ').nth(1).and_then(|code| code.parse().ok());
        ensure!(code == Some(status), "{} answered {line}", self.host);
        Ok(head)
    }

    /// A request, until its whole answer is there.
    pub(crate) fn get(&mut self, path: &str) -> Result<Duration> {
        let start = Instant::now();
        self.send(path, "")?;
        let head = self.head(200)?;
        let length: usize = header(&head, "content-length")
            .context("an answer without a length")?
            .parse()?;
        while self.buffer.len() < length {
            self.fill()?;
        }
        self.buffer.drain(..length);
        Ok(start.elapsed())
    }

    /// A request whose answer comes in chunks, until the first of these is there. The rest is waited for, too.
    pub(crate) fn first_chunk(&mut self, path: &str) -> Result<Duration> {
        let start = Instant::now();
        self.send(path, "")?;
        let head = self.head(200)?;
        ensure!(
            header(&head, "transfer-encoding") == Some("chunked"),
            "not a stream: {head}"
        );
        self.take_until(b"first\n")?;
        let took = start.elapsed();
        self.take_until(b"\r\n0\r\n\r\n")?;
        Ok(took)
    }
}

/// A connection that echoes text.
pub(crate) struct WebSocket(Connection);

impl WebSocket {
    pub(crate) fn open(address: SocketAddr) -> Result<Self> {
        // Key and answer are those of RFC 6455, 1.3.
        let mut connection = Connection::open(address)?;
        let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        connection.send("/socket", upgrade)?;
        let head = connection.head(101)?;
        ensure!(
            header(&head, "sec-websocket-accept") == Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
            "not a WebSocket: {head}"
        );
        Ok(Self(connection))
    }

    /// Sends a text of less than 126 bytes and waits until it comes back.
    pub(crate) fn echo(&mut self, text: &str) -> Result<Duration> {
        const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
        const FINAL_TEXT: u8 = 0x81;
        let length = u8::try_from(text.len())?;
        ensure!(length < 126, "a frame with a longer head");
        let start = Instant::now();
        let mut frame = vec![FINAL_TEXT, 0x80 | length];
        frame.extend(MASK);
        let masked = text.bytes().zip(MASK.iter().cycle()).map(|(a, b)| a ^ b);
        frame.extend(masked);
        self.0.stream.write_all(&frame)?;
        let whole = 2 + text.len();
        while self.0.buffer.len() < whole {
            self.0.fill()?;
        }
        let took = start.elapsed();
        if self.0.buffer[..2] != [FINAL_TEXT, length] || self.0.buffer[2..] != *text.as_bytes() {
            bail!("{} echoed {:?}", self.0.host, self.0.buffer);
        }
        self.0.buffer.clear();
        Ok(took)
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
}
