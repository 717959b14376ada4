//! Throw-away PostgreSQL servers for tests, made from the machine's binaries.
//!
//! [`Cluster::start`] gives a server with a data directory of its own, reached through a
//! socket of its own, and gone with the value, also where the test is killed. It works as
//! root, where the server runs as another user since it refuses root, and as anybody else.
//! `cargo xtask test` installs the binaries.

#![allow(dead_code, reason = "each test binary compiles its own copy and uses a part of it")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test says by panicking what is wrong, and what the server said"
)]

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for a server to come or go.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// One installed server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    /// Major version.
    pub(crate) major: u32,
    /// Folder of its programs.
    pub(crate) bin: PathBuf,
}

/// Every server that this machine has, oldest first.
///
/// # Panics
/// If there is none: a test that needs a server is never passed by having none.
pub(crate) fn versions() -> Vec<Version> {
    let mut found: Vec<Version> = Vec::new();
    for (folder, prefix) in [("/usr/lib/postgresql", ""), ("/usr", "pgsql-")] {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        found.extend(entries.filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let major = name.strip_prefix(prefix)?.parse().ok()?;
            let bin = entry.path().join("bin");
            bin.join("initdb").is_file().then_some(Version { major, bin })
        }));
    }
    if found.is_empty() {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let bin = std::env::split_paths(&path).find(|folder| folder.join("initdb").is_file());
        found.extend(bin.map(|bin| {
            let said = Command::new(bin.join("initdb")).arg("--version").output().unwrap();
            let said = String::from_utf8_lossy(&said.stdout).into_owned();
            let number = said.split_whitespace().last().unwrap_or_default();
            let major = number.split('.').next().unwrap().parse().expect("a version");
            Version { major, bin }
        }));
    }
    found.sort_by_key(|version| version.major);
    assert!(
        !found.is_empty(),
        "no PostgreSQL server is installed here; `cargo xtask test` installs it"
    );
    found
}

/// The newest server that this machine has.
pub(crate) fn newest() -> Version {
    versions().pop().expect("there is one")
}

/// What a server is to be like.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    settings: Vec<(String, String)>,
    hba: Option<String>,
    tls: bool,
    tcp: bool,
}

impl Wanted {
    /// A server as tests mostly want it: quick, and good for logical decoding.
    pub(crate) fn new() -> Wanted {
        Wanted::default()
    }

    /// The same with a setting, as in `postgresql.conf` without its quotes.
    #[must_use]
    pub(crate) fn with(mut self, name: &str, value: &str) -> Wanted {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The same, listening on 127.0.0.1 too.
    #[must_use]
    pub(crate) fn on_tcp(mut self) -> Wanted {
        self.tcp = true;
        self
    }

    /// The same with a certificate for `localhost`: see [`Cluster::root_certificate`].
    #[must_use]
    pub(crate) fn with_tls(mut self) -> Wanted {
        self.tls = true;
        self.on_tcp()
    }

    /// The same with another `pg_hba.conf`; without one, everybody is trusted.
    #[must_use]
    pub(crate) fn with_hba(mut self, hba: &str) -> Wanted {
        self.hba = Some(hba.to_owned());
        self
    }
}

/// A running server, stopped when the value goes.
#[derive(Debug)]
pub(crate) struct Cluster {
    version: Version,
    folder: tempfile::TempDir,
    port: u16,
    guard: Option<Guard>,
}

/// The shell that holds the server: it ends the server when its standard input ends, which
/// it does with the test's process, however that ends.
#[derive(Debug)]
struct Guard {
    shell: Child,
    input: Option<ChildStdin>,
}

const GUARD: &str = r#"
"$@" <&- &
server=$!
read -r how
kill "-${how:-QUIT}" "$server" 2>/dev/null
wait "$server"
"#;

impl Cluster {
    /// A server of `version` as `wanted`, ready for connections.
    pub(crate) fn start(version: &Version, wanted: &Wanted) -> Cluster {
        let folder = tempfile::Builder::new().prefix("tidemark-pg-").tempdir().unwrap();
        give_to_server(folder.path());
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let port = if wanted.tcp { free_port() } else { 5432 };
        let mut cluster = Cluster { version: version.clone(), folder, port, guard: None };
        copy_template(version, &cluster.data());
        cluster.configure(wanted);
        cluster.run();
        cluster
    }

