//! A machine's WebSocket from outside: a client that does little but read.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    ops::Range,
    time::Duration,
};

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};

use super::api::KEY;

/// Bytes read at once, and the longest frame.
const BUFFER: usize = 1 << 20;

/// A client that reads as fast as it can: frames are looked at where they were read to.
pub(crate) struct Socket {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// What of the buffer is not taken yet.
    rest: Range<usize>,
}

impl Socket {
    pub(crate) fn open(address: &str, machine: &str) -> Result<Self> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        write!(
            stream,
            "GET /v1/machines/{machine}/ws HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {KEY}\r\n\
             Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            head.extend(byte);
        }
        let head = String::from_utf8_lossy(&head);
        ensure!(head.contains(" 101 "), "{head}");
        Ok(Self {
            stream,
            buffer: Vec::new(),
            rest: 0..0,
        })
    }

    pub(crate) fn send(&mut self, message: &Value) -> Result<()> {
        self.write(1, message.to_string().as_bytes())
    }

    fn write(&mut self, kind: u8, text: &[u8]) -> Result<()> {
        // Masked with zeroes: the text as it is.
        let mut frame = vec![0x80 | kind];
        match u8::try_from(text.len()) {
            Ok(length @ ..126) => frame.push(0x80 | length),
            _ => {
                frame.push(0x80 | 126);
                frame.extend(u16::try_from(text.len())?.to_be_bytes());
            }
        }
        frame.extend([0; 4]);
        frame.extend(text);
        Ok(self.stream.write_all(&frame)?)
    }

    pub(crate) fn shell(&mut self, line: &str) -> Result<()> {
        self.send(
            &json!({"type": "exec_start", "id": "s", "command": line, "args": [], "shell": true}),
        )
    }

    /// The next frame that is no ping. Pings are answered.
    pub(crate) fn frame(&mut self) -> Result<&[u8]> {
        loop {
            let (kind, payload) = loop {
                if let Some(frame) = whole(&self.buffer[self.rest.clone()]) {
                    break frame;
                }
                self.fill()?;
            };
            let payload = self.rest.start + payload.start..self.rest.start + payload.end;
            self.rest.start = payload.end;
            match kind {
                1 => return Ok(&self.buffer[payload]),
                9 => self.write(10, &[])?,
                other => bail!("a frame of kind {other}"),
            }
        }
    }

    fn fill(&mut self) -> Result<()> {
        self.buffer.resize(BUFFER, 0);
        if self.rest.is_empty() {
            self.rest = 0..0;
        } else if self.rest.end == BUFFER {
            ensure!(self.rest.start > 0, "a frame of more than {BUFFER} bytes");
            self.buffer.copy_within(self.rest.clone(), 0);
            self.rest = 0..self.rest.len();
        }
        let n = self.stream.read(&mut self.buffer[self.rest.end..])?;
        ensure!(n > 0, "the connection was closed");
        self.rest.end += n;
        Ok(())
    }

    pub(crate) fn next(&mut self) -> Result<Value> {
        Ok(serde_json::from_slice(self.frame()?)?)
    }

    /// Takes what is there.
    pub(crate) fn drain(&mut self) -> Result<()> {
        self.stream
            .set_read_timeout(Some(Duration::from_millis(20)))?;
        let drained = loop {
            match self.frame() {
                Ok(_) => {}
                Err(error) => match error.downcast_ref::<std::io::Error>() {
                    Some(e) if matches!(e.kind(), ErrorKind::WouldBlock) => break Ok(()),
                    _ => break Err(error),
                },
            }
        };
        self.stream.set_read_timeout(None)?;
        drained
    }

    /// Gives back the memory of what was read, for one of thousands.
    pub(crate) fn shrink(&mut self) {
        if self.rest.is_empty() {
            self.buffer = Vec::new();
            self.rest = 0..0;
        }
    }
}

/// Kind and payload of the frame that bytes begin with, once it is whole.
fn whole(bytes: &[u8]) -> Option<(u8, Range<usize>)> {
    let (start, length) = match *bytes.get(1)? {
        126 => (
            4,
            u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?).into(),
        ),
        127 => (10, u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?)),
        length => (2, length.into()),
    };
    let end = usize::try_from(length).ok()?.checked_add(start)?;
    (bytes.len() >= end).then_some((bytes[0] & 15, start..end))
}
