//! Random sequences of calls, compared step by step.

use crate::compare::{Cases, cases, diff};
use crate::known::Known;
use crate::worlds::{Program, Worlds};

/// Sequences over loopback, unless `RINGLAB_PARITY_SEQUENCES` says how many.
const SEQUENCES: u64 = 10_000;
/// One sequence over the link for so many over loopback, which take less time.
const A_LINK: u64 = 5;
/// Sequences of one run: what it prints is kept in memory.
const CHUNK: u64 = 10_000;
/// So many sequences of a chunk may be answered by Linux now so, now so.
const WAVERING: usize = 4;

#[test]
fn random_sequences_over_loopback_are_answered_alike() {
    sequences("loop", wanted());
}

#[test]
fn random_sequences_over_the_link_are_answered_alike() {
    sequences("link", wanted().div_ceil(A_LINK));
}

fn wanted() -> u64 {
    from_environment("RINGLAB_PARITY_SEQUENCES", SEQUENCES)
}

fn from_environment(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name}: {text} is no number")))
}

fn sequences(mode: &str, count: u64) {
    let program = Program::compile();
    let worlds = Worlds::new(&program);
    let mut first = from_environment("RINGLAB_PARITY_SEED", 1);
    let end = first + count;
    while first < end {
        let chunk = CHUNK.min(end - first);
        let (linux, ours) = run(&worlds, mode, first, chunk, &[]);
        assert_eq!(linux.len() as u64, chunk, "a sequence ended the run on Linux");
        let differs = |seed: &u64| {
            let (linux, ours) = (lines(&linux, *seed), lines(&ours, *seed));
            match mode {
                "loop" => Known::judge(&format!("random/{seed}"), &diff(linux, ours)).is_some(),
                _ => linux != ours,
            }
        };
        let (wavering, differing): (Vec<u64>, Vec<u64>) =
            (first..first + chunk).filter(differs).partition(|&seed| linux_wavers(&worlds, mode, seed, &linux));
        if let Some(&seed) = differing.first() {
            let seen = text(&diff(lines(&linux, seed), lines(&ours, seed)));
            let shrunk = shrink(&worlds, mode, seed, &linux, &ours);
            panic!(
                "{} of {chunk} sequences differ (or no longer, as known.txt says): {differing:?}\nseed {seed}:\n{seen}\n{shrunk}",
                differing.len()
            );
        }
        eprintln!("{} of {chunk} sequences are answered by Linux now so, now so: {wavering:?}", wavering.len());
        assert!(wavering.len() <= WAVERING, "so many that nothing is compared any more");
        first += chunk;
    }
}

/// True if Linux does not answer a sequence as it did before. On a busy machine what it sends over loopback is at times left
/// to `ksoftirqd`, and a call that follows at once meets the state before its arrival.
fn linux_wavers(worlds: &Worlds<'_>, mode: &str, seed: u64, before: &Cases) -> bool {
    (0..3).any(|_| {
        let (linux, _) = run(worlds, mode, seed, 1, &[]);
        lines(&linux, seed) != lines(before, seed)
    })
}

fn run(worlds: &Worlds<'_>, mode: &str, first: u64, count: u64, more: &[String]) -> (Cases, Cases) {
    let (first, count) = (first.to_string(), count.to_string());
    let mut args = vec!["random", mode, &first, &count];
    args.extend(more.iter().map(String::as_str));
    let (linux, ours) = worlds.both(&args);
    (cases(&linux), cases(&ours))
}

fn lines(of: &Cases, seed: u64) -> &[String] {
    of.get(&format!("random/{seed}")).map_or(&[], Vec::as_slice)
}

/// Number of the first step whose outcome differs.
fn first_difference(linux: &[String], ours: &[String]) -> Option<usize> {
    let at = (0..linux.len().max(ours.len())).find(|&i| linux.get(i) != ours.get(i))?;
    let line = linux.get(at).or(ours.get(at))?;
    // The prologue's steps have no number.
    Some(line.split_once(": ").and_then(|(n, _)| n.parse().ok()).unwrap_or(0))
}

/// Shortens a sequence that differs: up to the first difference, then without each step that is not needed for it.
fn shrink(worlds: &Worlds<'_>, mode: &str, seed: u64, linux: &Cases, ours: &Cases) -> String {
    let Some(last) = first_difference(lines(linux, seed), lines(ours, seed)) else { return String::new() };
    let mut skipped: Vec<String> = Vec::new();
    let attempt = |skipped: &[String]| {
        let more: Vec<String> = [(last + 1).to_string()].iter().chain(skipped).cloned().collect();
        let (linux, ours) = run(worlds, mode, seed, 1, &more);
        diff(lines(&linux, seed), lines(&ours, seed))
    };
    let differs = |lines: &[crate::compare::Line]| lines.iter().any(|line| !matches!(line, crate::compare::Line::Same(_)));
    let mut shortest = attempt(&skipped);
    for step in (0..last).rev() {
        skipped.push(step.to_string());
        let shorter = attempt(&skipped);
        if differs(&shorter) {
            shortest = shorter;
        } else {
            skipped.pop();
        }
    }
    format!("seed {seed} over {mode}, {} steps without {}:\n{}", last + 1, skipped.join(" "), text(&shortest))
}

fn text(lines: &[crate::compare::Line]) -> String {
    lines.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}
