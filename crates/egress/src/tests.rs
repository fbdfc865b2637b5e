use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;

fn rules(allow: &[&str], deny: &[&str], names: &[&str], not: &[&str]) -> Rules {
    let nets = |list: &[&str]| list.iter().map(|t| t.parse().unwrap()).collect();
    let patterns = |list: &[&str]| list.iter().map(|t| t.parse().unwrap()).collect();
    Rules {
        mode: Mode::Custom,
        allow_cidrs: nets(allow),
        deny_cidrs: nets(deny),
        allow_domains: patterns(names),
        deny_domains: patterns(not),
        rate_limit: None,
    }
    .checked()
    .unwrap()
}

fn verdict(rules: &Rules, address: &str) -> Verdict {
    rules.address(address.parse().unwrap())
}

#[test]
fn the_more_specific_network_decides() {
    let exception = rules(&["1.1.1.1"], &["0.0.0.0/0"], &[], &[]);
    assert_eq!(verdict(&exception, "1.1.1.1"), Verdict::Allow);
    assert_eq!(verdict(&exception, "1.1.1.2"), Verdict::Deny);
    let hole = rules(&["10.0.0.0/8"], &["10.1.0.0/16"], &[], &[]);
    assert_eq!(verdict(&hole, "10.2.0.1"), Verdict::Allow);
    assert_eq!(verdict(&hole, "10.1.0.1"), Verdict::Deny);
    assert_eq!(verdict(&hole, "9.9.9.9"), Verdict::Deny, "an allow list");
    let only_deny = rules(&[], &["10.0.0.0/8"], &[], &[]);
    assert_eq!(verdict(&only_deny, "9.9.9.9"), Verdict::Allow);
    let same = rules(&["10.0.0.0/8"], &["10.0.0.0/8"], &[], &[]);
    assert_eq!(verdict(&same, "10.0.0.1"), Verdict::Allow);
    assert_eq!(verdict(&Rules::deny_all(), "1.1.1.1"), Verdict::Deny);
    assert_eq!(verdict(&Rules::default(), "1.1.1.1"), Verdict::Allow);
}

#[test]
fn names_open_addresses_that_are_not_private() {
    let named = rules(&["10.7.0.0/16"], &["198.51.100.0/24"], &["a.example"], &[]);
    let opens = |address: &str| named.may_open(address.parse().unwrap());
    assert!(opens("203.0.113.5"));
    for address in [
        "10.0.0.1",
        "127.0.0.1",
        "169.254.169.254",
        "172.31.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "0.0.0.0",
        "255.255.255.255",
        // Denied by address.
        "198.51.100.1",
        // Allowed without a name.
        "10.7.0.1",
    ] {
        assert!(!opens(address), "{address}");
    }
    assert!(!Rules::default().may_open(Ipv4Addr::new(1, 1, 1, 1)));
    assert!(!Rules::deny_all().may_open(Ipv4Addr::new(1, 1, 1, 1)));
}

#[test]
fn the_more_specific_name_decides() {
    let name = |text: &str| text.parse::<Name>().unwrap();
    let list = rules(
        &[],
        &[],
        &["*.example.com", "api.bad.example.com", "exact.test"],
        &["*.bad.example.com", "evil.example.com"],
    );
    for (text, allowed) in [
        ("a.example.com", true),
        ("a.b.example.com", true),
        ("example.com", false),
        ("notexample.com", false),
        ("a.example.com.evil.test", false),
        ("evil.example.com", false),
        ("x.evil.example.com", true),
        ("x.bad.example.com", false),
        ("api.bad.example.com", true),
        ("exact.test", true),
        ("sub.exact.test", false),
    ] {
        assert_eq!(list.name(&name(text)), allowed, "{text}");
    }
    let deny = rules(&[], &[], &[], &["*"]);
    assert!(!deny.name(&name("any.example")));
    let except = rules(&[], &[], &[], &["*.example"]);
    assert!(except.name(&name("example.org")));
    assert!(!except.name(&name("a.example")));
}

