//! The documents against the program: every option and key is in the man page and the README, and
//! nothing else is; what they show can be typed as it stands.

use magent::config::{Action, Config, KEYS, OPTIONS, Opt};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::PathBuf;

const README: &str = include_str!("../README.md");
const CHINESE: &str = include_str!("../README.zh-CN.md");
const OPERATIONS: &str = include_str!("../docs/operations.md");
const MONITORING: &str = include_str!("../docs/monitoring.md");
const MIGRATION: &str = include_str!("../docs/migration.md");
const CLIENTS: &str = include_str!("../docs/clients.md");
const MAN: &str = include_str!("../man/magent.1");
const CHANGELOG: &str = include_str!("../CHANGELOG.md");
const SERVICE_OPTIONS: &str = include_str!("../dist/magent.env");

/// What a document says of one option.
#[derive(PartialEq, Debug)]
struct Told {
    long: Option<String>,
    argument: Option<String>,
    default: Option<String>,
}

fn told_by_table(o: &Opt) -> Told {
    Told {
        long: o.long.map(str::to_string),
        argument: o.argument().map(str::to_string),
        default: o.default.map(str::to_string),
    }
}

/// The part of `text` between the line `start` and the next one that begins with `end`.
fn section<'a>(text: &'a str, start: &str, end: &str) -> &'a str {
    let line = format!("\n{start}\n");
    let at = text.find(&line).unwrap_or_else(|| panic!("no {start:?}"));
    let rest = &text[at + line.len()..];
    let stop = rest.find(&format!("\n{end}")).unwrap_or(rest.len());
    &rest[..stop]
}

/// The rows of the tables in `text`, without heads and rulers; cells are trimmed.
fn rows(text: &str) -> Vec<Vec<&str>> {
    let lines: Vec<&str> = text.lines().collect();
    let is_head = |i: usize| lines.get(i + 1).is_some_and(|l| l.starts_with("|---"));
    let table = (0..lines.len()).filter(|i| lines[*i].starts_with('|'));
    let body = table.filter(|i| !lines[*i].starts_with("|---") && !is_head(*i));
    body.map(|i| lines[i].trim_matches('|').split('|').map(str::trim))
        .map(Iterator::collect)
        .collect()
}

/// The words between backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

fn compare(document: &str, told: BTreeMap<String, Told>) {
    let table = OPTIONS.iter();
    let known: BTreeMap<_, _> = table
        .map(|o| (o.name.to_string(), told_by_table(o)))
        .collect();
    for (name, what) in &known {
        assert_eq!(told.get(name), Some(what), "{document}: {name}");
    }
    for name in told.keys() {
        assert!(known.contains_key(name), "{document}: no option {name}");
    }
}

fn options_of(table: &str) -> BTreeMap<String, Told> {
    let mut told = BTreeMap::new();
    for row in rows(table) {
        let spellings = quoted(row[0]);
        let (name, argument) = match spellings[0].split_once(' ') {
            Some((name, argument)) => (name, Some(argument.to_string())),
            None => (spellings[0], None),
        };
        let what = Told {
            long: spellings.get(1).map(|long| long.to_string()),
            argument,
            default: quoted(row[2]).first().map(|d| d.to_string()),
        };
        let old = told.insert(name.to_string(), what);
        assert_eq!(old, None, "{name} twice");
    }
    told
}

#[test]
fn both_readmes_have_each_option_and_no_other() {
    compare(
        "README.md",
        options_of(section(README, "## Options", "## ")),
    );
    let chinese = section(CHINESE, "## 选项", "## ");
    compare("README.zh-CN.md", options_of(chinese));
}

#[test]
fn the_man_page_has_each_option_and_no_other() {
    let mut told = BTreeMap::new();
    let options = section(MAN, ".Sh OPTIONS", ".Sh ");
    for item in options.split("\n.It Fl ").skip(1) {
        let (head, text) = item.split_once('\n').expect("an item has a text");
        let (names, argument) = match head.split_once(" Ar ") {
            Some((names, argument)) => (names, Some(argument.to_string())),
            None => (head, None),
        };
        let (name, long) = match names.split_once(" , Fl ") {
            Some((name, long)) => (name, Some(format!("-{long}"))),
            None => (names, None),
        };
        let default = text.lines().find_map(|l| l.strip_prefix("Default: "));
        let default = default.map(|d| d.strip_suffix('.').unwrap_or(d).to_string());
        let what = Told {
            long,
            argument,
            default,
        };
        let old = told.insert(format!("-{name}"), what);
        assert_eq!(old, None, "{head} twice");
    }
    compare("man/magent.1", told);
}

