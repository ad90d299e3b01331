use super::*;

/// `-m`'s default.
const MEMORY: usize = 256 << 20;

fn load_text(text: &str) -> Result<Vec<PoolConfig>, Bad> {
    parse(text.as_bytes(), "f.yml", &PoolConfig::default(), MEMORY)
}

fn pools(text: &str) -> Vec<PoolConfig> {
    load_text(text).unwrap_or_else(|bad| panic!("{bad:?}\n{text}"))
}

/// A file in the manner of twemproxy's own samples: lists one space deeper than their key,
/// quoted tags, comments, several pools.
const SAMPLE: &str = r#"# two pools
gamma:
  listen: 127.0.0.1:22123   # local only
  hash: fnv1a_64
  distribution: ketama
  timeout: 400
  backlog: 1024
  preconnect: true
  auto_eject_hosts: true
  server_retry_timeout: 2000
  server_failure_limit: 2
  redis: false
  servers:
   - 127.0.0.1:11211:1
   - 127.0.0.1:11213:1 # not a name
   - 127.0.0.1:11214:3 server3

omega:
    listen: /tmp/gamma 0666
    hash: hsieh
    hash_tag: "{}"
    distribution: ketama
    auto_eject_hosts: false
    servers:
    - 127.0.0.1:11214:100000
    - '/tmp/m.sock:2'
    - ::1:11211:1
    - ::1:11212:1
    - [::1]:11213:1 v6
"#;

#[test]
fn a_sample_of_twemproxy_loads() {
    // A plain scalar cannot start with a bracket, in YAML as in twemproxy.
    let all = pools(&SAMPLE.replace("[::1]:11213:1 v6", "\"[::1]:11213:1 v6\""));
    let [gamma, omega] = &all[..] else {
        panic!("two pools")
    };
    assert_eq!(
        (gamma.name.as_str(), omega.name.as_str()),
        ("gamma", "omega")
    );
    assert_eq!(gamma.listen[0].backlog, 1024);
    assert!(gamma.preconnect && gamma.auto_eject && !gamma.keepalive);
    assert_eq!((gamma.retry.as_millis(), gamma.failure_limit), (2000, 2));
    assert_eq!(
        (gamma.timeout.as_millis(), gamma.connect_timeout.as_millis()),
        (400, 400)
    );
    let hash_names = |p: &PoolConfig| -> Vec<String> {
        p.primaries.iter().map(|s| s.hash_name.clone()).collect()
    };
    assert_eq!(
        hash_names(gamma),
        ["127.0.0.1", "127.0.0.1:11213", "server3"]
    );
    assert_eq!(gamma.primaries[2].name, "127.0.0.1:11214");
    assert_eq!(gamma.primaries[2].weight, 3);
    assert_eq!(
        omega.listen,
        [ListenSpec {
            address: Address::Unix("/tmp/gamma".into()),
            mode: 0o666,
            backlog: 512
        }]
    );
    assert_eq!(
        (omega.hash, omega.hash_tag),
        (Hash::Hsieh, Some((b'{', b'}')))
    );
    assert_eq!(
        hash_names(omega),
        ["127.0.0.1:11214", "/tmp/m.sock:", "::1", "::1:11212", "v6"]
    );
    let names: Vec<&str> = omega.primaries.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(
        names[1..],
        ["/tmp/m.sock", "[::1]:11211", "[::1]:11212", "[::1]:11213"]
    );
    assert_eq!(
        (omega.retry.as_millis(), omega.timeout.as_millis()),
        (1000, 1000)
    );
    assert!(load_text(SAMPLE).is_err());
}

#[test]
fn defaults_of_a_file() {
    let text = "a:\n  listen: 127.0.0.1:1\n  servers:\n  - 127.0.0.1:2:1\n";
    let pool = pools(text).remove(0);
    let expected = PoolConfig {
        name: "a".to_string(),
        hash: Hash::Fnv1a64,
        distribution: Distribution::Ketama,
        listen: pool.listen.clone(),
        primaries: pool.primaries.clone(),
        ..PoolConfig::default()
    };
    assert_eq!(pool, expected);
    let eject = pools(&format!("{text}  auto_eject_hosts: true\n")).remove(0);
    assert_eq!((eject.retry.as_millis(), eject.failure_limit), (30_000, 3));
}

