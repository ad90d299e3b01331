//! `make` and `make install`: what a user has afterwards; and completion in a shell. Nothing is compiled:
//! the program under test stands where cargo would have put it.

mod common;

use common::TempDir;
use common::process::{finish, text};
use magent::config::{OPTIONS, Opt};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const MAGENT: &str = env!("CARGO_BIN_EXE_magent");

/// What `make install` puts where, and with which mode.
const INSTALLED: &[(&str, u32)] = &[
    ("etc/default/magent", 0o644),
    ("usr/local/bin/magent", 0o755),
    ("usr/local/lib/systemd/system/magent.service", 0o644),
    ("usr/local/lib/systemd/system/magent.socket", 0o644),
    ("usr/local/lib/systemd/system/magent@.service", 0o644),
    ("usr/local/share/bash-completion/completions/magent", 0o644),
    ("usr/local/share/man/man1/magent.1", 0o644),
];

/// A copy of the sources, as far as make reads them, with a program that was built.
fn sources() -> TempDir {
    let dir = TempDir::new();
    let built = dir.path().join("target/release");
    fs::create_dir_all(&built).expect("a folder");
    let copy = |from: &[&str], to: &Path| {
        let mut cp = Command::new("cp");
        cp.arg("-R")
            .args(from)
            .arg(to)
            .current_dir(env!("CARGO_MANIFEST_DIR"));
        assert!(finish(cp).status.success());
    };
    copy(&["Makefile", "man", "dist"], dir.path());
    copy(&[MAGENT], &built.join("magent"));
    dir
}

/// Runs make, with `true` in place of cargo; what it said.
fn make(dir: &Path, words: &[&str]) -> String {
    let mut make = Command::new("make");
    // Whoever runs the tests may be make.
    for name in [
        "MAKEFLAGS",
        "MFLAGS",
        "MAKELEVEL",
        "CARGO_TARGET_DIR",
        "PREFIX",
        "DESTDIR",
    ] {
        make.env_remove(name);
    }
    make.arg("CARGO=true").args(words).current_dir(dir);
    let output = finish(make);
    let said = text(&output.stdout);
    assert!(
        output.status.success(),
        "make {words:?}: {said}{}",
        text(&output.stderr)
    );
    said
}

fn version(program: &Path) -> String {
    let mut magent = Command::new(program);
    magent.arg("-V");
    text(&finish(magent).stdout)
}

/// True if there is nothing in it for debuggers.
fn is_stripped(program: &Path) -> bool {
    let bytes = fs::read(program).expect("the program");
    let has = |name: &[u8]| bytes.windows(name.len()).any(|w| w == name);
    !has(b"\0.symtab\0") && !has(b"\0.debug_info\0")
}

/// All files below a folder, with their modes.
fn files(dir: &Path) -> Vec<(String, u32)> {
    let mut all = Vec::new();
    let mut folders = vec![PathBuf::from(dir)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            match path.is_dir() {
                true => folders.push(path),
                false => {
                    let mode = fs::metadata(&path).expect("a file").permissions().mode();
                    let name = path.strip_prefix(dir).expect("it is below");
                    all.push((name.display().to_string(), mode & 0o777));
                }
            }
        }
    }
    all.sort();
    all
}

#[test]
fn make_leaves_the_program_where_the_articles_look() {
    let dir = sources();
    let said = make(dir.path(), &[]);
    let last = said.lines().last().unwrap_or_default();
    assert!(
        last.contains("./magent") && last.contains("make install"),
        "{said}"
    );
    let program = dir.path().join("magent");
    assert_eq!(version(&program), version(Path::new(MAGENT)));
    assert!(is_stripped(&program) && !is_stripped(Path::new(MAGENT)));
    // git does not see it.
    let ignored = include_str!("../.gitignore");
    assert!(ignored.lines().any(|l| l == "/magent"));
    make(dir.path(), &["clean"]);
    assert!(!program.exists());
}

#[test]
fn what_is_installed_goes_again() {
    let dir = sources();
    let root = dir.path().join("root");
    let destination = format!("DESTDIR={}", root.display());
    make(dir.path(), &[]);
    // Root may have no cargo.
    let install = ["install", "CARGO=false", &destination];
    make(dir.path(), &install);
    let wanted = INSTALLED
        .iter()
        .map(|(name, mode)| (name.to_string(), *mode));
    assert_eq!(files(&root), wanted.collect::<Vec<_>>());
    let program = root.join("usr/local/bin/magent");
    assert_eq!(version(&program), version(Path::new(MAGENT)));
    assert!(is_stripped(&program));
    // Options that somebody set stay.
    let options = root.join("etc/default/magent");
    fs::write(&options, "MAGENT_OPTIONS=\"-s 127.0.0.1:1\"\n").expect("options");
    make(dir.path(), &install);
    make(dir.path(), &["uninstall", &destination]);
    assert_eq!(files(&root), [("etc/default/magent".to_string(), 0o644)]);
    fs::remove_file(&options).expect("options");
    make(dir.path(), &["install", "PREFIX=/usr", &destination]);
    for unit in ["magent.service", "magent@.service"] {
        let text = fs::read_to_string(root.join("usr/lib/systemd/system").join(unit));
        let is_there = text
            .expect(unit)
            .contains("\nExecStart=/usr/bin/magent -D ");
        assert!(is_there, "{unit}");
    }
    make(dir.path(), &["uninstall", "PREFIX=/usr", &destination]);
    assert_eq!(files(&root), []);
}

