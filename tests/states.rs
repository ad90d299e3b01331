//! README's table of who answers when, cell by cell against the running program: the cells are
//! read from README.md itself.
//!
//! A key's primary and backup are brought into the states that its column names. Then each
//! command of the row is asked for keys that the two servers hold differently, so that the
//! answer shows who gave it.

mod common;

use common::{Client, Magent, Memcached, keys, wait_for};

/// Commands of each row; `K` is the key, `T` a cas token.
const ROWS: &[(&str, &[&str])] = &[
    ("a", &["get K", "gets K", "mg K v"]),
    ("b", &["get K K"]),
    ("c", &["touch K 0", "gat 0 K", "gats 0 K", "mg K T0 v"]),
    ("d", &["set K 0 0 1\r\nx"]),
    ("e", &["add K 0 0 1\r\nx"]),
    (
        "f",
        &[
            "replace K 0 0 1\r\nx",
            "append K 0 0 1\r\nx",
            "prepend K 0 0 1\r\nx",
        ],
    ),
    ("g", &["cas K 0 0 1 T\r\nx"]),
    ("h", &["incr K 1", "decr K 1", "ma K v"]),
    ("i", &["delete K", "md K"]),
    ("j", &["flush_all"]),
    ("k", &["version", "stats", "verbosity 1", "mn"]),
];

/// What a key's primary and backup hold before.
type Held = (Option<&'static str>, Option<&'static str>);

/// What a memcached answers to `command` that holds `value`, and what it holds then. A cas
/// token is one that never matches.
fn effect(command: &str, value: Option<&str>) -> (String, Option<String>) {
    let v = value.unwrap_or("");
    let kept = value.map(str::to_string);
    let n: u64 = v.parse().unwrap_or(0);
    let hit = format!("VALUE K 0 {}\r\n{v}\r\nEND", v.len());
    let meta = |v: &str| format!("VA {}\r\n{v}", v.len());
    let word = command.split(' ').next().unwrap_or("");
    let (found, after, absent) = match word {
        "get" if command == "get K K" => (format!("VALUE K 0 2\r\n{v}\r\n{hit}"), kept, "END"),
        "get" | "gat" => (hit, kept, "END"),
        "gets" | "gats" => (
            format!("VALUE K 0 {} *\r\n{v}\r\nEND", v.len()),
            kept,
            "END",
        ),
        "mg" => (meta(v), kept, "EN"),
        "touch" => ("TOUCHED".into(), kept, "NOT_FOUND"),
        "set" => return ("STORED".into(), Some("x".into())),
        "add" if value.is_none() => return ("STORED".into(), Some("x".into())),
        "add" => ("NOT_STORED".into(), kept, ""),
        "replace" => ("STORED".into(), Some("x".into()), "NOT_STORED"),
        "append" => ("STORED".into(), Some(format!("{v}x")), "NOT_STORED"),
        "prepend" => ("STORED".into(), Some(format!("x{v}")), "NOT_STORED"),
        "cas" => ("EXISTS".into(), kept, "NOT_FOUND"),
        "incr" => ((n + 1).to_string(), Some((n + 1).to_string()), "NOT_FOUND"),
        "decr" => (
            (n - n.min(1)).to_string(),
            Some((n - n.min(1)).to_string()),
            "NOT_FOUND",
        ),
        "ma" => (meta(&(n + 1).to_string()), Some((n + 1).to_string()), "NF"),
        "delete" => ("DELETED".into(), None, "NOT_FOUND"),
        "md" => ("HD".into(), None, "NF"),
        _ => panic!("what does {command:?} do?"),
    };
    match value {
        Some(_) => (found, after),
        None => (absent.into(), None),
    }
}

/// Is the backup told of it? A delete also of what is not there.
fn is_mirrored(command: &str, value: Option<&str>) -> bool {
    let word = command.split(' ').next().unwrap_or("");
    match word {
        "delete" | "md" => true,
        "touch" | "gat" | "gats" | "mg" => value.is_some() && !command.starts_with("mg K v"),
        _ => effect(command, value).1.as_deref() != value,
    }
}

/// Two primaries, the second always up; a backup unless the column has none.
struct Farm {
    magent: Magent,
    primary: Memcached,
    other: Memcached,
    backup: Option<Memcached>,
    client: Client,
    next_key: usize,
}

