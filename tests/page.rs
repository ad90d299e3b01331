//! The page of the door in a real browser: Debian's chromium, driven by puppeteer. Not part of
//! `cargo test`, since few machines have it: `make interop` runs it. What the page looked like is in
//! `target/tmp/page`.

mod common;

use common::magent::free_port;
use common::time::wait_within;
use common::{Magent, Memcached, wait_for};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

struct Browser {
    child: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Browser {
    fn start() -> Browser {
        let top = Path::new(env!("CARGO_MANIFEST_DIR"));
        // Of `make interop`.
        let modules = std::env::var("PAGE_MODULES").expect("PAGE_MODULES: run `make interop`");
        let child = Command::new("node")
            .arg(top.join("tests/page/drive.cjs"))
            .env("NODE_PATH", modules)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut child = child.unwrap_or_else(|e| panic!("node: {e}; this test needs it"));
        Browser {
            commands: child.stdin.take(),
            answers: BufReader::new(child.stdout.take().expect("its output")),
            child,
        }
    }

    #[track_caller]
    fn tell(&mut self, command: &Value) -> Value {
        let commands = self.commands.as_mut().expect("its input");
        writeln!(commands, "{command}").expect("it reads");
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("its answer");
        let said: Value = serde_json::from_str(&line).expect("JSON");
        assert!(said.get("failed").is_none(), "{command}: {said}");
        said["answer"].clone()
    }

    #[track_caller]
    fn open(&mut self, magent: &Page, width: u32, dark: bool) {
        let url = magent.url();
        self.tell(&json!({"open": url, "width": width, "dark": dark}));
        self.wait("what is live", "!document.getElementById('live').hidden");
    }

    #[track_caller]
    fn eval(&mut self, expression: &str) -> Value {
        self.tell(&json!({ "eval": expression }))
    }

    /// The text of what a selector finds first.
    #[track_caller]
    fn text(&mut self, selector: &str) -> String {
        let text = self.eval(&format!("document.querySelector({selector:?}).textContent"));
        text.as_str().expect("text").to_string()
    }

    #[track_caller]
    fn wait(&mut self, what: &str, expression: &str) {
        wait_for(what, || (self.eval(expression) == true).then_some(()));
    }

    #[track_caller]
    fn shot(&mut self, name: &str) {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("page");
        std::fs::create_dir_all(&folder).expect("a folder");
        self.tell(&json!({"shot": folder.join(format!("{name}.png"))}));
    }

    /// Nothing went wrong, and nothing was asked of anybody else.
    #[track_caller]
    fn check(&mut self, magent: &Page) {
        let seen = self.tell(&json!({"seen": true}));
        assert_eq!(seen["errors"], json!([]));
        let urls = seen["requests"].as_array().expect("requests");
        assert!(urls.len() > 1, "{urls:?}");
        for url in urls {
            let url = url.as_str().expect("text");
            assert!(
                url.starts_with(&magent.url()) || url.starts_with("data:"),
                "{url}"
            );
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It ends with its input.
        self.commands = None;
        let _ = self.child.wait();
    }
}

/// One magent with a page.
struct Page {
    magent: Magent,
    port: u16,
}

impl Page {
    fn farm(primaries: &[Memcached], backups: &[Memcached]) -> Page {
        Page::with(primaries, backups, &[])
    }

    fn with(primaries: &[Memcached], backups: &[Memcached], more: &[&str]) -> Page {
        let port = free_port();
        let door = format!("127.0.0.1:{port}");
        let p: Vec<&str> = primaries.iter().map(|m| m.name.as_str()).collect();
        let b: Vec<&str> = backups.iter().map(|m| m.name.as_str()).collect();
        let options = [&["--admin", &door, "--retry", "100"], more].concat();
        let magent = Magent::farm(&p, &b, &options);
        Page { magent, port }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }
}

fn servers(n: usize) -> Vec<Memcached> {
    (0..n).map(|_| Memcached::start()).collect()
}

/// The state that the page shows of a server.
fn state(name: &str) -> String {
    format!(
        "[...document.querySelectorAll('#servers tr')].find((r) => r.textContent.includes({name:?})).querySelector('.pill').className"
    )
}

#[test]
fn it_shows_what_happens_and_renews_itself_in_place() {
    let (mut primaries, backups) = (servers(2), servers(1));
    let page = Page::farm(&primaries, &backups);
    let mut client = page.magent.client();
    let mut browser = Browser::start();
    browser.open(&page, 1400, false);
    assert_eq!(
        browser.eval("document.querySelectorAll('#servers tr').length"),
        3
    );
    assert_eq!(browser.text("#verdict"), "every key is answered");
    // Nodes that are there stay: nothing blinks.
    browser.eval("document.querySelectorAll('#figures > div, #pools figure, #servers tr').forEach((n) => { n.mark = 1; })");
    let requests = "document.querySelector('#figures dd span').textContent";
    assert_eq!(browser.eval(requests), "0");
    wait_for("requests a second", || {
        client.set("<script>window.hurt=1</script>", "x");
        (browser.eval(requests) != "0").then_some(())
    });
    browser.wait(
        "the hot key",
        "document.getElementById('hot').textContent.includes('<script>window.hurt=1</script>')",
    );
    assert_eq!(browser.eval("window.hurt === undefined"), true);
    let name = primaries[0].name.clone();
    assert_ne!(browser.eval(&state(&name)), "pill down");
    primaries[0].kill();
    page.magent.wait_state(&name, "down");
    // The page asks each second.
    wait_within(Duration::from_secs(2), "it to be red", || {
        (browser.eval(&state(&name)) == "pill down").then_some(())
    });
    assert_eq!(
        browser.text("#verdict"),
        "every key is answered, 1 server is down"
    );
    browser.wait(
        "the outage in the charts",
        "document.querySelectorAll('#pools rect.band').length === 3",
    );
    browser.wait(
        "the outage in its line",
        "document.querySelectorAll('#servers .strip i').length === 1",
    );
    browser.wait(
        "the log",
        &format!("document.getElementById('log').textContent.includes('{name}: down: ')"),
    );
    let why = browser
        .eval("[...document.querySelectorAll('#servers .why')].map((n) => n.textContent).join()");
    let why = why.as_str().expect("text");
    assert!(
        why.contains(": connection refused") || why.contains(": connection lost"),
        "{why}"
    );
    browser.shot("down");
    primaries[0].restart();
    page.magent.wait_state(&name, "warming");
    browser.wait(
        "it to be back",
        &format!("{} !== 'pill down'", state(&name)),
    );
    let marked = "[...document.querySelectorAll('#figures > div, #pools figure, #servers tr')].every((n) => n.mark === 1)";
    assert_eq!(browser.eval(marked), true);
    browser.check(&page);
}

#[test]
fn it_tells_who_answers_for_a_key() {
    let primaries = servers(2);
    let page = Page::farm(&primaries, &[]);
    let mut browser = Browser::start();
    browser.open(&page, 1400, true);
    for key in ["key1", "a key & more=1%"] {
        let route = page.magent.client().stats("stats route key1\r\n");
        browser.eval("document.getElementById('key').value = ''");
        browser.tell(&json!({"type": key, "into": "#key"}));
        browser.wait(
            "an answer",
            "document.getElementById('route').textContent.includes('answers.')",
        );
        let said = browser.text("#route");
        assert!(said.contains(" answers.primary127.0.0.1:"), "{said}");
        assert!(
            key != "key1" || said.starts_with(&route["answers"]),
            "{said} {route:?}"
        );
        browser.eval("document.getElementById('route').textContent = ''");
    }
    browser.check(&page);
}

#[test]
fn it_names_other_magents() {
    let server = servers(1);
    let page = Page::with(&server, &[], &[]);
    let other = Magent::farm(&[&server[0].name], &[], &[]);
    let (mut ours, mut theirs) = (page.magent.client(), other.client());
    let mut browser = Browser::start();
    browser.open(&page, 1400, false);
    let pid = format!(" {}", other.pid());
    wait_for("the other magent", || {
        ours.set("a", "x");
        theirs.set("b", "x");
        browser.text("#others").ends_with(&pid).then_some(())
    });
    browser.check(&page);
}

/// A page of somebody else's, in the same browser: it may not read, and nothing that it sends does anything.
#[test]
fn pages_of_others_reach_nothing() {
    let server = servers(1);
    let page = Page::farm(&server, &[]);
    let mut client = page.magent.client();
    client.set("k", "x");
    let stranger = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = stranger.local_addr().expect("its address").port();
    std::thread::spawn(move || {
        // Until the test ends.
        for mut stream in stranger.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let body = "<!doctype html><title>evil</title><form id=f method=post enctype=text/plain target=hidden>\
                        <textarea name='stats reset&#10;kill 0&#10;log debug&#10;'></textarea></form><iframe name=hidden></iframe>";
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            let _ = stream.write_all((head + body).as_bytes());
        }
    });
    let mut browser = Browser::start();
    browser
        .tell(&json!({"open": format!("http://127.0.0.1:{port}/"), "width": 800, "dark": false}));
    let door = page.url();
    for (how, init) in [
        ("page.json", "{}"),
        ("metrics", "{mode: 'no-cors'}"),
        (
            "",
            "{method: 'POST', mode: 'no-cors', body: 'stats reset\\r\\nkill 0\\r\\nlog debug\\r\\n'}",
        ),
        (
            "",
            "{method: 'POST', headers: {'X-Own': 'stats reset'}, body: 'kill 0\\n'}",
        ),
    ] {
        let fetch = format!(
            "fetch('{door}{how}', {init}).then((a) => a.text()).catch((e) => 'failed: ' + e.name)"
        );
        let got = browser.eval(&fetch);
        let got = got.as_str().expect("text");
        assert!(
            got.is_empty() || got.starts_with("failed: "),
            "{how} {init}: {got}"
        );
    }
    // A form needs no leave of anybody; TLS and WebSocket begin in their own ways.
    browser.eval(&format!(
        "document.getElementById('f').action = '{door}'; document.getElementById('f').submit()"
    ));
    let tls = door.replace("http:", "https:");
    browser.eval(&format!("fetch('{tls}').catch(() => 'failed')"));
    let socket = door.replace("http:", "ws:");
    let opened = format!(
        "new Promise((r) => {{ const s = new WebSocket('{socket}'); s.onopen = () => r('open'); s.onerror = () => r('failed'); }})"
    );
    assert_eq!(browser.eval(&opened), "failed");
    let framed = format!(
        "new Promise((r) => {{ const f = document.createElement('iframe'); f.onload = () => {{ \
         try {{ r(String(f.contentDocument && f.contentDocument.getElementById('figures'))); }} catch (e) {{ r('null'); }} }}; \
         f.src = '{door}'; document.body.append(f); }})"
    );
    assert_eq!(browser.eval(&framed), "null");
    client.ask("get k\r\n", "VALUE k 0 1\r\nx\r\nEND\r\n");
    assert!(
        !page.magent.log().contains("warn operator "),
        "{}",
        page.magent.log()
    );
    assert_eq!(page.magent.stat("cmd_set"), 1);
}

/// Colours of text against what is behind it, by the rules for people who see badly (WCAG 2, AA).
const CONTRASTS: &str = "(() => {
    const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
    const light = (c) => c.slice(0, 3).map((v) => v / 255).map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const ground = (n) => { const c = rgb(getComputedStyle(n).backgroundColor); return c.length > 3 && c[3] === 0 && n.parentElement ? ground(n.parentElement) : c; };
    const bad = [];
    for (const n of document.querySelectorAll('body *')) {
        if (!n.offsetParent || ![...n.childNodes].some((c) => c.nodeType === 3 && c.textContent.trim())) continue;
        const [a, b] = [light(rgb(getComputedStyle(n).color)), light(ground(n))];
        const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (contrast < 4.5) bad.push(n.tagName + '.' + n.className + ' ' + contrast.toFixed(2) + ' ' + n.textContent);
    }
    return bad;
})()";

