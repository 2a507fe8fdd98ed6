//! What the simulated disk keeps and loses, and the clock.

use std::io;
use std::path::Path;
use std::task::{Context, Waker};
use std::time::Duration;

use super::*;
use crate::env::{Clock, Disk, DiskFile};

fn disk_with_file(content: &[u8]) -> (SimDisk, Box<dyn DiskFile>) {
    let disk = SimDisk::new(1);
    disk.create_dir_all(Path::new("/d")).unwrap();
    let mut file = disk.create(Path::new("/d/f")).unwrap();
    file.append(content).unwrap();
    (disk, file)
}

fn content(disk: &SimDisk) -> Vec<u8> {
    disk.open(Path::new("/d/f")).unwrap().read_all().unwrap()
}

#[test]
fn what_was_synced_survives_every_crash() {
    for seed in 0..200 {
        let (disk, mut file) = disk_with_file(&[7; 2000]);
        file.sync().unwrap();
        disk.sync_dir(Path::new("/d")).unwrap();
        file.append(&[9; 3000]).unwrap();
        disk.crash(seed);
        assert_eq!(content(&disk)[..2000], [7; 2000]);
        assert!(file.append(b"x").is_err(), "a dead process cannot write");
    }
}

#[test]
fn what_was_not_synced_is_kept_lost_or_torn() {
    let (mut kept, mut lost, mut torn, mut gone) = (0, 0, 0, 0);
    for seed in 0..400 {
        let (disk, mut file) = disk_with_file(&[7; 600]);
        if seed % 2 == 0 {
            disk.sync_dir(Path::new("/d")).unwrap();
        }
        file.sync().unwrap();
        file.append(&[9; 3000]).unwrap();
        disk.crash(seed);
        if !disk.exists(Path::new("/d/f")).unwrap() {
            gone += 1;
            continue;
        }
        match content(&disk) {
            all if all[600..] == [9; 3000] => kept += 1,
            none if none.len() == 600 => lost += 1,
            _ => torn += 1,
        }
    }
    assert!(kept > 10 && lost > 10 && torn > 10 && gone > 10, "{kept} {lost} {torn} {gone}");
}

#[test]
fn a_failed_sync_is_never_made_good() {
    let (disk, mut file) = disk_with_file(b"x");
    disk.sync_dir(Path::new("/d")).unwrap();
    disk.fail_after(Operation::Sync, 0, Fault::Eio);
    assert!(file.sync().is_err());
    file.sync().unwrap();
    let lost = (0..50).any(|seed| {
        let (disk, mut file) = disk_with_file(b"x");
        disk.sync_dir(Path::new("/d")).unwrap();
        disk.fail_after(Operation::Sync, 0, Fault::Eio);
        assert!(file.sync().is_err());
        file.sync().unwrap();
        disk.crash(seed);
        content(&disk) != b"x"
    });
    assert!(lost);
}

#[test]
fn a_full_disk_writes_a_part_and_says_so() {
    let (disk, mut file) = disk_with_file(&[1; 100]);
    disk.set_capacity(Some(150));
    let error = file.append(&[2; 100]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert!(file.len().unwrap() <= 150);
    disk.set_capacity(None);
    file.append(&[2; 100]).unwrap();
}

#[test]
fn a_name_is_linked_once_and_survives_when_its_folder_is_synced() {
    let (disk, mut file) = disk_with_file(b"x");
    file.sync().unwrap();
    disk.link(Path::new("/d/f"), Path::new("/d/g")).unwrap();
    let twice = disk.link(Path::new("/d/f"), Path::new("/d/g")).unwrap_err();
    assert_eq!(twice.kind(), io::ErrorKind::AlreadyExists);
    disk.sync_dir(Path::new("/d")).unwrap();
    disk.remove(Path::new("/d/g")).unwrap();
    let kept = (0..50).filter(|seed| {
        let (disk, mut file) = disk_with_file(b"x");
        file.sync().unwrap();
        disk.sync_dir(Path::new("/d")).unwrap();
        disk.remove(Path::new("/d/f")).unwrap();
        disk.crash(*seed);
        disk.exists(Path::new("/d/f")).unwrap()
    });
    assert!((1..50).contains(&kept.count()));
}

#[test]
fn sleepers_wake_when_time_is_moved() {
    let clock = SimClock::new(0);
    let mut sleep = clock.sleep(Duration::from_secs(2));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(sleep.as_mut().poll(&mut cx).is_pending());
    clock.advance(Duration::from_secs(1));
    assert!(sleep.as_mut().poll(&mut cx).is_pending());
    clock.advance(Duration::from_secs(1));
    assert!(sleep.as_mut().poll(&mut cx).is_ready());
    assert_eq!(clock.now_ns(), 2_000_000_000);
}
