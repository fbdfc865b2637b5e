//! Processes that were started through the API.

use bytes::Bytes;
use nullspace_api::process::{ProcessInfo, ProcessLogs};
use nullspace_protocol::{OutputQuery, OutputStream, frame::Frame};

use super::{App, exec::lossy, machine};
use crate::error::Result;

/// SIGKILL.
pub(super) const KILL: i32 = 9;

/// All of them but the shells of terminals, oldest first, recently ended ones too.
///
/// # Errors
/// Those of [`machine::guest`].
pub async fn list(app: &App, id: &str) -> Result<Vec<ProcessInfo>> {
    let guest = machine::guest(app, id).await?;
    let processes = guest.processes().await?;
    Ok(processes
        .into_iter()
        .filter(|process| process.terminal.is_none())
        .map(|process| ProcessInfo {
            pid: process.pid,
            command: process.command,
            running: process.running,
        })
        .collect())
}

/// Ends one and everything it started. One that ended already is fine.
///
/// # Errors
/// `not_found`.
pub async fn kill(app: &App, id: &str, pid: u32) -> Result<()> {
    let guest = machine::guest(app, id).await?;
    Ok(guest.signal(pid, KILL).await?)
}

/// Writes to one's standard input.
///
/// # Errors
/// `not_found`; `invalid_request` when it has none that is open.
pub async fn stdin(app: &App, id: &str, pid: u32, data: String) -> Result<()> {
    let guest = machine::guest(app, id).await?;
    Ok(guest.stdin(pid, Bytes::from(data), false).await?)
}

/// What one wrote, from the first byte that is kept, and everything that it writes until it ends.
///
/// # Errors
/// `not_found`.
pub(super) async fn follow(app: &App, id: &str, pid: u32) -> Result<OutputStream> {
    let guest = machine::guest(app, id).await?;
    let query = OutputQuery {
        from: 0,
        follow: true,
    };
    Ok(guest.output(pid, query).await?)
}

/// What one wrote so far, from its start.
///
/// # Errors
/// `not_found`.
pub async fn logs(app: &App, id: &str, pid: u32) -> Result<ProcessLogs> {
    let guest = machine::guest(app, id).await?;
    let query = OutputQuery {
        from: 0,
        follow: false,
    };
    let mut stream = guest.output(pid, query).await?;
    let (mut stdout, mut stderr, mut output) = (Vec::new(), Vec::new(), Vec::new());
    let mut exit_code = None;
    while let Some(frame) = stream.next().await? {
        match frame {
            Frame::Started(_) => {}
            Frame::Stdout(_, data) => {
                stdout.extend_from_slice(&data);
                output.extend_from_slice(&data);
            }
            Frame::Stderr(_, data) => {
                stderr.extend_from_slice(&data);
                output.extend_from_slice(&data);
            }
            Frame::Exit { code, .. } => exit_code = Some(code & 0xff),
        }
    }
    // While it runs the last character may be half there: it comes with the next look. Readers compare
    // by length, so what they saw once must not change.
    if exit_code.is_none() {
        for bytes in [&mut stdout, &mut stderr, &mut output] {
            let whole = whole_characters(bytes);
            bytes.truncate(whole);
        }
    }
    Ok(ProcessLogs {
        stdout: lossy(stdout),
        stderr: lossy(stderr),
        output: lossy(output),
        exit_code,
    })
}

/// The length without an unfinished UTF-8 sequence at the end.
pub(super) fn whole_characters(bytes: &[u8]) -> usize {
    for back in 1..=bytes.len().min(3) {
        let at = bytes.len() - back;
        let needed = match bytes[at] {
            0x00..=0x7f => 1,
            0x80..=0xbf => continue,
            0xc0..=0xdf => 2,
            0xe0..=0xef => 3,
            _ => 4,
        };
        return if needed > back { at } else { bytes.len() };
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::whole_characters;

    #[test]
    fn half_characters_wait() {
        let text = "aé€😀".as_bytes();
        assert_eq!(whole_characters(text), text.len());
        assert_eq!(whole_characters(&text[..text.len() - 1]), 6);
        assert_eq!(whole_characters(&text[..2]), 1);
        assert_eq!(whole_characters(b""), 0);
        assert_eq!(whole_characters(&[0x80, 0x80, 0x80, 0x80]), 4);
    }
}
