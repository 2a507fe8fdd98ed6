//! The binary without a server: what it says about settings. Naming the binary here also
//! makes `cargo test` build it for the whole-system tests.

use std::process::Command;

#[test]
fn settings_are_printed_and_refused_before_anything_starts() {
    let binary = env!("CARGO_BIN_EXE_kymo");
    let output = Command::new(binary)
        .args(["start", "--print-config", "--http-port", "9"])
        .env("KYMO__AUTH__ADMIN_PASSWORD", "hush")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && said.contains("http_port = 9"), "{said}");
    assert!(said.contains("[redacted]") && !said.contains("hush"), "{said}");

    let output = Command::new(binary)
        .args(["start", "--durability", "never", "--no-auth", "--http-host", "0.0.0.0"])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    for part in ["2 problems", "flag --durability", "every_write", "flag --http-host"] {
        assert!(said.contains(part), "{part} is missing in {said}");
    }
}
