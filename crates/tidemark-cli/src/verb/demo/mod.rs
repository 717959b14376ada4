//! `demo`: the whole job before your eyes, on real data and on a table large enough to watch.
//!
//! Every step that matters runs this binary as a command of its own, printed as it could be
//! typed; one of them is killed with SIGKILL half-way and run again. What it claims at the end
//! it has compared: dumps with the published files, dumps with what the source held.
//! Commands run in the demo's folder, so that they are as short as one would type them.

mod command;
mod grown;
mod revisions;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tidemark::database::embedded::{DumpFormat, EmbeddedDatabase, EmbeddedOptions};
use tidemark::env::{BootTime, Env};
use tidemark::ids::TableName;
use tidemark::{Error, Kind, Result};

use crate::args::DemoArgs;
use crate::exit::Exit;
use crate::output::Output;
use crate::output::human::{self, Align};
use crate::place::system;

/// What the parts of the demo share.
struct Stage {
    folder: PathBuf,
    env: Arc<dyn Env>,
    output: Output,
    began: BootTime,
    proofs: Vec<Proof>,
    /// How far the restore was when it was killed, in percent; `None` if it was done before.
    killed_at: Option<f64>,
    /// How far its progress was from linear time, at most, in percentage points.
    deviation: Option<f64>,
}

/// Something that was compared and found equal, or measured.
#[derive(Debug, serde::Serialize)]
struct Proof {
    /// What it is about, in a few words.
    label: String,
    /// What was found.
    proof: String,
}

pub(crate) fn run(args: &DemoArgs, output: Output) -> Result<Exit> {
    let env = system();
    let folder = folder(args, &*env)?;
    let began = env.boot_time();
    let (proofs, killed_at, deviation) = (Vec::new(), None, None);
    let mut stage = Stage { folder, env, output, began, proofs, killed_at, deviation };
    stage.say(&format!("tidemark demo; its commands run in {}", stage.folder.display()));
    let told = revisions::run(&mut stage, args).and_then(|()| grown::run(&mut stage, args));
    if args.keep {
        stage.say(&format!("kept: {}", stage.folder.display()));
    } else if let Err(cause) = std::fs::remove_dir_all(&stage.folder) {
        output.trouble(&format!("could not remove `{}`: {cause}", stage.folder.display()));
    }
    told?;
    let seconds = stage.elapsed().as_secs_f64();
    let view = serde_json::json!({
        "proofs": stage.proofs,
        "killed_at_percent": stage.killed_at,
        "progress_deviation_max": stage.deviation,
        "seconds_elapsed": seconds,
    });
    output.summary("demo", &view, || {
        let rows: Vec<Vec<String>> = stage
            .proofs
            .iter()
            .map(|Proof { label, proof }| vec![format!("  {label}"), proof.clone()])
            .collect();
        let columns = [("  what", Align::Left), ("proof", Align::Left)];
        format!("\nproven in {seconds:.0} s:\n{}", human::table(&columns, &rows))
    })?;
    Ok(Exit::Done)
}

/// The folder to work in, new and empty.
fn folder(args: &DemoArgs, env: &dyn Env) -> Result<PathBuf> {
    let folder = match &args.dir {
        Some(dir) => dir.clone(),
        None => std::env::temp_dir().join(format!("tidemark-demo-{:016x}", env.random())),
    };
    let shown = folder.display();
    std::fs::create_dir_all(&folder)
        .map_err(|cause| Error::io(format!("create the folder `{shown}`"), cause))?;
    let mut entries = std::fs::read_dir(&folder)
        .map_err(|cause| Error::io(format!("read the folder `{shown}`"), cause))?;
    if entries.next().is_some() {
        let message = format!("`{shown}` is not empty; name a new folder with --dir");
        return Err(Error::new(Kind::InTheWay, message));
    }
    folder.canonicalize().map_err(|cause| Error::io(format!("find the folder `{shown}`"), cause))
}

impl Stage {
    /// A line about what comes; on standard error, since standard output carries results.
    fn say(&self, line: &str) {
        self.output.note(line);
    }

    fn elapsed(&self) -> Duration {
        self.env.boot_time().since(self.began)
    }

    fn database(&self, name: &str) -> Result<Arc<EmbeddedDatabase>> {
        let dir = self.folder.join(name);
        let options = EmbeddedOptions::default();
        Ok(Arc::new(EmbeddedDatabase::open_or_create(&dir, Arc::clone(&self.env), options)?))
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn prove(&mut self, label: impl Into<String>, proof: impl Into<String>) {
        let (label, proof) = (label.into(), proof.into());
        self.say(&format!("   = {label}: {proof}"));
        self.proofs.push(Proof { label, proof });
    }
}

fn table(name: &str) -> TableName {
    TableName::parse(name).expect("names of the demo are valid")
}

/// A table's rows in key order, as CSV.
fn dump(database: &EmbeddedDatabase, name: &str) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    database.dump(&table(name), DumpFormat::Csv, &mut out)?;
    Ok(out)
}

/// Refuses when two things that must be equal are not.
fn check_equal(what: &str, found: &[u8], expected: &[u8]) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    let message = format!(
        "{what}: {} bytes were found, {} expected, and they differ",
        found.len(),
        expected.len()
    );
    Err(Error::new(Kind::Mismatch, message))
}

/// The example data: where the command runs, or where it was built.
fn example_data(asked: Option<&Path>) -> Result<PathBuf> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/data/sp500");
    let places = match asked {
        Some(asked) => vec![asked.to_owned()],
        None => vec![PathBuf::from("examples/data/sp500"), built],
    };
    places.iter().find(|place| place.is_dir()).cloned().ok_or_else(|| {
        let message = format!(
            "there is no folder `{}` with the example data; name it with --data",
            places[0].display()
        );
        Error::new(Kind::NotFound, message)
    })
}