/// Also outside the list of options the man page names none that is not there.
#[test]
fn the_man_page_speaks_of_no_other_option() {
    let spellings = OPTIONS.iter().flat_map(|o| [Some(o.name), o.long]);
    let names: BTreeSet<&str> = spellings.flatten().map(|name| &name[1..]).collect();
    for line in MAN.lines().filter(|l| l.starts_with('.')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        for pair in words
            .windows(2)
            .filter(|w| w[0].trim_start_matches('.') == "Fl")
        {
            let known = names.contains(pair[1]) || pair[1] == "vv";
            assert!(known, "man/magent.1: {line}");
        }
    }
}

#[test]
fn the_files_keys_are_in_both_and_no_others() {
    let known: BTreeSet<&str> = KEYS.iter().map(|k| k.name).collect();
    let table = rows(section(MIGRATION, "### Settings", "### "));
    let told: BTreeSet<&str> = table.iter().flat_map(|row| quoted(row[0])).collect();
    assert_eq!(told, known, "docs/migration.md");
    let keys = section(MAN, ".Sh CONFIGURATION FILE", ".Sh ").lines();
    let items = keys.filter_map(|l| l.strip_prefix(".It Cm "));
    let man: BTreeSet<&str> = items.flat_map(|l| l.split(" , ")).collect();
    assert_eq!(man, known, "man/magent.1");
}

/// The command lines in `text` that start magent, continued lines joined, without what stands
/// around them in a shell.
fn command_lines(text: &str) -> Vec<String> {
    let joined = text.replace("\\e\n", " ").replace("\\\n", " ");
    let plain = joined
        .lines()
        .map(|l| l.trim_start_matches("$ ").to_string());
    plain.filter(|l| l.starts_with("magent -")).collect()
}

fn parse(line: &str) -> Result<Action, String> {
    let args: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
    Config::from_args(&args).map_err(|e| format!("{line}: {}", e.line))
}

#[test]
fn the_commands_shown_can_be_typed() {
    let documents = [README, CHINESE, OPERATIONS, MONITORING, MIGRATION, MAN];
    let mut lines: Vec<String> = documents.into_iter().flat_map(command_lines).collect();
    let words = SERVICE_OPTIONS.lines();
    let service = words.filter_map(|l| l.strip_prefix("MAGENT_OPTIONS="));
    lines.extend(service.map(|l| format!("magent -D {}", l.trim_matches('"'))));
    // Those with -c need a file that is not there; the next test reads the files.
    let whole = lines.iter().filter(|l| !l.contains(" -c "));
    let checked = whole.map(|l| parse(l.trim_start_matches("magent ")));
    let results: Vec<_> = checked.collect();
    assert!(results.len() >= 5, "{lines:?}");
    for result in results {
        assert!(matches!(result, Ok(Action::Run(_))), "{result:?}");
    }
}

#[test]
fn the_configuration_files_shown_are_valid() {
    let walk = section(MIGRATION, "### A walk-through", "### ");
    let example = section(MAN, "$ cat magent.yml", "$ magent");
    let shown = [
        section(walk, "cat > nutcracker.yml <<'END'", "END\n"),
        example,
    ];
    for (i, text) in shown.iter().enumerate() {
        let name = format!("magent-docs-{}-{i}.yml", std::process::id());
        let path: PathBuf = std::env::temp_dir().join(name);
        std::fs::write(&path, format!("{text}\n")).expect("the directory for temporary files");
        let result = parse(&format!("-t -c {}", path.display()));
        std::fs::remove_file(&path).expect("the file just written");
        assert!(
            matches!(result, Ok(Action::Check { .. })),
            "{text}\n{result:?}"
        );
    }
}

/// The table of states in `part`, and the words that its cells are made of, in order.
fn states(part: &str) -> (Vec<Vec<&str>>, Vec<&str>) {
    let words = part.find("\n\n| ").and_then(|at| {
        let second = part[at + 2..].find("\n\n| ")?;
        Some(at + 2 + second)
    });
    let (states, words) = part.split_at(words.expect("the table of words"));
    let words = rows(words);
    let words = words.iter().map(|r| r[0].trim_matches('*')).collect();
    (rows(states), words)
}

