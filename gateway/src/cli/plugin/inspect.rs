//! `kymo plugin inspect`: what a component is, without running any of it.

use std::fmt::Write as _;
use std::path::Path;

use kymo_kernel::Result;
use kymo_plugins::Digest;
use kymo_plugins::pack::{Outline, outline};

use super::{needs, needs_text, read};
use crate::cli::print;

/// Runs the command.
///
/// # Errors
/// The file cannot be read or is no WebAssembly.
pub fn run(component: &Path) -> Result<()> {
    let bytes = read(component)?;
    let mut text = render(&outline(&bytes)?, &bytes);
    // What a server refuses at any size is marked among the imports.
    let needs = needs(&bytes).unwrap_or_default();
    if !needs.is_empty() {
        text += &format!("needs\n{}", needs_text(&needs));
    }
    print(&text)
}

fn render(outline: &Outline, bytes: &[u8]) -> String {
    let mut text = String::new();
    let kind = if outline.component { "component" } else { "core module: pack it first" };
    // Writing to a String cannot fail.
    let _ = writeln!(text, "kind       {kind}");
    let _ = writeln!(text, "digest     {}", Digest::of(bytes));
    let _ = writeln!(text, "size       {} bytes", bytes.len());
    let _ = writeln!(
        text,
        "code       {} bytes in {} functions",
        outline.code_bytes, outline.functions
    );
    for (heading, names) in [("exports", &outline.exports), ("imports", &outline.imports)] {
        let _ = writeln!(text, "{heading}");
        names.iter().for_each(|name| {
            let note = if heading == "imports" && !allowed(name) { "  (refused)" } else { "" };
            let _ = writeln!(text, "  {name}{note}");
        });
    }
    text
}

/// Whether a server gives this: the log, and what only names types.
fn allowed(import: &str) -> bool {
    ["kymo:udf/host@", "kymo:udf/types@", "kymo:udf-preview/batches@"]
        .iter()
        .any(|prefix| import.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_refuses_is_marked() {
        let outline = Outline {
            component: true,
            imports: vec!["kymo:udf/host@0.1.0".into(), "wasi:cli/environment@0.2.0".into()],
            exports: vec!["kymo:udf/catalog@0.1.0".into()],
            code_bytes: 10,
            functions: 2,
        };
        let text = render(&outline, b"");
        assert!(text.contains("kymo:udf/host@0.1.0\n"), "{text}");
        assert!(text.contains("wasi:cli/environment@0.2.0  (refused)"), "{text}");
        assert!(text.contains("10 bytes in 2 functions"), "{text}");
    }
}
