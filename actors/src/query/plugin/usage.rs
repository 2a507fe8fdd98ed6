//! The last row of `EXPLAIN ANALYZE`: what the query spent in plugins.

use std::fmt::Write as _;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, RecordBatch, StringArray};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::Result;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::StreamExt;
use kymo_plugins::usage::Spent;

use super::lending::Lending;

/// The rows of `EXPLAIN ANALYZE`, and behind them one about the plugins that were called.
pub(in super::super) fn with_usage(
    stream: SendableRecordBatchStream,
    lending: &Arc<Lending>,
) -> SendableRecordBatchStream {
    let (schema, lending) = (stream.schema(), lending.clone());
    let told = schema.clone();
    // Asked once the plan has run to its end.
    let last = futures::stream::once(async move { row(&told, &lending.spent()) });
    let last = last.filter_map(|row| std::future::ready(row.transpose()));
    Box::pin(RecordBatchStreamAdapter::new(schema, stream.chain(last)))
}

fn row(schema: &SchemaRef, spent: &[Spent]) -> Result<Option<RecordBatch>> {
    if spent.is_empty() {
        return Ok(None);
    }
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(vec!["Plugins"])),
        Arc::new(StringArray::from(vec![text(spent)])),
    ];
    Ok(Some(RecordBatch::try_new(schema.clone(), columns)?))
}

/// A line for each kind of call. Times are those of all workers together.
fn text(spent: &[Spent]) -> String {
    let mut text = String::new();
    for Spent { plugin, version, call, calls, rows, time } in spent {
        let _ = writeln!(
            text,
            "{plugin}.{call} ({version}): calls={calls}, rows={rows}, time={time:?}"
        );
    }
    text
}
