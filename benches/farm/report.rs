//! The tables: medians over turns, ratios to twemproxy in the turn beside, the goals beside them,
//! and `docs/performance.md` with what people wrote around them.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::Result;
use crate::cases::{Figures, Measure, Measures, Outcome, Setup, Target};
use crate::chart;

/// Titles of the kinds of work that have a goal.
pub const ONE: &str = "one get at a time";
/// See [`ONE`].
pub const PIPELINED: &str = "16 gets pipelined";
/// See [`ONE`].
pub const MULTI: &str = "get of 32 keys";
/// See [`ONE`].
pub const SET: &str = "set";
/// See [`ONE`].
pub const LARGE: &str = "get of 64 KB values";
/// See [`ONE`]; magent keeps a backup, the others do not.
pub const MIRRORED: &str = "set, magent with one backup";
/// What sweeps vary.
pub const DEPTH: &str = "requests sent at once";
/// See [`DEPTH`].
pub const CLIENTS: &str = "clients";
/// See [`DEPTH`].
pub const SIZE: &str = "bytes of a value";
/// See [`DEPTH`].
pub const SERVERS: &str = "servers";
/// See [`DEPTH`]; a set with a backup.
pub const OTHERS_ONE: &str = "other magents, a set at a time";
/// See [`DEPTH`]; 16 sets with a backup.
pub const OTHERS_DEEP: &str = "other magents, 16 sets at once";
/// Titles of what is counted.
pub const CALLS_ONE: &str = "system calls, 50 clients, one get at a time, 4 servers";
/// See [`CALLS_ONE`].
pub const CALLS_DEEP: &str = "system calls, 16 clients, 32 gets at once, 4 servers";
/// Title of the weighing of idle clients.
pub const IDLE: &str = "bytes for each of 10,000 idle clients";

/// What stands between these two lines of the document is ours.
const BEGIN: &str = "<!-- bench: begin (written by `make bench`) -->";
const END: &str = "<!-- bench: end -->";

/// The document where there is none yet.
const NEW_DOCUMENT: &str = "# Performance\n\n\
    What magent costs, next to memcached asked directly and to twemproxy, on one machine in one run.\n\
    `make bench` writes the part between the two markers and the plot; the rest is written by hand.\n";

/// Above this share of one processor the load generator may be what limits the rate.
const SATURATED: f64 = 0.95;

/// The ratios of magent's processor time to twemproxy's that are asked for.
const CPU_GOALS: [(&str, f64); 6] = [
    (ONE, 0.65),
    (PIPELINED, 0.28),
    (MULTI, 0.50),
    (SET, 0.68),
    (LARGE, 0.70),
    (MIRRORED, 1.1),
];

/// Sweeps in which the cost of a request must stay flat, and how flat.
const GROWTH_GOALS: [(&str, f64); 4] = [
    (CLIENTS, 1.5),
    (SERVERS, 1.3),
    (OTHERS_ONE, 1.5),
    (OTHERS_DEEP, 1.5),
];

/// Everything that one run found.
pub struct Report {
    machine: Vec<(&'static str, String)>,
    quick: bool,
    /// The kinds of work with goals.
    pub headline: Vec<Outcome>,
    /// What is varied, and the outcome of each value.
    pub sweeps: Vec<(&'static str, Vec<Outcome>)>,
    /// System calls a request, in each round.
    pub calls: Vec<(String, Vec<Figures>)>,
    /// Bytes for an idle client.
    pub idle: Option<Figures>,
    /// The whole run.
    pub took: Duration,
}

/// The median, `None` of nothing.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    if values.len() % 2 == 1 {
        return Some(upper);
    }
    Some((values[middle - 1] + upper) / 2.0)
}

/// Where the median of what is measured lies with 95% probability, whatever its distribution: the
/// values as many places below and above the middle as heads may differ from half of the throws.
fn interval(mut values: Vec<f64>) -> Option<(f64, f64)> {
    values.sort_by(f64::total_cmp);
    let (half, off) = (
        values.len() as f64 / 2.0,
        0.98 * (values.len() as f64).sqrt(),
    );
    let (low, high) = ((half - off).floor(), (half + off).ceil());
    let low = values.get(low.max(1.0) as usize - 1)?;
    Some((*low, *values.get(high as usize - 1)?))
}

