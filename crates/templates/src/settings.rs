//! What a build takes over from the host: its Debian suite and archives, how it reaches package
//! registries, and whom it trusts.
//!
//! Nothing here comes from Nullspace itself: no registry or mirror is named in the code.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    TemplateError,
    progress::without_credentials,
    sources::{self, Source},
};

/// An apt source file of the operator's own, under the root directory, read instead of apt's
/// configuration: for hosts that are not Debian.
pub const OWN_SOURCES: &str = "etc/nullspace/debian.sources";

/// The suite for hosts that are not Debian.
const DEFAULT_SUITE: &str = "bookworm";

/// A configuration file larger than this is not one (1 MiB).
const MAX_CONFIG: u64 = 1 << 20;

/// Where certificate bundles are kept on the common distributions.
const CA_BUNDLES: [&str; 4] = [
    "etc/ssl/certs/ca-certificates.crt",
    "etc/pki/tls/certs/ca-bundle.crt",
    "etc/ssl/ca-bundle.pem",
    "etc/ssl/cert.pem",
];

/// The host as a build sees it. The root is `/` but in tests.
#[derive(Clone, Debug)]
pub(crate) struct HostSettings {
    root: PathBuf,
    env: BTreeMap<String, String>,
}

impl HostSettings {
    pub(crate) fn of_this_host() -> Self {
        Self {
            root: "/".into(),
            env: std::env::vars().collect(),
        }
    }

    /// The suite to build and the archives to build it from.
    pub(crate) fn suite_and_sources(&self) -> Result<(String, Vec<Source>), TemplateError> {
        if let Some(text) = self.text(OWN_SOURCES) {
            let own = sources::parse_deb822(&text);
            let suite = own
                .iter()
                .flat_map(|s| &s.suites)
                .find(|s| !s.contains('-') && !s.contains('/'))
                .cloned()
                .unwrap_or_else(|| DEFAULT_SUITE.to_owned());
            if !own.iter().any(|s| s.suites.contains(&suite)) {
                return Err(TemplateError::NoSources { suite });
            }
            return Ok((suite, own));
        }
        let suite = self.suite();
        let mut all = Vec::new();
        for path in self.apt_source_files() {
            let Some(text) = read_config(&path) else {
                continue;
            };
            all.extend(match path.extension().and_then(OsStr::to_str) {
                Some("sources") => sources::parse_deb822(&text),
                _ => sources::parse_list(&text),
            });
        }
        for source in &mut all {
            source.uris = source
                .uris
                .iter()
                .flat_map(|uri| self.mirrors(uri))
                .collect();
        }
        all.retain(|s| !s.uris.is_empty());
        let kept = sources::debian_only(all, &suite);
        if kept.is_empty() {
            Err(TemplateError::NoSources { suite })
        } else {
            Ok((suite, kept))
        }
    }

    /// The host's own suite if it is Debian.
    pub(crate) fn suite(&self) -> String {
        let Some(text) = self.text("etc/os-release") else {
            return DEFAULT_SUITE.into();
        };
        let value = |key: &str| {
            text.lines()
                .find_map(|l| l.trim().strip_prefix(key)?.strip_prefix('='))
                .map(|v| v.trim_matches(['"', '\'']).to_owned())
        };
        match (value("ID").as_deref(), value("VERSION_CODENAME")) {
            (Some("debian"), Some(codename)) if plain_word(&codename) => codename,
            _ => DEFAULT_SUITE.into(),
        }
    }

