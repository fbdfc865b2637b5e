//! The layer that a machine writes to.
//!
//! ```text
//!  machines/<id>/fs         upper, work: where there is no limit to what may be in it
//!  machines/<id>/fs.image   the same in a file system of its own, where there is one; `fs` is empty then
//! ```
//! It is mounted in the machine's own view of the host alone. From outside it is looked at by [`crate::layer`].

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use nullspace_sys::{
    image::{self, Passing},
    mount::{Attributes, set_attributes},
};

use super::inside::{Common, Named, Step, attach, clone_path};
use crate::layer::{FILES, UPPER, WORK};

/// Mounts a new layer at `at`, with nothing in it but a place for what the overlay needs to work. Answers with the file system that it
/// has for itself, if it has one: to be abandoned when nobody needs it any more.
pub(super) fn mount(
    directory: &Path,
    limit: Option<u64>,
    common: &Common,
    at: &Path,
) -> Step<Option<Passing>> {
    let files = directory.join(FILES);
    fs::create_dir(&files).named("make the writable layer")?;
    let own = Attributes {
        no_dev: true,
        ..Attributes::default()
    };
    let disk = match (limit, &common.empty_images) {
        (Some(limit), Some(empty)) => Some(
            Passing::make(&files, limit, empty).named("make the writable layer's file system")?,
        ),
        _ => None,
    };
    match &disk {
        Some(disk) => set_attributes(&disk.mounted, own).and_then(|()| attach(&disk.mounted, at)),
        None => clone_path(&files, own).and_then(|tree| attach(&tree, at)),
    }
    .named("mount the writable layer")?;
    fs::create_dir(at.join(WORK)).named("make the writable layer")?;
    Ok(disk)
}

/// Fills one: empty but for `/etc/hosts`, so that the machine knows its own name without asking.
///
/// The overlay creates files as the one who mounts it, whom an id-mapped mount would not know: so this layer
/// holds the host's ids, and what is made here is given to the machine's root.
pub(super) fn fill(at: &Path, first_id: u32) -> io::Result<()> {
    let upper = at.join(UPPER);
    let etc = upper.join("etc");
    for path in [&upper, &etc] {
        fs::create_dir(path)?;
    }
    let hosts = etc.join("hosts");
    File::create(&hosts)?;
    for path in [&upper, &etc, &hosts] {
        std::os::unix::fs::chown(path, Some(first_id), Some(first_id))?;
    }
    Ok(())
}

/// Puts aside one that is not used after all, and is not mounted any more.
pub(super) fn put_aside(directory: &Path) -> Step<()> {
    let files = directory.join(FILES);
    let gone = |result: io::Result<()>| match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    gone(fs::remove_file(image::beside(&files)))
        .and_then(|()| gone(fs::rename(&files, directory.join("fs.unused"))))
        .named("put the unused writable layer aside")
}

/// Where empty images are kept, if this host can make any: found out by making one.
pub(super) fn empty_images(run: &Path) -> io::Result<std::path::PathBuf> {
    let empty = run.join("empty");
    // The host may have crashed while one was written.
    super::remove_all(&empty)?;
    fs::create_dir(&empty)?;
    let probe = run.join("probe");
    let _ = fs::remove_file(image::beside(&probe));
    let abandoned = Passing::make(&probe, 1 << 20, &empty)?.abandon();
    fs::remove_file(image::beside(&probe))?;
    abandoned.map(|()| empty)
}
