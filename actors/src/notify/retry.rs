//! Whether a failed attempt is followed by another one, and when: exponential backoff with
//! jitter, and what the receiver asks for. A pure function.

use std::time::Duration;

use kymo_kernel::{Code, Result};

use super::Answer;

/// How patient a channel is.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// The pause after the first failure.
    pub first: Duration,
    /// The longest pause.
    pub longest: Duration,
    /// Age of a transition at which it is not tried again.
    pub give_up: Duration,
}

/// What follows an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Nothing: it was taken.
    Done,
    /// Another attempt, after a pause; what went wrong.
    Again(Duration, String),
    /// Nothing: the receiver does not want it; what it said.
    Refused(String),
    /// Nothing: it is too old to be tried again; what went wrong last.
    Expired(String),
}

impl Policy {
    /// What follows an attempt. `failures` in a row came before it, the transition is `age` old,
    /// and `dice` are random bits.
    #[must_use]
    pub fn next(&self, outcome: &Result<Answer>, failures: u32, age: Duration, dice: u64) -> Next {
        let why = match outcome {
            Ok(answer) if (200..300).contains(&answer.status) => return Next::Done,
            Ok(answer) if worth_another(answer.status) => described(answer),
            Ok(answer) => return Next::Refused(described(answer)),
            Err(error) if error.code() == Code::Unsupported => {
                return Next::Refused(error.message().to_owned());
            }
            Err(error) => error.message().to_owned(),
        };
        let asked = outcome.as_ref().ok().and_then(|answer| answer.retry_after);
        let pause = self.pause(failures, dice).max(asked.unwrap_or_default());
        // One that would come too late for its next attempt ends now, and makes way.
        if age.saturating_add(pause) > self.give_up {
            return Next::Expired(why);
        }
        Next::Again(pause, why)
    }

    /// Doubles with each failure up to the longest; the second half of it is random, so that
    /// many who failed together do not come back together.
    fn pause(&self, failures: u32, dice: u64) -> Duration {
        let factor = 1_u32.checked_shl(failures).unwrap_or(u32::MAX);
        let full = self.first.saturating_mul(factor).min(self.longest);
        let half = full / 2;
        // The upper bits as a fraction of one.
        let fraction = (dice >> 11) as f64 / (1_u64 << 53) as f64;
        half + half.mul_f64(fraction)
    }
}

/// Whether the same request may be taken later: the server's fault, or too much at a time.
fn worth_another(status: u16) -> bool {
    matches!(status, 408 | 429 | 500..=599)
}

fn described(answer: &Answer) -> String {
    match answer.said.trim() {
        "" => format!("the answer is {}", answer.status),
        said => format!("the answer is {}: {said}", answer.status),
    }
}

#[cfg(test)]
mod tests {
    use kymo_kernel::Error;

    use super::*;

    const POLICY: Policy = Policy {
        first: Duration::from_secs(1),
        longest: Duration::from_secs(60),
        give_up: Duration::from_secs(600),
    };

    fn answer(status: u16, retry_after: Option<u64>) -> Result<Answer> {
        let retry_after = retry_after.map(Duration::from_secs);
        Ok(Answer { status, retry_after, said: String::new() })
    }

    fn after(outcome: &Result<Answer>, failures: u32, dice: u64) -> Next {
        POLICY.next(outcome, failures, Duration::ZERO, dice)
    }

    #[test]
    fn only_what_may_get_better_is_tried_again() {
        for status in [200, 202, 204, 299] {
            assert_eq!(after(&answer(status, None), 0, 0), Next::Done);
        }
        for status in [408, 429, 500, 502, 503, 504, 599] {
            assert!(matches!(after(&answer(status, None), 0, 0), Next::Again(..)), "{status}");
        }
        for status in [100, 301, 302, 400, 401, 403, 404, 410, 413, 422] {
            assert!(matches!(after(&answer(status, None), 0, 0), Next::Refused(_)), "{status}");
        }
        let gone = Err(Error::new(Code::Down, "nobody answers"));
        assert!(matches!(after(&gone, 0, 0), Next::Again(_, why) if why == "nobody answers"));
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_are_random_in_their_second_half() {
        let pause = |failures, dice| match after(&answer(500, None), failures, dice) {
            Next::Again(pause, _) => pause.as_millis(),
            other => panic!("{other:?}"),
        };
        let shortest: Vec<u128> = (0..9).map(|failures| pause(failures, 0)).collect();
        assert_eq!(shortest, [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]);
        let longest: Vec<u128> = (0..9).map(|failures| pause(failures, u64::MAX)).collect();
        assert_eq!(longest, [1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000, 60_000]);
        assert_eq!(pause(40, 0), 30_000, "more failures than a shift can count");
    }

    #[test]
    fn a_receiver_may_ask_for_a_longer_pause_but_not_for_a_shorter_one() {
        let again = |seconds| match after(&answer(429, Some(seconds)), 3, 0) {
            Next::Again(pause, _) => pause.as_secs(),
            other => panic!("{other:?}"),
        };
        assert_eq!((again(120), again(1)), (120, 4));
    }

    #[test]
    fn what_is_too_old_is_not_tried_again() {
        let old = Duration::from_secs(599);
        let next = POLICY.next(&answer(503, None), 0, old, 0);
        assert!(matches!(next, Next::Again(..)), "{next:?}");
        let next = POLICY.next(&answer(503, None), 5, old, 0);
        assert_eq!(next, Next::Expired("the answer is 503".to_owned()));
        let next = POLICY.next(&answer(503, Some(900)), 0, Duration::ZERO, 0);
        assert!(matches!(next, Next::Expired(_)), "{next:?}");
        assert_eq!(POLICY.next(&answer(200, None), 0, old * 9, 0), Next::Done);
    }
}
