//! Templates over images: from real registries, with images made by umoci, with both published SDKs; over kills of the
//! server, of the registry, and bad images.

mod registry;

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::{
    host::run,
    python::{next_python, python, script},
    world::World,
};
use registry::{Authority, BIG, Gate, PASSWORD, Registry, TINY, USER, make};

/// A server, a registry, and where images are made.
struct Place {
    world: World,
    registry: Registry,
    work: PathBuf,
    /// Lives as long as the server may read it.
    _settings: tempfile::NamedTempFile,
    _files: tempfile::TempDir,
}

impl Place {
    /// With an image that a script makes, `oci:…` in the place's directory.
    async fn with(scripts: &[&str]) -> Self {
        let files = tempfile::Builder::new()
            .prefix("nullspace-images-")
            .tempdir()
            .unwrap();
        let registry = Registry::start(files.path().join("registry"), false);
        let settings = tempfile::NamedTempFile::new().unwrap();
        let text = format!(
            "[limits]\nregistry_mirrors = {{ \"docker.io\" = \"{}\" }}\n",
            registry.host()
        );
        fs::write(settings.path(), text).unwrap();
        let world = World::with(&["--config", settings.path().to_str().unwrap()]).await;
        let work = files.path().join("work");
        for script in scripts {
            make(&work, script);
        }
        Self {
            world,
            registry,
            work,
            _settings: settings,
            _files: files,
        }
    }

    fn push(&self, tag: &str, name: &str) -> String {
        self.registry.push(&self.work.join("oci"), tag, name)
    }

    /// Layers of images on disk.
    fn layers(&self) -> Vec<String> {
        let listed = fs::read_dir(self.world.data().join("image-layers")).unwrap();
        let names = listed.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| !name.starts_with(".layer-")).collect();
        names.sort();
        names
    }

    /// Everything that is there of images.
    fn files(&self) -> usize {
        fs::read_dir(self.world.data().join("image-layers"))
            .unwrap()
            .count()
    }

    /// Builds, and answers the detail of the failure.
    async fn failure(&self, body: Value) -> Value {
        let id = self.world.begin_build(body).await;
        let built = self.world.built(&id).await;
        assert_eq!(built["build"]["status"], "error", "{built:#}");
        built["build"]["error_detail"].clone()
    }

    /// What nothing needs any more is removed.
    async fn collect(&self) -> Value {
        let (status, report) = (self.world)
            .post("/v1/agent-gc", json!({"dry_run": false}))
            .await;
        assert_eq!(status, 200, "{report}");
        report
    }
}

