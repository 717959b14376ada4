//! Processes of the real binary.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};

use super::deadline::{WAIT_MAX, poll};
use super::small_disk::{Mounts, SmallDisk};
use super::{at_run_time, log_lines};

/// How to start the command: in which folder, with which variables.
///
/// State and home lie in that folder too, so that tests never meet each other's.
#[derive(Clone, Debug)]
pub(crate) struct Tidemark {
    program: PathBuf,
    folder: PathBuf,
    variables: Vec<(String, OsString)>,
    /// Greatest file that it may write.
    file_kib_max: Option<u32>,
    powers: Powers,
    tracing: Option<Tracing>,
    /// Whose mounts it sees.
    mounts: Option<Mounts>,
}

/// What `strace` is to write, and where.
#[derive(Clone, Debug)]
struct Tracing {
    log: PathBuf,
    expressions: Vec<String>,
}

/// What the process may do besides what its user may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Powers {
    Inherited,
    /// Permission bits bind it, also where the tests run as root.
    None,
}

impl Tidemark {
    /// The binary that this build made, started in `folder`.
    pub(crate) fn new(folder: &Path) -> Tidemark {
        let program = at_run_time("NEXTEST_BIN_EXE_tidemark", env!("CARGO_BIN_EXE_tidemark"));
        Tidemark::of_program(&program, folder)
    }

    /// Another program in its place.
    pub(crate) fn of_program(program: &Path, folder: &Path) -> Tidemark {
        let tidemark = Tidemark {
            program: program.to_owned(),
            folder: folder.to_owned(),
            variables: Vec::new(),
            file_kib_max: None,
            powers: Powers::Inherited,
            tracing: None,
            mounts: None,
        };
        tidemark
            .with_variable("HOME", folder.join("home"))
            .with_variable("XDG_STATE_HOME", folder.join("state"))
    }

    /// The same with a variable in the environment.
    #[must_use]
    pub(crate) fn with_variable(&self, name: &str, value: impl Into<OsString>) -> Tidemark {
        let mut changed = self.clone();
        changed.variables.push((name.to_owned(), value.into()));
        changed
    }

    /// The same with a point armed, for example `apply.committed:3`; see `tidemark::failpoint`.
    #[must_use]
    pub(crate) fn with_failpoint(&self, plan: &str) -> Tidemark {
        self.with_variable("TIDEMARK_FAILPOINT", plan)
    }

    /// The same, noting the name of every point it passes in the file `log`.
    #[must_use]
    pub(crate) fn with_hit_log(&self, log: &Path) -> Tidemark {
        self.with_variable("TIDEMARK_FAILPOINT_LOG", log)
    }

    /// The same, noting every chunk it applies in the file `log`.
    #[must_use]
    pub(crate) fn with_chunk_log(&self, log: &Path) -> Tidemark {
        self.with_variable("TIDEMARK_CHUNK_LOG", log)
    }

    /// The same, held at a point until [`Gate::open`].
    #[must_use]
    pub(crate) fn held_at(&self, point: &str, gate: &Gate) -> Tidemark {
        let held = self.with_failpoint(&format!("{point}:wait"));
        held.with_variable("TIDEMARK_FAILPOINT_GATE", &gate.0).with_hit_log(&gate.hits())
    }

    /// The same on a disk that takes no file of more than `kib` KiB.
    #[must_use]
    pub(crate) fn with_file_kib_max(&self, kib: u32) -> Tidemark {
        Tidemark { file_kib_max: Some(kib), ..self.clone() }
    }

    /// The same, bound by permission bits whoever runs the tests.
    #[must_use]
    pub(crate) fn without_powers(&self) -> Tidemark {
        Tidemark { powers: Powers::None, ..self.clone() }
    }

    /// The same under `strace`, which writes the system calls of all threads to `log`, with all
    /// bytes as hexadecimal; what it watches and does is said by its `-e` `expressions`.
    #[must_use]
    pub(crate) fn with_trace(&self, log: &Path, expressions: &[&str]) -> Tidemark {
        let expressions = expressions.iter().map(|&expression| expression.to_owned()).collect();
        let tracing = Tracing { log: log.to_owned(), expressions };
        Tidemark { tracing: Some(tracing), ..self.clone() }
    }

    /// The same where the disk is mounted.
    #[must_use]
    pub(crate) fn on(&self, disk: &SmallDisk) -> Tidemark {
        Tidemark { mounts: Some(disk.mounts()), ..self.clone() }
    }

    /// Runs it to its end; panics if that takes longer than [`WAIT_MAX`].
    pub(crate) fn run<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Outcome {
        self.spawn(args).wait()
    }

