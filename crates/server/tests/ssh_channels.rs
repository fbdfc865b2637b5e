//! What goes over a connection that OpenSSH's own programs do not show: another client that says it word for word.

#![allow(clippy::unwrap_used)]

mod common;

use std::{sync::Arc, time::Duration};

use common::{
    World,
    ssh::{LIMIT, Person, bytes},
};
use russh::{
    Channel, ChannelMsg, Sig,
    client::{self, Handle, Msg},
    keys::{PublicKeyOrCertificate, load_openssh_certificate, load_secret_key},
};
use serde_json::json;

struct Trusting;

impl client::Handler for Trusting {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        _key: &PublicKeyOrCertificate,
    ) -> Result<bool, russh::Error> {
        Ok(true)
    }
}

/// Somebody who is logged in to a machine of their own.
async fn login(world: &World) -> (Handle<Trusting>, String) {
    let machine = world.machine().await;
    let person = Person::new().await;
    let access = person.ask(world, &machine, json!({})).await;
    let key = Arc::new(load_secret_key(person.key(), None).unwrap());
    let certificate = load_openssh_certificate(access.certificate()).unwrap();
    let address = world.server.as_ref().unwrap().ssh_address().unwrap();
    let config = Arc::new(client::Config::default());
    let mut handle = client::connect(config, address, Trusting).await.unwrap();
    let done = handle
        .authenticate_openssh_cert("root", key, certificate)
        .await
        .unwrap();
    assert!(done.success(), "{done:?}");
    (handle, machine)
}

async fn next(channel: &mut Channel<Msg>) -> ChannelMsg {
    let message = tokio::time::timeout(LIMIT, channel.wait()).await.unwrap();
    message.expect("the channel is closed")
}

/// Reads until the output has this, and answers with all of it.
async fn until_shown(channel: &mut Channel<Msg>, what: &str) -> String {
    let mut shown = String::new();
    while !shown.contains(what) {
        if let ChannelMsg::Data { data } = next(channel).await {
            shown.push_str(&String::from_utf8_lossy(&data));
        }
    }
    shown
}

/// The answer to a request.
async fn is_accepted(channel: &mut Channel<Msg>) -> bool {
    loop {
        match next(channel).await {
            ChannelMsg::Success => return true,
            ChannelMsg::Failure => return false,
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_follows_its_window_and_its_signals() {
    let world = World::new().await;
    let (handle, _) = login(&world).await;
    let mut channel = handle.channel_open_session().await.unwrap();
    channel
        .request_pty(true, "xterm", 91, 33, 0, 0, &[])
        .await
        .unwrap();
    assert!(is_accepted(&mut channel).await);
    let script = "trap 'echo term; exit 3' TERM; trap 'stty size' WINCH; stty size; echo ready; \
                  while :; do sleep 0.05; done";
    channel.exec(true, script).await.unwrap();
    assert!(is_accepted(&mut channel).await);
    let shown = until_shown(&mut channel, "ready").await;
    assert!(shown.contains("33 91"), "{shown}");
    channel.window_change(120, 40, 0, 0).await.unwrap();
    until_shown(&mut channel, "40 120").await;
    channel.signal(Sig::TERM).await.unwrap();
    until_shown(&mut channel, "term").await;
    let exit = loop {
        if let ChannelMsg::ExitStatus { exit_status } = next(&mut channel).await {
            break exit_status;
        }
    };
    assert_eq!(exit, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_that_ends_a_command_is_told() {
    let world = World::new().await;
    let (handle, _) = login(&world).await;
    let mut channel = handle.channel_open_session().await.unwrap();
    channel
        .exec(true, "echo here; exec sleep 1000")
        .await
        .unwrap();
    until_shown(&mut channel, "here").await;
    channel.signal(Sig::Custom("USR2".into())).await.unwrap();
    let signal = loop {
        if let ChannelMsg::ExitSignal { signal_name, .. } = next(&mut channel).await {
            break signal_name;
        }
    };
    assert!(
        matches!(&signal, Sig::Custom(name) if name == "USR2"),
        "{signal:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn each_channel_runs_one_thing_and_there_are_only_so_many() {
    let world = World::new().await;
    let (handle, _) = login(&world).await;
    let mut channel = handle.channel_open_session().await.unwrap();
    channel.request_subsystem(true, "shell").await.unwrap();
    assert!(!is_accepted(&mut channel).await);
    channel.agent_forward(true).await.unwrap();
    assert!(!is_accepted(&mut channel).await);
    channel.exec(true, "cat").await.unwrap();
    assert!(is_accepted(&mut channel).await);
    channel.exec(true, "cat").await.unwrap();
    assert!(!is_accepted(&mut channel).await);
    let mut open = vec![channel];
    let refused = loop {
        match handle.channel_open_session().await {
            Ok(channel) => open.push(channel),
            Err(error) => break error,
        }
    };
    assert!(
        matches!(refused, russh::Error::ChannelOpenFailure(_)),
        "{refused:?}"
    );
    assert_eq!(open.len(), 128);
    // A place that is given back is there again.
    let closed = open.pop().unwrap();
    closed.close().await.unwrap();
    let again = async {
        while handle.channel_open_session().await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, again).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_makes_a_machine_wait_and_others_go_on() {
    let world = World::new().await;
    let (handle, machine) = login(&world).await;
    let mut slow = handle.channel_open_session().await.unwrap();
    // As much as is written while nobody reads.
    let script = "(while :; do head -c 65536 /dev/zero; echo >> count; done)";
    slow.exec(true, script).await.unwrap();
    assert!(is_accepted(&mut slow).await);
    let count = world.engine.machine_root(&machine).join("root/count");
    let written = || std::fs::metadata(&count).map_or(0, |meta| meta.len());
    let settled = async {
        let mut before = 0;
        loop {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let now = written();
            if now > 0 && now == before {
                return now;
            }
            before = now;
        }
    };
    let pieces = tokio::time::timeout(LIMIT, settled).await.unwrap();
    assert!(pieces < 512, "{pieces} pieces of 64 KiB wait somewhere");
    // A connection of its own, so that this client's own buffers are not what is looked at.
    let (other, _) = login(&world).await;
    let mut quick = other.channel_open_session().await.unwrap();
    quick.exec(true, "wc -c").await.unwrap();
    quick.data(&bytes(3 << 20)[..]).await.unwrap();
    quick.eof().await.unwrap();
    until_shown(&mut quick, "3145728").await;
}
