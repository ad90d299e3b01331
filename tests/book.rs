//! The book of faults, docs/operations.md, against the program: whatever it may say is in it, and nothing that it
//! does not say. What it may say is read out of the sources.

mod common;

use common::{Magent, Memcached};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

const BOOK: &str = include_str!("../docs/operations.md");

/// A text in a source.
#[derive(Debug)]
struct Literal {
    file: String,
    /// With `{…}` where something is put in.
    text: String,
    /// The code before it, as far as its line goes, without spaces.
    before: String,
}

/// A line for the log.
#[derive(Debug)]
struct LogLine {
    literal: Literal,
    /// Shown only with `-v`, or with `-vv`.
    option: Option<&'static str>,
}

/// The sources of the program, without their tests, by name.
fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut all, mut folders) = (Vec::new(), vec![root.clone()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.strip_prefix(&root).expect("below").display();
            let name = name.to_string();
            if path.is_dir() {
                folders.push(path);
            } else if name.ends_with(".rs") && !name.ends_with("tests.rs") {
                let text = fs::read_to_string(&path).expect("a source");
                let end = text.find("\n#[cfg(test)]\nmod tests {");
                all.push((name, text[..end.unwrap_or(text.len())].to_string()));
            }
        }
    }
    all.retain(|(name, _)| !name.contains("/tests/"));
    all.sort();
    assert!(all.len() > 100, "{}", all.len());
    all
}

/// All texts of one source, in their order: enough of Rust's grammar for that.
fn literals(file: &str, source: &str) -> Vec<Literal> {
    let mut all = Vec::new();
    let mut code = String::new();
    let mut rest = source;
    while let Some(c) = rest.chars().next() {
        if rest.starts_with("//") {
            rest = &rest[rest.find('\n').unwrap_or(rest.len())..];
        } else if rest.starts_with("'\"'") || rest.starts_with("'\\\"'") {
            rest = &rest[rest[1..].find('\'').expect("its end") + 2..];
            if rest.starts_with('\'') {
                rest = &rest[1..];
            }
        } else if rest.starts_with("r#\"") {
            let end = rest.find("\"#").expect("its end");
            rest = &rest[end + 2..];
        } else if c == '"' {
            let (text, len) = unescaped(&rest[1..]);
            all.push(Literal {
                file: file.to_string(),
                text,
                before: std::mem::take(&mut code),
            });
            rest = &rest[1 + len..];
        } else {
            if !c.is_whitespace() {
                code.push(c);
            }
            rest = &rest[c.len_utf8()..];
        }
    }
    all
}

/// A text as it is printed, and how long it is in the source, with the quote that ends it.
fn unescaped(source: &str) -> (String, usize) {
    let mut text = String::new();
    let mut chars = source.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (text, at + 1),
            '\\' => match chars.next() {
                // The line goes on.
                Some((_, '\n')) => while chars.next_if(|(_, c)| c.is_whitespace()).is_some() {},
                Some((_, 'n')) => text.push('\n'),
                Some((_, 'r')) => text.push('\r'),
                Some((_, other)) => text.push(other),
                None => break,
            },
            c => text.push(c),
        }
    }
    panic!("a text without end: {source:.40}");
}

fn all_literals() -> Vec<Literal> {
    let each = sources();
    each.iter().flat_map(|(f, s)| literals(f, s)).collect()
}

/// What is written to the log. Where the line is made elsewhere there is no word in it, and the texts that it
/// is made of are looked for one by one.
fn log_lines() -> Vec<LogLine> {
    let mut lines = Vec::new();
    for literal in all_literals() {
        let call = literal
            .before
            .rfind("log::")
            .map(|at| &literal.before[at..]);
        let call = call.and_then(|c| c.split_once('!'));
        let Some((level, rest)) = call.filter(|(_, rest)| rest.starts_with('(')) else {
            continue;
        };
        let is_first = rest == "(" || (rest.starts_with("(target:") && !rest.contains(';'));
        if !is_first {
            continue;
        }
        let is_notice = rest.contains("NOTICE");
        let option = match level {
            "log::info" if !is_notice => Some("-v"),
            "log::debug" => Some("-vv"),
            _ => None,
        };
        lines.push(LogLine { literal, option });
    }
    lines
}

/// The parts of a text between what is put in.
fn parts(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(open) = rest.find('{') {
        let Some(close) = rest[open..].find('}') else {
            break;
        };
        parts.push(&rest[..open]);
        rest = &rest[open + close + 1..];
    }
    parts.push(rest);
    parts
}

