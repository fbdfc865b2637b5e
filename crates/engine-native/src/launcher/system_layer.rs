//! The layer that lies over every template: names and certificates as this host has them.
//!
//! It is one read-only tree for all machines, so it costs a machine nothing; a machine that changes one of
//! these files changes its own copy.

use std::{
    collections::BTreeMap,
    fs, io,
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use crate::wire::LauncherConfig;

/// Makes the layer (or finds it made) and returns its path. It is named by its content.
pub(super) fn make(config: &LauncherConfig, gateway: Ipv4Addr) -> io::Result<PathBuf> {
    let mut files: Vec<(&str, Vec<u8>)> = vec![
        ("etc/resolv.conf", resolv_conf(gateway).into_bytes()),
        ("etc/hosts", hosts(None).into_bytes()),
    ];
    if let Some(bundle) = &config.ca_bundle {
        files.push((crate::CA_BUNDLE.trim_start_matches('/'), fs::read(bundle)?));
    }
    let mut hash = Sha256::new();
    for (path, content) in &files {
        hash.update(path.as_bytes());
        hash.update(content.len().to_be_bytes());
        hash.update(content);
    }
    let layers = config.data_dir.join("layers");
    let place = layers.join(format!("system-{}", hex::encode(&hash.finalize()[..16])));
    if place.is_dir() {
        return Ok(place);
    }
    let building = layers.join(format!(".building-system-{}", std::process::id()));
    let _ = fs::remove_dir_all(&building);
    for (path, content) in &files {
        let path = building.join(path);
        make_dirs(&building, path.parent().unwrap_or(&building))?;
        fs::write(&path, content)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
    }
    match fs::rename(&building, &place) {
        Ok(()) => Ok(place),
        // Another process made the same tree meanwhile.
        Err(_) if place.is_dir() => fs::remove_dir_all(&building).map(|()| place),
        Err(error) => Err(error),
    }
}

/// `/etc/resolv.conf`.
fn resolv_conf(gateway: Ipv4Addr) -> String {
    format!("nameserver {gateway}\noptions timeout:3 attempts:3\n")
}

/// The files that a machine which goes on from a checkpoint may have to change, by absolute path.
pub(crate) fn files(hostname: &str, gateway: Option<Ipv4Addr>) -> BTreeMap<String, String> {
    let hosts = ("/etc/hosts".to_owned(), hosts(Some(hostname)));
    let names = gateway.map(|it| ("/etc/resolv.conf".to_owned(), resolv_conf(it)));
    [hosts].into_iter().chain(names).collect()
}

/// `/etc/hosts`, with a machine's own name in it if one is given. The name has an address of either kind:
/// look-ups that ask for one kind only would go on to the name server otherwise.
pub(super) fn hosts(own: Option<&str>) -> String {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    if let Some(name) = own {
        text.push_str(&format!("127.0.1.1\t{name}\n::1\t{name}\n"));
    }
    text
}

fn make_dirs(top: &Path, path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    for directory in path.ancestors().take_while(|p| p.starts_with(top)) {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}
