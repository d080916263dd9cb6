//! `Secret` and `ConfigMap`: certificates and keys that other resources refer to by name.

use std::{collections::BTreeMap, fmt, sync::Arc};

use super::{Errors, decode::Fields, virtual_service::Base64};

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

fn merge(data: BTreeMap<String, Base64>, text: BTreeMap<String, String>) -> Store {
    let data = data.into_iter().map(|(key, Base64(bytes))| (key, Arc::from(bytes)));
    let text = text.into_iter().map(|(key, text)| (key, Arc::from(text.into_bytes())));
    Store { entries: data.chain(text).collect() }
}
