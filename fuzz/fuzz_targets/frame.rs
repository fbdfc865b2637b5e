//! Frames of a guest's output: whatever is taken for a frame is written as the same bytes again.
#![no_main]

use bytes::{Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;
use nullspace_protocol::frame;

fuzz_target!(|bytes: &[u8]| {
    let mut buffer = Bytes::copy_from_slice(bytes);
    let mut at = 0;
    while let Ok(Some(read)) = frame::decode(&mut buffer) {
        let mut written = BytesMut::new();
        read.encode(&mut written);
        let taken = bytes.len() - at - buffer.len();
        assert_eq!(written.len(), taken);
        // The offset of kinds that have none is not looked at.
        if matches!(read, frame::Frame::Stdout(..) | frame::Frame::Stderr(..)) {
            assert_eq!(written[..], bytes[at..at + taken]);
        }
        at += taken;
    }
});