/// What the rounds found for `target`.
fn of_target(rounds: &[Figures], target: Target) -> Vec<f64> {
    rounds.iter().filter_map(|r| r[target as usize]).collect()
}

impl Outcome {
    /// The median over turns of `what` of `target`.
    pub fn median(&self, target: Target, what: impl Fn(&Measure) -> f64) -> Option<f64> {
        let turns = self.turns.iter().filter_map(|t| t[target as usize]);
        median(turns.map(|m| what(&m)).collect())
    }

    /// The median over turns of `target`'s `what` to twemproxy's in the turn beside it.
    pub fn ratio(&self, target: Target, what: impl Fn(&Measure) -> f64) -> Option<f64> {
        median(self.ratios(target, what))
    }

    /// The same of each turn.
    fn ratios(&self, target: Target, what: impl Fn(&Measure) -> f64) -> Vec<f64> {
        let pairs = self.turns.iter().filter_map(|t| {
            let twemproxy = t[Target::Twemproxy as usize]?;
            Some(what(&t[target as usize]?) / what(&twemproxy))
        });
        pairs.collect()
    }
}

/// What a request costs `target` in the dearest case of a sweep, to its first case and to its
/// cheapest. Costs are taken as multiples of the yardstick's in the turn beside: the machine's
/// speed changes from case to case.
fn growth(cases: &[Outcome], target: Target) -> Option<(f64, f64)> {
    let of_turn = |turn: &Measures| {
        let measure = turn[target as usize]?;
        Some(measure.cpu() / measure.yardstick?)
    };
    let of_case = |o: &Outcome| median(o.turns.iter().filter_map(of_turn).collect());
    let costs: Vec<f64> = cases.iter().map(of_case).collect::<Option<_>>()?;
    let dearest = costs.iter().copied().reduce(f64::max)?;
    let cheapest = costs.iter().copied().reduce(f64::min)?;
    Some((dearest / costs.first()?, dearest / cheapest))
}

/// `value` with three digits that count, or a dash.
fn show(value: Option<f64>) -> String {
    match value {
        None => "–".to_string(),
        Some(v) if v >= 1000.0 => {
            let digits = format!("{v:.0}");
            let groups: Vec<&[u8]> = digits.as_bytes().rchunks(3).rev().collect();
            String::from_utf8_lossy(&groups.join(&b',')).into_owned()
        }
        Some(v) if v >= 100.0 => format!("{v:.0}"),
        Some(v) if v >= 10.0 => format!("{v:.1}"),
        Some(v) if v >= 1.0 => format!("{v:.2}"),
        Some(v) => format!("{v:.3}"),
    }
}

/// Appends a table of markdown.
fn push_table(out: &mut String, head: &[&str], rows: &[Vec<String>]) {
    let _ = writeln!(out, "| {} |", head.join(" | "));
    let _ = writeln!(out, "|---{}", "|---:".repeat(head.len() - 1) + "|");
    for row in rows {
        let _ = writeln!(out, "| {} |", row.join(" | "));
    }
    out.push('\n');
}

/// The first line that a program says of its version.
fn version(program: &Path) -> String {
    let Ok(output) = Command::new(program).arg("-V").output() else {
        return "not found".to_string();
    };
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    said.lines().next().unwrap_or("says nothing").to_string()
}

/// A file's text without its line end; empty if it can't be read.
fn file_line(path: &str) -> String {
    fs::read_to_string(path)
        .unwrap_or_default()
        .trim()
        .to_string()
}

