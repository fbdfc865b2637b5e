//! Manifests: what is accepted names nothing outside the project.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nullspace_project::Manifest;

fuzz_target!(|bytes: &[u8]| {
    let Ok(mut manifest) = serde_json::from_slice::<Manifest>(bytes) else {
        return;
    };
    manifest.bundle_digest = manifest.derive_bundle_digest();
    if manifest.validate().is_ok() {
        for entry in manifest.included() {
            let mut segments = entry.path.split('/');
            assert!(segments.all(|s| !matches!(s, "" | "." | "..")), "{entry:?}");
        }
    }
});
