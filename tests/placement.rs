//! Placement against what was observed on the originals: every row and column of the vectors.

use magent::placement::{Distribution, Farm, FarmServer, FarmSpec, Hash};

/// Rows of a vector file: the column names, then each row's cells.
fn rows(text: &str) -> (Vec<&str>, Vec<Vec<&str>>) {
    let mut lines = text
        .lines()
        .filter(|l| !l.starts_with('#'))
        .map(|l| l.split('\t').collect());
    let head: Vec<&str> = lines.next().expect("a head line");
    let rows: Vec<Vec<&str>> = lines.collect();
    assert!(rows.iter().all(|r| r.len() == head.len()));
    (head, rows)
}

fn farm(servers: Vec<FarmServer>, hash: Hash, distribution: Distribution) -> FarmSpec {
    FarmSpec {
        servers,
        hash,
        distribution,
        hash_tag: None,
    }
}

fn server(hash_name: String, weight: u32) -> FarmServer {
    FarmServer { hash_name, weight }
}

#[test]
fn keys_go_where_magent_put_them() {
    let (head, rows) = rows(include_str!("vectors/magent.tsv"));
    assert_eq!(head, ["key", "djb", "ketama[a]", "ketama[b]", "ketama[c]"]);
    assert_eq!(rows.len(), 160);
    let local = |n: u32| server(format!("127.0.0.1-{}", 11210 + n), 1);
    let remote = |n: u32| server(format!("10.1.2.{n}-11211"), 1);
    let ketama = |s| Farm::new(farm(s, Hash::Magent, Distribution::MagentKetama), None);
    let rings = [
        ketama((1..=3).map(local).collect()),
        ketama((1..=2).map(remote).collect()),
        ketama((1..=47).map(remote).collect()),
    ];
    for row in &rows {
        let key = row[0].as_bytes();
        let djb: u32 = row[1].parse().expect("a number");
        for n in 1..=9u32 {
            let servers = (0..n)
                .map(|i| server(format!("127.0.0.1-{i}"), 1))
                .collect();
            let modulo = Farm::new(farm(servers, Hash::Magent, Distribution::Magent), None);
            assert_eq!(modulo.hash(key), djb, "{}", row[0]);
            assert_eq!(
                modulo.place(key, 0),
                (djb % n) as usize,
                "{} of {n}",
                row[0]
            );
        }
        for (ring, cell) in rings.iter().zip(&row[2..]) {
            assert_eq!(ring.place(key, 0).to_string(), *cell, "{}", row[0]);
        }
    }
}

/// The farm that a column's name stands for.
fn column(name: &str) -> FarmSpec {
    let parts: Vec<&str> = name.split('/').collect();
    let [hash, distribution, how] = parts[..] else {
        panic!("column {name}")
    };
    let hash = Hash::named(hash).expect("a hash");
    let distribution = Distribution::named(distribution).expect("a distribution");
    let plain = |i: usize| format!("127.0.0.1:{}", 21791 + i);
    let mut names: Vec<String> = (0..4).map(plain).collect();
    let mut weights = [1; 4];
    let mut tag = None;
    match how.split_once(' ') {
        None => assert_eq!(how, "eq"),
        Some(("weights", w)) => {
            for (slot, w) in weights.iter_mut().zip(w.split(',')) {
                *slot = w.parse().expect("a weight");
            }
        }
        Some(("names", n)) => names = n.split(',').map(str::to_string).collect(),
        Some(("hash_tag", t)) => tag = Some((t.as_bytes()[0], t.as_bytes()[1])),
        Some(_) => panic!("column {name}"),
    }
    let servers = names.into_iter().zip(weights).map(|(n, w)| server(n, w));
    let mut spec = farm(servers.collect(), hash, distribution);
    spec.hash_tag = tag;
    spec
}

#[test]
fn keys_go_where_twemproxy_put_them() {
    let (head, rows) = rows(include_str!("vectors/twemproxy.tsv"));
    assert_eq!((head.len(), rows.len()), (31, 126));
    for (at, name) in head.iter().enumerate().skip(1) {
        let farm = Farm::new(column(name), None);
        for row in &rows {
            let place = farm.place(row[0].as_bytes(), 0);
            assert_eq!(place.to_string(), row[at], "{name} {}", row[0]);
        }
    }
}