    /// Starts it.
    pub(crate) fn spawn<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Running {
        let mut command = self.command();
        command.args(args).current_dir(&self.folder);
        // What the caller of the tests has set for Tidemark would change what they test.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("TIDEMARK_") {
                command.env_remove(name);
            }
        }
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let typed = typed(&command, &self.variables);
        let child = match self.powers {
            Powers::Inherited => command.spawn(),
            Powers::None => spawn_without_powers(&mut command),
        };
        let mut child = child.unwrap_or_else(|cause| {
            let hint = match self.tracing {
                Some(_) => "; `cargo xtask test` installs strace where it is missing",
                None => "",
            };
            panic!("start {typed}: {cause}{hint}")
        });
        let stdout = Stream::collect(child.stdout.take().expect("stdout is piped"));
        let stderr = Stream::collect(child.stderr.take().expect("stderr is piped"));
        Running { typed, child, stdout, stderr }
    }

    fn command(&self) -> Command {
        if let Some(mounts) = self.mounts {
            let mut command = mounts.command("exec \"$@\"", &self.folder);
            command.arg(&self.program);
            return command;
        }
        if let Some(Tracing { log, expressions }) = &self.tracing {
            let mut command = Command::new("strace");
            // Strings end at no length that a test would reach.
            command.args(["-f", "-y", "-xx", "-s", "1000000000", "-o"]).arg(log);
            expressions.iter().for_each(|expression| {
                command.args(["-e", expression]);
            });
            command.arg("--").arg(&self.program);
            return command;
        }
        let Some(kib) = self.file_kib_max else { return Command::new(&self.program) };
        let mut command = Command::new("/bin/sh");
        // POSIX counts in blocks of 512 bytes.
        let script = format!("ulimit -f {} && exec \"$0\" \"$@\"", kib * 2);
        command.arg("-c").arg(script).arg(&self.program);
        command
    }
}

/// Starts a process that permission bits bind, by taking what overrides them from the thread
/// that starts it, and so from all that the process could ever get.
fn spawn_without_powers(command: &mut Command) -> std::io::Result<Child> {
    let start = move || {
        if rustix::process::geteuid().is_root() {
            let overriding = [
                CapabilitySet::DAC_OVERRIDE,
                CapabilitySet::DAC_READ_SEARCH,
                CapabilitySet::FOWNER,
            ];
            for capability in overriding {
                remove_capability_from_bounding_set(capability)?;
            }
        }
        command.spawn()
    };
    std::thread::scope(|scope| scope.spawn(start).join().expect("starting a process"))
}

/// A closed gate: the thread that comes to it waits, the rest of its process goes on.
#[derive(Debug)]
pub(crate) struct Gate(PathBuf);

impl Gate {
    /// A closed gate with that name in `folder`.
    pub(crate) fn close(folder: &Path, name: &str) -> Gate {
        let gate = Gate(folder.join(name));
        std::fs::write(&gate.0, "").expect("a gate can be made");
        gate
    }

    /// Waits until somebody stands before it who came past `point` (`NAME:N`).
    pub(crate) fn wait_for(&self, point: &str) {
        let (name, hit) = point.split_once(':').expect("NAME:N");
        let wanted: usize = hit.parse().expect("a number");
        super::deadline::wait_until(point, || {
            log_lines(&self.hits()).iter().filter(|hit| *hit == name).count() >= wanted
        });
    }

    /// Lets everybody through.
    pub(crate) fn open(self) {
        std::fs::remove_file(&self.0).expect("the gate was closed");
    }

    fn hits(&self) -> PathBuf {
        self.0.with_extension("hits")
    }
}

/// What a person would type to run the same.
fn typed(command: &Command, variables: &[(String, OsString)]) -> String {
    let mut words: Vec<String> = variables
        .iter()
        .map(|(name, value)| format!("{name}={}", value.to_string_lossy()))
        .collect();
    words.push(command.get_program().to_string_lossy().into_owned());
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    words.join(" ")
}

