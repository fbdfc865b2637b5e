//! Ids: a prefix that says what it is, and random letters.

use rand::Rng;

/// A machine.
pub const MACHINE: &str = "mch_";
/// A volume.
pub const VOLUME: &str = "vol_";
/// A volume in a machine.
pub const ATTACHMENT: &str = "vat_";
/// A machine's state that is kept.
pub const SNAPSHOT: &str = "snap_";
/// A terminal.
pub const PTY: &str = "pty_";
/// An upload in parts.
pub const UPLOAD: &str = "upl_";
/// A grant to log in over SSH.
pub const SSH_ACCESS: &str = "ssh_";
/// A grant to see a port of a machine.
pub const PREVIEW: &str = "pvg_";
/// A context of code.
pub const CODE_CONTEXT: &str = "ctx_";
/// A run of code.
pub const CODE_RUN: &str = "crun_";
/// A file that came out of code.
pub const CODE_ARTIFACT: &str = "cart_";
/// A template.
pub const TEMPLATE: &str = "tmpl_";
/// A build of one.
pub const TEMPLATE_BUILD: &str = "tb_";
/// A layer that a step of a build wrote, kept.
pub const TEMPLATE_LAYER: &str = "tly_";
/// The bytes of a file of a build.
pub const TEMPLATE_BLOB: &str = "tblob_";
/// A name of a template that is kept for somebody.
pub const TEMPLATE_CLAIM: &str = "tclm_";
/// A warm pool.
pub const WARM_POOL: &str = "twp_";
/// A tenant.
pub const TENANT: &str = "tnt_";
/// An API key (not the key itself).
pub const KEY: &str = "key_";
/// One HTTP request.
pub const REQUEST: &str = "req_";
/// An Agent Deployment.
pub const DEPLOYMENT: &str = "adpl_";
/// A version of a deployment.
pub const VERSION: &str = "adver_";
/// A run.
pub const RUN: &str = "adrun_";
/// A service instance.
pub const SERVICE: &str = "adsvc_";
/// A build of a version's install step.
pub const BUILD: &str = "adbld_";
/// What an install command left, kept.
pub const ARTIFACT: &str = "adart_";

/// Lower-case letters and digits, as in a DNS label; 20 of them are over 100 bits.
const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
const LENGTH: usize = 20;

/// A new id with this prefix.
#[must_use]
pub fn new(prefix: &str) -> String {
    let mut rng = rand::rng();
    let mut id = String::with_capacity(prefix.len() + LENGTH);
    id.push_str(prefix);
    for _ in 0..LENGTH {
        id.push(char::from(ALPHABET[rng.random_range(0..ALPHABET.len())]));
    }
    id
}

#[cfg(test)]
mod tests {
    #[test]
    fn ids_differ_and_carry_their_prefix() {
        let (a, b) = (super::new(super::MACHINE), super::new(super::MACHINE));
        assert_ne!(a, b);
        assert!(a.starts_with("mch_") && a.len() == 24);
    }
}
