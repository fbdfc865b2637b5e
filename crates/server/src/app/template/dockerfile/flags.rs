//! `--name=value` before the words of an instruction.

use nullspace_api::template::Mode;

use super::{Wrong, lines::Line, words};
use crate::app::template::program::{CacheUse, SecretUse};

/// The flags of a line, and what follows them.
pub(super) fn take(line: &Line) -> (Vec<(String, String)>, &str) {
    let mut flags = Vec::new();
    let mut rest = line.rest.as_str();
    while let Some(flag) = rest.strip_prefix("--") {
        let end = flag.find(char::is_whitespace).unwrap_or(flag.len());
        let (flag, after) = flag.split_at(end);
        let (name, value) = flag.split_once('=').unwrap_or((flag, ""));
        flags.push((name.to_ascii_lowercase(), value.to_owned()));
        rest = after.trim_start();
    }
    (flags, rest)
}

/// A flag that is not known, or has a value that is not.
pub(super) fn unknown(line: &Line, name: &str) -> Wrong {
    Wrong::at(
        line.number,
        format!("{} --{name}: this server cannot do this", line.keyword),
    )
}

/// Permission bits.
pub(super) fn mode(line: &Line, value: &str) -> Result<u32, Wrong> {
    Mode::Text(value.to_owned()).bits().ok_or_else(|| {
        Wrong::at(
            line.number,
            format!("--chmod={value}: must be octal digits up to 7777"),
        )
    })
}

/// What a `--mount` asks for.
pub(super) enum Mount {
    Secret(SecretUse),
    Cache(CacheUse),
}

/// Reads a `--mount`.
pub(super) fn mount(line: &Line, value: &str) -> Result<Mount, Wrong> {
    let fields: Vec<(String, String)> = value
        .split(',')
        .map(|field| {
            let (name, value) = field.split_once('=').unwrap_or((field, ""));
            let value = words::expand(value, &|_| None).unwrap_or_default();
            (name.trim().to_ascii_lowercase(), value)
        })
        .collect();
    let kind = fields.iter().find(|(name, _)| name == "type");
    let kind = kind.map_or("bind", |(_, kind)| kind.as_str());
    match kind {
        "secret" => {}
        "cache" => return cache(line, &fields).map(Mount::Cache),
        other => return Err(unknown(line, &format!("mount=type={other}"))),
    }
    let mut usage = SecretUse::default();
    for (name, value) in &fields {
        let number = |radix: u32| {
            u32::from_str_radix(value, radix).map_err(|_| {
                Wrong::at(line.number, format!("--mount: {name}={value} is no number"))
            })
        };
        match name.as_str() {
            "type" | "gid" => {}
            "id" => usage.id.clone_from(value),
            "target" | "dst" | "destination" => usage.target = Some(value.clone()),
            "env" => usage.env = Some(value.clone()),
            "required" => usage.required = value.is_empty() || value == "true" || value == "1",
            "mode" => usage.mode = Some(number(8)?),
            "uid" => usage.uid = Some(number(10)?),
            other => return Err(unknown(line, &format!("mount={other}"))),
        }
    }
    if usage.id.is_empty() {
        let target = usage.target.as_deref().unwrap_or_default();
        usage.id = target.rsplit('/').next().unwrap_or_default().to_owned();
    }
    if usage.id.is_empty() {
        return Err(Wrong::at(line.number, "--mount=type=secret: needs an id"));
    }
    if let Some(target) = &usage.target
        && !target.starts_with('/')
    {
        return Err(Wrong::at(
            line.number,
            format!("--mount: target={target}: must be an absolute path"),
        ));
    }
    Ok(Mount::Secret(usage))
}

/// A directory that is in no layer.
fn cache(line: &Line, fields: &[(String, String)]) -> Result<CacheUse, Wrong> {
    let mut usage = CacheUse {
        mode: 0o755,
        ..CacheUse::default()
    };
    for (name, value) in fields {
        let number = |radix: u32| {
            u32::from_str_radix(value, radix).map_err(|_| {
                Wrong::at(line.number, format!("--mount: {name}={value} is no number"))
            })
        };
        match name.as_str() {
            // There is one of each, for one step.
            "type" | "id" | "sharing" => {}
            "target" | "dst" | "destination" => usage.target.clone_from(value),
            "mode" => usage.mode = number(8)? & 0o7777,
            "uid" => usage.uid = number(10)?,
            "gid" => usage.gid = number(10)?,
            other => return Err(unknown(line, &format!("mount={other}"))),
        }
    }
    let target = usage.target.trim_end_matches('/');
    if !target.starts_with('/') {
        return Err(Wrong::at(
            line.number,
            format!(
                "--mount=type=cache: target={target}: must be an absolute path, and not the root"
            ),
        ));
    }
    usage.target = target.to_owned();
    Ok(usage)
}
