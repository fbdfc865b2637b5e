//! Directories that a layer has members in and says nothing about.
//!
//! Some tools write `tmp/file` without `tmp/`. Such a directory is the one from below, with its owner, mode and time;
//! but an overlay shows the topmost, which is nobody's and 0755: `/tmp` would be closed for all but root. A layer is
//! shared by images that have different things below it, so it cannot hold the answer. What differs is said by one
//! more layer on top, which has these directories and nothing in them.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{FileType, Stat},
    io::Errno,
};
use sha2::{Digest, Sha256};

use crate::{
    Images, beneath,
    error::ImageError,
    limits::Allowance,
    store::{Claim, Expected, LayerTree},
};

/// What an overlay shows of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shown {
    mode: u32,
    uid: u32,
    gid: u32,
    seconds: i64,
    nanos: u32,
}

/// What one layer says about a path.
enum Said {
    Nothing,
    /// Nothing from below is there.
    Hidden,
    Directory {
        shown: Shown,
        /// Nothing from below is in it, or in one that it is in.
        opaque: bool,
    },
}

struct Layer {
    root: OwnedFd,
    implied: BTreeSet<Vec<u8>>,
}

impl Images {
    /// The layer that gives implied directories what they have below; none if there are no such. `trees` are base first.
    pub(crate) fn settle_implied(
        &self,
        trees: &[LayerTree],
    ) -> Result<Option<LayerTree>, ImageError> {
        if trees.iter().all(|tree| tree.facts.implied.is_empty()) {
            return Ok(None);
        }
        let mut layers = Vec::new();
        for tree in trees {
            let root = beneath::root(&tree.path).map_err(ImageError::file("open", &tree.path))?;
            let implied = tree.facts.implied.iter();
            let implied = implied.filter_map(|path| hex::decode(path).ok()).collect();
            layers.push(Layer { root, implied });
        }
        let archive =
            archive(&layers).map_err(ImageError::file("read", "the layers of an image"))?;
        if archive.is_empty() {
            return Ok(None);
        }
        let diff_id = hex::encode(Sha256::digest(&archive));
        match self.layers.claim_blocking(&diff_id)? {
            Claim::Kept(tree) => Ok(Some(tree)),
            Claim::Mine(building) => {
                let expected = Expected {
                    name: format!("sha256:{diff_id}"),
                    diff_id: Some(diff_id),
                    digest: None,
                };
                let allowance = Allowance::new(&self.limits);
                building
                    .unpack(&archive[..], &expected, &allowance)
                    .map(Some)
            }
        }
    }
}

/// The directories that are shown otherwise than they should be, and those that they are in; empty if there are none.
fn archive(layers: &[Layer]) -> io::Result<Vec<u8>> {
    let all: BTreeSet<&Vec<u8>> = layers.iter().flat_map(|layer| &layer.implied).collect();
    let mut wanted: BTreeMap<&[u8], Shown> = BTreeMap::new();
    for path in all {
        let Some((shown, true)) = merged(layers, path)? else {
            continue;
        };
        wanted.insert(path, shown);
        for (end, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            let above = &path[..end];
            if let Some((shown, _)) = merged(layers, above)? {
                wanted.insert(above, shown);
            }
        }
    }
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let mut out = tar::Builder::new(Vec::new());
    for (path, shown) in wanted {
        // Seconds before 1970 count backwards, their fraction forwards.
        let (sign, seconds, nanos) = match (shown.seconds, shown.nanos) {
            (seconds @ 0.., nanos) => ("", seconds.unsigned_abs(), nanos),
            (seconds, 0) => ("-", seconds.unsigned_abs(), 0),
            (seconds, nanos) => ("-", (seconds + 1).unsigned_abs(), 1_000_000_000 - nanos),
        };
        let mtime = format!("{sign}{seconds}.{nanos:09}");
        let (uid, gid) = (shown.uid.to_string(), shown.gid.to_string());
        out.append_pax_extensions([
            ("path", path),
            ("mtime", mtime.as_bytes()),
            ("uid", uid.as_bytes()),
            ("gid", gid.as_bytes()),
        ])?;
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_size(0);
        header.set_mode(shown.mode);
        header.set_cksum();
        out.append(&header, io::empty())?;
    }
    out.into_inner()
}

/// What is to be shown of a directory, and whether that is not the topmost's; none if it is not there.
fn merged(layers: &[Layer], path: &[u8]) -> io::Result<Option<(Shown, bool)>> {
    let mut implied = None;
    for layer in layers.iter().rev() {
        match layer.says(path)? {
            Said::Nothing => {}
            Said::Hidden => break,
            Said::Directory { shown, opaque } => {
                if !layer.implied.contains(path) {
                    return Ok(Some((shown, implied.is_some())));
                }
                implied.get_or_insert(shown);
                if opaque {
                    break;
                }
            }
        }
    }
    Ok(implied.map(|shown| (shown, false)))
}

impl Layer {
    fn says(&self, path: &[u8]) -> io::Result<Said> {
        let mut directory = beneath::directory(self.root.as_fd(), b"")?;
        let mut opaque = false;
        let mut last: Option<Stat> = None;
        for segment in path.split(|byte| *byte == b'/') {
            let stat = match beneath::stat(directory.as_fd(), segment) {
                Ok(stat) => stat,
                Err(Errno::NOENT) if opaque => return Ok(Said::Hidden),
                Err(Errno::NOENT) => return Ok(Said::Nothing),
                Err(e) => return Err(e.into()),
            };
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                return Ok(Said::Hidden);
            }
            directory = beneath::directory(directory.as_fd(), segment)?;
            opaque |= beneath::is_opaque(directory.as_fd())?;
            last = Some(stat);
        }
        Ok(last.map_or(Said::Nothing, |stat| Said::Directory {
            shown: Shown {
                mode: stat.st_mode & 0o7777,
                uid: stat.st_uid,
                gid: stat.st_gid,
                seconds: stat.st_mtime,
                nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
            },
            opaque,
        }))
    }
}
