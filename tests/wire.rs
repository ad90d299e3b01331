//! What a magent says to a backup about the primary that it stands in for, byte by byte and write by write, on a
//! real link. `marks` has what memcached makes of it.

mod common;

use common::fake::data_len;
use common::time::look_within;
use common::wire::Chunk;
use common::{Client, Magent, Memcached, Wire, wait_for};
use magent::marks::{Id, bytes};
use std::time::{Duration, Instant};

/// The list, and the beacon.
const LIST: &str = "AG1hZ2VudC9h";
const BEACON: &str = "AG1hZ2VudC9i";

/// Whom the test plays.
const OTHER: &str = "00112233aabbccdd";

/// A magent before a primary and a backup, and a wire to the backup.
struct Story {
    magent: Magent,
    primary: Memcached,
    backup: Memcached,
    wire: Wire,
}

impl Story {
    fn new() -> Story {
        let (primary, backup) = (Memcached::start(), Memcached::start());
        let wire = Wire::to(&backup);
        let options = ["--retry", "100"];
        let magent = Magent::farm(&[&primary.name], &[&wire.name], &options);
        let story = Story {
            magent,
            primary,
            backup,
            wire,
        };
        story.magent.client().set("k", "old");
        story.backup.wait_value("k", Some(b"old"));
        story
    }

    /// One in which the backup is used in the primary's place.
    fn replaced() -> Story {
        let mut story = Story::new();
        story.primary.kill();
        story.wait_set("new");
        story
    }

    /// Waits until a value is stored.
    #[track_caller]
    fn wait_set(&self, value: &str) {
        let mut client = self.magent.client();
        let set = format!("set k 0 0 {}\r\n{value}\r\n", value.len());
        wait_for("a value to be stored", || {
            (client.ask_line(&set) == "STORED").then_some(())
        });
    }

    /// All requests of the first link so far.
    fn requests(&self) -> Vec<String> {
        let first = self.wire.chunks(0).into_iter().filter(|c| c.link == 0);
        let text: String = first.map(|c| c.text).collect();
        split(&text)
    }

    /// Waits for a request that begins so, the first one behind `from` of them; its place.
    #[track_caller]
    fn wait_request(&self, from: usize, start: &str) -> usize {
        wait_for(&format!("{start:?} to be asked"), || {
            let found = self.requests()[from..]
                .iter()
                .position(|r| r.starts_with(start));
            found.map(|at| from + at)
        })
    }

    /// The id of the magent, of which this is the announcement.
    fn id(&self) -> String {
        let start = format!("ms {LIST} 34 b MA\r\n");
        let requests = self.requests();
        let mut lines = requests.iter().filter_map(|r| {
            let len = r.split(' ').nth(2)?;
            r.strip_prefix(&start.replace("34", len))
        });
        let id = lines.next().expect("its line")[..16].to_string();
        assert!(Id::parse(id.as_bytes()).is_some(), "{id}");
        id
    }

    /// The line of a magent about the primary.
    fn line(&self, id: &str) -> String {
        format!("{id} {}\n", self.primary.name)
    }

    /// The key of a magent's hold on it.
    fn hold_key(&self, id: &str) -> String {
        let id = Id::parse(id.as_bytes()).expect("an id");
        let key = bytes::hold_key(id, self.primary.name.as_bytes());
        String::from_utf8(key).expect("base64")
    }

    /// The request that writes the hold of the magent.
    fn hold(&self, digit: u8) -> String {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("its name");
        let value = format!("{digit} {} {}", host.trim_end(), self.magent.pid());
        let (key, len) = (self.hold_key(&self.id()), value.len());
        format!("ms {key} {len} b T10\r\n{value}\r\n")
    }

    /// The test plays another magent that keeps the primary away.
    fn append_other(&self) {
        let line = self.line(OTHER);
        self.backup.client().ask(
            format!("ms {LIST} {} b MA\r\n{line}\r\n", line.len()),
            "HD\r\n",
        );
    }

    /// Its hold says that the primary answers it.
    fn hold_other(&self, client: &mut Client) {
        let key = self.hold_key(OTHER);
        client.ask(format!("ms {key} 11 b T10\r\n0 web2 4711\r\n"), "HD\r\n");
    }

