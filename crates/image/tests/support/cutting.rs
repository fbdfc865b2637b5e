//! Stands between a client and a registry and cuts connections.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
    thread,
};

/// Hands on what it gets, and cuts each connection that has brought `after` bytes, `cuts` times in all. What one
/// connection was cut at is not there for the next.
pub struct Cutting {
    pub host: String,
    pub left: Arc<AtomicI64>,
    pub requests_for_parts: Arc<AtomicUsize>,
}

impl Cutting {
    pub fn start(registry: String, after: usize, cuts: i64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let left = Arc::new(AtomicI64::new(cuts));
        let requests_for_parts = Arc::new(AtomicUsize::new(0));
        let cutting = Self {
            host,
            left: Arc::clone(&left),
            requests_for_parts: Arc::clone(&requests_for_parts),
        };
        thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                let Ok(server) = TcpStream::connect(&registry) else {
                    continue;
                };
                let (left, parts) = (Arc::clone(&left), Arc::clone(&requests_for_parts));
                let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || {
                    pass(from, to, |bytes| {
                        let text = String::from_utf8_lossy(bytes).to_lowercase();
                        parts.fetch_add(text.matches("range: bytes=").count(), Ordering::SeqCst);
                        true
                    });
                });
                thread::spawn(move || {
                    let mut sum = 0;
                    pass(server, client, |bytes| {
                        sum += bytes.len();
                        sum < after || left.fetch_sub(1, Ordering::SeqCst) <= 0
                    });
                });
            }
        });
        cutting
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, mut go_on: impl FnMut(&[u8]) -> bool) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..read]).is_err() || !go_on(&buffer[..read]) {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