fn set_directly(server: &Memcached, key: &str, value: Option<&str>) {
    if let Some(value) = value {
        server.client().set(key, value);
    }
}

impl Farm {
    /// In the states of a column's head: `warming / up`.
    fn new(states: &str) -> Farm {
        let (of_primary, of_backup) = states.split_once(" / ").expect("two states");
        let warm = if of_primary == "warming" { "3600" } else { "1" };
        let (primary, other) = (Memcached::start(), Memcached::start());
        let backup = (of_backup != "–").then(Memcached::start);
        let backups: Vec<&str> = backup.iter().map(|b| b.name.as_str()).collect();
        let options = [
            "--timeout",
            "150",
            "--connect-timeout",
            "150",
            "--retry",
            "50",
            "--failure-limit",
            "1",
            "--warm",
            warm,
            "--refill",
            "0",
        ];
        let magent = Magent::farm(&[&primary.name, &other.name], &backups, &options);
        let client = magent.client();
        Farm {
            magent,
            primary,
            other,
            backup,
            client,
            next_key: 0,
        }
    }

    /// A key of the first primary that was not used yet.
    fn key(&mut self) -> String {
        self.next_key += 1;
        keys::key_on(0, 2, "k", self.next_key)
    }

    fn fall(&mut self, states: &str) {
        let (of_primary, of_backup) = states.split_once(" / ").expect("two states");
        let dummy = keys::key_on(0, 2, "dummy", 0);
        self.client.send(format!("get {dummy}\r\n")).read_line();
        if let (Some(backup), "down") = (&self.backup, of_backup) {
            backup.stop();
            self.client.set(&dummy, "x");
            self.magent.wait_state(&backup.name, "down");
        }
        if of_primary == "down" {
            self.primary.stop();
            self.client.send(format!("md {dummy}\r\n")).read_line();
            self.magent.wait_state(&self.primary.name, "down");
        } else {
            self.magent.wait_state(&self.primary.name, of_primary);
        }
        if let (Some(backup), "up") = (&self.backup, of_backup) {
            self.magent.wait_state(&backup.name, "up");
        }
    }

    fn journaled(&self, server: &Memcached) -> u64 {
        self.magent.server(&server.name)["journal_keys"]
            .parse()
            .expect("a number")
    }

    /// How often the backup was told something.
    fn mirrors(&self) -> u64 {
        let all = self.backup.as_ref().map(|b| self.magent.server(&b.name));
        all.map_or(0, |s| s["mirrors"].parse().expect("a number"))
    }

    fn ask(&mut self, request: &str) -> String {
        self.client.send(format!("{request}\r\n"));
        String::from_utf8_lossy(&self.client.read_until_quiet())
            .trim_end_matches("\r\n")
            .to_string()
    }
}

/// What the servers of a key held before, by what its cell says.
fn befores(cell: &str) -> &'static [Held] {
    match cell {
        "primary" | "journaled" => &[(Some("15"), Some("25")), (None, Some("25"))],
        "mirrored" => &[(Some("15"), Some("15")), (Some("15"), None), (None, None)],
        "both" => &[
            (Some("15"), Some("15")),
            (Some("15"), None),
            (None, Some("25")),
            (None, None),
        ],
        "fetched" | "fetched, mirrored" | "checked, mirrored" => {
            &[(Some("15"), Some("15")), (None, Some("25")), (None, None)]
        }
        "backup" | "stand-in" | "error" | "miss" => &[(Some("15"), Some("25")), (Some("15"), None)],
        _ => panic!("a cell says {cell:?}"),
    }
}

/// Asked keys with what must hold of them when the servers that were down are back.
struct Later {
    what: String,
    key: String,
}