impl Report {
    /// Notes the machine and the versions; measures nothing yet.
    pub fn new(setup: &Setup, quick: bool) -> Result<Report> {
        let cpus = fs::read_to_string("/proc/cpuinfo")?;
        let model = cpus
            .lines()
            .find_map(|l| l.strip_prefix("model name")?.split_once(": "))
            .map_or("unknown", |(_, name)| name);
        let memory = fs::read_to_string("/proc/meminfo")?;
        let memory = memory.lines().next().unwrap_or("").replace("MemTotal:", "");
        let date = Command::new("date").args(["-u", "+%F"]).output()?.stdout;
        let processors = cpus.lines().filter(|l| l.starts_with("processor")).count();
        Ok(Report {
            machine: vec![
                ("date", String::from_utf8_lossy(&date).trim().to_string()),
                ("processors", format!("{processors} × {model}")),
                ("memory", memory.trim().to_string()),
                (
                    "kernel",
                    format!("Linux {}", file_line("/proc/sys/kernel/osrelease")),
                ),
                ("load at the start", file_line("/proc/loadavg")),
                ("memcached", version(Path::new("memcached"))),
                ("twemproxy", version(Path::new("nutcracker"))),
                ("magent", version(&setup.magent)),
            ],
            quick,
            headline: Vec::new(),
            sweeps: Vec::new(),
            calls: Vec::new(),
            idle: None,
            took: Duration::ZERO,
        })
    }

    fn find(&self, title: &str) -> Option<&Outcome> {
        self.headline.iter().find(|o| o.case.title == title)
    }

    /// All tables, as markdown.
    pub fn text(&self) -> String {
        let mut out = String::new();
        self.push_machine(&mut out);
        self.push_goals(&mut out);
        self.push_headline(&mut out);
        self.push_sweeps(&mut out);
        self.push_counts(&mut out);
        self.push_method(&mut out);
        out
    }

    fn push_machine(&self, out: &mut String) {
        out.push_str("## The machine\n\n");
        let row = |(name, value): &(&str, String)| vec![name.to_string(), value.clone()];
        let mut rows: Vec<Vec<String>> = self.machine.iter().map(row).collect();
        let kind = if self.quick {
            "quick, so rough"
        } else {
            "full"
        };
        rows.push(vec![
            "run".into(),
            format!("{kind}, {} s", self.took.as_secs()),
        ]);
        push_table(out, &["what", "this"], &rows);
    }

    fn push_goals(&self, out: &mut String) {
        out.push_str(
            "## Goals\n\nRatios are magent's figure to twemproxy's in the turn beside it; the noise of a \
             run leaves the medians of more runs within the interval, 19 times of 20.\n\n",
        );
        let mut rows = Vec::new();
        let mut push = |what: String, goal: f64, measured: Option<f64>, noise: String| {
            let met = match measured {
                None => "not measured",
                Some(m) if m <= goal => "met",
                Some(_) => "**not met**",
            };
            // One digit more than elsewhere: it must show on which side of the goal it is.
            let shown = measured.map_or("–".into(), |m| format!("{m:.3}"));
            rows.push(vec![what, format!("≤ {goal}"), shown, noise, met.into()]);
        };
        let mut push_ratios = |what: String, goal: f64, ratios: Vec<f64>| {
            let noise = interval(ratios.clone()).map(|(low, high)| format!("{low:.3} – {high:.3}"));
            push(what, goal, median(ratios), noise.unwrap_or_default());
        };
        for (title, goal) in CPU_GOALS {
            let ratios = self
                .find(title)
                .map(|o| o.ratios(Target::Magent, Measure::cpu));
            push_ratios(
                format!("processor time, {title}"),
                goal,
                ratios.unwrap_or_default(),
            );
        }
        for outcome in &self.headline {
            let title = &outcome.case.title;
            let ratios = outcome.ratios(Target::Magent, |m| m.p50);
            push_ratios(format!("median latency, {title}"), 1.0, ratios);
            let ratios = outcome.ratios(Target::Magent, |m| m.p99);
            push_ratios(format!("p99 latency, {title}"), 1.0, ratios);
        }
        let mut push = |what, goal, measured| push(what, goal, measured, String::new());
        for (title, goal) in [(CALLS_ONE, 2.3), (CALLS_DEEP, 0.15)] {
            let counted = self.calls.iter().find(|(t, _)| t == title);
            let magent = counted.and_then(|(_, rounds)| median(of_target(rounds, Target::Magent)));
            push(title.to_string(), goal, magent);
        }
        let idle = self.idle.and_then(|f| f[Target::Magent as usize]);
        push(IDLE.to_string(), 100.0, idle);
        for (title, goal) in GROWTH_GOALS {
            let sweep = self.sweeps.iter().find(|(name, _)| *name == title);
            let growth = sweep.and_then(|(_, cases)| growth(cases, Target::Magent));
            let what = format!("processor time, dearest number of {title} to fewest");
            push(what, goal, growth.map(|(fewest, _)| fewest));
            let what = format!("processor time, dearest number of {title} to cheapest");
            push(what, goal, growth.map(|(_, cheapest)| cheapest));
        }
        push_table(out, &["what", "goal", "measured", "interval", ""], &rows);
    }

