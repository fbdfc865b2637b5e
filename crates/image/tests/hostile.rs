//! Registries and images that mean harm, or are broken in ways that no real registry is.

#![allow(clippy::unwrap_used)]

mod support;

use std::{
    io::Write,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use nullspace_image::{Credentials, Image, ImageError, LayerError, Limits};
use support::{fake::*, *};

async fn pull(fake: &Fake) -> Result<Image, ImageError> {
    pull_with(fake, Limits::default(), &Credentials::anonymous()).await
}

async fn pull_with(
    fake: &Fake,
    limits: Limits,
    credentials: &Credentials,
) -> Result<Image, ImageError> {
    let dir = tempfile::tempdir().unwrap();
    let images = images_with(dir.path(), limits);
    let pulled = images.pull(&fake.name(), credentials, &|_| {}).await;
    assert_eq!(unfinished(dir.path()), [""; 0]);
    if pulled.is_err() {
        let kept = std::fs::read_dir(dir.path().join("layers"))
            .unwrap()
            .count();
        assert_eq!(kept, 0);
    }
    pulled
}

/// An image of one layer with that compressed form.
fn one_layer(tar: &[u8], compressed: Vec<u8>) -> Fake {
    let config = config(&[tar]);
    let text = manifest(
        &descriptor(CONFIG, &config),
        &[descriptor(LAYER, &compressed)],
    );
    Fake::with(MANIFEST, &text, vec![config, compressed])
}

#[tokio::test]
async fn answers_without_end_are_refused() {
    let endless = |path: &'static str| {
        Fake::start(move |request| {
            let mut all = answer("200 OK", &[("content-type", MANIFEST)], b"{");
            all.endless = request.path.contains(path);
            if !all.endless {
                let realm = format!("Bearer realm=\"http://{}/token\"", host_of(request));
                return answer("401 Unauthorized", &[("www-authenticate", &realm)], b"");
            }
            all
        })
    };
    for path in ["/manifests/", "/token"] {
        let error = pull(&endless(path)).await.unwrap_err();
        assert!(
            matches!(error, ImageError::TooLarge { .. }),
            "{path}: {error}"
        );
    }
    // The body of an error is not read at all.
    let fake = Fake::start(|_| {
        let mut all = answer("404 Not Found", &[], b"");
        all.endless = true;
        all
    });
    let error = pull(&fake).await.unwrap_err();
    assert!(matches!(error, ImageError::NotFound { .. }), "{error}");
}

fn host_of(request: &Request) -> String {
    let line = request.head.lines().find(|line| line.starts_with("host:"));
    line.unwrap()[5..].trim().to_owned()
}

#[tokio::test]
async fn credentials_stay_with_their_registry() {
    let tar = tar_of("a", b"1");
    let layer = tar.clone();
    let elsewhere = Fake::start(move |_| answer("200 OK", &[], &layer));
    let far = elsewhere.host.clone();
    let config = config(&[&tar]);
    let text = manifest(&descriptor(CONFIG, &config), &[descriptor(LAYER, &tar)]);
    let blob = format!("/blobs/sha256:{}", hex(&tar));
    let registry = Fake::start(move |request| match request.authorization() {
        None => answer(
            "401 Unauthorized",
            &[("www-authenticate", "Basic realm=\"x\"")],
            b"",
        ),
        Some(_) if request.path.ends_with(&blob) => {
            let to = format!("http://{far}/stored?signature=do-not-tell");
            answer("307 Temporary Redirect", &[("location", &to)], b"")
        }
        Some(_) if request.path.contains("/manifests/") => {
            answer("200 OK", &[("content-type", MANIFEST)], text.as_bytes())
        }
        Some(_) => answer("200 OK", &[], &config),
    });
    let credentials = Credentials::basic("me", "my-password");
    pull_with(&registry, Limits::default(), &credentials)
        .await
        .unwrap();
    let there = elsewhere.seen();
    assert_eq!(there.len(), 1);
    assert_eq!(there[0].authorization(), None);
    assert!(
        registry
            .seen()
            .iter()
            .any(|r| r.authorization() == Some("Basic bWU6bXktcGFzc3dvcmQ="))
    );

    // Nor is an address that is signed in what is said when that fails.
    let gone = format!(
        "http://127.0.0.1:{}/stored?signature=do-not-tell",
        free_port()
    );
    let registry = Fake::start(move |_| answer("302 Found", &[("location", &gone)], b""));
    let limits = Limits {
        retries: 1,
        ..Limits::default()
    };
    let error = pull_with(&registry, limits, &credentials)
        .await
        .unwrap_err();
    let all = format!("{error} {error:?}");
    assert!(matches!(error, ImageError::Unreachable { .. }), "{all}");
    assert!(
        !all.contains("do-not-tell") && !all.contains("my-password"),
        "{all}"
    );
}

