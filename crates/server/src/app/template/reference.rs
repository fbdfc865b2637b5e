//! References to templates: `name`, `name:tag`, `name:tb_…`, `namespace/name[:…]`, `tmpl_…`.

use nullspace_api::{
    error::code,
    id,
    template::{BUILTIN_NAMESPACE, DEFAULT_TAG},
};

use crate::error::{Error, Result};

/// The most characters of a name or a tag.
const MAX: usize = 128;
/// The tag of built-in templates that published clients ask for.
const LATEST: &str = "latest";
/// The built-in templates.
pub(super) const BUILTINS: [&str; 3] = ["base", "code-interpreter", "host"];

/// What a reference says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    /// Which template.
    pub(super) subject: Subject,
    /// Which of its builds.
    pub(super) which: Which,
}

/// Which template a reference means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    /// By id.
    Id(String),
    /// By name: one that came with the program if there is one, else one that was built.
    Name(String),
    /// By name: one that came with the program, or one that was built if there is none of that name.
    Builtin(String),
    /// By namespace, which is the name of a tenant, and name: one that was built there.
    Of(String, String),
}

/// Which build a reference means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Which {
    /// None is named.
    Default,
    /// The one that a tag means.
    Tag(String),
    /// This one.
    Build(String),
}

impl Reference {
    /// Reads a reference.
    ///
    /// # Errors
    /// `template_not_found`: what is none names nothing.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let none = || not_found(text);
        if text.starts_with(id::TEMPLATE) {
            let (template, which) = qualifier(text).ok_or_else(none)?;
            return Ok(Self {
                subject: Subject::Id(template.to_owned()),
                which,
            });
        }
        let (namespace, rest) = match text.split_once('/') {
            Some((namespace, rest)) => (Some(namespace), rest),
            None => (None, text),
        };
        let (name, which) = qualifier(rest).ok_or_else(none)?;
        check_name(name).map_err(|_| none())?;
        let name = name.to_owned();
        let subject = match namespace {
            None => Subject::Name(name),
            Some(BUILTIN_NAMESPACE) => Subject::Builtin(name),
            Some(namespace) => {
                check_name(namespace).map_err(|_| none())?;
                Subject::Of(namespace.to_owned(), name)
            }
        };
        Ok(Self { subject, which })
    }

    /// The built-in template that it means, if it means one.
    #[must_use]
    pub(super) fn builtin(&self) -> Option<&str> {
        let name = match &self.subject {
            Subject::Name(name) | Subject::Builtin(name) => name.as_str(),
            Subject::Id(id) => id.strip_prefix(id::TEMPLATE)?,
            Subject::Of(..) => return None,
        };
        let is_current = match &self.which {
            Which::Default => true,
            Which::Tag(tag) => tag == LATEST || tag == DEFAULT_TAG,
            Which::Build(_) => false,
        };
        (is_current && BUILTINS.contains(&name)).then_some(name)
    }

    /// The name, if it is by name.
    #[must_use]
    pub(super) fn name(&self) -> Option<&str> {
        match &self.subject {
            Subject::Id(_) => None,
            Subject::Name(name) | Subject::Builtin(name) | Subject::Of(_, name) => Some(name),
        }
    }

    /// The tag it means, if it means one. Published clients ask for `latest` of whatever they are given bare.
    #[must_use]
    pub(super) fn tag(&self) -> Option<&str> {
        match (&self.which, &self.subject) {
            (Which::Default, _) => Some(DEFAULT_TAG),
            (Which::Tag(tag), _) => Some(tag),
            (Which::Build(_), _) => None,
        }
    }

    /// Whether it says `latest`, which means the default tag where there is no tag of that name.
    #[must_use]
    pub(super) fn is_latest(&self) -> bool {
        matches!(&self.which, Which::Tag(tag) if tag == LATEST)
    }
}

/// No template of that reference.
pub(super) fn not_found(text: &str) -> Error {
    let shown: String = text.chars().take(MAX).collect();
    Error::not_found(code::TEMPLATE_NOT_FOUND, format!("no template {shown:?}"))
}

fn qualifier(text: &str) -> Option<(&str, Which)> {
    let Some((name, qualifier)) = text.split_once(':') else {
        return Some((text, Which::Default));
    };
    let which = match qualifier {
        build if build.starts_with(id::TEMPLATE_BUILD) => Which::Build(build.to_owned()),
        tag => {
            check_tag(tag).ok()?;
            Which::Tag(tag.to_owned())
        }
    };
    Some((name, which))
}

/// Checks the name of a template.
///
/// # Errors
/// `invalid_request`.
pub(super) fn check_name(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_name = name.len() <= MAX
        && name.chars().next().is_some_and(plain)
        && name.chars().all(|c| plain(c) || "._-".contains(c))
        && !name.starts_with(id::TEMPLATE)
        && !name.starts_with(id::TEMPLATE_BUILD);
    match is_name {
        true => Ok(()),
        false => Err(Error::invalid(format!(
            "name: {:?} must be 1 to {MAX} of a-z, 0-9, `.`, `_` and `-`, beginning with a letter or digit, and not \
             with tmpl_ or tb_",
            name.chars().take(MAX).collect::<String>()
        ))),
    }
}

/// Checks a tag.
///
/// # Errors
/// `invalid_request`.
pub(super) fn check_tag(tag: &str) -> Result<()> {
    let is_tag = !tag.is_empty()
        && tag.len() <= MAX
        && tag
            .chars()
            .next()
            .is_some_and(|c| c.is_ascii_alphanumeric() || c == '_')
        && tag
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        && !tag.starts_with(id::TEMPLATE_BUILD);
    match is_tag {
        true => Ok(()),
        false => Err(Error::invalid(format!(
            "tags: {:?} must be 1 to {MAX} letters, digits, `.`, `_` and `-`, and not begin with tb_",
            tag.chars().take(MAX).collect::<String>()
        ))),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_form() {
        let parse = |text: &str| Reference::parse(text).unwrap();
        assert_eq!(parse("base").builtin(), Some("base"));
        assert_eq!(parse("nullspace/base:latest").builtin(), Some("base"));
        assert_eq!(parse("base:default").builtin(), Some("base"));
        assert_eq!(parse("tmpl_base").builtin(), Some("base"));
        assert_eq!(parse("base:v2").builtin(), None);
        assert_eq!(parse("default/base").builtin(), None);
        assert_eq!(parse("mine:tb_1").which, Which::Build("tb_1".into()));
        assert_eq!(parse("mine").tag(), Some("default"));
        assert_eq!(parse("tmpl_1:v1").subject, Subject::Id("tmpl_1".into()));
        assert_eq!(parse("nullspace/mine:latest").name(), Some("mine"));
        let other = Subject::Of("other".into(), "mine".into());
        assert_eq!(parse("other/mine:v1").subject, other);
        for none in [
            "",
            "Mine",
            "a/b/c",
            "docker.io:80/mine",
            "-a/mine",
            "/mine",
            "mine:",
            ":v1",
            "-a",
            "a:b:c",
            "tb_1",
        ] {
            assert!(Reference::parse(none).is_err(), "{none}");
        }
    }
}
