//! The plot: a panel of bars for the kinds of work, a panel of lines for each sweep.

use std::fmt::Write as _;

use crate::cases::{Measure, Outcome, Target};
use crate::report::{Report, SIZE};

/// Size of a sweep's panel, in pixels; the bars take the width of two.
const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 260.0;

/// Room around a panel's axes, in pixels: left for numbers, below for names.
const LEFT: f64 = 60.0;
const RIGHT: f64 = 15.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 44.0;

/// Colours that people who don't see all of them can tell apart (Okabe and Ito).
fn colour(target: Target) -> &'static str {
    match target {
        Target::Memcached => "#999999",
        Target::Twemproxy => "#d55e00",
        Target::Magent => "#0072b2",
    }
}

/// Maps values to heights.
struct Scale {
    low: f64,
    high: f64,
    log: bool,
}

impl Scale {
    /// A scale from 0, or of whole powers of ten, that holds all of `values`.
    fn over(values: &[f64], log: bool) -> Scale {
        let high = values.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        if log {
            let low = values.iter().copied().fold(high, f64::min);
            return Scale {
                low: 10f64.powf(low.log10().floor()),
                high: 10f64.powf(high.log10().ceil()),
                log,
            };
        }
        let step = nice_step(high);
        Scale {
            low: 0.0,
            high: (high / step).ceil() * step,
            log,
        }
    }

    /// How far up a value is, 0 to 1.
    fn at(&self, value: f64) -> f64 {
        if self.log {
            return (value / self.low).log10() / (self.high / self.low).log10().max(1.0);
        }
        value / self.high
    }

    fn ticks(&self) -> Vec<f64> {
        let mut ticks = vec![self.low];
        while ticks[ticks.len() - 1] < self.high * 0.999 {
            let last = ticks[ticks.len() - 1];
            ticks.push(if self.log {
                last * 10.0
            } else {
                last + nice_step(self.high)
            });
        }
        ticks
    }
}

/// 1, 2 or 5 times a power of ten, so that `high` is four to ten steps away.
fn nice_step(high: f64) -> f64 {
    let power = 10f64.powf((high / 4.0).log10().floor());
    [5.0, 2.0, 1.0]
        .map(|f| f * power)
        .into_iter()
        .find(|step| *step <= high / 4.0)
        .unwrap_or(power)
}

/// One panel: its corner, its scale and its columns.
struct Panel<'a> {
    out: &'a mut String,
    x: f64,
    y: f64,
    width: f64,
    scale: Scale,
    columns: usize,
}

impl Panel<'_> {
    fn column_width(&self) -> f64 {
        (self.width - LEFT - RIGHT) / self.columns as f64
    }

    /// The middle of a column.
    fn across(&self, column: usize) -> f64 {
        self.x + LEFT + (column as f64 + 0.5) * self.column_width()
    }

    fn height(&self, value: f64) -> f64 {
        let room = HEIGHT - TOP - BOTTOM;
        self.y + HEIGHT - BOTTOM - room * self.scale.at(value).clamp(0.0, 1.0)
    }

    fn text(&mut self, x: f64, y: f64, anchor: &str, text: &str) {
        let _ = writeln!(
            self.out,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
        );
    }

    fn frame(&mut self, title: &str, names: &[String]) {
        let (left, right) = (self.x + LEFT, self.x + self.width - RIGHT);
        self.text(self.x + LEFT, self.y + 18.0, "start", title);
        for tick in self.scale.ticks() {
            let y = self.height(tick);
            let _ = writeln!(
                self.out,
                "<path d=\"M{left:.1} {y:.1}H{right:.1}\" stroke=\"#ddd\"/>"
            );
            let digits = if self.scale.high >= 4.0 { 0 } else { 2 };
            self.text(left - 6.0, y + 4.0, "end", &format!("{tick:.digits$}"));
        }
        for (i, name) in names.iter().enumerate() {
            let x = self.across(i);
            for (row, word) in name.split('\n').enumerate() {
                let y = self.y + HEIGHT - BOTTOM + 16.0 + 13.0 * row as f64;
                self.text(x, y, "middle", word);
            }
        }
    }

    fn line(&mut self, target: Target, points: &[Option<f64>]) {
        let mut path = String::new();
        let mut dots = String::new();
        for (i, value) in points.iter().enumerate() {
            let Some(value) = *value else { continue };
            let (x, y) = (self.across(i), self.height(value));
            let _ = write!(
                path,
                "{}{x:.1} {y:.1}",
                if path.is_empty() { 'M' } else { 'L' }
            );
            let _ = writeln!(dots, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"/>");
        }
        let colour = colour(target);
        let _ = writeln!(
            self.out,
            "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n<g fill=\"{colour}\">\n{dots}</g>"
        );
    }

    fn bars(&mut self, target: Target, values: &[Option<f64>]) {
        let width = (self.column_width() / 4.0).min(26.0);
        for (i, value) in values.iter().enumerate() {
            let Some(value) = *value else { continue };
            let x = self.across(i) + (target as usize as f64 - 1.5) * width;
            let (top, bottom) = (self.height(value), self.height(0.0));
            let _ = writeln!(
                self.out,
                "<rect x=\"{x:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{}\"/>",
                width - 2.0,
                bottom - top,
                colour(target)
            );
        }
    }
}