#[test]
fn every_key_of_magents_own() {
    let text = "---\r\na:\r\n  servers:\r\n  - 127.0.0.1:2:1\r\n  - /x:1\r\n  listen:\r\n    - 127.0.0.1:1\r\n    - \"[::1]:1\"\r\n    \
                - /m.sock\r\n  backups:\r\n  - 127.0.0.1:3:1\r\n  hash: magent\r\n  distribution: magent-ketama\r\n  \
                tcpkeepalive: true\r\n  server_connections: 3\r\n  client_connections: 4\r\n  warm: 5\r\n  journal: 6k\r\n  \
                max_value: 7k\r\n  idle_timeout: 8\r\n  flush_all: false\r\n  server_retry_timeout: 0\r\n  server_failure_limit: 0\r\n  timeout: 0";
    let p = pools(text).remove(0);
    assert_eq!(p.listen.len(), 3);
    assert_eq!((p.listen[2].mode, p.listen[2].backlog), (0o700, 512));
    assert_eq!(p.primaries[0].hash_name, "127.0.0.1-2");
    assert_eq!(p.primaries[1].hash_name, "/x-0");
    assert_eq!(p.backups[0].hash_name, "127.0.0.1-3");
    assert_eq!(
        (p.hash, p.distribution),
        (Hash::Magent, Distribution::MagentKetama)
    );
    assert_eq!((p.keepalive, p.connections, p.clients), (true, 3, Some(4)));
    assert_eq!(
        (p.warm.as_secs(), p.journal, p.max_value),
        (5, 6 << 10, 7 << 10)
    );
    assert_eq!(
        (p.idle_timeout, p.flush_all),
        (Some(Duration::from_secs(8)), false)
    );
    assert_eq!(
        (p.failure_limit, p.retry.as_millis(), p.timeout.as_millis()),
        (1, 1, 1000)
    );
}

/// A good pool with `line` as its third line, hence line 3 of the file.
fn with(line: &str) -> String {
    format!("a:\n  listen: 127.0.0.1:1\n{line}\n  servers:\n  - 127.0.0.1:2:1\n")
}

/// Wrong lines of a pool and how their errors start.
#[rustfmt::skip]
const WRONG_VALUES: &[(&str, &str)] = &[
    ("server_retry_timeout: x", "server_retry_timeout: x: must be a number, 0 to 2147483647"),
    ("server_failure_limit: -1", "server_failure_limit: -1: must be a number, 0 to 2147483647"),
    ("backlog: 99999999999", "backlog: 99999999999: must be a number, 0 to 2147483647"),
    ("client_connections: 1.5", "client_connections: 1.5: must be a number, 0 to 2147483647"),
    ("timeout: 1s", "timeout: 1s: must be a number, 0 to 86400000"),
    ("server_connections: 0", "server_connections: 0: must be a number, 1 to 1024"),
    ("preconnect: yes", "preconnect: yes: must be true or false"),
    ("hash: sha", "hash: sha: must be one of magent one_at_a_time"),
    ("distribution: ring", "distribution: ring: must be one of magent"),
    ("hash_tag: \"{\"", "hash_tag: {: must be two characters"),
    ("max_value: 2t", "max_value: 2t: must be a size, 1k to 1g"),
    ("redis: true", "redis: true: magent speaks memcached only"),
    ("redis_auth: secret", "redis_auth: magent speaks memcached only"),
    ("redis_db: 0", "redis_db: 0: magent speaks memcached only"),
    ("colour: red", "colour: unknown key"),
    ("listen: 127.0.0.1:3", "listen: given twice"),
    ("timeout:", "timeout: the value is missing"),
    ("timeout: # later", "timeout: the value is missing"),
    ("backups:", "backups: the list is empty"),
    ("backups: 127.0.0.1:3:1", "backups: must be a list of `- item` lines"),
];

#[test]
fn mistakes_in_values_name_line_pool_key_and_value() {
    for (line, expected) in WRONG_VALUES {
        let expected = format!("f.yml:3: pool a: {expected}");
        match load_text(&with(&format!("  {line}"))) {
            Err(Bad::Value(why)) => assert!(why.starts_with(&expected), "{why}\n{expected}"),
            other => panic!("{line}: {other:?}"),
        }
    }
}

