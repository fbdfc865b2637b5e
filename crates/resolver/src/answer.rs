//! What is answered without asking anybody, and what is taken out of others' answers. Pure.

use std::net::Ipv4Addr;

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{DNSClass, Name, RData, Record, RecordType, rdata},
};

use crate::{
    Ipv4Net,
    files::Hosts,
    query::{Answer, Query},
};

/// Longest time that an answer is good for, in seconds, whatever its owner says.
pub(crate) const MAX_TTL: u32 = 300;

/// How often a name may stand for another one.
const MAX_ALIASES: usize = 16;

/// How long machines may remember what the host's own files say, in seconds: files change unannounced.
const FILE_TTL: u32 = 5;

/// Ranges whose reverse names are nobody's business: private, shared, loopback, link-local, multicast.
const UNNAMED: [Ipv4Net; 8] = [
    Ipv4Net::new(Ipv4Addr::new(0, 0, 0, 0), 8),
    Ipv4Net::new(Ipv4Addr::new(10, 0, 0, 0), 8),
    Ipv4Net::new(Ipv4Addr::new(100, 64, 0, 0), 10),
    Ipv4Net::new(Ipv4Addr::new(127, 0, 0, 0), 8),
    Ipv4Net::new(Ipv4Addr::new(169, 254, 0, 0), 16),
    Ipv4Net::new(Ipv4Addr::new(172, 16, 0, 0), 12),
    Ipv4Net::new(Ipv4Addr::new(192, 168, 0, 0), 16),
    Ipv4Net::new(Ipv4Addr::new(224, 0, 0, 0), 3),
];

/// The answer that needs no name server, if there is one.
pub(crate) fn local(
    query: &Query,
    hosts: &Hosts,
    allowed: impl FnOnce(&str) -> bool,
) -> Option<Answer> {
    let Some(name) = query.text.as_deref() else {
        return Some(Answer::code(ResponseCode::NXDomain));
    };
    if name.is_empty() {
        return Some(Answer::code(ResponseCode::Refused));
    }
    if is_own(name) {
        return Some(addresses(query, &[Ipv4Addr::LOCALHOST], MAX_TTL));
    }
    if unnamed_reverse(name) || !allowed(name) {
        return Some(Answer::code(ResponseCode::NXDomain));
    }
    if let Some(found) = hosts.get(name) {
        return Some(addresses(query, found, FILE_TTL));
    }
    // A bare word is a name of some local network. Machines have none, and asking a public server for
    // it would tell strangers what the host's network calls its hosts.
    if !name.contains('.') {
        return Some(Answer::code(ResponseCode::NXDomain));
    }
    match query.kind {
        // Machines have no IPv6: an address that cannot be reached only makes programs wait for it.
        // Service bindings carry addresses too, where the filter below does not look.
        RecordType::AAAA | RecordType::HTTPS | RecordType::SVCB => Some(Answer::empty()),
        _ => None,
    }
}

/// Whether this is the machine's own name for itself, whatever its rules are.
pub(crate) fn is_own(name: &str) -> bool {
    name == "localhost" || name.ends_with(".localhost")
}

/// The addresses that a name leads to, by its own records and those of the names that it stands for. Whatever else
/// an answer holds is about somebody else.
pub(crate) fn led_to(name: &Name, answers: &[Record]) -> Vec<Ipv4Addr> {
    let mut names = vec![name];
    for _ in 0..MAX_ALIASES {
        let next = answers.iter().find_map(|record| match record.data() {
            RData::CNAME(alias) if Some(&record.name()) == names.last() => Some(&alias.0),
            _ => None,
        });
        match next {
            Some(next) if !names.contains(&next) => names.push(next),
            _ => break,
        }
    }
    answers
        .iter()
        .filter(|record| names.contains(&record.name()))
        .filter_map(|record| match record.data() {
            RData::A(a) => Some(a.0),
            _ => None,
        })
        .collect()
}

fn addresses(query: &Query, found: &[Ipv4Addr], ttl: u32) -> Answer {
    if query.kind != RecordType::A {
        return Answer::empty();
    }
    let record = |a: &Ipv4Addr| Record::from_rdata(query.name.clone(), ttl, RData::A(rdata::A(*a)));
    Answer::records(found.iter().map(record).collect())
}

