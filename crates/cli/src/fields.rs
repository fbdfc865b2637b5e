//! Fields of JSON by dotted path: `a.b=1` sets one, two values are compared one by one.

use serde_json::{Map, Value};

use crate::error::CliError;

/// A field whose value is not the same on both sides. `None`: it is not there.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Changed {
    /// Keys and indices, with dots between them.
    pub(crate) path: String,
    pub(crate) a: Option<Value>,
    pub(crate) b: Option<Value>,
}

/// Sets `KEY=VALUE` in `object`. The key may be dotted; objects on the way are made. The value is JSON if it reads as
/// JSON, otherwise text.
///
/// # Errors
/// If there is no `=`, the key has an empty part, or something on the way is neither an object nor an item of a list.
pub(crate) fn set(object: &mut Map<String, Value>, pair: &str) -> Result<(), CliError> {
    let bad = |why: String| {
        CliError::usage(format!("--set: {why}"))
            .hint("For example: --set topic=machines, or --set limits.pages=3.")
    };
    let (key, value) = pair
        .split_once('=')
        .ok_or_else(|| bad("expected KEY=VALUE".to_owned()))?;
    let parts: Vec<&str> = key.split('.').collect();
    let [way @ .., last] = parts.as_slice() else {
        return Err(bad("expected KEY=VALUE".to_owned()));
    };
    if parts.iter().any(|part| part.trim().is_empty()) {
        return Err(bad(format!("{key:?} has an empty name")));
    }
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
    let Some((first, way)) = way.split_first() else {
        object.insert((*last).to_owned(), value);
        return Ok(());
    };
    let empty = || Value::Object(Map::new());
    let mut place = object.entry(*first).or_insert_with(empty);
    for part in way {
        place = match place {
            Value::Object(fields) => fields.entry(*part).or_insert_with(empty),
            other => item(other, part)
                .ok_or_else(|| bad(format!("{key}: there is no {part:?} in what is there")))?,
        };
    }
    match place {
        Value::Object(fields) => {
            fields.insert((*last).to_owned(), value);
        }
        other => {
            *item(other, last)
                .ok_or_else(|| bad(format!("{key}: there is no {last:?} in what is there")))? =
                value;
        }
    }
    Ok(())
}

/// The item of a list at an index.
fn item<'a>(value: &'a mut Value, index: &str) -> Option<&'a mut Value> {
    value.as_array_mut()?.get_mut(index.parse::<usize>().ok()?)
}

/// The fields in which two values differ, by path.
pub(crate) fn changed(a: &Value, b: &Value) -> Vec<Changed> {
    let mut found = Vec::new();
    compare(String::new(), Some(a), Some(b), &mut found);
    found
}

fn compare(path: String, a: Option<&Value>, b: Option<&Value>, found: &mut Vec<Changed>) {
    let below = |part: &str| {
        if path.is_empty() {
            part.to_owned()
        } else {
            format!("{path}.{part}")
        }
    };
    match (a, b) {
        (Some(Value::Object(a)), Some(Value::Object(b))) => {
            let mut keys: Vec<&String> = a.keys().chain(b.keys()).collect();
            keys.sort();
            keys.dedup();
            for key in keys {
                compare(below(key), a.get(key), b.get(key), found);
            }
        }
        (Some(Value::Array(a)), Some(Value::Array(b))) => {
            for index in 0..a.len().max(b.len()) {
                let part = below(&index.to_string());
                compare(part, a.get(index), b.get(index), found);
            }
        }
        (a, b) if a == b => {}
        (a, b) => found.push(Changed {
            path,
            a: a.cloned(),
            b: b.cloned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn after(start: Value, pairs: &[&str]) -> Value {
        let Value::Object(mut object) = start else {
            panic!("not an object")
        };
        for pair in pairs {
            set(&mut object, pair).expect(pair);
        }
        Value::Object(object)
    }

    #[test]
    fn values_are_json_or_text() {
        assert_eq!(
            after(
                json!({"old": 1, "kept": true}),
                &[
                    "old=2",
                    "text=machines",
                    "quoted=\"3\"",
                    "list=[1, 2]",
                    "none=null",
                    "empty=",
                    "url=http://x?a=b",
                ]
            ),
            json!({
                "old": 2, "kept": true, "text": "machines", "quoted": "3", "list": [1, 2], "none": null, "empty": "",
                "url": "http://x?a=b",
            })
        );
    }

    #[test]
    fn dots_lead_into_objects_and_lists() {
        assert_eq!(
            after(
                json!({"a": {"b": 1}, "l": [{"x": 1}, 2]}),
                &["a.b=2", "a.c.d=3", "n.e.w=4", "l.0.x=5", "l.1=6"]
            ),
            json!({"a": {"b": 2, "c": {"d": 3}}, "n": {"e": {"w": 4}}, "l": [{"x": 5}, 6]})
        );
        for bad in [
            "a", "=1", "a..b=1", ".a=1", "a.=1", "s.x=1", "s.x.y=1", "l.7=1", "l.x=1",
        ] {
            let mut object = Map::from_iter([
                ("s".to_owned(), json!("text")),
                ("l".to_owned(), json!([1])),
            ]);
            assert_eq!(set(&mut object, bad).expect_err(bad).exit(), 2);
        }
    }

    #[test]
    fn values_are_compared_field_by_field() {
        let shown = |a: Value, b: Value| {
            changed(&a, &b)
                .into_iter()
                .map(|changed| (changed.path, changed.a, changed.b))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            shown(
                json!({"a": 1, "o": {"x": [1, 2], "y": null}, "gone": "g"}),
                json!({"a": 1, "o": {"x": [1, 3, 4]}, "new": {}}),
            ),
            [
                ("gone".to_owned(), Some(json!("g")), None),
                ("new".to_owned(), None, Some(json!({}))),
                ("o.x.1".to_owned(), Some(json!(2)), Some(json!(3))),
                ("o.x.2".to_owned(), None, Some(json!(4))),
                ("o.y".to_owned(), Some(Value::Null), None),
            ]
        );
        assert_eq!(shown(json!({"a": [1]}), json!({"a": [1]})), []);
        assert_eq!(
            shown(json!({"a": {"b": 1}}), json!({"a": [1]})).len(),
            1,
            "another kind of value is one difference"
        );
    }
}