    /// The cas number of the list.
    fn cas(&self) -> u64 {
        let answer = self.backup.client().ask_line(format!("mg {LIST} b c\r\n"));
        let cas = answer.strip_prefix("HD c").and_then(|cas| cas.parse().ok());
        cas.unwrap_or_else(|| panic!("a cas number in {answer:?}"))
    }
}

/// The requests in a text, each with its data.
fn split(mut text: &str) -> Vec<String> {
    let mut all = Vec::new();
    while let Some(end) = text.find("\r\n") {
        let data = data_len(&text.as_bytes()[..end]).unwrap_or(0);
        let len = (end + 2 + data).min(text.len());
        all.push(text[..len].to_string());
        text = &text[len..];
    }
    all
}

fn about_the_list(requests: &[String]) -> Vec<&str> {
    let all = requests.iter().filter(|r| r.contains(LIST));
    all.map(String::as_str).collect()
}

/// The list is read until that is answered. As long as there is none, looks ask for nothing else.
#[test]
fn looks_at_a_list_that_is_not_there_are_no_gets() {
    let story = Story::new();
    let mut client = story.magent.client();
    let (read, look) = (format!("mg {LIST} b v c\r\n"), format!("me {LIST} b b\r\n"));
    let count = || story.requests().iter().filter(|r| **r == look).count();
    wait_for("some looks", || {
        client.get("k");
        (count() >= 5).then_some(())
    });
    let requests = story.requests();
    let asked = about_the_list(&requests);
    let reads = asked.iter().take_while(|r| **r == read).count();
    assert!(reads > 0, "{asked:?}");
    assert!(asked[reads..].iter().all(|r| *r == look), "{asked:?}");
}

/// Loses the primary while a mirror is not answered; the number of chunks before. Who has not answered for the
/// length of a lease is told nothing, so on a machine that is busy it may take several tries.
#[track_caller]
fn announced_behind_a_mirror(story: &mut Story) -> usize {
    for _ in 0..20 {
        let from = story.wire.count();
        story.wire.hold_answers();
        story.magent.client().set("k", "new");
        story.wire.wait_chunk(from, "set k 0 0 3\r\nnew\r\n");
        story.primary.kill();
        let mut client = story.magent.client();
        client.send("get k\r\n");
        let start = format!("ms {LIST} ");
        let is_announced = || {
            let chunks = story.wire.chunks(from);
            chunks.iter().any(|c| c.text.contains(&start)).then_some(())
        };
        if look_within(Duration::from_millis(500), is_announced).is_some() {
            return from;
        }
        story.wire.release_all();
        client.read_line();
        story.primary.restart();
        story.wait_set("old");
        story.primary.wait_value("k", Some(b"old"));
    }
    panic!("never announced while a mirror was under way");
}

/// All of it in one write, behind mirrors that are under way.
#[test]
fn a_line_is_announced_in_one_write_behind_mirrors() {
    let mut story = Story::new();
    let from = announced_behind_a_mirror(&mut story);
    let line = story.line(&story.id());
    let want = format!(
        "ms {LIST} 0 b ME\r\n\r\n\
         ms {LIST} {} b MA\r\n{line}\r\n\
         {}\
         me {BEACON} b b\r\n\
         mg {LIST} b v c\r\n",
        line.len(),
        story.hold(1)
    );
    let chunks = story.wire.chunks(from);
    let place = |what: &str| chunks.iter().position(|c| c.text.contains(what));
    let (mirror, announced) = (place("set k 0 0 3\r\nnew\r\n"), place(&want));
    assert!(announced.is_some(), "{chunks:?}, not {want:?}");
    assert!(mirror <= announced, "{chunks:?}");
    for at in [mirror, announced].into_iter().flatten() {
        assert_eq!(chunks[at].link, 0, "{chunks:?}");
    }
    // The mirror is answered only now.
    assert_ne!(story.magent.server(&story.wire.name)["in_flight"], "0");
    story.wire.release_all();
    story.wait_set("newer");
    story.backup.wait_value("k", Some(b"newer"));
}

/// When so many chunks came that contain this.
#[track_caller]
fn times(story: &Story, what: &str, count: usize) -> Vec<Instant> {
    wait_for(&format!("{count} × {what:?}"), || {
        let chunks = story.wire.chunks(0);
        let with = |c: &Chunk| c.text.contains(what).then_some(c.at);
        let times: Vec<Instant> = chunks.iter().filter_map(with).collect();
        (times.len() >= count).then_some(times)
    })
}