/// An instance of the template has the rights of the service, and no more.
#[test]
fn both_units_give_the_same_rights() {
    let one = include_str!("../dist/magent.service");
    let many = include_str!("../dist/magent@.service");
    let settings = |text: &'static str| -> Vec<&str> {
        let (_, service) = text.split_once("\n[Service]\n").expect("its part");
        let own = ["ExecStart=", "RuntimeDirectory=", "#"];
        let lines = service.lines().filter(|l| !l.is_empty());
        lines
            .filter(|l| !own.iter().any(|o| l.starts_with(o)))
            .collect()
    };
    assert_eq!(settings(one), settings(many));
    assert!(settings(one).len() > 30);
    // What the man page says of statuses and of systemd.
    for line in [
        "Type=notify",
        "Restart=on-failure",
        "RestartSec=3",
        "RestartPreventExitStatus=2",
        "ExecReload=/bin/kill -HUP $MAINPID",
    ] {
        assert!(settings(one).contains(&line), "{line}");
    }
    for line in [
        "ExecStart=/usr/local/bin/magent -D --reuseport --admin /run/magent-%i/admin.sock $MAGENT_OPTIONS",
        "RuntimeDirectory=magent-%i",
    ] {
        assert!(many.lines().any(|l| l == line), "{line}");
    }
}

/// What would be published holds the program and what `make install` needs, and no tests.
#[test]
fn the_package_is_whole() {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["package", "--list", "--allow-dirty", "--offline"]);
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = finish(cargo);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let listed = text(&output.stdout);
    let listed: BTreeSet<&str> = listed.lines().collect();
    let sources = files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let sources: Vec<String> = sources
        .iter()
        .map(|(name, _)| format!("src/{name}"))
        .collect();
    let others = [
        "Cargo.toml",
        "Cargo.lock",
        "Makefile",
        "README.md",
        "CHANGELOG.md",
        "LICENSE",
    ];
    let installed = [
        "man/magent.1",
        "dist/magent.service",
        "dist/magent@.service",
        "dist/magent.socket",
        "dist/magent.env",
        "dist/magent.bash-completion",
    ];
    let needed = sources
        .iter()
        .map(String::as_str)
        .chain(others)
        .chain(installed);
    for name in needed {
        assert!(listed.contains(name), "{name} is missing");
    }
    for name in &listed {
        let part = name.split('/').next().unwrap_or_default();
        assert!(
            !["tests", "benches", "magent", "target"].contains(&part),
            "{name}"
        );
    }
}

/// What bash offers for `word`, which stands behind the word `before`, in a folder with a file.
fn offered(before: &str, word: &str) -> BTreeSet<String> {
    let dir = TempDir::new();
    fs::write(dir.path().join("pools.yml"), "").expect("a file");
    let mut bash = Command::new("bash");
    let script =
        "source \"$1\" && _magent \"$2\" \"$3\" \"$4\" && printf '%s\\n' \"${COMPREPLY[@]}\"";
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/dist/magent.bash-completion");
    bash.args(["--norc", "-c", script, "bash", file, MAGENT, word, before]);
    bash.current_dir(dir.path());
    let output = finish(bash);
    let said = text(&output.stderr);
    assert!(
        output.status.success() && said.is_empty(),
        "{before} {word}: {said}"
    );
    let lines = text(&output.stdout);
    lines
        .lines()
        .filter(|l| !l.is_empty())
        .map(str::to_string)
        .collect()
}

#[test]
fn completion_knows_the_options_and_no_others() {
    let spellings = OPTIONS.iter().flat_map(|o| [Some(o.name), o.long]);
    let all: BTreeSet<String> = spellings.flatten().map(str::to_string).collect();
    let of = |start: &str| -> BTreeSet<String> {
        let there = all.iter().filter(|name| name.starts_with(start));
        there.cloned().collect()
    };
    assert_eq!(offered("magent", ""), all);
    assert_eq!(offered("-D", "--"), of("--"));
    assert_eq!(offered("127.0.0.1:1/[x]|'\"", "--re"), of("--re"));
    for option in OPTIONS {
        let (word, wanted) = match option.argument() {
            None => ("--t", of("--t")),
            Some("FILE" | "PATH") => ("po", BTreeSet::from(["pools.yml".to_string()])),
            Some("USER") => ("nobod", BTreeSet::from(["nobody".to_string()])),
            Some("GROUP") => ("daemo", BTreeSet::from(["daemon".to_string()])),
            Some("NAME") => ("", names(option)),
            Some(_) => ("", BTreeSet::new()),
        };
        assert_eq!(offered(option.name, word), wanted, "{}", option.name);
    }
}

/// The names that an option takes, by the error that it gives to any other.
fn names(option: &Opt) -> BTreeSet<String> {
    let mut magent = Command::new(MAGENT);
    magent.args(["-s", "127.0.0.1:1", option.name, "no-such-name"]);
    let said = text(&finish(magent).stderr);
    let (_, names) = said.split_once(": must be one of ").expect("the names");
    let names: BTreeSet<String> = names.split_whitespace().map(str::to_string).collect();
    assert!(names.len() > 3, "{said}");
    names
}