/// Whole files and their errors.
#[rustfmt::skip]
const WRONG_POOLS: &[(&str, &str)] = &[
    ("", "f.yml: holds no pool"),
    ("# nothing\n---\n", "f.yml: holds no pool"),
    ("a:\n", "f.yml:1: pool a: listen: is missing"),
    ("a:\n  listen: 127.0.0.1:1\n", "f.yml:1: pool a: servers: is missing"),
    ("a:\n  servers:\n  - 127.0.0.1:2\n", "f.yml:3: pool a: servers: 127.0.0.1:2: must be host:port:weight [name] or /path:weight [name]"),
    ("a:\n  servers:\n  - 127.0.0.1:2:1  n\n", "f.yml:3: pool a: servers: 127.0.0.1:2:1  n: must be host:port:weight [name] or /path:weight [name]"),
    ("a:\n  servers:\n  - 127.0.0.1:2:0\n", "f.yml:3: pool a: servers: 127.0.0.1:2:0: weight must be 1 to 2147483647"),
    ("a:\n  servers:\n  - 127.0.0.1:x:1\n", "f.yml:3: pool a: servers: 127.0.0.1:x:1: port must be 1 to 65535"),
    ("a:\n  servers:\n  - /m.sock\n", "f.yml:3: pool a: servers: /m.sock: must be host:port:weight [name] or /path:weight [name]"),
    ("a:\n  listen: 127.0.0.1\n", "f.yml:2: pool a: listen: 127.0.0.1: must be host:port, [v6]:port, or /path.sock with an octal mode"),
    ("a:\n  listen: /m.sock 999\n", "f.yml:2: pool a: listen: /m.sock 999: must be an octal mode, 0 to 0777"),
    ("a:\n  listen: 127.0.0.1:0\n", "f.yml:2: pool a: listen: 127.0.0.1:0: port must be 1 to 65535"),
    ("a:\n  listen: 127.0.0.1:1\n  servers:\n  - 127.0.0.1:2:1\na:\n  listen: 127.0.0.1:1\n  servers:\n  - 127.0.0.1:2:1\n", "f.yml:5: pool a: there is one of that name already"),
    ("a:\n  listen: 127.0.0.1:1\n  servers:\n  - 127.0.0.1:2:1\nb:\n  listen: 127.0.0.1:1\n  servers:\n  - 127.0.0.1:2:1\n", "f.yml:6: pool b: listen: pool a listens there already"),
    ("a:\n  listen: 127.0.0.1:1\n  servers:\n  - 127.0.0.1:2:1\n  - 127.0.0.1:2:7\n", "f.yml:5: pool a: servers: two servers have the name 127.0.0.1:2"),
    ("a:\n  listen: 127.0.0.1:1\n  servers:\n  - 127.0.0.1:2:1\n  - 127.0.0.1:3:1 x\n  - 127.0.0.1:4:1 x\n", "f.yml:6: pool a: servers: two servers have the name x"),
    ("a:\n  listen: 127.0.0.1:1\n  servers:\n  - 127.0.0.1:2:1\n  auto_eject_hosts: true\n  backups:\n  - 127.0.0.1:3:1\n", "f.yml:7: pool a: backups: not together with auto_eject_hosts: true"),
    ("a:\n  listen: 127.0.0.1:1\n  servers:\n  - 127.0.0.1:2:1\n  distribution: random\n  backups:\n  - 127.0.0.1:3:1\n", "f.yml:7: pool a: backups: not together with distribution: random"),
];

#[test]
fn mistakes_in_whole_pools() {
    let good = "a:\n  listen: 127.0.0.1:1\n  servers:\n  - 127.0.0.1:2:1\n";
    for (text, expected) in WRONG_POOLS {
        assert_eq!(
            load_text(text),
            Err(Bad::Value(expected.to_string())),
            "{text}"
        );
    }
    let unknown = good.replace("listen: 127.0.0.1:1", "listen: no..host:1");
    match load_text(&unknown) {
        Err(Bad::World(why)) => {
            let expected = "f.yml:2: pool a: listen: no..host:1: cannot resolve no..host";
            assert!(why.starts_with(expected), "{why}");
        }
        other => panic!("{other:?}"),
    }
    // The same address under two names is two servers to twemproxy, and so to us.
    assert_eq!(
        pools(&format!("{good}  - 127.0.0.1:2:1 other\n"))[0]
            .primaries
            .len(),
        2
    );
}

