//! Pulls from a real registry: Debian's docker-registry, with images made by umoci and pushed by skopeo. Needs root.

#![allow(clippy::unwrap_used)]

mod support;

use std::{
    fs,
    os::unix::fs::FileExt,
    path::Path,
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use nullspace_image::{
    Blame, Credentials, Image, ImageError, Images, Limits, Progress, Registries,
};
use support::*;

#[tokio::test]
async fn an_image_is_what_umoci_unpacks() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::start(&dir.path().join("registry"), false);
    let made = demo(dir.path());
    registry.push(&made, "some/demo:1");

    let heard = Mutex::new(Vec::new());
    let images = images(dir.path());
    let name = format!("{}/some/demo:1", registry.host());
    let image = images
        .pull(&name, &Credentials::anonymous(), &|p| {
            heard.lock().unwrap().push(p)
        })
        .await
        .unwrap();

    let merged = Merged::of(&image.lower(), dir.path());
    let bundle = dir.path().join("expected");
    ran(Command::new("umoci")
        .args(["unpack", "--image", &made])
        .arg(&bundle));
    let (found, expected) = (listing(&merged.root), listing(&bundle.join("rootfs")));
    assert_eq!(found.len(), expected.len(), "{found:#?} {expected:#?}");
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found, expected);
    }
    assert!(found.len() > 20, "{found:#?}");

    let config = &image.config;
    assert_eq!(config.env[1], ("GREETING".into(), "hello=world".into()));
    assert_eq!(config.user.as_deref(), Some("1000:1001"));
    assert_eq!(config.workdir.as_deref(), Some("/srv"));
    assert_eq!(config.entrypoint, ["/bin/tool"]);
    assert_eq!(config.cmd, ["--serve"]);
    assert_eq!(config.labels["a"], "b");
    assert_eq!(config.exposed_ports, ["8080/tcp"]);
    assert_eq!(config.volumes, ["/data"]);
    assert_eq!(config.stop_signal.as_deref(), Some("SIGINT"));

    let heard = heard.into_inner().unwrap();
    assert!(
        matches!(&heard[0], Progress::Resolved { digest, layers: 3, .. } if *digest == image.digest)
    );
    assert!(matches!(
        heard.last(),
        Some(Progress::Layer {
            done: 3,
            of: 3,
            kept: false,
            ..
        })
    ));
    assert_eq!(unfinished(dir.path()), [""; 0]);
    // As it is pulled by its digest, without anything being sent again.
    let by_digest = format!("{}/some/demo@{}", registry.host(), image.digest);
    for layer in &image.layers {
        assert!(layer.path.ends_with(&layer.digest));
    }
    let again = images
        .pull(&by_digest, &Credentials::anonymous(), &|p| {
            assert!(!matches!(
                p,
                Progress::Received { .. } | Progress::Layer { kept: false, .. }
            ));
        })
        .await
        .unwrap();
    assert_eq!(again, image);
}

/// A layer of `megabytes` that do not compress.
fn large(directory: &Path, megabytes: u32) -> String {
    let script = format!("head -c {megabytes}000000 /dev/urandom > blob; echo end > end");
    image(directory, "large", &[&script])
}

async fn anonymous(images: &Images, name: &str) -> Result<Image, ImageError> {
    images.pull(name, &Credentials::anonymous(), &|_| {}).await
}

#[tokio::test]
async fn a_private_registry_lets_in_who_may() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::start(&dir.path().join("registry"), true);
    let made = image(dir.path(), "small", &["echo 1 > a"]);
    registry.push(&made, "p/small:1");
    let images = images(dir.path());
    let name = format!("{}/p/small:1", registry.host());

    let error = anonymous(&images, &name).await.unwrap_err();
    assert!(
        matches!(
            error,
            ImageError::Denied {
                anonymous: true,
                ..
            }
        ),
        "{error}"
    );
    for (user, password) in [(USER, "wrong-secret"), ("nobody", "wrong-secret")] {
        let credentials = Credentials::basic(user, password);
        let error = images.pull(&name, &credentials, &|_| {}).await.unwrap_err();
        assert_eq!(error.blame(), Blame::Credentials);
        let all = format!("{error} {error:?} {credentials:?} {}", error.hint());
        assert!(!all.contains("wrong-secret"), "{all}");
    }
    let credentials = Credentials::basic(USER, PASSWORD);
    let image = images.pull(&name, &credentials, &|_| {}).await.unwrap();
    assert_eq!(
        fs::read_to_string(image.layers[0].path.join("a")).unwrap(),
        "1\n"
    );
    assert!(!format!("{images:?} {image:?} {credentials:?}").contains(PASSWORD));
}