    /// The newest server of this machine as tests mostly want it.
    pub(crate) fn newest() -> Cluster {
        Cluster::start(&newest(), &Wanted::new())
    }

    /// A standby of this server, which follows it and answers readers.
    pub(crate) fn standby(&self) -> Cluster {
        let folder = tempfile::Builder::new().prefix("tidemark-pg-").tempdir().unwrap();
        give_to_server(folder.path());
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let version = self.version.clone();
        let mut standby = Cluster { version, folder, port: 5432, guard: None };
        let (socket, port) = (self.folder.path().display().to_string(), self.port.to_string());
        let data = standby.data().display().to_string();
        run_as_server(
            self.version.bin.join("pg_basebackup"),
            &["-h", &socket, "-p", &port, "-U", "postgres", "-D", &data, "-R", "-c", "fast"],
        );
        let own = standby.folder.path().display();
        let settings = format!("unix_socket_directories = '{own}'\nport = 5432\n");
        append(&standby.data().join("postgresql.conf"), &settings);
        standby.run();
        standby
    }

    /// Its version.
    pub(crate) fn version(&self) -> &Version {
        &self.version
    }

    /// Its data directory.
    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// A folder that the server can write to, for tablespaces and the like.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Port on 127.0.0.1, if it was [asked for](Wanted::on_tcp), and of the socket.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// URL of a database for a user, through the socket.
    pub(crate) fn url_of(&self, user: &str, database: &str) -> String {
        let socket = self.folder.path().display().to_string().replace('/', "%2F");
        format!("postgres://{user}@{socket}:{}/{database}?sslmode=disable", self.port)
    }

    /// URL of the database `postgres` for its superuser, through the socket.
    pub(crate) fn url(&self) -> String {
        self.url_of("postgres", "postgres")
    }

    /// The certificate that signed the server's own.
    pub(crate) fn root_certificate(&self) -> PathBuf {
        self.folder.path().join("root.crt")
    }

    /// Runs statements as superuser in a database; what they print, columns by `|`.
    ///
    /// # Panics
    /// With the server's message if one of them fails.
    pub(crate) fn sql_in(&self, database: &str, sql: &str) -> String {
        let output = self.psql("postgres", database, sql);
        assert!(output.status.success(), "{sql}\n{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// The same in the database `postgres`.
    pub(crate) fn sql(&self, sql: &str) -> String {
        self.sql_in("postgres", sql)
    }

    /// Runs statements as any user; whatever comes of it.
    pub(crate) fn psql(&self, user: &str, database: &str, sql: &str) -> Output {
        let mut psql = Command::new(self.version.bin.join("psql"))
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h"])
            .arg(self.folder.path())
            .args(["-p", &self.port.to_string(), "-U", user, "-d", database])
            .env_remove("PGOPTIONS")
            .env("PGCLIENTENCODING", "UTF8")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = psql.stdin.take().unwrap();
        let sql = sql.to_owned();
        // Beside the reading, or a long answer would stop the question.
        let writing = std::thread::spawn(move || {
            let _ = input.write_all(sql.as_bytes());
        });
        let output = psql.wait_with_output().unwrap();
        writing.join().unwrap();
        output
    }

    /// Runs one of the server's programs, like `pg_dump`, against it.
    pub(crate) fn program(&self, name: &str) -> Command {
        let mut program = Command::new(self.version.bin.join(name));
        program
            .env("PGHOST", self.folder.path())
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "postgres");
        program
    }

    /// The server's first process.
    pub(crate) fn postmaster(&self) -> u32 {
        let pid = fs::read_to_string(self.data().join("postmaster.pid")).unwrap();
        pid.lines().next().unwrap().parse().unwrap()
    }

    /// Ends the server's first process at once, as a crash of the machine's memory would; the
    /// others end with it.
    pub(crate) fn kill_9(&mut self) {
        let pid = self.postmaster().to_string();
        assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
        self.end("QUIT");
    }

    /// Stops the server as its keeper would: sessions are ended, the data is flushed.
    pub(crate) fn stop(&mut self) {
        self.end("INT");
    }

    /// Starts it again, on the same data.
    pub(crate) fn start_again(&mut self) {
        assert!(self.guard.is_none(), "it runs");
        self.run();
    }

    /// What the server wrote to its log.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn configure(&self, wanted: &Wanted) {
        let socket = self.folder.path().display().to_string();
        let listen = if wanted.tcp { "127.0.0.1" } else { "" };
        let mut settings: Vec<(&str, &str)> = vec![
            // The page cache survives the server, which is all that these tests kill.
            ("fsync", "off"),
            ("full_page_writes", "off"),
            ("unix_socket_directories", &socket),
            ("listen_addresses", listen),
            ("wal_level", "logical"),
            ("max_wal_senders", "20"),
            ("max_replication_slots", "20"),
            ("max_connections", "60"),
            ("shared_buffers", "32MB"),
            ("autovacuum", "off"),
            ("lc_messages", "C"),
            ("log_statement", "none"),
        ];
        let port = self.port.to_string();
        settings.push(("port", &port));
        if wanted.tls {
            make_certificates(self.folder.path());
            settings.push(("ssl", "on"));
        }
        let certificate = self.folder.path().join("server.crt").display().to_string();
        let key = self.folder.path().join("server.key").display().to_string();
        if wanted.tls {
            settings.extend([("ssl_cert_file", &*certificate), ("ssl_key_file", &*key)]);
        }
        settings.extend(wanted.settings.iter().map(|(name, value)| (&**name, &**value)));
        let lines = settings.iter().map(|(name, value)| format!("{name} = '{value}'\n"));
        append(&self.data().join("postgresql.conf"), &lines.collect::<String>());
        if let Some(hba) = &wanted.hba {
            fs::write(self.data().join("pg_hba.conf"), hba).unwrap();
        }
    }

