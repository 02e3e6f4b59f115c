//! One section of the configuration, read key by key; what is wrong is collected, what is left over is unknown.

use std::cell::RefCell;
use std::time::Duration;

use secrecy::SecretString;
use toml::{Table, Value};
use url::Url;

use super::Program;

pub(super) struct Section<'p> {
    name: String,
    table: Table,
    program: Program,
    /// The secrets here are the other program's: their files are not ours to open.
    foreign: bool,
    problems: &'p RefCell<Vec<String>>,
}

impl<'p> Section<'p> {
    pub(super) fn root(table: Table, program: Program, problems: &'p RefCell<Vec<String>>) -> Self {
        Self { name: String::new(), table, program, foreign: false, problems }
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    pub(super) fn keys(&self) -> Vec<String> {
        self.table.keys().cloned().collect()
    }

    pub(super) fn problem(&self, key: &str, what: &str) {
        // One line each, whatever a key that nobody knows is called.
        self.problems.borrow_mut().push(format!("{} {what}", self.path(key).escape_debug()));
    }

    /// Says whose secrets stand here: the other program's files are not opened.
    pub(super) fn with_secrets_of(self, owner: Program) -> Self {
        Self { foreign: self.program != owner, ..self }
    }

    pub(super) fn section(&mut self, key: &str) -> Section<'p> {
        let table = match self.table.remove(key) {
            None => Table::new(),
            Some(Value::Table(table)) => table,
            Some(_) => {
                self.problem(key, "must be a section");
                Table::new()
            }
        };
        Section { name: self.path(key), table, ..*self }
    }