#[tokio::test]
async fn tokens_are_fetched_and_renewed() {
    let tar = tar_of("a", b"1");
    let config = config(&[&tar]);
    let text = manifest(&descriptor(CONFIG, &config), &[descriptor(LAYER, &tar)]);
    let service = Fake::start(|request| {
        assert!(
            request.path.contains("service=reg")
                && request
                    .path
                    .contains("scope=repository%3Asome%2Fimage%3Apull")
        );
        answer("200 OK", &[], br#"{"access_token":"tok-secret"}"#)
    });
    let realm = format!(
        "Bearer realm=\"http://{}/token\",service=\"reg\",scope=\"other\"",
        service.host
    );
    let served = AtomicUsize::new(0);
    let registry = Fake::start(move |request| {
        // It is no longer good for the layer.
        let good = request.authorization() == Some("Bearer tok-secret");
        if !good || served.fetch_add(1, Ordering::SeqCst) == 2 {
            return answer("401 Unauthorized", &[("www-authenticate", &realm)], b"");
        }
        if request.path.contains("/manifests/") {
            answer("200 OK", &[("content-type", MANIFEST)], text.as_bytes())
        } else if request.path.contains(&hex(&config)) {
            answer("200 OK", &[], &config)
        } else {
            answer("200 OK", &[], &tar)
        }
    });
    let credentials = Credentials::basic("me", "my-password");
    pull_with(&registry, Limits::default(), &credentials)
        .await
        .unwrap();
    let asked = service.seen();
    assert_eq!(asked.len(), 2);
    assert!(
        asked
            .iter()
            .all(|r| r.authorization() == Some("Basic bWU6bXktcGFzc3dvcmQ="))
    );
    // Who cannot be let in is told so.
    let never = Fake::start(|_| {
        answer(
            "401 Unauthorized",
            &[("www-authenticate", "Digest x=y")],
            b"",
        )
    });
    let error = pull_with(&never, Limits::default(), &credentials)
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            ImageError::Denied {
                anonymous: false,
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn passing_failures_pass() {
    let tar = tar_of("a", b"1");
    let config = config(&[&tar]);
    let text = manifest(&descriptor(CONFIG, &config), &[descriptor(LAYER, &tar)]);
    let served = AtomicUsize::new(0);
    let registry = Fake::start(move |request| {
        match served.fetch_add(1, Ordering::SeqCst) % 3 {
            0 => return answer("503 Service Unavailable", &[], b"busy"),
            1 => return answer("429 Too Many Requests", &[("retry-after", "0")], b""),
            _ => {}
        }
        if request.path.contains("/manifests/") {
            answer("200 OK", &[("content-type", MANIFEST)], text.as_bytes())
        } else if request.path.contains(&hex(&config)) {
            answer("200 OK", &[], &config)
        } else {
            answer("200 OK", &[], &tar)
        }
    });
    pull(&registry).await.unwrap();
    assert_eq!(registry.seen().len(), 9);

    let broken = Fake::start(|_| answer("500 Internal Server Error", &[], b""));
    let limits = Limits {
        retries: 2,
        ..Limits::default()
    };
    let error = pull_with(&broken, limits, &Credentials::anonymous())
        .await
        .unwrap_err();
    assert!(error.retryable(), "{error}");
    assert_eq!(broken.seen().len(), 3);

    let circle =
        Fake::start(|request| answer("301 Moved Permanently", &[("location", &request.path)], b""));
    let error = pull(&circle).await.unwrap_err();
    assert!(error.to_string().contains("without end"), "{error}");
    assert_eq!(circle.seen().len(), 6);
}

#[tokio::test]
async fn a_registry_that_says_nothing_is_left() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let name = format!("{}/some/image:1", silent.local_addr().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits {
        idle_time: Duration::from_millis(100),
        retries: 1,
        ..Limits::default()
    };
    let error = images_with(dir.path(), limits.clone())
        .pull(&name, &Credentials::anonymous(), &|_| {})
        .await
        .unwrap_err();
    assert!(matches!(error, ImageError::Unreachable { .. }), "{error}");
    let limits = Limits {
        pull_time: Duration::from_millis(50),
        ..limits
    };
    let error = images_with(dir.path(), limits)
        .pull(&name, &Credentials::anonymous(), &|_| {})
        .await
        .unwrap_err();
    assert!(matches!(error, ImageError::Deadline { .. }), "{error}");
}

#[tokio::test]
async fn the_image_for_this_host_is_chosen() {
    let tar = tar_of("a", b"1");
    let ours = config(&[&tar]);
    let manifest_text = manifest(&descriptor(CONFIG, &ours), &[descriptor(LAYER, &tar)]);
    let arch = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    let entry = |os: &str, arch: &str, of: &str| {
        let plain = descriptor(MANIFEST, of.as_bytes());
        format!(
            "{},\"platform\":{{\"os\":\"{os}\",\"architecture\":\"{arch}\"}}}}",
            &plain[..plain.len() - 1]
        )
    };
    let index = |entries: &[String]| {
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{}]}}"#,
            entries.join(",")
        )
    };
    let all = index(&[
        entry("windows", arch, "w"),
        entry("linux", "s390x", "s"),
        entry("unknown", "unknown", "attestation"),
        entry("linux", arch, &manifest_text),
    ]);
    let blobs = || {
        vec![
            ours.clone(),
            tar.clone(),
            manifest_text.clone().into_bytes(),
        ]
    };
    let image = pull(&Fake::with(INDEX, &all, blobs())).await.unwrap();
    assert_eq!(
        image.digest,
        format!("sha256:{}", hex(manifest_text.as_bytes()))
    );

    let others = index(&[entry("windows", arch, "w"), entry("linux", "s390x", "s")]);
    let error = pull(&Fake::with(INDEX, &others, vec![])).await.unwrap_err();
    assert!(
        error.to_string().contains(&format!(
            "linux/{arch}: there is windows/{arch}, linux/s390x"
        )),
        "{error}"
    );

    let foreign = config_for("s390x", &[&tar]);
    let text = manifest(&descriptor(CONFIG, &foreign), &[descriptor(LAYER, &tar)]);
    let error = pull(&Fake::with(MANIFEST, &text, vec![foreign, tar.clone()]))
        .await
        .unwrap_err();
    assert!(matches!(error, ImageError::Platform { .. }), "{error}");

    // An index that leads to itself cannot be written; one that goes on for ever can.
    let deep = Fake::start(move |request| {
        let n = request.path.len() + request.path.bytes().map(usize::from).sum::<usize>();
        let next = format!(
            "{{\"mediaType\":\"{INDEX}\",\"digest\":\"sha256:{}\",\"size\":1}}",
            hex(&n.to_le_bytes())
        );
        answer(
            "200 OK",
            &[("content-type", INDEX)],
            format!(r#"{{"schemaVersion":2,"manifests":[{next}]}}"#).as_bytes(),
        )
    });
    let error = pull(&deep).await.unwrap_err();
    // It is found out at the first that is not what its digest says.
    assert!(matches!(error, ImageError::Digest { .. }), "{error}");
}

