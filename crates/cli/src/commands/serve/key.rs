//! Where the key that a server makes at its first start goes, so that its own user can use it at once.
//!
//! Into this user's configuration, unless that is for another server: then into a file of its own beside it, and how to
//! use it is told. The record keeps only a hash, so this is the one place where the key can be read.

use std::net::SocketAddr;
use std::path::PathBuf;

use nullspace_client::config::{
    Config, DEFAULT_BASE_URL, Setting, Source, Surroundings, read_object, write_values,
};
use nullspace_server::KeySink;
use serde_json::Value;

use super::settings::Settings;
use crate::ui::Ui;

/// Keeps the key for this user.
pub(super) fn sink(ui: Ui, surroundings: Surroundings, settings: &Settings) -> KeySink {
    let (listen, data_dir) = (settings.listen, settings.data_dir.clone());
    Box::new(move |key| {
        let url = url_of(listen);
        let Some(main) = surroundings.xdg_config_file() else {
            let file = data_dir.join("keys").join("first.json");
            write_values(&file, &[("api_key", key), ("base_url", &url)])?;
            ui.note(format!("The API key is in {}", file.display()));
            return Ok(());
        };
        if is_for(&surroundings, &url) {
            let values = [("api_key", key), ("base_url", &url)];
            let is_default = same(&url, DEFAULT_BASE_URL);
            write_values(&main, &values[..if is_default { 1 } else { 2 }])?;
            ui.note(format!("The API key is in {}", main.display()));
            return Ok(());
        }
        let file = own_file(&main, &url);
        write_values(&file, &[("api_key", key), ("base_url", &url)])?;
        ui.note(format!(
            "The configuration of this user is for another server, so the API key is in {}",
            file.display()
        ));
        ui.note(format!(
            "Use it with NULLSPACE_API_URL={url} and NULLSPACE_API_KEY from that file."
        ));
        Ok(())
    })
}

/// The key in the file of its own that a server left for this address, unless a better place names one.
pub(crate) fn own_key(surroundings: &Surroundings, config: &Config) -> Option<Setting> {
    let given = config
        .api_key
        .as_ref()
        .is_some_and(|key| !matches!(key.source, Source::File { .. }));
    if given || is_for(surroundings, &config.base_url.value) && config.api_key.is_some() {
        return None;
    }
    let path = own_file(&surroundings.xdg_config_file()?, &config.base_url.value);
    let object = read_object(&path);
    let url = object.get("base_url").and_then(Value::as_str)?;
    let value = object.get("api_key").and_then(Value::as_str)?.to_owned();
    same(url, &config.base_url.value).then_some(Setting {
        value,
        source: Source::File {
            path,
            key: "api_key",
        },
    })
}

/// Whether the configuration files are for the server at `url`, or for none yet.
fn is_for(surroundings: &Surroundings, url: &str) -> bool {
    let files: Vec<_> = surroundings
        .config_files()
        .iter()
        .map(|path| read_object(path))
        .collect();
    let find = |key: &str| {
        files.iter().find_map(|object| {
            object
                .get(key)
                .and_then(Value::as_str)
                .map(str::trim)
                .filter(|v| !v.is_empty())
        })
    };
    match (
        find("base_url").or_else(|| find("api_url")),
        find("api_key"),
    ) {
        (Some(configured), _) => same(configured, url),
        (None, Some(_)) => same(DEFAULT_BASE_URL, url),
        (None, None) => true,
    }
}

fn own_file(main: &std::path::Path, url: &str) -> PathBuf {
    let port = url.rsplit(':').next().unwrap_or_default();
    main.with_file_name(format!("server-{port}.json"))
}

/// How clients on this host reach a server that listens here.
fn url_of(listen: SocketAddr) -> String {
    let host = match listen.ip() {
        ip if ip.is_unspecified() => "127.0.0.1".to_owned(),
        std::net::IpAddr::V6(ip) => format!("[{ip}]"),
        std::net::IpAddr::V4(ip) => ip.to_string(),
    };
    format!("http://{host}:{}", listen.port())
}

