//! `cargo bench --bench farm`: memcached directly, twemproxy and magent, in turn, on the same
//! machine and the same work. See `benches/README.md`.
//!
//! ```text
//! load ──▶ memcached
//! load ──▶ twemproxy ──▶ ┐
//!                        ├ memcached × N
//! load ──▶ magent ─────▶ ┘
//! ```

mod cases;
mod chart;
mod data;
mod load;
mod procs;
mod report;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use cases::{Case, Outcome, PLAIN, Pace, Setup, Target};
use load::{Op, Work};
use procs::Workshop;
use report::Report;

/// Errors end the run; their text is for people.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// What the command line asks for.
struct Options {
    quick: bool,
    write: bool,
    only: Option<String>,
    setup: Setup,
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --all-targets` starts benches too, without this argument.
    if !args.iter().any(|a| a == "--bench") {
        println!("run me with: cargo bench --bench farm");
        return;
    }
    if let Err(e) = parse_options(&args).and_then(run) {
        eprintln!("bench: {e}");
        std::process::exit(1);
    }
}

fn parse_options(args: &[String]) -> Result<Options> {
    let mut table = getopts::Options::new();
    table.optflag("", "bench", "given by cargo");
    table.optflag("", "quick", "short rounds, few points; as QUICK=1 does");
    table.optflag(
        "",
        "write",
        "write docs/performance.* after a quick run too",
    );
    table.optopt("", "only", "only what has TEXT in its title", "TEXT");
    table.optmulti(
        "",
        "without",
        "leave one out: memcached, twemproxy, magent",
        "NAME",
    );
    table.optopt("", "magent", "measure this program", "PATH");
    let given = table
        .parse(args)
        .map_err(|e| format!("{e}{}", table.usage("")))?;
    let without = given.opt_strs("without");
    if let Some(name) = without
        .iter()
        .find(|w| !Target::ALL.iter().any(|t| t.name() == *w))
    {
        return Err(format!("--without {name}: no such target").into());
    }
    let mut targets = Target::ALL.to_vec();
    targets.retain(|t| !without.iter().any(|w| w == t.name()));
    let only = given.opt_str("only");
    let quick = given.opt_present("quick") || std::env::var("QUICK").is_ok_and(|v| v == "1");
    let whole = only.is_none() && without.is_empty();
    let program = given.opt_str("magent");
    Ok(Options {
        quick,
        write: whole && (!quick || given.opt_present("write")),
        only,
        setup: Setup {
            workshop: Workshop::new(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench"))?,
            magent: PathBuf::from(program.as_deref().unwrap_or(env!("CARGO_BIN_EXE_magent"))),
            targets,
        },
    })
}

/// The kinds of work that the goals are set for.
fn headline() -> Vec<Case> {
    let get = |keys| Work {
        op: Op::Get(keys),
        ..PLAIN
    };
    let set = Work {
        op: Op::Set,
        ..PLAIN
    };
    let large = |work| Work {
        size: 64 * 1024,
        ..work
    };
    let mut mirrored = Case::new(report::MIRRORED, set);
    mirrored.backups = 1;
    vec![
        Case::new(report::ONE, get(1)),
        Case::new(report::PIPELINED, Work { depth: 16, ..PLAIN }),
        Case::new(report::MULTI, get(32)),
        Case::new(report::SET, set),
        Case::new(report::LARGE, large(get(1))),
        Case::new("set of 64 KB values", large(set)),
        mirrored,
    ]
}

/// A sweep: what is varied, and each value's case.
fn sweeps(quick: bool) -> Vec<(&'static str, Vec<Case>)> {
    let pick = |all: &[usize], few: &[usize]| if quick { few } else { all }.to_vec();
    let depths = pick(&[1, 2, 4, 8, 16, 32, 64], &[1, 16, 64]);
    let clients = pick(&[10, 50, 100, 1000, 10_000], &[10, 1000, 10_000]);
    let sizes = pick(
        &[
            100,
            1 << 10,
            4 << 10,
            16 << 10,
            64 << 10,
            256 << 10,
            1 << 20,
        ],
        &[100, 64 << 10, 1 << 20],
    );
    let servers = pick(&[2, 4, 8, 16, 32, 64], &[2, 64]);
    let case = |n: usize, work| Case::new(n.to_string(), work);
    let others = |depth| {
        let work = Work {
            op: Op::Set,
            depth,
            ..PLAIN
        };
        let with = |others| Case {
            backups: 1,
            others,
            ..case(others, work)
        };
        vec![with(0), with(1)]
    };
    vec![
        (
            report::DEPTH,
            depths
                .iter()
                .map(|&depth| case(depth, Work { depth, ..PLAIN }))
                .collect(),
        ),
        (
            report::CLIENTS,
            clients
                .iter()
                .map(|&clients| case(clients, Work { clients, ..PLAIN }))
                .collect(),
        ),
        (
            report::SIZE,
            sizes
                .iter()
                .map(|&size| case(size, Work { size, ..PLAIN }))
                .collect(),
        ),
        (
            report::SERVERS,
            // Enough clients that each of 64 servers has several requests in flight: a proxy's
            // calls to a server are shared by what is in flight there.
            servers
                .iter()
                .map(|&n| {
                    let work = Work {
                        clients: 10_000,
                        ..PLAIN
                    };
                    case(n, work).servers(n)
                })
                .collect(),
        ),
        (report::OTHERS_ONE, others(1)),
        (report::OTHERS_DEEP, others(16)),
    ]
}

/// The two kinds of work whose system calls have a goal.
fn call_cases() -> Vec<Case> {
    let deep = Work {
        clients: 16,
        depth: 32,
        ..PLAIN
    };
    vec![
        Case::new(report::CALLS_ONE, PLAIN).servers(4),
        Case::new(report::CALLS_DEEP, deep).servers(4),
    ]
}

fn run(mut options: Options) -> Result<()> {
    let start = Instant::now();
    raise_descriptor_limit()?;
    let millis = Duration::from_millis;
    let pace = |rounds, warm, (turns, time), yardstick| Pace {
        rounds,
        warm: millis(warm),
        exchanges: if options.quick { 0 } else { 20 },
        turns,
        time: millis(time),
        yardstick: millis(yardstick),
    };
    let (long, sweep, counts, strace) = if options.quick {
        let sweep = pace(1, 100, (1, 300), 100);
        (pace(1, 100, (4, 150), 0), sweep, 3, millis(200))
    } else {
        let sweep = pace(3, 200, (4, 200), 100);
        (pace(7, 300, (16, 200), 0), sweep, 7, millis(1500))
    };
    let mut report = Report::new(&options.setup, options.quick)?;
    let only = options.only.take();
    let wanted = |title: &str| {
        only.as_ref()
            .is_none_or(|text| title.contains(text.as_str()))
    };
    let setup = &mut options.setup;
    let mut cases = headline();
    cases.retain(|case| wanted(&case.title));
    report.headline = measure(setup, "", cases, long)?;
    for (name, cases) in sweeps(options.quick) {
        if wanted(name) {
            let outcomes = measure(setup, name, cases, sweep)?;
            report.sweeps.push((name, outcomes));
        }
    }
    for case in call_cases() {
        if wanted(&case.title) {
            eprintln!("{} …", case.title);
            let rounds = (0..counts).map(|_| cases::count_calls(setup, &case, strace));
            let rounds = rounds.collect::<Result<Vec<_>>>()?;
            report.calls.push((case.title.clone(), rounds));
        }
    }
    if wanted(report::IDLE) {
        eprintln!("{} …", report::IDLE);
        let work = Work {
            clients: 10_000,
            ..PLAIN
        };
        report.idle = Some(cases::weigh_idle(setup, &Case::new(report::IDLE, work))?);
    }
    report.took = start.elapsed();
    println!("{}", report.text());
    if options.write {
        report.write(Path::new(env!("CARGO_MANIFEST_DIR")))?;
    }
    Ok(())
}

/// All cases have their turn in each round: what the machine does meanwhile meets all alike.
fn measure(setup: &mut Setup, sweep: &str, cases: Vec<Case>, pace: Pace) -> Result<Vec<Outcome>> {
    let mut outcomes: Vec<Outcome> = cases.into_iter().map(Outcome::new).collect();
    for round in 1..=pace.rounds {
        for outcome in &mut outcomes {
            let title = format!("{sweep} {}", outcome.case.title).trim().to_string();
            eprintln!("{title}, round {round} of {} …", pace.rounds);
            let measures = cases::run(setup, &outcome.case, pace);
            outcome
                .turns
                .extend(measures.map_err(|e| format!("{title}: {e}"))?);
        }
    }
    Ok(outcomes)
}

/// Ten thousand clients need as many descriptors here, and in each child.
fn raise_descriptor_limit() -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let needed = 12_000;
    if soft < needed {
        setrlimit(Resource::RLIMIT_NOFILE, hard.min(20_000), hard)?;
    }
    if hard < needed {
        return Err(format!("needs {needed} descriptors; `ulimit -Hn` is {hard}").into());
    }
    Ok(())
}
