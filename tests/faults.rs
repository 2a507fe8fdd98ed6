//! A folder that is held, closed, full or damaged: the server says which file and what to
//! do, ends with a code that is not 0 where it cannot go on, and loses nothing that it
//! acknowledged.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use std::time::Duration;

use kymo_tests::files::{damage, files};
use kymo_tests::{Options, Server, StartFailed, until_async};

fn refused(start: Result<Server, StartFailed>) -> String {
    match start {
        Ok(server) => panic!("started all the same:\n{}", server.log()),
        Err(failed) => {
            assert_eq!(failed.status.code(), Some(1), "{}", failed.log);
            failed.log
        }
    }
}

#[test]
fn a_second_process_on_the_same_folder_is_refused() {
    let server = Server::start(Options::new());
    let log = refused(server.try_second());
    let folder = server.data_dir().to_string_lossy().into_owned();
    assert!(log.contains("error: ") && log.contains(&folder), "{log}");
    assert!(log.contains("hint: "), "{log}");
}

#[test]
fn a_folder_that_cannot_be_used_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("taken");
    fs::write(&path, "a file, not a folder").unwrap();
    let log = refused(Server::try_start(Options::new().data_dir(&path)));
    assert!(log.contains("taken"), "{log}");

    // Rights do not bind the superuser.
    // SAFETY: plain system call.
    if unsafe { libc::geteuid() } != 0 {
        let closed = folder.path().join("closed");
        fs::create_dir(&closed).unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
        let log = refused(Server::try_start(Options::new().data_dir(&closed)));
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
        assert!(log.contains("closed"), "{log}");
    }
}

#[tokio::test]
async fn a_bad_record_in_the_middle_of_the_journal_is_named_and_not_skipped() {
    let mut server = Server::start(Options::new());
    for second in 0..50 {
        server.write(&format!("m,t=a v={second}i {second}000000000")).await;
    }
    server.kill();
    let journal = files(server.data_dir(), ".log").pop().unwrap();
    let length = fs::metadata(&journal).unwrap().len() as usize;
    damage(&journal, length / 2);
    let log = refused(server.try_restart());
    let name = journal.file_name().unwrap().to_string_lossy();
    assert!(log.contains(&*name), "the file is not named:\n{log}");
    assert!(log.contains("offset"), "the offset is not named:\n{log}");
}

#[tokio::test]
async fn a_torn_end_of_the_journal_is_cut_and_costs_nothing_acknowledged() {
    let mut server = Server::start(Options::new());
    for second in 0..20 {
        server.write(&format!("m,t=a v={second}i {second}000000000")).await;
    }
    server.kill();
    let journal = files(server.data_dir(), ".log").pop().unwrap();
    let mut bytes = fs::read(&journal).unwrap();
    // The first bytes of a record that was never finished.
    let beginning: Vec<u8> = bytes[bytes.len() - 60..].iter().take(20).copied().collect();
    bytes.extend_from_slice(&beginning);
    fs::write(&journal, bytes).unwrap();
    let server = server.restart();
    let rows = server.sql("SELECT count(*) AS n FROM m").await;
    assert_eq!(rows[0]["n"], 20);
}

#[tokio::test]
async fn a_damaged_segment_is_named_and_the_process_lives() {
    let mut server = Server::start(Options::new().setting("memtable.max_age_ms", 50));
    server.write("m,t=a v=1i 1000000000\nm,t=b v=2i 2000000000").await;
    server.write("other v=1i 1").await;
    let folder = server.data_dir().to_owned();
    until_async("both segments", Duration::from_secs(20), || async {
        (files(&folder, ".parquet").len() >= 2).then_some(())
    })
    .await;
    assert!(server.terminate().success());
    let segment = files(&folder, ".parquet")
        .into_iter()
        .find(|path| path.to_string_lossy().contains("/m/"))
        .unwrap();
    for at in 4..fs::metadata(&segment).unwrap().len() as usize / 2 {
        damage(&segment, at);
    }
    // Both ways are sound: not to start, or to start and to refuse this table.
    match server.try_restart() {
        Err(failed) => assert!(
            failed.log.contains(&*segment.file_name().unwrap().to_string_lossy()),
            "{}",
            failed.log
        ),
        Ok(server) => {
            let answer = server.try_sql("SELECT * FROM m").await.unwrap();
            assert!(!answer.status.is_success(), "{}", answer.text());
            let name = segment.file_name().unwrap().to_string_lossy().into_owned();
            assert!(answer.text().contains(&name), "{}", answer.text());
            let rows = server.sql("SELECT count(*) AS n FROM other").await;
            assert_eq!(rows[0]["n"], 1);
        }
    }
}

#[tokio::test]
async fn a_full_disk_refuses_writes_with_one_clear_line_and_loses_nothing() {
    // No file may grow beyond 256 KiB, so the journal soon cannot.
    let mut server = Server::start(Options::new().file_size_limit(256 * 1024));
    let mut acknowledged = 0;
    let refusal = loop {
        assert!(acknowledged < 1_000_000, "the limit was never met");
        let lines: String = (0..500)
            .map(|row| {
                let time = acknowledged + row;
                // Values that do not compress.
                let value = (time as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) as i64;
                format!("m,t=a v={value}i {time}000\n")
            })
            .collect();
        match server.try_write(&lines).await {
            Ok(answer) if answer.status.is_success() => acknowledged += 500,
            Ok(answer) => break Some(answer),
            Err(_) => break None,
        }
    };
    if let Some(answer) = refusal {
        assert_eq!(answer.status.as_u16(), 503, "{}", answer.text());
    }
    // A store that cannot write its journal stops; its last words are one clear line.
    let status = server.wait(Duration::from_secs(40));
    assert!(!status.success(), "{status}");
    let log = server.log();
    assert!(log.lines().any(|line| line.starts_with("error: ")), "{log}");

    let server = server
        .try_restart_with(Options::new())
        .unwrap_or_else(|failed| panic!("no start after the disk has room: {}", failed.log));
    let rows = server.sql("SELECT count(*) AS n FROM m").await;
    let kept = rows[0]["n"].as_i64().unwrap();
    assert!(kept == acknowledged || kept == acknowledged + 500, "{kept} of {acknowledged} rows");
}