#[test]
fn the_table_of_states_is_whole() {
    let part = section(README, "<!-- states -->", "## ");
    let part = format!("\n\n{part}");
    let (states, words) = states(&part);
    let known: BTreeSet<&str> = words.into_iter().collect();
    let mut used = BTreeSet::new();
    for (row, letter) in states.iter().zip('a'..) {
        let name = format!("**{letter}** ");
        assert!(row[0].starts_with(&name), "{} is not row {letter}", row[0]);
        assert_eq!(row.len(), 9, "row {letter}");
        used.extend(row[1..].iter().flat_map(|cell| cell.split(", ")));
    }
    assert_eq!(used, known);
}

/// tests/states.rs holds the English table against the program, so both are true if they say
/// the same.
#[test]
fn the_chinese_table_of_states_says_the_same() {
    let [english, chinese] = [README, CHINESE].map(|text| {
        let part = section(text, "<!-- states -->", "## ");
        format!("\n\n{part}")
    });
    let (wanted, words) = states(&english);
    let (told, chinese_words) = states(&chinese);
    assert_eq!(words.len(), chinese_words.len());
    let meaning: BTreeMap<&str, &str> = chinese_words.into_iter().zip(words).collect();
    assert_eq!(told.len(), wanted.len());
    for (row, wanted) in told.iter().zip(wanted) {
        let translated = row[1..].iter().map(|cell| {
            let words = cell.split(", ").map(|word| meaning[word]);
            words.collect::<Vec<_>>().join(", ")
        });
        assert_eq!(translated.collect::<Vec<_>>(), wanted[1..], "{}", row[0]);
    }
    let heads = |text: &str| -> Vec<String> {
        let line = text.lines().find(|l| l.starts_with("| "));
        let cells = line.expect("a head").split('|').skip(2);
        cells.map(str::to_string).collect()
    };
    assert_eq!(heads(&chinese), heads(&english));
}

#[test]
fn the_version_is_told_as_it_is() {
    let version = env!("CARGO_PKG_VERSION");
    let heading = format!("\n## {version} — ");
    assert!(CHANGELOG.contains(&heading), "CHANGELOG.md: {version}");
    let agent = format!("memcached agent v{version}\n");
    assert!([README, CHINESE, MAN].iter().all(|d| d.contains(&agent)));
    let level = "VERSION 1.6.18";
    assert!(MIGRATION.contains(level) && MAN.contains(level));
}

/// What a link to the heading `line` ends in, as the sites that show these files make it.
fn anchor(line: &str) -> String {
    let title = line.trim_start_matches('#').trim().to_lowercase();
    let kept = title
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// Where the links of `text` lead: within the project, to a file and a heading.
fn links(text: &str) -> Vec<&str> {
    let parts = text.split("](").skip(1);
    let targets = parts.filter_map(|p| p.split_once(')').map(|(target, _)| target));
    targets.filter(|t| !t.contains("://")).collect()
}

#[test]
fn the_links_lead_somewhere() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let documents = [
        ("README.md", README),
        ("README.zh-CN.md", CHINESE),
        ("docs/operations.md", OPERATIONS),
        ("docs/monitoring.md", MONITORING),
        ("docs/migration.md", MIGRATION),
        ("docs/clients.md", CLIENTS),
    ];
    for (name, text) in documents {
        let here = root.join(name);
        assert!(
            !links(text).is_empty() || name == "docs/clients.md",
            "{name}"
        );
        for link in links(text) {
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => here.clone(),
                _ => here.parent().expect("a directory").join(file),
            };
            assert!(target.exists(), "{name}: {link}");
            if !heading.is_empty() {
                let text = std::fs::read_to_string(&target).expect("a document");
                let mut headings = text.lines().filter(|l| l.starts_with('#'));
                assert!(headings.any(|h| anchor(h) == heading), "{name}: {link}");
            }
        }
    }
}

#[test]
fn the_readme_is_short() {
    assert!(
        README.lines().count() <= 250,
        "what is not for newcomers goes to docs/"
    );
}
