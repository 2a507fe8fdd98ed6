//! Records of the journal that hold a number and filler, so that a test knows them again.

use bytes::Bytes;
use kymo_kernel::ids::TableId;
use kymo_kernel::storage::log::Record;

/// A record with a name and so many bytes.
pub fn record(name: u64, size: usize) -> Record {
    let mut payload = vec![0x5a; size];
    payload[..8].copy_from_slice(&name.to_le_bytes());
    let payload = Bytes::from(payload);
    Record {
        table: TableId(1),
        schema_version: 1,
        raw_len: u32::try_from(size).unwrap(),
        compressed: false,
        crc: crc32c::crc32c(&payload),
        payload,
        written_ms: 0,
    }
}

/// The name of a record.
pub fn name(record: &Record) -> u64 {
    let bytes: [u8; 8] = record.payload[..8].try_into().unwrap();
    u64::from_le_bytes(bytes)
}
