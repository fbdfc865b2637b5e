//! A guest that is a program of its own: where a machine has a kernel of its own, nothing can be forked into it.
//!
//! ```text
//!  started ──▶ listens, waits for its setup ──▶ says ready ──▶ answers
//! ```
//! The wait may be long: machines are prepared ahead, and all that does not depend on the setup is done before it. Nobody is
//! let in meanwhile. What it says and hears is in `nullspace_protocol::alone`.

use std::{
    ffi::CString,
    io::{self, Read, Write},
    net::Ipv4Addr,
    path::Path,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use nullspace_protocol::alone::{MAX_SETUP, PORT, READY, REFUSED, SECRET_BYTES, Setup};
use nullspace_sys::namespace;
use rustix::mount::MountFlags;
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

use crate::{Config, Guest, memory, pids, shown};

/// How long a connection may take to say the secret.
const PATIENCE: Duration = Duration::from_secs(5);
/// Connections at once that have not said it.
const STRANGERS: usize = 64;
/// Freed memory that it keeps while files go through it, in bytes: a few of its largest buffers.
const KEEP_FREED: u32 = 4 << 20;
/// Keeps `/tmp` from being empty while the machine is put together: an empty one would be covered by memory.
const PLACEHOLDER: &str = "/tmp/.nullspace";

/// What connections begin with; changes when a machine goes on from a checkpoint.
pub(crate) type Secret = Arc<RwLock<[u8; SECRET_BYTES]>>;

/// The program: process 1 of its machine, until that ends.
///
/// # Errors
/// When it is not told what it must know, or the machine lacks something.
pub fn main() -> io::Result<()> {
    nullspace_sys::spawn::ignored_signals();
    nullspace_sys::memory::keep_freed(KEEP_FREED);
    namespace::lock_down()?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let _ = std::fs::remove_dir(PLACEHOLDER);
    let runtime = crate::runtime()?;
    let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)))?;
    let setup = read(&mut io::stdin().lock())?;
    apply(&setup)?;
    for what in &setup.shown {
        if let Err(error) = shown::show(what) {
            let mut output = io::stdout().lock();
            output.write_all(&[REFUSED])?;
            output.write_all(error.0.message.as_bytes())?;
            return output.flush();
        }
    }
    mount_shared_memory(setup.memory_bytes)?;
    memory::keep_within(setup.memory_bytes)?;
    if setup.pids_max > 0 {
        pids::keep_to(setup.pids_max)?;
    }
    let secret = Secret::new(RwLock::new(setup.secret));
    let config = Config {
        env: setup.env,
        cwd: setup.cwd,
        root: "/".into(),
        init: true,
    };
    runtime.block_on(async {
        let guest = Guest::new(config)?.with_secret(secret.clone());
        let mut output = io::stdout().lock();
        output.write_all(&[READY])?;
        output.flush()?;
        // They are the host's: a machine that is kept has nothing of it.
        namespace::let_go_of_standard_streams()?;
        let strangers = Arc::new(Semaphore::new(STRANGERS));
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                // Out of descriptors or memory: the machine did that; wait for it to pass.
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            let Ok(stranger) = strangers.clone().try_acquire_owned() else {
                continue;
            };
            let (guest, secret) = (guest.clone(), secret.clone());
            tokio::spawn(async move {
                let known = greet(stream, &secret).await;
                drop(stranger);
                if let Some(stream) = known {
                    guest.serve(stream).await;
                }
            });
        }
    })
}

