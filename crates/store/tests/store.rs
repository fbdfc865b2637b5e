//! The record as its callers see it: a real file, real threads.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use nullspace_store::{
    Store, StoreError,
    agent_log::{self, NewLog},
    event::{self, NewEvent},
    idempotency::{self, Claim, Outcome},
    machine::{self, Filter, MachineRow},
    rusqlite,
    tenant::DEFAULT,
};

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("nullspace.db")
    }

    fn open(&self) -> Store {
        Store::open(&self.file()).unwrap()
    }
}

fn row(id: &str, state: &str) -> MachineRow {
    MachineRow {
        seq: 0,
        id: id.into(),
        state: state.into(),
        template: "base".into(),
        layer_digest: "0".into(),
        vcpus: 1,
        memory_mb: 512,
        disk_mb: None,
        isolation: None,
        timeout_ms: None,
        timeout_action: "destroy".into(),
        timeout_at: None,
        auto_resume: false,
        internet_access: true,
        egress: None,
        allow_public_traffic: true,
        mask_request_host: None,
        cwd: "/".into(),
        metadata: r#"{"team": "a", "nested": {"x": 1, "y": 2}}"#.into(),
        tenant_id: DEFAULT.into(),
        key_id: None,
        owner: None,
        failure_reason: None,
        created_at: 1,
        started_at: None,
        ended_at: None,
        spec: None,
        snapshot_id: None,
        volumes: Vec::new(),
    }
}

async fn insert(store: &Store, id: &str, state: &str) {
    let row = row(id, state);
    store
        .write(move |tx| machine::insert(tx, &row))
        .await
        .unwrap();
}

async fn count(store: &Store) -> i64 {
    store
        .read(|db| {
            Ok::<_, StoreError>(db.query_row("SELECT count(*) FROM machine", [], |row| row.get(0))?)
        })
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_is_there_after_a_restart() {
    let place = Place::new();
    let store = place.open();
    insert(&store, "mch_1", "running").await;
    // As after a power cut: nothing was closed, folded in or handed over.
    let copy = Place::new();
    for file in ["nullspace.db", "nullspace.db-wal"] {
        std::fs::copy(place.0.path().join(file), copy.0.path().join(file)).unwrap();
    }
    let again = copy.open();
    let found = again.read(|db| machine::get(db, "mch_1")).await.unwrap();
    assert_eq!(found.unwrap().state, "running");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_fails_undoes_only_itself() {
    let place = Place::new();
    let store = place.open();
    insert(&store, "taken", "running").await;
    let writes: Vec<_> = (0..200)
        .map(|number| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut first = row(&format!("mch_{number}"), "running");
                let work = move |tx: &nullspace_store::Tx<'_>| {
                    machine::insert(tx, &first)?;
                    // Every third runs into an id that is taken, every fifth gives up by itself.
                    if number % 3 == 0 {
                        first.id = "taken".into();
                        machine::insert(tx, &first)?;
                    }
                    if number % 5 == 0 {
                        return Err(StoreError::Closed);
                    }
                    Ok(())
                };
                store.write(work).await.is_ok()
            })
        })
        .collect();
    let mut kept = 0;
    for (number, write) in writes.into_iter().enumerate() {
        let ok = write.await.unwrap();
        assert_eq!(ok, number % 3 != 0 && number % 5 != 0, "{number}");
        kept += i64::from(ok);
    }
    assert_eq!(count(&store).await, kept + 1);
}