#[test]
fn one_parser_reads_all_spellings() {
    for (text, name) in [
        ("Example.COM", "example.com"),
        ("example.com.", "example.com"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER。example", "xn--bcher-kva.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("_srv._tcp.example", "_srv._tcp.example"),
    ] {
        assert_eq!(text.parse::<Name>().unwrap().as_str(), name, "{text}");
    }
    let long = format!("{}.example", "a".repeat(64));
    let longer = format!("{}example", "a.".repeat(200));
    for text in [
        "",
        ".",
        "..",
        "a..b",
        ".example",
        "example..",
        "http://example.com",
        "example.com:443",
        "example.com/path",
        "user@example.com",
        "exa mple.com",
        "example.com\n",
        "a\0.example",
        "*",
        "a.*.example",
        "1.2.3.4",
        "example.1",
        "0x7f.0x1",
        "2130706433",
        "[::1]",
        "::1",
        "a\u{202e}b.example",
        long.as_str(),
        longer.as_str(),
    ] {
        assert!(text.parse::<Name>().is_err(), "{text:?}");
    }
    assert_eq!("*".parse::<Pattern>().unwrap(), Pattern::Any);
    assert_eq!(
        "*.Example.COM.".parse::<Pattern>().unwrap().to_string(),
        "*.example.com"
    );
    for text in ["*example.com", "*.*.example", "**", "a.*", "*."] {
        assert!(text.parse::<Pattern>().is_err(), "{text:?}");
    }
}

#[test]
fn networks_are_read_strictly() {
    for text in ["0.0.0.0/0", "192.0.2.0/24", "192.0.2.7/32"] {
        assert_eq!(text.parse::<Net>().unwrap().to_string(), text);
    }
    assert_eq!(
        "192.0.2.7".parse::<Net>().unwrap().to_string(),
        "192.0.2.7/32"
    );
    for text in [
        "",
        "/",
        "192.0.2.1/24",
        "192.0.2.0/33",
        "192.0.2.0/-1",
        "192.0.2.0/+8",
        "192.0.2.0/",
        "192.0.2",
        "192.0.2.0/24/1",
        "192.0.2.0 /24",
        "0300.0.2.0",
        "2001:db8::/32",
        "::1",
        "::ffff:1.2.3.4",
        "example.com",
    ] {
        assert!(text.parse::<Net>().is_err(), "{text:?}");
    }
}

#[test]
fn lists_are_bounded_and_do_not_contradict() {
    let many = |n: usize| Rules {
        mode: Mode::Custom,
        allow_cidrs: vec!["10.0.0.0/8".parse().unwrap(); n],
        ..Rules::default()
    };
    assert!(many(MAX_ENTRIES).checked().is_ok());
    assert!(many(MAX_ENTRIES + 1).checked().is_err());
    let both = Rules {
        mode: Mode::Custom,
        allow_domains: vec!["a.example".parse().unwrap()],
        deny_domains: vec!["A.example.".parse().unwrap()],
        ..Rules::default()
    };
    assert!(both.checked().is_err());
}

#[test]
fn the_record_is_the_wire() {
    let text = r#"{"mode":"custom","allow_cidrs":["1.1.1.1/32"],"allow_domains":["*.example.com"],"rate_limit":{"kbit_per_sec":1000,"burst":64}}"#;
    let rules: Rules = serde_json::from_str(text).unwrap();
    assert_eq!(serde_json::to_string(&rules).unwrap(), text);
    assert_eq!(
        serde_json::to_string(&Rules::deny_all()).unwrap(),
        r#"{"mode":"deny_all"}"#
    );
    assert!(serde_json::from_str::<Rules>(r#"{"mode":"custom","allow_cidrs":["x"]}"#).is_err());
}

#[test]
fn ranges_of_everything_and_nothing() {
    let all = (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST);
    assert_eq!(Rules::default().reachable(), [all]);
    assert_eq!(rules(&["0.0.0.0/0"], &[], &[], &[]).reachable(), [all]);
    assert_eq!(rules(&[], &["0.0.0.0/0"], &[], &[]).reachable(), []);
    assert_eq!(Rules::deny_all().reachable(), []);
    let neighbours = rules(&["10.0.0.0/9", "10.128.0.0/9"], &[], &[], &[]);
    assert_eq!(
        neighbours.reachable(),
        [(Ipv4Addr::new(10, 0, 0, 0), Ipv4Addr::new(10, 255, 255, 255))]
    );
}

/// Networks that often hold each other.
fn nets() -> impl Strategy<Value = Vec<Net>> {
    let net = (any::<u32>(), 0u8..=32, 0u32..4).prop_map(|(address, prefix, few)| {
        // Few first bits, so that they meet.
        let address = (address & 0x0fff_ffff) | few << 28;
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
        format!("{}/{prefix}", Ipv4Addr::from(address & mask))
            .parse()
            .unwrap()
    });
    proptest::collection::vec(net, 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// What the packet filter gets is what the rules say, at every edge.
    #[test]
    fn ranges_are_the_verdicts(allow in nets(), deny in nets(), named in any::<bool>(), probes in proptest::collection::vec(any::<u32>(), 20)) {
        let rules = Rules {
            mode: Mode::Custom,
            allow_cidrs: allow,
            deny_cidrs: deny,
            allow_domains: if named { vec![Pattern::Any] } else { Vec::new() },
            ..Rules::default()
        };
        let ranges = rules.reachable();
        let edges = rules.allow_cidrs.iter().chain(&rules.deny_cidrs).flat_map(|net| {
            [net.first(), net.last(), net.first().wrapping_sub(1), net.last().wrapping_add(1)]
        });
        for address in edges.chain(probes) {
            let address = Ipv4Addr::from(address);
            let inside = ranges.iter().any(|(first, last)| (first..=last).contains(&&address));
            prop_assert_eq!(inside, rules.address(address) == Verdict::Allow, "{}", address);
        }
        for pair in ranges.windows(2) {
            prop_assert!(u32::from(pair[0].1) + 1 < u32::from(pair[1].0), "apart: {:?}", pair);
        }
    }

    /// What is read once reads the same again: nothing is normalised twice.
    #[test]
    fn names_are_read_once(text in "[a-zA-Z0-9_.*äß。-]{0,40}") {
        if let Ok(name) = text.parse::<Name>() {
            prop_assert_eq!(name.as_str().parse::<Name>().unwrap(), name.clone());
            prop_assert!(name.as_str().len() <= 253 && !name.as_str().ends_with('.'));
        }
        if let Ok(pattern) = text.parse::<Pattern>() {
            prop_assert_eq!(pattern.to_string().parse::<Pattern>().unwrap(), pattern);
        }
    }

    #[test]
    fn any_line_is_read(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut buffer = bytes;
        let _ = control::take::<control::FromResolver>(&mut buffer);
    }
}
