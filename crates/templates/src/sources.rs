//! Debian archives as apt's configuration files name them: one-line lists and deb822 `.sources`.
//!
//! The base template is made from the archives that its host uses, so that a company mirror, a local
//! cache or a pinned snapshot is used without being told twice. Sources of other vendors are left out.

use std::{fmt::Write as _, path::PathBuf};

/// Who may have signed an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SignedBy {
    /// Keyring files, or fingerprints of keys that apt trusts.
    Named(Vec<String>),
    /// A public key written into the source itself: the lines after the field name.
    Inline(Vec<String>),
}

/// One entry of apt's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) uris: Vec<String>,
    pub(crate) suites: Vec<String>,
    pub(crate) components: Vec<String>,
    pub(crate) signed_by: Option<SignedBy>,
    /// The operator told apt to take this archive without a signature.
    pub(crate) trusted: bool,
}

/// Reads one-line sources (`deb [options] uri suite component...`). Lines that are not understood are
/// left out, as are `deb-src` and flat archives (suite ends in `/`).
pub(crate) fn parse_list(text: &str) -> Vec<Source> {
    text.lines().filter_map(parse_list_line).collect()
}

fn parse_list_line(line: &str) -> Option<Source> {
    let line = line.split('#').next().unwrap_or_default();
    let rest = line.trim().strip_prefix("deb")?;
    let mut rest = rest.strip_prefix([' ', '\t'])?.trim_start();
    let mut signed_by = None;
    let mut trusted = false;
    if let Some(options) = rest.strip_prefix('[') {
        let (options, after) = options.split_once(']')?;
        rest = after;
        for option in options.split_whitespace() {
            match option.split_once('=')? {
                ("signed-by", v) => {
                    signed_by = Some(SignedBy::Named(v.split(',').map(str::to_owned).collect()));
                }
                ("trusted", v) => trusted = yes(v),
                _ => {}
            }
        }
    }
    let mut words = rest.split_whitespace().map(str::to_owned);
    let uri = words
        .next()
        .filter(|u| u.contains(':') && !u.starts_with("cdrom:"))?;
    let suite = words.next().filter(|s| !s.ends_with('/'))?;
    let components: Vec<_> = words.collect();
    (!components.is_empty()).then_some(Source {
        uris: vec![uri],
        suites: vec![suite],
        components,
        signed_by,
        trusted,
    })
}

/// Reads deb822 sources: stanzas of `Field: value` with continuation lines. Stanzas that are disabled,
/// incomplete or not `deb` are left out.
pub(crate) fn parse_deb822(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut fields: Vec<(String, Vec<String>)> = Vec::new();
    // A blank line at the end closes the last stanza.
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            sources.extend(stanza(&std::mem::take(&mut fields)));
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, lines)) = fields.last_mut() {
                lines.push(line.trim().to_owned());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            fields.push((
                name.trim().to_ascii_lowercase(),
                vec![value.trim().to_owned()],
            ));
        }
    }
    sources
}

fn stanza(fields: &[(String, Vec<String>)]) -> Option<Source> {
    let lines = |name: &str| {
        fields
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, lines)| lines)
    };
    let words = |name: &str| -> Vec<String> {
        lines(name)
            .map(|l| {
                l.iter()
                    .flat_map(|l| l.split_whitespace())
                    .map(str::to_owned)
                    .collect()
            })
            .unwrap_or_default()
    };
    if !words("types").iter().any(|t| t == "deb") || words("enabled").iter().any(|e| !yes(e)) {
        return None;
    }
    let source = Source {
        uris: words("uris")
            .into_iter()
            .filter(|u| u.contains(':') && !u.starts_with("cdrom:"))
            .collect(),
        suites: words("suites")
            .into_iter()
            .filter(|s| !s.ends_with('/'))
            .collect(),
        components: words("components"),
        signed_by: lines("signed-by").map(|l| {
            if l.iter().any(|l| l.contains("BEGIN PGP")) {
                SignedBy::Inline(l.iter().filter(|l| !l.is_empty()).cloned().collect())
            } else {
                SignedBy::Named(words("signed-by"))
            }
        }),
        trusted: words("trusted").iter().any(|t| yes(t)),
    };
    (!source.uris.is_empty() && !source.suites.is_empty() && !source.components.is_empty())
        .then_some(source)
}

