//! The table at the end: work, ours, the reference, their ratio, the goal.

use std::fmt;
use std::time::Instant;

/// Several measurements of one thing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sample(Vec<f64>);

impl Sample {
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
        self.0.sort_by(f64::total_cmp);
    }

    pub(crate) fn min(&self) -> f64 {
        self.0[0]
    }

    pub(crate) fn median(&self) -> f64 {
        let middle = self.0.len() / 2;
        if self.0.len() % 2 == 1 {
            self.0[middle]
        } else {
            f64::midpoint(self.0[middle - 1], self.0[middle])
        }
    }

    pub(crate) fn max(&self) -> f64 {
        self.0[self.0.len() - 1]
    }
}

impl FromIterator<f64> for Sample {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Sample {
        let mut sample = Sample::default();
        values.into_iter().for_each(|value| sample.push(value));
        sample
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decimals = if self.max() >= 1000.0 { 0 } else { 3 };
        let shown = |value: f64| format!("{value:.decimals$}");
        if self.0.len() == 1 {
            return write!(f, "{}", shown(self.0[0]));
        }
        write!(f, "{} ({}..{})", shown(self.median()), shown(self.min()), shown(self.max()))
    }
}

/// What a figure must reach.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    AtLeast(f64),
    AtMost(f64),
    /// Also by the greatest of the turns, not only by their median.
    NeverAbove(f64),
    /// Shown without a verdict.
    None,
}

impl Goal {
    fn verdict(self, figure: &Sample) -> String {
        let value = figure.median();
        let (sign, goal, is_met) = match self {
            Goal::None => return String::new(),
            Goal::AtLeast(goal) => (">=", goal, value >= goal),
            Goal::AtMost(goal) => ("<=", goal, value <= goal),
            Goal::NeverAbove(goal) => ("never above", goal, figure.max() <= goal),
        };
        format!("{sign} {goal}: {}", if is_met { "met" } else { "MISSED" })
    }
}

#[derive(Debug)]
struct Row {
    work: String,
    ours: String,
    reference: String,
    figure: Sample,
    /// The same ratio of processor time.
    cpu: Option<f64>,
    goal: Goal,
}

/// All rows so far.
#[derive(Debug, Default)]
pub(crate) struct Report(Vec<Row>);

impl Report {
    /// Ours beside a reference, turn by turn; the figure is how many times the reference's
    /// rate ours has.
    pub(crate) fn rate(&mut self, work: &str, reference: &str, turns: &[Turn], goal: Goal) {
        let ratio = |ours: f64, reference: f64| reference / ours;
        self.turns(work, reference, turns, ratio, goal);
    }

    /// The same; the figure is how many times the reference's time ours takes.
    pub(crate) fn time(&mut self, work: &str, reference: &str, turns: &[Turn], goal: Goal) {
        let ratio = |ours: f64, reference: f64| ours / reference;
        self.turns(work, reference, turns, ratio, goal);
    }

    fn turns(
        &mut self,
        work: &str,
        reference: &str,
        turns: &[Turn],
        ratio: fn(f64, f64) -> f64,
        goal: Goal,
    ) {
        let ours: Sample = turns.iter().map(|turn| turn.ours.wall).collect();
        let beside: Sample = turns.iter().map(|turn| turn.reference.wall).collect();
        let cpu: Sample =
            turns.iter().map(|turn| ratio(turn.ours.cpu, turn.reference.cpu)).collect();
        self.add(Row {
            work: work.to_owned(),
            ours: format!("{ours} s"),
            reference: format!("{reference}: {beside} s"),
            figure: turns.iter().map(|turn| ratio(turn.ours.wall, turn.reference.wall)).collect(),
            cpu: Some(cpu.median()).filter(|cpu| cpu.is_finite()),
            goal,
        });
    }

    /// A figure that stands for itself.
    pub(crate) fn figure(&mut self, work: &str, unit: &str, figure: Sample, goal: Goal) {
        let ours = format!("{figure} {unit}");
        let (work, reference) = (work.to_owned(), String::new());
        self.add(Row { work, ours, reference, figure, cpu: None, goal });
    }

    fn add(&mut self, row: Row) {
        println!("{row}");
        self.0.push(row);
    }

    /// Prints everything once more, together.
    pub(crate) fn print(&self) {
        println!("\nmedian (least..greatest) of the turns");
        for row in &self.0 {
            println!("{row}");
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Row { work, ours, reference, figure, cpu, goal } = self;
        let verdict = goal.verdict(figure);
        if reference.is_empty() {
            return write!(f, "{work:<52} | {ours} | {verdict}");
        }
        let cpu = cpu.map(|cpu| format!(", of processor time {cpu:.3}")).unwrap_or_default();
        write!(f, "{work:<52} | {ours} | {reference} | ratio {figure}{cpu} | {verdict}")
    }
}

/// Ours and the reference, one after the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    pub(crate) ours: Spent,
    pub(crate) reference: Spent,
}

/// What a piece of work took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spent {
    /// On the wall, in seconds.
    pub(crate) wall: f64,
    /// On the processors, in seconds, over all threads; hardly differs on a busy machine.
    pub(crate) cpu: f64,
}

impl std::ops::Add for Spent {
    type Output = Spent;

    fn add(self, other: Spent) -> Spent {
        Spent { wall: self.wall + other.wall, cpu: self.cpu + other.cpu }
    }
}

impl std::iter::Sum for Spent {
    fn sum<I: Iterator<Item = Spent>>(all: I) -> Spent {
        all.fold(Spent::default(), std::ops::Add::add)
    }
}

/// Measures both kinds of time of this process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    wall: Instant,
    cpu: f64,
}

impl Clock {
    pub(crate) fn start() -> Clock {
        Clock { wall: Instant::now(), cpu: cpu_seconds() }
    }

    pub(crate) fn spent(&self) -> Spent {
        Spent { wall: self.wall.elapsed().as_secs_f64(), cpu: cpu_seconds() - self.cpu }
    }
}

fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
