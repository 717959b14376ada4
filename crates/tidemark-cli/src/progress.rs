//! Progress for people and programs: bars on a terminal, a line every ten seconds without
//! one, JSON lines ten times a second, which is nothing for a program.
//!
//! [`Progress`] is the executor's observer, and is fed the same views by those who only watch.

use std::collections::{BTreeSet, VecDeque};
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tidemark::env::{BootTime, Env};
use tidemark::executor::{Observer, TableProgress};
use tidemark::operation::{Operation, Refusal};

use crate::output::Output;
use crate::output::human;
use crate::output::status::{self, Rate, StatusView, TableView};

/// Between two lines where there are no bars.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// Between two status messages of the same phase.
const STATUS_EVERY: Duration = Duration::from_millis(100);
/// Most tables that get a bar of their own; more would scroll.
const TABLE_BARS_MAX: usize = 8;
/// Steps of a bar: hundredths of a percent.
const BAR_LENGTH: u64 = 10_000;

/// Shows how far one operation is.
pub(crate) struct Progress {
    output: Output,
    env: Arc<dyn Env>,
    begun: BootTime,
    steps: u32,
    rate: Rate,
    face: Face,
    /// Failures that were told, by who failed and attempt.
    told: BTreeSet<(String, u32)>,
    /// What people should know, that no status message has carried yet.
    notices: VecDeque<String>,
    has_told_holder: bool,
}

/// What people see of it.
enum Face {
    Bars(Bars),
    Lines { shown: Duration },
    Json { shown: Option<(Duration, &'static str, Option<&'static str>)> },
}

struct Bars {
    all: MultiProgress,
    whole: ProgressBar,
    tables: Vec<(String, ProgressBar)>,
}

impl Progress {
    /// Progress of an operation of so many steps, called `name` in front of it.
    pub(crate) fn new(output: Output, env: Arc<dyn Env>, name: &str, steps: u32) -> Progress {
        let face = if output.is_json() {
            Face::Json { shown: None }
        } else if std::io::stderr().is_terminal() {
            Face::Bars(Bars::new(name))
        } else {
            Face::Lines { shown: Duration::ZERO }
        };
        let begun = env.boot_time();
        let rate = Rate::default();
        let (told, notices) = (BTreeSet::new(), VecDeque::new());
        Progress { output, env, begun, steps, rate, face, told, notices, has_told_holder: false }
    }

    /// Since this command began.
    pub(crate) fn elapsed(&self) -> Duration {
        self.env.boot_time().since(self.begun)
    }

    /// The rate of this command, for whoever makes views.
    pub(crate) fn rate(&mut self) -> &mut Rate {
        &mut self.rate
    }

    /// Shows a view, if it is time.
    pub(crate) fn show(&mut self, view: &StatusView) {
        self.tell_failures(view);
        let elapsed = self.elapsed();
        match &mut self.face {
            Face::Bars(bars) => bars.show(view),
            Face::Lines { shown } => {
                if elapsed.saturating_sub(*shown) >= LINE_EVERY {
                    *shown = elapsed;
                    self.output.note(&line(view));
                }
            }
            Face::Json { shown } => {
                let is_due = shown.is_none_or(|(at, phase, stage)| {
                    elapsed.saturating_sub(at) >= STATUS_EVERY
                        || (phase, stage) != (view.phase, view.stage)
                });
                if is_due || !self.notices.is_empty() {
                    *shown = Some((elapsed, view.phase, view.stage));
                    let mut view = view.clone();
                    // A reader that cannot be reached is told by the summary, if at all.
                    for notice in std::mem::take(&mut self.notices) {
                        view.notice = Some(notice);
                        let _ = self.output.status(&view);
                    }
                    if view.notice.is_none() {
                        let _ = self.output.status(&view);
                    }
                }
            }
        }
    }

    /// Something people should know: a line that stays, or `notice` of the next status message.
    pub(crate) fn notice(&mut self, message: &str) {
        match &self.face {
            Face::Bars(bars) => bars.all.suspend(|| self.output.notice(message)),
            Face::Lines { .. } => self.output.notice(message),
            Face::Json { .. } => self.notices.push_back(message.to_owned()),
        }
    }

    /// Trouble that is being dealt with: a line that stays, above the bars.
    pub(crate) fn trouble(&self, message: &str) {
        match &self.face {
            Face::Bars(bars) => bars.all.suspend(|| self.output.trouble(message)),
            Face::Lines { .. } | Face::Json { .. } => self.output.trouble(message),
        }
    }

    /// Takes the bars away, so that what follows stands alone.
    pub(crate) fn finish(&mut self) {
        if let Face::Bars(bars) = &mut self.face {
            bars.clear();
        }
        self.notices.drain(..).for_each(|notice| self.output.notice(&notice));
    }

    fn tell_failures(&mut self, view: &StatusView) {
        let shards = view
            .stalled
            .iter()
            .map(|stalled| (format!("shard {}", stalled.shard), stalled.attempt, &stalled.reason));
        let whole = view.retrying.iter().map(|retry| (phase(view), retry.attempt, &retry.reason));
        for (who, attempt, reason) in shards.chain(whole) {
            if self.told.insert((who.clone(), attempt)) {
                self.trouble(&format!("{who}, attempt {attempt}: {reason}; it is tried again"));
            }
        }
    }
}

impl Observer for Progress {
    fn progress(&mut self, operation: &Operation, tables: &[TableProgress]) {
        let elapsed = self.elapsed();
        let view = status::of_driven(operation, tables, self.steps, elapsed, &mut self.rate);
        self.show(&view);
    }

