//! More than one engine behind one door.
//!
//! A machine is made by the engine that its spec names, or by the strongest one, and from then on belongs to that one:
//! requests find it by the machine's id. Which machine is whose is not written down: engines are asked what lives.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use tokio::sync::broadcast;

use crate::{
    Bind, BoxedIo, Capabilities, Checkpoint, Denial, Engine, EngineError, LiveMachine, MachineExit,
    MachineSpec, Purpose, Usage, egress::Rules,
};

/// News that may wait for a slow reader.
const WAITING: usize = 4096;

/// See the module's docs.
pub struct Several {
    /// Strongest first.
    engines: Vec<Arc<dyn Engine>>,
    machines: Arc<Mutex<HashMap<String, usize>>>,
    exits: broadcast::Sender<MachineExit>,
    denials: broadcast::Sender<Denial>,
}

impl std::fmt::Debug for Several {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.engines.iter().map(|engine| engine.name()).collect();
        f.debug_tuple("Several").field(&names).finish()
    }
}

impl Several {
    /// Puts engines behind one door, the one for machines that name none first. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// [`EngineError::Unavailable`] without any engine.
    pub fn new(engines: Vec<Arc<dyn Engine>>) -> Result<Self, EngineError> {
        if engines.is_empty() {
            return Err(EngineError::Unavailable("no engine is set up".into()));
        }
        let machines: Arc<Mutex<HashMap<String, usize>>> = Arc::default();
        let exits = broadcast::Sender::new(WAITING);
        let denials = broadcast::Sender::new(WAITING);
        for engine in &engines {
            let known = machines.clone();
            pass_on(engine.exits(), exits.clone(), move |exit: &MachineExit| {
                lock(&known).remove(&exit.id);
            });
            pass_on(engine.denials(), denials.clone(), |_: &Denial| {});
        }
        Ok(Self {
            engines,
            machines,
            exits,
            denials,
        })
    }

    fn named(&self, name: Option<&str>) -> Result<usize, EngineError> {
        let Some(name) = name else {
            return Ok(0);
        };
        let place = self.engines.iter().position(|engine| engine.name() == name);
        place.ok_or_else(|| EngineError::InvalidSpec(format!("there is no engine {name:?} here")))
    }

    /// The engine of a live machine.
    async fn of(&self, id: &str) -> Result<&dyn Engine, EngineError> {
        if let Some(n) = lock(&self.machines).get(id) {
            return Ok(&*self.engines[*n]);
        }
        self.list().await?;
        match lock(&self.machines).get(id) {
            Some(n) => Ok(&*self.engines[*n]),
            None => Err(EngineError::NotFound(id.to_owned())),
        }
    }