/// Whether two URLs are the same server; all names of the loopback are one.
fn same(a: &str, b: &str) -> bool {
    let plain = |url: &str| {
        let url = url.trim().trim_end_matches('/').to_lowercase();
        ["localhost", "[::1]"].iter().fold(url, |url, name| {
            url.replacen(&format!("//{name}"), "//127.0.0.1", 1)
        })
    };
    plain(a) == plain(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nullspace_client::config::Arguments;
    use std::collections::BTreeMap;

    struct World {
        _dir: tempfile::TempDir,
        surroundings: Surroundings,
    }

    impl World {
        fn new(config: Option<&str>) -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            let home = dir.path().display().to_string();
            let cwd = dir.path().join("cwd");
            let surroundings = Surroundings {
                env: BTreeMap::from([("HOME".to_owned(), home)]),
                cwd,
            };
            if let Some(config) = config {
                let file = surroundings.xdg_config_file().expect("a home");
                std::fs::create_dir_all(file.parent().expect("a parent")).expect("made");
                std::fs::write(file, config).expect("written");
            }
            Self {
                _dir: dir,
                surroundings,
            }
        }

        fn mint(&self, listen: &str) {
            let settings = Settings {
                ssh: nullspace_server::SshOptions::default(),
                preview_domain: None,
                metrics_addr: None,
                otlp_address: None,
                listen: listen.parse().expect("an address"),
                data_dir: self.surroundings.cwd.clone(),
                template_cache_dir: None,
                make_base: false,
                trust_host_certificates: false,
                isolation: Default::default(),
                spare_gvisor: 0,
                spare_machines: 0,
                log: String::new(),
                bootstrap_key: None,
                limits: nullspace_server::Config::default(),
                unknown: Vec::new(),
            };
            sink(Ui::new(true), self.surroundings.clone(), &settings)("minted").expect("kept");
        }

        /// Address and key that a client without arguments uses.
        fn resolved(&self) -> (String, Option<String>) {
            let config = self.surroundings.resolve(&Arguments::default());
            (config.base_url.value, config.api_key.map(|key| key.value))
        }
    }

    #[test]
    fn the_key_works_at_once() {
        let world = World::new(None);
        world.mint("127.0.0.1:3000");
        assert_eq!(
            world.resolved(),
            (DEFAULT_BASE_URL.to_owned(), Some("minted".to_owned()))
        );
        let world = World::new(None);
        world.mint("0.0.0.0:3100");
        assert_eq!(
            world.resolved(),
            (
                "http://127.0.0.1:3100".to_owned(),
                Some("minted".to_owned())
            )
        );
        // A key of a server of this address that is gone is of no use any more.
        let world = World::new(Some(r#"{"api_key": "old", "other": "x"}"#));
        world.mint("127.0.0.1:3000");
        assert_eq!(world.resolved().1.as_deref(), Some("minted"));
        let file = world.surroundings.xdg_config_file().expect("a home");
        assert_eq!(read_object(&file)["other"], "x");
    }

    #[test]
    fn the_key_of_another_server_stays() {
        let text = r#"{"api_key": "theirs", "base_url": "https://far.example"}"#;
        let world = World::new(Some(text));
        world.mint("127.0.0.1:3000");
        assert_eq!(
            world.resolved(),
            ("https://far.example".to_owned(), Some("theirs".to_owned()))
        );
        let arguments = Arguments {
            base_url: Some("http://localhost:3000".to_owned()),
            api_key: None,
        };
        let config = world.surroundings.resolve(&arguments);
        assert_eq!(
            own_key(&world.surroundings, &config)
                .map(|key| key.value)
                .as_deref(),
            Some("minted")
        );
        let config = world.surroundings.resolve(&Arguments::default());
        assert_eq!(own_key(&world.surroundings, &config), None);
    }
}
