//! Tenants over real HTTP: nothing of one is seen, touched or named by another; what each may have; keys, scopes, rates, the audit log.

#![allow(clippy::unwrap_used)]

mod common;

use std::{collections::BTreeMap, time::Duration};

use common::{KEY, World, answer, project::Project, receiver::Receiver, socket::Client};
use nullspace_engine::Engine;
use nullspace_server::Config;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

/// Asks with one key.
struct Asker<'a> {
    world: &'a World,
    key: String,
}

impl Asker<'_> {
    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.world.client.request(method, self.world.url(path));
        request.bearer_auth(&self.key)
    }

    async fn ask(&self, method: Method, path: &str, body: Value) -> (StatusCode, Value) {
        answer(self.request(method, path).json(&body)).await
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        answer(self.request(Method::GET, path)).await
    }

    async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        self.ask(Method::POST, path, body).await
    }

    async fn made(&self, path: &str, body: Value) -> String {
        let (status, made) = self.post(path, body).await;
        assert!(status.is_success(), "{path}: {status} {made}");
        let id = ["id", "build_id"]
            .into_iter()
            .find_map(|name| made[name].as_str());
        id.unwrap_or_else(|| panic!("{path}: {made}")).to_owned()
    }

    /// The status and code of an answer that is a refusal.
    async fn refused(&self, method: Method, path: &str, body: Value) -> (u16, String) {
        let (status, body) = self.ask(method, path, body).await;
        assert!(status.as_u16() >= 400, "{path}: {status} {body}");
        (
            status.as_u16(),
            body["code"].as_str().unwrap_or_default().to_owned(),
        )
    }
}

/// The operator, whose tenant is the first one.
fn operator(world: &World) -> Asker<'_> {
    Asker {
        world,
        key: KEY.to_owned(),
    }
}

/// A tenant with a key.
async fn tenant<'a>(world: &'a World, name: &str, limits: Value, scope: &str) -> Asker<'a> {
    let operator = operator(world);
    let body = json!({"name": name, "limits": limits});
    let (status, made) = operator.post("/v1/tenants", body).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    key(world, name, scope).await
}

/// Another key of a tenant.
async fn key<'a>(world: &'a World, tenant: &str, scope: &str) -> Asker<'a> {
    let path = format!("/v1/tenants/{tenant}/keys");
    let body = json!({"name": "test", "scope": scope});
    let (status, made) = operator(world).post(&path, body).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    Asker {
        world,
        key: made["key"].as_str().unwrap().to_owned(),
    }
}

fn denied(code: &str) -> (u16, String) {
    (403, code.to_owned())
}

fn none(code: &str) -> (u16, String) {
    (404, code.to_owned())
}

