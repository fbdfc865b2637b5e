//! What is tried from inside machines of more than one engine.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test program uses its part of this"
)]

use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};

use nullspace_engine::{Engine, conformance};
use nullspace_protocol::GuestClient;

use super::World;

/// A machine in a world that has perl, to make system calls with.
pub async fn machine(engine: &dyn Engine, world: &World, id: &str) -> GuestClient {
    let spec = conformance::spec(id, std::slice::from_ref(&world.layer));
    engine.create(&spec).await.expect("create");
    GuestClient::connect(engine.dial(id).await.expect("dial"))
        .await
        .expect("the guest answers")
}

pub fn world_with_perl() -> Option<World> {
    let world = World::new()?;
    if world.layer.join("usr/bin/perl").exists() {
        return Some(world);
    }
    println!("skipped: the probes need perl on the host");
    None
}

pub async fn output(guest: &GuestClient, script: &str) -> String {
    let (code, out, err) = conformance::sh(guest, script).await;
    assert_eq!(code, 0, "{script}: {out} {err}");
    out.trim().to_owned()
}

/// Neither the host's services nor other machines nor metadata addresses, by whichever address.
pub async fn only_the_internet(engine: &dyn Engine, world: &World) {
    let (one, two) = tokio::join!(machine(engine, world, "one"), machine(engine, world, "two"));
    // An address as the machine itself has it: a datagram socket that is connected knows its own end.
    let own = r#"perl -e 'socket(S, 2, 2, 0); connect(S, pack("S n C4 x8", 2, 9, 192, 0, 2, 1)) or die $!;
        print join(".", (unpack("S n C4", getsockname(S)))[2..5])'"#;
    let neighbour = output(&two, own).await;
    let serve = r#"perl -e 'socket(S, 2, 1, 0); bind(S, pack("S n C4 x8", 2, 8080, 0, 0, 0, 0)) or die $!;
        listen(S, 5); print "up\n"; close(STDOUT); accept(C, S) while 1' & read nothing < /dev/zero & "#;
    let serve = serve.replace(" & read nothing < /dev/zero & ", " & sleep 0.3; echo");
    output(&two, &serve).await;
    assert_eq!(
        try_connect(&two, &[(neighbour.clone(), 8080)]).await,
        ["open"],
        "the neighbour's server works"
    );

    // The host listens everywhere: on its own loopback, on every address, as an API server would.
    let everywhere = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("listen");
    let loopback = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
    let port = |l: &TcpListener| l.local_addr().expect("an address").port();
    let gateway = world.gateway().expect("a gateway");
    let mut targets = vec![
        (neighbour, 8080),
        ("127.0.0.1".to_owned(), port(&loopback)),
        ("127.0.0.1".to_owned(), port(&everywhere)),
        ("0.0.0.0".to_owned(), port(&everywhere)),
        (gateway.clone(), port(&everywhere)),
        (gateway, 22),
        ("169.254.169.254".to_owned(), 80),
        ("169.254.169.254".to_owned(), port(&everywhere)),
    ];
    let outward = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a socket");
    if outward.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).is_ok()
        && let Ok(IpAddr::V4(primary)) = outward.local_addr().map(|a| a.ip())
    {
        targets.push((primary.to_string(), port(&everywhere)));
    }
    let results = try_connect(&one, &targets).await;
    for (target, result) in targets.iter().zip(results) {
        assert_ne!(result, "open", "{target:?}");
    }
    for listener in [everywhere, loopback] {
        listener.set_nonblocking(true).expect("not blocking");
        assert!(listener.accept().is_err(), "somebody came through");
    }
}

/// Tries all targets at once; "open" for those that answered in time.
async fn try_connect(guest: &GuestClient, targets: &[(String, u16)]) -> Vec<String> {
    let mut script = String::new();
    for (n, (address, port)) in targets.iter().enumerate() {
        let octets = address.replace('.', ", ");
        script.push_str(&format!(
            r#"perl -e 'alarm 2; socket(S, 2, 1, 0); connect(S, pack("S n C4 x8", 2, {port}, {octets})) and print "open"' > /tmp/r{n} & "#
        ));
    }
    script.push_str("wait; ");
    for n in 0..targets.len() {
        script.push_str(&format!("cat /tmp/r{n}; echo; "));
    }
    let (_, out, err) = conformance::sh(guest, &script).await;
    let results: Vec<String> = out.lines().map(str::to_owned).collect();
    assert_eq!(results.len(), targets.len(), "{out} {err}");
    results
}