#[tokio::test]
async fn kinds_that_are_not_images_are_refused_by_name() {
    let tar = tar_of("a", b"1");
    let config = config(&[&tar]);
    let (good_config, good_layer) = (descriptor(CONFIG, &config), descriptor(LAYER, &tar));
    let helm = descriptor("application/vnd.cncf.helm.config.v1+json", &config);
    let secret = descriptor(
        "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
        &tar,
    );
    let foreign = descriptor(
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        &tar,
    );
    let old = r#"{"schemaVersion":1,"name":"x","tag":"1","fsLayers":[]}"#.to_owned();
    for (text, named) in [
        (manifest(&helm, &[]), "helm"),
        (manifest(&good_config, &[secret]), "encrypted"),
        (manifest(&good_config, &[foreign]), "foreign"),
        (old, "manifest.v1"),
    ] {
        let error = pull(&Fake::with(MANIFEST, &text, vec![config.clone()]))
            .await
            .unwrap_err();
        assert!(
            matches!(&error, ImageError::MediaType { found, .. } if found.contains(named)),
            "{error}"
        );
    }
    let sha512 = format!(
        r#"{{"mediaType":"{LAYER}","digest":"sha512:{}","size":1}}"#,
        "a".repeat(128)
    );
    for (text, why) in [
        (manifest(&good_config, &[sha512]), "other than SHA-256"),
        (
            manifest(&good_config, &vec![good_layer.clone(); 128]),
            "more than 127",
        ),
        (
            manifest(&good_config, &[good_layer.clone(), good_layer]),
            "tells of 1 layers",
        ),
        ("[]".into(), "not understood"),
        ("{\"schemaVersion\":2}".into(), "not understood"),
        ("not json".into(), "not understood"),
    ] {
        let error = pull(&Fake::with(MANIFEST, &text, vec![config.clone()]))
            .await
            .unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
    let html = Fake::with("text/html", "<html>", vec![]);
    assert!(matches!(
        pull(&html).await.unwrap_err(),
        ImageError::Malformed { .. }
    ));
}

#[tokio::test]
async fn bombs_do_not_go_off() {
    let mut zeros = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let megabyte = vec![0; 1 << 20];
    let mut header = tar::Header::new_ustar();
    header.set_path("zeros").unwrap();
    header.set_size(400 << 20);
    header.set_cksum();
    zeros.write_all(header.as_bytes()).unwrap();
    for _ in 0..400 {
        zeros.write_all(&megabyte).unwrap();
    }
    let bomb = zeros.finish().unwrap();
    let error = pull(&one_layer(b"never reached", bomb.clone()))
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            ImageError::Layer {
                source: LayerError::Ratio { limit: 200 },
                ..
            }
        ),
        "{error}"
    );

    let limits = Limits {
        unpacked_bytes: 1 << 20,
        ..Limits::default()
    };
    let fake = one_layer(b"never reached", bomb);
    let error = pull_with(&fake, limits.clone(), &Credentials::anonymous())
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            ImageError::Layer {
                source: LayerError::Limit { what: "bytes", .. },
                ..
            }
        ),
        "{error}"
    );

    // Two layers that are each within it, and not together.
    let (one, two) = (
        tar_of("one", &vec![1; 600_000]),
        tar_of("two", &vec![2; 600_000]),
    );
    let config = config(&[&one, &two]);
    let layers = [descriptor(LAYER, &one), descriptor(LAYER, &two)];
    let text = manifest(&descriptor(CONFIG, &config), &layers);
    let fake = Fake::with(MANIFEST, &text, vec![config, one, two]);
    let dir = tempfile::tempdir().unwrap();
    let error = images_with(dir.path(), limits.clone())
        .pull(&fake.name(), &Credentials::anonymous(), &|_| {})
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            ImageError::Layer {
                source: LayerError::Limit { what: "bytes", .. },
                ..
            }
        ),
        "{error}"
    );
    // Also when they are there already.
    images_with(dir.path(), Limits::default())
        .pull(&fake.name(), &Credentials::anonymous(), &|_| {})
        .await
        .unwrap();
    let again = images_with(dir.path(), limits)
        .pull(&fake.name(), &Credentials::anonymous(), &|_| {})
        .await;
    assert!(again.is_err());
}