fn messages(built: &Value) -> String {
    let entries = built["entries"].as_array().cloned().unwrap_or_default();
    let lines: Vec<&str> = (entries.iter())
        .filter_map(|entry| entry["message"].as_str())
        .collect();
    lines.join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_a_registry_is_a_base() {
    let place = Place::with(&[TINY]).await;
    let world = &place.world;
    let digest = place.push("tiny", "team/tiny:v1");
    let image = format!("{}/team/tiny:v1", place.registry.host());
    // As it is: what the image would run is not run.
    let built = world
        .build_ready(json!({"name": "plain", "base_image": image}))
        .await;
    let build = &built["build"];
    assert_eq!(build["source_type"], "oci_import");
    assert_eq!(
        build["base_images"],
        json!([{"reference": image, "digest": digest}])
    );
    assert!(messages(&built).contains(&digest), "{built:#}");
    let oci = &build["oci_metadata"];
    assert_eq!(oci["labels"], json!({"a": "b"}));
    assert_eq!(oci["exposed_ports"], json!(["80/tcp"]));
    assert_eq!(oci["entrypoint"], json!(["/bin/echo"]));
    assert_eq!(oci["cmd"], json!(["never"]));
    let defaults = &build["runtime_defaults"];
    assert!(defaults["start_cmd"].is_null(), "{build}");
    assert_eq!(defaults["default_user"], "app");
    assert_eq!(defaults["default_workdir"], "/app");
    let id = world.machine(json!({"template": "plain"})).await;
    let look = "id -u; pwd; cat file; echo $FROM_IMAGE; stat -c '%a %u' /tmp /app";
    assert_eq!(
        world.out(&id, look).await,
        "1000\n/app\nfrom-image\nyes\n1777 0\n755 1000"
    );
    // By digest, and again: its layers are shared.
    let before = place.layers();
    let exact = format!("{}/team/tiny@{digest}", place.registry.host());
    let built = world
        .build_ready(json!({"name": "exact", "base_image": exact}))
        .await;
    assert!(messages(&built).contains("is there already"), "{built:#}");
    assert_eq!(place.layers(), before);
    // Below steps, and below stages; its entry point is that of a command of ours.
    let dockerfile = format!(
        "FROM {image} AS one\nRUN echo made > made\nFROM scratch\nCOPY --from=one / /\nADD tiny.tar /added/\n\
         COPY --from={image} /app/file /copied\nCOPY --from=one /proc /sys* /hollow/\n\
         RUN [\"/bin/sh\", \"-c\", \"cat /app/made /copied > /both\"]"
    );
    let tar = fs::read(place.work.join("tiny.tar")).unwrap();
    let tar = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, tar);
    let body = json!({"name": "staged", "dockerfile": dockerfile, "build_context": {"files": [
        {"path": "tiny.tar", "entry_type": "file", "content_base64": tar}]}});
    world.build_ready(body).await;
    let id = world
        .machine(json!({"template": "staged", "cwd": "/"}))
        .await;
    let look = "id -u; cat /both /added/app/file; stat -c '%a %u' /tmp /app; stat -c %u /app/made; ls -A /hollow; \
                test -w /dev/null && test -r /proc/self/status && echo kernel";
    assert_eq!(
        world.out(&id, look).await,
        "0\nmade\nfrom-image\nfrom-image\n1777 0\n755 1000\n1000\nkernel"
    );
    let dockerfile = format!("FROM {image}\nCMD [\"from\", \"a dockerfile\"]");
    let body = json!({"name": "started", "dockerfile": dockerfile});
    let built = world.build_ready(body).await;
    assert_eq!(
        built["build"]["runtime_defaults"]["start_cmd"],
        "/bin/echo from 'a dockerfile'"
    );
    // Layers are there for as long as something has them: here a machine of a template that is gone.
    let id = world.machine(json!({"template": "plain"})).await;
    for name in ["exact", "staged", "started", "plain"] {
        world.delete(&format!("/v1/templates/refs/{name}")).await;
    }
    let listed = world.listed().await;
    for other in listed.iter().filter(|other| **other != id) {
        world.delete(&format!("/v1/machines/{other}")).await;
    }
    place.collect().await;
    assert_eq!(place.layers(), before);
    assert_eq!(world.out(&id, "cat file").await, "from-image");
    world.delete(&format!("/v1/machines/{id}")).await;
    let report = place.collect().await;
    assert!(
        report["items"].as_array().unwrap().len() >= before.len(),
        "{report:#}"
    );
    assert_eq!(place.files(), 0);
    world.until_empty().await;
}

