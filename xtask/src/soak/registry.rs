//! A registry with an image for each number: a shell that all have, and a layer that no other has. It is slow enough for
//! a kill to come in the middle of a layer.

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Result;
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use rand::{RngCore, SeedableRng, rngs::StdRng};
use serde_json::json;
use sha2::{Digest, Sha256};

const SHELL: &str = "/bin/busybox";
const NAMES: [&str; 8] = ["sh", "cat", "mkdir", "mv", "sleep", "tr", "true", "ls"];
/// Bytes of the layer that no other image has.
const SIZE: usize = 2 << 20;
const PIECE: usize = 64 << 10;
const PAUSE: Duration = Duration::from_millis(4);
/// Blobs that are remembered besides the shell: those of as many pulls as there may be at once.
const RECENT: usize = 32;

const JSON: &str = "application/json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const BLOB: &str = "application/octet-stream";

type Body = UnsyncBoxBody<Bytes, Infallible>;

pub(crate) struct Registry {
    address: String,
}

/// What it has, by digest, as it was told of in manifests.
struct Blobs {
    shell: Bytes,
    recent: Mutex<VecDeque<(String, Bytes)>>,
}

impl Registry {
    /// `None`, and the reason on standard output, when there is no shell to put into images.
    pub(crate) async fn start() -> Result<Option<Self>> {
        let Ok(program) = std::fs::read(SHELL) else {
            println!("no images: {SHELL} is not there (Debian's busybox-static)");
            return Ok(None);
        };
        let blobs = Arc::new(Blobs {
            shell: shell(&program)?,
            recent: Mutex::default(),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let blobs = blobs.clone();
                let service = service_fn(move |request: Request<Incoming>| {
                    let answer = blobs.answer(request.uri().path());
                    async move { Ok::<_, Infallible>(answer) }
                });
                let connection = hyper::server::conn::http1::Builder::new();
                tokio::spawn(connection.serve_connection(TokioIo::new(stream), service));
            }
        });
        Ok(Some(Self { address }))
    }

    pub(crate) fn reference(&self, version: u64) -> String {
        format!("{}/soak:v{version}", self.address)
    }
}

impl Blobs {
    fn answer(&self, path: &str) -> Response<Body> {
        let found = || {
            let (kind, name) = path.strip_prefix("/v2/soak/")?.split_once('/')?;
            match kind {
                "manifests" => Some((
                    MANIFEST,
                    self.manifest(name.strip_prefix('v')?.parse().ok()?)?,
                )),
                "blobs" => Some((BLOB, self.get(name)?)),
                _ => None,
            }
        };
        match found() {
            Some((kind, bytes)) => respond(StatusCode::OK, kind, bytes),
            None if path == "/v2/" => respond(StatusCode::OK, JSON, Bytes::from_static(b"{}")),
            None => respond(StatusCode::NOT_FOUND, JSON, Bytes::from_static(b"{}")),
        }
    }

    fn get(&self, digest: &str) -> Option<Bytes> {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let found = recent.iter().find(|(name, _)| name == digest);
        found.map(|(_, bytes)| bytes.clone())
    }

    fn remember(&self, bytes: Bytes) -> String {
        let digest = format!("sha256:{}", hex::encode(Sha256::digest(&bytes)));
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.retain(|(name, _)| *name != digest);
        recent.push_back((digest.clone(), bytes));
        if recent.len() > RECENT {
            recent.pop_front();
        }
        digest
    }

    fn manifest(&self, version: u64) -> Option<Bytes> {
        let layers = [own(version).ok()?, self.shell.clone()];
        let layers =
            [&layers[1], &layers[0]].map(|layer| (layer.len(), self.remember(layer.clone())));
        // They are not compressed, so both digests are the same.
        let config = json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, "os": "linux",
            "config": {"Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": layers.each_ref().map(|(_, digest)| digest)},
        });
        let config = Bytes::from(config.to_string());
        let size = config.len();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "size": size, "digest": self.remember(config)},
            "layers": layers.map(|(size, digest)| json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "size": size, "digest": digest})),
        });
        Some(Bytes::from(manifest.to_string()))
    }
}

fn add(
    builder: &mut tar::Builder<Vec<u8>>,
    kind: tar::EntryType,
    path: &str,
    data: &[u8],
) -> std::io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(0o755);
    header.set_size(data.len() as u64);
    if kind == tar::EntryType::Symlink {
        header.set_link_name("busybox")?;
    }
    builder.append_data(&mut header, path, data)
}

fn shell(program: &[u8]) -> Result<Bytes> {
    let mut builder = tar::Builder::new(Vec::new());
    for path in ["bin/", "etc/", "tmp/", "opt/", "workspace/"] {
        add(&mut builder, tar::EntryType::Directory, path, &[])?;
    }
    add(
        &mut builder,
        tar::EntryType::Regular,
        "bin/busybox",
        program,
    )?;
    for name in NAMES {
        add(
            &mut builder,
            tar::EntryType::Symlink,
            &format!("bin/{name}"),
            &[],
        )?;
    }
    Ok(builder.into_inner()?.into())
}

fn own(version: u64) -> Result<Bytes> {
    let mut builder = tar::Builder::new(Vec::new());
    add(&mut builder, tar::EntryType::Directory, "workspace/", &[])?;
    add(
        &mut builder,
        tar::EntryType::Directory,
        "workspace/soak/",
        &[],
    )?;
    let content = format!("content-of-{version}\n");
    add(
        &mut builder,
        tar::EntryType::Regular,
        "workspace/soak/image",
        content.as_bytes(),
    )?;
    let mut filler = vec![0; SIZE / 8];
    let mut rng = StdRng::seed_from_u64(version);
    for number in 0..8 {
        rng.fill_bytes(&mut filler);
        add(
            &mut builder,
            tar::EntryType::Regular,
            &format!("opt/filler-{number}"),
            &filler,
        )?;
    }
    Ok(builder.into_inner()?.into())
}

/// What is longer than a piece comes piece by piece.
fn respond(status: StatusCode, kind: &'static str, bytes: Bytes) -> Response<Body> {
    let length = bytes.len();
    let body = if length > PIECE {
        let pieces = stream::unfold(bytes, |mut rest| async move {
            if rest.is_empty() {
                return None;
            }
            tokio::time::sleep(PAUSE).await;
            let piece = rest.split_to(rest.len().min(PIECE));
            Some((Ok(Frame::data(piece)), rest))
        });
        StreamBody::new(pieces).boxed_unsync()
    } else {
        Full::new(bytes).boxed_unsync()
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CONTENT_LENGTH, length.into());
    response
}
