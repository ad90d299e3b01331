//! The part of YAML that nutcracker.yml is written in, and nothing else of it.
//!
//! ```text
//! alpha:                        a pool
//!   listen: 127.0.0.1:22121     a key with a scalar, plain or quoted
//!   servers:                    a key with a list, indented like its key or deeper
//!    - 127.0.0.1:11211:1
//! ```
//!
//! What YAML has beyond that is refused by name, never guessed at.

/// What is wrong, and in which line (from 1).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Error {
    pub line: usize,
    pub what: String,
}

/// One pool, as written.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Pool {
    pub line: usize,
    pub name: String,
    pub entries: Vec<Entry>,
}

/// One key of a pool.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub line: usize,
    pub key: String,
    pub value: Value,
}

impl Pool {
    /// The line of an item of a list, counted from 0; of the pool if there is none.
    pub fn line_of(&self, key: &str, item: usize) -> usize {
        let entry = self.entries.iter().find(|e| e.key == key);
        match entry.map(|e| &e.value) {
            Some(Value::List(items)) => items.get(item).map_or(self.line, |i| i.line),
            _ => self.line,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Value {
    Empty,
    Scalar(String),
    List(Vec<Item>),
}

/// One item of a list.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub line: usize,
    pub text: String,
}

/// Where the reader stands.
#[derive(Default)]
struct Reader {
    pools: Vec<Pool>,
    document: bool,
    /// Indentation of the pools, of the current pool's keys, of the current key's list.
    pool_indent: Option<usize>,
    key_indent: Option<usize>,
    list_indent: Option<usize>,
}

/// Reads a whole file.
pub(super) fn read(bytes: &[u8]) -> Result<Vec<Pool>, Error> {
    let text = std::str::from_utf8(bytes).map_err(|e| Error {
        line: 1 + bytes[..e.valid_up_to()]
            .iter()
            .filter(|&&b| b == b'\n')
            .count(),
        what: "not UTF-8 text".to_string(),
    })?;
    let mut reader = Reader::default();
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for (at, line) in text.split('\n').enumerate() {
        let line = line.strip_suffix('\r').unwrap_or(line);
        reader
            .line(at + 1, line)
            .map_err(|what| Error { line: at + 1, what })?;
    }
    Ok(reader.pools)
}

impl Reader {
    fn line(&mut self, line: usize, text: &str) -> Result<(), String> {
        let text = text.trim_end_matches([' ', '\t']);
        let rest = text.trim_start_matches(' ');
        let indent = text.len() - rest.len();
        let content = rest.trim_start_matches(['\t', ' ']);
        if content.is_empty() || content.starts_with('#') {
            return Ok(());
        }
        if rest.starts_with('\t') {
            return Err("indented with a tab: only spaces are supported".to_string());
        }
        if rest.chars().any(|c| c.is_control() && c != '\t') {
            return Err("holds a control character".to_string());
        }
        if indent == 0 && self.marker(rest)? {
            return Ok(());
        }
        if rest == "-" || rest.starts_with("- ") || rest.starts_with("-\t") {
            return self.item(line, indent, &rest[1..]);
        }
        let (key, value) = key_and_value(rest)?;
        match self.pool_indent {
            None => self.pool(line, indent, key, value),
            Some(pools) if indent == pools => self.pool(line, indent, key, value),
            Some(pools) if indent > pools => self.entry(line, indent, key, value),
            Some(_) => Err("indented less than the first pool".to_string()),
        }
    }

    /// True for a document's start; other marks are refused.
    fn marker(&mut self, rest: &str) -> Result<bool, String> {
        if rest == "---" && !self.document && self.pools.is_empty() {
            self.document = true;
            return Ok(true);
        }
        if rest.starts_with("---") || rest.starts_with("...") {
            return Err("more than one document is not supported".to_string());
        }
        Ok(false)
    }

    fn pool(
        &mut self,
        line: usize,
        indent: usize,
        name: String,
        value: Option<String>,
    ) -> Result<(), String> {
        if value.is_some() {
            return Err(format!("{name}: a pool is a map of keys, not a value"));
        }
        self.pool_indent = Some(indent);
        (self.key_indent, self.list_indent) = (None, None);
        self.pools.push(Pool {
            line,
            name,
            entries: Vec::new(),
        });
        Ok(())
    }

    fn entry(
        &mut self,
        line: usize,
        indent: usize,
        key: String,
        value: Option<String>,
    ) -> Result<(), String> {
        let Some(pool) = self.pools.last_mut() else {
            return Err(format!("{key}: stands in no pool"));
        };
        let keys = *self.key_indent.get_or_insert(indent);
        if indent != keys {
            let than = if indent > keys { "more" } else { "less" };
            return Err(format!("{key}: indented {than} than the pool's other keys"));
        }
        self.list_indent = None;
        pool.entries.push(Entry {
            line,
            key,
            value: value.map_or(Value::Empty, Value::Scalar),
        });
        Ok(())
    }

    fn item(&mut self, line: usize, indent: usize, rest: &str) -> Result<(), String> {
        let entry = self.pools.last_mut().and_then(|p| p.entries.last_mut());
        let (Some(entry), Some(keys)) = (entry, self.key_indent) else {
            return Err("a list item that belongs to no key".to_string());
        };
        if indent < keys || indent != *self.list_indent.get_or_insert(indent) {
            return Err("a list item that is not indented like the list's others".to_string());
        }
        let Some(text) = scalar(rest)? else {
            return Err("an empty list item".to_string());
        };
        if entry.value == Value::Empty {
            entry.value = Value::List(Vec::new());
        }
        match &mut entry.value {
            Value::List(items) => {
                items.push(Item { line, text });
                Ok(())
            }
            _ => Err(format!(
                "{}: has a value already, a list cannot follow",
                entry.key
            )),
        }
    }
}

/// `key:` or `key: value`, with a comment perhaps.
fn key_and_value(text: &str) -> Result<(String, Option<String>), String> {
    if text.starts_with(['"', '\'']) {
        let (key, rest) = quoted(text)?;
        return match rest.trim_start_matches(' ').strip_prefix(':') {
            Some(rest) if rest.is_empty() || rest.starts_with(' ') => Ok((key, scalar(rest)?)),
            _ => Err("must be `key: value`".to_string()),
        };
    }
    let end = text.find(" #").unwrap_or(text.len());
    let is_colon =
        |&(at, _): &(usize, &str)| matches!(text.as_bytes().get(at + 1), None | Some(b' ' | b'\t'));
    let colon = text[..end].match_indices(':').find(is_colon);
    let Some((at, _)) = colon else {
        refuse_indicator(text)?;
        return Err("must be `key: value` or `- item`".to_string());
    };
    let key = text[..at].trim_end_matches(' ');
    if key.is_empty() {
        return Err("the key is missing".to_string());
    }
    refuse_indicator(key)?;
    Ok((key.to_string(), scalar(&text[at + 1..])?))
}

/// The scalar at the start of `text`, behind spaces; `None` if there is only a comment.
fn scalar(text: &str) -> Result<Option<String>, String> {
    let text = text.trim_start_matches(' ');
    if text.is_empty() || text.starts_with('#') {
        return Ok(None);
    }
    if text.starts_with(['"', '\'']) {
        let (value, rest) = quoted(text)?;
        let behind = rest.trim_start_matches(' ');
        let comment = behind.starts_with('#') && behind.len() < rest.len();
        return match behind.is_empty() || comment {
            true => Ok(Some(value)),
            false => Err("text behind the closing quote".to_string()),
        };
    }
    let text = text.split(" #").next().unwrap_or(text);
    let text = text.split("\t#").next().unwrap_or(text);
    let text = text.trim_end_matches([' ', '\t']);
    refuse_indicator(text)?;
    if text.contains('\t') {
        return Err("holds a tab: only spaces are supported".to_string());
    }
    if text.contains(": ") || text.ends_with(':') {
        return Err(
            "a map inside a value is not supported; quote the value if it is none".to_string(),
        );
    }
    Ok(Some(text.to_string()))
}

/// Refuses what YAML gives a meaning at the start of a scalar.
fn refuse_indicator(text: &str) -> Result<(), String> {
    let alone = matches!(text.as_bytes().get(1), None | Some(b' ' | b'\t'));
    let what = match text.bytes().next() {
        Some(b'[' | b']' | b'{' | b'}' | b',') => "flow lists and maps ([a, b], {a: b})",
        Some(b'&' | b'*') => "anchors and aliases (&, *)",
        Some(b'!') => "tags (!)",
        Some(b'|' | b'>') => "block scalars (|, >)",
        Some(b'%') => "directives (%)",
        Some(b'@' | b'`') => "values that start with @ or ` and are not quoted",
        Some(b'?') if alone => "complex keys (?)",
        Some(b'-') if alone => "lists of lists",
        Some(b':') if alone => "empty keys",
        _ => return Ok(()),
    };
    Err(format!("{what} are not supported"))
}

/// The quoted scalar that `text` starts with, and what follows its closing quote.
fn quoted(text: &str) -> Result<(String, &str), String> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    let quote = chars.next().map_or('"', |c| c.1);
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' if quote == '"' => match chars.next() {
                Some((_, c @ ('"' | '\\' | '/' | ' '))) => value.push(c),
                _ => return Err("only \\\" and \\\\ are supported as escapes".to_string()),
            },
            '\'' if quote == c && text[at + 1..].starts_with('\'') => {
                chars.next();
                value.push(c);
            }
            c if c == quote => return Ok((value, &text[at + 1..])),
            c => value.push(c),
        }
    }
    Err("the closing quote is missing; a value ends on its line".to_string())
}