/// Twenty times two writes in one transaction, the second refused for what the first wrote.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_refused_finds_what_it_was_refused_for() {
    let place = Place::new();
    let store = place.open();
    for round in 0..20_i64 {
        // The writer stands still until both are behind it, so that they share a transaction.
        let (both, wait) = std::sync::mpsc::channel::<()>();
        store.write_later(move |_| wait.recv().map_err(|_| StoreError::Closed));
        let id = format!("mch_{round}");
        let first = row(&id, "running");
        store.write_later(move |tx| machine::insert(tx, &first).map(drop));
        let second = store.write(move |tx| machine::insert(tx, &row(&id, "running")));
        let release = async {
            both.send(()).unwrap();
        };
        // Polled in this order: the second is queued before the writer goes on.
        let (refused, ()) = tokio::join!(second, release);
        assert!(refused.is_err());
        assert_eq!(count(&store).await, round + 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_takes_nobody_along() {
    let place = Place::new();
    let store = place.open();
    let broken = store
        .write(|tx| {
            machine::insert(tx, &row("mch_1", "running"))?;
            if tx.is_autocommit() {
                return Ok::<_, StoreError>(());
            }
            panic!("on purpose")
        })
        .await;
    assert!(broken.is_err());
    let broken = store
        .read(|_| -> Result<(), StoreError> { panic!("on purpose") })
        .await;
    assert!(broken.is_err());
    insert(&store, "mch_2", "running").await;
    assert_eq!(count(&store).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_belongs_to_its_first_body() {
    let place = Place::new();
    let store = place.open();
    let claim = |body: &str, subject: &'static str| {
        let claim = Claim {
            key_id: "key_1".into(),
            route: "POST /x".into(),
            key: "k".into(),
            body: body.as_bytes().to_vec(),
        };
        let hash = |salt: &[u8], body: &[u8]| [salt, body].concat();
        store.write(move |tx| idempotency::claim(tx, &claim, subject, 5, hash))
    };
    let replay = Outcome::Replay("mch_1".into());
    assert_eq!(claim("a", "mch_1").await.unwrap(), Outcome::New);
    assert_eq!(claim("a", "mch_2").await.unwrap(), replay);
    assert_eq!(claim("b", "mch_3").await.unwrap(), Outcome::Conflict);
    store
        .write(|tx| idempotency::forget_before(tx, 6).map(drop))
        .await
        .unwrap();
    assert_eq!(claim("b", "mch_3").await.unwrap(), Outcome::New);
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_go_newest_first_and_know_metadata() {
    let place = Place::new();
    let store = place.open();
    for number in 0..10 {
        let state = if number % 2 == 0 {
            "running"
        } else {
            "destroyed"
        };
        insert(&store, &format!("mch_{number}"), state).await;
    }
    let list = |filter: Filter| {
        let store = store.clone();
        async move {
            let rows = store
                .read(move |db| machine::list(db, &filter))
                .await
                .unwrap();
            rows.into_iter().map(|row| row.id).collect::<Vec<_>>()
        }
    };
    let running = Filter {
        tenant_id: DEFAULT.into(),
        states: vec!["running".into()],
        limit: 2,
        ..Filter::default()
    };
    assert_eq!(list(running.clone()).await, ["mch_8", "mch_6"]);
    let last = store.read(|db| machine::get(db, "mch_6")).await.unwrap();
    let next = Filter {
        before: last.map(|row| row.seq),
        ..running
    };
    assert_eq!(list(next).await, ["mch_4", "mch_2"]);
    let with = |key: &str, value: serde_json::Value| Filter {
        tenant_id: DEFAULT.into(),
        metadata: [(key.to_owned(), value)].into_iter().collect(),
        limit: 3,
        ..Filter::default()
    };
    assert_eq!(list(with("team", "a".into())).await.len(), 3);
    let nested = |x: i32| serde_json::json!({"x": x});
    assert_eq!(list(with("nested", nested(1))).await.len(), 3);
    assert!(list(with("team", "b".into())).await.is_empty());
    assert!(list(with("nested", nested(2))).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn events_and_lines_keep_their_order() {
    let place = Place::new();
    let store = place.open();
    for number in 0..50 {
        let event = NewEvent {
            tenant_id: DEFAULT.into(),
            occurred_at: number,
            operation: "create",
            status: "requested",
            machine_id: Some("mch_1".into()),
            actor_kind: "user",
            ..NewEvent::default()
        };
        store
            .write(move |tx| event::append(tx, &event).map(drop))
            .await
            .unwrap();
    }
    let seqs: Vec<i64> = store
        .read(|db| {
            let mut statement = db.prepare("SELECT seq FROM event ORDER BY occurred_at")?;
            let rows = statement.query_map([], |row| row.get(0))?;
            Ok::<_, StoreError>(rows.collect::<Result<_, _>>()?)
        })
        .await
        .unwrap();
    assert!(seqs.is_sorted() && seqs.len() == 50);

    let line = |text: &str| NewLog {
        at: 1,
        level: "info",
        event_type: "stdout",
        source: "stdout",
        message: text.into(),
        lines: text.split('\n').count() as u32,
        metadata: None,
        in_machine: true,
        process_id: Some(2),
    };
    let (first, second) = ([line("a"), line("b")], [line("c\n\nd"), line("e")]);
    store
        .write(move |tx| {
            agent_log::append(tx, agent_log::Log::Run(1), 0, &first)?;
            agent_log::append(tx, agent_log::Log::Run(1), 2, &second)?;
            // Another run's lines are its own.
            agent_log::append(tx, agent_log::Log::Run(2), 0, &first[..1])
        })
        .await
        .unwrap();
    let told = async |from, limit| -> Vec<(u64, String)> {
        let page = store.read(move |db| agent_log::page(db, agent_log::Log::Run(1), from, limit));
        let page = page.await.unwrap();
        page.into_iter()
            .map(|row| (row.number, row.message))
            .collect()
    };
    let all: Vec<(u64, String)> = (0..)
        .zip(["a", "b", "c", "", "d", "e"].map(Into::into))
        .collect();
    for from in 0..7 {
        for limit in 1..7 {
            let there = &all[from.min(6)..(from + limit).min(6)];
            assert_eq!(
                told(from as u64, limit as u32).await,
                there,
                "{from} {limit}"
            );
        }
    }
    // A number is given once: a writer that lost count cannot overwrite what is there.
    for taken in [2, 4, 5] {
        let twice = [line("x")];
        let again = store
            .write(move |tx| agent_log::append(tx, agent_log::Log::Run(1), taken, &twice))
            .await;
        assert!(again.is_err());
    }
    // A row goes when all its lines may go.
    for (before, left) in [(3, 2), (5, 5)] {
        store
            .write(move |tx| agent_log::drop_before(tx, agent_log::Log::Run(1), before))
            .await
            .unwrap();
        assert_eq!(told(0, 10).await, &all[left..]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_found_by_all_that_they_are_about() {
    let place = Place::new();
    let store = place.open();
    let mut told = store.events();
    let event = |number: i64| NewEvent {
        tenant_id: DEFAULT.into(),
        occurred_at: number,
        operation: "fork",
        status: "succeeded",
        machine_id: Some(format!("mch_{}", number % 3)),
        actor_kind: "user",
        ..NewEvent::default()
    };
    let mut events: Vec<NewEvent> = (0..9).map(event).collect();
    events[1].snapshot_id = Some("snap_1".into());
    events[2].source_machine_id = Some("mch_1".into());
    events[3].target_machine_id = Some("mch_1".into());
    events[4].audience = event::Audience::Internal;
    events[4].operation = "egress_denied";
    events[5].metadata = Some(r#"{"team":"a","n":{"x":1,"y":2}}"#.into());
    let all = events.clone();
    store
        .write(move |tx| {
            all.iter()
                .try_for_each(|event| event::append(tx, event).map(drop))
        })
        .await
        .unwrap();
    told.changed().await.unwrap();
    let failed: Result<(), StoreError> = store
        .write(move |tx| {
            event::append(tx, &event(10))?;
            Err(StoreError::Closed)
        })
        .await;
    assert!(failed.is_err());
    store.write(|_| Ok::<_, StoreError>(())).await.unwrap();
    assert!(!told.has_changed().unwrap(), "but not of what was not kept");

    let times = async |filter: event::Filter| -> Vec<i64> {
        let listed = filter.clone();
        let rows = store.read(move |db| event::list(db, &listed, true, 0, 100));
        let rows = rows.await.unwrap();
        let times: Vec<i64> = rows.iter().map(|row| row.occurred_at).collect();
        // The same in stretches of any length, and counted backwards.
        for (scan, limit) in [(1, 1), (2, 1), (3, 2), (100, 1), (100, 100)] {
            let (mut at, mut found) = (0, Vec::new());
            loop {
                let filter = filter.clone();
                let stretch = store
                    .read(move |db| event::after(db, &filter, at, scan, limit))
                    .await
                    .unwrap();
                assert!(stretch.events.len() <= limit as usize);
                found.extend(stretch.events);
                at = stretch.end;
                if !stretch.more {
                    break;
                }
            }
            assert_eq!(found, rows, "{scan} {limit}");
            let (filter, wanted) = (filter.clone(), times.len() as u32);
            let counted = store
                .read(move |db| event::before(db, &filter, 9, 9, wanted))
                .await
                .unwrap();
            assert_eq!(counted.0, wanted);
        }
        times
    };
    let any = || event::Filter {
        tenant_id: DEFAULT.into(),
        ..event::Filter::default()
    };
    let with = |text: &str| event::Filter {
        metadata: serde_json::from_str(text).unwrap(),
        ..any()
    };
    assert_eq!(times(any()).await, [0, 1, 2, 3, 5, 6, 7, 8]);
    let filter = event::Filter {
        audience: event::Audience::Internal,
        ..any()
    };
    assert_eq!(times(filter).await, [4]);
    let filter = event::Filter {
        machine_id: Some("mch_1".into()),
        ..any()
    };
    assert_eq!(times(filter).await, [1, 2, 3, 7]);
    let filter = event::Filter {
        machine_id: Some("mch_1".into()),
        source_machine_id: Some("mch_1".into()),
        ..any()
    };
    assert_eq!(times(filter).await, [2]);
    let filter = event::Filter {
        snapshot_id: Some("snap_1".into()),
        ..any()
    };
    assert_eq!(times(filter).await, [1]);
    assert_eq!(times(with(r#"{"team":"a"}"#)).await, [5]);
    assert_eq!(times(with(r#"{"team":"a","n":{"y":2}}"#)).await, [5]);
    assert_eq!(times(with(r#"{"team":"a","n":{"y":3}}"#)).await, [0; 0]);

    let page = store.read(move |db| event::list(db, &any(), false, 2, 3));
    let page: Vec<i64> = page
        .await
        .unwrap()
        .iter()
        .map(|row| row.occurred_at)
        .collect();
    assert_eq!(page, [6, 5, 3]);
    // Where the newest three begin.
    let newest = store.read(move |db| event::before(db, &any(), 9, 100, 3));
    assert_eq!(newest.await.unwrap(), (3, 6));
    let id = store
        .read(move |db| event::list(db, &any(), true, 0, 1))
        .await
        .unwrap()
        .remove(0)
        .id;
    let found = store.read(move |db| event::place_of(db, &id));
    assert_eq!(found.await.unwrap(), Some(1));
    let unknown = store.read(|db| event::place_of(db, "none"));
    assert_eq!(unknown.await.unwrap(), None);
}

#[test]
fn a_file_that_is_no_database_is_refused() {
    let place = Place::new();
    std::fs::write(
        place.file(),
        "not a database, but long enough to look at".repeat(100),
    )
    .unwrap();
    let refused = Store::open(&place.file());
    assert!(matches!(
        refused,
        Err(StoreError::Sqlite(rusqlite::Error::SqliteFailure(..)))
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_webhook_is_bounded() {
    use nullspace_store::webhook::{self, Bounds, WebhookRow};
    let place = Place::new();
    let store = place.open();
    let row = |id: &str| WebhookRow {
        id: id.into(),
        tenant_id: DEFAULT.into(),
        url: "https://example.com".into(),
        operations: r#"["create"]"#.into(),
        secret: vec![1],
        enabled: true,
        created_at: 0,
        updated_at: 0,
        last_delivery_at: None,
        last_delivery_status: None,
        last_error: None,
    };
    let (a, b) = (row("a"), row("b"));
    store
        .write(move |tx| {
            webhook::insert(tx, &a)?;
            webhook::insert(tx, &b)?;
            for number in 0..3_000 {
                let event = NewEvent {
                    tenant_id: DEFAULT.into(),
                    occurred_at: number,
                    operation: if number % 3 == 2 { "destroy" } else { "create" },
                    status: "succeeded",
                    actor_kind: "user",
                    ..NewEvent::default()
                };
                event::append(tx, &event)?;
            }
            Ok::<_, StoreError>(())
        })
        .await
        .unwrap();
    let counts = async |id: &'static str| -> (usize, usize) {
        let all = store.read(move |db| webhook::deliveries(db, id, 0, 10_000));
        let all = all.await.unwrap();
        let queued = all.iter().filter(|(row, _)| row.state == "queued").count();
        (queued, all.len() - queued)
    };
    assert_eq!(counts("a").await, (2_000, 0));
    let sweep = async |bounds: Bounds| {
        while store
            .write(move |tx| webhook::sweep(tx, &bounds))
            .await
            .unwrap()
        {}
    };
    let bounds = Bounds {
        give_up_before: 300,
        max_queued: 500,
        deliveries_before: 0,
        events_before: 0,
        max_events: 1_000_000,
    };
    sweep(bounds).await;
    assert_eq!(counts("a").await, (500, 1_500));
    let newest = store
        .read(|db| webhook::next(db, "a", 0, 0, 1))
        .await
        .unwrap();
    assert_eq!(newest.queued[0].1.occurred_at, 2_250);
    // One that is gone takes its own along, and nobody else's.
    assert!(store.write(|tx| webhook::delete(tx, "b")).await.unwrap());
    assert!(!store.write(|tx| webhook::delete(tx, "b")).await.unwrap());
    sweep(bounds).await;
    assert_eq!(
        (counts("a").await, counts("b").await),
        ((500, 1_500), (0, 0))
    );
    let rows: i64 = store
        .read(|db| {
            let count = db.query_row("SELECT COUNT(*) FROM webhook", [], |row| row.get(0));
            Ok::<_, StoreError>(count?)
        })
        .await
        .unwrap();
    assert_eq!(rows, 1);
    // What is over goes by its time; an event stays for as long as it is to be delivered.
    sweep(Bounds {
        deliveries_before: 1_000,
        events_before: 2_700,
        ..bounds
    })
    .await;
    assert_eq!(counts("a").await.0, 500);
    let left = store
        .read(|db| {
            let all = event::Filter {
                tenant_id: DEFAULT.into(),
                ..event::Filter::default()
            };
            event::list(db, &all, true, 0, 10_000)
        })
        .await
        .unwrap();
    // 500 that wait, and the last hundred of the others.
    assert_eq!(left.len(), 600);
}
