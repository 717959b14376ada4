//! The programs that stages need beside cargo and rustc, and how to get them.
//!
//! No C compiler is looked for: this program could not have been linked without.

use std::path::Path;
use std::process::Command;

use crate::stage::command_in;

/// A program that a stage needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tool {
    pub(crate) name: &'static str,
    /// The command that succeeds, and prints the version, where the tool is present.
    pub(crate) probe: &'static [&'static str],
    pub(crate) install: Install,
}

/// What installs a tool.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Install {
    /// These commands, one after another.
    Commands(&'static [&'static [&'static str]]),
    /// The system's package manager, as a package of that name.
    Package(&'static str),
    /// The same, every server of PostgreSQL that it offers.
    PostgresServers,
}

pub(crate) const RUSTFMT: Tool = Tool {
    name: "rustfmt",
    probe: &["cargo", "fmt", "--version"],
    install: Install::Commands(&[&["rustup", "component", "add", "rustfmt"]]),
};

pub(crate) const CLIPPY: Tool = Tool {
    name: "clippy",
    probe: &["cargo", "clippy", "--version"],
    install: Install::Commands(&[&["rustup", "component", "add", "clippy"]]),
};

/// Runs each test in its own process, with a deadline.
pub(crate) const NEXTEST: Tool = Tool {
    name: "cargo-nextest",
    probe: &["cargo", "nextest", "--version"],
    // A fixed version, so that a new release cannot break an old commit.
    install: Install::Commands(&[&[
        "cargo",
        "install",
        "--locked",
        "cargo-nextest",
        "--version",
        "0.9.143",
    ]]),
};

/// Checks `deny.toml`.
pub(crate) const DENY: Tool = Tool {
    name: "cargo-deny",
    probe: &["cargo", "deny", "--version"],
    install: Install::Commands(&[&[
        "cargo",
        "install",
        "--locked",
        "cargo-deny",
        "--version",
        "0.20.2",
    ]]),
};

/// Shows the tests what the program syncs, and when.
pub(crate) const STRACE: Tool =
    Tool { name: "strace", probe: &["strace", "--version"], install: Install::Package("strace") };

/// The command line of a peer of the benchmark.
pub(crate) const SQLITE: Tool = Tool {
    name: "sqlite3",
    probe: &["sqlite3", "--version"],
    install: Install::Package("sqlite3"),
};

/// Python with the libraries of the benchmark's peers, in the target folder.
pub(crate) const PEERS: Tool = Tool {
    name: "DuckDB and SQLite for Python",
    probe: &[
        "target/peers/bin/python",
        "-c",
        "import apsw, duckdb; print('DuckDB', duckdb.__version__, 'SQLite', apsw.sqlite_lib_version())",
    ],
    install: Install::Commands(&[
        &["python3", "-m", "venv", "target/peers"],
        &["target/peers/bin/pip", "install", "--quiet", "duckdb==2.0.1", "apsw==3.54.1.0"],
    ]),
};

/// Servers that tests start, every major version that the package manager offers; with OpenSSL,
/// which makes their certificates. Where it offers one by one, all of them must be there.
pub(crate) const POSTGRES: Tool = Tool {
    name: "PostgreSQL servers",
    probe: &["sh", "-c", POSTGRES_PROBE],
    install: Install::PostgresServers,
};

const POSTGRES_PROBE: &str = "\
for major in $(apt-cache --names-only search '^postgresql-[0-9]+$' 2>/dev/null \
    | sed 's/postgresql-\\([0-9]*\\) .*/\\1/'); do
    test -x /usr/lib/postgresql/$major/bin/initdb || exit 1
done
for initdb in /usr/lib/postgresql/*/bin/initdb /usr/pgsql-*/bin/initdb \"$(command -v initdb)\"; do
    test -x \"$initdb\" || continue
    version=$($initdb --version | sed 's/[^0-9]*\\([0-9]*\\).*/\\1/')
    case \" $found \" in *\" $version \"*) ;; *) found=\"${found:+$found }$version\" ;; esac
done
test -n \"$found\" && openssl version >/dev/null && echo \"PostgreSQL $found\"";

/// Every server that apt offers, without the cluster that Debian would make and start.
const APT_POSTGRES: &str = "\
mkdir -p /etc/postgresql-common
test -e /etc/postgresql-common/createcluster.conf \
    || echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.conf
apt-get install --yes --no-install-recommends openssl \
    $(apt-cache --names-only search '^postgresql-[0-9]+$' | sed 's/ .*//')";

/// What other package managers call the server, beside OpenSSL.
const POSTGRES_PACKAGES: [(&str, &str); 4] = [
    ("dnf", "postgresql-server"),
    ("apk", "postgresql"),
    ("pacman", "postgresql"),
    ("zypper", "postgresql-server"),
];

/// Package managers, in the order in which they are looked for, with the commands that come
/// before the name of a package; the last one takes it.
const PACKAGE_MANAGERS: [(&str, &[&[&str]]); 5] = [
    ("apt-get", &[&["update"], &["install", "--yes", "--no-install-recommends"]]),
    ("dnf", &[&["install", "--assumeyes"]]),
    ("apk", &[&["add", "--no-cache"]]),
    ("pacman", &[&["-Sy", "--noconfirm"]]),
    ("zypper", &[&["--non-interactive", "install"]]),
];

/// What a machine installs packages with.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    /// Its package manager's commands, and the name.
    manager: Option<(&'static str, &'static [&'static [&'static str]])>,
    is_root: bool,
    has_sudo: bool,
}