#[test]
fn it_fits_phones_and_desks_by_day_and_by_night() {
    let (mut primaries, backups) = (servers(2), servers(1));
    let page = Page::farm(&primaries, &backups);
    let mut operator = page.magent.client();
    operator.set("user:1", "x");
    primaries[1].kill();
    page.magent.wait_state(&primaries[1].name, "down");
    let mut browser = Browser::start();
    let mut grounds = Vec::new();
    for width in [360, 768, 1400] {
        for dark in [false, true] {
            browser.open(&page, width, dark);
            browser.wait(
                "the log",
                "document.getElementById('log').children.length > 0",
            );
            browser.shot(&format!("{width}-{}", if dark { "dark" } else { "light" }));
            let wide = browser.eval("document.documentElement.scrollWidth");
            assert!(wide.as_u64() <= Some(width.into()), "{wide} of {width}");
            assert_eq!(browser.eval(CONTRASTS), json!([]), "{width} {dark}");
            grounds.push(browser.eval("getComputedStyle(document.body).backgroundColor"));
            browser.check(&page);
        }
    }
    assert_ne!(grounds[0], grounds[1]);
}

#[test]
fn without_scripts_it_is_a_table() {
    let primaries = servers(2);
    let page = Page::farm(&primaries, &[]);
    let mut browser = Browser::start();
    browser.tell(&json!({"open": page.url(), "width": 1000, "dark": false, "script": false}));
    browser.shot("table");
    let html = browser.eval("document.body.innerText");
    let html = html.as_str().expect("text");
    for server in &primaries {
        assert!(html.contains(&server.name), "{html}");
    }
    for word in ["Pools", "default", "Servers", "primary", "2 of 2"] {
        assert!(html.contains(word), "{word}: {html}");
    }
    assert!(!html.contains("Who answers"), "{html}");
    let seen = browser.tell(&json!({"seen": true}));
    assert_eq!(seen["errors"], json!([]));
}

#[test]
fn a_magent_that_says_nothing_is_noticed() {
    let page = Page::farm(&servers(1), &[]);
    let mut browser = Browser::start();
    browser.open(&page, 1400, false);
    assert_eq!(
        browser.eval("document.getElementById('silence').hidden"),
        true
    );
    page.magent.while_stopped(|| {
        browser.wait("the notice", "!document.getElementById('silence').hidden");
        let said = browser.text("#silence");
        assert!(said.starts_with("No answer since "), "{said}");
        browser.shot("silent");
    });
    browser.wait("it to be gone", "document.getElementById('silence').hidden");
}
