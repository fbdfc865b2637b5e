//! What a registry or an archive says about an image, changed at random: it is refused, or keeps what others rely on.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{config, store::is_digest};

fn digest() -> String {
    format!("sha256:{}", "0123456789abcdef".repeat(4))
}

/// An index, a manifest and a configuration, as they should be.
fn samples() -> [Value; 3] {
    let of = |kind: &str| json!({"mediaType": kind, "digest": digest(), "size": 7});
    let mut for_us = of("application/vnd.oci.image.manifest.v1+json");
    for_us["platform"] = json!({"os": "linux", "architecture": Arch::default().to_string()});
    [
        json!({"schemaVersion": 2, "mediaType": INDEXES[0], "manifests": [for_us],
            "annotations": {"a": "b"}}),
        json!({"schemaVersion": 2, "mediaType": MANIFESTS[0],
            "config": of("application/vnd.oci.image.config.v1+json"),
            "layers": [of("application/vnd.oci.image.layer.v1.tar+gzip"), of("application/vnd.oci.image.layer.v1.tar")]}),
        json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [digest(), digest()]},
            "config": {"User": "1:2", "Env": ["A=1"], "Entrypoint": ["/a"], "Cmd": ["b"], "Labels": {"a": "b"},
                "ExposedPorts": {"80/tcp": {}}, "Volumes": {"/d": {}}, "WorkingDir": "/w", "StopSignal": "TERM",
                "Healthcheck": {"Test": ["CMD", "x"], "Interval": 5, "Retries": 3}, "Shell": ["/bin/sh"]},
            "history": [{"created_by": "x", "empty_layer": true}]}),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    let words = [
        "",
        "..",
        "../../etc/passwd",
        "sha256:",
        "sha256:..",
        "sha512:00",
        "md5:0",
        "linux",
        "windows",
        "application/json",
        "application/vnd.oci.image.manifest.v1+json",
        "=",
        "=x",
        "\0",
        "é",
    ];
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        proptest::sample::select(words.to_vec()).prop_map(Value::from),
        "[0-9a-f]{64}".prop_map(|hex| Value::from(format!("sha256:{hex}"))),
        "[ -~]{0,80}".prop_map(Value::from),
        Just(json!([])),
        Just(json!({})),
        Just(Value::Array(vec![json!("x"); 300])),
        (0..3usize).prop_map(|n| samples()[n].clone()),
    ]
}

/// Every place in a document.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Value::Array(list) => {
            for (n, item) in list.iter().enumerate() {
                places(item, &format!("{at}/{n}"), found);
            }
        }
        Value::Object(fields) => {
            for (name, item) in fields {
                places(item, &format!("{at}/{}", name.replace('/', "~1")), found);
            }
        }
        _ => {}
    }
}

fn document() -> impl Strategy<Value = Vec<u8>> {
    let changes = proptest::collection::vec((any::<prop::sample::Index>(), value()), 0..4);
    let bytes = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3);
    (0..3usize, changes, bytes).prop_map(|(sample, changes, bytes)| {
        let mut document = samples()[sample].clone();
        for (place, value) in changes {
            let mut all = Vec::new();
            places(&document, "", &mut all);
            if let Some(at) = document.pointer_mut(&all[place.index(all.len())]) {
                *at = value;
            }
        }
        let mut text = document.to_string().into_bytes();
        for (at, byte) in bytes {
            let at = at.index(text.len());
            text[at] = byte;
        }
        text
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn whatever_is_said_of_an_image(text in document(), called in proptest::option::of("application/json|[a-z/+.]{0,40}")) {
        let limits = Limits { layers: 100, compressed_bytes: 1 << 30, config_bytes: 1 << 20, ..Limits::default() };
        match parse(&text, called.as_deref()) {
            Ok(Document::Index(index)) => {
                if let Ok(part) = choose(&index) {
                    prop_assert!(is_digest(&part.digest), "{part:?}");
                }
            }
            Ok(Document::Manifest(manifest)) => {
                if let Ok((config, layers)) = parts(&manifest, &limits) {
                    prop_assert!(layers.len() <= 100);
                    prop_assert!(config.size <= 1 << 20);
                    prop_assert!(layers.iter().map(|part| u128::from(part.size)).sum::<u128>() <= 1 << 30);
                    for part in layers.iter().chain([&config]) {
                        prop_assert!(is_digest(&part.digest), "{part:?}");
                    }
                }
            }
            Err(error) => prop_assert!(error.to_string().len() < 1000, "{error}"),
        }
        match config::parse(&text) {
            Ok(parsed) => {
                prop_assert!(parsed.diff_ids.iter().all(|id| is_digest(id)));
                prop_assert!(parsed.config.env.iter().all(|(name, _)| !name.is_empty() && !name.contains('=')));
            }
            Err(error) => prop_assert!(error.to_string().len() < 1000, "{error}"),
        }
    }
}

#[test]
fn the_samples_are_images() {
    let [index, manifest, config] = samples().map(|sample| sample.to_string());
    let Ok(Document::Index(index)) = parse(index.as_bytes(), None) else {
        panic!("{index}");
    };
    choose(&index).unwrap();
    let Ok(Document::Manifest(manifest)) = parse(manifest.as_bytes(), None) else {
        panic!("{manifest}");
    };
    assert_eq!(parts(&manifest, &Limits::default()).unwrap().1.len(), 2);
    assert_eq!(config::parse(config.as_bytes()).unwrap().diff_ids.len(), 2);
}
