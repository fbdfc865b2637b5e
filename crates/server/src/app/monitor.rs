//! The monitor: all machines, as they change and what they use, told over one connection.
//!
//! ```text
//!  subscribe ──▶ a task: snapshot, then ┬ a machine's owner says that it changed ──▶ update
//!                                       └ each interval, for each that runs ──▶ metrics [, processes]
//! ```
//! A subscription holds no state of its own but its place among the changes. Who reads slowly makes its task wait, and
//! gets a snapshot again when too many changes came meanwhile.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::StreamExt;
use nullspace_api::{
    machine::MachineInfo,
    metrics::MachineMetrics,
    monitor::{ClientMessage, ServerMessage},
    process::ProcessInfo,
};
use nullspace_lifecycle::machine::State;
use nullspace_store::machine::MachineRow;
use tokio::{
    sync::{broadcast::error::RecvError, mpsc},
    task::{AbortHandle, JoinSet},
    time::{Instant, MissedTickBehavior},
};

use super::{
    AppState, machine,
    metrics::{self, Age},
    process,
    socket::TextFrame,
};

/// Subscriptions of one connection.
const MAX_SUBSCRIPTIONS: usize = 16;
/// The longest `id`, in bytes.
const MAX_ID: usize = 256;
/// Between two measurements, unless it is said.
const INTERVAL: Duration = Duration::from_secs(5);
const SHORTEST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(3600);
/// Readings that are not older are shared with other subscriptions.
const FRESH: Duration = Duration::from_secs(1);
/// Bytes of one frame, about. Published clients take a mebibyte.
const FRAME: usize = 512 << 10;
/// Characters of a process's command that are told.
const COMMAND: usize = 512;
/// Machines that are measured together.
const TOGETHER: usize = 16;
/// How long a guest may take to list its processes.
const PATIENCE: Duration = Duration::from_secs(2);

/// One connection.
pub(crate) struct Monitor {
    app: AppState,
    /// Whose machines are told of.
    tenant_id: Arc<str>,
    out: mpsc::Sender<TextFrame>,
    tasks: JoinSet<()>,
    subscriptions: HashMap<String, AbortHandle>,
}

impl Monitor {
    /// Frames go to `out`.
    pub(crate) fn new(app: AppState, tenant_id: Arc<str>, out: mpsc::Sender<TextFrame>) -> Self {
        Self {
            app,
            tenant_id,
            out,
            tasks: JoinSet::new(),
            subscriptions: HashMap::new(),
        }
    }

    /// Takes a frame.
    pub(crate) async fn take(&mut self, text: &str) {
        while self.tasks.try_join_next().is_some() {}
        let message = match serde_json::from_str::<ClientMessage>(text) {
            Ok(message) => message,
            Err(error) => {
                let value: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
                let id = value["id"].as_str().unwrap_or_default();
                let id: String = id.chars().take(MAX_ID / 4).collect();
                return self.refuse(&id, &format!("message: {error}")).await;
            }
        };
        if message.id().len() > MAX_ID {
            return self.refuse("", &format!("id: over {MAX_ID} bytes")).await;
        }
        match message {
            ClientMessage::MonitorSubscribe {
                id,
                interval_ms,
                include_processes,
            } => {
                if let Some(old) = self.subscriptions.remove(&id) {
                    old.abort();
                }
                if self.subscriptions.len() >= MAX_SUBSCRIPTIONS {
                    let text = format!("this connection has {MAX_SUBSCRIPTIONS} subscriptions");
                    return self.refuse(&id, &text).await;
                }
                let interval = interval_ms.map_or(INTERVAL, Duration::from_millis);
                let subscription = Subscription {
                    app: self.app.clone(),
                    tenant_id: self.tenant_id.clone(),
                    id: id.clone(),
                    interval: interval.clamp(SHORTEST, LONGEST),
                    processes: include_processes.unwrap_or(false),
                    out: self.out.clone(),
                };
                let task = self.tasks.spawn(subscription.follow());
                self.subscriptions.insert(id, task);
            }
            ClientMessage::MonitorUnsubscribe { id } => match self.subscriptions.remove(&id) {
                Some(task) => task.abort(),
                None => self.refuse(&id, "there is no such subscription").await,
            },
        }
    }

    async fn refuse(&self, id: &str, message: &str) {
        let (id, message) = (id.into(), message.into());
        say(&self.out, &ServerMessage::MonitorError { id, message }).await;
    }
}

/// A connection that is gone is noticed by whoever holds it.
async fn say(out: &mpsc::Sender<TextFrame>, message: &ServerMessage<'_>) {
    if let Some(frame) = TextFrame::of(message) {
        let _ = out.send(frame).await;
    }
}

struct Subscription {
    app: AppState,
    tenant_id: Arc<str>,
    id: String,
    interval: Duration,
    processes: bool,
    out: mpsc::Sender<TextFrame>,
}

