//! A stream of a compressed layer becomes a directory, and every digest on the way is taken.
//!
//! ```text
//! stream ─▶ digest ─▶ decompressed ─▶ digest ─┊─▶ unpacked
//!                               one thread    ┊   another
//! ```

use std::{
    io::{self, BufRead, BufReader, Read},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
};

use rustix::fd::BorrowedFd;
use sha2::{Digest, Sha256};

use crate::{
    error::LayerError,
    limits::{Allowance, FREE_OF_RATIO},
    unpack::{self, Unpacked},
};

/// Pieces that the first thread may be ahead by, and their size in bytes.
const AHEAD: usize = 8;
const PIECE: usize = 256 << 10;
/// The largest window of zstd that is taken, as a power of two: 128 MiB, what `zstd --long` makes.
const WINDOW_LOG: u32 = 27;
/// The most memory for xz in KiB: what `xz -9` asks for, twice.
const XZ_KIB: u32 = 128 << 10;

/// A layer that was unpacked.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) unpacked: Unpacked,
    /// Of the stream, as hex digits.
    pub(crate) digest: String,
    /// Of the tar archive in it, as hex digits.
    pub(crate) diff_id: String,
    /// Bytes of that.
    pub(crate) tar_bytes: u64,
}

/// Unpacks `input` into the empty directory `root`, to the end of the stream: the digests are of all of it. Nobody has
/// checked them yet.
pub(crate) fn unpack(
    input: impl Read + Send,
    root: BorrowedFd<'_>,
    allowance: &Allowance,
) -> Result<Done, LayerError> {
    let (pieces, received) = mpsc::sync_channel(AHEAD);
    std::thread::scope(|scope| {
        let first = scope.spawn(move || decompress(input, allowance, &pieces));
        let archive = Pieces {
            received,
            piece: Vec::new(),
            at: 0,
        };
        let unpacked = unpack::unpack(archive, root, allowance).and_then(|(unpacked, mut rest)| {
            // The digests go to the end, which the archive may be before.
            io::copy(&mut rest, &mut io::sink()).map_err(LayerError::read)?;
            Ok(unpacked)
        });
        let sums = first
            .join()
            .unwrap_or(Err(LayerError::malformed("its decompression failed")));
        match (unpacked, sums) {
            // The first thread stops because this one did.
            (Err(LayerError::CutShort), Err(why)) => Err(why),
            (Err(why), _) | (_, Err(why)) => Err(why),
            (Ok(unpacked), Ok(sums)) => Ok(Done { unpacked, ..sums }),
        }
    })
}

/// The first thread's part.
fn decompress(
    input: impl Read,
    allowance: &Allowance,
    pieces: &mpsc::SyncSender<io::Result<Vec<u8>>>,
) -> Result<Done, LayerError> {
    let read = Arc::new(AtomicU64::new(0));
    let mut input = BufReader::with_capacity(
        PIECE,
        Hashing {
            inner: input,
            hash: Sha256::new(),
            bytes: Arc::clone(&read),
        },
    );
    let (mut hash, mut bytes) = (Sha256::new(), 0_u64);
    let work = |archive: &mut dyn Read| -> Result<(), LayerError> {
        loop {
            let mut piece = vec![0; PIECE];
            let mut filled = 0;
            while filled < PIECE {
                match archive.read(&mut piece[filled..]) {
                    Ok(0) => break,
                    Ok(n) => filled += n,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(LayerError::read(e)),
                }
            }
            if filled == 0 {
                return Ok(());
            }
            piece.truncate(filled);
            hash.update(&piece);
            bytes += filled as u64;
            allowance.bytes(filled as u64)?;
            let earned = read
                .load(Ordering::Relaxed)
                .saturating_mul(allowance.limits.ratio);
            if bytes > earned.saturating_add(FREE_OF_RATIO) {
                return Err(LayerError::Ratio {
                    limit: allowance.limits.ratio,
                });
            }
            if pieces.send(Ok(piece)).is_err() {
                // Nobody wants more.
                return Err(LayerError::CutShort);
            }
        }
    };
    let done = with_decompressor(&mut input, work);
    if let Err(error) = done {
        // The other thread learns that this is no end; what it was is said by this one.
        let _ = pieces.send(Err(io::ErrorKind::UnexpectedEof.into()));
        return Err(error);
    }
    // What comes after the compressed archive counts for the digest only.
    io::copy(&mut input, &mut io::sink()).map_err(LayerError::Read)?;
    let compressed = input.into_inner();
    Ok(Done {
        unpacked: Unpacked::default(),
        digest: hex::encode(compressed.hash.finalize()),
        diff_id: hex::encode(hash.finalize()),
        tar_bytes: bytes,
    })
}

/// Calls `work` with the archive. How it is compressed is seen from its first bytes: media types are often wrong.
pub(crate) fn with_decompressor<T>(
    input: &mut impl BufRead,
    work: impl FnOnce(&mut dyn Read) -> Result<T, LayerError>,
) -> Result<T, LayerError> {
    let mut start = Vec::with_capacity(6);
    (&mut *input)
        .take(6)
        .read_to_end(&mut start)
        .map_err(LayerError::Read)?;
    let mut whole = io::Cursor::new(start.clone()).chain(input);
    match start[..] {
        [0x1f, 0x8b, ..] => work(&mut flate2::bufread::MultiGzDecoder::new(whole)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            let mut decoder =
                zstd::stream::read::Decoder::with_buffer(whole).map_err(LayerError::read)?;
            decoder
                .window_log_max(WINDOW_LOG)
                .map_err(LayerError::read)?;
            work(&mut decoder)
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0] => work(&mut lzma_rust2::XzReader::new_mem_limit(
            whole, true, XZ_KIB,
        )),
        [b'B', b'Z', b'h', ..] => Err(LayerError::Compression("bzip2")),
        _ => work(&mut whole),
    }
}

struct Hashing<R> {
    inner: R,
    hash: Sha256,
    bytes: Arc<AtomicU64>,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hash.update(&buffer[..read]);
        self.bytes.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// What the first thread sends, as one stream.
struct Pieces {
    received: mpsc::Receiver<io::Result<Vec<u8>>>,
    piece: Vec<u8>,
    at: usize,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.piece.len() {
            match self.received.recv() {
                Ok(piece) => (self.piece, self.at) = (piece?, 0),
                Err(mpsc::RecvError) => return Ok(0),
            }
        }
        let most = buffer.len().min(self.piece.len() - self.at);
        buffer[..most].copy_from_slice(&self.piece[self.at..self.at + most]);
        self.at += most;
        Ok(most)
    }
}