    fn apt_source_files(&self) -> Vec<PathBuf> {
        let apt = self.root.join("etc/apt");
        let mut files: Vec<PathBuf> = fs::read_dir(apt.join("sources.list.d"))
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|p| {
                matches!(
                    p.extension().and_then(OsStr::to_str),
                    Some("list" | "sources")
                )
            })
            .collect();
        files.sort();
        files.insert(0, apt.join("sources.list"));
        files
    }

    /// The addresses behind `uri`: itself, or those of the list that `mirror+file:` names. Such a list
    /// is on the host only, so it cannot be named inside the template.
    fn mirrors(&self, uri: &str) -> Vec<String> {
        let Some(path) = uri.strip_prefix("mirror+file:") else {
            return vec![uri.to_owned()];
        };
        let text = self.text(path.trim_start_matches('/')).unwrap_or_default();
        text.lines()
            .filter_map(|l| l.split(['#', '\t', ' ']).next())
            .filter(|u| u.contains("://"))
            .map(str::to_owned)
            .collect()
    }

    /// apt settings for reaching the archives (proxies, timeouts, date checks) as `key "value";` lines.
    pub(crate) fn apt_settings(&self) -> Vec<String> {
        // apt's configuration language has includes, nesting and comments: apt itself reads it best.
        // Without apt-config there is no mmdebstrap either, and the build says so.
        let Ok(out) = Command::new("apt-config").arg("dump").output() else {
            return Vec::new();
        };
        String::from_utf8_lossy(&out.stdout)
            .lines()
            .filter(|line| apt_setting_matters(line))
            .map(str::to_owned)
            .collect()
    }

    /// Environment for pip and apt in the build: proxies, and the host's pip settings as `PIP_*`. May
    /// hold credentials, so it is given to the build's processes and never written to the template.
    pub(crate) fn build_env(&self) -> BTreeMap<String, String> {
        let mut env = BTreeMap::new();
        for file in self.pip_files() {
            let Some(text) = read_config(&file) else {
                continue;
            };
            for (key, value) in pip_settings(&text) {
                env.insert(
                    format!("PIP_{}", key.to_ascii_uppercase().replace('-', "_")),
                    value,
                );
            }
        }
        for (key, value) in &self.env {
            let pip = key
                .strip_prefix("PIP_")
                .map(|k| k.to_ascii_lowercase().replace('_', "-"));
            let proxy = matches!(
                key.to_ascii_lowercase().as_str(),
                "http_proxy" | "https_proxy" | "all_proxy" | "no_proxy" | "ftp_proxy"
            );
            if proxy || pip.is_some_and(|key| pip_setting_matters(&key, value)) {
                env.insert(key.clone(), value.clone());
            }
        }
        env
    }

    fn pip_files(&self) -> Vec<PathBuf> {
        let mut files = vec![
            self.root.join("etc/pip.conf"),
            self.root.join("etc/xdg/pip/pip.conf"),
        ];
        if let Some(home) = self.env.get("HOME") {
            let home = self.root.join(home.trim_start_matches('/'));
            files.extend([
                home.join(".pip/pip.conf"),
                home.join(".config/pip/pip.conf"),
            ]);
        }
        if let Some(file) = self.env.get("PIP_CONFIG_FILE") {
            files.push(self.root.join(file.trim_start_matches('/')));
        }
        files
    }

    /// The host's certificate bundle: companies add their own authorities to it.
    pub(crate) fn ca_bundle(&self) -> Option<PathBuf> {
        let named = ["PIP_CERT", "SSL_CERT_FILE"]
            .iter()
            .filter_map(|key| self.env.get(*key))
            .map(|path| path.trim_start_matches('/'));
        named
            .chain(CA_BUNDLES)
            .map(|path| self.root.join(path))
            .find(|path| path.is_file())
    }

    fn text(&self, path: &str) -> Option<String> {
        read_config(&self.root.join(path))
    }
}

/// A configuration file's text, with what is not UTF-8 replaced; none if it is not a readable regular
/// file of at most 1 MiB.
fn read_config(path: &Path) -> Option<String> {
    let meta = fs::metadata(path).ok()?;
    if !meta.is_file() || meta.len() > MAX_CONFIG {
        return None;
    }
    Some(String::from_utf8_lossy(&fs::read(path).ok()?).into_owned())
}

fn plain_word(word: &str) -> bool {
    !word.is_empty()
        && word.len() <= 32
        && word
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
}

fn apt_setting_matters(line: &str) -> bool {
    let Some((key, value)) = line.split_once(' ') else {
        return false;
    };
    let key = key.to_ascii_lowercase();
    let wanted = matches!(
        key.as_str(),
        "acquire::check-valid-until"
            | "acquire::check-date"
            | "acquire::retries"
            | "acquire::queue-mode"
    ) || ["acquire::http::", "acquire::https::"].iter().any(|p| {
        key.strip_prefix(p).is_some_and(|k| {
            [
                "proxy",
                "timeout",
                "cainfo",
                "verify-peer",
                "verify-host",
                "pipeline-depth",
            ]
            .iter()
            .any(|w| k == *w || k.ends_with(&format!("::{w}")) || k.starts_with(&format!("{w}::")))
        })
    });
    wanted && value != "\"\";"
}