#[tokio::test]
async fn what_is_not_there_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::start(&dir.path().join("registry"), false);
    let made = image(dir.path(), "small", &["echo 1 > a"]);
    registry.push(&made, "small:1");
    let images = images(dir.path());
    let host = registry.host();
    let zeros = "0".repeat(64);
    for name in [
        "small:2".to_owned(),
        "other:1".into(),
        format!("small@sha256:{zeros}"),
    ] {
        let error = anonymous(&images, &format!("{host}/{name}"))
            .await
            .unwrap_err();
        assert!(
            matches!(error, ImageError::NotFound { .. }),
            "{name}: {error}"
        );
    }
    let error = anonymous(&images, &format!("{host}/Upper:1"))
        .await
        .unwrap_err();
    assert!(matches!(error, ImageError::Reference { .. }), "{error}");
    let nobody = format!("127.0.0.1:{}/x", free_port());
    let error = anonymous(&images, &nobody).await.unwrap_err();
    assert!(
        error.retryable() && error.to_string().contains("refused"),
        "{error}"
    );
}

#[tokio::test]
async fn altered_blobs_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::start(&dir.path().join("registry"), false);
    let made = large(dir.path(), 2);
    registry.push(&made, "large:1");
    let images = images(dir.path());
    let name = format!("{}/large:1", registry.host());
    let manifest = ran(skopeo()
        .args(["inspect", "--raw", "--tls-verify=false"])
        .arg(format!("docker://{name}")));
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    let digest = manifest["layers"][0]["digest"].as_str().unwrap();
    let config = manifest["config"]["digest"].as_str().unwrap();

    let blob = registry.blob(digest);
    let good = fs::read(&blob).unwrap();
    let file = fs::File::options().write(true).open(&blob).unwrap();
    file.write_all_at(&[good[1_000_000] ^ 4], 1_000_000)
        .unwrap();
    let error = anonymous(&images, &name).await.unwrap_err();
    // The compression has a checksum of its own, which may see it first.
    assert!(
        matches!(&error, ImageError::Digest { expected, .. } if expected == digest)
            || matches!(error, ImageError::Layer { .. }),
        "{error}"
    );
    assert_eq!(error.blame(), Blame::Image);
    assert_eq!(unfinished(dir.path()), [""; 0]);

    // Another archive than the configuration tells of: proper in itself.
    sh("echo other > other; tar czf other.tgz other", dir.path());
    let other = fs::read(dir.path().join("other.tgz")).unwrap();
    fs::write(&blob, &other).unwrap();
    let error = anonymous(&images, &name).await.unwrap_err();
    assert!(
        error.to_string().contains("where its manifest says"),
        "{error}"
    );

    fs::write(&blob, &good[..good.len() - 1]).unwrap();
    let error = anonymous(&images, &name).await.unwrap_err();
    assert!(
        error.to_string().contains("where its manifest says"),
        "{error}"
    );
    fs::remove_file(&blob).unwrap();
    let error = anonymous(&images, &name).await.unwrap_err();
    assert!(error.to_string().contains("no such thing"), "{error}");

    fs::write(&blob, &good).unwrap();
    let config = registry.blob(config);
    let kept = fs::read(&config).unwrap();
    let mut bad = kept.clone();
    bad[40] ^= 1;
    fs::write(&config, &bad).unwrap();
    let error = anonymous(&images, &name).await.unwrap_err();
    assert!(matches!(error, ImageError::Digest { .. }), "{error}");
    fs::write(&config, &kept).unwrap();
    assert_eq!(unfinished(dir.path()), [""; 0]);
    anonymous(&images, &name).await.unwrap();
}

#[tokio::test]
async fn a_registry_that_dies_in_the_middle() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Mutex::new(Registry::start(&dir.path().join("registry"), false));
    let made = large(dir.path(), 60);
    registry.lock().unwrap().push(&made, "large:1");
    let images = images(dir.path());
    let name = format!("{}/large:1", registry.lock().unwrap().host());

    let killed = AtomicBool::new(false);
    let error = images
        .pull(&name, &Credentials::anonymous(), &|progress| {
            if matches!(progress, Progress::Received { .. }) && !killed.swap(true, Ordering::SeqCst)
            {
                registry.lock().unwrap().kill();
            }
        })
        .await
        .unwrap_err();
    assert!(killed.into_inner());
    assert!(error.retryable(), "{error}");
    assert_eq!(unfinished(dir.path()), [""; 0]);
    assert_eq!(fs::read_dir(dir.path().join("layers")).unwrap().count(), 0);

    // And one that comes back.
    registry.lock().unwrap().start_again();
    let killed = AtomicBool::new(false);
    let image = images
        .pull(&name, &Credentials::anonymous(), &|progress| {
            if matches!(progress, Progress::Received { .. }) && !killed.swap(true, Ordering::SeqCst)
            {
                let mut registry = registry.lock().unwrap();
                registry.kill();
                registry.start_again();
            }
        })
        .await
        .unwrap();
    assert!(killed.into_inner());
    assert_eq!(
        fs::metadata(image.layers[0].path.join("blob"))
            .unwrap()
            .len(),
        60_000_000
    );
}

