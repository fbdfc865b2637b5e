//! `fields=`: answers with the fields that the caller wants alone.

use nullspace_api::error::code;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::error::{Error, Kind, Result};

/// The fields asked for, in their order, each once. `noun` is what has them, `known` their names.
pub(super) fn asked_for(
    text: Option<&str>,
    noun: &str,
    known: &[&str],
) -> Result<Option<Vec<String>>> {
    let Some(text) = text.filter(|text| !text.trim().is_empty()) else {
        return Ok(None);
    };
    let mut fields: Vec<String> = Vec::new();
    for field in text.split(',').map(str::trim).filter(|f| !f.is_empty()) {
        if !known.contains(&field) {
            return Err(Error::new(
                Kind::Invalid,
                code::INVALID_FIELDS,
                format!("fields: a {noun} has no field {field:?}"),
            )
            .with_action(format!("choose from {}", known.join(", "))));
        }
        if !fields.iter().any(|known| known == field) {
            fields.push(field.to_owned());
        }
    }
    Ok(Some(fields))
}

/// These fields of an answer.
pub(super) fn project(whole: &impl Serialize, fields: &[String]) -> Result<Map<String, Value>> {
    let whole = serde_json::to_value(whole)
        .map_err(|e| Error::internal(format!("writing an answer as JSON: {e}")))?;
    Ok(fields
        .iter()
        .map(|field| {
            let value = whole.get(field).cloned().unwrap_or(Value::Null);
            (field.clone(), value)
        })
        .collect())
}
