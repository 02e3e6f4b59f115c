//! The environment's half of the configuration: `OARLOCK_<SECTION>__<KEY>` and `DATABASE_URL`, laid over the file.

use std::collections::BTreeMap;

use toml::{Table, Value};

/// Lays the environment over what the file says.
///
/// A variable without `__` is not a key of ours: Kubernetes sets `OARLOCK_SERVICE_HOST` and the like for a service of
/// that name. An empty variable counts as not set, since that is how compose files pass on what is not there.
pub(super) fn overlay(table: &mut Table, environment: &BTreeMap<String, String>) {
    // The general name first: the more particular OARLOCK_DATABASE__URL overrules it.
    if let Some(url) = environment.get("DATABASE_URL").filter(|url| !url.is_empty()) {
        set(table, &["database".to_owned(), "url".to_owned()], url);
    }
    for (name, value) in environment {
        let Some(key) = name.strip_prefix("OARLOCK_") else { continue };
        if !key.contains("__") || value.is_empty() {
            continue;
        }
        let path: Vec<String> = key.split("__").map(str::to_ascii_lowercase).collect();
        set(table, &path, value);
    }
}

fn set(table: &mut Table, path: &[String], value: &str) {
    let (key, parents) = path.split_last().expect("a split has at least one part");
    let mut at = table;
    for parent in parents {
        let entry = at.entry(parent.clone()).or_insert_with(|| Value::Table(Table::new()));
        if !entry.is_table() {
            *entry = Value::Table(Table::new());
        }
        at = entry.as_table_mut().expect("made a table above");
    }
    // A secret given here replaces the file's, in whichever of its two forms that was written.
    for sibling in siblings(key) {
        at.remove(&sibling);
    }
    at.insert(key.clone(), parse(value));
}

/// The other spelling of a secret: `token` and `token_file`, `public_keys` and `public_key_files`.
fn siblings(key: &str) -> Vec<String> {
    if let Some(secret) = key.strip_suffix("_files") {
        vec![format!("{secret}s")]
    } else if let Some(secret) = key.strip_suffix("_file") {
        vec![secret.to_owned()]
    } else if let Some(one) = key.strip_suffix('s') {
        vec![format!("{one}_files"), format!("{key}_file")]
    } else {
        vec![format!("{key}_file")]
    }
}

/// A list may be written as in TOML or JSON; anything else stays text, and the key's reader makes of it what it needs.
fn parse(value: &str) -> Value {
    if value.trim_start().starts_with('[') {
        let as_toml = format!("value = {value}").parse::<Table>().ok().and_then(|mut table| table.remove("value"));
        let as_json = || serde_json::from_str::<Value>(value).ok();
        if let Some(list) = as_toml.or_else(as_json) {
            return list;
        }
    }
    Value::String(value.to_owned())
}
