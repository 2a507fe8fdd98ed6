//! Lengths of time in settings that people think of in hours and days: `0s`, `90m`, `7d`,
//! `forever`.

use std::str::FromStr;
use std::time::Duration;

/// A length of time, possibly without an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    /// So long.
    For(Duration),
    /// Without an end.
    Forever,
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Span, String> {
        let text = text.trim();
        if text == "forever" {
            return Ok(Span::Forever);
        }
        let read = || {
            let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
            let seconds = match unit {
                "s" => 1,
                "m" => 60,
                "h" => 3600,
                "d" => 86_400,
                "w" => 7 * 86_400,
                _ => return None,
            };
            Some(Duration::from_secs(number.parse::<u64>().ok()?.checked_mul(seconds)?))
        };
        let problem = || format!("{text:?} is no length of time");
        read().map(Span::For).ok_or_else(problem)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_has_a_unit() {
        let read = |text: &str| text.parse::<Span>();
        assert_eq!(read("0s"), Ok(Span::For(Duration::ZERO)));
        assert_eq!(read(" 90m "), Ok(Span::For(Duration::from_secs(5400))));
        assert_eq!(read("7d"), read("1w"));
        assert_eq!(read("forever"), Ok(Span::Forever));
        for bad in ["", "7", "d", "-1s", "1.5h", "1y", "99999999999999999999s", "9999999999999999w"]
        {
            assert!(read(bad).is_err_and(|problem| problem.contains(bad)), "{bad}");
        }
    }
}
