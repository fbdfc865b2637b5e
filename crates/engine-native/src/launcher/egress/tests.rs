use super::*;

fn rules(text: &str) -> Rules {
    serde_json::from_str(text).expect("rules")
}

fn objects(version: u32, rules: &Rules) -> Objects {
    Objects {
        interface: "nv1234567".into(),
        tag: "7".into(),
        version,
        has_pass: !passes_everything(rules) && !rules.reachable().is_empty(),
        has_open: rules.opens_by_name(),
    }
}

const SOURCE: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 9);

#[test]
fn the_text_of_new_rules() {
    let rules = rules(
        r#"{"mode": "custom", "allow_cidrs": ["192.0.2.0/24", "198.51.100.7/32"], "deny_cidrs": ["192.0.2.128/25"],
            "allow_domains": ["*.example.com"], "rate_limit": {"kbit_per_sec": 8000}}"#,
    );
    let text = script("t", SOURCE, &rules, None, &objects(3, &rules), &[]);
    assert_eq!(
        text,
        r#"table inet t {
set pass_7_3 { type ipv4_addr; flags interval; elements = { 192.0.2.0-192.0.2.127, 198.51.100.7 } }
set open_7_3 { type ipv4_addr; size 1024; }
set denied_7 { type ipv4_addr . inet_proto . inet_service; size 256; flags dynamic,timeout; timeout 2m; }
chain out_7 { }
chain in_7 { }
chain ask_7 { }
chain no_7 { }
}
flush chain inet t out_7
flush chain inet t in_7
flush chain inet t ask_7
flush chain inet t no_7
add rule inet t no_7 meta l4proto { tcp, udp } add @denied_7 { ip daddr . meta l4proto . th dport counter }
add rule inet t no_7 meta l4proto != { tcp, udp } add @denied_7 { ip daddr . meta l4proto . 0 counter }
add rule inet t no_7 meta l4proto tcp reject with tcp reset
add rule inet t no_7 reject with icmpx admin-prohibited
add rule inet t out_7 ip saddr != 10.128.0.9 drop
add rule inet t out_7 limit rate over 1000000 bytes/second burst 250000 bytes drop
add rule inet t in_7 ct state related meta l4proto icmp return
add rule inet t out_7 ct mark 0x6e000003 return
add rule inet t in_7 ct mark 0x6e000003 return
add rule inet t out_7 ip daddr @pass_7_3 return
add rule inet t in_7 ip saddr @pass_7_3 return
add rule inet t out_7 ip daddr @open_7_3 ct mark set 0x6e000003 return
add rule inet t in_7 ip saddr @open_7_3 return
add rule inet t out_7 goto no_7
add rule inet t in_7 meta l4proto tcp reject with tcp reset
add rule inet t in_7 drop
add rule inet t ask_7 ip saddr != 10.128.0.9 drop
add element inet t outward { "nv1234567" : jump out_7 }
add element inet t inward { "nv1234567" : jump in_7 }
add element inet t asking { "nv1234567" : jump ask_7 }
"#
    );
}

#[test]
fn the_text_of_a_change_and_of_the_end() {
    let old = objects(
        3,
        &rules(
            r#"{"mode": "custom", "allow_cidrs": ["192.0.2.0/24"], "allow_domains": ["a.example"]}"#,
        ),
    );
    let closed = Rules::deny_all();
    let new = objects(4, &closed);
    let text = script("t", SOURCE, &closed, Some(&old), &new, &[]);
    assert_eq!(
        text,
        r"table inet t {
chain out_7 { }
chain in_7 { }
chain ask_7 { }
chain no_7 { }
}
flush chain inet t out_7
flush chain inet t in_7
flush chain inet t ask_7
flush chain inet t no_7
add rule inet t no_7 meta l4proto { tcp, udp } add @denied_7 { ip daddr . meta l4proto . th dport counter }
add rule inet t no_7 meta l4proto != { tcp, udp } add @denied_7 { ip daddr . meta l4proto . 0 counter }
add rule inet t no_7 meta l4proto tcp reject with tcp reset
add rule inet t no_7 reject with icmpx admin-prohibited
add rule inet t out_7 ip saddr != 10.128.0.9 drop
add rule inet t in_7 ct state related meta l4proto icmp return
add rule inet t out_7 goto no_7
add rule inet t in_7 meta l4proto tcp reject with tcp reset
add rule inet t in_7 drop
add rule inet t ask_7 ip saddr != 10.128.0.9 drop
add rule inet t ask_7 meta l4proto tcp reject with tcp reset
add rule inet t ask_7 reject with icmpx admin-prohibited
delete set inet t pass_7_3
delete set inet t open_7_3
"
    );
    assert_eq!(
        new.remove("t"),
        r#"delete element inet t outward { "nv1234567" }
delete element inet t inward { "nv1234567" }
delete element inet t asking { "nv1234567" }
flush chain inet t out_7
flush chain inet t in_7
flush chain inet t ask_7
flush chain inet t no_7
delete chain inet t out_7
delete chain inet t in_7
delete chain inet t ask_7
delete chain inet t no_7
delete set inet t denied_7
"#
    );
}

#[test]
fn denied_names_leave_no_other_name_server() {
    let text = |json: &str| {
        let rules = rules(json);
        script("t", SOURCE, &rules, None, &objects(1, &rules), &[])
    };
    let elsewhere = "th dport { 53, 853 } goto no_7";
    assert!(text(r#"{"mode": "custom", "deny_domains": ["a.example"]}"#).contains(elsewhere));
    // Where an allow list says which addresses there are at all, it says so of name servers too.
    for json in [
        r#"{"mode": "custom", "deny_domains": ["a.example"], "allow_cidrs": ["192.0.2.53"]}"#,
        r#"{"mode": "custom", "allow_domains": ["a.example"]}"#,
        r#"{"mode": "custom", "deny_cidrs": ["192.0.2.0/24"]}"#,
    ] {
        assert!(!text(json).contains(elsewhere), "{json}");
    }
}

#[test]
fn limits_let_a_whole_piece_through() {
    let limit = |json: &str| limit(serde_json::from_str(json).expect("a rate"));
    assert_eq!(
        limit(r#"{"kbit_per_sec": 1}"#),
        "125 bytes/second burst 65536 bytes"
    );
    assert_eq!(
        limit(r#"{"kbit_per_sec": 8000, "burst": 500}"#),
        "1000000 bytes/second burst 500000 bytes"
    );
    assert_eq!(
        limit(r#"{"kbit_per_sec": 100000000}"#),
        "12500000000 bytes/second burst 3125000000 bytes"
    );
    assert_eq!(limit(r#"{"pps": 1}"#), "1/second burst 5 packets");
    assert_eq!(
        limit(r#"{"pps": 100, "burst": 7}"#),
        "100/second burst 7 packets"
    );
}

#[test]
fn destinations_are_read_from_padded_keys() {
    let key = [192, 0, 2, 1, 6, 0, 0, 0, 0x01, 0xbb, 0, 0];
    assert_eq!(
        destination(&key),
        Some(DeniedTarget::Address {
            address: Ipv4Addr::new(192, 0, 2, 1),
            protocol: 6,
            port: 443
        })
    );
    assert_eq!(destination(&key[..9]), None);
}