/// apt's idea of yes.
fn yes(word: &str) -> bool {
    matches!(
        word.to_ascii_lowercase().as_str(),
        "yes" | "true" | "with" | "on" | "enable" | "1"
    )
}

/// Keeps what is Debian's own archive for `suite`: the suite itself, its updates and its security
/// updates, component `main`. Empty if the suite itself is not among them.
///
/// Other vendors use Debian's suite names too. An entry signed by Debian's keyring, or one whose
/// address ends like Debian's (`.../debian`, `.../debian-security`), is Debian's; an entry with another
/// address and no key named may be a company mirror, and is used if there is nothing better.
pub(crate) fn debian_only(all: Vec<Source>, suite: &str) -> Vec<Source> {
    let mut sure = Vec::new();
    let mut maybe = Vec::new();
    for mut source in all {
        source.suites = source
            .suites
            .iter()
            .filter_map(|s| own_suite(s, suite))
            .collect();
        if source.suites.is_empty() || !source.components.iter().any(|c| c == "main") {
            continue;
        }
        source.components = vec!["main".to_owned()];
        let keyed_by_debian = matches!(&source.signed_by, Some(SignedBy::Named(names))
            if names.iter().any(|n| n.contains("debian-archive")));
        let named_debian = source.uris.iter().all(|uri| {
            let last = uri
                .trim_end_matches('/')
                .rsplit('/')
                .next()
                .unwrap_or_default();
            let last = last.split('?').next().unwrap_or_default();
            matches!(last, "debian" | "debian-security") || last.starts_with("debian-security")
        });
        if keyed_by_debian || named_debian {
            sure.push(source);
        } else if source.signed_by.is_none() {
            maybe.push(source);
        }
    }
    let has_suite =
        |sources: &[Source]| sources.iter().any(|s| s.suites.iter().any(|s| s == suite));
    if !has_suite(&sure) {
        sure.append(&mut maybe);
    }
    if has_suite(&sure) { sure } else { Vec::new() }
}

/// The name to use for a suite that belongs to `suite`, if it does. `stable` becomes the host's own
/// suite: the host is what it is even after `stable` moved on.
fn own_suite(name: &str, suite: &str) -> Option<String> {
    let tail = name
        .strip_prefix(suite)
        .or_else(|| name.strip_prefix("stable"))?;
    matches!(tail, "" | "-updates" | "-security" | "/updates").then(|| format!("{suite}{tail}"))
}

/// Writes sources in deb822 format. Without `credentials`, user names and passwords are left out of
/// the addresses: that form stays in the template, where every machine can read it.
pub(crate) fn render(sources: &[Source], credentials: bool) -> String {
    let mut out = String::new();
    for source in sources {
        let uris: Vec<_> = source
            .uris
            .iter()
            .map(|u| {
                if credentials {
                    u.clone()
                } else {
                    crate::progress::without_credentials(u)
                }
            })
            .collect();
        // Writing to a string cannot fail.
        let _ = writeln!(out, "Types: deb\nURIs: {}", uris.join(" "));
        let _ = writeln!(out, "Suites: {}", source.suites.join(" "));
        let _ = writeln!(out, "Components: {}", source.components.join(" "));
        match &source.signed_by {
            Some(SignedBy::Named(names)) => {
                let _ = writeln!(out, "Signed-By: {}", names.join(" "));
            }
            Some(SignedBy::Inline(lines)) => {
                let _ = writeln!(out, "Signed-By:\n {}", lines.join("\n "));
            }
            None => {}
        }
        if source.trusted {
            out.push_str("Trusted: yes\n");
        }
        out.push('\n');
    }
    out
}

