//! The verbs, one file each: from what was typed to a result and an exit code.

use tidemark::Result;

use crate::args::{DbArgs, OperationArgs, VerbArgs};
use crate::exit::Exit;
use crate::output::Output;

mod backup;
mod backups;
mod db;
mod demo;
mod operation;
mod restore;
#[cfg(feature = "postgres")]
mod source;
mod verify;

/// Does what was asked.
///
/// # Errors
/// What ended it; see [`exit::of_kind`](crate::exit::of_kind) for the code.
pub(crate) fn run(verb: VerbArgs, output: Output) -> Result<Exit> {
    match verb {
        VerbArgs::Db(DbArgs::Load(args)) => db::load::run(args, output),
        VerbArgs::Db(DbArgs::Dump(args)) => db::dump::run(&args, output),
        VerbArgs::Db(DbArgs::Tables(args)) => db::tables::run(&args, output),
        VerbArgs::Db(DbArgs::Drop(args)) => db::drop::run(&args, output),
        VerbArgs::Db(DbArgs::Collections(args)) => db::collections::run(&args, output),
        VerbArgs::Backup(args) => backup::run(&args, output),
        #[cfg(feature = "postgres")]
        VerbArgs::Source(args) => source::run(&args, output),
        VerbArgs::Backups(args) => backups::run(&args, output),
        VerbArgs::Restore(args) => restore::run(&args, output),
        VerbArgs::Verify(args) => verify::run(&args, output),
        VerbArgs::Demo(args) => demo::run(&args, output),
        VerbArgs::Operation(verb) => match verb {
            OperationArgs::List(args) => operation::list::run(&args, output),
            OperationArgs::Get(args) => operation::get::run(&args, output),
            OperationArgs::Watch(args) => operation::watch::run(&args, output),
            OperationArgs::Wait(args) => operation::wait::run(&args, output),
            OperationArgs::Pause(args) => operation::pause::run(&args, output),
            OperationArgs::Resume(args) => operation::resume::run(&args, output),
            OperationArgs::Cancel(args) => operation::cancel::run(&args, output),
            OperationArgs::Forget(args) => operation::forget::run(&args, output),
            OperationArgs::Set(args) => operation::set::run(&args, output),
        },
    }
}