#[tokio::test]
async fn a_broken_connection_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::start(&dir.path().join("registry"), false);
    let made = large(dir.path(), 10);
    registry.push(&made, "large:1");
    let cutting = cutting::Cutting::start(registry.host(), 1_500_000, 5);
    let received = AtomicUsize::new(0);
    let image = images(dir.path())
        .pull(
            &format!("{}/large:1", cutting.host),
            &Credentials::anonymous(),
            &|progress| {
                if let Progress::Received { bytes, of } = progress {
                    assert!(bytes <= of);
                    received.store(bytes as usize, Ordering::SeqCst);
                }
            },
        )
        .await
        .unwrap();
    assert_eq!(
        fs::metadata(image.layers[0].path.join("blob"))
            .unwrap()
            .len(),
        10_000_000
    );
    assert!(cutting.left.load(Ordering::SeqCst) <= 0);
    assert_eq!(cutting.requests_for_parts.load(Ordering::SeqCst), 5);
    // Nothing was sent twice.
    let of = received.into_inner();
    assert!((10_000_000..10_100_000).contains(&of), "{of}");
}

#[tokio::test]
async fn equal_layers_are_fetched_once() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::start(&dir.path().join("registry"), false);
    let made = demo(dir.path());
    registry.push(&made, "demo:1");
    let name = format!("{}/demo:1", registry.host());
    let (unpacked, kept) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let count = |progress| {
        if let Progress::Layer { kept: before, .. } = progress {
            let which = if before { &kept } else { &unpacked };
            which.fetch_add(1, Ordering::SeqCst);
        }
    };
    let credentials = Credentials::anonymous();
    // As several processes would.
    let all: Vec<Images> = (0..4).map(|_| images(dir.path())).collect();
    let pulls = all
        .iter()
        .map(|images| images.pull(&name, &credentials, &count));
    let pulled = futures_util::future::try_join_all(pulls).await.unwrap();
    assert!(pulled.iter().all(|image| *image == pulled[0]));
    assert_eq!(
        (unpacked.load(Ordering::SeqCst), kept.load(Ordering::SeqCst)),
        (3, 9)
    );
    assert_eq!(unfinished(dir.path()), [""; 0]);

    // One that was removed is fetched anew, alone.
    all[0].layers().remove(&pulled[0].layers[1].digest).unwrap();
    assert!(!pulled[0].layers[1].path.exists());
    assert_eq!(
        all[1].pull(&name, &credentials, &count).await.unwrap(),
        pulled[0]
    );
    assert_eq!(
        (unpacked.load(Ordering::SeqCst), kept.load(Ordering::SeqCst)),
        (4, 11)
    );
}

/// A process may be killed between the two renames that keep a layer, and between the two that remove one.
#[test]
fn half_of_a_layer_is_removed_when_the_directory_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("root.tar");
    let mut tar = tar::Builder::new(fs::File::create(&archive).unwrap());
    tar.append_path_with_name("Cargo.toml", "file").unwrap();
    tar.finish().unwrap();
    let made = images(dir.path());
    let image = made.from_rootfs_archive(&archive, &|_| {}).unwrap();
    let layer = image.layers[0].clone();
    assert_eq!(made.layers().all().unwrap(), std::slice::from_ref(&layer));
    let at = layer.path.parent().unwrap();
    let noted = at.join(format!(".layer-{}.json", layer.digest));
    for half in [&layer.path, &noted] {
        let made = images(dir.path());
        let image = made.from_rootfs_archive(&archive, &|_| {}).unwrap();
        assert_eq!(image.layers, std::slice::from_ref(&layer));
        match half.is_dir() {
            true => fs::remove_dir_all(half).unwrap(),
            false => fs::remove_file(half).unwrap(),
        }
        assert!(made.layers().all().unwrap().is_empty());
        let made = images(dir.path());
        assert!(made.layers().all().unwrap().is_empty());
        assert_eq!(fs::read_dir(at).unwrap().count(), 0);
    }
}

