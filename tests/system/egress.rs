//! What machines with rules reach, tried from inside against an internet of the test's own.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    host::run,
    internet::{COUNTED, Internet},
    world::{World, repository},
};

/// How long a condition may take to come true.
const LIMIT: Duration = Duration::from_secs(60);

impl World {
    /// Runs `tests/python/reach.py` in a machine.
    async fn reach(&self, id: &str, arguments: &[&str]) -> BTreeMap<String, Value> {
        let script = std::fs::read_to_string(repository().join("tests/python/reach.py")).unwrap();
        let arguments: Vec<&str> = ["-c", script.as_str()]
            .into_iter()
            .chain(arguments.iter().copied())
            .collect();
        let request = json!({"command": "python3", "args": arguments});
        let (status, done) = self.post(&format!("/v1/machines/{id}/exec"), request).await;
        assert_eq!(status, StatusCode::OK, "{done}");
        assert_eq!(done["exit_code"], 0, "{done}");
        serde_json::from_str(done["stdout"].as_str().unwrap()).unwrap()
    }

    /// How connecting to port 80 of each host goes: `open`, or what is in the way.
    async fn opens(&self, id: &str, hosts: &[&str]) -> Vec<String> {
        let arguments: Vec<&str> = std::iter::once("connect")
            .chain(hosts.iter().flat_map(|host| [*host, "80"]))
            .collect();
        let results = self.reach(id, &arguments).await;
        hosts
            .iter()
            .map(
                |host| match results[&format!("{host} 80")].as_str().unwrap() {
                    hello if hello.starts_with("hello from") => "open".to_owned(),
                    other => other.to_owned(),
                },
            )
            .collect()
    }

    async fn resolves(&self, id: &str, name: &str) -> Value {
        self.reach(id, &["resolve", name]).await[name].clone()
    }

    async fn set_egress(&self, id: &str, egress: Value) -> Value {
        let request = self.request(Method::PATCH, &format!("/v1/machines/{id}/egress"));
        let answer = request
            .json(&json!({"egress": egress}))
            .send()
            .await
            .unwrap();
        let status = answer.status();
        let body: Value = answer.json().await.unwrap();
        assert_eq!(status, StatusCode::OK, "{body}");
        assert_eq!(body["machine_id"], id);
        body["egress"].clone()
    }

    async fn with_rules(&self, network: Value) -> String {
        self.machine(json!({"template": "base", "network": network}))
            .await
    }

    /// What the launcher's packet filter holds.
    fn filter(&self) -> String {
        let tables = run("nft", &["list", "tables"]);
        let table = tables
            .lines()
            .filter_map(|line| line.strip_prefix("table inet "))
            .find(|table| *table == format!("nullspace_{}", self.host.instance()))
            .unwrap()
            .to_owned();
        run("nft", &["list", "table", "inet", &table])
    }

