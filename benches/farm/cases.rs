//! What is measured, and one farm to measure it on: memcacheds, one of them asked directly, and
//! the proxies before the others.

use std::path::PathBuf;
use std::time::Duration;

use crate::Result;
use crate::data::Data;
use crate::load::{Load, Op, Work};
use crate::procs::{Process, Workshop, look, stats};

/// Who answers the load generator.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// One memcached, without a proxy.
    Memcached,
    /// Debian's nutcracker.
    Twemproxy,
    /// Ours.
    Magent,
}

impl Target {
    /// All, in the order in which they take turns.
    pub const ALL: [Target; 3] = [Target::Memcached, Target::Twemproxy, Target::Magent];

    /// Its name in tables and options.
    pub fn name(self) -> &'static str {
        match self {
            Target::Memcached => "memcached",
            Target::Twemproxy => "twemproxy",
            Target::Magent => "magent",
        }
    }
}

/// One kind of work on one farm.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Case {
    /// Its name in tables.
    pub title: String,
    /// What clients do.
    pub work: Work,
    /// Primaries behind the proxies.
    pub servers: usize,
    /// Backups behind magent; twemproxy knows none.
    pub backups: usize,
    /// Other magents over the same servers.
    pub others: usize,
}

/// The work that everything else is a variation of.
pub const PLAIN: Work = Work {
    op: Op::Get(1),
    clients: 50,
    depth: 1,
    size: 100,
};

impl Case {
    /// `work` on two servers.
    pub fn new(title: impl Into<String>, work: Work) -> Case {
        Case {
            title: title.into(),
            work,
            servers: 2,
            backups: 0,
            others: 0,
        }
    }

    /// The same on so many servers.
    pub fn servers(mut self, servers: usize) -> Case {
        self.servers = servers;
        self
    }
}

/// How long and how often.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Farms, one after the other.
    pub rounds: usize,
    /// Unmeasured time at the start of a target's load.
    pub warm: Duration,
    /// Batches that each client has had answered, on average, before anything is measured. Linux
    /// acknowledges the first 16 segments of a connection by themselves where the answer takes
    /// long (`TCP_MAX_QUICKACKS`): with very many clients a short turn would measure little else.
    pub exchanges: u64,
    /// Turns of each target in a round. They alternate: a shared machine's speed changes within
    /// seconds, and by half.
    pub turns: usize,
    /// Measured time of a turn.
    pub time: Duration,
    /// Measured time of the yardstick after each turn; zero where none is needed.
    pub yardstick: Duration,
}

/// What one turn of one target gave.
#[derive(Clone, Copy, Debug)]
pub struct Measure {
    /// Requests a second.
    pub rate: f64,
    /// Processor time of the target's own process, microseconds a request in user space.
    pub user: f64,
    /// The same in the kernel.
    pub system: f64,
    /// Median latency in microseconds.
    pub p50: f64,
    /// 99th percentile of latency in microseconds.
    pub p99: f64,
    /// 99.9th percentile of latency in microseconds.
    pub p999: f64,
    /// Most resident memory since the target's start, in bytes.
    pub peak: f64,
    /// The load generator's processor time, microseconds a request.
    pub own: f64,
    /// The load generator's share of one processor, 0 to 1.
    pub own_share: f64,
    /// Processor time of the yardstick after it, microseconds a request.
    pub yardstick: Option<f64>,
}

impl Measure {
    /// User and system time together.
    pub fn cpu(&self) -> f64 {
        self.user + self.system
    }
}

/// What targets that took turns gave, in the order of [`Target::ALL`]; `None` for one left out.
pub type Measures = [Option<Measure>; 3];

/// A case and what it gave.
pub struct Outcome {
    /// What was done.
    pub case: Case,
    /// Each turn of each round.
    pub turns: Vec<Measures>,
}

impl Outcome {
    /// Nothing yet.
    pub fn new(case: Case) -> Outcome {
        Outcome {
            case,
            turns: Vec::new(),
        }
    }
}

/// What is started and how.
pub struct Setup {
    /// Ports and files.
    pub workshop: Workshop,
    /// The magent under test.
    pub magent: PathBuf,
    /// Who takes part.
    pub targets: Vec<Target>,
}

/// Running processes. The proxies come first so that they end first.
struct Farm {
    targets: Vec<(Target, Process)>,
    others: Vec<Process>,
    servers: Vec<Process>,
    backups: Vec<Process>,
    /// A memcached of its own that always has the same to do, [`PLAIN`]: what that costs tells
    /// how fast the machine is at the moment.
    yardstick: Process,
}

