//! What is asked of the server itself: by machines through their files, by archives, by those who have a token of something else.

use std::{
    io::Write as _,
    net::{SocketAddr, TcpStream},
    path::Path,
    time::Duration,
};

use nullspace_project::{AgentConfig, Bundle};
use serde_json::{Value, json};

use super::{
    How, Row,
    inside::PORT,
    place::{AT, Place, text},
    probes::Group,
    strangers,
};
use crate::error::CliError;

/// How long a connection of ours may take.
const LIMIT: Duration = Duration::from_secs(10);

/// The machine that attacks, the one that is attacked with what it tells, and a file of the host with what is in it.
pub(super) struct Scene<'a> {
    pub(super) place: &'a Place,
    pub(super) attacker: &'a str,
    pub(super) victim: &'a str,
    pub(super) told: &'a str,
    pub(super) marker: &'a Path,
    pub(super) secret: &'a str,
}

pub(super) async fn all(scene: &Scene<'_>) -> Result<Vec<Row>, CliError> {
    let mut rows = Vec::new();
    scene.files(&mut rows).await?;
    scene.archives(&mut rows).await?;
    scene.keys(&mut rows).await?;
    scene.host_names(&mut rows).await?;
    rows.extend(strangers::all(scene).await?);
    Ok(rows)
}

pub(super) fn row(name: &str, what: &str, how: How) -> Row {
    Row {
        group: Group::Doors,
        name: name.to_owned(),
        what: what.to_owned(),
        how,
    }
}