fn check_key(
    farm: &mut Farm,
    cell: &str,
    command: &str,
    key: &str,
    held: Held,
    what: &str,
) -> Option<Later> {
    let (p, b) = held;
    let request = command.replace('K', key).replace(" T\r", " 99999999\r");
    let primary_missed = farm.journaled(&farm.primary);
    let backup_missed = farm.backup.as_ref().map_or(0, |b| farm.journaled(b));
    let mirrors = farm.mirrors();
    let got = masked(&farm.ask(&request)).replace(key, "K");
    let seen = match cell {
        "backup" | "stand-in" => b,
        "fetched" | "fetched, mirrored" | "checked, mirrored" | "both" => p.or(b),
        _ => p,
    };
    let (answer, after) = effect(command, seen);
    let down = format!("SERVER_ERROR {} down", farm.primary.name);
    match cell {
        "error" | "miss" => assert_eq!(got, down, "{what}"),
        _ => assert_eq!(got, answer, "{what}"),
    }
    let wait = |server: &Memcached, value: Option<&str>| {
        server.wait_value(key, value.map(str::as_bytes));
    };
    let after = after.as_deref();
    match cell {
        "primary" => {
            wait(&farm.primary, after);
            assert_eq!(farm.mirrors(), mirrors, "{what}");
        }
        "mirrored" if p != b => wait(&farm.primary, after),
        "mirrored" | "both" | "fetched, mirrored" | "checked, mirrored" | "fetched" => {
            wait(&farm.primary, after);
            farm.backup.iter().for_each(|b| wait(b, after));
        }
        "backup" => {
            farm.backup.iter().for_each(|s| wait(s, b));
            assert_eq!(farm.journaled(&farm.primary), primary_missed, "{what}");
        }
        "journaled" => {
            wait(&farm.primary, after);
            let more = u64::from(is_mirrored(command, p));
            let backup = farm.backup.as_ref().expect("a backup");
            wait_for(what, || {
                (farm.journaled(backup) == backup_missed + more).then_some(())
            });
            return (more == 1).then(|| Later {
                what: what.into(),
                key: key.into(),
            });
        }
        "stand-in" => {
            farm.backup.iter().for_each(|b| wait(b, after));
            assert_eq!(farm.journaled(&farm.primary), primary_missed + 1, "{what}");
            return Some(Later {
                what: what.into(),
                key: key.into(),
            });
        }
        _ => {}
    }
    None
}

/// A cas number is the fifth word of a `VALUE` line.
fn masked(answer: &str) -> String {
    let line = |l: &str| {
        let mut words: Vec<&str> = l.split(' ').collect();
        if words.len() == 5 && words[0] == "VALUE" {
            words[4] = "*";
        }
        words.join(" ")
    };
    answer
        .split("\r\n")
        .map(line)
        .collect::<Vec<_>>()
        .join("\r\n")
}

/// Every cell of a column but its flush, which has a farm of its own.
fn check_column(number: usize, states: &str, cells: &[(String, String)]) {
    let mut farm = Farm::new(states);
    let mut cases = Vec::new();
    for (row, cell) in cells.iter().filter(|(row, _)| row != "j" && row != "k") {
        for command in commands(row) {
            for held in befores(cell) {
                let key = farm.key();
                set_directly(&farm.primary, &key, held.0);
                farm.backup
                    .iter()
                    .for_each(|b| set_directly(b, &key, held.1));
                cases.push((row, cell, *command, key, *held));
            }
        }
    }
    let there = keys::key_on(1, 2, "there", 0);
    set_directly(&farm.other, &there, Some("o"));
    farm.fall(states);
    let mut later = Vec::new();
    for (row, cell, command, key, held) in cases {
        let what = format!(
            "cell {row}{number}, {states}, {cell}: {} with {held:?}",
            command.escape_debug()
        );
        if cell == "miss" {
            let got = farm.ask(&format!("get {key} {there}"));
            assert_eq!(got, format!("VALUE {there} 0 1\r\no\r\nEND"), "{what}");
        }
        later.extend(check_key(&mut farm, cell, command, &key, held, &what));
    }
    for request in commands("k") {
        let got = farm.client.ask_line(format!("{request}\r\n"));
        farm.client.read_until_quiet();
        let begin = match *request {
            "version" => "VERSION 1.6.18",
            "stats" => "memcached agent v",
            "verbosity 1" => "OK",
            _ => "MN",
        };
        assert!(got.starts_with(begin), "cell k{number}: {got}");
    }
    let away = match states.split_once(" / ") {
        Some(("down", _)) => &farm.primary,
        _ => farm.backup.as_ref().unwrap_or(&farm.primary),
    };
    away.cont();
    if !later.is_empty() {
        wait_for("its journal to be told", || {
            (farm.journaled(away) == 0).then_some(())
        });
    }
    for l in later {
        assert_eq!(
            away.value(&l.key),
            None,
            "{}: it was told to delete",
            l.what
        );
    }
}

