//! One neutral tree for the two spellings of a config, TOML text and wire JSON, so that the rules exist once.

use std::collections::BTreeMap;

/// A config value as far as the rules care about it. Tables iterate in code-point order of their keys, which is the
/// order unknown keys are reported in.
#[derive(Debug, Clone)]
pub(crate) enum Node {
    /// JSON null; reads as "not given".
    Null,
    Bool(bool),
    /// Wide enough for every integer TOML and JSON can carry.
    Int(i128),
    Str(String),
    List(Vec<Node>),
    Table(BTreeMap<String, Node>),
    /// A float or a date: no key takes one.
    Other,
}

impl Node {
    /// The value under `key`, with null reading as absent.
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        match self {
            Node::Table(table) => table.get(key).filter(|node| !matches!(node, Node::Null)),
            _ => None,
        }
    }
}

impl From<toml::Table> for Node {
    fn from(table: toml::Table) -> Self {
        Node::Table(
            table
                .into_iter()
                .map(|(key, value)| (key, value.into()))
                .collect(),
        )
    }
}

impl From<toml::Value> for Node {
    fn from(value: toml::Value) -> Self {
        match value {
            toml::Value::String(text) => Node::Str(text),
            toml::Value::Integer(number) => Node::Int(number.into()),
            toml::Value::Boolean(flag) => Node::Bool(flag),
            toml::Value::Array(items) => Node::List(items.into_iter().map(Node::from).collect()),
            toml::Value::Table(table) => table.into(),
            toml::Value::Float(_) | toml::Value::Datetime(_) => Node::Other,
        }
    }
}

impl From<&serde_json::Value> for Node {
    fn from(value: &serde_json::Value) -> Self {
        use serde_json::Value;
        match value {
            Value::Null => Node::Null,
            Value::Bool(flag) => Node::Bool(*flag),
            Value::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(number), _) => Node::Int(number.into()),
                (None, Some(number)) => Node::Int(number.into()),
                (None, None) => Node::Other,
            },
            Value::String(text) => Node::Str(text.clone()),
            Value::Array(items) => Node::List(items.iter().map(Node::from).collect()),
            Value::Object(fields) => Node::Table(
                fields
                    .iter()
                    .map(|(key, value)| (key.clone(), Node::from(value)))
                    .collect(),
            ),
        }
    }
}
