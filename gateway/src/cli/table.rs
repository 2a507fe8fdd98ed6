//! Rows as a table for people.

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::util::display::FormatOptions;
use arrow::util::pretty::pretty_format_batches_with_options;
use kymo_kernel::{Error, Result};

/// A table with a header, and the number of rows below it.
///
/// # Errors
/// A value cannot be shown.
pub fn format(schema: &SchemaRef, batches: &[RecordBatch]) -> Result<String> {
    if schema.fields().is_empty() {
        return Ok(String::new());
    }
    let options = FormatOptions::new().with_null("").with_display_error(true);
    let empty = [RecordBatch::new_empty(schema.clone())];
    let shown = if batches.is_empty() { &empty } else { batches };
    let table = pretty_format_batches_with_options(shown, &options)
        .map_err(|error| Error::internal(format!("show the rows: {error}")))?;
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    let noun = if rows == 1 { "row" } else { "rows" };
    Ok(format!("{table}\n({rows} {noun})\n"))
}