    fn push_headline(&self, out: &mut String) {
        if self.headline.is_empty() {
            return;
        }
        out.push_str(
            "## Kinds of work\n\n2 memcacheds behind each proxy, 50 clients, 100-byte values unless \
             said otherwise. Times are microseconds; memory is the process' own peak in MB.\n\n",
        );
        let head = [
            "work",
            "requests/s",
            "CPU",
            "user",
            "system",
            "CPU ratio",
            "p50",
            "p99",
            "p99.9",
            "p50 ratio",
            "p99 ratio",
            "peak MB",
        ];
        for outcome in &self.headline {
            let mut rows = Vec::new();
            for target in Target::ALL {
                let m = |what: fn(&Measure) -> f64| show(outcome.median(target, what));
                let ratio = |what: fn(&Measure) -> f64| show(outcome.ratio(target, what));
                rows.push(vec![
                    target.name().to_string(),
                    m(|m| m.rate),
                    m(Measure::cpu),
                    m(|m| m.user),
                    m(|m| m.system),
                    ratio(Measure::cpu),
                    m(|m| m.p50),
                    m(|m| m.p99),
                    m(|m| m.p999),
                    ratio(|m| m.p50),
                    ratio(|m| m.p99),
                    m(|m| m.peak / f64::from(1 << 20)),
                ]);
            }
            let mut head = head;
            head[0] = &outcome.case.title;
            push_table(out, &head, &rows);
            self.push_own(out, outcome);
        }
    }

    /// What the load generator itself took, so that one sees whether it was the bottleneck.
    fn push_own(&self, out: &mut String, outcome: &Outcome) {
        let mut parts = Vec::new();
        for target in Target::ALL {
            if let Some(share) = outcome.median(target, |m| m.own_share) {
                let own = show(outcome.median(target, |m| m.own));
                let mark = if share > SATURATED {
                    " (**the bottleneck**)"
                } else {
                    ""
                };
                let percent = share * 100.0;
                parts.push(format!(
                    "{own} µs, {percent:.0}% of a processor{mark} ({})",
                    target.name()
                ));
            }
        }
        let _ = writeln!(out, "Load generator, a request: {}.\n", parts.join("; "));
    }

    fn push_sweeps(&self, out: &mut String) {
        for (name, outcomes) in &self.sweeps {
            let _ = writeln!(
                out,
                "## By {name}\n\nGets if nothing else is said; what is not varied is as above. CPU is microseconds a request, \
                 load is the generator's share of one processor.\n"
            );
            let head = [
                *name,
                "memcached CPU",
                "twemproxy CPU",
                "magent CPU",
                "ratio",
                "twemproxy req/s",
                "magent req/s",
                "twemproxy p99",
                "magent p99",
                "twemproxy MB",
                "magent MB",
                "load",
            ];
            let mut rows = Vec::new();
            for outcome in outcomes {
                let m = |t, what: fn(&Measure) -> f64| show(outcome.median(t, what));
                let mut row = vec![outcome.case.title.clone()];
                row.extend(Target::ALL.map(|t| m(t, Measure::cpu)));
                row.push(show(outcome.ratio(Target::Magent, Measure::cpu)));
                let figures: [fn(&Measure) -> f64; 3] =
                    [|m| m.rate, |m| m.p99, |m| m.peak / f64::from(1 << 20)];
                for what in figures {
                    row.extend([Target::Twemproxy, Target::Magent].map(|t| m(t, what)));
                }
                let shares = Target::ALL.map(|t| outcome.median(t, |m| m.own_share));
                let most = shares.into_iter().flatten().reduce(f64::max);
                row.push(most.map_or("–".into(), |s| format!("{:.0}%", s * 100.0)));
                rows.push(row);
            }
            push_table(out, &head, &rows);
            if !GROWTH_GOALS.iter().any(|(title, _)| title == name) {
                continue;
            }
            let shown = Target::ALL.iter().filter_map(|&target| {
                let (fewest, cheapest) = growth(outcomes, target)?;
                Some(format!("{} {fewest:.2} and {cheapest:.2}", target.name()))
            });
            let shown: Vec<String> = shown.collect();
            let _ = writeln!(
                out,
                "CPU of the dearest to that of the first, and to the cheapest, by the yardstick: {}.\n",
                shown.join(", ")
            );
        }
    }