/// One of everything, and what of it stands in paths.
async fn everything(asker: &Asker<'_>) -> BTreeMap<&'static str, String> {
    let mut ids = BTreeMap::new();
    let machine = asker.made("/v1/machines", json!({})).await;
    let snapshot = asker
        .made(&format!("/v1/machines/{machine}/snapshots"), json!({}))
        .await;
    ids.insert(
        "volume",
        asker.made("/v1/volumes", json!({"name": "data"})).await,
    );
    ids.insert(
        "webhook",
        asker
            .made(
                "/v1/lifecycle/webhooks",
                json!({"url": "https://93.184.215.14/", "operations": ["create"], "signing_secret": "s", "enabled": false}),
            )
            .await,
    );
    ids.insert(
        "pool",
        asker
            .made(
                "/v1/template-warm-pools",
                json!({"template_ref": "base", "name": "p", "min_ready": 0, "max_ready": 1, "resources": {"vcpus": 1, "memory_mb": 64}}),
            )
            .await,
    );
    let build = asker
        .made(
            "/v1/templates/builds",
            json!({"name": "mine", "base_image": "base", "tags": ["default"]}),
        )
        .await;
    for _ in 0..400 {
        let (_, seen) = asker.get(&format!("/v1/templates/builds/{build}")).await;
        if seen["build"]["status"] == "ready" {
            ids.insert(
                "template",
                seen["build"]["template_id"].as_str().unwrap().to_owned(),
            );
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let file =
        json!({"path": "a", "entry_type": "file", "sha256": "0".repeat(64), "size_bytes": 3});
    let (_, blobs) = asker
        .post("/v1/templates/blobs/preflight", json!({"files": [file]}))
        .await;
    ids.insert(
        "blob",
        blobs["files"][0]["blob_id"].as_str().unwrap().to_owned(),
    );
    let deployment = asker
        .made(
            "/v1/agent-deployments",
            json!({"name": "worker", "mode": "job"}),
        )
        .await;
    let project = Project::new("", "true\n");
    let (status, version) = asker
        .post(
            &format!("/v1/agent-deployments/{deployment}/versions"),
            project.version_request(),
        )
        .await;
    assert_eq!(status, StatusCode::CREATED, "{version}");
    let version_id = version["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/agent-deployments/{deployment}/versions/{version_id}/bundle");
    let sent = asker
        .request(Method::PUT, &path)
        .header(
            "x-nullspace-bundle-digest",
            version["bundle_digest"].as_str().unwrap(),
        )
        .header("content-type", "application/x-tar")
        .body(project.archive());
    assert_eq!(answer(sent).await.0, StatusCode::OK);
    let run = asker
        .made(
            &format!("/v1/agent-deployments/{deployment}/runs"),
            json!({}),
        )
        .await;
    ids.extend([
        ("machine", machine),
        ("snapshot", snapshot),
        ("build", build),
        ("deployment", deployment),
        ("version", version_id),
        ("run", run),
    ]);
    ids
}

/// What stands for the parameters of a route, of these ids.
fn filled(route: &str, ids: &BTreeMap<&str, String>) -> String {
    let root = |segment: &str| match segment {
        "machines" | "sandboxes" => "machine",
        "volumes" => "volume",
        "snapshots" => "snapshot",
        "agent-deployments" => "deployment",
        "webhooks" => "webhook",
        "template-warm-pools" => "pool",
        "templates" => "template",
        "keys" => "key",
        "tenants" => "tenant",
        other => panic!("{other}"),
    };
    let mut path = String::new();
    let mut before = "";
    for part in route.trim_start_matches('/').split('/') {
        path.push('/');
        match part {
            "{id}" => path.push_str(&ids[root(before)]),
            "{ref}" => path.push_str(&ids["template"]),
            "{run_id}" => path.push_str(&ids["run"]),
            "{version_id}" => path.push_str(&ids["version"]),
            "{build_id}" => path.push_str(&ids["build"]),
            "{blob_id}" => path.push_str(&ids["blob"]),
            "{name}" => path.push_str("data"),
            "{slug}" => path.push_str("default"),
            "{tag}" => path.push_str("default"),
            "{port}" => path.push_str("3000"),
            "{pid}" | "{part}" => path.push('1'),
            part if part.starts_with('{') => path.push_str("something"),
            part => path.push_str(part),
        }
        before = part;
    }
    path
}

/// Whether what another tenant has is told apart from what nobody has: by status, by code, or by words.
#[tokio::test(flavor = "multi_thread")]
async fn no_route_knows_what_is_another_tenants() {
    let world = World::with_memory().await;
    let owner = operator(&world);
    let ids = everything(&owner).await;
    let stranger = tenant(&world, "stranger", json!({}), "admin").await;
    let mut ids = ids;
    let (_, keys) = owner.get("/v1/keys").await;
    ids.insert("key", keys[0]["id"].as_str().unwrap().to_owned());
    ids.insert("tenant", "default".to_owned());
    // The same with nothing behind it.
    let nobody: BTreeMap<&str, String> = ids
        .iter()
        .map(|(kind, id)| {
            let kept = id.find('_').map_or(0, |at| at + 1);
            let letters = id[kept..].chars().map(|c| match c {
                '-' => '-',
                _ => '0',
            });
            (
                *kind,
                format!("{}{}", &id[..kept], letters.collect::<String>()),
            )
        })
        .collect();
    let document = nullspace_server::http::document();
    let document: Value = serde_json::from_str(&document.to_json().unwrap()).unwrap();
    let mut count = 0;
    for (route, item) in document["paths"].as_object().unwrap() {
        if !route.contains('{') {
            continue;
        }
        for method in item.as_object().unwrap().keys() {
            let Ok(method) = Method::from_bytes(method.to_uppercase().as_bytes()) else {
                continue;
            };
            if !["GET", "POST", "PUT", "PATCH", "DELETE"].contains(&method.as_str()) {
                continue;
            }
            let theirs = filled(route, &ids);
            // Neither is what is written with percent signs another thing.
            let encoded = theirs.replace('_', "%5F");
            let nothing = filled(route, &nobody);
            let words = |text: &Value| {
                let mut text = text["error"].as_str().unwrap_or_default().to_owned();
                let mut all: Vec<_> = ids.iter().chain(&nobody).collect();
                all.sort_by_key(|(_, id)| std::cmp::Reverse(id.len()));
                for (kind, id) in all {
                    text = text.replace(id.as_str(), kind);
                }
                text
            };
            let (wanted, unknown) = stranger.ask(method.clone(), &nothing, json!({})).await;
            for path in [theirs, encoded] {
                let (status, got) = stranger.ask(method.clone(), &path, json!({})).await;
                assert!(status.as_u16() >= 400, "{method} {path}: {status} {got}");
                assert_eq!(
                    (status, &got["code"], words(&got)),
                    (wanted, &unknown["code"], words(&unknown)),
                    "{method} {path} is told apart from {nothing}"
                );
            }
            count += 1;
        }
    }
    assert!(count > 150, "{count}");
    // It is all there still, and as it was.
    for (path, field, value) in [
        (
            format!("/v1/machines/{}", ids["machine"]),
            "status",
            "running",
        ),
        (format!("/v1/volumes/{}", ids["volume"]), "name", "data"),
        (
            format!("/v1/agent-deployments/{}", ids["deployment"]),
            "status",
            "active",
        ),
        (
            format!("/v1/template-warm-pools/{}", ids["pool"]),
            "state",
            "enabled",
        ),
    ] {
        let (status, body) = owner.get(&path).await;
        assert_eq!(
            (status, body[field].as_str()),
            (StatusCode::OK, Some(value)),
            "{path}: {body}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_names_and_references_are_the_tenants_own() {
    let world = World::with_memory().await;
    let owner = operator(&world);
    let ids = everything(&owner).await;
    let other = tenant(&world, "other", json!({}), "admin").await;
    let document = nullspace_server::http::document();
    let document: Value = serde_json::from_str(&document.to_json().unwrap()).unwrap();
    let mut shown = 0;
    for (route, item) in document["paths"].as_object().unwrap() {
        if route.contains('{') || item.get("get").is_none() || route.ends_with("/ws") {
            continue;
        }
        let (status, body) = other.get(route).await;
        if route.starts_with("/v1/tenants") || route == "/metrics" {
            assert_eq!(status, StatusCode::FORBIDDEN, "{route}");
            continue;
        }
        assert_eq!(status, StatusCode::OK, "{route}: {body}");
        let (_, own) = owner.get(route).await;
        let (text, own) = (body.to_string(), own.to_string());
        for id in ids.values() {
            assert!(!text.contains(id), "{route} shows {id}");
            shown += usize::from(own.contains(id));
        }
    }
    assert!(shown >= 8, "the owner sees {shown} of them");

    // The same names again, each for itself.
    let again = everything(&other).await;
    for (kind, id) in &again {
        assert_ne!(id, &ids[kind], "{kind}");
    }
    for (path, wanted) in [
        ("/v1/volumes/by-name/data", &again["volume"]),
        ("/v1/agent-deployments/worker", &again["deployment"]),
        ("/v1/templates/refs/mine", &again["template"]),
    ] {
        let (_, body) = other.get(path).await;
        assert_eq!(body["id"], **wanted, "{path}");
    }
    let (_, mine) = other.get("/v1/templates/refs/mine").await;
    assert_eq!(
        (&mine["canonical_ref"], &mine["namespace_slug"]),
        (&json!("other/mine"), &json!("other"))
    );

    // What a body names.
    let post = async |path: &str, body: Value| other.refused(Method::POST, path, body).await;
    let of = |kind: &str| ids[kind].clone();
    for template in [
        of("template"),
        "default/mine".into(),
        format!("mine:{}", ids["build"]),
    ] {
        let got = post("/v1/machines", json!({"template": template})).await;
        assert_eq!(got, none("template_not_found"), "{template}");
    }
    for (body, code) in [
        (json!({"snapshot_id": of("snapshot")}), "snapshot_not_found"),
        (
            json!({"warm_pool": {"id": of("pool")}}),
            "warm_pool_not_found",
        ),
        (
            json!({"volumes": [{"ref": of("volume"), "mount_path": "/data"}]}),
            "not_found",
        ),
    ] {
        assert_eq!(
            post("/v1/machines", body.clone()).await,
            none(code),
            "{body}"
        );
    }
    let mount = json!({"ref": of("volume"), "mount_path": "/data"});
    let path = format!("/v1/machines/{}/volumes", again["machine"]);
    assert_eq!(post(&path, mount).await, none("not_found"));
    assert_eq!(
        post(
            "/v1/template-warm-pools",
            json!({"template_ref": of("template"), "name": "p", "min_ready": 0, "max_ready": 1,
            "resources": {"vcpus": 1, "memory_mb": 64}})
        )
        .await,
        none("template_not_found")
    );
    let file = json!({"path": "a", "entry_type": "file", "blob_id": of("blob")});
    let build = json!({"name": "theirs", "base_image": "base", "build_context": {"files": [file]}});
    assert_eq!(
        post("/v1/templates/builds", build).await,
        none("template_blob_not_found")
    );
    let filter = format!("/v1/lifecycle/events?machine_id={}", ids["machine"]);
    assert_eq!(other.get(&filter).await.1["events"], json!([]));
    assert_ne!(owner.get(&filter).await.1["events"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_public_template_is_used_by_all_and_changed_by_its_owner() {
    let world = World::with_memory().await;
    let owner = tenant(&world, "owner", json!({}), "write").await;
    let other = tenant(&world, "other", json!({}), "write").await;
    let ids = everything(&owner).await;
    let visibility = json!({"visibility": "public"});
    let path = "/v1/templates/refs/mine/visibility";
    assert_eq!(
        owner.ask(Method::PATCH, path, visibility).await.0,
        StatusCode::OK
    );
    let exact = format!("owner/mine:{}", ids["build"]);
    for template in ["owner/mine", "owner/mine:default", &exact, &ids["template"]] {
        let (status, made) = other
            .post("/v1/machines", json!({"template": template}))
            .await;
        assert_eq!(status, StatusCode::CREATED, "{template}: {made}");
    }
    // Not by its name alone, and not to be changed.
    assert_eq!(
        other
            .refused(Method::POST, "/v1/machines", json!({"template": "mine"}))
            .await,
        none("template_not_found")
    );
    let change = async |method: Method, path: &str, body: Value| {
        let path = format!("/v1/templates/refs/owner%2Fmine{path}");
        other.refused(method, &path, body).await
    };
    for (method, path, body) in [
        (Method::DELETE, "", json!({})),
        (Method::POST, "/tags", json!({"tags": ["v2"]})),
        (Method::DELETE, "/tags/default", json!({})),
        (Method::POST, "/rename", json!({"new_name": "yours"})),
        (
            Method::PATCH,
            "/visibility",
            json!({"visibility": "private"}),
        ),
    ] {
        assert_eq!(
            change(method, path, body).await,
            denied("permission_denied"),
            "{path}"
        );
    }
    // How it was built is nobody else's.
    let (_, builds) = owner.get("/v1/templates/refs/mine/builds").await;
    assert_eq!(builds["builds"][0]["build_id"], ids["build"]);
    let got = other
        .refused(
            Method::GET,
            "/v1/templates/refs/owner%2Fmine/builds",
            json!({}),
        )
        .await;
    assert_eq!(got, none("template_not_found"));
    let private = json!({"visibility": "private"});
    assert_eq!(
        owner.ask(Method::PATCH, path, private).await.0,
        StatusCode::OK
    );
    assert_eq!(
        other
            .refused(
                Method::POST,
                "/v1/machines",
                json!({"template": "owner/mine"})
            )
            .await,
        none("template_not_found")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_does_what_its_scope_says() {
    let world = World::new().await;
    let admin = tenant(&world, "team", json!({}), "admin").await;
    let reader = key(&world, "team", "read").await;
    let runner = key(&world, "team", "machines:write").await;
    let machine = runner.made("/v1/machines", json!({})).await;
    let at = |path: &str| format!("/v1/machines/{machine}{path}");
    let refused = denied("permission_denied");

    assert_eq!(reader.get(&at("")).await.0, StatusCode::OK);
    assert_eq!(
        reader
            .post(&at("/files/exists"), json!({"path": "/"}))
            .await
            .0,
        StatusCode::OK
    );
    for (method, path) in [
        (Method::POST, "/v1/machines".to_owned()),
        (Method::POST, at("/exec")),
        (Method::POST, at("/files/write")),
        (Method::DELETE, at("")),
        (Method::GET, at("/ws?channel=exec")),
        (Method::GET, at("/ports/80/preview-url")),
        (Method::GET, "/v1/keys".into()),
        (Method::GET, "/v1/audit".into()),
    ] {
        assert_eq!(
            reader.refused(method, &path, json!({})).await,
            refused,
            "{path}"
        );
    }
    for path in [
        "/v1/volumes",
        "/v1/templates",
        "/v1/agent-deployments",
        "/v1/keys",
        "/v1/tenants",
        "/metrics",
    ] {
        assert_eq!(
            runner.refused(Method::GET, path, json!({})).await,
            refused,
            "{path}"
        );
    }
    // A volume in a machine is a use of the volume.
    let volume = admin.made("/v1/volumes", json!({"name": "data"})).await;
    let mount = json!({"ref": volume, "mount_path": "/data"});
    for (path, body) in [
        ("/v1/machines".to_owned(), json!({"volumes": [mount]})),
        (at("/volumes"), mount),
    ] {
        assert_eq!(
            runner.refused(Method::POST, &path, body).await,
            refused,
            "{path}"
        );
    }
    assert_eq!(runner.get("/v1/tenant").await.1["usage"]["machines"], 1);

    // Nobody gives what is not theirs.
    for scope in ["operator", "server:read", "admin server:read"] {
        let body = json!({"scope": scope});
        assert_eq!(
            admin.refused(Method::POST, "/v1/keys", body).await,
            refused,
            "{scope}"
        );
    }
    for (body, field) in [
        (json!({"scope": "everything"}), "scope"),
        (json!({"scope": ""}), "scope"),
        (json!({"expires_in_seconds": 0}), "expires_in_seconds"),
        (
            json!({"expires_in_seconds": u64::MAX}),
            "expires_in_seconds",
        ),
        (json!({"name": "x".repeat(200)}), "name"),
    ] {
        let (status, got) = admin.post("/v1/keys", body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(got["error"].as_str().unwrap().starts_with(field), "{got}");
    }
    for path in ["/v1/tenants", "/v1/agent-gc"] {
        assert_eq!(
            admin
                .refused(Method::POST, path, json!({"name": "x"}))
                .await,
            refused,
            "{path}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_made_replaced_and_taken_back() {
    let mut world = World::new().await;
    let made = {
        let admin = tenant(&world, "team", json!({}), "admin").await;
        let (status, made) = admin
            .post("/v1/keys", json!({"name": "ci", "scope": "read"}))
            .await;
        assert_eq!(status, StatusCode::CREATED);
        assert!(
            made["key"]
                .as_str()
                .unwrap()
                .starts_with(made["prefix"].as_str().unwrap())
        );
        let id = made["id"].as_str().unwrap();
        let reader = Asker {
            world: &world,
            key: made["key"].as_str().unwrap().into(),
        };
        assert_eq!(reader.get("/v1/machines").await.0, StatusCode::OK);

        // Replaced: both are let in.
        let (status, new) = admin
            .post(&format!("/v1/keys/{id}/rotate"), json!({}))
            .await;
        assert_eq!(
            (status, &new["scope"], &new["name"]),
            (StatusCode::CREATED, &json!("read"), &json!("ci"))
        );
        let replaced = Asker {
            world: &world,
            key: new["key"].as_str().unwrap().into(),
        };
        assert_eq!(reader.get("/v1/machines").await.0, StatusCode::OK);
        assert_eq!(replaced.get("/v1/machines").await.0, StatusCode::OK);
        let (_, keys) = admin.get("/v1/keys").await;
        let of = |wanted: &Value| {
            keys.as_array()
                .unwrap()
                .iter()
                .find(|key| key["id"] == *wanted)
                .unwrap()
                .clone()
        };
        assert_eq!(of(&new["id"])["rotation_parent_key_id"], *id);
        assert!(of(&json!(id))["expires_at"].is_string() && of(&json!(id))["is_active"] == true);
        assert!(of(&json!(id))["last_used_at"].is_string());
        assert!(!keys.to_string().contains(new["key"].as_str().unwrap()));

        // Taken back, twice.
        for _ in 0..2 {
            let gone = admin
                .ask(Method::DELETE, &format!("/v1/keys/{id}"), json!({}))
                .await;
            assert_eq!(gone, (StatusCode::OK, json!({"success": true})));
        }
        assert_eq!(reader.get("/v1/machines").await.0, StatusCode::UNAUTHORIZED);
        assert_eq!(
            admin
                .refused(Method::POST, &format!("/v1/keys/{id}/rotate"), json!({}))
                .await,
            (409, "conflict".to_owned())
        );
        // The key that asks stays, and one that is not there is not.
        let (_, keys) = admin.get("/v1/keys").await;
        let own = keys
            .as_array()
            .unwrap()
            .iter()
            .find(|key| key["scope"] == "admin")
            .unwrap()["id"]
            .clone();
        let path = format!("/v1/keys/{}", own.as_str().unwrap());
        assert_eq!(
            admin.refused(Method::DELETE, &path, json!({})).await,
            (409, "conflict".to_owned())
        );
        assert_eq!(
            admin
                .refused(Method::DELETE, "/v1/keys/key_none", json!({}))
                .await,
            none("key_not_found")
        );

        // The first one of a name.
        let (status, first) = admin.post("/v1/keys/default", json!({})).await;
        assert_eq!(
            (status, first["created"].as_bool()),
            (StatusCode::CREATED, Some(true))
        );
        let (status, second) = admin.post("/v1/keys/default", json!({})).await;
        assert_eq!(
            (status, second["created"].as_bool()),
            (StatusCode::OK, Some(false))
        );
        assert_eq!((&second["id"], second.get("key")), (&first["id"], None));

        // One that is over its time.
        let (_, short) = admin
            .post("/v1/keys", json!({"expires_in_seconds": 1}))
            .await;
        let short = Asker {
            world: &world,
            key: short["key"].as_str().unwrap().into(),
        };
        for _ in 0..100 {
            if short.get("/v1/machines").await.0 == StatusCode::UNAUTHORIZED {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(short.get("/v1/machines").await.0, StatusCode::UNAUTHORIZED);
        (reader.key, replaced.key)
    };
    // On record, not only in memory; and the keys themselves nowhere.
    world.restart().await;
    let (old, new) = made;
    let old = Asker {
        world: &world,
        key: old,
    };
    let new = Asker {
        world: &world,
        key: new,
    };
    assert_eq!(old.get("/v1/machines").await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(new.get("/v1/machines").await.0, StatusCode::OK);
    for file in ["nullspace.db", "nullspace.db-wal", "audit/00000001.jsonl"] {
        let bytes = std::fs::read(world.data.path().join(file)).unwrap();
        let found = bytes
            .windows(new.key.len())
            .any(|part| part == new.key.as_bytes());
        assert!(!found, "{file}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_has_no_more_than_it_may() {
    let world = World::with_memory().await;
    let limits =
        json!({"max_machines": 3, "max_vcpus": 2, "max_memory_mb": 1024, "max_disk_mb": 4096});
    let team = tenant(&world, "team", limits, "write").await;
    let over = denied("quota_exceeded");
    let small = |more: Value| {
        let mut body = json!({"vcpus": 1, "memory_mb": 256, "disk_mb": 1024});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        body
    };
    let make = async |body: Value| team.refused(Method::POST, "/v1/machines", body).await;
    let usage = async || team.get("/v1/tenant").await.1["usage"].clone();

    let first = team.made("/v1/machines", small(json!({}))).await;
    assert_eq!(make(small(json!({"vcpus": 2}))).await, over, "CPUs");
    assert_eq!(
        make(small(json!({"memory_mb": 1024}))).await,
        over,
        "memory"
    );
    assert_eq!(make(small(json!({"disk_mb": 4096}))).await, over, "disk");
    assert_eq!(
        usage().await,
        json!({"machines": 1, "vcpus": 1, "memory_mb": 256, "disk_mb": 1024})
    );
    let second = team.made("/v1/machines", small(json!({}))).await;
    // One that sleeps has its place and its disk, and neither CPUs nor memory.
    let asleep = team
        .post(&format!("/v1/machines/{first}/hibernate"), json!({}))
        .await;
    assert_eq!(asleep.0, StatusCode::OK, "{}", asleep.1);
    let third = team.made("/v1/machines", small(json!({}))).await;
    assert_eq!(usage().await["vcpus"], 2);
    let resume = format!("/v1/machines/{first}/resume");
    assert_eq!(team.refused(Method::POST, &resume, json!({})).await, over);
    let (_, seen) = team.get(&format!("/v1/machines/{first}")).await;
    assert_eq!(seen["status"], "paused", "it sleeps on");
    assert_eq!(make(small(json!({"vcpus": 1}))).await, over, "machines");

    // A volume is disk; one that is too much is not there.
    let volume = json!({"name": "big", "max_size_bytes": 2_u64 << 30});
    assert_eq!(
        team.refused(Method::POST, "/v1/volumes", volume).await,
        over
    );
    assert_eq!(team.get("/v1/volumes").await.1, json!([]));
    let kept = std::fs::read_dir(world.data.path().join("volumes"))
        .unwrap()
        .count();
    assert_eq!(kept, 0);
    team.made(
        "/v1/volumes",
        json!({"name": "small", "max_size_bytes": 512 << 20}),
    )
    .await;

    // Of those that wait in pools as well.
    for id in [&second, &third] {
        team.ask(Method::DELETE, &format!("/v1/machines/{id}"), json!({}))
            .await;
    }
    assert_eq!(team.post(&resume, json!({})).await.0, StatusCode::OK);
    let pool = json!({"template_ref": "base", "name": "p", "min_ready": 5, "max_ready": 5,
        "resources": {"vcpus": 1, "memory_mb": 64, "disk_mb": 1}});
    let pool = team.made("/v1/template-warm-pools", pool).await;
    let path = format!("/v1/template-warm-pools/{pool}");
    let mut seen = Value::Null;
    for _ in 0..400 {
        seen = team.get(&path).await.1;
        if seen["degraded_reason"] == "quota_exceeded" && seen["status"]["ready"] == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(
        (&seen["degraded_reason"], &seen["status"]["ready"]),
        (&json!("quota_exceeded"), &json!(1)),
        "{seen:#}"
    );
    assert_eq!(usage().await["vcpus"], 2);
    // Handing it out adds nothing.
    let (status, made) = team
        .post(
            "/v1/machines",
            json!({"warm_pool": {"id": pool, "mode": "require"}}),
        )
        .await;
    assert_eq!(status, StatusCode::CREATED, "{made}");

    // Others are not held up by it, and a higher limit helps at once.
    operator(&world)
        .made("/v1/machines", json!({"vcpus": 2}))
        .await;
    let change = json!({"limits": {"max_vcpus": null, "max_machines": 10, "max_memory_mb": 2048}});
    let (status, changed) = operator(&world)
        .ask(Method::PATCH, "/v1/tenants/team", change)
        .await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(
        changed["limits"],
        json!({"max_machines": 10, "max_memory_mb": 2048, "max_disk_mb": 4096})
    );
    team.made("/v1/machines", small(json!({}))).await;
}

/// However many ask at once, no more are let through than may be.
#[tokio::test(flavor = "multi_thread")]
async fn requests_at_once_do_not_pass_a_limit_together() {
    let world = World::new().await;
    let team = tenant(&world, "team", json!({"max_machines": 5}), "write").await;
    let all = (0..20).map(|_| team.post("/v1/machines", json!({})));
    let statuses: Vec<u16> = futures_util::future::join_all(all)
        .await
        .into_iter()
        .map(|(status, _)| status.as_u16())
        .collect();
    let count = |wanted: u16| statuses.iter().filter(|status| **status == wanted).count();
    assert_eq!((count(201), count(403)), (5, 15), "{statuses:?}");
    assert_eq!(team.get("/v1/tenant").await.1["usage"]["machines"], 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_is_the_tenants_own() {
    let world = World::new().await;
    let team = tenant(
        &world,
        "team",
        json!({"requests_per_second": 1, "request_burst": 3}),
        "write",
    )
    .await;
    let second = key(&world, "team", "read").await;
    let mut refused = None;
    for n in 0..4 {
        let asker = if n % 2 == 0 { &team } else { &second };
        let answered = asker
            .request(Method::GET, "/v1/machines")
            .send()
            .await
            .unwrap();
        if answered.status() == StatusCode::TOO_MANY_REQUESTS {
            refused = Some((n, answered));
            break;
        }
    }
    let (at, answered) = refused.expect("all of a burst were let through");
    assert_eq!(at, 3, "keys of one tenant share its rate");
    assert_eq!(answered.headers()["retry-after"], "1");
    let body: Value = answered.json().await.unwrap();
    assert_eq!(
        (&body["code"], &body["retryable"]),
        (&json!("rate_limit_exceeded"), &json!(true))
    );
    for _ in 0..20 {
        assert_eq!(operator(&world).get("/v1/machines").await.0, StatusCode::OK);
    }
    let change = json!({"limits": {"requests_per_second": null, "request_burst": null}});
    operator(&world)
        .ask(Method::PATCH, "/v1/tenants/team", change)
        .await;
    for _ in 0..20 {
        assert_eq!(team.get("/v1/machines").await.0, StatusCode::OK);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_are_made_suspended_and_removed() {
    let world = World::new().await;
    let operator = operator(&world);
    for (body, field) in [
        (json!({"name": "Team"}), "name"),
        (json!({"name": "nullspace"}), "name"),
        (
            json!({"name": "a", "limits": {"requests_per_second": 0}}),
            "limits.requests_per_second",
        ),
        (
            json!({"name": "a", "limits": {"request_burst": 5}}),
            "limits.request_burst",
        ),
        (
            json!({"name": "a", "limits": {"max_machines": -1}}),
            "limits.max_machines",
        ),
    ] {
        let (status, got) = operator.post("/v1/tenants", body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{got}");
        assert!(got["error"].as_str().unwrap().starts_with(field), "{got}");
    }
    let team = tenant(&world, "team", json!({}), "write").await;
    let conflict = (409, "tenant_conflict".to_owned());
    assert_eq!(
        operator
            .refused(Method::POST, "/v1/tenants", json!({"name": "team"}))
            .await,
        conflict
    );
    let machine = team.made("/v1/machines", json!({})).await;

    let (_, seen) = operator
        .ask(
            Method::PATCH,
            "/v1/tenants/team",
            json!({"suspended": true}),
        )
        .await;
    assert_eq!(seen["suspended"], true);
    assert_eq!(
        team.refused(Method::GET, "/v1/machines", json!({})).await,
        denied("permission_denied")
    );
    assert_eq!(
        world.engine.list().await.unwrap().len(),
        1,
        "what runs goes on"
    );
    operator
        .ask(
            Method::PATCH,
            "/v1/tenants/team",
            json!({"suspended": false}),
        )
        .await;
    assert_eq!(
        team.get(&format!("/v1/machines/{machine}")).await.1["status"],
        "running"
    );

    let (status, body) = operator
        .ask(Method::DELETE, "/v1/tenants/team", json!({}))
        .await;
    assert_eq!(
        (status.as_u16(), &body["code"]),
        (409, &json!("tenant_conflict"))
    );
    assert!(
        body["error"].as_str().unwrap().contains("machines"),
        "{body}"
    );
    team.ask(
        Method::DELETE,
        &format!("/v1/machines/{machine}"),
        json!({}),
    )
    .await;
    assert_eq!(
        operator
            .ask(Method::DELETE, "/v1/tenants/team", json!({}))
            .await
            .0,
        StatusCode::NO_CONTENT
    );
    assert_eq!(team.get("/v1/machines").await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(
        operator
            .refused(Method::GET, "/v1/tenants/team", json!({}))
            .await,
        none("tenant_not_found")
    );
    // The name is free, and what had it is not what has it now.
    let again = tenant(&world, "team", json!({}), "read").await;
    assert_eq!(
        again.get(&format!("/v1/machines/{machine}")).await.0,
        StatusCode::NOT_FOUND
    );

    for (method, body) in [
        (Method::DELETE, json!({})),
        (Method::PATCH, json!({"suspended": true})),
    ] {
        let got = operator.refused(method, "/v1/tenants/default", body).await;
        assert_eq!(got, (400, "invalid_request".to_owned()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_log_has_who_did_what() {
    let mut world = World::new().await;
    let machine = {
        let team = tenant(&world, "team", json!({}), "admin").await;
        let reader = key(&world, "team", "read").await;
        let machine = team
            .made(
                "/v1/machines",
                json!({"envs": {"TOKEN": "not-for-the-log"}}),
            )
            .await;
        let path = format!("/v1/machines/{machine}/exec?secret=in-the-query");
        team.post(
            &path,
            json!({"command": "true", "envs": {"A": "not-for-the-log"}}),
        )
        .await;
        team.get(&format!("/v1/machines/{machine}")).await;
        reader
            .refused(
                Method::DELETE,
                &format!("/v1/machines/{machine}"),
                json!({}),
            )
            .await;
        let nobody = Asker {
            world: &world,
            key: "ns_live_wrong".into(),
        };
        nobody.refused(Method::GET, "/v1/machines", json!({})).await;

        let about = async |asker: &Asker<'_>, query: &str| {
            let (status, page) = asker.get(&format!("/v1/audit?{query}")).await;
            assert_eq!(status, StatusCode::OK, "{page}");
            let items = page["items"].as_array().unwrap().clone();
            let shown = |item: &Value| {
                format!(
                    "{} {} {}",
                    item["method"].as_str().unwrap(),
                    item["status"],
                    item["code"].as_str().unwrap_or("-")
                )
            };
            (items.iter().map(shown).collect::<Vec<_>>(), items)
        };
        let (all, items) = about(&team, &format!("about={machine}")).await;
        assert_eq!(
            all,
            ["DELETE 403 permission_denied", "POST 200 -"],
            "{items:#?}"
        );
        assert_eq!(items[1]["path"], format!("/v1/machines/{machine}/exec"));
        assert_eq!(items[1]["remote"], "127.0.0.1");
        assert_ne!(items[0]["key_id"], items[1]["key_id"]);
        let (made, items) = about(&team, "about=/v1/machines&limit=100").await;
        assert_eq!(made.last().unwrap(), "POST 201 -", "{items:#?}");
        // Page by page it is the same.
        let mut paged = Vec::new();
        let mut cursor = String::new();
        loop {
            let (_, page) = team
                .get(&format!("/v1/audit?limit=1&cursor={cursor}"))
                .await;
            paged.extend(page["items"].as_array().unwrap().clone());
            match page["next_cursor"].as_str() {
                Some(next) => next.clone_into(&mut cursor),
                None => break,
            }
        }
        assert_eq!(paged, about(&team, "limit=100").await.1);
        let text = std::fs::read_to_string(world.data.path().join("audit/00000001.jsonl")).unwrap();
        for secret in ["not-for-the-log", "in-the-query", "ns_live_", &team.key] {
            assert!(!text.contains(secret), "{secret}");
        }
        // Nobody's is the operator's to see, as is everybody's.
        let (_, items) = about(&operator(&world), "limit=100").await;
        assert!(
            items
                .iter()
                .any(|item| item["status"] == 401 && item.get("key_id").is_none())
        );
        assert!(
            items
                .iter()
                .any(|item| item["path"].as_str().unwrap().contains(&machine))
        );
        assert!(
            paged
                .iter()
                .all(|item| item["tenant_id"] == paged[0]["tenant_id"])
        );
        assert_eq!(
            team.refused(Method::GET, "/v1/audit?tenant_id=tnt_default", json!({}))
                .await,
            denied("permission_denied")
        );
        assert_eq!(
            team.refused(Method::GET, "/v1/audit?cursor=x", json!({}))
                .await,
            (400, "invalid_request".to_owned())
        );
        machine
    };
    world.restart().await;
    let (_, page) = operator(&world)
        .get(&format!("/v1/audit?about={machine}"))
        .await;
    assert_eq!(page["items"].as_array().unwrap().len(), 2);
}

/// Each stream hears of its own tenant's machines alone, and each webhook.
#[tokio::test(flavor = "multi_thread")]
async fn streams_and_webhooks_tell_of_the_tenants_own() {
    let world = World::with(Config {
        webhook_private_receivers: true,
        ..Config::default()
    })
    .await;
    let receiver = Receiver::start().await;
    let owner = operator(&world);
    let team = tenant(&world, "team", json!({}), "write").await;
    let before = owner.made("/v1/machines", json!({})).await;
    let hook = json!({"url": receiver.url(), "operations": ["create"], "signing_secret": "s", "enabled": true});
    team.made("/v1/lifecycle/webhooks", hook).await;
    let bearer = format!("Bearer {}", team.key);
    let open = async |path: &str| {
        let headers = [("authorization", bearer.as_str())];
        let (client, _) = Client::with(&world, path, &headers).await.unwrap();
        client
    };
    let mut monitor = open("/v1/monitor/ws").await;
    monitor
        .say(json!({"type": "monitor_subscribe", "id": "m", "interval_ms": 250, "include_processes": true}))
        .await;
    let mut events = open("/v1/lifecycle/ws").await;
    events.say(json!({"type": "subscribe"})).await;
    assert_eq!(events.hear().await["type"], "subscribed");
    let after = owner.made("/v1/machines", json!({})).await;
    let own = team.made("/v1/machines", json!({})).await;
    // Once the own one is told of in every way, the others would have been.
    let mut kinds = std::collections::BTreeSet::new();
    while kinds.len() < 4 {
        let said = monitor.hear().await;
        let text = said.to_string();
        assert!(!text.contains(&before) && !text.contains(&after), "{text}");
        if text.contains(&own) || said["type"] == "monitor_snapshot" {
            kinds.insert(said["type"].as_str().unwrap().to_owned());
        }
    }
    let mut told = 0;
    while told < 2 {
        let said = events.hear().await;
        assert_eq!(said["event"]["machine_id"], *own, "{said}");
        told += 1;
    }
    let calls = receiver.until(2).await;
    for call in &calls {
        assert_eq!(call.event()["machine_id"], *own);
    }
    // A socket of another's machine is not opened.
    for path in ["ws?channel=exec", "ws?channel=pty", "lifecycle/ws"] {
        let path = format!("/v1/machines/{before}/{path}");
        let headers = [("authorization", bearer.as_str())];
        let refused = Client::with(&world, &path, &headers).await.err().unwrap();
        let tokio_tungstenite::tungstenite::Error::Http(answer) = refused else {
            panic!("{refused}");
        };
        assert_eq!(answer.status().as_u16(), 404, "{path}");
    }
}