/// The keyring files that the sources name.
pub(crate) fn keyrings(sources: &[Source]) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = sources
        .iter()
        .filter_map(|s| match &s.signed_by {
            Some(SignedBy::Named(names)) => Some(names),
            _ => None,
        })
        .flatten()
        .filter(|n| n.starts_with('/'))
        .map(PathBuf::from)
        .collect();
    files.sort();
    files.dedup();
    files
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STOCK: &str = "\
# a comment
Types: deb
# a comment inside
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
 bookworm-backports
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb deb-src
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
";

    #[test]
    fn deb822_stock() {
        let kept = debian_only(parse_deb822(STOCK), "bookworm");
        assert_eq!(kept.len(), 2);
        assert_eq!(kept[0].suites, ["bookworm", "bookworm-updates"]);
        assert_eq!(kept[0].components, ["main"]);
        assert_eq!(
            keyrings(&kept),
            [PathBuf::from(
                "/usr/share/keyrings/debian-archive-keyring.gpg"
            )]
        );
        assert_eq!(parse_deb822(&render(&kept, true)), kept);
    }

    #[test]
    fn other_vendors_are_left_out() {
        let lists = "
deb [arch=amd64 signed-by=/etc/apt/keyrings/h.gpg] https://apt.vendor.example bookworm main
deb [ signed-by=/k.gpg ] https://download.vendor.example/linux/debian bookworm stable
deb https://packages.vendor.example/apt cloud-bookworm main
deb [signed-by=/m.gpg] https://packages.vendor.example/debian/12/prod bookworm main
deb https://pg.vendor.example/repos/apt bookworm-pgdg main
deb-src http://mirror.example/debian bookworm main
deb cdrom:[Debian GNU/Linux 12]/ bookworm main
deb file:/srv/flat ./
";
        assert_eq!(debian_only(parse_list(lists), "bookworm"), []);
        let with = format!("{lists}deb http://mirror.example/debian stable main non-free # ours\n");
        let kept = debian_only(parse_list(&with), "bookworm");
        assert_eq!(kept.len(), 1);
        assert_eq!(kept[0].suites, ["bookworm"]);
    }

    #[test]
    fn a_company_mirror_serves_if_nothing_better_does() {
        let list = "deb https://u:p@repo.corp.example/apt-proxy/ bookworm main\n";
        let kept = debian_only(parse_list(list), "bookworm");
        assert_eq!(kept.len(), 1);
        assert!(render(&kept, true).contains("u:p@"));
        assert!(!render(&kept, false).contains("u:p"));
        let both = format!("{list}deb http://mirror.example/debian bookworm main\n");
        assert_eq!(
            debian_only(parse_list(&both), "bookworm")[0].uris,
            ["http://mirror.example/debian"]
        );
    }

    #[test]
    fn security_alone_is_not_a_suite() {
        let list = "deb http://mirror.example/debian-security bookworm-security main\n";
        assert_eq!(debian_only(parse_list(list), "bookworm"), []);
    }

    #[test]
    fn odd_stanzas() {
        for text in [
            "",
            "\n\n\n",
            "Types: deb",
            "Types: deb\nURIs: http://m.example/debian\nSuites: bookworm\n",
            "Types: deb\nURIs: nonsense\nSuites: bookworm\nComponents: main\n",
            "Enabled: no\nTypes: deb\nURIs: http://m.example/debian\nSuites: bookworm\nComponents: main\n",
            " continuation of nothing\n",
            "no colon here\n: no name\n",
            "Types: deb-src\nURIs: http://m.example/debian\nSuites: bookworm\nComponents: main\n",
        ] {
            assert_eq!(parse_deb822(text), [], "{text:?}");
        }
        let crlf = STOCK.replace('\n', "\r\n");
        assert_eq!(parse_deb822(&crlf), parse_deb822(STOCK));
    }

    #[test]
    fn an_inline_key_survives() {
        let text = "Types: deb\nURIs: http://m.example/debian\nSuites: bookworm\nComponents: main\n\
            Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc=\n -----END PGP PUBLIC KEY BLOCK-----\n";
        let kept = debian_only(parse_deb822(text), "bookworm");
        assert!(matches!(&kept[0].signed_by, Some(SignedBy::Inline(l)) if l.len() == 4));
        assert_eq!(parse_deb822(&render(&kept, true)), kept);
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "(?s).{0,400}") {
            parse_list(&text);
            let kept = debian_only(parse_deb822(&text), "bookworm");
            prop_assert!(kept.is_empty());
        }

        #[test]
        fn any_option_is_read(options in "[a-z=,/ \\]\\[]{0,40}") {
            parse_list(&format!("deb [{options}] http://m.example/debian bookworm main"));
        }
    }
}