/// Which of the host's apt settings stay in the template: those without credentials and without a path
/// or address that means something on the host alone.
pub(crate) fn apt_settings_to_keep(settings: &[String]) -> Vec<&String> {
    settings
        .iter()
        .filter(|line| {
            let lower = line.to_ascii_lowercase();
            **line == without_credentials(line)
                && !lower.contains("cainfo")
                && !["localhost", "127.", "[::1]"]
                    .iter()
                    .any(|h| lower.contains(h))
        })
        .collect()
}

/// The settings of a `pip.conf` that say how to reach a registry.
fn pip_settings(text: &str) -> Vec<(String, String)> {
    let mut wanted = false;
    let mut out: Vec<(String, String)> = Vec::new();
    let mut open = false;
    for line in text.lines() {
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with(['#', ';']) {
            continue;
        }
        if let Some(section) = trimmed.strip_prefix('[') {
            wanted = matches!(section.trim_end_matches(']'), "global" | "install");
            open = false;
        } else if line.starts_with([' ', '\t']) && open {
            if let Some((_, value)) = out.last_mut() {
                *value = format!("{value} {trimmed}").trim().to_owned();
            }
        } else if let Some((key, value)) = trimmed.split_once(['=', ':']) {
            open = wanted;
            if wanted {
                out.push((
                    key.trim().to_ascii_lowercase().replace('_', "-"),
                    value.trim().to_owned(),
                ));
            }
        }
    }
    out.retain(|(key, value)| pip_setting_matters(key, value));
    out
}

