//! Earlier formats are read, and bytes that do not verify are refused.

use uuid::Uuid;

use super::*;
use crate::ids::{Epoch, PartitionId, TableId};
use crate::storage::meta::{Author, Op};

fn sealed(magic: [u8; 4], version: MetaVersion, body: &[u8]) -> Vec<u8> {
    let mut bytes = seal(magic, version, &()).unwrap();
    bytes.extend_from_slice(body);
    bytes[16..24].copy_from_slice(&(body.len() as u64).to_le_bytes());
    bytes[24..28].copy_from_slice(&crc32c::crc32c(body).to_le_bytes());
    let head = crc32c::crc32c(&bytes[..28]);
    bytes[28..32].copy_from_slice(&head.to_le_bytes());
    bytes
}

/// What a build before deletions and retention wrote, and one before columns were dropped.
#[test]
fn files_of_earlier_formats_are_read() {
    let version = MetaVersion(7);
    let table = crate::storage::model::table(true);
    let by = Author { node: "node".into(), partition: PartitionId::ONLY, epoch: Epoch(0) };
    let ops = vec![Op::PutTable { def: table }];
    let edit = Edit { commit_id: Uuid::from_u128(5), by, ops };
    let snapshot = Snapshot { version, ..Snapshot::default().apply(&edit).unwrap() };
    let of = |format: u32, mut bytes: Vec<u8>| {
        bytes[4..8].copy_from_slice(&format.to_le_bytes());
        let head = crc32c::crc32c(&bytes[..28]);
        bytes[28..32].copy_from_slice(&head.to_le_bytes());
        bytes
    };
    let body = (SnapshotRecord::from(&snapshot), PluginsRecord::from(&snapshot));
    let file = Path::new("/store/meta/snap/7");
    let bytes = of(2, seal(SNAPSHOT_MAGIC, version, &body).unwrap());
    assert_eq!(decode_snapshot(file, version, &bytes).unwrap(), snapshot);
    let (first, second) = body;
    let third = (KeepingRecord::from(&snapshot), ContinuousRecords::from(&snapshot));
    let body = (first, second, third.0, third.1, AlertsRecord::from(&snapshot));
    let bytes = of(3, seal(SNAPSHOT_MAGIC, version, &body).unwrap());
    assert_eq!(decode_snapshot(file, version, &bytes).unwrap(), snapshot);
    for format in [2, 3] {
        let bytes = of(format, encode_edits(version, std::slice::from_ref(&edit)).unwrap());
        assert_eq!(decode_edits(file, version, &bytes).unwrap(), std::slice::from_ref(&edit));
    }
}

/// Bytes that do not verify are refused; what verifies and is no record is, too.
#[test]
fn mutated_metadata_is_never_read_as_something_else() {
    let version = MetaVersion(7);
    let by = Author { node: "node".into(), partition: PartitionId::ONLY, epoch: Epoch(3) };
    let ops = vec![
        Op::CreateDatabase { name: "metrics".to_owned() },
        Op::PutTable { def: crate::storage::model::table(true) },
        Op::DropTable { table: TableId(9) },
    ];
    let edits = [Edit { commit_id: Uuid::from_u128(5), by, ops }];
    let file = Path::new("/store/meta/log/7.edit");
    let corpus = [
        encode_edits(version, &edits).unwrap(),
        encode_snapshot(&Snapshot { version, ..Snapshot::default() }).unwrap(),
    ];
    crate::fuzz::fuzz("metadata", &corpus, |bytes| {
        let refused = |code| matches!(code, Code::Corrupt | Code::Unsupported);
        if !corpus.iter().any(|whole| whole == bytes) {
            assert!(refused(decode_edits(file, version, bytes).err().unwrap().code()));
            assert!(refused(decode_snapshot(file, version, bytes).err().unwrap().code()));
        }
        let body = bytes.get(ENVELOPE..).unwrap_or_default();
        if let Err(error) = decode_edits(file, version, &sealed(EDIT_MAGIC, version, body)) {
            assert!(refused(error.code()), "{error:?}");
        }
        let bytes = sealed(SNAPSHOT_MAGIC, version, body);
        if let Err(error) = decode_snapshot(file, version, &bytes) {
            assert!(refused(error.code()), "{error:?}");
        }
    });
}
