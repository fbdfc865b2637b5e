//! Runs the resolver with this host's own files until it is interrupted: `serve [ADDRESS:PORT]`, by
//! default `127.0.0.1:5300`. Ask it with any DNS tool.

use nullspace_resolver::{Config, Listen, run};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "127.0.0.1:5300".into())
        .parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let config = Config::new(vec![Listen::Address(address)]);
    runtime.block_on(run(config, async { drop(tokio::signal::ctrl_c().await) }))?;
    Ok(())
}