impl Scene<'_> {
    /// Stopped unless the host's secret is in the answer.
    fn looked(&self, (status, answer): &(u16, Value)) -> How {
        match answer.to_string().contains(self.secret) {
            true => How::Open("the host's file was answered".into()),
            false => How::Stopped(said(*status, answer)),
        }
    }

    /// Links that lead to the host's files, followed by the server for who has put them there.
    async fn files(&self, rows: &mut Vec<Row>) -> Result<(), CliError> {
        let place = self.place;
        let marker = self.marker.display();
        let outside = self.marker.parent().unwrap_or(Path::new("/")).display();
        let links = format!(
            "ln -s {marker} /tmp/out; ln -s {outside} /tmp/outside; ln -s {marker} {AT}/out; ln -s {outside} {AT}/outside"
        );
        place.shell(self.attacker, &links, 30).await?;
        let machine = format!("/v1/machines/{}", self.attacker);
        let volume = format!("/v1/volumes/{}", place.volume());
        let what = "a file of the host, read by the server";
        for (name, owner, path) in [
            ("link_in_machine", &machine, "/tmp/out".to_owned()),
            ("link_in_volume", &volume, "/out".to_owned()),
            (
                "dots_in_machine",
                &machine,
                format!("/tmp/../../../../../..{marker}"),
            ),
            (
                "dots_in_volume",
                &volume,
                format!("/../../../../../..{marker}"),
            ),
        ] {
            let read = json!({"path": path});
            let answer = place.try_post(&format!("{owner}/files/read"), read).await?;
            rows.push(row(name, what, self.looked(&answer)));
        }
        let what = "a file on the host, written by the server";
        for (name, owner, path) in [
            ("write_in_machine", &machine, "/tmp/outside/written"),
            ("write_in_volume", &volume, "/outside/written"),
        ] {
            let path = format!("{owner}/file?path={path}");
            let (status, answer) = place.put(&path, b"x".to_vec(), None).await?;
            let written = self.marker.with_file_name("written");
            let how = match written.exists() {
                true => How::Open("it is there".into()),
                false => How::Stopped(said(status, &answer)),
            };
            rows.push(row(name, what, how));
        }
        let part =
            json!({"ref": "probe", "mount_path": "/part", "subpath": "outside", "read_only": true});
        let (status, answer) = place.try_post(&format!("{machine}/volumes"), part).await?;
        let seen = place.shell(self.attacker, "cat /part/marker", 30).await?;
        let how = match seen.to_string().contains(self.secret) {
            true => How::Open("the host's directory was mounted".into()),
            false => How::Stopped(said(status, &answer)),
        };
        rows.push(row(
            "part_of_volume",
            "a directory of the host, mounted",
            how,
        ));
        Ok(())
    }

    /// Archives of agents with members that lead out of where they are unpacked.
    async fn archives(&self, rows: &mut Vec<Row>) -> Result<(), CliError> {
        let outside = self.marker.with_file_name("unpacked");
        let absolute = outside.display().to_string();
        let up = format!("{}{absolute}", "../".repeat(16).trim_end_matches('/'));
        let what = "a file on the host, unpacked by the server";
        for (name, members) in [
            ("archive_dots", vec![(up, Member::File)]),
            ("archive_absolute", vec![(absolute.clone(), Member::File)]),
            (
                "archive_link",
                vec![
                    ("way".to_owned(), Member::Link(parent(&outside))),
                    ("way/unpacked".to_owned(), Member::File),
                ],
            ),
            (
                "archive_hard_link",
                vec![(
                    "way".to_owned(),
                    Member::HardLink(self.marker.display().to_string()),
                )],
            ),
            ("archive_device", vec![("way".to_owned(), Member::Device)]),
        ] {
            let (status, answer) = self.upload(name, &members).await?;
            let how = if outside.exists() || self.is_linked() {
                How::Open("it is there".into())
            } else if (200..300).contains(&status) {
                How::Open("it was taken".into())
            } else {
                How::Stopped(said(status, &answer))
            };
            let _ = std::fs::remove_file(&outside);
            rows.push(row(name, what, how));
        }
        Ok(())
    }

    fn is_linked(&self) -> bool {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(self.marker).is_ok_and(|meta| meta.nlink() > 1)
    }

    async fn upload(
        &self,
        name: &str,
        members: &[(String, Member)],
    ) -> Result<(u16, Value), CliError> {
        let project =
            tempfile::tempdir().map_err(|error| CliError::local("make a project", &error))?;
        std::fs::write(project.path().join("main.sh"), "true\n")
            .map_err(|error| CliError::local("make a project", &error))?;
        let broken = |error: &dyn std::fmt::Display| {
            CliError::new("local_error", format!("make a bundle: {error}"))
        };
        let text_of = format!(
            "name = '{}'\ntemplate = 'host'\nentrypoint = 'true'\n",
            name.replace('_', "-")
        );
        let config = AgentConfig::from_toml(&text_of).map_err(|error| broken(&error))?;
        let bundle = Bundle::build(project.path(), &config).map_err(|error| broken(&error))?;
        let made = json!({"name": name.replace('_', "-"), "mode": "job"});
        let made = self.place.post("/v1/agent-deployments", made).await?;
        let base = format!("/v1/agent-deployments/{}/versions", text(&made, "id")?);
        let digest = &bundle.manifest().bundle_digest;
        let request = json!({
            "bundle_digest": digest, "bundle_manifest": bundle.manifest(), "config": config.to_wire(),
        });
        let version = self.place.post(&base, request).await?;
        let archive = archive(members).map_err(|error| broken(&error))?;
        let path = format!("{base}/{}/bundle", text(&version, "id")?);
        self.place.put(&path, archive, Some(digest)).await
    }

    /// What opens one thing, tried on another.
    async fn keys(&self, rows: &mut Vec<Row>) -> Result<(), CliError> {
        let api = self.api()?;
        let path = format!("/v1/machines/{}", self.victim);
        for (name, key, what) in [
            ("no_key", "", "a machine, without a key"),
            (
                "made_up_key",
                "authorization: Bearer ns_live_0000000000000000000000000000000000000000\r\n",
                "a machine, with a key that is none",
            ),
        ] {
            let answer = raw(
                api,
                &format!("GET {path} HTTP/1.1\r\nhost: {api}\r\n{key}connection: close\r\n\r\n"),
            )?;
            rows.push(row(name, what, refused(&answer, self.victim)));
        }
        Ok(())
    }

    /// Whoever has a token for one machine's port asks for another's; whoever has none spells the port's name in another way.
    async fn host_names(&self, rows: &mut Vec<Row>) -> Result<(), CliError> {
        let api = self.api()?;
        let signed = async |machine: &str| {
            let path = format!("/v1/machines/{machine}/ports/{PORT}/signed-preview-url");
            let made = self.place.post(&path, json!({})).await?;
            let url = text(&made, "url")?;
            let parts = url.trim_start_matches("http://").split_once("/?");
            let parts = parts.map(|(host, query)| (host.to_owned(), query.to_owned()));
            parts.ok_or_else(|| {
                CliError::new("local_error", format!("a preview without a token: {url}"))
            })
        };
        let (host, own) = signed(self.victim).await?;
        let (_, other) = signed(self.attacker).await?;
        let get = |target: &str, hosts: &str| {
            raw(
                api,
                &format!("GET {target} HTTP/1.1\r\n{hosts}connection: close\r\n\r\n"),
            )
        };
        let named = |host: &str| format!("host: {host}\r\n");
        let control = get(&format!("/?{own}"), &named(&host))?;
        let works = control.contains(self.told);
        let what = "another machine's port";
        let dotted = format!("{host}.");
        let tries = [
            ("token_of_another", format!("/?{other}"), named(&host)),
            (
                "token_that_was_cut",
                format!("/?{}", &own[..own.len() - 4]),
                named(&host),
            ),
            ("no_token", "/".to_owned(), named(&host)),
            (
                "host_in_capitals",
                "/".to_owned(),
                named(&host.to_uppercase()),
            ),
            ("host_with_dot", "/".to_owned(), named(&dotted)),
            (
                "host_twice",
                "/".to_owned(),
                format!("{}{}", named(&api.to_string()), named(&host)),
            ),
            (
                "host_in_target",
                format!("http://{host}/"),
                named(&api.to_string()),
            ),
            (
                "host_with_user",
                "/".to_owned(),
                named(&format!("x@{host}")),
            ),
            (
                "host_with_space",
                "/".to_owned(),
                format!("host : {host}\r\n"),
            ),
            (
                "host_forwarded",
                "/".to_owned(),
                format!("{}x-forwarded-host: {host}\r\n", named(&api.to_string())),
            ),
        ];
        for (name, target, hosts) in tries {
            let how = match works {
                true => refused(&get(&target, &hosts)?, self.told),
                false => {
                    let first = control.lines().next().unwrap_or("nothing");
                    How::NotTried(format!("its own token does not open it either: {first}"))
                }
            };
            rows.push(row(name, what, how));
        }
        Ok(())
    }

    fn api(&self) -> Result<SocketAddr, CliError> {
        let address = self.place.base().trim_start_matches("http://");
        address
            .parse()
            .map_err(|error| CliError::new("local_error", format!("{address}: {error}")))
    }
}

