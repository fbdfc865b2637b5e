//! The native engine against the contract. Needs root; has its own launcher, subnet and directory.

use std::{path::PathBuf, process::Command};

use nullspace_engine::conformance;
use nullspace_engine_native::{Config, NativeEngine};

/// A small root file system: the host's shell tools, copied with the libraries they need.
fn layer(at: &std::path::Path) {
    let script = r#"
        set -e
        mkdir -p etc tmp root workspace proc sys dev mnt usr/bin usr/lib usr/lib64 usr/sbin
        ln -s usr/bin bin; ln -s usr/lib lib; ln -s usr/lib64 lib64; ln -s usr/sbin sbin
        chmod 1777 tmp
        echo 'root:x:0:0:root:/root:/bin/sh' > etc/passwd; echo 'root:x:0:' > etc/group
        for tool in sh cat head tr sleep hostname id ls grep mount mknod touch test mkdir rm echo kill; do
            path=$(command -v $tool) || continue
            case $path in /*) ;; *) path=/bin/$tool ;; esac
            [ -e $path ] || continue
            cp -L $path usr/bin/$tool
            ldd $path 2>/dev/null | grep -o '/[^ ]*' | while read library; do
                mkdir -p .$(dirname $library); cp -nL $library .$library
            done
        done
    "#;
    let made = Command::new("/bin/sh")
        .arg("-c")
        .arg(script)
        .current_dir(at)
        .status();
    assert!(
        made.is_ok_and(|status| status.success()),
        "the test layer is made"
    );
}

/// Leaves nothing behind, also when a check fails.
struct Cleanup(PathBuf);

impl Drop for Cleanup {
    fn drop(&mut self) {
        let _ = nullspace_engine_native::shutdown(&self.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keeps_the_contract() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: making native machines needs root");
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let lower = directory.path().join("layer");
    std::fs::create_dir(&lower).expect("a layer");
    layer(&lower);
    let config = Config {
        data_dir: directory.path().to_owned(),
        launcher: vec![env!("CARGO_BIN_EXE_nullspace-launcher").to_owned()],
        resolver: Vec::new(),
        ca_bundle: Some(PathBuf::from("/etc/ssl/certs/ca-certificates.crt")).filter(|p| p.exists()),
        spare: 2,
    };
    let _cleanup = Cleanup(directory.path().to_owned());
    let engine = NativeEngine::start(config)
        .await
        .expect("the engine starts");
    conformance::run(&engine, &[lower]).await;
}