fn read(input: &mut impl Read) -> io::Result<Setup> {
    let mut length = [0; 4];
    input.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > MAX_SETUP {
        return Err(io::Error::other("the setup is too long"));
    }
    let mut text = vec![0; length];
    input.read_exact(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// Lets in whoever knows the secret.
async fn greet(mut stream: TcpStream, secret: &Secret) -> Option<TcpStream> {
    let mut said = [0; SECRET_BYTES];
    let read = tokio::time::timeout(PATIENCE, stream.read_exact(&mut said)).await;
    if !matches!(read, Ok(Ok(_))) {
        return None;
    }
    let wanted = *secret.read().unwrap_or_else(PoisonError::into_inner);
    // Every byte is looked at, whichever differ.
    let differs = said
        .iter()
        .zip(&wanted)
        .fold(0, |all, (a, b)| all | (a ^ b));
    // Requests are small, and whoever waits for them waits for each.
    let _ = stream.set_nodelay(true);
    (std::hint::black_box(differs) == 0).then_some(stream)
}

/// Makes this the machine that it is told to be.
fn apply(setup: &Setup) -> io::Result<()> {
    rustix::system::sethostname(setup.hostname.as_bytes())?;
    for (path, text) in &setup.files {
        if std::fs::read(path).is_ok_and(|now| now == text.as_bytes()) {
            continue;
        }
        // Whatever is there may be a link to somewhere else.
        let _ = std::fs::remove_file(path);
        std::fs::write(path, text)?;
    }
    if !Path::new(&setup.cwd).is_dir() {
        std::fs::create_dir_all(&setup.cwd)?;
    }
    Ok(())
}

/// Files in memory have an end, as on a native machine: half of it. What is there already knows none, because the machine was prepared
/// before it was known how much memory it has.
fn mount_shared_memory(bytes: u64) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let options = CString::new(format!("mode=1777,size={}", bytes / 2))?;
    rustix::mount::mount("tmpfs", "/dev/shm", "tmpfs", flags, options.as_c_str())?;
    Ok(())
}

/// The machine goes on from a checkpoint, perhaps as another one. Connections from before are gone already.
pub(crate) fn resumed(guest: &Guest, setup: Setup) -> io::Result<()> {
    apply(&setup)?;
    if let Some(secret) = &guest.secret {
        *secret.write().unwrap_or_else(PoisonError::into_inner) = setup.secret;
    }
    // The server does not keep the values of variables: what the machine had it has still.
    let mut env = guest.defaults().env.clone();
    env.extend(setup.env);
    guest.set_defaults(env, setup.cwd);
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    async fn greeted(said: &[u8]) -> bool {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut other = TcpStream::connect(address).await.unwrap();
        other.write_all(said).await.unwrap();
        drop(other);
        let (stream, _) = listener.accept().await.unwrap();
        let secret = Secret::new(RwLock::new([7; SECRET_BYTES]));
        greet(stream, &secret).await.is_some()
    }

    #[tokio::test]
    async fn only_whoever_knows_the_secret_is_let_in() {
        assert!(greeted(&[7; SECRET_BYTES]).await);
        assert!(!greeted(&[7; SECRET_BYTES - 1]).await);
        let mut near = [7; SECRET_BYTES];
        near[SECRET_BYTES - 1] = 6;
        assert!(!greeted(&near).await);
        assert!(!greeted(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n-------------").await);
    }

    #[test]
    fn a_setup_is_read_whole_or_not_at_all() {
        let setup = Setup {
            secret: [1; SECRET_BYTES],
            hostname: "m".into(),
            env: Default::default(),
            cwd: "/workspace".into(),
            files: [("/etc/hosts".to_owned(), "127.0.0.1 m\n".to_owned())].into(),
            memory_bytes: 1 << 29,
            pids_max: 512,
            shown: Vec::new(),
        };
        let text = serde_json::to_vec(&setup).unwrap();
        let mut message = u32::try_from(text.len()).unwrap().to_be_bytes().to_vec();
        message.extend(text);
        assert_eq!(read(&mut message.as_slice()).unwrap(), setup);
        assert!(read(&mut &message[..message.len() - 1]).is_err());
        assert!(read(&mut u32::MAX.to_be_bytes().as_slice()).is_err());
        assert!(!format!("{setup:?}").contains('1'));
    }
}
