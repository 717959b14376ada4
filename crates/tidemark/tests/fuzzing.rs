//! Every fuzz target over its corpus and over some thousand mutations of it.
//!
//! The same targets run under libFuzzer with `cargo xtask fuzz`; what that finds is put into
//! the corpus, `fuzz/corpus/<target>/`, and then runs here.
#![cfg(feature = "fuzzing")]
#![allow(clippy::unwrap_used, reason = "a test says by panicking what is wrong")]

mod counting;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use counting::{Counting, peak_of};
use tidemark::fuzz::{TARGETS, Target, memory_bytes_max};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SEED: u64 = 0x7469_6465_6d61_726b;
/// Mutations per target: together they take some seconds without optimisation.
const MUTATIONS: u64 = 2_000;

fn corpus_root() -> PathBuf {
    Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("../../fuzz/corpus")
}

/// The checked-in inputs of a target, by the names of their files.
fn corpus(target: &Target) -> Vec<(String, Vec<u8>)> {
    let folder = corpus_root().join(target.name);
    let mut inputs: Vec<(String, Vec<u8>)> = std::fs::read_dir(&folder)
        .unwrap_or_else(|cause| panic!("{}: {cause}", folder.display()))
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())
        })
        .collect();
    inputs.sort();
    inputs
}

/// xorshift64*: any generator will do, if it replays.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let drawn = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        drawn as usize % bound.max(1)
    }

    /// Some changes of the kinds that fuzzers make.
    fn mutate(&mut self, input: &mut Vec<u8>, other: &[u8]) {
        const EXTREMES: [&[u8]; 8] = [
            &[0],
            &[0xff],
            &[0x7f],
            &[0xff, 0xff, 0xff, 0xff],
            &[0xff, 0xff, 0xff, 0x7f],
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
            b"18446744073709551615",
            b"\"",
        ];
        for _ in 0..1 + self.below(4) {
            let at = self.below(input.len() + 1);
            let end = (at + 1 + self.below(16)).min(input.len());
            match self.below(7) {
                0 if at < input.len() => input[at] ^= 1 << self.below(8),
                1 if at < input.len() => input[at] = self.below(256) as u8,
                2 => drop(input.drain(at.min(end)..end)),
                3 => input.truncate(at),
                4 => {
                    let extreme = EXTREMES[self.below(EXTREMES.len())];
                    input.splice(at.min(end)..end, extreme.iter().copied());
                }
                5 => {
                    let from = self.below(other.len());
                    let to = (from + 1 + self.below(32)).min(other.len());
                    input.splice(at..at, other[from.min(to)..to].iter().copied());
                }
                _ => {
                    let copied = input[at.min(end)..end].to_vec();
                    input.splice(at..at, copied);
                }
            }
        }
    }
}

/// Runs one input; says what was wrong with it, in a way that replays.
fn run(target: &Target, what: &str, input: &[u8]) {
    let (outcome, peak) = peak_of(|| catch_unwind(AssertUnwindSafe(|| (target.run)(input))));
    let shown: String =
        input.iter().flat_map(|byte| std::ascii::escape_default(*byte)).map(char::from).collect();
    assert!(outcome.is_ok(), "{}, {what}: it panicked, see above, over b\"{shown}\"", target.name);
    let bound = memory_bytes_max(input.len());
    assert!(peak <= bound, "{}, {what}: {peak} bytes, at most {bound}: b\"{shown}\"", target.name);
}

#[test]
fn no_input_of_the_corpus_and_no_mutation_of_one_crashes_a_parser_or_fills_the_memory() {
    for target in TARGETS {
        let seeds = (target.seeds)();
        assert!(!seeds.is_empty(), "{} has no seeds", target.name);
        let seeds = seeds.into_iter().enumerate().map(|(at, seed)| (format!("seed {at}"), seed));
        let inputs: Vec<(String, Vec<u8>)> = seeds.chain(corpus(target)).collect();
        // What is made once, for all runs, is no run's.
        (target.run)(&inputs[0].1);
        for (what, input) in &inputs {
            run(target, what, input);
        }
        let mut dice = Dice(SEED);
        for number in 0..MUTATIONS {
            let (_, base) = &inputs[dice.below(inputs.len())];
            let (_, other) = &inputs[dice.below(inputs.len())];
            let mut input = base.clone();
            dice.mutate(&mut input, other);
            run(target, &format!("mutation {number}"), &input);
        }
    }
}

#[test]
fn the_corpus_has_a_folder_for_every_target_and_stays_small() {
    let named: BTreeSet<String> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    let folders: BTreeSet<String> = std::fs::read_dir(corpus_root())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(folders, named);
    let bytes: usize = TARGETS.iter().flat_map(corpus).map(|(_, input)| input.len()).sum();
    assert!(bytes < 1 << 20, "{bytes} bytes");
}