/// Height of the line with the names of the targets, in pixels.
const LEGEND: f64 = 30.0;

/// Where the panel of sweep number `n` begins: two in a row, below legend and bars.
fn corner(n: usize) -> (f64, f64) {
    let row = 1 + n / 2;
    ((n % 2) as f64 * WIDTH, LEGEND + row as f64 * HEIGHT)
}

/// The whole plot.
pub fn draw(report: &Report) -> String {
    let rows = 1 + report.sweeps.len().div_ceil(2);
    let (width, height) = (2.0 * WIDTH, LEGEND + rows as f64 * HEIGHT);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for (i, target) in Target::ALL.into_iter().enumerate() {
        let x = LEFT + 130.0 * i as f64;
        let _ = writeln!(
            out,
            "<rect x=\"{x}\" y=\"12\" width=\"12\" height=\"12\" fill=\"{}\"/><text x=\"{}\" y=\"22\">{}</text>",
            colour(target),
            x + 18.0,
            target.name()
        );
    }
    draw_kinds(&mut out, &report.headline);
    for (n, (name, outcomes)) in report.sweeps.iter().enumerate() {
        draw_sweep(&mut out, n, name, outcomes);
    }
    out.push_str("</svg>\n");
    out
}

fn draw_kinds(out: &mut String, outcomes: &[Outcome]) {
    let ratios = Target::ALL.map(|t| {
        let of = |o: &Outcome| o.ratio(t, Measure::cpu);
        outcomes.iter().map(of).collect::<Vec<_>>()
    });
    let all: Vec<f64> = ratios.iter().flatten().flatten().copied().collect();
    let mut panel = Panel {
        out,
        x: 0.0,
        y: LEGEND,
        width: 2.0 * WIDTH,
        scale: Scale::over(&all, false),
        columns: outcomes.len().max(1),
    };
    let names: Vec<String> = outcomes.iter().map(|o| two_rows(&o.case.title)).collect();
    panel.frame("CPU a request, twemproxy's = 1", &names);
    for (target, values) in Target::ALL.into_iter().zip(&ratios) {
        panel.bars(target, values);
    }
}

fn draw_sweep(out: &mut String, n: usize, name: &str, outcomes: &[Outcome]) {
    let costs = Target::ALL.map(|t| {
        let of = |o: &Outcome| o.median(t, Measure::cpu);
        outcomes.iter().map(of).collect::<Vec<_>>()
    });
    let all: Vec<f64> = costs.iter().flatten().flatten().copied().collect();
    let (x, y) = corner(n);
    let mut panel = Panel {
        out,
        x,
        y,
        width: WIDTH,
        // Values of a megabyte cost a hundred times what small ones do.
        scale: Scale::over(&all, name == SIZE),
        columns: outcomes.len().max(1),
    };
    let names: Vec<String> = outcomes.iter().map(|o| o.case.title.clone()).collect();
    panel.frame(&format!("CPU a get, microseconds, by {name}"), &names);
    for (target, points) in Target::ALL.into_iter().zip(&costs) {
        panel.line(target, points);
    }
}

/// A title broken at the space or comma nearest its middle.
fn two_rows(title: &str) -> String {
    let middle = title.len() / 2;
    let spaces = title.match_indices(' ').map(|(i, _)| i);
    match spaces.min_by_key(|i| i.abs_diff(middle)) {
        Some(i) if title.len() > 8 => format!("{}\n{}", &title[..i], &title[i + 1..]),
        _ => title.to_string(),
    }
}
