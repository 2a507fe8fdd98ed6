//! Ingest transform: drops readings that hardly differ from the last one kept of their series.
//!
//! Settings: `column` (the reading), `band` (how far a reading has to be from the last one
//! kept), `series` (tags that tell series apart, with commas; none: one series).

use std::collections::HashMap;

use kymo_udf::{
    Batch, Column, DataType, Error, Field, Output, Settings, Transform, Values, plugin, transform,
};

/// Series beyond this are forgotten, all at once; their next reading is kept.
const SERIES: usize = 100_000;

/// What was kept last, by series.
struct Deadband {
    input: Vec<Field>,
    reading: usize,
    tags: Vec<usize>,
    band: f64,
    last: HashMap<Vec<u8>, f64>,
}

impl Deadband {
    /// Whether a reading is far enough from the last one kept of its series.
    fn moves(&mut self, series: &[u8], reading: f64) -> bool {
        if let Some(last) = self.last.get_mut(series) {
            // Not "less than": a NaN on either side moves.
            let rests = (reading - *last).abs() <= self.band;
            if !rests {
                *last = reading;
            }
            return !rests;
        }
        if self.last.len() >= SERIES {
            self.last.clear();
        }
        self.last.insert(series.to_vec(), reading);
        true
    }
}

/// Drops readings within `band` of the last one kept of their series.
#[transform]
impl Transform for Deadband {
    fn open(settings: &Settings, input: &[Field]) -> Result<Self, Error> {
        let find = |name: &str| {
            let place = input.iter().position(|field| field.name == name);
            place.ok_or_else(|| Error::invalid(format!("the table has no column {name}")))
        };
        let reading = find(settings.require("column")?)?;
        if input[reading].data_type != DataType::Float64 {
            return Err(Error::invalid("the column of the reading is no double"));
        }
        let band = settings.number("band")?;
        if band < 0.0 {
            return Err(Error::invalid("the band is negative"));
        }
        let tags = settings.get("series").unwrap_or_default();
        let tags = tags.split(',').map(str::trim).filter(|tag| !tag.is_empty());
        Ok(Deadband {
            input: input.to_vec(),
            reading,
            tags: tags.map(find).collect::<Result<_, _>>()?,
            band,
            last: HashMap::new(),
        })
    }

    fn schema(&self) -> Vec<Field> {
        self.input.clone()
    }

    fn apply(&mut self, batch: Batch) -> Result<Output, Error> {
        let column = batch.columns.get(self.reading);
        let Some(Column { values: Values::Float64(readings), validity }) = column else {
            return Err(Error::internal("the batch has no reading of the promised type"));
        };
        let mut keep = Vec::with_capacity(readings.len());
        let mut series = Vec::new();
        for (row, reading) in readings.iter().enumerate() {
            series.clear();
            for tag in &self.tags {
                write_key(&batch.columns[*tag], row, &mut series);
            }
            let present = is_valid(validity.as_deref(), row);
            // A row without a reading says something else: it passes.
            keep.push(!present || self.moves(&series, *reading));
        }
        Ok(Output::kept(batch.filter(&keep)))
    }
}

fn is_valid(validity: Option<&[u8]>, row: usize) -> bool {
    validity.is_none_or(|bits| bits[row / 8] >> (row % 8) & 1 == 1)
}

/// Appends a tag's text, with its length, so that no two keys look alike.
fn write_key(column: &Column, row: usize, key: &mut Vec<u8>) {
    let Values::Bytes(texts) = &column.values else { return };
    if !is_valid(column.validity.as_deref(), row) {
        key.extend_from_slice(&u32::MAX.to_le_bytes());
        return;
    }
    let text = &texts.data[texts.offsets[row] as usize..texts.offsets[row + 1] as usize];
    key.extend_from_slice(&(text.len() as u32).to_le_bytes());
    key.extend_from_slice(text);
}

plugin! {
    name: "deadband",
    description: "Drops readings that hardly differ from the one before",
    transforms: [Deadband],
}

#[cfg(test)]
mod tests {
    use kymo_udf::VarBytes;

    use super::*;

    fn open(pairs: &[(&str, &str)]) -> Result<Deadband, Error> {
        let field = |name: &str, data_type| Field { name: name.into(), data_type, nullable: true };
        let input = [field("host", DataType::Utf8), field("load", DataType::Float64)];
        let pairs = pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        Deadband::open(&Settings(pairs), &input)
    }

    fn batch(hosts: &str, readings: &[f64], validity: Option<Vec<u8>>) -> Batch {
        let texts = VarBytes {
            offsets: (0..=hosts.len() as u32).collect(),
            data: hosts.as_bytes().to_vec(),
        };
        Batch {
            rows: readings.len() as u32,
            columns: vec![
                Column { values: Values::Bytes(texts), validity: None },
                Column { values: Values::Float64(readings.to_vec()), validity },
            ],
        }
    }

    fn kept(output: Output) -> Vec<f64> {
        match &output.batch.columns[1].values {
            Values::Float64(readings) => readings.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_series_has_its_own_band_over_batches() {
        let mut band = open(&[("column", "load"), ("band", "0.5"), ("series", "host")]).unwrap();
        let first = band.apply(batch("aabb", &[1.0, 1.4, 9.0, 9.6], None)).unwrap();
        assert_eq!(kept(first), [1.0, 9.0, 9.6]);
        let second = band.apply(batch("ab", &[1.5, 9.0], None)).unwrap();
        assert_eq!(kept(second), [9.0]);
        // Slow drift is measured from what was kept last, not from the row before.
        assert_eq!(kept(band.apply(batch("a", &[1.6], None)).unwrap()), [1.6]);
    }

    #[test]
    fn rows_without_a_reading_pass() {
        let mut band = open(&[("column", "load"), ("band", "10")]).unwrap();
        let output = band.apply(batch("aaa", &[1.0, 0.0, 2.0], Some(vec![0b101]))).unwrap();
        assert_eq!(output.batch.rows, 2);
        assert_eq!(output.batch.columns[1].validity, Some(vec![0b01]));
    }

    #[test]
    fn settings_are_checked() {
        for bad in [
            &[("band", "1")][..],
            &[("column", "load")],
            &[("column", "none"), ("band", "1")],
            &[("column", "host"), ("band", "1")],
            &[("column", "load"), ("band", "-1")],
            &[("column", "load"), ("band", "1"), ("series", "host,none")],
        ] {
            assert!(open(bad).is_err(), "{bad:?}");
        }
    }
}
