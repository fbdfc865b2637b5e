//! The record, the kernel and the disk: they have what the clients have, and nothing else.

use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{
    Shared,
    api::{Api, Stop, wrong},
    client::Client,
    model::{Own, State},
    server::Server,
};

/// How long what is taken apart behind the scenes may take.
const PATIENCE: Duration = Duration::from_secs(90);

type Names = BTreeSet<String>;

/// Waits until nothing is there that no client has, and nothing is missing. `waiting` is what the pool has ready.
pub(crate) async fn settled(
    shared: &Shared,
    server: &mut Server,
    clients: &[Client],
    waiting: u64,
) -> Result<(), Stop> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let differences = differences(shared, server, clients, waiting).await?;
        if differences.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return wrong(format!(
                "what is there is not what was asked for:\n{}",
                differences.join("\n")
            ));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn differences(
    shared: &Shared,
    server: &mut Server,
    clients: &[Client],
    waiting: u64,
) -> Result<Vec<String>, Stop> {
    let owns: Vec<&Own> = clients.iter().map(|client| &client.own).collect();
    let mut found = Vec::new();
    if shared.has_tenants {
        // Nothing of a tenant is another's, and nothing the operator's.
        found.extend(on_record("the operator", &shared.api, &[]).await?);
        for client in clients {
            let who = format!("client {}", client.number);
            found.extend(on_record(&who, &client.api, &[&client.own]).await?);
        }
    } else {
        found.extend(on_record("everybody", &shared.api, &owns).await?);
    }
    found.extend(on_disk(server, &owns));

    let pool = shared.pool.borrow().clone();
    if waiting > 0
        && let Some(pool) = pool
    {
        let path = format!("/v1/template-warm-pools/{pool}");
        let pool = shared.api.get(&path).await?.expect(&[200])?;
        let counts = &pool.body["status"];
        if counts["ready"] != waiting || counts["warming"] != 0 || counts["draining"] != 0 {
            found.push(format!("the pool: {}", pool.body));
            return Ok(found);
        }
    }
    let alive: Names = owns
        .iter()
        .flat_map(|own| {
            own.machines
                .iter()
                .filter(|(_, machine)| machine.state != State::Kept)
        })
        .map(|(id, _)| id.clone())
        .collect();
    // Ids of those in the pool are known to the host alone.
    let places = entries(&server.data, "machines");
    let missing: Vec<_> = alive.difference(&places).collect();
    let pooled: Vec<_> = places.difference(&alive).collect();
    if !missing.is_empty() || pooled.len() as u64 != waiting {
        found.push(format!(
            "machines on disk: missing {missing:?}, besides them, {waiting} of the pool, {pooled:?}"
        ));
    }
    let there = server.host.machines();
    let count = server.host.machine_count();
    // Those that go on from another's state are known by number alone.
    let is_missing = !shared.keeps_memory && !there.is_superset(&alive);
    if is_missing || count as u64 != alive.len() as u64 + waiting {
        found.push(format!(
            "machines of the kernel: {count}, {there:?}, where {alive:?} and {waiting} of the pool should be"
        ));
    }
    found.extend(server.host.uneven());
    Ok(found)
}