impl Subscription {
    async fn follow(self) {
        // Before the snapshot, so that nothing falls between; what is told twice does no harm.
        let mut changes = self.app.machines.changes();
        self.snapshot().await;
        // A load needs two readings: the first measurement comes as soon as it can be true.
        self.readings(false).await;
        let mut tick = tokio::time::interval_at(Instant::now() + SHORTEST, self.interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                change = changes.recv() => match change {
                    Ok(row) if row.tenant_id == *self.tenant_id => self.update(&row).await,
                    Ok(_) => {}
                    Err(RecvError::Lagged(_)) => self.snapshot().await,
                    Err(RecvError::Closed) => return,
                },
                _ = tick.tick() => self.measure().await,
            }
        }
    }

    /// The machines that are told of.
    fn handles(&self) -> Vec<Arc<machine::Handle>> {
        let mut handles = self.app.machines.all();
        handles.retain(|handle| handle.row().tenant_id == *self.tenant_id);
        handles
    }

    async fn snapshot(&self) {
        let mut handles = self.handles();
        handles.sort_by_key(|handle| handle.row().seq);
        let mut machines = Vec::new();
        let mut bytes = 0;
        let mut rest = handles.into_iter().map(|handle| handle.row()).peekable();
        while let Some(row) = rest.peek() {
            let info = machine::info(row);
            // In both spellings.
            bytes += 2 * serde_json::to_string(&info).map_or(0, |text| text.len());
            if bytes > FRAME {
                break;
            }
            machines.push(info);
            rest.next();
        }
        let machines: &[MachineInfo] = &machines;
        say(
            &self.out,
            &ServerMessage::MonitorSnapshot {
                id: (&self.id).into(),
                machines: machines.into(),
                sandboxes: machines.into(),
            },
        )
        .await;
        for row in rest {
            self.update(&row).await;
        }
    }

    async fn update(&self, row: &Arc<MachineRow>) {
        let info = Box::new(machine::info(row));
        let removed = State::parse(&row.state).is_none_or(State::has_ended);
        say(
            &self.out,
            &ServerMessage::MonitorUpdate {
                id: (&self.id).into(),
                machine_id: (&row.id).into(),
                sandbox_id: (&row.id).into(),
                machine: Some(info.clone()),
                sandbox: Some(info),
                removed,
            },
        )
        .await;
    }

    /// Reads every machine that runs.
    async fn readings(&self, processes: bool) -> Vec<Measured> {
        let handles = self.handles().into_iter();
        let running = handles.filter(|handle| handle.row().state == machine::RUNNING);
        let age = Age {
            fresh: FRESH.min(self.interval / 2),
            old: self.interval * 2 + FRESH,
        };
        futures_util::stream::iter(running)
            .map(|handle| async move {
                // One that ends at this moment is told of as such.
                let metrics = metrics::sample(&self.app, &handle, age).await;
                let listed = async {
                    let listing = process::list(&self.app, &handle.id);
                    tokio::time::timeout(PATIENCE, listing).await.ok()?.ok()
                };
                Measured {
                    metrics: metrics.ok().flatten(),
                    processes: if processes { listed.await } else { None },
                    machine: handle.id.clone(),
                }
            })
            .buffered(TOGETHER)
            .collect()
            .await
    }

    async fn measure(&self) {
        for measured in self.readings(self.processes).await {
            let machine = &measured.machine;
            if let Some(metrics) = measured.metrics {
                let message = ServerMessage::MonitorMetrics {
                    id: (&self.id).into(),
                    machine_id: machine.into(),
                    sandbox_id: machine.into(),
                    metrics,
                };
                say(&self.out, &message).await;
            }
            if let Some(processes) = measured.processes {
                let message = ServerMessage::MonitorProcesses {
                    id: (&self.id).into(),
                    machine_id: machine.into(),
                    sandbox_id: machine.into(),
                    processes: shortened(processes),
                };
                say(&self.out, &message).await;
            }
        }
    }
}

struct Measured {
    machine: String,
    metrics: Option<MachineMetrics>,
    processes: Option<Vec<ProcessInfo>>,
}

/// What fits a frame.
fn shortened(mut processes: Vec<ProcessInfo>) -> Vec<ProcessInfo> {
    for process in &mut processes {
        if let Some((end, _)) = process.command.char_indices().nth(COMMAND) {
            process.command.truncate(end);
        }
    }
    // A character takes six bytes of JSON at most.
    let mut bytes = 0;
    processes.retain(|process| {
        bytes += process.command.len() * 6 + 64;
        bytes <= FRAME
    });
    processes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_fit_a_frame() {
        let process = |n: usize| ProcessInfo {
            pid: 1,
            command: "é".repeat(n),
            running: true,
        };
        let short = shortened(vec![process(3), process(COMMAND + 1)]);
        assert_eq!(short[0].command, "ééé");
        assert_eq!(short[1].command.chars().count(), COMMAND);
        let many = shortened(vec![process(4 * COMMAND); 1000]);
        assert!((10..1000).contains(&many.len()));
        assert!(serde_json::to_string(&many).is_ok_and(|text| text.len() <= FRAME));
    }
}