    fn push_counts(&self, out: &mut String) {
        let mut rows = Vec::new();
        let idle = self.idle.map(|f| (IDLE.to_string(), vec![f]));
        for (title, rounds) in self.calls.iter().chain(&idle) {
            let mut row = vec![title.clone()];
            row.extend(Target::ALL.map(|t| show(median(of_target(rounds, t)))));
            let magent = of_target(rounds, Target::Magent);
            let least = magent.iter().copied().reduce(f64::min);
            let most = magent.iter().copied().reduce(f64::max);
            row.push(format!("{} – {}", show(least), show(most)));
            rows.push(row);
        }
        if !rows.is_empty() {
            out.push_str("## Counted\n\n");
            let range = "magent, least – most";
            push_table(
                out,
                &["what", "memcached", "twemproxy", "magent", range],
                &rows,
            );
        }
    }

    fn push_method(&self, out: &mut String) {
        out.push_str(
            "## How it is measured\n\n\
             - The targets take turns of 0.2 s (0.15 to 0.3 s in quick runs), in several farms one after \
             the other; figures are medians \
             over the turns, ratios medians of the ratios of turns beside each other. A shared machine's speed \
             changes within seconds, and by half: absolute figures drift with it.\n\
             - With 10,000 clients one target has all its turns before the next: its descriptors would not do \
             for all. In the sweeps a memcached that always has the same to do has a turn of 0.1 s after each \
             turn, as a yardstick; the goals for clients and servers compare costs as multiples of its.\n\
             - CPU is the process' own, from `/proc/PID/task/*/schedstat`; how it divides into user and system \
             comes from `/proc/PID/stat`, which is coarser.\n\
             - A client sends its requests in one write, waits for all answers, checks every byte of them, and \
             sends the next. All clients do so all the time. Before anything is measured each client has had 20 \
             answers on average: Linux acknowledges the first 16 segments of a connection by themselves where the \
             answer takes long (not in quick runs).\n\
             - System calls are counted by `strace -c` in runs of their own, of which the table \
             has the median. It slows the process down, so more events meet in one wait than without it; for all \
             alike.\n\
             - Idle clients were each served one hit, one after the other. Counted is anonymous memory; what \
             the kernel keeps for a socket is not in it.\n\
             - Both proxies use ketama with MD5 and one connection to each server; each memcached has one \
             worker thread.\n",
        );
    }

    /// Writes `docs/performance.md` and `docs/performance.svg` below `root`.
    pub fn write(&self, root: &Path) -> Result<()> {
        let docs = root.join("docs");
        fs::create_dir_all(&docs)?;
        fs::write(docs.join("performance.svg"), chart::draw(self))?;
        let path = docs.join("performance.md");
        let old = fs::read_to_string(&path).unwrap_or_else(|_| NEW_DOCUMENT.to_string());
        let plot = "![Processor time by kind of work and in each sweep](performance.svg)";
        let ours = format!("{BEGIN}\n\n{plot}\n\n{}\n{END}\n", self.text());
        fs::write(&path, replace_between_markers(&old, &ours))?;
        println!("wrote {} and performance.svg", path.display());
        Ok(())
    }
}

/// `old` with the part between the markers replaced by `ours`; without markers, `ours` goes to the end.
fn replace_between_markers(old: &str, ours: &str) -> String {
    let places = old.find(BEGIN).zip(old.find(END));
    match places {
        Some((begin, end)) if begin < end => {
            let after = old[end + END.len()..].trim_start_matches('\n');
            let gap = if after.is_empty() { "" } else { "\n" };
            format!("{}{ours}{gap}{after}", &old[..begin])
        }
        _ => format!("{}\n\n{ours}", old.trim_end()),
    }
}
