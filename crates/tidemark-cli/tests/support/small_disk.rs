//! A disk of few KiB that is really full when it is full: a file system in memory, mounted where
//! only the processes of its test see it.
//!
//! Whoever runs the tests may mount inside a namespace of their own: root in one of mounts, others
//! in one of users as well. Where the system forbids both, the test fails and says so.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A mounted disk; gone with its last process.
pub(crate) struct SmallDisk {
    /// Keeps the namespaces: a program that waits until its standard input ends.
    keeper: Child,
    namespaces: Namespaces,
    folder: PathBuf,
}

/// The mounts that a process sees.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mounts {
    pid: u32,
    namespaces: Namespaces,
}

/// What the keeper does not share with the test.
#[derive(Clone, Copy, Debug)]
enum Namespaces {
    Mounts,
    UsersAndMounts,
}

impl SmallDisk {
    /// A disk of `kib` KiB at `folder`, which is made.
    pub(crate) fn mount(folder: &Path, kib: u32) -> SmallDisk {
        std::fs::create_dir(folder).unwrap();
        let mut told = Vec::new();
        for namespaces in [Namespaces::Mounts, Namespaces::UsersAndMounts] {
            match try_mount(folder, kib, namespaces) {
                Ok(keeper) => return SmallDisk { keeper, namespaces, folder: folder.to_owned() },
                Err(why) => told.push(why),
            }
        }
        panic!(
            "this test fills a disk of its own, and nothing can be mounted here: it wants \
             util-linux, and root with CAP_SYS_ADMIN or a system that lets users make namespaces \
             (`sysctl user.max_user_namespaces`): {}",
            told.join("; ")
        );
    }

    /// What a process must see to see the disk.
    pub(crate) fn mounts(&self) -> Mounts {
        Mounts { pid: self.keeper.id(), namespaces: self.namespaces }
    }

    /// Gives the disk another size.
    pub(crate) fn resize(&self, kib: u32) {
        self.run(&format!("mount -o remount,size={kib}k ."));
    }

    /// Takes all the room that is left, to the last page.
    pub(crate) fn fill(&self) {
        self.run("! cat /dev/zero > filler 2> /dev/null");
    }

    /// Empties the disk and gives it another size.
    pub(crate) fn begin_anew(&self, kib: u32) {
        self.run(&format!("rm -rf ./* && mount -o remount,size={kib}k ."));
    }

    /// Runs a shell script in the folder of the disk.
    fn run(&self, script: &str) {
        let ended = self.mounts().command(script, &self.folder).output().unwrap();
        assert!(ended.status.success(), "{script}: {}", String::from_utf8_lossy(&ended.stderr));
    }
}

impl Mounts {
    /// A shell script that sees these mounts, in `folder`; its arguments are to follow.
    pub(crate) fn command(self, script: &str, folder: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", self.pid)).arg("--mount");
        match self.namespaces {
            Namespaces::Mounts => {}
            Namespaces::UsersAndMounts => {
                command.args(["--user", "--preserve-credentials"]);
            }
        }
        // Whoever enters begins at the root of what is mounted there.
        let script = format!("cd \"$0\" && {script}");
        command.args(["--", "/bin/sh", "-c", &script]).arg(folder);
        command
    }
}

/// The keeper of a new namespace with the disk in it, or why there is none.
fn try_mount(folder: &Path, kib: u32, namespaces: Namespaces) -> Result<Child, String> {
    let script = "mount -t tmpfs -o \"size=$1\" tmpfs \"$0\" && echo mounted && exec cat";
    let mut command = Command::new("unshare");
    command.arg(match namespaces {
        Namespaces::Mounts => "-m",
        Namespaces::UsersAndMounts => "-Urm",
    });
    command.args(["/bin/sh", "-c", script]).arg(folder).arg(format!("{kib}k"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut keeper = command.spawn().map_err(|cause| format!("start unshare: {cause}"))?;
    let mut line = String::new();
    let stdout = keeper.stdout.as_mut().expect("stdout is piped");
    BufReader::new(stdout).read_line(&mut line).expect("the pipe of a child can be read");
    if line == "mounted\n" {
        return Ok(keeper);
    }
    let ended = keeper.wait_with_output().expect("a child can be waited for");
    Err(String::from_utf8_lossy(&ended.stderr).trim().to_owned())
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Both do nothing once it is gone.
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}