    /// Makes a machine by `work` on the engine that is asked for.
    async fn make<'a, F>(
        &'a self,
        spec: &MachineSpec,
        work: impl FnOnce(&'a dyn Engine) -> F,
    ) -> Result<(), EngineError>
    where
        F: Future<Output = Result<(), EngineError>>,
    {
        let n = self.named(spec.engine.as_deref())?;
        {
            // Before it is asked for: its end must be told even if it comes at once.
            let mut machines = lock(&self.machines);
            if machines.contains_key(&spec.id) {
                return Err(EngineError::Exists(spec.id.clone()));
            }
            machines.insert(spec.id.clone(), n);
        }
        let made = work(&*self.engines[n]).await;
        if made.is_err() {
            lock(&self.machines).remove(&spec.id);
        }
        made
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Passes news on until the engine is gone.
fn pass_on<T: Clone + Send + 'static>(
    mut from: broadcast::Receiver<T>,
    to: broadcast::Sender<T>,
    seen: impl Fn(&T) + Send + 'static,
) {
    tokio::spawn(async move {
        loop {
            match from.recv().await {
                Ok(news) => {
                    seen(&news);
                    let _ = to.send(news);
                }
                // Whoever listens to us asks what lives from time to time.
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    });
}

#[async_trait]
impl Engine for Several {
    /// That of the engine for machines that name none.
    fn name(&self) -> &'static str {
        self.engines[0].name()
    }

    fn capabilities(&self) -> Capabilities {
        self.engines[0].capabilities()
    }

    fn offers(&self) -> Vec<(&'static str, Capabilities)> {
        let engines = self.engines.iter();
        engines.flat_map(|engine| engine.offers()).collect()
    }

    async fn capabilities_of(&self, id: &str) -> Result<Capabilities, EngineError> {
        Ok(self.of(id).await?.capabilities())
    }

    async fn health(&self) -> Result<(), EngineError> {
        for engine in &self.engines {
            engine.health().await?;
        }
        Ok(())
    }

    async fn create(&self, spec: &MachineSpec) -> Result<(), EngineError> {
        self.make(spec, |engine| engine.create(spec)).await
    }

    async fn destroy(&self, id: &str) -> Result<(), EngineError> {
        let known = lock(&self.machines).get(id).copied();
        match known {
            Some(n) => self.engines[n].destroy(id).await?,
            // Also one that nobody lists may have left something.
            None => {
                for engine in &self.engines {
                    engine.destroy(id).await?;
                }
            }
        }
        lock(&self.machines).remove(id);
        Ok(())
    }

    async fn keep(&self, id: &str, target: &Path) -> Result<(), EngineError> {
        self.of(id).await?.keep(id, target).await?;
        lock(&self.machines).remove(id);
        Ok(())
    }

    async fn pause(&self, id: &str) -> Result<(), EngineError> {
        self.of(id).await?.pause(id).await
    }

    async fn unpause(&self, id: &str) -> Result<(), EngineError> {
        self.of(id).await?.unpause(id).await
    }

    async fn checkpoint(
        &self,
        id: &str,
        target: &Path,
        purpose: Purpose,
    ) -> Result<Checkpoint, EngineError> {
        let engine = self.of(id).await?;
        let made = engine.checkpoint(id, target, purpose).await?;
        if purpose == Purpose::Hibernate {
            lock(&self.machines).remove(id);
        }
        Ok(made)
    }

    async fn restore(&self, spec: &MachineSpec, from: &Path) -> Result<(), EngineError> {
        // Whoever wrote it can read it, whatever is asked for by default.
        let wrote = Checkpoint::read(from).map(|made| made.engine);
        let spec = &MachineSpec {
            engine: wrote.or_else(|| spec.engine.clone()),
            ..spec.clone()
        };
        self.make(spec, |engine| engine.restore(spec, from)).await
    }

    async fn list(&self) -> Result<Vec<LiveMachine>, EngineError> {
        let mut all = Vec::new();
        for (n, engine) in self.engines.iter().enumerate() {
            let live = engine.list().await?;
            let mut machines = lock(&self.machines);
            for machine in &live {
                machines.entry(machine.id.clone()).or_insert(n);
            }
            all.extend(live);
        }
        Ok(all)
    }

    async fn dial(&self, id: &str) -> Result<BoxedIo, EngineError> {
        self.of(id).await?.dial(id).await
    }

    async fn connect(&self, id: &str, port: u16) -> Result<Option<BoxedIo>, EngineError> {
        self.of(id).await?.connect(id, port).await
    }

    async fn attach(&self, id: &str, bind: &Bind) -> Result<(), EngineError> {
        self.of(id).await?.attach(id, bind).await
    }

    async fn detach(&self, id: &str, target: &Path) -> Result<(), EngineError> {
        self.of(id).await?.detach(id, target).await
    }

    async fn attached(&self, id: &str) -> Result<Vec<Bind>, EngineError> {
        self.of(id).await?.attached(id).await
    }

    async fn usage(&self, id: &str) -> Result<Usage, EngineError> {
        self.of(id).await?.usage(id).await
    }

    async fn set_share(&self, id: &str, share: u32) -> Result<(), EngineError> {
        self.of(id).await?.set_share(id, share).await
    }

    async fn set_egress(&self, id: &str, rules: &Rules) -> Result<(), EngineError> {
        self.of(id).await?.set_egress(id, rules).await
    }

    fn denials(&self) -> broadcast::Receiver<Denial> {
        self.denials.subscribe()
    }

    fn exits(&self) -> broadcast::Receiver<MachineExit> {
        self.exits.subscribe()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{conformance, fake::FakeEngine};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn keeps_the_contract_of_what_is_behind_it() {
        let layer = tempfile::tempdir().unwrap();
        for behind in [FakeEngine::new(), FakeEngine::with_memory()] {
            let engine = Several::new(vec![Arc::new(behind.unwrap())]).unwrap();
            conformance::run(&engine, &[layer.path().to_owned()]).await;
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn each_machine_is_found_with_its_own_engine_also_by_the_next_door() {
        let layer = tempfile::tempdir().unwrap();
        let lower = [layer.path().to_owned()];
        let (strong, other) = (
            Arc::new(FakeEngine::named("strong").unwrap()),
            Arc::new(FakeEngine::named("other").unwrap()),
        );
        let both = || Several::new(vec![strong.clone(), other.clone()]).unwrap();
        let door = both();
        let spec = |id: &str, engine: Option<&str>| MachineSpec {
            engine: engine.map(str::to_owned),
            ..conformance::spec(id, &lower)
        };
        door.create(&spec("a", None)).await.unwrap();
        door.create(&spec("b", Some("other"))).await.unwrap();
        let again = door.create(&spec("b", None)).await;
        assert!(matches!(again, Err(EngineError::Exists(_))), "{again:?}");
        let nobody = door.create(&spec("c", Some("microvm"))).await;
        assert!(matches!(nobody, Err(EngineError::InvalidSpec(_))));
        assert!(door.capabilities_of("c").await.is_err());
        assert!(door.capabilities_of("b").await.is_ok());

        let next = both();
        let mut live: Vec<_> = next.list().await.unwrap();
        live.sort_by(|a, b| a.id.cmp(&b.id));
        let engines: Vec<_> = live.iter().map(|m| m.engine.as_str()).collect();
        assert_eq!(engines, ["strong", "other"]);
        let mut exits = next.exits();
        next.dial("b").await.unwrap();
        other.crash("b");
        assert_eq!(exits.recv().await.unwrap().id, "b");
        assert!(matches!(
            next.dial("b").await,
            Err(EngineError::NotFound(_))
        ));
        next.destroy("a").await.unwrap();
        assert!(strong.list().await.unwrap().is_empty());
        next.destroy("a").await.unwrap();
    }
}