/// A process that was started and not yet waited for; killed when it goes.
pub(crate) struct Running {
    typed: String,
    child: Child,
    stdout: Stream,
    stderr: Stream,
}

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal; panics if the process has been waited for.
    pub(crate) fn signal(&self, signal: Signal) {
        let sent = kill_process(Pid::from_child(&self.child), signal);
        sent.unwrap_or_else(|cause| panic!("signal {signal:?} to {}: {cause}", self.typed));
    }

    /// Kills it with SIGKILL and waits until it is gone; it may have ended by itself before.
    pub(crate) fn kill(self) -> Outcome {
        self.signal(Signal::KILL);
        self.wait()
    }

    /// Waits until it ends; panics after [`WAIT_MAX`] with what it printed.
    pub(crate) fn wait(mut self) -> Outcome {
        let ended = poll(WAIT_MAX, || self.child.try_wait().expect("a child can be waited for"));
        let Some(status) = ended else { self.gave_up("ended") };
        self.outcome(status)
    }

    /// Waits until it has stopped itself; panics if it ends instead, or after [`WAIT_MAX`].
    pub(crate) fn wait_until_stopped(&mut self) {
        let pid = Pid::from_child(&self.child);
        // NOWAIT leaves the state to be seen again: the process is still ours to wait for.
        let options = WaitIdOptions::STOPPED
            | WaitIdOptions::EXITED
            | WaitIdOptions::NOHANG
            | WaitIdOptions::NOWAIT;
        let change = poll(WAIT_MAX, || waitid(WaitId::Pid(pid), options).expect("our own child"));
        match change {
            Some(state) if state.stopped() => {}
            Some(_) => self.gave_up("stopped itself, but it ended"),
            None => self.gave_up("stopped itself"),
        }
    }

    /// Waits for a line of standard output that `wanted` accepts, and returns it; panics if the
    /// process ends without it, or after [`WAIT_MAX`].
    pub(crate) fn wait_for_line(&mut self, wanted: impl Fn(&str) -> bool) -> String {
        let found = poll(WAIT_MAX, || {
            // Asked before the text is: what was printed before the end is then in the text.
            let complete = self.stdout.is_complete();
            let text = self.stdout.text();
            let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
            match whole.lines().find(|line| wanted(line)) {
                Some(line) => Some(Some(line.to_owned())),
                None if complete => Some(None),
                None => None,
            }
        });
        match found {
            Some(Some(line)) => line,
            Some(None) => self.gave_up("printed the line, but it closed its output"),
            None => self.gave_up("printed the line"),
        }
    }

    fn gave_up(&mut self, what: &str) -> ! {
        panic!(
            "waited in vain until this {what}: {}\nstdout: {}\nstderr: {}",
            self.typed,
            self.stdout.text(),
            self.stderr.text()
        )
    }

    fn outcome(mut self, status: ExitStatus) -> Outcome {
        self.stdout.finish(&self.typed);
        self.stderr.finish(&self.typed);
        Outcome {
            typed: self.typed.clone(),
            code: status.code(),
            signal: status.signal(),
            stdout: self.stdout.text(),
            stderr: self.stderr.text(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both do nothing once the process was waited for. A stopped process dies of SIGKILL too.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a process has printed so far on one of its streams.
struct Stream {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Stream {
    fn collect(mut pipe: impl Read + Send + 'static) -> Stream {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let collected = Arc::clone(&bytes);
        let reader = std::thread::spawn(move || {
            let mut block = [0; 8192];
            loop {
                match pipe.read(&mut block) {
                    Ok(0) => return,
                    Ok(length) => {
                        let mut bytes = collected.lock().expect("no reader panics");
                        bytes.extend_from_slice(&block[..length]);
                    }
                    Err(cause) if cause.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(cause) => panic!("read a pipe: {cause}"),
                }
            }
        });
        Stream { bytes, reader: Some(reader) }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().expect("no reader panics")).into_owned()
    }

    fn is_complete(&self) -> bool {
        self.reader.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits until all was read; panics if a child of the process keeps the stream open.
    fn finish(&mut self, typed: &str) {
        poll(WAIT_MAX, || self.is_complete().then_some(()))
            .unwrap_or_else(|| panic!("{typed} has ended and left its output open"));
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the reader of a pipe ends well");
        }
    }
}

/// How a process ended, and all it printed.
#[derive(Debug)]
pub(crate) struct Outcome {
    typed: String,
    /// The exit code; `None` if a signal ended it.
    pub(crate) code: Option<i32>,
    /// The signal that ended it; `None` if it exited.
    pub(crate) signal: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Outcome {
    /// The same outcome; panics with all that was printed unless the exit code is `code`.
    #[track_caller]
    pub(crate) fn expect_code(self, code: i32) -> Outcome {
        assert!(self.code == Some(code), "expected exit code {code} of {self}");
        self
    }

    /// The same outcome; panics with all that was printed unless SIGKILL ended it.
    #[track_caller]
    pub(crate) fn expect_killed(self) -> Outcome {
        assert!(self.signal == Some(Signal::KILL.as_raw()), "expected SIGKILL to end {self}");
        self
    }

    /// The lines of standard output as JSON; panics with the line that is none.
    #[track_caller]
    pub(crate) fn json_lines(&self) -> Vec<serde_json::Value> {
        let parse = |line: &str| {
            serde_json::from_str(line)
                .unwrap_or_else(|cause| panic!("not JSON, {cause}: {line}\nin {self}"))
        };
        self.stdout.lines().map(parse).collect()
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{}", self.typed)?;
        writeln!(f, "exit code {:?}, signal {:?}", self.code, self.signal)?;
        writeln!(f, "stdout: {}", self.stdout)?;
        write!(f, "stderr: {}", self.stderr)
    }
}
