//! Columns that hold JSON objects: whether one holds what is asked for.

use serde_json::{Map, Value};

/// Whether `text` is an object with every wanted pair in it.
pub(crate) fn holds(text: &str, wanted: &Map<String, Value>) -> bool {
    if wanted.is_empty() {
        return true;
    }
    let Ok(Value::Object(fields)) = serde_json::from_str(text) else {
        return false;
    };
    wanted
        .iter()
        .all(|(key, value)| fields.get(key).is_some_and(|found| contains(found, value)))
}

/// Objects are compared by what is asked for, everything else as it is.
fn contains(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        (Value::Object(found), Value::Object(wanted)) => wanted
            .iter()
            .all(|(key, value)| found.get(key).is_some_and(|found| contains(found, value))),
        _ => found == wanted,
    }
}
