//! What a tenant of the same server asks for that is another's. A control, the owner's own key, has to get it.

use reqwest::Method;
use serde_json::{Value, json};

use super::{
    How, Row,
    doors::{Scene, row, said},
    place::text,
};
use crate::error::CliError;

/// The name of the tenant that attacks.
const TENANT: &str = "stranger";

/// Asks for what is another tenant's, and for more than the key is for.
pub(super) async fn all(scene: &Scene<'_>) -> Result<Vec<Row>, CliError> {
    let place = scene.place;
    place.post("/v1/tenants", json!({"name": TENANT})).await?;
    let path = format!("/v1/tenants/{TENANT}/keys");
    let made = place.post(&path, json!({"scope": "admin"})).await?;
    let key = text(&made, "key")?;
    let machine = format!("/v1/machines/{}", scene.victim);
    let (status, control) = place.ask(None, Method::GET, &machine, json!({})).await?;
    let volume = place.volume();
    let mounted = json!({"template": "host", "volumes": [{"ref": volume, "mount_path": "/mnt"}]});
    let exec = json!({"command": "true"});
    let tries = [
        ("stranger_looks", Method::GET, machine.clone(), json!({})),
        (
            "stranger_spells",
            Method::GET,
            machine.replace('_', "%5F"),
            json!({}),
        ),
        (
            "stranger_runs",
            Method::POST,
            format!("{machine}/exec"),
            exec,
        ),
        (
            "stranger_reads",
            Method::POST,
            format!("{machine}/files/read"),
            json!({"path": "/etc/hostname"}),
        ),
        (
            "stranger_writes",
            Method::PUT,
            format!("{machine}/file?path=/tmp/x"),
            json!({}),
        ),
        (
            "stranger_copies",
            Method::POST,
            format!("{machine}/fork"),
            json!({}),
        ),
        (
            "stranger_previews",
            Method::POST,
            format!("{machine}/ports/80/signed-preview-url"),
            json!({}),
        ),
        (
            "stranger_opens",
            Method::PATCH,
            format!("{machine}/egress"),
            json!({"egress": {"mode": "allow_all"}}),
        ),
        ("stranger_ends", Method::DELETE, machine.clone(), json!({})),
        (
            "stranger_lists_volume",
            Method::GET,
            format!("/v1/volumes/{volume}/files?path=/"),
            json!({}),
        ),
        (
            "stranger_mounts",
            Method::POST,
            "/v1/machines".to_owned(),
            mounted,
        ),
        (
            "stranger_names",
            Method::GET,
            "/v1/volumes/by-name/probe".to_owned(),
            json!({}),
        ),
        (
            "stranger_widens",
            Method::POST,
            "/v1/keys".to_owned(),
            json!({"scope": "operator"}),
        ),
        (
            "stranger_rules",
            Method::GET,
            "/v1/tenants".to_owned(),
            json!({}),
        ),
    ];
    let mut rows = Vec::new();
    for (name, method, path, body) in tries {
        let what = match name {
            "stranger_widens" | "stranger_rules" => "the operator's rights, with a tenant's key",
            _ => "what is another tenant's, with a key of its own",
        };
        let answer = place.ask(Some(&key), method, &path, body).await?;
        let how = match (status, answer) {
            (200, (200..=299, _)) => How::Open("it was done".into()),
            (200, (status, answer)) => How::Stopped(said(status, &answer)),
            _ => How::NotTried(format!("its owner does not get it either: {control}")),
        };
        rows.push(row(name, what, how));
    }
    for (name, path) in [
        ("stranger_lists", "/v1/machines".to_owned()),
        (
            "stranger_follows",
            format!("/v1/lifecycle/events?machine_id={}", scene.victim),
        ),
        (
            "stranger_audits",
            format!("/v1/audit?about={}", scene.victim),
        ),
    ] {
        let own = place.ask(None, Method::GET, &path, json!({})).await?;
        let (status, seen) = place.ask(Some(&key), Method::GET, &path, json!({})).await?;
        let shows = |answer: &Value| match name {
            // What it asked itself above, and was refused, is its own.
            "stranger_audits" => answer["items"]
                .as_array()
                .is_some_and(|items| items.iter().any(|item| item["status"] == 200)),
            _ => answer.to_string().contains(scene.victim),
        };
        let how = match (shows(&own.1), shows(&seen)) {
            (true, true) => How::Open("it is shown".into()),
            (true, false) => How::Stopped(said(status, &seen)),
            (false, _) => How::NotTried("its owner does not see it either".into()),
        };
        rows.push(row(name, "what another tenant has, in a list", how));
    }
    Ok(rows)
}
