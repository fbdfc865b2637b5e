//! `nullspace doctor --attack`: what is promised of machines, tried on this host.
//!
//! ```text
//!  for each engine that works here:
//!    a server of its own ─▶ a victim that has a secret, an attacker ─▶ attempts in the attacker     (inside.rs, probes.rs)
//!                                                                    ─▶ requests to the server       (doors.rs, strangers.rs)
//!                                                                    ─▶ floods beside the victim     (floods.rs)
//! ```
//! The attempts are made by this program itself, carried into the machine: nothing has to be installed there.

mod doors;
mod floods;
mod inside;
mod names;
mod place;
mod probes;
mod strangers;

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
};

use comfy_table::{ContentArrangement, Table, presets};
use nullspace_api::id;
use nullspace_engine_gvisor::Release;
use serde::Serialize;
use serde_json::json;

use self::{
    inside::{Asked, PORT, Said, Try},
    place::{Place, text},
    probes::{ALLOWED, Group, Probe, Targets},
};
use crate::{
    app::App,
    error::{CliError, Outcome},
    exit,
};

/// What this program is called as when it makes attempts in a machine.
pub(crate) const PROBE: &str = "attack-probe";

/// How an attempt went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "status", content = "detail", rename_all = "snake_case")]
enum How {
    /// It was refused.
    Stopped(String),
    /// What came of it stays in the machine.
    Contained(String),
    /// It gave what it should not.
    Open(String),
    /// It came to no end.
    NotTried(String),
}

impl How {
    fn word(&self) -> &'static str {
        match self {
            Self::Stopped(_) => "stopped",
            Self::Contained(_) => "contained",
            Self::Open(_) => "OPEN",
            Self::NotTried(_) => "not tried",
        }
    }

    fn detail(&self) -> &str {
        match self {
            Self::Stopped(detail)
            | Self::Contained(detail)
            | Self::Open(detail)
            | Self::NotTried(detail) => detail,
        }
    }
}

/// One probe on one engine.
struct Row {
    group: Group,
    name: String,
    what: String,
    how: How,
}

/// One probe on all of them.
#[derive(Serialize)]
struct Line {
    group: Group,
    name: String,
    what: String,
    engines: BTreeMap<&'static str, How>,
}

#[derive(Serialize)]
struct Report {
    ok: bool,
    engines: Vec<&'static str>,
    probes: Vec<Line>,
}

/// The whole life of the process that is carried into a machine.
pub(crate) fn probe(kind: &str, what: &str) -> Result<(), String> {
    inside::main(kind, what)
}

pub(super) async fn run(app: &App) -> Outcome {
    let ui = app.ui;
    if !rustix::process::geteuid().is_root() {
        return Err(CliError::new(
            "permission_denied",
            "attacks are made on machines of this host, and making those needs root",
        )
        .hint("Run `sudo nullspace doctor --attack`."));
    }
    let mut engines = vec!["native"];
    match Release::find() {
        Ok(_) => engines.push("gvisor"),
        Err(reason) => ui.note(format!("gvisor is not here: {reason}")),
    }
    let mut lines: Vec<Line> = Vec::new();
    for engine in &engines {
        ui.note(format!(
            "Attacking machines of {engine}, on a server of its own …"
        ));
        for row in attack(engine).await? {
            let known = lines
                .iter_mut()
                .find(|line| line.name == row.name && line.group == row.group);
            match known {
                Some(line) => drop(line.engines.insert(engine, row.how)),
                None => lines.push(Line {
                    group: row.group,
                    name: row.name,
                    what: row.what,
                    engines: BTreeMap::from([(*engine, row.how)]),
                }),
            }
        }
    }
    let is_open = |line: &&Line| line.engines.values().any(|how| matches!(how, How::Open(_)));
    let open = lines.iter().filter(is_open).count();
    let report = Report {
        ok: open == 0,
        engines,
        probes: lines,
    };
    if ui.json {
        ui.json(&report)?;
        return Ok(0);
    }
    for line in table(&report).lines() {
        ui.line(line.trim_end());
    }
    let count = report.probes.len();
    ui.note(match open {
        0 => format!("{count} probes; none got through."),
        open => format!("{open} of {count} probes got through."),
    });
    Ok(if open == 0 { 0 } else { exit::GENERAL })
}

fn table(report: &Report) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic);
    let mut group = None;
    for line in &report.probes {
        if group.replace(line.group) != Some(line.group) {
            let head = [line.group.title(), ""].into_iter();
            table.add_row(head.chain(report.engines.iter().copied()));
        }
        let mut cells = vec![format!("  {}", line.name), line.what.clone()];
        for engine in &report.engines {
            cells.push(match line.engines.get(engine) {
                Some(how) => format!("{} ({})", how.word(), how.detail()),
                None => "-".to_owned(),
            });
        }
        table.add_row(cells);
    }
    table
}