    /// Waits until nothing of machines with rules is left in the filter.
    async fn until_filter_is_bare(&self) {
        let deadline = Instant::now() + LIMIT;
        loop {
            let filter = self.filter();
            if !filter.contains("elements = { \"nv") && !filter.contains("chain out_") {
                return;
            }
            assert!(Instant::now() < deadline, "{filter}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until an event of a machine that clients do not see fits.
    async fn until_event(&self, id: &str, operation: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let path = format!(
            "/v1/lifecycle/events?audience=internal&machine_id={id}&operation={operation}&limit=200"
        );
        let page = self
            .until_at(&path, |page| {
                page["events"]
                    .as_array()
                    .is_some_and(|events| events.iter().any(|event| fits(&event["metadata"])))
            })
            .await;
        let events = page["events"].as_array().unwrap();
        events
            .iter()
            .find(|event| fits(&event["metadata"]))
            .unwrap()
            .clone()
    }
}

/// A server whose machines ask this internet's name server.
async fn world_on(internet: &Internet) -> World {
    World::behind(|directory| internet.resolv_conf(directory)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_are_allowed_and_denied() {
    let internet = Internet::start();
    let world = world_on(&internet).await;
    let [a, b, c] = [10, 20, 30].map(|last| internet.at(last).to_string());
    let hosts = [a.as_str(), b.as_str(), c.as_str()];

    let free = world.machine(json!({"template": "base"})).await;
    assert_eq!(world.opens(&free, &hosts).await, ["open"; 3]);
    assert!(
        !world.filter().contains("chain out_"),
        "a machine without rules has nothing in the filter"
    );

    // The older spelling: all is denied but one address.
    let only = world
        .with_rules(json!({"deny_out": ["0.0.0.0/0"], "allow_out": [a]}))
        .await;
    assert_eq!(
        world.opens(&only, &hosts).await,
        ["open", "ECONNREFUSED", "ECONNREFUSED"]
    );
    let (_, shown) = world.get(&format!("/v1/machines/{only}")).await;
    assert_eq!(
        shown["egress"],
        json!({"mode": "custom", "allow_cidrs": [format!("{a}/32")], "deny_cidrs": ["0.0.0.0/0"]})
    );
    assert_eq!(shown["internet_access"], true);

    // The newer one: an allow list with a hole.
    let hole = world
        .with_rules(json!({"egress": {"mode": "custom", "allow_cidrs": [internet.net()], "deny_cidrs": [b]}}))
        .await;
    assert_eq!(
        world.opens(&hole, &hosts).await,
        ["open", "ECONNREFUSED", "open"]
    );

    // What no rules open.
    let greedy = world
        .with_rules(json!({"egress": {"mode": "custom",
            "allow_cidrs": ["0.0.0.0/0", "127.0.0.0/8", "10.0.0.0/8", "169.254.169.254"]}}))
        .await;
    let gateway = world.host.gateway();
    let neighbour = world.out(&free, "hostname -I").await;
    let listening =
        json!({"command": "python3", "args": ["-m", "http.server", "80"], "background": true});
    world
        .post(&format!("/v1/machines/{free}/exec"), listening)
        .await;
    // Where clouds keep their metadata there is somebody: the host itself reaches it.
    let link_local = internet.link_local().to_string();
    assert!(std::net::TcpStream::connect((internet.link_local(), 80)).is_ok());
    let never = [
        gateway.as_str(),
        neighbour.trim(),
        "169.254.169.254",
        link_local.as_str(),
        a.as_str(),
    ];
    for id in [&greedy, &free] {
        let results = world.opens(id, &never[1..]).await;
        assert_eq!(results[3], "open");
        for (host, result) in never[2..4].iter().zip(&results[1..3]) {
            assert_ne!(result, "open", "{host}");
        }
    }
    for (host, result) in never.iter().zip(world.opens(&greedy, &never[..2]).await) {
        assert_ne!(result, "open", "{host}");
    }

    // Nothing of it is left when they are gone, and nobody inherits anything.
    for id in [&only, &hole, &greedy] {
        world.delete(&format!("/v1/machines/{id}")).await;
    }
    world.until_filter_is_bare().await;
    let next = world.machine(json!({"template": "base"})).await;
    assert_eq!(world.opens(&next, &hosts).await, ["open"; 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_allowed_and_open_their_addresses_alone() {
    let internet = Internet::start();
    let world = world_on(&internet).await;
    let names = &internet.names;
    names.set("api.allowed.test", &[internet.at(10)]);
    names.set("allowed.test", &[internet.at(11)]);
    names.set("exact.test", &[internet.at(12)]);
    names.alias("www.allowed.test", "edge.cdn.test");
    names.set("edge.cdn.test", &[internet.at(13)]);
    names.set("other.test", &[internet.at(20)]);
    names.set("evil.allowed.test", &[internet.at(21)]);
    names.set(
        "rebind.allowed.test",
        &[
            internet.private(1),
            [127, 0, 0, 1].into(),
            [169, 254, 169, 254].into(),
            [10, 0, 0, 1].into(),
        ],
    );
    names.set(
        "mixed.allowed.test",
        &[internet.private(2), internet.at(14)],
    );
    names.set("denied-address.allowed.test", &[internet.at(99)]);
    let at = |last: u8| internet.at(last).to_string();

    let rules = json!({"egress": {"mode": "custom", "allow_domains": ["*.Allowed.TEST.", "exact.test"],
        "deny_domains": ["evil.allowed.test"], "allow_cidrs": [at(30)], "deny_cidrs": [at(99)]}});
    let (one, two) = tokio::join!(world.with_rules(rules.clone()), world.with_rules(rules));

    // Before a name was asked for, its address is closed; afterwards it is open, for who asked.
    assert_eq!(world.opens(&one, &[&at(10)]).await, ["ECONNREFUSED"]);
    assert_eq!(
        world
            .opens(
                &one,
                &[
                    "api.allowed.test",
                    "API.allowed.Test.",
                    "exact.test",
                    &at(30)
                ]
            )
            .await,
        ["open"; 4]
    );
    assert_eq!(world.opens(&one, &[&at(10), &at(12)]).await, ["open"; 2]);
    assert_eq!(
        world.opens(&two, &[&at(10), &at(12)]).await,
        ["ECONNREFUSED"; 2]
    );
    // An alias: the name that was asked for decides, not the one that it stands for.
    assert_eq!(world.opens(&one, &["www.allowed.test"]).await, ["open"]);
    assert_eq!(world.resolves(&one, "edge.cdn.test").await, "no such name");

    // Everything else does not exist, and nobody else is asked about it.
    for name in [
        "other.test",
        "allowed.test",
        "evil.allowed.test",
        "x.exact.test",
    ] {
        assert_eq!(world.resolves(&one, name).await, "no such name", "{name}");
        assert_eq!(names.asked(name), 0, "{name}");
    }
    assert_eq!(
        world.opens(&one, &[&at(20), &at(21), &at(11)]).await,
        ["ECONNREFUSED"; 3]
    );
    // Nor by another name server, over whatever it speaks.
    let elsewhere = [
        at(53),
        "53".into(),
        at(53),
        "853".into(),
        at(53),
        "443".into(),
    ];
    let arguments: Vec<&str> = std::iter::once("connect")
        .chain(elsewhere.iter().map(String::as_str))
        .collect();
    for (place, result) in world.reach(&one, &arguments).await {
        assert_eq!(result, "ECONNREFUSED", "{place}");
    }

    // An allowed name that leads into somebody's own network leads nowhere. The network is there: others reach it.
    let free = world.machine(json!({"template": "base"})).await;
    let private = internet.private(1).to_string();
    assert_eq!(world.opens(&free, &[&private]).await, ["open"]);
    assert_eq!(
        world.resolves(&one, "rebind.allowed.test").await,
        "no address"
    );
    assert_eq!(world.opens(&one, &[&private]).await, ["ECONNREFUSED"]);
    assert_eq!(
        world.resolves(&one, "mixed.allowed.test").await,
        json!([at(14)])
    );
    assert_eq!(
        world.resolves(&one, "denied-address.allowed.test").await,
        "no address"
    );
    assert_eq!(world.opens(&one, &[&at(99)]).await, ["ECONNREFUSED"]);

    // What was refused is in the log, for those who run the server.
    let event = world
        .until_event(&one, "egress_denied", |m| m["name"] == "other.test")
        .await;
    assert_eq!(event["audience"], "internal");
    assert_eq!(event["metadata"]["protocol"], "dns");
    let event = world
        .until_event(&one, "egress_denied", |m| m["address"] == at(20))
        .await;
    assert_eq!(event["metadata"]["port"], 80);
    assert_eq!(event["metadata"]["protocol"], "tcp");
    assert!(event["metadata"]["count"].as_u64().unwrap() >= 1);
    let ping = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP); \
         s.sendto(bytes([8, 0, 247, 255, 0, 0, 0, 0]), (\"PLACE\", 0))";
    let ping = ping.replace("PLACE", &at(21));
    world.shell(&one, &format!("python3 -c '{ping}'")).await;
    let event = world
        .until_event(&one, "egress_denied", |m| m["protocol"] == "icmp")
        .await;
    assert_eq!(event["metadata"]["address"], at(21));
    assert_eq!(event["metadata"].get("port"), None);
    let told = |more: &[&str]| {
        let listing = ["lifecycle", "events", "--machine-id", &one];
        let output = world.nullspace(&[&listing, more].concat());
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(told(&["--audience", "internal"]).contains("egress_denied"));
    assert!(!told(&[]).contains("egress_denied"));
    let (_, customers) = world
        .get(&format!("/v1/sandboxes/{one}/lifecycle?limit=200"))
        .await;
    for event in customers["events"].as_array().unwrap() {
        let operation = event["operation"].as_str().unwrap();
        assert!(!operation.starts_with("egress"), "{event}");
    }

    // A resolver that is killed comes back with the rules, and what is open stays open.
    world.host.kill_resolver();
    let deadline = Instant::now() + LIMIT;
    while world.resolves(&one, "api.allowed.test").await != json!([at(10)]) {
        assert!(Instant::now() < deadline, "no resolver");
    }
    assert_eq!(world.resolves(&one, "other.test").await, "no such name");
    assert_eq!(world.opens(&one, &[&at(12)]).await, ["open"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn denied_names_do_not_exist() {
    let internet = Internet::start();
    let world = world_on(&internet).await;
    internet.names.set("good.test", &[internet.at(10)]);
    internet.names.set("ads.bad.test", &[internet.at(11)]);
    let id = world
        .with_rules(
            json!({"egress": {"mode": "custom", "deny_domains": ["*.bad.test", "bad.test"]}}),
        )
        .await;
    assert_eq!(world.opens(&id, &["good.test"]).await, ["open"]);
    for name in ["ads.bad.test", "ADS.Bad.test.", "bad.test"] {
        assert_eq!(world.resolves(&id, name).await, "no such name", "{name}");
    }
    // By its address it can be reached: only the name is denied. Another name server cannot be asked for it.
    let (address, server) = (internet.at(11).to_string(), internet.at(53).to_string());
    assert_eq!(world.opens(&id, &[&address, &server]).await, ["open"; 2]);
    let results = world
        .reach(&id, &["connect", &server, "53", &server, "853"])
        .await;
    assert!(
        results.values().all(|result| result == "ECONNREFUSED"),
        "{results:?}"
    );
}

/// A command in a machine that holds a connection open and says what it hears, a line each.
async fn hold(world: &World, id: &str, address: &str) -> String {
    let script = format!(
        "import socket, time\n\
         s = socket.create_connection(('{address}', 80), timeout=60)\n\
         f = s.makefile('rw')\n\
         print(f.readline().strip(), flush=True)\n\
         n = 0\n\
         while True:\n\
         \x20   try:\n\
         \x20       f.write(f'{{n}}\\n'); f.flush(); print(f.readline().strip(), flush=True)\n\
         \x20   except OSError as error:\n\
         \x20       print('over', type(error).__name__, flush=True); break\n\
         \x20   n += 1; time.sleep(0.05)\n"
    );
    let body = json!({"command": "python3", "args": ["-c", script], "background": true});
    let (_, started) = world.post(&format!("/v1/machines/{id}/exec"), body).await;
    let logs = format!("/v1/machines/{id}/processes/{}/logs", started["pid"]);
    world.until_at(&logs, |logs| lines(logs) > 2).await;
    logs
}

fn lines(logs: &Value) -> usize {
    logs["stdout"].as_str().unwrap_or_default().lines().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_machine_gets_other_rules() {
    let internet = Internet::start();
    let mut world = world_on(&internet).await;
    internet.names.set("a.test", &[internet.at(10)]);
    internet.names.set("b.test", &[internet.at(20)]);
    let (a, b) = (internet.at(10).to_string(), internet.at(20).to_string());
    let id = world.machine(json!({"template": "base"})).await;
    let goes_on = hold(&world, &id, &a).await;
    let ends = hold(&world, &id, &b).await;

    // Tighter: what is still allowed goes on, what is not ends.
    let set = world
        .set_egress(&id, json!({"mode": "custom", "allow_cidrs": [a]}))
        .await;
    assert_eq!(
        set,
        json!({"mode": "custom", "allow_cidrs": [format!("{a}/32")]})
    );
    let is_over = |logs: &Value| logs["stdout"].as_str().unwrap_or_default().contains("over");
    world.until_at(&ends, is_over).await;
    let (_, before) = world.get(&goes_on).await;
    let seen = lines(&before);
    let after = world
        .until_at(&goes_on, |logs| lines(logs) > seen + 3)
        .await;
    assert!(!is_over(&after), "{after}");
    assert_eq!(world.opens(&id, &[&a, &b]).await, ["open", "ECONNREFUSED"]);

    // By name: a connection that a name opened goes on while the rules stay, and ends with the name.
    world
        .set_egress(&id, json!({"mode": "custom", "allow_domains": ["b.test"]}))
        .await;
    world.until_at(&goes_on, is_over).await;
    assert_eq!(
        world.opens(&id, &["b.test", "a.test", &a]).await,
        ["open", "no such name", "ECONNREFUSED"]
    );
    let named = hold(&world, &id, &b).await;
    world
        .set_egress(
            &id,
            json!({"mode": "custom", "allow_domains": ["b.test", "a.test"]}),
        )
        .await;
    let (_, before) = world.get(&named).await;
    let seen = lines(&before);
    let after = world.until_at(&named, |logs| lines(logs) > seen + 3).await;
    assert!(!is_over(&after), "{after}");

    // A server that is killed and started again keeps them, and so does its successor's record.
    world.kill();
    world.serve().await;
    assert_eq!(world.opens(&id, &["a.test"]).await, ["open"]);
    assert_eq!(world.resolves(&id, "c.test").await, "no such name");
    let (_, shown) = world.get(&format!("/v1/machines/{id}")).await;
    assert_eq!(
        shown["egress"],
        json!({"mode": "custom", "allow_domains": ["b.test", "a.test"]})
    );

    // Off, with names; and on again.
    world.set_egress(&id, json!({"mode": "deny_all"})).await;
    world.until_at(&named, is_over).await;
    assert_eq!(world.opens(&id, &[&a, &b]).await, ["ECONNREFUSED"; 2]);
    let asked = internet.names.asked("b.test");
    assert_ne!(world.resolves(&id, "b.test").await, json!([b]));
    assert_eq!(internet.names.asked("b.test"), asked);
    let (_, shown) = world.get(&format!("/v1/machines/{id}")).await;
    assert_eq!(shown["internet_access"], false);
    world.set_egress(&id, json!({"mode": "allow_all"})).await;
    assert_eq!(world.opens(&id, &["a.test", &b]).await, ["open"; 2]);
    world.until_filter_is_bare().await;
    let event = world
        .until_event(&id, "egress_updated", |m| {
            m["egress"]["mode"] == "allow_all"
        })
        .await;
    assert_eq!(event["actor_kind"], "user");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_internet_is_switched_on_and_off() {
    let internet = Internet::start();
    let mut world = world_on(&internet).await;
    internet.names.set("a.test", &[internet.at(10)]);
    let a = internet.at(10).to_string();
    let id = world
        .machine(json!({"template": "base", "internet_access": false,
            "network": {"egress": {"mode": "custom", "allow_cidrs": ["0.0.0.0/0"]}}}))
        .await;
    let (_, shown) = world.get(&format!("/v1/machines/{id}")).await;
    assert_eq!(shown["egress"], json!({"mode": "deny_all"}));
    assert_ne!(world.opens(&id, &[&a]).await, ["open"]);
    // Its own services are reached all the same.
    let listening =
        json!({"command": "python3", "args": ["-m", "http.server", "8000"], "background": true});
    world
        .post(&format!("/v1/machines/{id}/exec"), listening)
        .await;

    world
        .set_egress(&id, json!({"mode": "custom", "allow_domains": ["a.test"]}))
        .await;
    assert_eq!(world.opens(&id, &["a.test"]).await, ["open"]);
    world.set_egress(&id, json!({"mode": "allow_all"})).await;
    assert_eq!(world.opens(&id, &[&a]).await, ["open"]);
    world.set_egress(&id, json!({"mode": "deny_all"})).await;
    assert_ne!(world.opens(&id, &[&a, "a.test"]).await[0], "open");
    world.kill();
    world.serve().await;
    assert_ne!(world.opens(&id, &[&a]).await, ["open"]);
    world.set_egress(&id, json!({"mode": "allow_all"})).await;
    assert_eq!(world.opens(&id, &["a.test"]).await, ["open"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_limit_holds() {
    let internet = Internet::start();
    let world = world_on(&internet).await;
    let id = world
        .with_rules(json!({"egress": {"mode": "custom", "rate_limit": {"pps": 1, "burst": 20}}}))
        .await;
    let (address, port) = (internet.at(10).to_string(), COUNTED.to_string());
    world.reach(&id, &["flood", &address, &port, "2000"]).await;
    // Datagrams on a link of this host come in order and at once; another machine's tells that they are all there.
    let free = world.machine(json!({"template": "base"})).await;
    let before = internet.datagrams();
    world.reach(&free, &["flood", &address, &port, "1"]).await;
    let deadline = Instant::now() + LIMIT;
    while internet.datagrams() == before {
        assert!(Instant::now() < deadline, "nothing arrives");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let through = internet.datagrams() - 1;
    assert!((20..200).contains(&through), "{through} of 2000");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_launcher_leaves_no_rules() {
    let internet = Internet::start();
    let mut world = world_on(&internet).await;
    let a = internet.at(10).to_string();
    let id = world
        .with_rules(json!({"egress": {"mode": "custom", "deny_cidrs": ["0.0.0.0/0"]}}))
        .await;
    assert_eq!(world.opens(&id, &[&a]).await, ["ECONNREFUSED"]);
    let pid = world.host.launcher().unwrap();
    run("kill", &["-9", &pid.to_string()]);
    world.until(&id, |row| row["status"] == "error").await;
    let next = world.machine(json!({"template": "base"})).await;
    assert_eq!(world.opens(&next, &[&a]).await, ["open"]);
    world.until_filter_is_bare().await;
    // The rules of one that is gone cannot be changed.
    let request = world.request(Method::PATCH, &format!("/v1/machines/{id}/egress"));
    let answer = request
        .json(&json!({"egress": {"mode": "allow_all"}}))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::CONFLICT);
    world.kill();
    world.serve().await;
    assert_eq!(world.opens(&next, &[&a]).await, ["open"]);
}

/// Whoever gets the address of a machine that is gone gets nothing else of it. A launcher that starts anew gives the same
/// addresses again.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_comes_without_what_its_last_owner_had() {
    let internet = Internet::start();
    let world = world_on(&internet).await;
    internet.names.set("a.test", &[internet.at(10)]);
    let (a, b) = (internet.at(10).to_string(), internet.at(20).to_string());
    let old = world
        .with_rules(json!({"egress": {"mode": "custom", "allow_domains": ["a.test"]}}))
        .await;
    assert_eq!(world.opens(&old, &["a.test"]).await, ["open"]);
    hold(&world, &old, &a).await;
    let address = world.out(&old, "hostname -I").await;
    let followed = || {
        let all = std::fs::read_to_string("/proc/net/nf_conntrack").unwrap();
        let from = format!("src={address} dst={a} ");
        all.lines().filter(|line| line.contains(&from)).count()
    };
    assert!(followed() > 0);
    let pid = world.host.launcher().unwrap();
    run("kill", &["-9", &pid.to_string()]);
    world.until(&old, |row| row["status"] == "error").await;

    let deadline = Instant::now() + LIMIT;
    let next = loop {
        let next = world.machine(json!({"template": "base"})).await;
        if world.out(&next, "hostname -I").await == address {
            break next;
        }
        assert!(Instant::now() < deadline, "{address} does not come back");
    };
    assert_eq!(followed(), 0);
    assert_eq!(world.opens(&next, &[&a, &b]).await, ["open"; 2]);
    world.until_filter_is_bare().await;
    // Not what a name opened for the other one either.
    world
        .set_egress(
            &next,
            json!({"mode": "custom", "allow_domains": ["c.test"]}),
        )
        .await;
    assert_eq!(world.opens(&next, &[&a]).await, ["ECONNREFUSED"]);
    assert_eq!(world.resolves(&next, "a.test").await, "no such name");
}

/// A host whose packet filter takes no changes while a file is there.
struct Refusing(tempfile::TempDir);

impl Refusing {
    fn new() -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let place = tempfile::tempdir().unwrap();
        let nft = run("sh", &["-c", "command -v nft"]);
        let script = format!(
            "#!/bin/sh\nif [ -e {0}/refuses ]; then echo refused by the test >&2; exit 1; fi\nexec {1} \"$@\"\n",
            place.path().display(),
            nft.trim()
        );
        let program = place.path().join("nft");
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self(place)
    }

    fn path(&self) -> String {
        let rest = std::env::var("PATH").unwrap();
        format!("{}:{rest}", self.0.path().display())
    }

    fn refuses(&self, refuses: bool) {
        let file = self.0.path().join("refuses");
        match refuses {
            true => std::fs::write(file, "").unwrap(),
            false => std::fs::remove_file(file).unwrap(),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_refuses_a_change_closes_the_machine() {
    closes("native").await;
}

/// Its guest is reached over what is closed.
#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_refuses_a_change_closes_a_machine_with_its_own_kernel() {
    if crate::gvisor::is_here() {
        closes("gvisor").await;
    }
}

async fn closes(isolation: &str) {
    let internet = Internet::start();
    let filter = Refusing::new();
    let world = World::behind_in_surroundings(
        |directory| internet.resolv_conf(directory),
        vec![
            ("PATH", filter.path()),
            ("NULLSPACE_ISOLATION", isolation.to_owned()),
        ],
    )
    .await;
    internet.names.set("a.test", &[internet.at(10)]);
    let (a, b) = (internet.at(10).to_string(), internet.at(20).to_string());
    let id = world.machine(json!({"template": "base"})).await;
    let held = hold(&world, &id, &a).await;
    let before = world.listed().await.len();

    filter.refuses(true);
    let patch = |egress: Value| {
        let request = world.request(Method::PATCH, &format!("/v1/machines/{id}/egress"));
        crate::world::answer(request.json(&json!({"egress": egress})))
    };
    let only_a = json!({"mode": "custom", "allow_cidrs": [a]});
    let (status, body) = patch(only_a.clone()).await;
    assert!(status.is_server_error(), "{status}: {body}");
    assert_eq!(body["code"], "internal_error", "{body}");
    // Nothing, not even what the rules before and the rules now allow.
    let reached = world.opens(&id, &[&a, &b, "a.test"]).await;
    assert!(reached.iter().all(|how| how != "open"), "{reached:?}");
    let (_, logs) = world.get(&held).await;
    let seen = lines(&logs);
    assert_eq!(world.out(&id, "echo well").await, "well");
    // Nor is a machine made without the rules that it was to have.
    let request = json!({"template": "base", "network": {"egress": only_a}});
    let (status, body) = world.post("/v1/machines", request.clone()).await;
    assert!(status.is_server_error(), "{status}: {body}");
    assert_eq!(world.listed().await.len(), before);
    let (_, logs) = world.get(&held).await;
    assert!(lines(&logs) <= seen + 1, "{logs}");

    // The same call again, once the filter takes it.
    filter.refuses(false);
    let (status, body) = patch(only_a).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert_eq!(world.opens(&id, &[&a, &b]).await, ["open", "ECONNREFUSED"]);
    let made = world.machine(request).await;
    assert_eq!(
        world.opens(&made, &[&a, &b]).await,
        ["open", "ECONNREFUSED"]
    );
    let (status, body) = patch(json!({"mode": "allow_all"})).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert_eq!(world.opens(&id, &["a.test", &b]).await, ["open"; 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn our_command_line_shows_and_sets_rules() {
    let internet = Internet::start();
    let world = world_on(&internet).await;
    let (a, b) = (internet.at(10).to_string(), internet.at(20).to_string());
    let id = world.machine(json!({"template": "base"})).await;
    let ran = |arguments: &[&str]| {
        let done = world.nullspace(arguments);
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        let shown = serde_json::from_str::<Value>(&text).unwrap_or(Value::Null);
        (done.status.code(), shown, done)
    };
    let (code, shown, done) = ran(&["machine", "egress", "get", &id]);
    assert_eq!(
        (code, shown),
        (Some(0), json!({"mode": "allow_all"})),
        "{done:?}"
    );
    let (code, shown, done) = ran(&["sandbox", "egress", "set", &id, "--allow-cidr", &a]);
    assert_eq!(code, Some(0), "{done:?}");
    assert_eq!(
        shown,
        json!({"mode": "custom", "allow_cidrs": [format!("{a}/32")]})
    );
    assert_eq!(world.opens(&id, &[&a, &b]).await, ["open", "ECONNREFUSED"]);
    let (code, ..) = ran(&["machine", "egress", "set", &id, "--allow-cidr", "::/0"]);
    assert_eq!(code, Some(2));
    let (code, ..) = ran(&["machine", "egress", "set", "mch_nobody", "--deny-all"]);
    assert_eq!(code, Some(3));
    let done = world.nullspace(&[
        "machine",
        "create",
        "--network-json",
        &json!({"egress": {"mode": "custom", "deny_cidrs": [a]}}).to_string(),
    ]);
    let made: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(
        made["egress"],
        json!({"mode": "custom", "deny_cidrs": [format!("{a}/32")]})
    );
    let made = made["id"].as_str().unwrap();
    assert_eq!(world.opens(made, &[&a, &b]).await, ["ECONNREFUSED", "open"]);
}

/// The published clients, as their users call them.
#[tokio::test(flavor = "multi_thread")]
async fn published_clients_make_rules() {
    let internet = Internet::start();
    let world = world_on(&internet).await;
    let (a, b) = (internet.at(10).to_string(), internet.at(20).to_string());
    for (variable, script) in [
        ("NULLSPACE_TEST_PYTHON", "egress_0_1.py"),
        ("NULLSPACE_TEST_PYTHON_NEXT", "egress_1_0.py"),
    ] {
        let Ok(python) = std::env::var(variable) else {
            println!("skipped: {variable} names no Python with the published client");
            continue;
        };
        let done = world
            .isolated(python)
            .arg(repository().join("tests/python").join(script))
            .args([&a, &b])
            .output()
            .unwrap();
        assert!(
            done.status.success(),
            "{script}: {}{}",
            String::from_utf8_lossy(&done.stdout),
            String::from_utf8_lossy(&done.stderr)
        );
    }
}