/// True if `shown` is `text` with something put in.
fn is_made_of(shown: &str, text: &str) -> bool {
    let parts = parts(text);
    let (first, last) = (parts[0], parts[parts.len() - 1]);
    shown.starts_with(first) && shown.ends_with(last) && holds(shown, text)
}

/// True if `text`, with something put in, is in `shown`.
fn holds(shown: &str, text: &str) -> bool {
    let mut rest = shown;
    parts(text).into_iter().all(|part| {
        let at = rest.find(part);
        rest = at.map_or("", |at| &rest[at + part.len()..]);
        at.is_some()
    })
}

/// True if a text has more than what is put in.
fn says(text: &str) -> bool {
    !parts(text).concat().trim().is_empty()
}

/// True if there are words in a text besides what is put in.
fn has_words(text: &str) -> bool {
    let is_word = |w: &str| w.len() > 1 && w.chars().all(|c| c.is_alphabetic() || c == '\'');
    let words = |part: &str| {
        let all = part.split([' ', ',', ':', ';', '.', '(', ')', '`']);
        all.filter(|w| is_word(w)).count()
    };
    parts(text).into_iter().map(words).sum::<usize>() >= 2
}

/// What stands between backticks, one or more of them.
fn shown(text: &str) -> Vec<String> {
    let mut all = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('`') {
        let ticks = rest[at..].len() - rest[at..].trim_start_matches('`').len();
        let (fence, from) = ("`".repeat(ticks), at + ticks);
        let end = rest[from..].find(&fence).expect("the other end");
        let text = rest[from..from + end].replace("\\|", "|");
        all.push(text.split_whitespace().collect::<Vec<_>>().join(" "));
        // Spaces in texts are single but for one.
        all.push(text);
        rest = &rest[from + end + ticks..];
    }
    all
}

/// The first cells of the tables in the part of the book under this heading.
fn first_cells(heading: &str) -> Vec<String> {
    let line = format!("\n### {heading}\n");
    let at = BOOK.find(&line).unwrap_or_else(|| panic!("no {heading}"));
    let part = &BOOK[at + line.len()..];
    let part = &part[..part.find("\n#").unwrap_or(part.len())];
    let rows = part.lines().filter(|l| l.starts_with("| `"));
    rows.map(|row| row[2..row.find(" | ").expect("a cell")].to_string())
        .collect()
}

const LOG: [&str; 4] = [
    "In the log: start, stop, reload",
    "In the log: doubts",
    "In the log: servers",
    "In the log: clients, operators, the loop",
];

#[test]
fn every_line_of_the_log_is_in_the_book() {
    let cells: Vec<String> = LOG.into_iter().flat_map(first_cells).collect();
    let lines = log_lines();
    assert!(lines.len() > 45, "{lines:#?}");
    let mut missing = Vec::new();
    for LogLine { literal, option } in &lines {
        let text = &literal.text;
        // What it is made of is in the next test.
        if !says(text) {
            continue;
        }
        let found = cells.iter().find(|c| is_made_of(&shown(c)[0], text));
        match found {
            None => missing.push(format!("{}: {text}", literal.file)),
            Some(cell) => {
                let told = option.map(|o| format!("(with `{o}`)"));
                let is_told = match &told {
                    Some(told) => cell.ends_with(told),
                    None => !cell.contains("(with "),
                };
                assert!(is_told, "{cell}: {told:?}");
            }
        }
    }
    assert!(missing.is_empty(), "not in the book: {missing:#?}");
}

/// Texts that nobody looks up in a book, by file: what they are instead.
const OTHERS: &[(&str, &str)] = &[
    ("admin/http.rs", "heads of HTTP"),
    ("admin/lists.rs", "answers of the door"),
    ("admin/metrics.rs", "help of metrics"),
    ("admin/page.rs", "the page"),
    ("admin/pages.rs", "the page"),
    (
        "config/file.rs",
        "says line, key, value and what it must be",
    ),
    (
        "config/options.rs",
        "says option, value and what it must be",
    ),
    ("config/typed.rs", "says option, value and what it must be"),
    ("config/values.rs", "says what a value must be"),
    ("config/yaml.rs", "says what is wrong in a line"),
    ("config/written.rs", "a file of pools"),
    ("clients/saved.rs", "what is wrong in a state"),
    ("clients/multi/saved.rs", "what is wrong in a state"),
    ("pools/saved.rs", "what is wrong in a state"),
    ("protocol/saved.rs", "what is wrong in a state"),
    ("proxy/saved.rs", "what is wrong in a state"),
    ("saved.rs", "what is wrong in a state"),
    ("pools/listing.rs", "requests"),
];