    pub(super) fn sections(&mut self, key: &str) -> Vec<Section<'p>> {
        let rows = match self.table.remove(key) {
            None => Vec::new(),
            Some(Value::Array(rows)) => rows,
            Some(_) => {
                self.problem(key, "must be a list of tables");
                Vec::new()
            }
        };
        let mut sections = Vec::new();
        for (at, row) in rows.into_iter().enumerate() {
            let name = format!("{}[{at}]", self.path(key));
            if let Value::Table(table) = row {
                sections.push(Section { name, table, ..*self });
            } else {
                self.problems.borrow_mut().push(format!("{name} must be a table"));
            }
        }
        sections
    }

    /// Every key that there is is asked for here.
    fn take(&mut self, key: &str) -> Option<Value> {
        #[cfg(test)]
        super::tests::ASKED.with_borrow_mut(|asked| asked.insert(self.path(key)));
        self.table.remove(key)
    }

    /// A text; one that is empty counts as not given, as in the environment.
    pub(super) fn string(&mut self, key: &str) -> Option<String> {
        self.text(key).filter(|text| !text.trim().is_empty())
    }

    fn text(&mut self, key: &str) -> Option<String> {
        match self.take(key)? {
            Value::String(text) => Some(text),
            // An id written without quotes is clear enough.
            Value::Integer(number) => Some(number.to_string()),
            _ => {
                self.problem(key, "must be a text in quotes");
                None
            }
        }
    }

    /// A list of texts; a single text is split at commas, which is how the environment writes a list.
    pub(super) fn strings(&mut self, key: &str) -> Option<Vec<String>> {
        let values = match self.take(key)? {
            Value::Array(values) => values,
            // It was meant to be a list as TOML has it, and is none.
            Value::String(text) if text.trim_start().starts_with('[') => {
                self.problem(key, "must be a list of texts, such as [\"a\", \"b\"] or a,b");
                return None;
            }
            Value::String(text) => {
                return Some(
                    text.split(',').map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect(),
                );
            }
            _ => {
                self.problem(key, "must be a list of texts");
                return None;
            }
        };
        let mut texts = Vec::new();
        for value in values {
            match value {
                Value::String(text) if text.trim().is_empty() => self.problem(key, "has an empty entry"),
                Value::String(text) => texts.push(text),
                Value::Integer(number) => texts.push(number.to_string()),
                _ => self.problem(key, "must be a list of texts"),
            }
        }
        Some(texts)
    }

    pub(super) fn boolean(&mut self, key: &str, default: bool) -> bool {
        match self.take(key) {
            None => default,
            Some(Value::Boolean(value)) => value,
            Some(Value::String(text)) if text == "true" => true,
            Some(Value::String(text)) if text == "false" => false,
            Some(_) => {
                self.problem(key, "must be true or false");
                default
            }
        }
    }

    pub(super) fn integer(&mut self, key: &str, least: i64, most: i64) -> Option<u64> {
        let number = match self.take(key)? {
            Value::Integer(number) => Some(number),
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        match number {
            Some(number) if (least..=most).contains(&number) => u64::try_from(number).ok(),
            _ => {
                self.problem(key, &format!("must be a whole number from {least} to {most}"));
                None
            }
        }
    }

    /// A length of time above zero, such as `250ms`, `5s`, `6h`, `90d`.
    pub(super) fn duration(&mut self, key: &str, default: &str) -> Duration {
        let duration = self.duration_or_zero(key, default);
        if duration.is_zero() {
            self.problem(key, "must be above zero, such as \"250ms\" or \"5s\"");
        }
        duration
    }

    /// A length of time such as `0s`, `250ms`, `5s`, `6h`, `90d`.
    pub(super) fn duration_or_zero(&mut self, key: &str, default: &str) -> Duration {
        /// Longer than anything sensible, and short enough to add to any time there is.
        const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
        let default = humantime::parse_duration(default).expect("the default is a duration");
        let parsed = match self.take(key) {
            None => return default,
            Some(Value::String(text)) => humantime::parse_duration(&text).ok(),
            Some(_) => None,
        };
        match parsed {
            Some(duration) if duration <= LONGEST => duration,
            _ => {
                self.problem(
                    key,
                    "must be a length of time of at most 100 years, such as \"250ms\", \"5s\", \"6h\" or \"90d\"",
                );
                default
            }
        }
    }

    /// `host:port`.
    pub(super) fn address(&mut self, key: &str, default: &str) -> String {
        let Some(address) = self.string(key) else { return default.to_owned() };
        let is_host = |host: &str| !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || c == '/');
        let port =
            address.rsplit_once(':').filter(|(host, _)| is_host(host)).and_then(|(_, port)| port.parse::<u16>().ok());
        if port.is_none() {
            self.problem(key, "must be an address and a port, such as \"0.0.0.0:8080\"");
        }
        address
    }

    /// An http or https URL, its path without a slash at the end.
    pub(super) fn url(&mut self, key: &str, default: Option<&str>) -> Url {
        let given = self.string(key);
        let nowhere = || Url::parse("http://localhost").expect("a constant");
        let Some(text) = given.as_deref().or(default) else {
            self.problem(key, "is missing");
            return nowhere();
        };
        match Url::parse(text.trim_end_matches('/')) {
            Ok(url)
                if matches!(url.scheme(), "http" | "https")
                    && url.has_host()
                    && url.query().is_none()
                    && url.username().is_empty()
                    && url.password().is_none() =>
            {
                url
            }
            _ => {
                self.problem(
                    key,
                    "must be a URL such as \"https://acme.example/path\", without user, password or query",
                );
                nowhere()
            }
        }
    }

    /// One of several words; none, and a problem told, for another.
    pub(super) fn one_of<T: Copy>(&mut self, key: &str, choices: &[(&str, T)], default: T) -> Option<T> {
        let Some(word) = self.string(key) else { return Some(default) };
        let found = choices.iter().find(|(name, _)| *name == word).map(|(_, value)| *value);
        if found.is_none() {
            let names: Vec<_> = choices.iter().map(|(name, _)| format!("{name:?}")).collect();
            self.problem(key, &format!("must be one of {}", names.join(", ")));
        }
        found
    }

    /// A secret, as `key` or in the file that `key_file` names.
    pub(super) fn secret(&mut self, key: &str) -> Option<SecretString> {
        let file_key = format!("{key}_file");
        let (value, file) = (self.text(key), self.string(&file_key));
        match (value, file) {
            (Some(_), Some(_)) => {
                self.problem(key, &format!("and {} are both given: keep one", self.path(&file_key)));
                None
            }
            (Some(value), None) if value.trim().is_empty() => {
                self.problem(key, "is empty");
                None
            }
            (Some(value), None) => Some(value.into()),
            (None, Some(_)) if self.foreign => Some("a file that is not ours to open".into()),
            (None, Some(path)) => self.read(&file_key, &path).map(Into::into),
            (None, None) => None,
        }
    }

    pub(super) fn required_secret(&mut self, key: &str) -> SecretString {
        // The other program's may be in its environment alone.
        let given = self.foreign || self.has(key) || self.has(&format!("{key}_file"));
        let secret = self.secret(key);
        if !given {
            self.problem(
                key,
                &format!("is missing: give it, or name its file as {}", self.path(&format!("{key}_file"))),
            );
        }
        secret.unwrap_or_default()
    }

    /// Several values, written in `key` and read from the files that `files_key` names, together.
    pub(super) fn contents(&mut self, key: &str, files_key: &str) -> Vec<String> {
        let mut contents = self.strings(key).unwrap_or_default();
        for (entry, path) in (1..).zip(self.strings(files_key).unwrap_or_default()) {
            if !self.foreign
                && let Some(text) = self.read(&format!("{files_key}, entry {entry},"), &path)
            {
                contents.push(text);
            }
        }
        contents
    }

    /// What nobody has read is a key that does not exist.
    pub(super) fn finish(&mut self) {
        for key in self.keys() {
            self.table.remove(&key);
            self.problem(&key, "is not a key of the configuration");
        }
    }

    fn read(&self, key: &str, path: &str) -> Option<String> {
        match std::fs::read_to_string(path) {
            Ok(text) if text.trim().is_empty() => {
                self.problem(key, "names a file that is empty");
                None
            }
            // An editor ends a file with a newline, or begins it with a mark of its encoding: no part of the secret.
            Ok(text) => Some(text.trim_start_matches('\u{feff}').trim_end_matches(['\r', '\n']).to_owned()),
            Err(error) => {
                // Without the name: it may be the secret itself, in the wrong place.
                self.problem(key, &format!("names a file that cannot be read: {error}"));
                None
            }
        }
    }

    fn path(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }
}