impl Farm {
    fn start(setup: &mut Setup, case: &Case) -> Result<Farm> {
        let shop = &mut setup.workshop;
        let mut start_some = |role: &str, n: usize| -> Result<Vec<Process>> {
            (1..=n)
                .map(|i| shop.memcached(&format!("{role} {i}")))
                .collect()
        };
        let servers = start_some("server", case.servers)?;
        let backups = start_some("backup", case.backups)?;
        let mut targets = Vec::new();
        for &target in &setup.targets {
            let process = match target {
                Target::Memcached => shop.memcached("memcached")?,
                Target::Twemproxy => shop.twemproxy(&servers)?,
                Target::Magent => shop.magent("magent", &setup.magent, &servers, &backups)?,
            };
            targets.push((target, process));
        }
        let mut others = Vec::new();
        for n in 1..=case.others {
            let name = format!("another magent {n}");
            others.push(shop.magent(&name, &setup.magent, &servers, &backups)?);
        }
        Ok(Farm {
            targets,
            others,
            servers,
            backups,
            yardstick: shop.memcached("yardstick")?,
        })
    }

    /// Runs `f` on target number `n`; an error names the target, and a process that died.
    fn on<T>(&mut self, n: usize, f: impl FnOnce(&Process) -> Result<T>) -> Result<T> {
        let (target, process) = &self.targets[n];
        let done = f(process).map_err(|e| format!("{}: {e}", target.name()).into());
        self.or_death(done)
    }

    /// An error, and the process that died if one did.
    fn or_death<T>(&mut self, done: Result<T>) -> Result<T> {
        done.map_err(|e| match self.check() {
            Ok(()) => e,
            Err(death) => format!("{e}; {death}").into(),
        })
    }

    fn check(&mut self) -> Result<()> {
        let proxies = self.targets.iter_mut().map(|(_, process)| process);
        let proxies = proxies.chain(&mut self.others);
        let servers = self.servers.iter_mut().chain(&mut self.backups);
        let all = proxies.chain(servers).chain([&mut self.yardstick]);
        all.into_iter().try_for_each(Process::check)
    }

    fn fill(&mut self, data: &Data) -> Result<()> {
        (0..self.targets.len()).try_for_each(|n| self.on(n, |p| data.fill(p.address)))
    }

    /// The other magents use the servers, so that they are seen there.
    fn use_others(&self, data: &Data) -> Result<()> {
        let mut all = self.others.iter();
        all.try_for_each(|other| data.fill(other.address))
    }

    /// Waits until the magent that is measured knows of others, if there are some.
    fn meet_others(&self, data: &Data) -> Result<()> {
        let is_magent = |t: &&(Target, Process)| t.0 == Target::Magent;
        let (Some((_, magent)), true) =
            (self.targets.iter().find(is_magent), !self.others.is_empty())
        else {
            return Ok(());
        };
        let met = look(|| {
            self.use_others(data)?;
            data.fill(magent.address)?;
            let known = stats(magent.address, "stats servers")?;
            let all = self.servers.iter().chain(&self.backups);
            let count = all.filter(|s| known.contains(&format!("{}:other_magents ", s.address)));
            Ok((count.count() == self.servers.len() + self.backups.len()).then_some(()))
        })?;
        met.ok_or_else(|| "magent does not see the others".into())
    }
}

/// At most so many clients are connected at once to targets that take turns; with more, one target
/// has all its turns before the next. Each client takes a descriptor.
const TOGETHER: usize = 5_000;

/// One round: starts a farm for `case`, fills it, and lets the targets take turns.
pub fn run(setup: &mut Setup, case: &Case, pace: Pace) -> Result<Vec<Measures>> {
    let mut farm = Farm::start(setup, case)?;
    let data = Data::new(case.work.size);
    farm.fill(&data)?;
    let plain = Data::new(PLAIN.size);
    plain.fill(farm.yardstick.address)?;
    farm.meet_others(&data)?;
    let mut turns = vec![[None; 3]; pace.turns];
    let done = take_turns(&farm, case.work, &data, &plain, pace, &mut turns);
    farm.or_death(done)?;
    farm.check()?;
    Ok(turns)
}

