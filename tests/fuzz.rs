//! The fuzz targets' bodies without a fuzzer: over their seeds, and over inputs that are made of
//! the seeds or of nothing, from a printed number. Needs nothing.
//!
//! `make fuzz` runs the same bodies for as long as asked, guided by coverage. What it finds becomes
//! a seed here: a file in `fuzz/seeds`.

#[path = "../fuzz/src/bodies/mod.rs"]
mod bodies;
mod common;

use std::fs;
use std::path::{Path, PathBuf};

use bodies::{TARGETS, Target};

/// Length of a made input, at most.
const LENGTH_MAX: usize = 512;
/// Changes of one seed, at most.
const CHANGES_MAX: usize = 4;

/// Shows the input that a body did not survive.
struct Shown<'a>(&'a str, &'a [u8]);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Shown(name, input) = self;
            println!("an input of {name}: b\"{}\"", input.escape_ascii());
        }
    }
}

fn play(target: &Target, input: &[u8]) -> bool {
    let _shown = Shown(target.name, input);
    (target.body)(input)
}

/// The files of a folder; none where there is no such folder.
fn files(folder: &str) -> Vec<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let entries = fs::read_dir(root.join(folder)).into_iter().flatten();
    let paths = entries.map(|entry| entry.expect("a folder of ours").path());
    let mut paths: Vec<PathBuf> = paths.filter(|path| path.is_file()).collect();
    // A folder has no order.
    paths.sort();
    let read = |path: &PathBuf| fs::read(path).expect("a file of ours");
    paths.iter().map(read).collect()
}

/// An input: bytes, or a seed with some changes.
fn make(random: &mut fastrand::Rng, seeds: &[Vec<u8>], is_text: bool) -> Vec<u8> {
    if seeds.is_empty() || (!is_text && random.bool()) {
        let length = random.usize(0..LENGTH_MAX);
        return (0..length).map(|_| random.u8(..)).collect();
    }
    let mut input = seeds[random.usize(0..seeds.len())].clone();
    for _ in 0..random.usize(0..=CHANGES_MAX) {
        let at = random.usize(0..=input.len());
        let end = (at + random.usize(0..8)).min(input.len());
        match random.u8(0..6) {
            0 => drop(input.drain(at..end)),
            1 => input.splice(at..end, [random.u8(..)]).for_each(drop),
            // A digit for another, or for a sign.
            2 => {
                let places: Vec<usize> = (0..input.len())
                    .filter(|at| input[*at].is_ascii_digit())
                    .collect();
                if !places.is_empty() {
                    let other = random.choice(b"0123456789-.").copied();
                    input[places[random.usize(0..places.len())]] = other.expect("some");
                }
            }
            // A line once more, or one of another seed.
            3 | 4 => {
                let other = &seeds[random.usize(0..seeds.len())];
                let lines: Vec<&[u8]> = other.split_inclusive(|byte| *byte == b'\n').collect();
                if !lines.is_empty() {
                    let line = lines[random.usize(0..lines.len())].to_vec();
                    let start = input[..at].iter().rposition(|byte| *byte == b'\n');
                    let start = start.map_or(0, |newline| newline + 1);
                    input.splice(start..start, line).for_each(drop);
                }
            }
            _ => {
                if end > at {
                    input[at] ^= 1 << random.u8(0..8);
                }
            }
        }
    }
    input
}

fn check(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name);
    let target = target.expect("the target is in the list");
    let seed = common::seed();
    println!("TIDEMARK_SEED={seed}");
    let seeds = files(&format!("fuzz/seeds/{name}"));
    play(target, &[]);
    for input in &seeds {
        play(target, input);
    }
    if let Some(folder) = target.examples {
        for input in files(folder) {
            play(target, &input);
        }
    }
    let mut random = fastrand::Rng::with_seed(seed);
    let mut reached = 0;
    for _ in 0..target.inputs {
        let input = make(&mut random, &seeds, target.is_text);
        reached += u64::from(play(target, &input));
    }
    let percent = 100 * reached / target.inputs;
    println!(
        "{percent} % of {} inputs got to what {name} is about",
        target.inputs
    );
    assert!(percent >= target.reach_percent, "{percent} % of the inputs");
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            check(stringify!($name));
        })*

        #[test]
        fn every_target_is_played_here_and_by_the_fuzzer() {
            let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(names, [$(stringify!($name)),*]);
            let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
            let manifest = fs::read_to_string(root.join("Cargo.toml")).expect("it is there");
            for name in names {
                let path = format!("targets/{name}.rs");
                assert!(manifest.contains(&format!("path = {path:?}")), "{path}");
                let text = fs::read_to_string(root.join(&path)).expect("what is listed is there");
                assert!(text.contains(&format!("run({name:?}, data)")), "{path}");
            }
        }
    };
}

targets! { balloon block mmio console link manager kernel control fleet scenario }