/// The same of single texts.
const OTHER_TEXTS: &[&str] = &[
    // The answer of the door's `help`, and of a program that is tried out.
    "stats [servers|proxy",
    "the state is good",
    // What `-t` says of what is valid.
    "{subject}: valid; pools: {}",
    // For systemd: `systemctl status` shows it while it lasts.
    "reading {} again",
    "going over to {path}",
    "serving, configuration {configuration}",
    "finishing what clients are owed",
    // `stats`.
    "memcached agent v{}",
    "matrix {} -> {name}, pool size {idle}",
    "stats cachedump {class} {most}",
    "STAT uptime",
    // For those who read a failing assertion.
    "ChunkPool({} bytes lent)",
    "Chunk({} bytes)",
    "bytes in flight",
    "getrusage only fails for bad arguments",
    // Part of a reason that is cut off.
    " (os error ",
];

#[test]
fn whatever_the_program_may_say_is_in_the_book() {
    let book = shown(BOOK);
    let mut missing = Vec::new();
    let mut used = BTreeSet::new();
    for literal in all_literals() {
        let text = literal.text.trim_matches(['\r', '\n']);
        let text = text.strip_prefix("magent: ").unwrap_or(text);
        if !has_words(text) || literal.before.ends_with("expect(") {
            continue;
        }
        if let Some((file, _)) = OTHERS.iter().find(|(file, _)| *file == literal.file) {
            used.insert(*file);
            continue;
        }
        if let Some(other) = OTHER_TEXTS.iter().find(|o| text.starts_with(*o)) {
            used.insert(*other);
            continue;
        }
        if !book.iter().any(|shown| holds(shown, text)) {
            missing.push(format!("{}: {text}", literal.file));
        }
    }
    assert!(missing.is_empty(), "not in the book: {missing:#?}");
    let named = OTHERS
        .iter()
        .map(|o| o.0)
        .chain(OTHER_TEXTS.iter().copied());
    let unused: Vec<&str> = named.filter(|name| !used.contains(name)).collect();
    assert!(unused.is_empty(), "no such text any more: {unused:?}");
}

#[test]
fn every_error_for_clients_is_in_the_book() {
    let answers = shown(BOOK);
    let starts = ["SERVER_ERROR ", "CLIENT_ERROR ", "ERROR"];
    let mut count = 0;
    for literal in all_literals() {
        let text = literal.text.trim_end_matches(['\r', '\n']);
        // Beginnings are followed by a server's name, or looked for in answers.
        let is_answer = starts
            .iter()
            .any(|s| text.starts_with(s) && text.trim_end() != s.trim());
        if is_answer && !literal.before.ends_with("starts_with(b") {
            count += 1;
            assert!(answers.iter().any(|a| holds(a, text)), "{literal:?}");
        }
    }
    assert!(count > 30, "{count}");
}

/// What the book has, the program says: a line that was changed or is gone shows here.
#[test]
fn nothing_else_is_in_the_book() {
    let lines = log_lines();
    let literals = all_literals();
    let mut old = Vec::new();
    for cell in LOG.into_iter().flat_map(first_cells) {
        let shown = &shown(&cell)[0];
        let is_line = |l: &LogLine| says(&l.literal.text) && is_made_of(shown, &l.literal.text);
        let is_part = |l: &Literal| has_words(&l.text) && holds(shown, &l.text);
        // A panic's first words are the compiler's.
        let is_known = shown.starts_with("panicked at ");
        if !is_known && !lines.iter().any(is_line) && !literals.iter().any(is_part) {
            old.push(shown.clone());
        }
    }
    assert!(old.is_empty(), "nothing says so: {old:#?}");
}

#[test]
fn every_counter_is_in_the_book() {
    let server = Memcached::start();
    let magent = Magent::farm(&[&server.name], &[], &[]);
    let (book, mut client) = (shown(BOOK), magent.client());
    // Those that memcached has too are memcached's.
    let memcacheds: BTreeSet<String> = server.client().stats("stats\r\n").into_keys().collect();
    let own = |name: &String| !memcacheds.contains(name) && !name.starts_with("magent_version");
    let proxy = client.stats("stats proxy\r\n").into_keys().filter(own);
    let prefix = format!("{}:", server.name);
    let servers = client.stats("stats servers\r\n").into_keys();
    let servers = servers.map(|name| name.trim_start_matches(&prefix).to_string());
    let names: Vec<String> = proxy.chain(servers).collect();
    assert!(names.len() > 60, "{names:?}");
    // The last are named by their first ones.
    let is_latency = |name: &str| name.starts_with("latency_");
    for name in names.iter().filter(|n| !is_latency(n)) {
        assert!(book.contains(name), "{name} is not in the book");
    }
}
