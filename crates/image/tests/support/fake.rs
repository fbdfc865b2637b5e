//! A registry that does what no real one does: it is only for answers that docker-registry cannot be brought to give.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use sha2::{Digest, Sha256};

/// One request: its path with the query, and its whole head in lower case.
#[derive(Clone, Debug)]
pub struct Request {
    pub path: String,
    pub head: String,
}

impl Request {
    pub fn authorization(&self) -> Option<&str> {
        self.head
            .lines()
            .find_map(|line| line.strip_prefix("authorization: "))
    }
}

/// What is answered: status with reason, headers, body. A body without an end is written until nobody reads it.
pub struct Answer {
    pub status: &'static str,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    pub endless: bool,
}

pub fn answer(status: &'static str, headers: &[(&'static str, &str)], body: &[u8]) -> Answer {
    Answer {
        status,
        headers: headers.iter().map(|(k, v)| (*k, (*v).to_owned())).collect(),
        body: body.to_vec(),
        endless: false,
    }
}

pub struct Fake {
    pub host: String,
    pub requests: Arc<Mutex<Vec<Request>>>,
}

impl Fake {
    pub fn start(serve: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, serve) = (Arc::clone(&requests), Arc::new(serve));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (seen, serve) = (Arc::clone(&seen), Arc::clone(&serve));
                thread::spawn(move || speak(stream.unwrap(), &seen, &*serve));
            }
        });
        Self { host, requests }
    }

    /// One that has the parts of an image: a manifest for the tag `1`, and blobs.
    pub fn with(kind: &'static str, manifest: &str, blobs: Vec<Vec<u8>>) -> Self {
        let manifest = manifest.to_owned();
        Self::start(move |request| {
            if request.path.ends_with("/manifests/1") {
                return answer("200 OK", &[("content-type", kind)], manifest.as_bytes());
            }
            let found = blobs.iter().find(|blob| request.path.contains(&hex(blob)));
            match found {
                Some(blob) => answer("200 OK", &[], blob),
                None => answer("404 Not Found", &[], b""),
            }
        })
    }

    pub fn name(&self) -> String {
        format!("{}/some/image:1", self.host)
    }

    pub fn seen(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

fn speak(mut stream: TcpStream, seen: &Mutex<Vec<Request>>, serve: &dyn Fn(&Request) -> Answer) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    let path = head.split(' ').nth(1).unwrap().to_owned();
    let request = Request {
        path,
        // Values of credentials matter as they are written.
        head: head.lines().map(lower_name).collect::<Vec<_>>().join("\n"),
    };
    seen.lock().unwrap().push(request.clone());
    let Answer {
        status,
        headers,
        body,
        endless,
    } = serve(&request);
    let mut out = format!("HTTP/1.1 {status}\r\nconnection: close\r\n");
    for (name, value) in headers {
        out += &format!("{name}: {value}\r\n");
    }
    if !endless {
        out += &format!("content-length: {}\r\n", body.len());
    }
    out += "\r\n";
    let mut sent = stream.write_all(out.as_bytes());
    sent = sent.and_then(|()| stream.write_all(&body));
    while endless && sent.is_ok() {
        sent = stream.write_all(&[b' '; 65536]);
    }
}

fn lower_name(line: &str) -> String {
    match line.split_once(':') {
        Some((name, value)) => format!("{}:{value}", name.to_lowercase()),
        None => line.to_owned(),
    }
}

pub fn hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

pub fn descriptor(kind: &str, blob: &[u8]) -> String {
    format!(
        r#"{{"mediaType":"{kind}","digest":"sha256:{}","size":{}}}"#,
        hex(blob),
        blob.len()
    )
}

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

pub fn manifest(config: &str, layers: &[String]) -> String {
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{config},"layers":[{}]}}"#,
        layers.join(",")
    )
}

/// A configuration for this host with layers of those tar archives.
pub fn config(tars: &[&[u8]]) -> Vec<u8> {
    config_for(std::env::consts::ARCH, tars)
}

pub fn config_for(arch: &str, tars: &[&[u8]]) -> Vec<u8> {
    let arch = match arch {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let ids: Vec<String> = tars
        .iter()
        .map(|tar| format!("\"sha256:{}\"", hex(tar)))
        .collect();
    format!(
        r#"{{"architecture":"{arch}","os":"linux","rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        ids.join(",")
    )
    .into_bytes()
}

/// A tar archive with one file.
pub fn tar_of(name: &str, content: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, name, content).unwrap();
    builder.into_inner().unwrap()
}
