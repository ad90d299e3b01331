//! What the page is made of, and what it asks for. In a browser it is looked at by `make interop`.

use super::common::magent::farm;
use super::common::{Magent, wait_for};
use super::http::{Answer, answer, get};
use super::{DOOR, with_door};
use serde_json::{Value, json};

fn page(magent: &Magent) -> Answer {
    let all = get(&mut magent.operator(), "/");
    assert_eq!(all.status, 200);
    all
}

fn read(magent: &Magent, path: &str) -> Value {
    let all = get(&mut magent.operator(), path);
    assert_eq!(
        (all.status, all.fields["content-type"].as_str()),
        (200, "application/json; charset=utf-8")
    );
    serde_json::from_str(&all.body).expect("JSON")
}

#[test]
fn the_page_is_whole_and_needs_nothing_from_elsewhere() {
    let magent = with_door(&[]);
    let all = page(&magent);
    assert_eq!(all.fields["content-type"], "text/html; charset=utf-8");
    let policy = &all.fields["content-security-policy"];
    assert!(policy.starts_with("default-src 'none'; "), "{policy}");
    let html = &all.body;
    assert!(html.starts_with("<!doctype html>") && html.ends_with("</html>\n"));
    for foreign in [" src=", "@import", "url(", "https:", "//cdn"] {
        assert!(!html.contains(foreign), "{foreign}");
    }
    // But for the name of SVG's elements, which nobody asks for.
    assert_eq!(
        html.matches("http:").count(),
        html.matches("http://www.w3.org/2000/svg").count()
    );
    assert!(html.len() < 64 * 1024, "{}", html.len());
    let mut client = magent.operator();
    client.send("HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(answer(&mut client, false).status, 200);
    client.send("GET / HTTP/1.0\r\n\r\n");
    assert_eq!(answer(&mut client, true).body.matches("</html>").count(), 1);
}

/// Names of a configuration are no tags.
#[test]
fn the_table_has_pools_and_servers() {
    let magent = Magent::with_file(
        "\"<b>&amp\":\n  listen: 127.0.0.1:PORT\n  servers:\n  - 127.0.0.1:1:1\n  backups:\n  - 127.0.0.1:2:1\n",
    );
    magent.wait_state("127.0.0.1:1", "down");
    let html = page(&magent).body;
    let table = html.split("<noscript>").last().expect("the table");
    for row in [
        "<td class=\"title name\">&lt;b&gt;&amp;amp</td><td data-label=\"primaries up\">0 of 1<",
        "<td class=\"title name\">127.0.0.1:1</td><td class=\"state\"><span class=\"pill down\">down</span></td>",
        "<td data-label=\"last error\">connection refused</td>",
    ] {
        assert!(table.contains(row), "{row}: {table}");
    }
    assert!(!html.contains("<b>&"));
}

#[test]
fn the_page_is_told_what_changes() {
    let (magent, mut servers) = farm(true, &DOOR);
    let mut client = magent.client();
    client.set("k<\"\\", "x");
    servers[0].kill();
    magent.wait_state(&servers[0].name, "down");
    let all = read(&magent, "/page.json");
    assert_eq!(all["unanswered"], json!([]));
    assert_eq!(all["hot"][0]["key"], "k<\"\\\\");
    let pool = &all["pools"][0];
    let names: Vec<String> = servers.iter().map(|s| s.name.clone()).collect();
    assert_eq!(pool["members"], json!(names));
    let down = &all["servers"][0];
    assert_eq!(
        (&down["name"], &down["state"]),
        (&json!(names[0]), &json!("down"))
    );
    assert_eq!(down["outages"][0]["from"], down["since"]);
    assert!(down["outages"][0].get("to").is_none());
    let log = all["log"].as_array().expect("lines");
    let line = log
        .iter()
        .find(|l| l["text"].as_str().is_some_and(|t| t.contains(": down: ")));
    let line = line.unwrap_or_else(|| panic!("{log:?}"));
    assert_eq!(line["level"], "warn");
    assert!(line["text"].as_str().expect("text").contains(&names[0]));
    servers[0].restart();
    magent.wait_state(&names[0], "warming");
    let outage = read(&magent, "/page.json")["servers"][0]["outages"][0].clone();
    assert!(outage["to"].as_u64() >= outage["from"].as_u64(), "{outage}");
    assert_eq!(outage["why"], down["outages"][0]["why"]);
    // Monitors are not told: their own history is longer.
    let stats = read(&magent, "/stats.json");
    assert!(stats.get("log").is_none() && stats["pools"][0].get("history").is_none());
}

/// A step is five seconds.
#[test]
fn the_last_minutes_are_kept() {
    let (magent, _servers) = farm(false, &DOOR);
    let mut client = magent.client();
    client.set("k", "x").get("k");
    client.ask("get absent\r\n", "END\r\n");
    let all = wait_for("a step to end", || {
        let all = read(&magent, "/page.json");
        let answers = all["pools"][0]["history"]["answers"]
            .as_array()
            .expect("a list")
            .clone();
        answers.contains(&json!(3)).then_some(all)
    });
    let history = &all["pools"][0]["history"];
    assert_eq!(all["history_step"], 5);
    let (end, now) = (all["history_end"].as_u64(), all["magent"]["time"].as_u64());
    assert!(end <= now && end.map(|e| e + 10) > now, "{end:?} {now:?}");
    for (name, value) in [("hits", 1), ("misses", 1), ("errors", 0)] {
        let sum: u64 = history[name]
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(Value::as_u64)
            .sum();
        assert_eq!(sum, value, "{name}: {history}");
    }
    for name in ["p50_us", "p99_us"] {
        assert!(
            history[name]
                .as_array()
                .expect("a list")
                .iter()
                .any(|n| n.as_u64() > Some(0)),
            "{history}"
        );
    }
}

#[test]
fn routes_are_told_for_any_key() {
    let (magent, _servers) = farm(true, &DOOR);
    let all = read(&magent, "/route.json?key=a%20b%26%C3%BC");
    let route = &all[0];
    assert_eq!(
        (&route["key"], &route["pool"]),
        (&json!("a b&ü"), &json!("default"))
    );
    assert_eq!(route["answers"], route["primary"]);
    let stats = magent.client().stats("stats route key1\r\n");
    assert_eq!(read(&magent, "/route.json?x=y&key=key1")[0], json!(stats));
    for wrong in [
        "/route.json",
        "/route.json?key=",
        "/route.json?key=%zz",
        "/route.json?yek=a",
    ] {
        assert_eq!(get(&mut magent.operator(), wrong).status, 404, "{wrong}");
    }
}
