//! Times create, `true` and destroy of machines straight through the engine: for finding out where time
//! goes, without the API around it. `cargo run --release --example cycle -- LAYER [COUNT]`, as root.

use std::{path::PathBuf, time::Instant};

use nullspace_engine::{Engine, conformance};
use nullspace_engine_native::{Config, NativeEngine};
use nullspace_protocol::{ExecRequest, GuestClient};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let layer = PathBuf::from(args.next().ok_or("a layer is needed")?);
    let count: usize = args.next().map_or(Ok(200), |n| n.parse())?;
    let data_dir = std::env::temp_dir().join(format!("nullspace-cycle-{}", std::process::id()));
    std::fs::create_dir_all(&data_dir)?;
    let launcher = std::env::current_exe()?
        .parent()
        .and_then(|p| p.parent())
        .ok_or("no folder")?
        .join("nullspace-launcher");
    let engine = NativeEngine::start(Config {
        data_dir: data_dir.clone(),
        launcher: vec![launcher.display().to_string()],
        resolver: Vec::new(),
        ca_bundle: None,
        spare: 8,
        gvisor: None,
    })
    .await?;
    let mut times = [const { Vec::new() }; 4];
    for n in 0..count {
        let id = format!("m{n}");
        let start = Instant::now();
        engine
            .create(&conformance::spec(&id, std::slice::from_ref(&layer)))
            .await?;
        times[0].push(start.elapsed());
        let guest = GuestClient::connect(engine.dial(&id).await?).await?;
        conformance::sh(&guest, ":").await;
        times[1].push(start.elapsed());
        let mark = Instant::now();
        let argv = vec!["/bin/true".to_owned()];
        let mut stream = guest
            .exec(&ExecRequest {
                argv,
                ..ExecRequest::default()
            })
            .await?;
        while stream.next().await?.is_some() {}
        times[2].push(mark.elapsed());
        let mark = Instant::now();
        engine.destroy(&id).await?;
        times[3].push(mark.elapsed());
    }
    for (name, times) in ["create", "create and first command", "command", "destroy"]
        .iter()
        .zip(&mut times)
    {
        times.sort();
        println!(
            "{name:28} p50 {:>10.1?} p99 {:>10.1?}",
            times[count / 2],
            times[count * 99 / 100]
        );
    }
    nullspace_engine_native::shutdown(&data_dir)?;
    std::fs::remove_dir_all(data_dir)?;
    Ok(())
}