fn pip_setting_matters(key: &str, value: &str) -> bool {
    match key {
        "index-url" | "extra-index-url" | "trusted-host" | "proxy" | "timeout"
        | "default-timeout" | "retries" | "no-index" => !value.is_empty(),
        // A directory of the host does not exist inside the new root.
        "find-links" => value.contains("://"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(files: &[(&str, &str)], env: &[(&str, &str)]) -> (tempfile::TempDir, HostSettings) {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let env = env
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        let host = HostSettings {
            root: dir.path().to_owned(),
            env,
        };
        (dir, host)
    }

    const DEBIAN_13: &str = "ID=debian\nVERSION_CODENAME=trixie\n";

    #[test]
    fn the_hosts_suite_and_archive() {
        let (_dir, host) = host(
            &[
                ("etc/os-release", DEBIAN_13),
                (
                    "etc/apt/sources.list",
                    "deb http://mirror.example/debian trixie main\n",
                ),
                (
                    "etc/apt/sources.list.d/debian.sources",
                    "Types: deb\nURIs: mirror+file:///etc/apt/mirrors/debian.list\nSuites: trixie-updates\n\
                     Components: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n",
                ),
                (
                    "etc/apt/mirrors/debian.list",
                    "# mirrors\nhttp://a.example/debian\tpriority:1\n",
                ),
                (
                    "etc/apt/sources.list.d/old.list.disabled",
                    "deb http://old.example/debian trixie main\n",
                ),
            ],
            &[],
        );
        let (suite, sources) = host.suite_and_sources().unwrap();
        assert_eq!(suite, "trixie");
        assert_eq!(
            sources
                .iter()
                .map(|s| s.uris[0].as_str())
                .collect::<Vec<_>>(),
            ["http://mirror.example/debian", "http://a.example/debian"]
        );
    }

    #[test]
    fn no_archive_is_an_error_with_a_hint() {
        let (_dir, host) = host(
            &[("etc/os-release", "ID=ubuntu\nVERSION_CODENAME=noble\n")],
            &[],
        );
        let err = host.suite_and_sources().unwrap_err();
        assert!(matches!(&err, TemplateError::NoSources { suite } if suite == "bookworm"));
        assert!(err.hint().unwrap().contains(OWN_SOURCES));
    }

    #[test]
    fn the_operators_own_source_comes_first() {
        let (_dir, host) = host(
            &[
                ("etc/os-release", DEBIAN_13),
                (
                    "etc/apt/sources.list",
                    "deb http://mirror.example/debian trixie main\n",
                ),
                (
                    OWN_SOURCES,
                    "Types: deb\nURIs: http://o.example/x\nSuites: sid\nComponents: main\n",
                ),
            ],
            &[],
        );
        let (suite, sources) = host.suite_and_sources().unwrap();
        assert_eq!(
            (suite.as_str(), sources[0].uris[0].as_str()),
            ("sid", "http://o.example/x")
        );
    }

    #[test]
    fn odd_files_are_passed_over() {
        let huge = "#".repeat(2 << 20);
        let (dir, host) = host(
            &[
                ("etc/os-release", "ID=debian\nVERSION_CODENAME=../../etc\n"),
                ("etc/apt/sources.list", &huge),
                ("etc/apt/sources.list.d/dir.list/file", ""),
            ],
            &[],
        );
        std::os::unix::fs::symlink(
            "loop.list",
            dir.path().join("etc/apt/sources.list.d/loop.list"),
        )
        .unwrap();
        fs::write(
            dir.path().join("etc/apt/sources.list.d/x.list"),
            [0xff, 0xfe, b'\n', 0],
        )
        .unwrap();
        assert_eq!(host.suite(), "bookworm");
        assert!(host.suite_and_sources().is_err());
    }

    #[test]
    fn pip_settings_are_taken_over() {
        let (_dir, host) = host(
            &[
                (
                    "etc/pip.conf",
                    "[global]\nindex-url = https://u:p@i.example/simple\nno-cache-dir = true\n",
                ),
                (
                    "home/me/.config/pip/pip.conf",
                    "[install]\nextra_index_url =\n  https://a.example\n  https://b.example\n[list]\nproxy=x\n",
                ),
            ],
            &[
                ("HOME", "/home/me"),
                ("PIP_FIND_LINKS", "/opt/wheels"),
                ("PIP_TIMEOUT", "9"),
                ("PIP_TARGET", "/x"),
                ("https_proxy", "http://p.example:3128"),
                ("DATABASE_URL", "secret"),
            ],
        );
        let env = host.build_env();
        assert_eq!(env["PIP_INDEX_URL"], "https://u:p@i.example/simple");
        assert_eq!(
            env["PIP_EXTRA_INDEX_URL"],
            "https://a.example https://b.example"
        );
        assert_eq!(
            env.keys().map(String::as_str).collect::<Vec<_>>(),
            [
                "PIP_EXTRA_INDEX_URL",
                "PIP_INDEX_URL",
                "PIP_TIMEOUT",
                "https_proxy"
            ]
        );
    }

    #[test]
    fn apt_settings_with_credentials_do_not_stay() {
        let settings: Vec<String> = [
            "Acquire::Check-Date \"false\";",
            "Acquire::http::Proxy \"http://u:p@proxy.example:3128\";",
            "Acquire::http::Proxy::mirror.example \"DIRECT\";",
            "Acquire::https::Proxy \"http://127.0.0.1:3142\";",
            "Acquire::http::Proxy \"\";",
            "Acquire::cdrom::mount \"/media\";",
            "APT::Default-Release \"x\";",
        ]
        .iter()
        .filter(|l| apt_setting_matters(l))
        .map(|l| (*l).to_owned())
        .collect();
        assert_eq!(settings.len(), 4);
        assert_eq!(
            apt_settings_to_keep(&settings),
            [
                "Acquire::Check-Date \"false\";",
                "Acquire::http::Proxy::mirror.example \"DIRECT\";"
            ]
        );
    }

    #[test]
    fn the_bundle_that_the_environment_names() {
        let (dir, host) = host(
            &[
                ("etc/ssl/certs/ca-certificates.crt", "a"),
                ("opt/corp.pem", "b"),
            ],
            &[("SSL_CERT_FILE", "/opt/corp.pem")],
        );
        assert_eq!(host.ca_bundle(), Some(dir.path().join("opt/corp.pem")));
    }
}