#[tokio::test]
async fn every_form_of_one_image_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::start(&dir.path().join("registry"), false);
    let made = demo(dir.path());
    let oci = format!("oci:{made}");
    let host = registry.host();
    let copy_from = |from: &str, extra: &[&str], to: &str| {
        let mut copy = skopeo();
        copy.args(["copy", "-q", "--dest-tls-verify=false"])
            .args(extra)
            .args([from, to]);
        ran(&mut copy);
    };
    let copy = |extra: &[&str], to: &str| copy_from(&oci, extra, to);
    // In a registry of its own: skopeo uses what is there already in another form.
    let plain = format!("dir:{}", dir.path().join("plain").display());
    copy(&["--dest-decompress"], &plain);
    let second = Registry::start(&dir.path().join("second"), false);
    let zstd = format!("docker://{}/demo:zstd", second.host());
    copy_from(&plain, &["--dest-compress-format", "zstd"], &zstd);
    let kinds = ran(skopeo().args(["inspect", "--raw", "--tls-verify=false", &zstd]));
    assert_eq!(kinds.matches("tar+zstd").count(), 3, "{kinds}");
    copy(&[], &format!("docker://{host}/demo:oci"));
    copy(
        &["--format", "v2s2"],
        &format!("docker://{host}/demo:docker"),
    );
    let path = |name: &str| dir.path().join(name);
    copy(
        &[],
        &format!(
            "docker-archive:{}:some/demo:1",
            path("docker.tar").display()
        ),
    );
    copy(
        &[],
        &format!("oci-archive:{}:demo", path("oci.tar").display()),
    );
    sh(
        "gzip -k docker.tar; zstd -q oci.tar; xz -k -0 oci.tar",
        dir.path(),
    );

    let fresh =
        |name: &str| Images::open(&path(name), Registries::default(), Limits::default()).unwrap();
    let first = anonymous(&fresh("l1"), &format!("{host}/demo:oci"))
        .await
        .unwrap();
    let mut others = Vec::new();
    for name in [
        format!("{host}/demo:docker"),
        format!("{}/demo:zstd", second.host()),
    ] {
        let images = fresh(&name.replace('/', "-"));
        others.push(anonymous(&images, &name).await.unwrap());
    }
    for (at, file) in ["docker.tar", "docker.tar.gz"].iter().enumerate() {
        let images = fresh(&format!("d{at}"));
        let image = images.from_docker_archive(&path(file), Some("some/demo:1"), &|_| {});
        others.push(image.unwrap());
        let error = images
            .from_docker_archive(&path(file), Some("none"), &|_| {})
            .unwrap_err();
        assert!(error.to_string().contains("some/demo:1"), "{error}");
    }
    for (at, file) in ["layout", "oci.tar", "oci.tar.zst", "oci.tar.xz"]
        .iter()
        .enumerate()
    {
        let images = fresh(&format!("o{at}"));
        others.push(
            images
                .from_layout(&path(file), Some("demo"), &|_| {})
                .unwrap(),
        );
        others.push(images.from_layout(&path(file), None, &|_| {}).unwrap());
    }
    for other in &others {
        assert_eq!(other.config, first.config);
        let digests = |image: &Image| -> Vec<String> {
            image
                .layers
                .iter()
                .map(|layer| layer.digest.clone())
                .collect()
        };
        assert_eq!(digests(other), digests(&first));
        for (one, other) in first.layers.iter().zip(&other.layers) {
            assert_eq!(listing(&one.path), listing(&other.path));
        }
    }

    let bundle = path("flat");
    ran(Command::new("umoci")
        .args(["unpack", "--image", &made])
        .arg(&bundle));
    sh(
        "tar --xattrs --numeric-owner -C flat/rootfs -cJf flat.tar.xz .",
        dir.path(),
    );
    let flat = fresh("flat-layers")
        .from_rootfs_archive(&path("flat.tar.xz"), &|_| {})
        .unwrap();
    let (found, expected) = (
        listing(&flat.layers[0].path),
        listing(&bundle.join("rootfs")),
    );
    // GNU tar keeps what it is told to of extended attributes, and whole seconds.
    let plain = |lines: Vec<String>| -> Vec<String> {
        let cut = |line: String| {
            let (head, rest) = line.split_once(" mtime=").unwrap();
            format!(
                "{head} {}",
                rest.split_once(" rdev")
                    .unwrap()
                    .1
                    .split(" xattrs")
                    .next()
                    .unwrap()
            )
        };
        lines.into_iter().map(cut).collect()
    };
    assert_eq!(plain(found), plain(expected));
    use nullspace_image::ArchiveKind;
    let kind = |name: &str| fresh("kinds").archive_kind(&path(name)).unwrap();
    assert_eq!(kind("flat.tar.xz"), ArchiveKind::RootFs);
    assert_eq!(kind("docker.tar.gz"), ArchiveKind::Docker);
    assert_eq!(kind("oci.tar"), ArchiveKind::OciLayout);
}
