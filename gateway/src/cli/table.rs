//! What a statement came to, for people.

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::util::display::FormatOptions;
use arrow::util::pretty::pretty_format_batches_with_options;
use kymo_kernel::{Error, Result};

use super::client::Answer;

/// Rows as a table with a header and their number below; the command where there are none.
///
/// # Errors
/// A value cannot be shown.
pub fn format(answer: &Answer) -> Result<String> {
    match answer {
        Answer::Rows(schema, batches) => rows(schema, batches),
        Answer::Done(command) => Ok(format!("{command}\n")),
    }
}

fn rows(schema: &SchemaRef, batches: &[RecordBatch]) -> Result<String> {
    let options = FormatOptions::new().with_null("").with_display_error(true);
    let empty = [RecordBatch::new_empty(schema.clone())];
    let shown = if batches.is_empty() { &empty } else { batches };
    let table = pretty_format_batches_with_options(shown, &options)
        .map_err(|error| Error::internal(format!("show the rows: {error}")))?;
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    let noun = if rows == 1 { "row" } else { "rows" };
    Ok(format!("{table}\n({rows} {noun})\n"))
}
