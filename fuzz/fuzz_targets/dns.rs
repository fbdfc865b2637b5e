//! What machines and name servers send to the resolver.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| nullspace_resolver::fuzz(bytes));