#[test]
fn a_hold_is_renewed_each_second_and_the_last_line_is_deleted() {
    let mut story = Story::replaced();
    let (away, here) = (story.hold(1), story.hold(0));
    let times = times(&story, &away, 4);
    for two in times.windows(2) {
        let between = two[1] - two[0];
        let bounds = Duration::from_millis(900)..Duration::from_secs(5);
        assert!(bounds.contains(&between), "{times:?}");
    }
    let requests = story.requests();
    assert!(!requests.contains(&here), "{requests:?}");
    let (from, cas) = (requests.len(), story.cas());
    story.primary.restart();
    let out = story.wait_request(from, &format!("md {LIST} "));
    let hold_out = story.wait_request(from, "md AG1hZ2VudC9oL");
    let requests = story.requests();
    let answers = requests[from..].iter().position(|r| *r == here);
    assert!(answers.is_some_and(|at| from + at < out), "{requests:?}");
    assert_eq!(requests[out], format!("md {LIST} b C{cas}\r\n"));
    let key = story.hold_key(&story.id());
    assert_eq!(requests[hold_out], format!("md {key} b\r\n"));
    assert!(out < hold_out, "{requests:?}");
    // Nothing of it stays.
    let mut client = story.backup.client();
    for key in [LIST, &key] {
        wait_for("what was announced to be gone", || {
            (client.ask_line(format!("mg {key} b v\r\n")) == "EN").then_some(())
        });
    }
}

/// A list that stays as it is is read once, and then only looked at.
#[test]
fn looks_at_a_list_that_stays_are_no_gets() {
    let story = Story::replaced();
    let start = format!("mg {LIST} b v c\r\n");
    let read = || story.requests().iter().filter(|r| **r == start).count();
    let gets = || story.backup.stat("cmd_get");
    times(&story, &story.hold(1), 2);
    let before = (read(), gets());
    times(&story, &story.hold(1), 3);
    assert_eq!((read(), gets()), before);
}

/// Another one stays listed: the list is written back without the own line.
#[test]
fn a_line_among_others_is_taken_out_by_writing_the_list_back() {
    let mut story = Story::replaced();
    let mut client = story.backup.client();
    story.hold_other(&mut client);
    story.append_other();
    let (from, cas) = (story.requests().len(), story.cas());
    let other = story.hold_key(OTHER);
    // Its hold is read once, and looked at from then on.
    story.wait_request(from, &format!("mg {other} b v c\r\n"));
    story.primary.restart();
    let rest = story.line(OTHER);
    let start = format!("ms {LIST} ");
    let out = wait_for("the line to be out", || {
        story.hold_other(&mut client);
        let requests = story.requests();
        let found = requests[from..].iter().position(|r| r.starts_with(&start));
        found.map(|at| from + at)
    });
    let want = format!("ms {LIST} {} b C{cas} c\r\n{rest}\r\n", rest.len());
    assert_eq!(story.requests()[out], want);
    let key = story.hold_key(&story.id());
    story.wait_request(out, &format!("md {key} b\r\n"));
    // It goes by itself too, and the primary is used.
    client.send(format!("md {LIST} b\r\n")).read_line();
    story.wait_set("newer");
    story.primary.wait_value("k", Some(b"newer"));
}

/// Who has no hold is dead: its line is exchanged for the own one, and the primary is flushed.
#[test]
fn a_line_without_a_hold_is_taken_over_in_one_write() {
    let mut story = Story::replaced();
    story.append_other();
    let (from, cas) = (story.wire.count(), story.cas());
    story.primary.restart();
    let taken = story.wire.wait_chunk(from, &format!("ms {LIST} "));
    let line = story.line(&story.id());
    let want = format!(
        "ms {LIST} {} b C{cas} c\r\n{line}\r\n{}",
        line.len(),
        story.hold(0)
    );
    assert!(taken.text.contains(&want), "{taken:?}, not {want:?}");
    let cas = story.cas();
    story
        .wire
        .wait_chunk(from, &format!("md {LIST} b C{cas}\r\n"));
    assert_eq!(story.primary.stat("cmd_flush"), 1);
    let asked = format!("mg {} b v c\r\n", story.hold_key(OTHER));
    story.wire.wait_chunk(0, &asked);
}
