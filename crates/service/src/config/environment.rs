//! The environment's half of the configuration: `OARLOCK_<SECTION>__<KEY>` and `DATABASE_URL`, laid over the file.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use toml::de::DeTable;
use toml::{Table, Value};

use super::Problems;

/// The file's configuration with the environment laid over it.
pub(super) fn read(file: Option<&Path>) -> Result<Table, Problems> {
    let environment = ours(std::env::vars_os())?;
    let path = match (file, environment.get("OARLOCK_CONFIG").filter(|path| !path.is_empty())) {
        (Some(path), _) => Some(path.to_owned()),
        (None, Some(path)) => Some(PathBuf::from(path)),
        (None, None) => Some(PathBuf::from("oarlock.toml")).filter(|path| path.exists()),
    };
    let mut table = match path {
        None => Table::new(),
        Some(path) => {
            let text = std::fs::read_to_string(&path).map_err(|error| {
                Problems(vec![format!("{}: cannot read the configuration file: {error}", path.display())])
            })?;
            parse_file(&text).map_err(|problems| {
                Problems(problems.into_iter().map(|problem| format!("{}:{problem}", path.display())).collect())
            })?
        }
    };
    overlay(&mut table, &environment);
    Ok(table)
}

/// Everything that is no TOML is told by its line and, where that has one, its key.
pub(super) fn parse_file(text: &str) -> Result<Table, Vec<String>> {
    text.parse().map_err(|first: toml::de::Error| {
        let (_, all) = DeTable::parse_recoverable(text);
        let errors = if all.is_empty() { vec![first] } else { all };
        errors.iter().map(|error| problem_at(text, error)).collect()
    })
}

/// The parser's full message quotes the line, which may hold a secret: only where and what is said.
fn problem_at(text: &str, error: &toml::de::Error) -> String {
    // As all of ours are, and hardly a line of a secret is.
    let is_key = |name: &&str| !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || "._".contains(c));
    let before = &text[..error.span().map_or(0, |span| span.start)];
    let number = before.matches('\n').count();
    let header = before.lines().rev().find_map(|line| line.trim().strip_prefix('['));
    let section = header.map(|name| name.trim_matches(['[', ']']));
    let line = text.lines().nth(number).unwrap_or_default();
    let key = line.split_once('=').map(|(key, _)| key.trim()).filter(is_key);
    let path: Vec<_> = section.filter(is_key).into_iter().chain(key).collect();
    let colon = if key.is_some() { format!(" {}:", path.join(".")) } else { String::new() };
    format!("{}:{colon} not valid TOML: {}", number + 1, error.message())
}

/// The variables that may concern us. Others may hold anything, text or not.
pub(super) fn ours(
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> Result<BTreeMap<String, String>, Problems> {
    let (mut ours, mut problems) = (BTreeMap::new(), Vec::new());
    for (name, value) in variables {
        let Some(name) = name.to_str().filter(|name| name.starts_with("OARLOCK_") || *name == "DATABASE_URL") else {
            continue;
        };
        match value.into_string() {
            Ok(value) => drop(ours.insert(name.to_owned(), value)),
            Err(_) => problems.push(format!("{name} is not text")),
        }
    }
    if problems.is_empty() { Ok(ours) } else { Err(Problems(problems)) }
}

/// Lays the environment over what the file says.
///
/// A variable without `__` is not a key of ours: Kubernetes sets `OARLOCK_SERVICE_HOST` and the like for a service of
/// that name. An empty variable counts as not set, since that is how compose files pass on what is not there.
pub(super) fn overlay(table: &mut Table, environment: &BTreeMap<String, String>) {
    // The general name first: the more particular OARLOCK_DATABASE__URL overrules it.
    if let Some(url) = environment.get("DATABASE_URL").filter(|url| !url.is_empty()) {
        let path = ["database".to_owned(), "url".to_owned()];
        make_way(table, &path);
        set(table, &path, url);
    }
    let variables: Vec<(Vec<String>, &String)> = environment
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .filter_map(|(name, value)| Some((name.strip_prefix("OARLOCK_")?, value)))
        .filter(|(key, _)| key.contains("__"))
        .map(|(key, value)| (key.split("__").map(str::to_ascii_lowercase).collect(), value))
        .collect();
    // All make way before any is set: two spellings of a secret in the same environment are a mistake to be told.
    for (path, _) in &variables {
        make_way(table, path);
    }
    for (path, value) in variables {
        set(table, &path, value);
    }
}

/// A secret given here replaces the file's, in whichever of its two spellings that was written.
fn make_way(table: &mut Table, path: &[String]) {
    let Some((parent, key)) = parent(table, path) else { return };
    for sibling in siblings(&key) {
        parent.remove(&sibling);
    }
}

fn set(table: &mut Table, path: &[String], value: &str) {
    if let Some((parent, key)) = parent(table, path) {
        parent.insert(key, parse(value));
    }
}

/// The table in which the path's last key belongs, made if it is not there. Where the file has something else in place of a
/// section there is none, which is told when the section is read; what leads on from a key, such as `access.0.group`, is itself
/// a key of the section, and then one that does not exist.
fn parent<'t>(table: &'t mut Table, path: &[String]) -> Option<(&'t mut Table, String)> {
    let (key, parents) = path.split_last()?;
    let mut at = table;
    for (depth, parent) in parents.iter().enumerate() {
        if at.get(parent).is_some_and(|value| !value.is_table()) {
            return (depth > 0).then(|| (at, path[depth..].join(".")));
        }
        at = at.entry(parent.clone()).or_insert_with(|| Value::Table(Table::new())).as_table_mut()?;
    }
    Some((at, key.clone()))
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