    fn run(&mut self) {
        // A server that was killed leaves processes that let go of its memory a moment later.
        let ready = poll(|| {
            let logged = self.log().len();
            let mut guard = self.spawn();
            let begun = poll(|| {
                // The guard goes on reading what to do when the server has given up.
                let has_given_up = self.log()[logged..].contains("pre-existing shared memory");
                if has_given_up || guard.shell.try_wait().unwrap().is_some() {
                    return Some(false);
                }
                self.is_ready().then_some(true)
            });
            match begun {
                Some(true) => Some(guard),
                _ => None,
            }
        });
        let guard = ready.unwrap_or_else(|| panic!("the server did not start:\n{}", self.log()));
        self.guard = Some(guard);
    }

    fn spawn(&self) -> Guard {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.folder.path().join("log"))
            .unwrap();
        let mut shell = Command::new("sh");
        shell
            .args(["-c", GUARD, "guard"])
            .arg(self.version.bin.join("postgres"))
            .arg("-D")
            .arg(self.data())
            .current_dir(self.folder.path())
            .stdin(Stdio::piped())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        as_server(&mut shell);
        let mut shell = shell.spawn().unwrap();
        let input = shell.stdin.take();
        Guard { shell, input }
    }

    fn is_ready(&self) -> bool {
        let asked = Command::new(self.version.bin.join("pg_isready"))
            .args(["-q", "-h"])
            .arg(self.folder.path())
            .args(["-p", &self.port.to_string()])
            .status();
        asked.unwrap().success()
    }

    fn end(&mut self, signal: &str) {
        let Some(mut guard) = self.guard.take() else { return };
        if let Some(mut input) = guard.input.take() {
            let _ = writeln!(input, "{signal}");
        }
        let ended = poll(|| guard.shell.try_wait().unwrap());
        assert!(ended.is_some(), "the server did not stop:\n{}", self.log());
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let from = log.len().saturating_sub(4000);
            let tail = log.get(from..).unwrap_or(&log);
            eprintln!("the end of the server's log:\n{tail}");
        }
        self.end("QUIT");
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.shell.wait();
    }
}

/// The user that servers run as where the tests run as root.
fn server_user() -> Option<(u32, u32)> {
    let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
    is_root.then(|| {
        let users = fs::read_to_string("/etc/passwd").unwrap();
        let user = |wanted: &str| {
            let line = users.lines().find(|line| line.split(':').next() == Some(wanted))?;
            let mut ids = line.split(':').skip(2).map(|id| id.parse().ok());
            Some((ids.next()??, ids.next()??))
        };
        user("postgres").or_else(|| user("nobody")).expect("a user other than root")
    })
}

