//! Fuzzing within the normal test run: real messages are mutated byte by byte and given to a
//! decoder for a bounded time.
//!
//! The tests of `kernel`, `actors` and `gateway` include this file; each decoder's own tests say what
//! must hold of it. A run is repeated by its seed, and an input that fails is made smaller
//! before it is shown. `KYMO_FUZZ_SECONDS` is the time of all targets together, 20 by default;
//! `KYMO_FUZZ_SEED` chooses other mutations.
#![expect(clippy::disallowed_methods, reason = "fuzzing is bounded by real time")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// How many tests call [`fuzz`]: they share the time.
const TARGETS: u32 = 11;
/// Inputs do not grow beyond this.
const LONGEST: usize = 16 << 10;

/// Gives mutations of the corpus to `check`, which panics where something does not hold.
pub fn fuzz(target: &str, corpus: &[Vec<u8>], check: impl Fn(&[u8])) {
    for message in corpus {
        check(message);
    }
    let seed = setting("KYMO_FUZZ_SEED", 1);
    let time = Duration::from_secs(setting("KYMO_FUZZ_SECONDS", 20)) / TARGETS;
    let mut mutator = Mutator { dice: Dice(seed), corpus };
    let (begun, mut runs) = (Instant::now(), 0_u64);
    while begun.elapsed() < time {
        let input = mutator.next();
        runs += 1;
        if catch_unwind(AssertUnwindSafe(|| check(&input))).is_err() {
            let small = shrink(input, &check);
            panic!(
                "{target}: run {runs} of KYMO_FUZZ_SEED={seed} fails with b\"{}\"",
                small.escape_ascii()
            );
        }
    }
    println!("{target}: {runs} inputs");
    assert!(runs > 10, "{target}: only {runs} inputs in {time:?}");
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// Leaves out pieces, ever smaller ones, as long as the check still fails.
fn shrink(mut input: Vec<u8>, check: &impl Fn(&[u8])) -> Vec<u8> {
    let mut piece = input.len() / 2;
    while piece > 0 {
        let mut at = 0;
        while at < input.len() {
            let mut less = input.clone();
            less.drain(at..(at + piece).min(input.len()));
            if catch_unwind(AssertUnwindSafe(|| check(&less))).is_err() {
                input = less;
            } else {
                at += piece;
            }
        }
        piece /= 2;
    }
    input
}

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    /// A range of at most `longest` bytes within a length.
    fn range(&mut self, len: usize, longest: usize) -> std::ops::Range<usize> {
        let start = self.below(len + 1);
        start..start + self.below((len - start).min(longest) + 1)
    }
}

struct Mutator<'a> {
    dice: Dice,
    corpus: &'a [Vec<u8>],
}

impl Mutator<'_> {
    fn message(&mut self) -> Vec<u8> {
        self.corpus[self.dice.below(self.corpus.len())].clone()
    }

    fn next(&mut self) -> Vec<u8> {
        let mut input = self.message();
        for _ in 0..1 + self.dice.below(6) {
            self.change(&mut input);
        }
        input.truncate(LONGEST);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        let len = input.len();
        match self.dice.below(9) {
            0 if len > 0 => input[self.dice.below(len)] ^= 1 << self.dice.below(8),
            1 if len > 0 => input[self.dice.below(len)] = self.dice.next() as u8,
            2 => input.insert(self.dice.below(len + 1), self.dice.next() as u8),
            3 => drop(input.drain(self.dice.range(len, 64))),
            4 => input.truncate(self.dice.below(len + 1)),
            5 => {
                let again = input[self.dice.range(len, 64)].to_vec();
                let at = self.dice.below(len + 1);
                input.splice(at..at, again);
            }
            6 => {
                let other = self.message();
                let piece = other[self.dice.range(other.len(), 256)].to_vec();
                let place = self.dice.range(len, piece.len());
                input.splice(place, piece);
            }
            7 if len > 0 => self.number(input),
            _ => {
                let zeros = vec![0; self.dice.below(600)];
                let at = self.dice.below(len + 1);
                let end = (at + zeros.len()).min(len);
                input.splice(at..end, zeros);
            }
        }
    }

    /// Writes a number at the edge of a range, in 1 to 8 bytes of either order.
    fn number(&mut self, input: &mut [u8]) {
        let edges = [0, 1, u64::MAX, 1 << 31, (1 << 31) - 1, 1 << 63, (1 << 63) - 1, 0xffff];
        let value = edges[self.dice.below(edges.len())];
        let width = 1 << self.dice.below(4);
        let bytes = if self.dice.below(2) == 0 {
            value.to_le_bytes()[..width].to_vec()
        } else {
            value.to_be_bytes()[8 - width..].to_vec()
        };
        let at = self.dice.below(input.len());
        let end = (at + width).min(input.len());
        input[at..end].copy_from_slice(&bytes[..end - at]);
    }
}
