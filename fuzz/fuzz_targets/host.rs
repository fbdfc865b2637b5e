//! Host names of requests, and whom they are for: there is one way to spell a port of a machine, and nothing below the domain is the API.
#![no_main]

use arbitrary::Arbitrary;
use http::{HeaderMap, HeaderValue, Uri, header};
use libfuzzer_sys::fuzz_target;
use nullspace_gateway::{Addressee, PreviewDomain};

const DOMAIN: &str = "p.example";

#[derive(Arbitrary, Debug)]
struct Asked<'a> {
    target: &'a str,
    /// Put together, so that it is often nearly right.
    label: &'a [u8],
    is_below: bool,
    end: &'a [u8],
    second: Option<&'a [u8]>,
}

fuzz_target!(|asked: Asked<'_>| {
    let domain: PreviewDomain = DOMAIN.parse().expect("a domain");
    let mut host = asked.label.to_vec();
    if asked.is_below {
        host.extend(b".p.example");
    }
    host.extend(asked.end);
    let (Ok(value), Ok(uri)) = (HeaderValue::from_bytes(&host), asked.target.parse::<Uri>()) else {
        return;
    };
    let mut headers = HeaderMap::new();
    headers.append(header::HOST, value);
    if let Some(second) = asked.second.and_then(|text| HeaderValue::from_bytes(text).ok()) {
        headers.append(header::HOST, second);
    }
    let Ok(addressee) = domain.addressee(&uri, &headers) else {
        return;
    };
    assert_eq!(headers.get_all(header::HOST).iter().count(), 1);
    let text = String::from_utf8(host).expect("a host that was taken is text").to_ascii_lowercase();
    let name = text.rsplit_once(':').map_or(text.as_str(), |(name, _)| name);
    let name = name.strip_suffix('.').unwrap_or(name);
    match addressee {
        Addressee::Api => assert!(!name.ends_with(".p.example"), "{name} is the API"),
        Addressee::Port(machine, port) => {
            let own = domain.authority(&machine, port, 1);
            assert_eq!(own.strip_suffix(":1"), Some(name), "two names of one port");
        }
    }
});