/// Lines that YAML may have and we have not, and their errors.
#[rustfmt::skip]
const BEYOND: &[(&str, &str)] = &[
    ("  servers: [a, b]", "flow lists and maps ([a, b], {a: b}) are not supported"),
    ("  hash_tag: {}", "flow lists and maps ([a, b], {a: b}) are not supported"),
    ("  hash: &x md5", "anchors and aliases (&, *) are not supported"),
    ("  hash: *x", "anchors and aliases (&, *) are not supported"),
    ("  hash: !!str md5", "tags (!) are not supported"),
    ("  hash: |", "block scalars (|, >) are not supported"),
    ("  hash: >-", "block scalars (|, >) are not supported"),
    ("  ? hash", "complex keys (?) are not supported"),
    ("  hash: a: b", "a map inside a value is not supported; quote the value if it is none"),
    ("\thash: md5", "indented with a tab: only spaces are supported"),
    ("  hash:\tmd5", "holds a tab: only spaces are supported"),
    ("  hash: \"md5", "the closing quote is missing; a value ends on its line"),
    ("  hash: \"m\\x64\"", "only \\\" and \\\\ are supported as escapes"),
    ("  hash: \"md5\"x", "text behind the closing quote"),
    ("  hash", "must be `key: value` or `- item`"),
    ("   hash: md5", "hash: indented more than the pool's other keys"),
    (" hash: md5", "hash: indented less than the pool's other keys"),
    ("  - 127.0.0.1:3:1", "listen: has a value already, a list cannot follow"),
    ("b: md5", "b: a pool is a map of keys, not a value"),
    ("---", "more than one document is not supported"),
    ("...", "more than one document is not supported"),
    ("%YAML 1.2", "directives (%) are not supported"),
    ("  hash: m\u{1}", "holds a control character"),
    ("  : md5", "the key is missing"),
];

#[test]
fn what_yaml_has_beyond_is_refused_by_name() {
    for (line, expected) in BEYOND {
        let why = match load_text(&with(line)) {
            Err(Bad::Value(why)) => why,
            other => panic!("{line}: {other:?}"),
        };
        let expected = format!("f.yml:3: {expected}");
        assert_eq!(why, expected, "{line}");
    }
    assert_eq!(
        parse(
            b"a:\n  listen: \xff\n",
            "f.yml",
            &PoolConfig::default(),
            MEMORY
        ),
        Err(Bad::Value("f.yml:2: not UTF-8 text".to_string()))
    );
    let nested = load_text("a:\n  servers:\n  - - x\n");
    assert_eq!(
        nested,
        Err(Bad::Value(
            "f.yml:3: lists of lists are not supported".to_string()
        ))
    );
    assert_eq!(
        load_text("- a\n"),
        Err(Bad::Value(
            "f.yml:1: a list item that belongs to no key".to_string()
        ))
    );
}

#[test]
fn quotes_and_comments() {
    let text = "\"a\": # first\n  'listen' : \"127.0.0.1:1\" # x\n\n\t\n  # x\n  hash_tag: '''\"' \n  servers: #x\n\n  - '127.0.0.1:2:1 a#b'\n#y\n  - 127.0.0.1:3:1 c#d\n";
    let p = pools(text).remove(0);
    assert_eq!(p.hash_tag, Some((b'\'', b'"')));
    let names: Vec<&str> = p.primaries.iter().map(|s| s.hash_name.as_str()).collect();
    assert_eq!(names, ["a#b", "c#d"]);
}