impl Machine {
    /// The machine this runs on.
    pub(crate) fn look() -> Machine {
        let user = Command::new("id").arg("-u").output();
        let is_root = user.is_ok_and(|user| user.stdout.trim_ascii() == b"0");
        Machine::with(is_on_path, is_root)
    }

    fn with(has: impl Fn(&str) -> bool, is_root: bool) -> Machine {
        let manager = PACKAGE_MANAGERS.into_iter().find(|(name, _)| has(name));
        Machine { manager, is_root, has_sudo: has("sudo") }
    }

    /// The commands that install every server of PostgreSQL that is offered.
    fn postgres_commands(&self) -> Result<Vec<Vec<String>>, String> {
        let named = |(manager, _): &(&str, &str)| self.manager.is_some_and(|it| it.0 == *manager);
        if let Some((_, package)) = POSTGRES_PACKAGES.into_iter().find(named) {
            let mut commands = self.commands(package)?;
            commands.iter_mut().next_back().expect("it installs").push("openssl".to_owned());
            return Ok(commands);
        }
        // With apt the same words come first, sudo or none, and then a script.
        let mut commands = self.commands("postgresql")?;
        let last = commands.pop().expect("it installs");
        let before = last.into_iter().take_while(|word| word != "apt-get");
        let script = ["sh", "-c", APT_POSTGRES].map(str::to_owned);
        commands.push(before.chain(script).collect());
        Ok(commands)
    }

    /// The commands that install a package, one after another.
    fn commands(&self, package: &str) -> Result<Vec<Vec<String>>, String> {
        let Some((manager, steps)) = self.manager else {
            let known = PACKAGE_MANAGERS.map(|(name, _)| name).join(", ");
            return Err(format!("no package manager is here ({known}); install {package} by hand"));
        };
        let before: &[&str] = match (self.is_root, self.has_sudo) {
            (true, _) => &[],
            (false, true) => &["sudo", "--non-interactive"],
            (false, false) => {
                return Err(format!("{manager} needs root, or sudo; install {package} by hand"));
            }
        };
        let begin = |step: &[&str]| -> Vec<String> {
            before.iter().chain(&[manager]).chain(step).map(|&word| word.to_owned()).collect()
        };
        let mut commands: Vec<Vec<String>> = steps.iter().map(|step| begin(step)).collect();
        commands.iter_mut().next_back().expect("it installs").push(package.to_owned());
        Ok(commands)
    }
}

fn is_on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