/// Whether `name` is the reverse name of an address, or a range, inside [`UNNAMED`] or of any IPv6
/// address.
fn unnamed_reverse(name: &str) -> bool {
    let under = |zone: &str| {
        name.strip_suffix(zone)
            .filter(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    if under("ip6.arpa").is_some() {
        return true;
    }
    let Some(rest) = under("in-addr.arpa") else {
        return false;
    };
    let octets: Vec<u8> = rest
        .trim_end_matches('.')
        .rsplit('.')
        .map_while(|label| label.parse().ok())
        .take(4)
        .collect();
    let mut address = [0u8; 4];
    address[..octets.len()].copy_from_slice(&octets);
    let known_bits = 8 * octets.len();
    UNNAMED
        .iter()
        .any(|net| known_bits >= usize::from(net.prefix) && net.contains(address.into()))
}

/// What of a name server's answer is passed on: addresses in `hidden` are taken out (a name that leads
/// a program to the host's own services is an attack, or a mistake that works as one), as is what
/// machines do not use. Times are cut to [`MAX_TTL`].
pub(crate) fn filtered(mut message: Message, hidden: &[Ipv4Net]) -> Answer {
    let passed = |record: &Record| {
        record.dns_class() == DNSClass::IN
            && match record.data() {
                RData::A(a) => !hidden.iter().any(|net| net.contains(a.0)),
                RData::AAAA(_) | RData::HTTPS(_) | RData::SVCB(_) => false,
                _ => true,
            }
    };
    let mut answers = message.take_answers();
    answers.retain(passed);
    let mut authority = message.take_name_servers();
    authority.retain(|r| answers.is_empty() && r.record_type() == RecordType::SOA);
    for record in answers.iter_mut().chain(&mut authority) {
        record.set_ttl(record.ttl().min(MAX_TTL));
    }
    Answer {
        code: message.response_code(),
        answers,
        authority,
    }
}

/// How long an answer may be remembered, in seconds.
pub(crate) fn ttl(answer: &Answer) -> u32 {
    if !matches!(answer.code, ResponseCode::NoError | ResponseCode::NXDomain) {
        return 0;
    }
    let times = answer.answers.iter().map(Record::ttl);
    let negative = answer.authority.iter().filter_map(|r| match r.data() {
        RData::SOA(soa) => Some(soa.minimum().min(r.ttl())),
        _ => None,
    });
    times.chain(negative).min().unwrap_or(0).min(MAX_TTL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{hidden_by_default, query};
    use hickory_proto::{op::Query as Question, rr::rdata::SOA};

    fn ask(name: &str, kind: RecordType) -> Query {
        let mut message = Message::new();
        message.add_query(Question::query(Name::from_ascii(name).unwrap(), kind));
        query::read(&message.to_vec().unwrap()).unwrap()
    }

    fn answer(name: &str, kind: RecordType) -> Option<Answer> {
        let hosts = Hosts::parse(
            "10.1.2.3 build.corp.example builder\n",
            &hidden_by_default(),
        );
        local(&ask(name, kind), &hosts, |name| {
            !name.ends_with("denied.example")
        })
    }

    fn found(answer: Option<Answer>) -> Vec<String> {
        answer
            .unwrap()
            .answers
            .iter()
            .map(|r| r.data().to_string())
            .collect()
    }

    #[test]
    fn names_of_the_machine_and_the_host() {
        assert_eq!(found(answer("localhost.", RecordType::A)), ["127.0.0.1"]);
        assert_eq!(
            found(answer("a.b.LocalHost.", RecordType::A)),
            ["127.0.0.1"]
        );
        assert_eq!(
            found(answer("localhost.", RecordType::AAAA)),
            [] as [&str; 0]
        );
        assert_eq!(found(answer("builder.", RecordType::A)), ["10.1.2.3"]);
        assert_eq!(
            found(answer("Build.corp.example.", RecordType::A)),
            ["10.1.2.3"]
        );
        assert_eq!(
            answer("build.corp.example.", RecordType::TXT),
            Some(Answer::empty())
        );
        assert_eq!(
            answer("nosuchword.", RecordType::A).unwrap().code,
            ResponseCode::NXDomain
        );
        assert_eq!(
            answer(".", RecordType::NS).unwrap().code,
            ResponseCode::Refused
        );
        assert_eq!(answer("example.com.", RecordType::A), None);
        assert_eq!(answer("notlocalhost.example.", RecordType::A), None);
        assert_eq!(
            answer("example.com.", RecordType::AAAA),
            Some(Answer::empty())
        );
        assert_eq!(
            answer("example.com.", RecordType::HTTPS),
            Some(Answer::empty())
        );
        assert_eq!(
            answer("x.denied.example.", RecordType::TXT).unwrap().code,
            ResponseCode::NXDomain
        );
        assert_eq!(
            answer("x.denied.example.", RecordType::AAAA).unwrap().code,
            ResponseCode::NXDomain
        );
    }

    #[test]
    fn reverse_names_of_private_ranges() {
        for name in [
            "1.0.0.10.in-addr.arpa.",
            "10.in-addr.arpa.",
            "254.169.254.169.in-addr.arpa.",
            "1.31.172.in-addr.arpa.",
            "lb._dns-sd._udp.0.1.168.192.in-addr.arpa.",
            "1.2.3.4.10.in-addr.arpa.",
            "1.0.0.0.ip6.arpa.",
            "255.in-addr.arpa.",
        ] {
            assert_eq!(
                answer(name, RecordType::PTR).unwrap().code,
                ResponseCode::NXDomain,
                "{name}"
            );
        }
        for name in [
            "8.8.8.8.in-addr.arpa.",
            "172.in-addr.arpa.",
            "1.32.172.in-addr.arpa.",
            "x10.in-addr.arpa.",
        ] {
            assert_eq!(answer(name, RecordType::PTR), None, "{name}");
        }
    }

    #[test]
    fn hidden_addresses_are_taken_out() {
        let name = Name::from_ascii("evil.example.").unwrap();
        let mut message = Message::new();
        let cname = RData::CNAME(rdata::CNAME(Name::from_ascii("inner.example.").unwrap()));
        message.add_answer(Record::from_rdata(name.clone(), 9999, cname));
        for a in [
            "127.0.0.1",
            "169.254.169.254",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "10.0.0.1",
            "192.0.2.1",
        ] {
            message.add_answer(Record::from_rdata(
                name.clone(),
                9999,
                RData::A(rdata::A(a.parse().unwrap())),
            ));
        }
        message.add_answer(Record::from_rdata(
            name,
            9999,
            RData::AAAA("::1".parse::<std::net::Ipv6Addr>().unwrap().into()),
        ));
        let answer = filtered(message, &hidden_by_default());
        assert_eq!(
            found(Some(answer.clone())),
            ["inner.example.", "10.0.0.1", "192.0.2.1"]
        );
        assert_eq!(ttl(&answer), MAX_TTL);
    }

    #[test]
    fn only_a_names_own_addresses_count() {
        let name = |text: &str| Name::from_ascii(text).unwrap();
        let a = |owner: &str, address: [u8; 4]| {
            Record::from_rdata(name(owner), 60, RData::A(rdata::A(address.into())))
        };
        let alias = |owner: &str, target: &str| {
            Record::from_rdata(name(owner), 60, RData::CNAME(rdata::CNAME(name(target))))
        };
        let answers = [
            a("other.example.", [192, 0, 2, 9]),
            alias("www.example.", "CDN.example."),
            alias("cdn.example.", "www.example."),
            a("cdn.example.", [192, 0, 2, 1]),
            a("www.example.", [192, 0, 2, 2]),
        ];
        assert_eq!(
            led_to(&name("WWW.example."), &answers),
            [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)]
        );
        assert!(led_to(&name("nobody.example."), &answers).is_empty());
    }

    #[test]
    fn an_empty_answer_lives_as_long_as_its_zone_says() {
        let zone = Name::from_ascii("example.").unwrap();
        let mut message = Message::new();
        message.set_response_code(ResponseCode::NXDomain);
        assert_eq!(ttl(&filtered(message.clone(), &[])), 0);
        let soa = SOA::new(zone.clone(), zone.clone(), 1, 1, 1, 1, 30);
        message.add_name_server(Record::from_rdata(zone, 60, RData::SOA(soa)));
        let answer = filtered(message, &[]);
        assert_eq!((answer.code, ttl(&answer)), (ResponseCode::NXDomain, 30));
        assert_eq!(ttl(&Answer::code(ResponseCode::ServFail)), 0);
    }
}