/// Stopped unless the answer has in it what it should not.
fn refused(answer: &str, secret: &str) -> How {
    let first = answer.lines().next().unwrap_or("the connection was closed");
    match answer.contains(secret) {
        true => How::Open(first.to_owned()),
        false => How::Stopped(first.trim_start_matches("HTTP/1.1 ").to_owned()),
    }
}

/// An answer's status, with its code if it is a refusal.
pub(super) fn said(status: u16, answer: &Value) -> String {
    match answer["code"].as_str() {
        Some(code) => format!("{status} {code}"),
        None => status.to_string(),
    }
}

fn parent(path: &Path) -> String {
    path.parent()
        .unwrap_or(Path::new("/"))
        .display()
        .to_string()
}

/// Bytes as they are, because no library would send some of them.
fn raw(address: SocketAddr, request: &str) -> Result<String, CliError> {
    let work = || -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        // A connection that is broken off has answered what it had to.
        let _ = std::io::Read::read_to_end(&mut stream, &mut answer);
        Ok(answer)
    };
    let answer = work().map_err(|error| CliError::local("ask the server", &error))?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

enum Member {
    File,
    Link(String),
    HardLink(String),
    Device,
}

/// An archive with members of any name.
fn archive(members: &[(String, Member)]) -> std::io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, member) in members {
        let mut header = tar::Header::new_gnu();
        // The library has its own opinion about names.
        let place = &mut header.as_old_mut().name;
        let length = name.len().min(place.len() - 1);
        place[..length].copy_from_slice(&name.as_bytes()[..length]);
        header.set_mode(0o644);
        let mut content: &[u8] = &[];
        match member {
            Member::File => content = b"x",
            Member::Link(_) => header.set_entry_type(tar::EntryType::Symlink),
            Member::HardLink(_) => header.set_entry_type(tar::EntryType::Link),
            Member::Device => header.set_entry_type(tar::EntryType::Block),
        }
        if let Member::Link(target) | Member::HardLink(target) = member {
            let place = &mut header.as_old_mut().linkname;
            let length = target.len().min(place.len() - 1);
            place[..length].copy_from_slice(&target.as_bytes()[..length]);
        }
        header.set_size(content.len() as u64);
        header.set_cksum();
        tar.append(&header, content)?;
    }
    tar.into_inner()
}