fn as_server(command: &mut Command) {
    if let Some((user, group)) = server_user() {
        command.uid(user).gid(group);
    }
}

fn give_to_server(path: &Path) {
    if let Some((user, group)) = server_user() {
        chown(path, Some(user), Some(group)).unwrap();
    }
}

/// Runs a program as the user of servers; panics with what it said if it fails.
fn run_as_server(program: impl AsRef<OsStr>, args: &[&str]) {
    let mut command = Command::new(&program);
    command.args(args).current_dir("/");
    as_server(&mut command);
    let output = command.output().unwrap_or_else(|cause| {
        panic!("start `{}`: {cause}", program.as_ref().to_string_lossy());
    });
    assert!(
        output.status.success(),
        "`{}` failed: {}",
        program.as_ref().to_string_lossy(),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Copies the files of an empty cluster to `data`: `initdb` takes a second, a copy a tenth.
///
/// The first test that needs one makes it, under another name first: of several at once, the
/// last one's stays, and all of them are whole.
fn copy_template(version: &Version, data: &Path) {
    let user =
        server_user().map_or_else(|| fs::metadata("/proc/self").unwrap().uid(), |(user, _)| user);
    // Found by the programs' age too: a newer minor may begin differently.
    let age = fs::metadata(version.bin.join("initdb")).unwrap().mtime();
    let name = format!("tidemark-initdb-{}-{user}-{age}", version.major);
    let template = std::env::temp_dir().join(name);
    if !template.join("PG_VERSION").is_file() {
        let making = tempfile::Builder::new().prefix("tidemark-initdb-").tempdir().unwrap();
        give_to_server(making.path());
        let fresh = making.path().join("data");
        let at = fresh.display().to_string();
        let args = [
            "-D",
            &at,
            "-U",
            "postgres",
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
            "--auth=trust",
        ];
        run_as_server(version.bin.join("initdb"), &args);
        // Taken by another test meanwhile: theirs is as good.
        let _ = fs::rename(&fresh, &template);
    }
    assert_eq!(
        fs::metadata(&template).unwrap().uid(),
        user,
        "somebody else's `{}` is in the way; remove it",
        template.display()
    );
    run_as_server("cp", &["-a", &template.display().to_string(), &data.display().to_string()]);
}

/// A root certificate, and one for `localhost` that it signed.
fn make_certificates(folder: &Path) {
    let at = |name: &str| folder.join(name).display().to_string();
    let openssl = |args: &[&str]| run_as_server("openssl", args);
    fs::write(at("names"), "subjectAltName=DNS:localhost\n").unwrap();
    let key = |name: &str| {
        openssl(&["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", &at(name)]);
        fs::set_permissions(at(name), fs::Permissions::from_mode(0o600)).unwrap();
    };
    key("root.key");
    key("server.key");
    let (root_key, root) = (at("root.key"), at("root.crt"));
    openssl(&[
        "req",
        "-x509",
        "-new",
        "-key",
        &root_key,
        "-days",
        "2",
        "-subj",
        "/CN=tidemark test root",
        "-addext",
        "basicConstraints=critical,CA:TRUE",
        "-out",
        &root,
    ]);
    let request = at("server.csr");
    openssl(&[
        "req",
        "-new",
        "-key",
        &at("server.key"),
        "-subj",
        "/CN=localhost",
        "-out",
        &request,
    ]);
    openssl(&[
        "x509",
        "-req",
        "-in",
        &request,
        "-CA",
        &root,
        "-CAkey",
        &root_key,
        "-CAcreateserial",
        "-days",
        "2",
        "-extfile",
        &at("names"),
        "-out",
        &at("server.crt"),
    ]);
}

fn append(path: &Path, text: &str) {
    let mut file = fs::OpenOptions::new().append(true).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// Asks again and again until there is an answer; `None` when that took too long.
#[expect(clippy::disallowed_methods, reason = "servers run on the real clock")]
pub(crate) fn poll<T>(mut answer: impl FnMut() -> Option<T>) -> Option<T> {
    let begun = Instant::now();
    loop {
        if let Some(answer) = answer() {
            return Some(answer);
        }
        if begun.elapsed() >= WAIT_MAX {
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