    fn refused(&mut self, refusal: Refusal) {
        self.trouble(match refusal {
            Refusal::PointOfNoReturn => {
                "it cannot be cancelled any more: its result is being published"
            }
            Refusal::Ended => "a request came too late: the operation has ended",
            Refusal::Cancelling => "a request came too late: the operation is being cancelled",
        });
    }

    fn window_bounded(&mut self, window: u32) {
        self.notice(&format!("{window} shards at once is what fits the memory of the plan"));
    }

    fn waiting_for_holder(&mut self, pid: u32, seconds: u64) {
        if !std::mem::replace(&mut self.has_told_holder, true) {
            self.notice(&format!(
                "process {pid} drives it and is silent; it is taken over when its lease ends, in \
                 {seconds} s, unless it speaks up"
            ));
        }
    }
}

impl Bars {
    fn new(name: &str) -> Bars {
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        let whole =
            all.add(ProgressBar::new(BAR_LENGTH).with_style(style("{prefix} [{bar:30}] {msg}")));
        whole.set_prefix(name.to_owned());
        Bars { all, whole, tables: Vec::new() }
    }

    fn show(&mut self, view: &StatusView) {
        self.whole.set_position((view.percent_done * BAR_LENGTH as f64) as u64);
        self.whole.set_message(text(view));
        let names = || view.tables.iter().map(|table| &table.table);
        if !names().eq(self.tables.iter().map(|(name, _)| name)) {
            self.replace_tables(view);
        }
        for ((_, bar), table) in self.tables.iter().zip(&view.tables) {
            bar.set_position(table.bytes_done * BAR_LENGTH / table.total_bytes.max(1));
            bar.set_message(table_text(table));
        }
    }

    fn replace_tables(&mut self, view: &StatusView) {
        for (_, bar) in self.tables.drain(..) {
            bar.finish_and_clear();
            self.all.remove(&bar);
        }
        if !(2..=TABLE_BARS_MAX).contains(&view.tables.len()) {
            return;
        }
        let width = view.tables.iter().map(|table| table.table.chars().count()).max().unwrap_or(0);
        for table in &view.tables {
            let bar = ProgressBar::new(BAR_LENGTH).with_style(style("  {prefix} [{bar:20}] {msg}"));
            let bar = self.all.add(bar);
            bar.set_prefix(format!("{:width$}", table.table));
            self.tables.push((table.table.clone(), bar));
        }
    }

    fn clear(&mut self) {
        self.tables.drain(..).for_each(|(_, bar)| bar.finish_and_clear());
        self.whole.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).expect("templates are written here");
    style.progress_chars("#>-")
}

/// The line that is written where there are no bars.
fn line(view: &StatusView) -> String {
    format!("operation {}: {}", view.operation, text(view))
}

fn text(view: &StatusView) -> String {
    let mut parts = vec![format!("{:.1} %", view.percent_done * 100.0), phase(view)];
    if view.total_rows > 0 {
        let (done, total) = (human::count(view.rows_done), human::count(view.total_rows));
        parts.push(format!("{done} of {total} rows"));
    }
    parts.push(format!("{} of {}", human::bytes(view.bytes_done), human::bytes(view.total_bytes)));
    if let Some(total) = view.total_shards.filter(|total| *total > 0) {
        parts.push(format!("shards {}/{total}", view.shards_done));
    }
    if let Some(left) = view.seconds_remaining
        && let Ok(left) = Duration::try_from_secs_f64(left)
    {
        parts.push(format!("{} left", human::duration(left)));
    }
    if let Some(stalled) = view.stalled.first() {
        parts.push(format!("shard {} waits: {}", stalled.shard, stalled.reason));
    }
    if let Some(retry) = &view.retrying {
        parts.push(format!("tried again: {}", retry.reason));
    }
    parts.join(", ")
}

fn phase(view: &StatusView) -> String {
    let name = view.stage.unwrap_or(view.phase);
    match view.step {
        Some(step) if view.steps > 1 => format!("{name} step {step} of {}", view.steps),
        _ => name.to_owned(),
    }
}

fn table_text(table: &TableView) -> String {
    format!("{} of {} rows", human::count(table.rows_done), human::count(table.total_rows))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::status::RetryView;

    fn view() -> StatusView {
        StatusView {
            operation: 42,
            phase: "waiting",
            stage: None,
            step: Some(2),
            steps: 3,
            seconds_elapsed: 4.0,
            seconds_remaining: Some(65.0),
            percent_done: 0.451,
            bytes_done: 1 << 20,
            total_bytes: 2 << 20,
            rows_done: 1234,
            total_rows: 5000,
            shards_done: 1,
            total_shards: Some(4),
            shards_in_flight: 3,
            tables: Vec::new(),
            stalled: Vec::new(),
            retrying: None,
            notice: None,
        }
    }

    #[test]
    fn a_line_says_how_far_how_much_and_how_long() {
        assert_eq!(
            line(&view()),
            "operation 42: 45.1 %, waiting step 2 of 3, 1,234 of 5,000 rows, 1.0 MiB of 2.0 MiB, \
             shards 1/4, 1 min 5 s left"
        );
    }

    #[test]
    fn a_shard_that_does_not_move_says_why() {
        let reason = "the store is throttled".to_owned();
        let stalled = vec![status::StalledView { shard: 3, attempt: 2, reason }];
        let shown = line(&StatusView { stalled, ..view() });
        assert!(shown.ends_with("shard 3 waits: the store is throttled"), "{shown}");
    }

    #[test]
    fn publishing_that_is_tried_again_says_why() {
        let retry = RetryView { attempt: 2, reason: "a reader holds `orders`".to_owned() };
        let shown = line(&StatusView { retrying: Some(retry), ..view() });
        assert!(shown.ends_with("tried again: a reader holds `orders`"), "{shown}");
    }
}
