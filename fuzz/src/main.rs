//! Runs the fuzz targets of the library under libFuzzer, with their memory counted.
//!
//! `all` is what `cargo xtask fuzz` runs. A single target takes the arguments of libFuzzer: a
//! folder to read and add to, or a file with an input that crashed, to repeat it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ffi::{CString, c_char, c_int};
use std::fs::File;
use std::io;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use tidemark::fuzz::{TARGETS, Target, memory_bytes_max};

// For the link to libFuzzer.
use libfuzzer_sys as _;

const USAGE: &str = "\
usage: tidemark-fuzz all SECONDS WORK-FOLDER CORPUS-FOLDER
       tidemark-fuzz TARGET [FILE|FOLDER]... [OPTION]...     as libFuzzer; `-help=1` lists options
targets:
";

unsafe extern "C" {
    /// libFuzzer's own `main`, for programs that have one themselves.
    fn LLVMFuzzerRunDriver(
        argc: *mut c_int,
        argv: *mut *mut *mut c_char,
        run: extern "C" fn(*const u8, usize) -> c_int,
    ) -> c_int;
}

/// What the binding's own entry would call; the driver is given [`run`] instead.
#[unsafe(no_mangle)]
fn rust_fuzzer_test_input(_: &[u8]) -> i32 {
    0
}

/// The system's allocator, counted.
struct Counting;

static LIVE: AtomicU64 = AtomicU64::new(0);
static PEAK: AtomicU64 = AtomicU64::new(0);

fn grow(bytes: usize) {
    let live = LIVE.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
    PEAK.fetch_max(live, Ordering::Relaxed);
}

fn shrink(bytes: usize) {
    LIVE.fetch_sub(bytes as u64, Ordering::Relaxed);
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        shrink(layout.size());
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        shrink(layout.size());
        grow(size);
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static TARGET: OnceLock<&'static Target> = OnceLock::new();

extern "C" fn run(data: *const u8, len: usize) -> c_int {
    let input = match len {
        0 => &[][..],
        // SAFETY: libFuzzer gives `len` readable bytes that stand until this returns.
        _ => unsafe { std::slice::from_raw_parts(data, len) },
    };
    let Some(target) = TARGET.get() else { return -1 };
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    (target.run)(input);
    let peak = PEAK.load(Ordering::Relaxed) - before;
    let bound = memory_bytes_max(len);
    assert!(peak <= bound, "{peak} bytes were held over {len} of input, at most {bound} are right");
    0
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = args.iter().skip(1).map(String::as_str).collect();
    match words[..] {
        ["all", seconds, work, corpus] => match run_all(seconds, Path::new(work), corpus) {
            Ok(code) => code,
            Err(cause) => {
                eprintln!("fuzz in {work}: {cause}");
                ExitCode::FAILURE
            }
        },
        [name, ..] if let Some(target) = TARGETS.iter().find(|target| target.name == name) => {
            run_one(target, &args)
        }
        _ => {
            eprint!("{USAGE}");
            TARGETS.iter().for_each(|target| eprintln!("  {}", target.name));
            ExitCode::from(2)
        }
    }
}

/// Every target in a process of its own, for some seconds each, also after one failed.
fn run_all(seconds: &str, work: &Path, corpus: &str) -> io::Result<ExitCode> {
    let program = std::env::current_exe()?;
    let crashes = work.join("crashes");
    std::fs::create_dir_all(&crashes)?;
    let mut failed = Vec::new();
    for target in TARGETS {
        let folder = work.join(target.name);
        std::fs::create_dir_all(&folder)?;
        for (at, seed) in (target.seeds)().iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{at:03}")), seed)?;
        }
        let log = work.join(format!("{}.log", target.name));
        let status = Command::new(&program)
            .arg(target.name)
            .arg(&folder)
            .arg(Path::new(corpus).join(target.name))
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-artifact_prefix={}/{}-", crashes.display(), target.name))
            .args(["-max_len=65536", "-timeout=10", "-rss_limit_mb=2048"])
            .stderr(File::create(&log)?)
            .status()?;
        let report = std::fs::read(&log)?;
        let report = String::from_utf8_lossy(&report);
        let done = report.lines().rfind(|line| line.contains("DONE")).unwrap_or_default();
        println!("{}: {status}, {}", target.name, done.trim());
        if !status.success() {
            println!("{report}");
            failed.push(target.name);
        }
    }
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("FAILED: {}; the inputs are in {}", failed.join(", "), crashes.display());
    Ok(ExitCode::FAILURE)
}

fn run_one(target: &'static Target, args: &[String]) -> ExitCode {
    // What a target makes once, for all runs, is no run's.
    if let Some(seed) = (target.seeds)().first() {
        (target.run)(seed);
    }
    TARGET.get_or_init(|| target);
    // libFuzzer writes its report and the input when the process aborts.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));

    // libFuzzer begins itself anew for a merge, by this word in front of others for a shell.
    let program = args[..2].join(" ");
    let words = std::iter::once(&program).chain(&args[2..]);
    let words: Vec<CString> =
        words.map(|word| CString::new(word.as_str()).expect("an argument has no NUL")).collect();
    let mut argv: Vec<*mut c_char> =
        words.iter().map(|word| word.as_ptr().cast_mut()).chain([std::ptr::null_mut()]).collect();
    let mut argc = words.len() as c_int;
    let mut argv = argv.as_mut_ptr();
    // SAFETY: `argc` words and a null pointer, which outlive the call; libFuzzer only reads them.
    let code = unsafe { LLVMFuzzerRunDriver(&raw mut argc, &raw mut argv, run) };
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