fn check_flush(number: usize, states: &str, cell: &str) {
    let mut farm = Farm::new(states);
    farm.fall(states);
    let (of_primary, of_backup) = states.split_once(" / ").expect("two states");
    let mut up = vec![&farm.other];
    let mut down = Vec::new();
    if of_primary == "down" {
        &mut down
    } else {
        &mut up
    }
    .push(&farm.primary);
    if let Some(backup) = &farm.backup {
        if of_backup == "down" {
            &mut down
        } else {
            &mut up
        }
        .push(backup);
    }
    let want = match (cell, down.first()) {
        ("all", None) => "OK\r\n".into(),
        ("partly", Some(first)) => format!("SERVER_ERROR {} down\r\n", first.name),
        _ => panic!("cell j{number} says {cell:?}"),
    };
    farm.client.ask("flush_all\r\n", want);
    for server in up {
        assert_eq!(server.stat("cmd_flush"), 1, "cell j{number}");
    }
    for server in down {
        server.cont();
        wait_for("the flush on its return", || {
            (server.stat("cmd_flush") == 1).then_some(())
        });
    }
}

fn commands(row: &str) -> &'static [&'static str] {
    let found = ROWS.iter().find(|(letter, _)| *letter == row);
    found
        .unwrap_or_else(|| panic!("README has a row {row} that no test knows"))
        .1
}

/// Letter, commands, cells.
type Row = (String, String, Vec<String>);

/// README's table: the columns' states, and of each row its letter, its commands, its cells.
fn table() -> (Vec<String>, Vec<Row>) {
    let readme = include_str!("../README.md");
    let lines = readme
        .lines()
        .skip_while(|l| *l != "<!-- states -->")
        .skip(1);
    let cells = |line: &str| -> Vec<String> {
        let inner = line.trim().trim_matches('|');
        inner.split('|').map(|c| c.trim().to_string()).collect()
    };
    let mut rows = lines.take_while(|l| l.starts_with('|')).map(cells);
    let head = rows.next().expect("a head");
    let states = head[1..].iter().enumerate().map(|(i, c)| {
        let (number, states) = c.split_once(": ").expect("a number and states");
        assert_eq!(number, (i + 1).to_string());
        states.to_string()
    });
    let states: Vec<String> = states.collect();
    let rows = rows.skip(1).map(|mut row| {
        let first = row.remove(0);
        let (letter, names) = first
            .strip_prefix("**")
            .and_then(|f| f.split_once("** "))
            .unwrap_or_else(|| panic!("a row without a letter: {first}"));
        (letter.to_string(), names.to_string(), row)
    });
    (states, rows.collect())
}

#[test]
fn the_table_names_what_is_tested() {
    let (states, rows) = table();
    assert_eq!(states.len(), 8);
    let letters: Vec<&str> = rows.iter().map(|r| &r.0[..]).collect();
    assert_eq!(letters, ROWS.iter().map(|r| r.0).collect::<Vec<_>>());
    for (letter, names, cells) in &rows {
        assert_eq!(cells.len(), states.len(), "row {letter}");
        for name in names.split(", ") {
            let word = name.split(' ').next();
            let tested = commands(letter)
                .iter()
                .any(|c| c.split([' ']).next() == word);
            assert!(tested, "row {letter}: {name}");
        }
    }
}

#[test]
fn the_table_of_states_is_true_cell_by_cell() {
    let (states, rows) = table();
    std::thread::scope(|scope| {
        for (i, states) in states.iter().enumerate() {
            let cells: Vec<(String, String)> = rows
                .iter()
                .map(|(l, _, c)| (l.clone(), c[i].clone()))
                .collect();
            let flush = cells
                .iter()
                .find(|(l, _)| l == "j")
                .expect("a flush")
                .1
                .clone();
            scope.spawn(move || check_column(i + 1, states, &cells));
            scope.spawn(move || check_flush(i + 1, states, &flush));
        }
    });
}
