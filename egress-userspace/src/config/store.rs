//! `Secret` and `ConfigMap`: certificates and keys that other resources refer to by name.

use std::{collections::BTreeMap, fmt, sync::Arc};

use super::{
    Code, Errors, Message,
    decode::{Decode, Fields, Text},
    node::{Node, Value},
    virtual_service::Base64,
};

/// What a `Secret` or a `ConfigMap` holds. Contents are not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Store {
    /// By key.
    pub entries: BTreeMap<String, Arc<[u8]>>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.entries.keys()).finish()
    }
}

/// Takes the fields of a `Secret`: `data` in base64, and `stringData`, which counts where both have a key.
pub(super) fn secret(fields: &mut Fields<'_>, errors: &mut Errors) -> Option<Store> {
    let data = fields.take("data", errors);
    let text = fields.take("stringData", errors);
    fields.ignore(&["immutable", "type"]);
    Some(merge(data?, text?))
}

/// Takes the fields of a `ConfigMap`: `data`, and `binaryData` in base64.
pub(super) fn config_map(fields: &mut Fields<'_>, errors: &mut Errors) -> Option<Store> {
    let text = fields.take("data", errors);
    let data = fields.take("binaryData", errors);
    fields.ignore(&["immutable"]);
    Some(merge(data?, text?))
}

fn merge(Entries(data): Entries<Base64>, Entries(text): Entries<Plain>) -> Store {
    let data = data.into_iter().map(|(key, Base64(bytes))| (key, Arc::from(bytes)));
    let text = text.into_iter().map(|(key, Plain(text))| (key, Arc::from(text.into_bytes())));
    Store { entries: data.chain(text).collect() }
}

/// A map of what nobody else must know, be it that it turns out to be no map.
struct Entries<T>(BTreeMap<String, T>);

impl<T: Decode> Decode for Entries<T> {
    fn decode(node: &Node, path: &str, errors: &mut Errors) -> Option<Self> {
        if !matches!(node.value, Value::Map(_)) {
            let message = format!("expected a map, found {}", node.value.kind());
            errors.push(node.location.clone(), path, Code::WrongType.because(message));
            return None;
        }
        BTreeMap::decode(node, path, errors).map(Self)
    }

    fn absent() -> Option<Self> {
        BTreeMap::absent().map(Self)
    }
}

/// Text as it is.
struct Plain(String);

impl Text for Plain {
    const IS_SECRET: bool = true;

    fn parse(text: &str) -> Result<Self, Message> {
        Ok(Self(text.to_owned()))
    }
}
