//! Which engine keeps a machine apart from the host: what it asks for, else what its template says, else the server's own choice.

use nullspace_api::{error::code, machine::Isolation};
use nullspace_engine::Capabilities;

use super::App;
use crate::error::{Error, Kind, Result};

/// The engine of what is asked for, and what it can do.
///
/// # Errors
/// `not_implemented` when it is not here.
pub(super) fn engine(app: &App, wanted: Option<Isolation>) -> Result<(&'static str, Capabilities)> {
    let offers = app.engine.offers();
    choose(&offers, wanted).ok_or_else(|| {
        let wanted = wanted.map_or("", Isolation::as_str);
        let names: Vec<&str> = offers.iter().map(|(name, _)| *name).collect();
        Error::new(
            Kind::NotImplemented,
            code::NOT_IMPLEMENTED,
            format!(
                "isolation: this server has no {wanted}; it has {}",
                names.join(", ")
            ),
        )
        .with_action("ask for another one; `nullspace doctor` on the server says what each needs")
    })
}

fn choose(
    offers: &[(&'static str, Capabilities)],
    wanted: Option<Isolation>,
) -> Option<(&'static str, Capabilities)> {
    let found = match wanted {
        None => offers.first(),
        Some(Isolation::Strongest) => offers.iter().max_by_key(|(name, _)| Isolation::parse(name)),
        Some(kind) => offers.iter().find(|(name, _)| *name == kind.as_str()),
    };
    found.copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken() {
        let offers = ["native", "gvisor"].map(|name| (name, Capabilities::default()));
        let taken = |wanted| choose(&offers, wanted).map(|(name, _)| name);
        assert_eq!(taken(None), Some("native"), "the server's own choice");
        assert_eq!(taken(Some(Isolation::Strongest)), Some("gvisor"));
        assert_eq!(taken(Some(Isolation::Native)), Some("native"));
        assert_eq!(taken(Some(Isolation::Microvm)), None);
        assert_eq!(choose(&[], None).map(|(name, _)| name), None);
    }
}
