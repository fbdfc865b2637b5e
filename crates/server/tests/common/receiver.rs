//! A receiver of webhooks: a real HTTP server on a port of its own that does as it is told.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use ring::hmac;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

pub const SECRET: &str = "whsec_very-secret-0123456789";

/// What it answers.
#[derive(Clone, Debug)]
pub enum Answer {
    Status(u16),
    /// For this many calls; then 204.
    StatusFor(usize, u16),
    /// To events of this operation; to others 204.
    StatusOf(&'static str, u16),
    Redirect(String),
    /// Never.
    Hang,
    /// 200 and a body without an end.
    Endless,
}

/// One request.
#[derive(Clone, Debug)]
pub struct Call {
    pub head: String,
    pub body: Vec<u8>,
}

impl Call {
    pub fn header(&self, name: &str) -> String {
        self.head
            .lines()
            .filter_map(|line| line.split_once(": "))
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .unwrap_or_else(|| panic!("no {name}: {}", self.head))
            .1
            .to_owned()
    }

    pub fn event(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub fn is_signed_with(&self, secret: &str) -> bool {
        let signature = self.header("x-nullspace-signature");
        let Some(hex) = signature.strip_prefix("sha256=") else {
            return false;
        };
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        hmac::verify(&key, &self.body, &hex::decode(hex).unwrap()).is_ok()
    }
}

#[derive(Clone)]
struct State {
    answer: Arc<Mutex<Answer>>,
    calls: Arc<Mutex<Vec<Call>>>,
}

pub struct Receiver {
    pub address: SocketAddr,
    state: State,
    task: Option<tokio::task::JoinHandle<()>>,
}

impl Receiver {
    pub async fn start() -> Self {
        let mut receiver = Self {
            address: ([127, 0, 0, 1], 0).into(),
            state: State {
                answer: Arc::new(Mutex::new(Answer::Status(204))),
                calls: Arc::default(),
            },
            task: None,
        };
        receiver.up().await;
        receiver
    }

    /// Listens where it did before.
    pub async fn up(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.address = listener.local_addr().unwrap();
        let state = self.state.clone();
        self.task = Some(tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, state.clone()));
            }
        }));
    }

    /// Nobody is there any more.
    pub async fn down(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
            let _ = task.await;
        }
    }

    pub fn answers(&self, answer: Answer) {
        *self.state.answer.lock().unwrap() = answer;
    }

    pub fn calls(&self) -> Vec<Call> {
        self.state.calls.lock().unwrap().clone()
    }

    /// Waits until there were this many calls.
    pub async fn until(&self, count: usize) -> Vec<Call> {
        for _ in 0..1200 {
            let calls = self.calls();
            if calls.len() >= count {
                return calls;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("only {} of {count} calls", self.calls().len());
    }

    pub fn url(&self) -> String {
        format!("http://{}/hook?token=in-the-url", self.address)
    }
}

async fn serve(mut stream: TcpStream, state: State) {
    let mut data = Vec::new();
    let (head, body) = loop {
        if let Some(at) = data.windows(4).position(|part| part == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&data[..at]).into_owned();
            let length: usize = head
                .lines()
                .find_map(|line| {
                    line.to_lowercase()
                        .strip_prefix("content-length: ")?
                        .parse()
                        .ok()
                })
                .unwrap_or(0);
            if data.len() >= at + 4 + length {
                break (head, data[at + 4..at + 4 + length].to_vec());
            }
        }
        match stream.read_buf(&mut data).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    };
    let call = Call { head, body };
    let answer = {
        let mut answer = state.answer.lock().unwrap();
        let now = answer.clone();
        if let Answer::StatusFor(left, _) = &mut *answer {
            *left = left.saturating_sub(1);
        }
        now
    };
    let operation = call.event()["operation"].clone();
    state.calls.lock().unwrap().push(call);
    let status = |status: u16| {
        format!("HTTP/1.1 {status} x\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello")
    };
    let text = match answer {
        Answer::Status(code) => status(code),
        Answer::StatusFor(0, _) => status(200),
        Answer::StatusFor(_, code) => status(code),
        Answer::StatusOf(which, code) => status(if operation == which { code } else { 200 }),
        Answer::Redirect(to) => format!(
            "HTTP/1.1 307 x\r\nlocation: {to}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        ),
        Answer::Hang => {
            let mut rest = [0; 64];
            while !matches!(stream.read(&mut rest).await, Ok(0) | Err(_)) {}
            return;
        }
        Answer::Endless => {
            let head = "HTTP/1.1 200 x\r\nconnection: close\r\n\r\n";
            let _ = stream.write_all(head.as_bytes()).await;
            let piece = [b'x'; 16 << 10];
            while stream.write_all(&piece).await.is_ok() {}
            return;
        }
    };
    let _ = stream.write_all(text.as_bytes()).await;
    let _ = stream.shutdown().await;
}