/// What one key is shown, where these have what was made with it.
async fn on_record(who: &str, api: &Api, owns: &[&Own]) -> Result<Vec<String>, Stop> {
    let mut found = Vec::new();
    let mut compare = |what: &str, expected: &Names, there: &Names| {
        found.extend(difference(
            &format!("{what} on record, for {who}"),
            expected,
            there,
        ));
    };
    let machines = names(owns, |own| own.machines.keys());
    let listed = api.get("/v1/machines?limit=200").await?.expect(&[200])?;
    compare("machines", &machines, &ids(&listed.body["items"], "id"));

    let kept = names(owns, |own| own.kept_as.values());
    let snapshots = names(owns, |own| own.snapshots.keys());
    let listed = api.get("/v1/snapshots").await?.expect(&[200])?;
    compare("snapshots", &(&snapshots | &kept), &ids(&listed.body, "id"));

    let volumes = names(owns, |own| own.volumes.keys());
    let listed = api.get("/v1/volumes").await?.expect(&[200])?;
    compare("volumes", &volumes, &ids(&listed.body, "id"));

    let templates = names(owns, |own| own.templates.keys());
    let listed = api.get("/v1/templates").await?.expect(&[200])?;
    let built: Names = ids(&listed.body, "name")
        .into_iter()
        .filter(|name| name.starts_with("soak-"))
        .collect();
    compare("templates", &templates, &built);

    let deployments = names(owns, |own| own.deployments.keys());
    let listed = api.get("/v1/agent-deployments?limit=200").await?;
    let listed = listed.expect(&[200])?;
    compare(
        "deployments",
        &deployments,
        &ids(&listed.body["items"], "name"),
    );
    Ok(found)
}

/// What is in the data directory, but for what machines have there.
fn on_disk(server: &Server, owns: &[&Own]) -> Vec<String> {
    let mut found = Vec::new();
    let mut compare = |place: &str, expected: &Names, there: &Names| {
        found.extend(difference(&format!("{place} on disk"), expected, there));
    };
    // Those of machines that stand still are in memory.
    let kept: Names = owns
        .iter()
        .flat_map(|own| {
            own.kept_as
                .iter()
                .filter(|(id, _)| state(own, id) == Some(State::Kept))
        })
        .map(|(_, snapshot)| snapshot.clone())
        .collect();
    let snapshots = names(owns, |own| own.snapshots.keys());
    compare(
        "snapshots",
        &(&snapshots | &kept),
        &entries(&server.data, "snapshots"),
    );
    let volumes = names(owns, |own| own.volumes.keys());
    compare("volumes", &volumes, &entries(&server.data, "volumes"));
    for place in ["template-layers", "image-layers"] {
        let unfinished: Names = entries(&server.data, place)
            .into_iter()
            .filter(|name| is_unfinished(name))
            .collect();
        compare(place, &Names::new(), &unfinished);
    }
    found
}

fn difference(what: &str, expected: &Names, there: &Names) -> Option<String> {
    let missing: Vec<_> = expected.difference(there).collect();
    let strange: Vec<_> = there.difference(expected).collect();
    (expected != there).then(|| format!("{what}: missing {missing:?}, not asked for {strange:?}"))
}

fn state(own: &Own, machine: &str) -> Option<State> {
    own.machines.get(machine).map(|machine| machine.state)
}

fn names<'a, I: Iterator<Item = &'a String>>(
    clients: &[&'a Own],
    of: impl Fn(&'a Own) -> I,
) -> Names {
    clients.iter().flat_map(|own| of(own)).cloned().collect()
}

fn ids(list: &Value, field: &str) -> Names {
    let items = list.as_array().map(Vec::as_slice).unwrap_or_default();
    items
        .iter()
        .filter_map(|item| Some(item[field].as_str()?.to_owned()))
        .collect()
}

fn entries(data: &Path, place: &str) -> Names {
    let Ok(entries) = std::fs::read_dir(data.join(place)) else {
        return Names::new();
    };
    entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// What a layer is called while it is not whole; `.layer-…` is what is known of a whole one.
fn is_unfinished(name: &str) -> bool {
    name.starts_with('.') && !name.starts_with(".layer-")
}

/// Everything was deleted and the server ended: what is left in the data directory is the record, keys, logs and what
/// came with the program.
pub(crate) fn nothing_left(data: &Path) -> Result<(), Stop> {
    for place in [
        "machines",
        "snapshots",
        "volumes",
        "spare",
        "template-layers",
        "image-layers",
        "bundles",
        "artifacts",
        "outputs",
    ] {
        let left = entries(data, place);
        if !left.is_empty() {
            return wrong(format!("left in {place}: {left:?}"));
        }
    }
    Ok(())
}
