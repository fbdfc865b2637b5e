//! Unpacks the archive of a root file system, and has `tar -x` do the same, in turns, each until it is on disk.
//!
//! `cargo run --release -p nullspace-image --example unpack ARCHIVE [ROUNDS]`, as root.

#![allow(clippy::unwrap_used)]

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use nullspace_image::{Images, Limits, Registries};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let archive = arguments.next().expect("the path of an archive");
    let rounds: usize = arguments.next().map_or(5, |n| n.parse().expect("a number"));
    let directory = tempfile::tempdir_in(".").unwrap();
    let (mut ours, mut tars) = (Vec::new(), Vec::new());
    for round in 0..=rounds {
        let at = directory.path().join("ours");
        let images = Images::open(&at, Registries::default(), Limits::default()).unwrap();
        let start = Instant::now();
        images
            .from_rootfs_archive(Path::new(&archive), &|_| {})
            .unwrap();
        let took = start.elapsed();
        std::fs::remove_dir_all(&at).unwrap();

        let at = directory.path().join("tar");
        std::fs::create_dir(&at).unwrap();
        let start = Instant::now();
        let script = "tar --numeric-owner --xattrs -xf \"$0\" -C \"$1\" && sync -f \"$1\"";
        let tar = Command::new("sh")
            .args(["-c", script, &archive])
            .arg(&at)
            .status();
        let tar_took = start.elapsed();
        assert!(tar.unwrap().success());
        std::fs::remove_dir_all(&at).unwrap();
        // The first of each warms caches.
        if round > 0 {
            ours.push(took);
            tars.push(tar_took);
        }
    }
    let (ours, tar) = (median(ours), median(tars));
    let ratio = ours.as_secs_f64() / tar.as_secs_f64();
    println!("ours {ours:.2?}, tar {tar:.2?}, ratio {ratio:.2}");
}

fn median(mut all: Vec<Duration>) -> Duration {
    all.sort_unstable();
    all[all.len() / 2]
}