impl Tool {
    /// The commands that install it, one after another; or why there are none.
    pub(crate) fn install_commands(&self, machine: &Machine) -> Result<Vec<Vec<String>>, String> {
        match self.install {
            Install::Commands(commands) => {
                let owned = |words: &&[&str]| words.iter().map(|&word| word.to_owned()).collect();
                Ok(commands.iter().map(owned).collect())
            }
            Install::Package(package) => machine.commands(package),
            Install::PostgresServers => machine.postgres_commands(),
        }
    }

    /// The first line that the tool prints about itself; `None` where it is missing.
    pub(crate) fn version(&self, root: &Path) -> Option<String> {
        let (program, args) = self.probe.split_first()?;
        let output = command_in(root, program).args(args).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout);
        output.status.success().then(|| text.lines().next().unwrap_or(self.name).to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::{Machine, NEXTEST, PACKAGE_MANAGERS, POSTGRES, STRACE};

    fn installed_by(programs: &[&str], is_root: bool) -> Result<Vec<String>, String> {
        let machine = Machine::with(|program| programs.contains(&program), is_root);
        let commands = STRACE.install_commands(&machine)?;
        Ok(commands.iter().map(|words| words.join(" ")).collect())
    }

    #[test]
    fn a_package_comes_from_the_package_manager_that_is_there() {
        for (manager, _) in PACKAGE_MANAGERS {
            let commands = installed_by(&[manager], true).expect("commands");
            assert!(commands.iter().all(|command| command.starts_with(manager)), "{commands:?}");
            assert!(commands.last().is_some_and(|last| last.ends_with(" strace")), "{commands:?}");
        }
        let apt = ["apt-get update", "apt-get install --yes --no-install-recommends strace"];
        assert_eq!(installed_by(&["apt-get", "dnf"], true).expect("commands"), apt);
    }

    #[test]
    fn servers_come_from_every_package_manager_and_from_apt_in_every_version() {
        for (manager, _) in PACKAGE_MANAGERS {
            let machine = Machine::with(|program| program == manager, true);
            let commands = POSTGRES.install_commands(&machine).expect("commands");
            let last = commands.last().expect("a command").join(" ");
            assert!(last.contains("postgresql") && last.contains("openssl"), "{last}");
        }
        let machine = Machine::with(|program| ["apt-get", "sudo"].contains(&program), false);
        let commands = POSTGRES.install_commands(&machine).expect("commands");
        assert_eq!(commands[0].join(" "), "sudo --non-interactive apt-get update");
        assert_eq!(commands[1][..4], ["sudo", "--non-interactive", "sh", "-c"]);
        assert!(commands[1][4].contains("apt-cache"), "{commands:?}");
    }

    #[test]
    fn the_probe_for_servers_answers_with_versions_or_fails() {
        let output = std::process::Command::new("sh").args(&POSTGRES.probe[1..]).output();
        let output = output.expect("a shell");
        let said = String::from_utf8_lossy(&output.stdout);
        let is_version = |word: &str| word.bytes().all(|byte| byte.is_ascii_digit());
        let versions = said.trim_end().strip_prefix("PostgreSQL ");
        let all = versions.is_some_and(|versions| versions.split(' ').all(is_version));
        assert_eq!(output.status.success(), all, "{output:?}");
    }

    #[test]
    fn who_is_not_root_goes_through_sudo_or_is_told() {
        let commands = installed_by(&["dnf", "sudo"], false).expect("commands");
        assert_eq!(commands, ["sudo --non-interactive dnf install --assumeyes strace"]);
        assert!(installed_by(&["dnf"], false).is_err_and(|why| why.contains("root, or sudo")));
        assert!(installed_by(&["sudo"], true).is_err_and(|why| why.contains("by hand")));
    }

    #[test]
    fn a_tool_with_a_command_of_its_own_needs_no_package_manager() {
        let machine = Machine::with(|_| false, false);
        let commands = NEXTEST.install_commands(&machine).expect("commands");
        assert_eq!(commands.len(), 1);
        assert_eq!(commands[0][..2], ["cargo", "install"]);
    }
}