/// Puts the targets under load, and lets them take turns.
fn take_turns(
    farm: &Farm,
    work: Work,
    data: &Data,
    plain: &Data,
    pace: Pace,
    turns: &mut [Measures],
) -> Result<()> {
    let quick = Pace {
        exchanges: 0,
        ..pace
    };
    let mut yardstick = match pace.yardstick.is_zero() {
        true => None,
        false => Some(Bout::start(
            "yardstick",
            &farm.yardstick,
            PLAIN,
            plain,
            quick,
        )?),
    };
    let at_once = match work.clients * farm.targets.len() <= TOGETHER {
        true => farm.targets.len(),
        false => 1,
    };
    for some in farm.targets.chunks(at_once.max(1)) {
        let mut bouts = Vec::new();
        for (target, process) in some {
            let bout = Bout::start(target.name(), process, work, data, pace)?;
            bouts.push((*target, bout));
        }
        for turn in turns.iter_mut() {
            farm.use_others(data)?;
            for (target, bout) in &mut bouts {
                let mut measure = bout.turn(pace.time)?;
                if let Some(yardstick) = &mut yardstick {
                    measure.yardstick = Some(yardstick.turn(pace.yardstick)?.cpu());
                }
                turn[*target as usize] = Some(measure);
            }
        }
    }
    Ok(())
}

/// A process under load.
struct Bout<'a> {
    name: &'static str,
    process: &'a Process,
    load: Load<'a>,
}

impl<'a> Bout<'a> {
    /// Connects the clients and warms up.
    fn start(
        name: &'static str,
        process: &'a Process,
        work: Work,
        data: &'a Data,
        pace: Pace,
    ) -> Result<Bout<'a>> {
        let failed = |e| format!("{name}: {e}");
        let mut load = Load::connect(process.address, work, data).map_err(failed)?;
        let wanted = pace.exchanges * (work.clients * work.depth) as u64;
        let mut had = 0;
        loop {
            had += load.run(pace.warm).map_err(failed)?.requests;
            if had >= wanted {
                break;
            }
        }
        Ok(Bout {
            name,
            process,
            load,
        })
    }

    /// Keeps the process busy for `time`.
    fn turn(&mut self, time: Duration) -> Result<Measure> {
        let before = self.process.cpu()?;
        let sample = self.load.run(time);
        let sample = sample.map_err(|e| format!("{}: {e}", self.name))?;
        let (user, system) = self.process.cpu()?.since(before);
        let requests = sample.requests as f64;
        let percentile = |p| sample.latency.value_at_quantile(p) as f64 / 1e3;
        Ok(Measure {
            rate: requests / sample.time.as_secs_f64(),
            user: user / requests / 1e3,
            system: system / requests / 1e3,
            p50: percentile(0.5),
            p99: percentile(0.99),
            p999: percentile(0.999),
            peak: self.process.peak_memory()? as f64,
            own: sample.own.as_secs_f64() * 1e6 / requests,
            own_share: sample.own.as_secs_f64() / sample.time.as_secs_f64(),
            yardstick: None,
        })
    }
}

/// One figure for each target, in the order of [`Target::ALL`].
pub type Figures = [Option<f64>; 3];

/// System calls a request, by strace; `None` where strace can't be used.
pub fn count_calls(setup: &mut Setup, case: &Case, time: Duration) -> Result<Figures> {
    let mut farm = Farm::start(setup, case)?;
    let data = Data::new(case.work.size);
    farm.fill(&data)?;
    let mut figures = [None; 3];
    for n in 0..farm.targets.len() {
        let place = farm.targets[n].0 as usize;
        figures[place] = farm.on(n, |process| {
            let mut load = Load::connect(process.address, case.work, &data)?;
            load.run(time)?;
            let counted = setup.workshop.count_calls(process, || load.run(time))?;
            Ok(counted.map(|(sample, calls)| calls as f64 / sample.requests as f64))
        })?;
    }
    Ok(figures)
}

/// What freed memory may take to come back to the system.
const SETTLE: Duration = Duration::from_millis(300);

/// Memory in bytes for each client of `case` that was served once and now idles.
pub fn weigh_idle(setup: &mut Setup, case: &Case) -> Result<Figures> {
    let mut farm = Farm::start(setup, case)?;
    let data = Data::new(case.work.size);
    farm.fill(&data)?;
    let mut figures = [None; 3];
    for n in 0..farm.targets.len() {
        let place = farm.targets[n].0 as usize;
        figures[place] = Some(farm.on(n, |process| {
            // Buffers that are there whatever the number of clients are not theirs.
            Load::connect(process.address, PLAIN, &data)?.run(SETTLE)?;
            std::thread::sleep(SETTLE);
            let before = process.own_memory()?;
            let mut load = Load::connect(process.address, case.work, &data)?;
            load.serve_each()?;
            std::thread::sleep(SETTLE);
            let grown = process.own_memory()?.saturating_sub(before);
            Ok(grown as f64 / case.work.clients as f64)
        })?);
    }
    Ok(figures)
}
