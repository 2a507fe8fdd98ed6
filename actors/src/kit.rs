//! For tests: asking a whole system SQL, as a session does.

use arrow::array::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use futures::StreamExt;
use kymo_kernel::Result;
use kymo_kernel::message::{Outcome, Runnable, SessionContext};

use crate::System;

/// A session of an administrator.
pub fn context() -> SessionContext {
    SessionContext {
        user: "ada".into(),
        admin: true,
        database: "kymo".into(),
        schema: "public".into(),
        settings: Default::default(),
        read_only: false,
    }
}

/// Runs statements and gives the rows of all of them, each as one text.
pub async fn sql(system: &System, sql: &str) -> Result<Vec<String>> {
    let session = system.open_session(context())?;
    let mut lines = Vec::new();
    for statement in session.parse(sql).await? {
        let outcome = session.execute(Runnable::Statement(statement), Vec::new(), None).await?;
        let Outcome::Rows { mut stream, .. } = outcome else { continue };
        while let Some(batch) = stream.next().await {
            lines.extend(texts(&batch?));
        }
    }
    Ok(lines)
}

/// The rows of a batch, with `|` between their values.
pub fn texts(batch: &RecordBatch) -> Vec<String> {
    let options = FormatOptions::default().with_null("NULL");
    let columns: Vec<_> = batch
        .columns()
        .iter()
        .map(|column| ArrayFormatter::try_new(column, &options).unwrap())
        .collect();
    (0..batch.num_rows())
        .map(|row| columns.iter().map(|c| c.value(row).to_string()).collect::<Vec<_>>().join("|"))
        .collect()
}