#[tokio::test]
async fn layers_are_what_their_digests_say() {
    let (tar, other) = (tar_of("a", b"1"), tar_of("a", b"2"));
    let error = pull(&one_layer(&tar, other)).await.unwrap_err();
    assert!(
        matches!(&error, ImageError::Digest { expected, .. } if expected.contains(&hex(&tar))),
        "{error}"
    );
    let mut bzip = b"BZh9".to_vec();
    bzip.extend_from_slice(&[0; 100]);
    let error = pull(&one_layer(&tar, bzip)).await.unwrap_err();
    assert!(
        matches!(
            error,
            ImageError::Layer {
                source: LayerError::Compression("bzip2"),
                ..
            }
        ),
        "{error}"
    );
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    let gzip = gzip.finish().unwrap();
    // Several compressed parts after each other are one, as eStargz and pigz have it.
    let (head, tail) = tar.split_at(700);
    let mut parts = Vec::new();
    for part in [head, tail] {
        let mut gzip = flate2::write::GzEncoder::new(parts, flate2::Compression::fast());
        gzip.write_all(part).unwrap();
        parts = gzip.finish().unwrap();
    }
    for compressed in [gzip.clone(), parts] {
        let image = pull(&one_layer(&tar, compressed)).await.unwrap();
        assert_eq!(image.layers[0].digest, hex(&tar));
    }
    let error = pull(&one_layer(&tar, gzip[..gzip.len() - 4].to_vec()))
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            ImageError::Layer {
                source: LayerError::CutShort,
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn directories_that_a_layer_does_not_tell_of_are_those_from_below() {
    let mut builder = tar::Builder::new(Vec::new());
    let mut directory = |path: &str, mode: u32, owner: u64, time: u64| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_size(0);
        header.set_mode(mode);
        header.set_uid(owner);
        header.set_gid(owner);
        header.set_mtime(time);
        builder
            .append_data(&mut header, path, std::io::empty())
            .unwrap();
    };
    directory("tmp", 0o1777, 0, 1_000_000_000);
    directory("home", 0o755, 0, 1_000_000_001);
    directory("home/me", 0o700, 1000, 1_000_000_002);
    directory("gone", 0o700, 7, 1_000_000_003);
    let base = builder.into_inner().unwrap();
    let joined = |tars: &[Vec<u8>]| {
        let end = vec![0; 1024];
        let members = tars.iter().map(|tar| &tar[..tar.len() - 1024]);
        members.flatten().chain(&end).copied().collect::<Vec<u8>>()
    };
    let second = joined(&[
        tar_of("tmp/file", b"1"),
        tar_of("home/me/new/file", b"2"),
        tar_of(".wh.gone", b""),
    ]);
    let third = joined(&[tar_of("gone/file", b"3"), tar_of("home/me/new/other", b"4")]);
    let config = config(&[&base, &second, &third]);
    let layers = [&base, &second, &third].map(|layer| descriptor(LAYER, layer));
    let text = manifest(&descriptor(CONFIG, &config), &layers);
    let fake = Fake::with(MANIFEST, &text, vec![config, base, second, third]);
    let dir = tempfile::tempdir().unwrap();
    let images = images(dir.path());
    let (name, nobody) = (fake.name(), Credentials::anonymous());
    let pull = || images.pull(&name, &nobody, &|_| {});
    let image = pull().await.unwrap();
    assert_eq!(image.layers.len(), 4);
    let merged = Merged::of(&image.lower(), dir.path());
    let of = |path: &str| {
        use std::os::unix::fs::MetadataExt;
        let meta = std::fs::metadata(merged.root.join(path)).unwrap();
        (meta.mode() & 0o7777, meta.uid(), meta.mtime())
    };
    assert_eq!(of("tmp"), (0o1777, 0, 1_000_000_000));
    assert_eq!(of("home"), (0o755, 0, 1_000_000_001));
    assert_eq!(of("home/me"), (0o700, 1000, 1_000_000_002));
    assert_eq!(of("home/me/new"), (0o755, 0, 0));
    // Not the one that was removed in between.
    assert_eq!(of("gone"), (0o755, 0, 0));
    for file in [
        "tmp/file",
        "home/me/new/file",
        "home/me/new/other",
        "gone/file",
    ] {
        assert!(merged.root.join(file).is_file(), "{file}");
    }
    assert_eq!(pull().await.unwrap(), image);
}
