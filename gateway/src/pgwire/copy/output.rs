//! Rows as the lines, or the binary tuples, of a COPY.

use arrow::array::RecordBatch;
use arrow::datatypes::Schema;
use bytes::{BufMut, BytesMut};
use kymo_kernel::Result;

use super::super::encode::{self, Format, Style};
use super::super::wire::FULL;
use super::command::{Layout, Options};

/// What a binary copy begins with: signature, flags, length of an extension.
pub(super) const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// Writes CopyData messages, one a row.
pub(super) struct Lines<'a> {
    options: &'a Options,
}

impl<'a> Lines<'a> {
    pub(super) fn new(options: &'a Options) -> Self {
        Lines { options }
    }

    /// The header line, or the binary signature.
    pub(super) fn begin(&self, schema: &Schema, out: &mut BytesMut) {
        if self.options.layout == Layout::Binary {
            message(out, |out| out.put_slice(SIGNATURE));
        } else if self.options.header {
            message(out, |out| {
                for (index, field) in schema.fields().iter().enumerate() {
                    self.text(index, Some(field.name().as_bytes()), out);
                }
                out.put_u8(b'\n');
            });
        }
    }

    pub(super) fn end(&self, out: &mut BytesMut) {
        if self.options.layout == Layout::Binary {
            message(out, |out| out.put_i16(-1));
        }
    }

    /// Writes rows from `from`, stopping early once `out` is full; returns where it stopped.
    pub(super) fn rows(
        &self,
        batch: &RecordBatch,
        from: usize,
        style: &Style,
        out: &mut BytesMut,
    ) -> Result<usize> {
        let binary = self.options.layout == Layout::Binary;
        let format = if binary { Format::Binary } else { Format::Text };
        let mut columns = encode::columns(batch, &vec![format; batch.num_columns()], style)?;
        let count = i16::try_from(columns.len()).unwrap_or(i16::MAX);
        let mut scratch = BytesMut::new();
        let mut row = from;
        while row < batch.num_rows() && out.len() < FULL {
            message(out, |out| {
                if binary {
                    out.put_i16(count);
                }
                for (index, cells) in columns.iter_mut().enumerate() {
                    let null = cells.is_null(row);
                    match (binary, null) {
                        (true, true) => out.put_i32(-1),
                        (true, false) => encode::value(out, |out| cells.write(row, out)),
                        (false, true) => self.text(index, None, out),
                        (false, false) => {
                            scratch.clear();
                            cells.write(row, &mut scratch);
                            self.text(index, Some(&scratch), out);
                        }
                    }
                }
                if !binary {
                    out.put_u8(b'\n');
                }
            });
            row += 1;
        }
        Ok(row)
    }

    fn text(&self, index: usize, value: Option<&[u8]>, out: &mut BytesMut) {
        if index > 0 {
            out.put_u8(self.options.delimiter);
        }
        match value {
            None => out.put_slice(self.options.null.as_bytes()),
            Some(value) if self.options.layout == Layout::Csv => self.csv(value, out),
            Some(value) => self.escaped(value, out),
        }
    }

    fn csv(&self, value: &[u8], out: &mut BytesMut) {
        let Options { delimiter, quote, escape, .. } = *self.options;
        let special = |byte: &u8| *byte == delimiter || *byte == quote || b"\r\n".contains(byte);
        if value != self.options.null.as_bytes() && value != b"\\." && !value.iter().any(special) {
            out.put_slice(value);
            return;
        }
        out.put_u8(quote);
        for byte in value {
            if *byte == quote || *byte == escape {
                out.put_u8(escape);
            }
            out.put_u8(*byte);
        }
        out.put_u8(quote);
    }

    fn escaped(&self, value: &[u8], out: &mut BytesMut) {
        for byte in value {
            let letter = match byte {
                b'\\' => b'\\',
                b'\n' => b'n',
                b'\r' => b'r',
                b'\t' => b't',
                8 => b'b',
                11 => b'v',
                12 => b'f',
                other if *other == self.options.delimiter => *other,
                other => {
                    out.put_u8(*other);
                    continue;
                }
            };
            out.put_u8(b'\\');
            out.put_u8(letter);
        }
    }
}

fn message(out: &mut BytesMut, body: impl FnOnce(&mut BytesMut)) {
    out.put_u8(b'd');
    encode::sized(out, body);
}
