use super::*;

fn args(line: &str) -> Vec<OsString> {
    line.split_whitespace().map(OsString::from).collect()
}

fn config(line: &str) -> Config {
    match Config::from_args(&args(line)) {
        Ok(Action::Run(config)) => config,
        other => panic!("{line}: {other:?}"),
    }
}

fn error(line: &str) -> UsageError {
    match Config::from_args(&args(line)) {
        Err(error) => error,
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn the_published_recipe() {
    let c = config(
        "-u root -n 51200 -l 127.0.0.1 -p 12000 -s 127.0.0.1:11211 -s 127.0.0.1:11212 -b 127.0.0.1:11213",
    );
    let pool = &c.pools[0];
    assert_eq!(
        (c.user.as_deref(), c.clients, c.daemon),
        (Some("root"), 51200, true)
    );
    assert_eq!(c.log, LogTarget::Syslog);
    assert_eq!(pool.name, "default");
    let local = |port| Address::Tcp(SocketAddr::from(([127, 0, 0, 1], port)));
    assert_eq!(pool.listen, [ListenSpec::new(local(12000), 0o700)]);
    let names = |servers: &[ServerSpec]| -> Vec<(String, String)> {
        let pair = |s: &ServerSpec| (s.name.clone(), s.hash_name.clone());
        servers.iter().map(pair).collect()
    };
    let pair = |port| (format!("127.0.0.1:{port}"), format!("127.0.0.1-{port}"));
    assert_eq!(names(&pool.primaries), [pair(11211), pair(11212)]);
    assert_eq!(names(&pool.backups), [pair(11213)]);
    assert_eq!(
        (pool.hash, pool.distribution),
        (Hash::Magent, Distribution::Magent)
    );
}

/// Each default of the table, typed out, changes nothing; and the defaults are those of the
/// documentation.
#[test]
fn the_tables_defaults_are_the_defaults() {
    let plain = config("-s 192.0.2.1");
    let mut seen = 0;
    for o in OPTIONS {
        if let Some(default) = o.default {
            let line = format!("-s 192.0.2.1 {} {default}", o.name);
            let typed = Config {
                unused: Vec::new(),
                ..config(&line)
            };
            assert_eq!(typed, plain, "{line}");
            seen += 1;
        }
    }
    assert_eq!(seen, 21);
    assert_eq!(plain.template, PoolConfig::default());
    let expected = PoolConfig {
        name: "default".to_string(),
        listen: vec![ListenSpec::new(
            Address::Tcp(SocketAddr::from(([0, 0, 0, 0], 11211))),
            0o700,
        )],
        primaries: plain.pools[0].primaries.clone(),
        ..PoolConfig::default()
    };
    assert_eq!(plain.pools, [expected]);
    assert_eq!((plain.clients, plain.memory), (4096, 256 << 20));
    assert!(plain.daemon && !plain.memcached_stats && plain.verbose == 0);
    assert_eq!(
        (plain.user, plain.group, plain.pid_file, plain.file),
        (None, None, None, None)
    );
}

#[test]
fn every_option_is_in_the_help_once() {
    let help = help();
    for o in OPTIONS {
        let words = help
            .lines()
            .map(|l| l.split([' ', ',']).filter(|w| !w.is_empty()));
        let lines = words.filter(|w| w.clone().next() == Some(o.name));
        assert_eq!(lines.count(), 1, "{}", o.name);
        assert!(o.bare().len() == 1 || o.name.starts_with("--"));
        assert!(
            o.long
                .is_none_or(|long| help.contains(&format!("  {}, {long}  ", o.name)))
        );
    }
    assert!(help.lines().all(|l| l.len() <= 132), "{help}");
    let version = format!("magent {}\n", env!("CARGO_PKG_VERSION"));
    for [h, v] in [["-h", "-V"], ["--help", "--version"]] {
        assert_eq!(Config::from_args(&args(h)), Ok(Action::Help(help.clone())));
        assert_eq!(
            Config::from_args(&args(v)),
            Ok(Action::Version(version.clone()))
        );
    }
}

#[test]
fn servers_in_every_spelling() {
    let table: &[(&str, &str, &str, u32)] = &[
        ("127.0.0.1", "127.0.0.1:11211", "127.0.0.1-11211", 1),
        ("127.0.0.1:1", "127.0.0.1:1", "127.0.0.1-1", 1),
        ("127.0.0.1:65535:7", "127.0.0.1:65535", "127.0.0.1-65535", 7),
        ("localhost:12", "localhost:12", "localhost-12", 1),
        ("[::1]", "[::1]:11211", "[::1]-11211", 1),
        ("[::1]:12", "[::1]:12", "[::1]-12", 1),
        ("[::1]:12:3", "[::1]:12", "[::1]-12", 3),
        ("/tmp/m.sock", "/tmp/m.sock", "/tmp/m.sock-0", 1),
        ("/tmp/m.sock:4", "/tmp/m.sock", "/tmp/m.sock-0", 4),
    ];
    for (text, name, hash_name, weight) in table {
        for option in ["-s", "-s 10.9.9.9 -b"] {
            let pool = config(&format!("-p 4 {option} {text}")).pools.remove(0);
            let s = pool.backups.first().unwrap_or(&pool.primaries[0]);
            assert_eq!(
                (s.name.as_str(), s.hash_name.as_str(), s.weight),
                (*name, *hash_name, *weight)
            );
        }
    }
    for (text, endpoint) in [
        ("localhost:12", Endpoint::Name("localhost".into(), 12)),
        ("[fe80::1%lo]:12", Endpoint::Name("fe80::1%lo".into(), 12)),
        (
            "[::1]:12",
            Endpoint::Fixed(Address::Tcp("[::1]:12".parse().unwrap())),
        ),
    ] {
        let spec = &config(&format!("-s {text}")).pools[0].primaries[0];
        assert_eq!(spec.endpoint, endpoint);
    }
    for text in ["a*b:1", "[::1:1", "[]:1", ":1"] {
        let e = error(&format!("-s {text}"));
        assert_eq!(e.status, 2, "{text}: {}", e.line);
    }
}

#[test]
fn names_of_twemproxy_on_the_command_line() {
    let line = "-p 4 --distribution ketama --hash fnv1a_64 --hash-tag {} --auto-eject \
                -s 127.0.0.1 -s 127.0.0.1:12 -s [::1]:13 -s /a.sock";
    let pool = &config(line).pools[0];
    let names: Vec<&str> = pool
        .primaries
        .iter()
        .map(|s| s.hash_name.as_str())
        .collect();
    assert_eq!(names, ["127.0.0.1", "127.0.0.1:12", "[::1]:13", "/a.sock:"]);
    assert_eq!(
        (pool.hash, pool.distribution),
        (Hash::Fnv1a64, Distribution::Ketama)
    );
    assert_eq!((pool.hash_tag, pool.auto_eject), (Some((b'{', b'}')), true));
}

#[test]
fn every_option_is_heard() {
    let c = config(
        "-s 192.0.2.1 -l 127.0.0.1 -l ::1 -l [::2] -p 12 -f m.sock -a 0660 -u 33 -g www -n 9 -i 4 -k -vv \
         -P m.pid -L m.log -I 64k -m 1g -F --timeout 5 --connect-timeout 6 --failure-limit 7 --retry 8 \
         --warm 0 --journal 2M --idle-timeout 9 --memcached-stats",
    );
    let here = |name: &str| std::env::current_dir().expect("a directory").join(name);
    let p = &c.pools[0];
    assert_eq!(p.listen.len(), 4);
    assert_eq!(
        p.listen[2].address,
        Address::Tcp("[::2]:12".parse().expect("an address"))
    );
    assert_eq!(
        p.listen[3],
        ListenSpec::new(Address::Unix(here("m.sock")), 0o660)
    );
    assert_eq!(
        (c.user.as_deref(), c.group.as_deref()),
        (Some("33"), Some("www"))
    );
    assert_eq!(
        (c.clients, p.connections, c.memory, p.max_value),
        (9, 4, 1 << 30, 64 << 10)
    );
    assert_eq!(p.distribution, Distribution::MagentKetama);
    assert_eq!(
        (c.verbose, c.daemon, p.flush_all, c.memcached_stats),
        (2, false, false, true)
    );
    assert_eq!(c.pid_file, Some(here("m.pid")));
    assert_eq!(c.log, LogTarget::File(here("m.log")));
    let ms = |d: Duration| d.as_millis();
    assert_eq!(
        (ms(p.timeout), ms(p.connect_timeout), ms(p.retry)),
        (5, 6, 8)
    );
    assert_eq!(
        (p.failure_limit, p.warm, p.journal),
        (7, Duration::ZERO, 2 << 20)
    );
    assert_eq!(p.idle_timeout, Some(Duration::from_secs(9)));
    assert_eq!(config("-s 192.0.2.1 -D").log, LogTarget::Stderr);
    assert!(!config("-s 192.0.2.1 -v").daemon);
    let unix = config("-s 192.0.2.1 -p 0 -f /m.sock");
    assert_eq!(unix.pools[0].listen.len(), 1);
    assert_eq!(
        config("-s127.0.0.1 -p12 --timeout=7").pools[0]
            .timeout
            .as_millis(),
        7
    );
}

/// Command lines and how their errors start.
#[rustfmt::skip]
const MISTAKES: &[(&str, &str)] = &[
    ("", "-s: at least one primary is needed"),
    ("-b 127.0.0.1", "-s: at least one primary is needed"),
    ("-s", "-s: needs a value: HOST[:PORT][:WEIGHT]"),
    ("--timeout", "--timeout: needs a value: MS"),
    ("-x", "-x: unknown option, magent -h lists all"),
    ("--weird", "--weird: unknown option, magent -h lists all"),
    ("-s 192.0.2.1 stray", "\"stray\": not an option"),
    ("-s 192.0.2.1 -v 5", "\"5\": not an option"),
    ("-s 192.0.2.1 -p 1 -p 2", "-p: given twice"),
    ("-s 192.0.2.1 --auto-eject=1", "--auto-eject: takes no value"),
    ("-s 127.0.0.1:99999", "-s 127.0.0.1:99999: port must be 1 to 65535"),
    ("-s 127.0.0.1:0", "-s 127.0.0.1:0: port must be 1 to 65535"),
    ("-s 127.0.0.1:", "-s 127.0.0.1:: port must be 1 to 65535"),
    ("-s 127.0.0.1:+1", "-s 127.0.0.1:+1: port must be 1 to 65535"),
    ("-s 127.0.0.1:1:0", "-s 127.0.0.1:1:0: weight must be 1 to 2147483647"),
    ("-s 127.0.0.1:1:2:3", "-s 127.0.0.1:1:2:3: must be HOST[:PORT][:WEIGHT]; an IPv6 address is written in brackets"),
    ("-s /m.sock:x", "-s /m.sock:x: weight must be 1 to 2147483647"),
    ("-s ::1", "-s ::1: an IPv6 address is written in brackets: [::1]:11211"),
    ("-s ::1:11211", "-s ::1:11211: an IPv6 address is written in brackets: [::1]:11211"),
    ("-s ::1:11211:2", "-s ::1:11211:2: an IPv6 address is written in brackets: [::1]:11211:2"),
    ("-s fe80::1:1121", "-s fe80::1:1121: an IPv6 address is written in brackets: [fe80::1]:1121 or [fe80::1:1121]:11211"),
    ("-s [::1", "-s [::1: the closing bracket is missing"),
    ("-s [::1]x", "-s [::1]x: must be HOST[:PORT][:WEIGHT]"),
    ("-s :1", "-s :1: the host is missing"),
    ("-s 192.0.2.1 -s 192.0.2.1:11211", "-s 192.0.2.1:11211: given twice; HOST:PORT:2 gives a server twice the keys"),
    ("-s 192.0.2.1 -b 10.0.0.1 -b 10.0.0.1", "-b 10.0.0.1:11211: given twice; HOST:PORT:2 gives a server twice the keys"),
    ("-s 192.0.2.1 -l 127.0.0.1:1", "-l 127.0.0.1:1: must be an address without a port; the port is -p"),
    ("-s 192.0.2.1 -l ::1 -l [::1]", "-l [::1]: given twice"),
    ("-s 192.0.2.1 -p 65536", "-p 65536: port must be 0 to 65535"),
    ("-s 192.0.2.1 -p -1", "-p -1: port must be 0 to 65535"),
    ("-s 192.0.2.1 -p 0", "-p 0: no TCP, so -f PATH is needed"),
    ("-s 192.0.2.1 -a 0888", "-a 0888: must be an octal mode, 0 to 0777"),
    ("-s 192.0.2.1 -a 1777", "-a 1777: must be an octal mode, 0 to 0777"),
    ("-s 192.0.2.1 -n 0", "-n 0: must be a number, 1 to 10000000"),
    ("-s 192.0.2.1 -n many", "-n many: must be a number, 1 to 10000000"),
    ("-s 192.0.2.1 -i 0", "-i 0: must be a number, 1 to 1024"),
    ("-s 192.0.2.1 -I 0", "-I 0: must be a size, 1k to 1g"),
    ("-s 192.0.2.1 -I 1x", "-I 1x: must be a size, 1k to 1g"),
    ("-s 192.0.2.1 -I m", "-I m: must be a size, 1k to 1g"),
    ("-s 192.0.2.1 -I 99999999999999999999g", "-I 99999999999999999999g: must be a size, 1k to 1g"),
    ("-s 192.0.2.1 -m 64", "-m 64: must be at least 4 times the largest value, 1m (-I); write -m 4m or more"),
    ("-s 192.0.2.1 -m 4m -I 1025k", "-m 4m: must be at least 4 times the largest value, 1025k (-I); write -m 4100k or more"),
    ("-s 192.0.2.1 --timeout 0", "--timeout 0: must be a number, 1 to 86400000"),
    ("-s 192.0.2.1 --retry 1s", "--retry 1s: must be a number, 1 to 86400000"),
    ("-s 192.0.2.1 --warm -1", "--warm -1: must be a number, 0 to 4294967295"),
    ("-s 192.0.2.1 --failure-limit 0", "--failure-limit 0: must be a number, 1 to 1000000"),
    ("-s 192.0.2.1 --hash sha", "--hash sha: must be one of magent one_at_a_time md5"),
    ("-s 192.0.2.1 --distribution x", "--distribution x: must be one of magent magent-ketama ketama modula random"),
    ("-s 192.0.2.1 --hash-tag {", "--hash-tag {: must be two characters"),
    ("-s 192.0.2.1 -k --distribution modula", "-k: not together with --distribution modula"),
    ("-s 192.0.2.1 -b 10.0.0.1 --auto-eject", "-b 10.0.0.1:11211: not together with --auto-eject"),
    ("-s 192.0.2.1 -b 10.0.0.1 --distribution random", "-b 10.0.0.1:11211: not together with --distribution random"),
    ("-s 192.0.2.1 -I 65m", "-I 65m: too large for the default -m of 256m; add -m 260m"),
    ("-s 192.0.2.1 -s 127.0.0.1 -b 10.0.0.1", "-s 127.0.0.1:11211: magent itself listens there, so a request would go round for ever; give"),
    ("-s 10.0.0.1 -b 0.0.0.0 -l 127.0.0.1", "-b 0.0.0.0:11211: magent itself listens there"),
    ("-s [::ffff:127.0.0.1]:7 -p 7", "-s [::ffff:127.0.0.1]:7: magent itself listens there"),
    ("-s [::1]:7 -p 7 -l ::", "-s [::1]:7: magent itself listens there"),
    ("-s /proc/self/../magent.sock -f /proc/magent.sock", "-s /proc/self/../magent.sock: magent itself listens there"),
    ("-c no.yml -s 22222", "-s 22222: not together with -c; its place is `servers` in the file; of twemproxy only the configuration file is compatible, not the command line: there is no port"),
    ("-c no.yml -k", "-k: not together with -c; its place is `distribution` in the file"),
    ("-c no.yml -i 30000", "-i 30000: must be a number, 1 to 1024; of twemproxy only the configuration file is compatible, not the command line: there is no interval"),
    ("-c no.yml -v 6", "\"6\": not an option; of twemproxy only the configuration file is compatible, not the command line: write -v or -vv"),
    ("-d -c no.yml", "-d: unknown option; of twemproxy only the configuration file is compatible, not the command line: leave it out"),
    ("--stats-port=22222", "--stats-port: unknown option; of twemproxy only"),
    ("-d -s 192.0.2.1", "-d: unknown option; leave it out, magent goes to the background by itself"),
];

#[test]
fn every_mistake_is_one_line_that_names_option_and_value() {
    for (line, expected) in MISTAKES {
        let e = error(line);
        let expected = format!("magent: {expected}");
        assert!(
            e.line.starts_with(&expected),
            "{line}\n got {}\nwant {expected}",
            e.line
        );
        assert_eq!(e.status, 2, "{line}");
    }
    let with_empty = [
        OsString::from("-s"),
        OsString::from("a\nb:x"),
        OsString::from("-f"),
        OsString::new(),
    ];
    let e = Config::from_args(&with_empty[..2]).expect_err("no such port");
    assert_eq!(e.line, "magent: -s a?b:x: port must be 1 to 65535");
    let mut good = args("-s 192.0.2.1");
    good.extend_from_slice(&with_empty[2..]);
    let e = Config::from_args(&good).expect_err("no path");
    assert_eq!(e.line, "magent: -f: the path is empty");
    good[2] = "-p".into();
    let e = Config::from_args(&good).expect_err("no port");
    assert_eq!(e.line, "magent: -p : port must be 0 to 65535");
}

#[test]
fn what_the_world_lacks_is_status_1() {
    let e = error("-s 127.0.0.1 -l no..host");
    assert_eq!(e.status, 1);
    assert!(
        e.line
            .starts_with("magent: -l no..host: cannot resolve no..host")
    );
    // A server's name may be known later.
    assert_eq!(config("-s no..host:1").unknown_hosts().len(), 1);
    assert_eq!(config("-s localhost:1").unknown_hosts(), [""; 0]);
    let e = error("-c /no/such/file.yml");
    assert_eq!(e.status, 1);
    assert!(
        e.line.starts_with("magent: -c /no/such/file.yml: "),
        "{}",
        e.line
    );
    assert_eq!(error("-t -c /no/such/file.yml").status, 2);
}

#[test]
fn the_summary_names_every_key_of_a_pool_and_the_hash_follows_it() {
    let c = config("-s 192.0.2.1 -s [::1]:12:3 -b /b.sock --hash-tag {}");
    let lines = c.summary();
    let get = |name: &str| {
        let line = lines.iter().find(|l| l.0 == name);
        line.unwrap_or_else(|| panic!("{name}")).1.clone()
    };
    for key in KEYS.iter().filter(|k| !k.name.starts_with("redis")) {
        get(&format!("default:{}", key.name));
    }
    assert_eq!(
        get("default:servers"),
        "192.0.2.1:11211:1 192.0.2.1-11211, [::1]:12:3 [::1]-12"
    );
    assert_eq!(get("default:backups"), "/b.sock:1 /b.sock-0");
    assert_eq!(get("default:hash_tag"), "{}");
    assert_eq!(get("default:journal"), "64m");
    assert_eq!(get("memory"), "256m");
    assert_eq!(get("configuration"), c.fingerprint());
    assert_eq!(c.fingerprint().len(), 16);
    let same = |line: &str| config(line).fingerprint() == config("-s 192.0.2.1").fingerprint();
    assert!(same("-s 192.0.2.1 -D -P /x.pid -u root"));
    assert!(!same("-s 127.0.0.1:11212"));
    assert!(!same("-s 192.0.2.1:11211:2"));
    assert!(!same("-s 192.0.2.1 --timeout 999"));
    assert!(!same("-s 192.0.2.1 -m 255m"));
}

#[test]
fn warnings_of_what_is_allowed() {
    let warnings = |line: &str| Prepared::new(config(line)).warnings;
    assert!(warnings("-s 192.0.2.1 -b 127.0.0.1:12").is_empty());
    // Two of them: each is the other one's backup.
    assert!(warnings("-s 127.0.0.1:1 -s 127.0.0.1:2 -b 127.0.0.1:1 -b 127.0.0.1:2").is_empty());
    for other in ["127.0.0.1:12", "0.0.0.0:12", "[::ffff:127.0.0.1]:12"] {
        let line =
            "is a primary and the only backup, so its own keys have no backup; add another backup";
        assert_eq!(
            warnings(&format!("-s 192.0.2.1 -s 127.0.0.1:12 -b {other}")),
            [format!("pool default: {other} {line}")]
        );
        let line =
            "is the only primary and the only backup, so no key has a backup; add another backup";
        assert_eq!(
            warnings(&format!("-s 127.0.0.1:12 -b {other}")),
            [format!("pool default: {other} {line}")]
        );
    }
    let tiny = warnings("-k -s 127.0.0.1:1:100000 -s 127.0.0.1:2");
    assert_eq!(tiny.len(), 1);
    assert!(tiny[0].starts_with("pool default: servers: 127.0.0.1-2: weight 1 of 100001"));
    let unused = config("-s 192.0.2.1 -a 0770").unused;
    let line = "-a 0770: has no effect without a Unix socket; add -f PATH or leave it out";
    assert_eq!(unused, [line]);
    assert!(config("-s 192.0.2.1 -a 0770 -f /m.sock").unused.is_empty());
}

#[test]
fn a_reload_reads_the_file_again_under_the_same_options() {
    let dir = std::env::temp_dir().join(format!("magent-config-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory");
    let path = dir.join("pools.yml");
    let text =
        |port: u32| format!("a:\n  listen: 127.0.0.1:1\n  servers:\n  - 127.0.0.1:{port}:1\n");
    std::fs::write(&path, text(2)).expect("a file");
    let line = format!("-D -c {} --retry 77", path.display());
    let first = config(&line);
    assert_eq!(first.file.as_deref(), Some(path.as_path()));
    assert_eq!(first.pools[0].retry.as_millis(), 77);
    assert_eq!(first.reload().as_ref(), Ok(&first));
    std::fs::write(&path, text(3)).expect("a file");
    let second = first.reload().expect("a good file");
    assert_eq!(second.pools[0].primaries[0].name, "127.0.0.1:3");
    assert_eq!(second.pools[0].retry.as_millis(), 77);
    assert_ne!(second.fingerprint(), first.fingerprint());
    // Nothing said before that a value must be that small.
    let small = format!("{line} -m 2m");
    std::fs::write(&path, text(3) + "  max_value: 64k\n").expect("a file");
    let small = config(&small);
    std::fs::write(&path, text(3)).expect("a file");
    let why = "pool a: -I 1m is too large for -m 2m; start with -m 4m";
    assert_eq!(small.reload(), Err(format!("{}: {why}", path.display())));
    std::fs::write(&path, text(0)).expect("a file");
    let shown = path.display().to_string();
    let expected = format!("{shown}:4: pool a: servers: 127.0.0.1:0:1: port must be 1 to 65535");
    assert_eq!(second.reload(), Err(expected.clone()));
    let e = error(&line);
    assert_eq!((e.status, e.line), (2, format!("magent: {expected}")));
    std::fs::write(&path, text(4)).expect("a file");
    let check = Config::from_args(&args(&format!("-t {line}")));
    let Ok(Action::Check {
        config: checked,
        subject,
    }) = check
    else {
        panic!("{check:?}");
    };
    assert_eq!(
        (subject, checked.pools[0].primaries[0].name.as_str()),
        (shown, "127.0.0.1:4")
    );
    std::fs::remove_dir_all(&dir).expect("removed");
    assert!(config("-s 192.0.2.1").reload().is_err());
}
