//! Window functions over a series in the order of its time: which session a row belongs to, and
//! how much of the partition lies behind it.

use kymo_udf::{Arg, Error, Partition, Timestamp, plugin, window};

/// The number of the session that a row belongs to, from 1. A session ends where `gap` seconds or
/// more pass without a row; a row without a time belongs to none.
///
/// `SELECT time, sessions.session(time, 1800.0) OVER (PARTITION BY host ORDER BY time) FROM visits`
#[window]
fn session(
    time: Arg<Timestamp>,
    gap: Arg<f64>,
    partition: Partition,
) -> Result<Vec<Option<i64>>, Error> {
    let (mut number, mut last) = (0, None);
    let mut numbers = Vec::with_capacity(partition.rows());
    for row in 0..partition.rows() {
        let Some((time, gap)) = time.option(row).zip(gap.option(row)) else {
            numbers.push(None);
            continue;
        };
        if gap.is_nan() || gap <= 0.0 {
            return Err(Error::invalid(format!("a gap of {gap} seconds")).at(row));
        }
        if last.is_none_or(|last| time.seconds_since(last) >= gap) {
            number += 1;
        }
        last = Some(time);
        numbers.push(Some(number));
    }
    Ok(numbers)
}

/// The share of the partition's rows that do not come after this one; rows that are equal in the
/// order have the same.
#[window]
fn covered(partition: Partition) -> Vec<f64> {
    let all = partition.rows() as f64;
    (0..partition.rows()).map(|row| partition.peers_end(row) as f64 / all).collect()
}

plugin! {
    name: "sessions",
    description: "Sessions in a series",
    windows: [session, covered],
}

#[cfg(test)]
mod tests {
    use kymo_udf::window::WindowFunction as _;
    use kymo_udf::{Argument, Column, Values};

    use super::*;

    fn sessions(seconds: &[i64], validity: Option<Vec<u8>>, gap: f64) -> Result<Column, Error> {
        let times = seconds.iter().map(|second| second * 1_000_000_000).collect();
        let times = Column { values: Values::Int64(times), validity };
        let gap = Column { values: Values::Float64(vec![gap]), validity: None };
        let peers: Vec<u32> = (1..=seconds.len() as u32).collect();
        let partition = Partition::new(seconds.len(), &peers)?;
        session::call(&[Argument::Column(times), Argument::Constant(gap)], partition)
    }

    #[test]
    fn a_session_ends_with_a_gap() {
        let found = sessions(&[0, 10, 70, 75, 500], None, 60.0).unwrap();
        assert_eq!(found.values, Values::Int64(vec![1, 1, 2, 2, 3]));
        let found = sessions(&[0, 0, 30], Some(vec![0b101]), 60.0).unwrap();
        assert_eq!(found.values, Values::Int64(vec![1, 0, 1]));
        assert_eq!(found.validity, Some(vec![0b101]));
        assert_eq!(sessions(&[0, 1], None, 0.0).unwrap_err().row, Some(0));
    }

    #[test]
    fn peers_share_their_place() {
        let partition = Partition::new(4, &[1, 3, 3, 4]).unwrap();
        assert_eq!(covered(partition), [0.25, 0.75, 0.75, 1.0]);
    }
}
