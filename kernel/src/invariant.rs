//! What must always be true, by name: one definition for tests and for the running system.
//!
//! [`check!`](crate::check) panics in debug builds, where a broken promise must stop a test,
//! and counts and logs in release builds, where it must reach an operator without taking the
//! service away.
//!
//! ```
//! let (queued, budget) = (10, 20);
//! kymo_kernel::check!(B1, queued <= budget, "port holds {queued} of {budget}");
//! ```

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! invariants {
    ($($name:ident = $text:literal),* $(,)?) => {
        /// A promise of the system that is checked while it runs.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Invariant { $(#[doc = $text] $name,)* }

        impl Invariant {
            /// All of them.
            pub const ALL: &'static [Invariant] = &[$(Invariant::$name,)*];

            /// Its short name, as tests, logs and metrics quote it.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Invariant::$name => stringify!($name),)* }
            }

            /// What it promises.
            #[must_use]
            pub fn promise(self) -> &'static str {
                match self { $(Invariant::$name => $text,)* }
            }
        }
    };
}

invariants! {
    W1 = "an acknowledged write survives a crash",
    W2 = "a batch is kept whole or not at all",
    W3 = "a partition's sequence has no gap",
    V1 = "a snapshot shows nothing above its watermark",
    V2 = "flush and compaction keep the set of rows",
    M1 = "the metadata names only synced files",
    M2 = "a file goes only when neither metadata nor a live version names it",
    R1 = "retention never removes an unexpired row",
    C1 = "a continuous query has one result per window",
    A1 = "an alert's transition is durable before it is sent",
    P1 = "a plugin call ends within its deadline and its memory",
    B1 = "queued bytes stay within the budget",
    S1 = "drained means that every accepted call was answered",
}

static BROKEN: [AtomicU64; Invariant::ALL.len()] =
    [const { AtomicU64::new(0) }; Invariant::ALL.len()];

impl Invariant {
    /// How often it was found broken since the process started.
    #[must_use]
    pub fn broken(self) -> u64 {
        BROKEN[self as usize].load(Ordering::Relaxed)
    }

    /// Reports that it does not hold; called by [`check!`](crate::check).
    ///
    /// # Panics
    /// In builds with debug assertions.
    #[cold]
    pub fn violated(self, detail: std::fmt::Arguments<'_>) {
        let count = BROKEN[self as usize].fetch_add(1, Ordering::Relaxed) + 1;
        if cfg!(debug_assertions) {
            panic!("invariant {} is broken ({}): {detail}", self.name(), self.promise());
        }
        // Every tenth power of ten, so that a broken hot path cannot drown the log.
        if count.checked_ilog10().is_some_and(|power| 10u64.pow(power) == count) {
            tracing::error!(invariant = self.name(), promise = self.promise(), count, %detail, "invariant is broken");
        }
    }
}

/// Checks a named invariant of [`crate::invariant`]: panics in debug, counts and logs in release.
#[macro_export]
macro_rules! check {
    ($name:ident, $condition:expr $(,)?) => {
        $crate::check!($name, $condition, "{}", stringify!($condition))
    };
    ($name:ident, $condition:expr, $($detail:tt)+) => {
        if !$condition {
            $crate::invariant::Invariant::$name.violated(format_args!($($detail)+));
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_design() {
        let names: Vec<_> = Invariant::ALL.iter().map(|each| each.name()).collect();
        let expected = "W1 W2 W3 V1 V2 M1 M2 R1 C1 A1 P1 B1 S1";
        assert_eq!(names.join(" "), expected);
    }

    #[test]
    fn a_broken_invariant_is_counted_and_panics_in_debug() {
        let before = Invariant::P1.broken();
        let panic = std::panic::catch_unwind(|| check!(P1, 2 > 3, "call took {}", 3));
        assert_eq!(panic.is_err(), cfg!(debug_assertions));
        assert_eq!(Invariant::P1.broken(), before + 1);
        check!(P1, 3 > 2);
        assert_eq!(Invariant::P1.broken(), before + 1);
    }
}