/// Whatever becomes of a file, it is an error or a configuration.
#[test]
fn mutated_files_never_panic() {
    let base = SAMPLE.replace("[::1]:11213:1 v6", "'[::1]:11213:1 v6'");
    let mut seed = 7u64;
    let mut random = |n: usize| {
        seed = seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (seed >> 33) as usize % n
    };
    let bits: [&[u8]; 16] = [
        b"\n", b" ", b":", b": ", b"- ", b"#", b"\"", b"'", b"\t", b"\\", b"\xff", b"[", b"0",
        b"\r\n", b"---\n", b"\xc3",
    ];
    let (mut good, mut wrong) = (0, 0);
    for round in 0..6000 {
        let mut bytes = base.clone().into_bytes();
        for _ in 0..1 + round % 4 {
            let at = random(bytes.len());
            match random(4) {
                0 => drop(bytes.remove(at)),
                1 => drop(bytes.splice(at..at, bits[random(bits.len())].iter().copied())),
                2 => {
                    let end = (at + random(40)).min(bytes.len());
                    drop(bytes.drain(at..end));
                }
                _ => {
                    let end = (at + random(60)).min(bytes.len());
                    let piece = bytes[at..end].to_vec();
                    let to = random(bytes.len());
                    drop(bytes.splice(to..to, piece));
                }
            }
        }
        match yaml::read(&bytes) {
            Ok(pools) if asks_dns(&pools) => continue,
            _ => {}
        }
        match parse(&bytes, "f.yml", &PoolConfig::default(), MEMORY) {
            Ok(pools) => good += usize::from(!pools.is_empty()),
            Err(Bad::Value(why) | Bad::World(why)) => {
                assert!(why.starts_with("f.yml:"), "{why}");
                wrong += 1;
            }
        }
    }
    assert!(good > 100 && wrong > 1000, "{good} good, {wrong} wrong");
}

/// True if a mutated host would be looked up, which a test must not do.
fn asks_dns(pools: &[yaml::Pool]) -> bool {
    let entries = pools.iter().flat_map(|p| &p.entries);
    entries.flat_map(items).any(|text| {
        let place = text.trim_matches(['[', ']']);
        !place.starts_with('/')
            && place.contains(':')
            && !place.starts_with("127.0.0.1:")
            && !place.starts_with("::1")
    })
}

/// The texts of an entry's value.
fn items(entry: &Entry) -> Vec<&str> {
    match &entry.value {
        Value::Empty => Vec::new(),
        Value::Scalar(text) => vec![text],
        Value::List(items) => items.iter().map(|i| i.text.as_str()).collect(),
    }
}

/// A pool of this name that listens at the first port and has its server at the second.
fn chained(name: &str, listen: u16, server: u16) -> String {
    format!(
        "{name}:\n  listen: 127.0.0.1:{listen}\n  servers:\n  - 10.0.0.1:1:1\n  - 127.0.0.1:{server}:1\n"
    )
}

#[test]
fn no_pool_asks_itself() {
    let error = |text: &str| match load_text(text) {
        Err(Bad::Value(why)) => why,
        other => panic!("{other:?}"),
    };
    let why = "listens there, so a request would go round for ever; name the memcached";
    let own = error(&chained("a", 1, 1));
    assert_eq!(
        own,
        format!("f.yml:5: pool a: servers: 127.0.0.1:1: pool a {why}")
    );
    let text = chained("a", 1, 2) + &chained("b", 2, 3) + &chained("c", 3, 2);
    // What leads into the circle is no part of it.
    let round = error(&text);
    assert_eq!(
        round,
        format!("f.yml:10: pool b: servers: 127.0.0.1:3: pool c {why}")
    );
    // A chain has an end.
    let chain = pools(&(chained("a", 1, 2) + &chained("b", 2, 3)));
    let warnings = check::warnings(&chain, &[]);
    let why =
        "pool b listens there, so a request passes magent twice; name that pool's servers instead";
    assert_eq!(warnings, [format!("pool a: servers: 127.0.0.1:2: {why}")]);
}

#[test]
fn a_value_fits_into_memory() {
    let text = "a:\n  listen: 127.0.0.1:1\n  max_value: 65m\n  servers:\n  - 127.0.0.1:2:1\n";
    let why = "f.yml:3: pool a: max_value: 65m: too large for -m 256m; start with -m 260m";
    assert_eq!(load_text(text), Err(Bad::Value(why.to_string())));
    assert!(load_text(&text.replace("65m", "64m")).is_ok());
}