/// Everything, on machines of one engine.
async fn attack(engine: &'static str) -> Result<Vec<Row>, CliError> {
    let place = Place::start(engine).await?;
    let failed = |error: std::io::Error| CliError::local("prepare the attack", &error);
    let (host_secret, told) = (id::new(""), id::new(""));
    // In a directory of its own: what is written beside it is looked for.
    let marker = place.directory().join("outside/marker");
    std::fs::create_dir_all(place.directory().join("outside")).map_err(failed)?;
    std::fs::write(&marker, &host_secret).map_err(failed)?;
    let victim = place.machine(json!({})).await?;
    place.tell(&victim, &told).await?;
    let attacker = place.machine(json!({})).await?;
    let limits = json!({"network": {"egress": {"mode": "custom", "allow_domains": [ALLOWED]}}});
    let limited = place.machine(limits).await?;

    let everywhere = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(failed)?;
    let loopback = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed)?;
    let hosts = hosts(&place, &everywhere, &loopback).map_err(failed)?;
    let neighbour = address(&place, &victim).await?;
    let data_dir = place.data_dir();
    let disks = disks();
    let targets = Targets {
        marker: &marker,
        secret: &host_secret,
        data_dir: &data_dir,
        disks: &disks,
        hosts: &hosts,
        neighbour: &[("neighbour", SocketAddr::new(neighbour, PORT))],
    };
    let has_kernel = engine != "native";
    let works = Try::Read("/etc/passwd".into());
    let mut rows = try_all(
        &place,
        &attacker,
        probes::in_a_machine(&targets),
        works,
        has_kernel,
    )
    .await?;
    let allowed = Try::ResolveAtAll(ALLOWED.to_owned());
    rows.extend(
        try_all(
            &place,
            &limited,
            probes::with_one_name(),
            allowed,
            has_kernel,
        )
        .await?,
    );
    for listener in [everywhere, loopback] {
        listener.set_nonblocking(true).map_err(failed)?;
        if listener.accept().is_ok() {
            let came = rows.iter_mut().filter(|row| row.group == Group::Network);
            came.for_each(|row| row.how = How::Open("the host took a connection".into()));
        }
    }
    let scene = doors::Scene {
        place: &place,
        attacker: &attacker,
        victim: &victim,
        told: &told,
        marker: &marker,
        secret: &host_secret,
    };
    place.tell(&attacker, "the attacker's own").await?;
    rows.extend(doors::all(&scene).await?);
    rows.extend(floods::all(&place, &victim).await?);
    rows.sort_by_key(|row| row.group as u8);
    Ok(rows)
}

/// Makes attempts in a machine. Nothing is believed of them unless what is let through for sure was let through.
async fn try_all(
    place: &Place,
    machine: &str,
    probes: Vec<Probe>,
    control: Try,
    has_kernel: bool,
) -> Result<Vec<Row>, CliError> {
    const CONTROL: &str = "control";
    let asked = probes.iter().map(|probe| Asked {
        name: probe.name.clone(),
        r#try: probe.r#try.clone(),
    });
    let control = Asked {
        name: CONTROL.to_owned(),
        r#try: control,
    };
    let asked: Vec<Asked> = asked.chain([control]).collect();
    let asked = serde_json::to_string(&asked)
        .map_err(|error| CliError::new("local_error", error.to_string()))?;
    let ended = place.run(machine, "all", &asked).await?;
    let said: Vec<(String, Said)> = serde_json::from_str(&text(&ended, "stdout")?)
        .map_err(|_| CliError::new("local_error", format!("the probes said {ended}")))?;
    let mut said: BTreeMap<String, Said> = said.into_iter().collect();
    let works = matches!(said.get(CONTROL), Some(Said::LetThrough(_)));
    let rows = probes.into_iter().map(|probe| {
        let how = match said.remove(&probe.name) {
            _ if !works => How::NotTried("what is allowed was not let through either".into()),
            Some(Said::Refused(detail)) => How::Stopped(detail),
            Some(Said::LetThrough(_)) if has_kernel && probe.is_the_machines => {
                How::Contained("by the machine's own kernel".into())
            }
            Some(Said::LetThrough(detail)) => How::Open(detail),
            Some(Said::Broke(detail)) => How::NotTried(detail),
            None => How::NotTried("nothing was heard of it".into()),
        };
        Row {
            group: probe.group,
            name: probe.name,
            what: probe.what,
            how,
        }
    });
    Ok(rows.collect())
}

/// Where this host takes connections, as a machine might know it.
fn hosts(
    place: &Place,
    everywhere: &TcpListener,
    loopback: &TcpListener,
) -> std::io::Result<Vec<(&'static str, SocketAddr)>> {
    let open = everywhere.local_addr()?.port();
    let mut all = vec![
        ("host_loopback", loopback.local_addr()?),
        (
            "host_unspecified",
            SocketAddr::from((Ipv4Addr::UNSPECIFIED, open)),
        ),
    ];
    let outward = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    if outward.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).is_ok() {
        let mut address = outward.local_addr()?;
        address.set_port(open);
        all.push(("host_address", address));
    }
    let gateway = std::fs::read_to_string(place.data_dir().join("run/gateway"))?;
    if let Ok(gateway) = gateway.trim().parse::<Ipv4Addr>() {
        all.push(("host_gateway", SocketAddr::from((gateway, open))));
        all.push(("host_gateway_ssh", SocketAddr::from((gateway, 22))));
    }
    if let Ok(api) = place.base().trim_start_matches("http://").parse() {
        all.push(("server_api", api));
    }
    Ok(all)
}

/// Where a machine is, as it says itself.
async fn address(place: &Place, machine: &str) -> Result<std::net::IpAddr, CliError> {
    let said = place.run(machine, "address", "").await?;
    let address = text(&said, "stdout")?;
    address.trim().parse().map_err(|_| {
        CliError::new(
            "local_error",
            format!("a machine says its address is {address}"),
        )
    })
}

/// The host's disks, a few of them.
fn disks() -> Vec<String> {
    let is_disk = |name: &String| !name.starts_with("loop") && !name.starts_with("ram");
    let names = std::fs::read_dir("/sys/block")
        .into_iter()
        .flatten()
        .flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(is_disk).take(2).collect()
}