/// Builds over the images of the local registry by the names that everybody's have.
async fn with_sdk(python: &Path) {
    let place = Place::with(&[TINY]).await;
    for name in [
        "team/tiny:v1",
        "library/debian:bookworm",
        "library/ubuntu:22.04",
        "library/python:3.12-slim",
        "library/node:22",
        "oven/bun:1",
    ] {
        place.push("tiny", name);
    }
    let private = Registry::start(place.work.join("private"), true);
    private.push(&place.work.join("oci"), "tiny", "team/closed:v1");
    let (host, closed) = (place.registry.host(), private.host());
    let arguments = [&host, &closed, USER, PASSWORD].map(Path::new);
    script(&place.world, python, "images.py", &arguments);
    assert_eq!(place.world.holding(PASSWORD), "");
    let shown = base64::Engine::encode(
        &base64::engine::general_purpose::STANDARD,
        format!("{USER}:{PASSWORD}"),
    );
    assert_eq!(place.world.holding(&shown), "");
    let log = place.world.serve_log();
    assert!(!log.contains(PASSWORD) && !log.contains(&shown), "{log}");
    place.world.until_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_published_sdk_builds_over_images() {
    with_sdk(&python()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_published_sdk_builds_over_images() {
    with_sdk(&next_python()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_for_their_registry_and_in_nothing_that_is_kept() {
    let place = Place::with(&[TINY]).await;
    let world = &place.world;
    place.push("tiny", "team/tiny:v1");
    let private = Registry::start(place.work.join("private"), true);
    private.push(&place.work.join("oci"), "tiny", "team/closed:v1");
    let image = format!("{}/team/closed:v1", private.host());
    let auth = |password: &str| json!({"kind": "basic", "username": USER, "password": password});
    let body = json!({"name": "closed", "base_image": image});
    let mut wrong = body.clone();
    wrong["base_image_auth"] = auth("open-sesame-4713");
    for (body, said) in [
        (&body, "no credentials were given"),
        (&wrong, "with the credentials given"),
    ] {
        let detail = place.failure(body.clone()).await;
        assert_eq!(detail["phase"], "auth", "{detail:#}");
        assert_eq!(detail["details"]["reason"], "registry_denied");
        assert_eq!(detail["retryable"], false);
        assert!(detail["message"].as_str().unwrap().contains(said));
    }
    let mut with_auth = body.clone();
    with_auth["base_image_auth"] = auth(PASSWORD);
    let built = world.build_ready(with_auth).await;
    // A retry has to send them again.
    let path = format!(
        "/v1/templates/builds/{}/retry",
        built["build"]["build_id"].as_str().unwrap()
    );
    let (status, error) = world.post(&path, json!({})).await;
    assert_eq!(status, 400, "{error}");
    let again = json!({"base_image_auth": auth(PASSWORD)});
    let (status, begun) = world.post(&path, again).await;
    assert_eq!(status, 202, "{begun}");
    let again = world.built(begun["build_id"].as_str().unwrap()).await;
    assert_eq!(again["build"]["status"], "ready", "{again:#}");
    // By registry, for a stage and for what is copied from an image.
    let dockerfile = format!(
        "FROM {image} AS one\nFROM {}/team/tiny:v1\nCOPY --from=one /app/file /one\nCOPY --from={image} /app/file /two\n",
        place.registry.host()
    );
    let named = |password: &str| json!([{"registry": private.host(), "auth": auth(password)}]);
    let body = json!({"name": "named", "dockerfile": dockerfile, "registry_auth": named(PASSWORD)});
    world.build_ready(body.clone()).await;
    // Those of the base image are not shown to others.
    let mut of_base = body.clone();
    of_base["registry_auth"] = Value::Null;
    of_base["base_image_auth"] = auth(PASSWORD);
    of_base["skip_cache"] = json!(true);
    let detail = place.failure(of_base).await;
    assert_eq!(detail["details"]["reason"], "registry_denied", "{detail:#}");
    for (field, value) in [
        (
            "registry_auth",
            json!([{"registry": "https://ghcr.io/a b", "auth": auth("x")}, {"registry": "", "auth": auth("x")}]),
        ),
        (
            "registry_auth",
            json!([{"registry": "docker.io", "auth": auth("x")}, {"registry": "index.docker.io", "auth": auth("x")}]),
        ),
    ] {
        let mut bad = json!({"name": "bad", "base_image": image});
        bad[field] = value;
        let (status, error) = world.post("/v1/templates/builds", bad).await;
        assert_eq!(status, 400, "{error}");
    }
    let aws = json!({"kind": "aws_ecr", "access_key_id": "a", "secret_access_key": PASSWORD, "region": "eu-central-1"});
    let body = json!({"name": "bad", "base_image": image, "base_image_auth": aws});
    let (status, error) = world.post("/v1/templates/builds", body).await;
    assert_eq!(
        (status.as_u16(), &error["code"]),
        (501, &json!("not_implemented")),
        "{error}"
    );
    assert_eq!(world.holding(PASSWORD), "");
    assert!(!world.serve_log().contains(PASSWORD));
    world.until_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_leaves_nothing_half_pulled() {
    let mut place = Place::with(&[TINY, BIG]).await;
    place.push("big", "team/big:v1");
    let sum = fs::read_to_string(place.work.join("sum")).unwrap();
    // The first layer comes whole, the second stops in its middle.
    let gate = Gate::start(place.registry.host(), 5 << 20);
    let body = json!({"name": "big", "base_image": format!("{}/team/big:v1", gate.host)});
    let mut last = String::new();
    for moment in ["preparing", "resolved", "unpacking", "unpacking"] {
        let id = place.world.begin_build(body.clone()).await;
        let path = format!("/v1/templates/builds/{id}");
        let at = place.world.data().join("image-layers");
        let look = |snapshot: &Value| match moment {
            "preparing" => messages(snapshot).contains("fetching the image"),
            "resolved" => messages(snapshot).contains("it is sha256:"),
            _ => messages(snapshot).contains("layer 1 of 2") && gate.waits() && unpacked(&at) > 50,
        };
        place.world.until_at(&path, look).await;
        place.world.kill();
        place.world.serve().await;
        let (_, after) = place.world.get(&path).await;
        assert_eq!(after["build"]["failure_phase"], "interrupted", "{after:#}");
        let left = run(
            "find",
            &[
                at.to_str().unwrap(),
                "-maxdepth",
                "1",
                "-name",
                ".unpacking*",
            ],
        );
        assert_eq!(left.trim(), "", "{moment}");
        last = id;
    }
    // What came whole is kept as cache: on record, and found by the next.
    assert_eq!(place.layers().len(), 1);
    let (_, report) = (place.world)
        .post("/v1/agent-gc", json!({"dry_run": true}))
        .await;
    let kept = &place.layers()[0];
    assert!(report.to_string().contains(kept), "{report:#}");
    gate.open();
    let (status, begun) = (place.world)
        .post(&format!("/v1/templates/builds/{last}/retry"), json!({}))
        .await;
    assert_eq!(status, 202, "{begun}");
    let built = place.world.built(begun["build_id"].as_str().unwrap()).await;
    assert_eq!(built["build"]["status"], "ready", "{built:#}");
    assert!(
        messages(&built).contains("layer 1 of 2 is there already"),
        "{built:#}"
    );
    // It is found by a server that starts after a kill right behind the answer.
    place.world.kill();
    place.world.serve().await;
    let id = place
        .world
        .machine(json!({"template": "big", "cwd": "/"}))
        .await;
    let look = "cat $(for n in $(seq 300); do echo /data/$n; done) | sha256sum | while read a b; do echo $a; done";
    let look = look.replace(
        "$(seq 300)",
        &(1..=300)
            .map(|n| n.to_string())
            .collect::<Vec<_>>()
            .join(" "),
    );
    assert_eq!(place.world.out(&id, &look).await, sum.trim());
    place.world.delete(&format!("/v1/machines/{id}")).await;
    place.world.delete("/v1/templates/refs/big").await;
    place.collect().await;
    assert_eq!(place.files(), 0);
    place.world.until_empty().await;
}

/// Files of layers that are being unpacked.
fn unpacked(layers: &Path) -> usize {
    let found = run(
        "find",
        &[layers.to_str().unwrap(), "-path", "*/.unpacking-*/data/*"],
    );
    found.lines().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_dies_in_the_middle_and_a_build_that_is_cancelled_there() {
    let mut place = Place::with(&[TINY, BIG]).await;
    place.push("big", "team/big:v1");
    let gate = Gate::start(place.registry.host(), 5 << 20);
    let body = json!({"name": "big", "base_image": format!("{}/team/big:v1", gate.host)});
    let at = place.world.data().join("image-layers");
    let id = place.world.begin_build(body.clone()).await;
    let path = format!("/v1/templates/builds/{id}");
    let held_back = |snapshot: &Value| {
        messages(snapshot).contains("layer 1 of 2") && gate.waits() && unpacked(&at) > 50
    };
    place.world.until_at(&path, held_back).await;
    let (_, cancelled) = (place.world)
        .post(&format!("{path}/cancel"), json!({"reason": "enough"}))
        .await;
    assert_eq!(cancelled["build"]["status"], "cancelled", "{cancelled:#}");
    place
        .world
        .until_at(&path, |_: &Value| {
            unpacked(&at) == 0 && place.layers().len() == 1
        })
        .await;
    gate.open();
    gate.close();
    // And now the registry.
    let id = place.world.begin_build(body.clone()).await;
    let path = format!("/v1/templates/builds/{id}");
    place.world.until_at(&path, held_back).await;
    place.registry.kill();
    gate.open();
    let built = place.world.built(&id).await;
    let detail = &built["build"]["error_detail"];
    assert_eq!(
        detail["details"]["reason"], "registry_unreachable",
        "{built:#}"
    );
    assert_eq!(detail["phase"], "prepare");
    assert_eq!(detail["retryable"], true);
    assert_eq!(unpacked(&at), 0);
    assert_eq!(place.layers().len(), 1);
    place.registry.start_again();
    let (_, begun) = (place.world)
        .post(&format!("{path}/retry"), json!({}))
        .await;
    let built = place.world.built(begun["build_id"].as_str().unwrap()).await;
    assert_eq!(built["build"]["status"], "ready", "{built:#}");
    place.world.until_empty().await;
}

/// An image whose layer has a file outside of itself, and one that passes through a link.
const EVIL: &str = r#"
python3 - <<'END'
import io, tarfile
def member(archive, name, data=b"", **more):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in more.items():
        setattr(info, key, value)
    archive.addfile(info, io.BytesIO(data))
with tarfile.open("escape.tar", "w") as archive:
    member(archive, "../../../../escaped", b"evil")
with tarfile.open("link.tar", "w") as archive:
    member(archive, "way", type=tarfile.SYMTYPE, linkname="/tmp")
    member(archive, "way/nullspace-escaped", b"evil")
END
for name in escape link; do
    umoci tag --image oci:tiny $name; umoci raw add-layer --image oci:$name $name.tar
done
"#;

#[tokio::test(flavor = "multi_thread")]
async fn bad_images_are_refused_by_name() {
    let place = Place::with(&[TINY, BIG, EVIL]).await;
    let host = place.registry.host();
    for tag in ["tiny", "big", "escape", "link"] {
        place.push(tag, &format!("team/{tag}:v1"));
    }
    let of = |image: String| json!({"name": "bad", "base_image": image});
    let none = "0".repeat(64);
    for (image, reason) in [
        (format!("{host}/team/tiny:v2"), "image_not_found"),
        (format!("{host}/team/tiny@sha256:{none}"), "image_not_found"),
        (format!("{host}/team/nothing:v1"), "image_not_found"),
        (format!("{host}/Team/tiny:v1"), "image_reference"),
        (format!("{host}/team/escape:v1"), "image_layer"),
        (format!("{host}/team/link:v1"), "image_layer"),
        (
            "127.0.0.1:9/team/tiny:v1".to_owned(),
            "registry_unreachable",
        ),
    ] {
        let detail = place.failure(of(image.clone())).await;
        assert_eq!(detail["details"]["reason"], reason, "{image}: {detail:#}");
        assert_eq!(detail["code"], "build_error");
        assert_eq!(detail["phase"], "prepare");
        assert_eq!(detail["retryable"], reason == "registry_unreachable");
        assert!(!detail["suggested_action"].as_str().unwrap().is_empty());
    }
    assert!(!Path::new("/tmp/nullspace-escaped").exists());
    let escaped = run(
        "find",
        &[place.world.home().to_str().unwrap(), "-name", "*escaped*"],
    );
    assert_eq!(escaped, "");
    // A layer whose bytes are not those that were pushed; the registry hands it out all the same.
    let largest = &place.registry.blobs()[0];
    let mut bytes = fs::read(largest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(largest, bytes).unwrap();
    let detail = place.failure(of(format!("{host}/team/big:v1"))).await;
    let reason = detail["details"]["reason"].as_str().unwrap();
    // Depending on what the flipped bit says: the digest is not right, or it cannot even be decompressed.
    assert!(
        ["image_digest", "image_layer"].contains(&reason),
        "{detail:#}"
    );
    // Only the good layer is there, and that is nobody's.
    assert_eq!(place.layers().len(), 1);
    place.collect().await;
    assert_eq!(place.files(), 0);
    place.world.until_empty().await;
}

/// An address of this host that is not its loopback one, if it has any. Nothing is sent.
fn own_address() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback()).then_some(address)
}

#[tokio::test(flavor = "multi_thread")]
async fn registries_prove_over_tls_who_they_are() {
    let files = tempfile::Builder::new()
        .prefix("nullspace-images-")
        .tempdir()
        .unwrap();
    let at = |name: &str| files.path().join(name);
    make(files.path(), TINY);
    let authority = Authority::new(at("authority"));
    let stranger = Authority::new(at("stranger"));
    let loopback = std::net::Ipv4Addr::LOCALHOST.into();
    let registry = |name: &str, address, authority: &Authority, names: &str| {
        let registry = Registry::with_tls(at(name), address, authority.sign(name, names));
        registry.push(&at("oci"), "tiny", "team/tiny:v1");
        registry
    };
    let good = registry("good", loopback, &authority, "DNS:localhost");
    let other_name = registry("other-name", loopback, &authority, "DNS:elsewhere.test");
    let other_signer = registry("other-signer", loopback, &stranger, "DNS:localhost");
    let named = |registry: &Registry| format!("localhost:{}", registry.port());
    let settings = tempfile::NamedTempFile::new().unwrap();
    let authorities: Vec<String> = [&good, &other_name, &other_signer]
        .map(|registry| format!("{:?} = {:?}", named(registry), authority.file()))
        .into();
    let text = format!(
        "[limits]\nregistry_authorities = {{ {} }}\n",
        authorities.join(", ")
    );
    fs::write(settings.path(), text).unwrap();
    let arguments = ["--config", settings.path().to_str().unwrap()];
    let world = World::with(&arguments).await;
    let body = |host: &str| json!({"name": "tiny", "base_image": format!("{host}/team/tiny:v1")});
    world.build_ready(body(&named(&good))).await;
    let id = world.machine(json!({"template": "tiny"})).await;
    assert_eq!(world.out(&id, "cat /app/file").await, "from-image");
    let refused = async |world: &World, host: &str, why: &str| {
        let built = world.built(&world.begin_build(body(host)).await).await;
        let detail = &built["build"]["error_detail"];
        assert_eq!(
            detail["details"]["reason"], "registry_certificate",
            "{built:#}"
        );
        assert_eq!(
            (&detail["phase"], &detail["retryable"]),
            (&json!("prepare"), &json!(false))
        );
        let message = detail["message"].as_str().unwrap();
        assert!(message.contains(host) && message.contains(why), "{message}");
        let action = detail["suggested_action"].as_str().unwrap();
        assert!(action.contains("registry_authorities"), "{action}");
    };
    refused(&world, &named(&other_name), "elsewhere.test").await;
    refused(&world, &named(&other_signer), "UnknownIssuer").await;
    // The file is read each time, so an authority that was replaced is believed at once.
    fs::copy(stranger.file(), authority.file()).unwrap();
    world.build_ready(body(&named(&other_signer))).await;
    refused(&world, &named(&good), "UnknownIssuer").await;
    fs::write(authority.file(), "no certificate").unwrap();
    let built = world
        .built(&world.begin_build(body(&named(&good))).await)
        .await;
    let detail = &built["build"]["error_detail"];
    assert_eq!(detail["details"]["reason"], "host", "{built:#}");

    // What the host believes is what counts for a registry that is not in the settings, and the usual variable says what
    // that is.
    let Some(address) = own_address() else {
        println!("skipped: this host has no address besides 127.0.0.1");
        return;
    };
    let beside = registry("beside", address, &stranger, &format!("IP:{address}"));
    refused(&world, &beside.host(), "UnknownIssuer").await;
    let variables = vec![(
        "SSL_CERT_FILE",
        stranger.file().to_str().unwrap().to_owned(),
    )];
    let trusting = World::in_surroundings(variables).await;
    trusting.build_ready(body(&beside.host())).await;
    trusting.until_empty().await;
}

/// The same image in every form of a file.
const FORMS: &str = r#"
mkdir -p forms; cp -r oci forms/layout
skopeo copy -q --insecure-policy oci:oci:tiny oci-archive:forms/oci.tar:tiny
skopeo copy -q --insecure-policy oci:oci:tiny docker-archive:forms/docker.tar:team/tiny:v1
gzip -c tiny.tar > forms/rootfs.tar.gz
head -c 1000 forms/oci.tar > forms/cut.tar
"#;

#[tokio::test(flavor = "multi_thread")]
async fn images_in_files_are_bases() {
    let place = Place::with(&[TINY, BIG, FORMS]).await;
    let world = &place.world;
    let forms = place.work.join("forms");
    // The published SDKs send the files of a Dockerfile.
    script(world, &python(), "archives.py", &[&forms]);
    script(world, &next_python(), "archives.py", &[&forms]);
    // All that is on disk: the image's layers, and the root file system's, which was packed another way.
    assert_eq!(place.layers().len(), 2);
    // Our command line sends what it is told to.
    for (n, archive) in [
        "oci.tar",
        "docker.tar",
        "docker.tar:team/tiny:v1",
        "layout:tiny",
        "rootfs.tar.gz",
    ]
    .iter()
    .enumerate()
    {
        let (archive, name) = (forms.join(archive), format!("form-{n}"));
        let done = world.nullspace(&[
            "template",
            "build",
            "--from-archive",
            archive.to_str().unwrap(),
            "--run-cmd",
            "cat /app/file > /tmp/seen",
            "--name",
            &name,
        ]);
        assert!(done.status.success(), "{archive:?}: {done:?}");
        let id = world.machine(json!({"template": name})).await;
        assert_eq!(world.out(&id, "cat /tmp/seen").await, "from-image");
        world.delete(&format!("/v1/machines/{id}")).await;
        world.delete(&format!("/v1/templates/refs/{name}")).await;
    }
    for (archive, said) in [
        ("cut.tar", "cut short"),
        ("layout", "name one of"),
        ("layout:none", "no image in it is called"),
        ("docker.tar:none", "no image in it is called"),
    ] {
        let done = world.nullspace(&[
            "template",
            "build",
            "--from-archive",
            forms.join(archive).to_str().unwrap(),
            "--name",
            "bad",
        ]);
        let text = String::from_utf8_lossy(&done.stderr);
        assert!(
            !done.status.success() && text.contains(said),
            "{archive}: {text}"
        );
    }
    let detail = place
        .failure(json!({"name": "bad", "base_image": "archive:none.tar"}))
        .await;
    assert_eq!(detail["details"]["reason"], "image_not_found", "{detail:#}");
    let layers = world.data().join("template-layers");
    let left = run("find", &[layers.to_str().unwrap(), "-name", ".incoming-*"]);
    assert_eq!(left, "");
    place.collect().await;
    assert_eq!(place.files(), 0);
    world.until_empty().await;
}

/// An image of more layers than an overlay takes.
const DEEP: &str = r#"
umoci tag --image oci:tiny deep
for n in $(seq 40); do
    rm -rf one; mkdir -p one/deep; echo $n > one/deep/$n; echo $n > one/deep/last
    umoci insert --image oci:deep one /
done
umoci insert --image oci:deep --whiteout /deep/7
"#;

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_many_layers_is_made_one() {
    let place = Place::with(&[TINY, DEEP]).await;
    place.push("deep", "library/deep:v1");
    let body = json!({"name": "many", "base_image": "deep:v1"});
    place.world.build_ready(body).await;
    let id = place.world.machine(json!({"template": "many"})).await;
    let look = "cat /deep/last; ls /deep | wc -l; test ! -e /deep/7 && id -u";
    assert_eq!(place.world.out(&id, look).await, "40\n40\n1000");
    // The many are of no use any more, the one is.
    place.collect().await;
    assert_eq!(place.files(), 0);
    assert_eq!(place.world.template_layers(), 1);
    assert_eq!(place.world.out(&id, "cat /deep/last").await, "40");
    place.world.delete(&format!("/v1/machines/{id}")).await;
    place.world.until_empty().await;
}
