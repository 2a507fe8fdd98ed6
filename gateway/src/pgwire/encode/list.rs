//! One-dimensional arrays: `{…}` with PostgreSQL's quoting, or its binary header and elements.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, FieldRef};
use bytes::{BufMut, BytesMut};
use kymo_kernel::{Error, Result};

use super::super::types;
use super::{Cells, Format, Style, Writer, value};

type Bounds<'a> = Box<dyn Fn(usize) -> std::ops::Range<usize> + 'a>;

/// The writer of a list column whose elements are scalars.
pub(super) fn writer<'a>(
    array: &'a ArrayRef,
    format: Format,
    style: &'a Style,
) -> Result<Writer<'a>> {
    let (field, values, bounds) = parts(array)?;
    let mut cells = Cells::new(field, values, format, style)?;
    let element = types::of_arrow(field.data_type());
    Ok(match format {
        Format::Binary => Box::new(move |row, out| binary(&mut cells, bounds(row), element, out)),
        Format::Text => {
            let mut scratch = BytesMut::new();
            Box::new(move |row, out| text(&mut cells, bounds(row), &mut scratch, out))
        }
    })
}

/// The element field, the elements of all rows, and which of them belong to a row.
fn parts(array: &ArrayRef) -> Result<(&FieldRef, &ArrayRef, Bounds<'_>)> {
    macro_rules! offsets {
        ($list:expr) => {{
            let list = $list;
            let offsets = list.value_offsets();
            let at = move |row: usize| {
                offsets.get(row).and_then(|at| usize::try_from(*at).ok()).unwrap_or_default()
            };
            (list.values(), Box::new(move |row| at(row)..at(row + 1)) as Bounds<'_>)
        }};
    }
    macro_rules! views {
        ($list:expr) => {{
            let list = $list;
            let bounds = move |row: usize| {
                let start = usize::try_from(list.value_offset(row)).unwrap_or_default();
                start..start + usize::try_from(list.value_size(row)).unwrap_or_default()
            };
            (list.values(), Box::new(bounds) as Bounds<'_>)
        }};
    }
    let (field, (values, bounds)) = match array.data_type() {
        DataType::List(field) => (field, offsets!(array.as_list::<i32>())),
        DataType::LargeList(field) => (field, offsets!(array.as_list::<i64>())),
        DataType::ListView(field) => (field, views!(array.as_list_view::<i32>())),
        DataType::LargeListView(field) => (field, views!(array.as_list_view::<i64>())),
        DataType::FixedSizeList(field, width) => {
            let list = array.as_fixed_size_list();
            let width = usize::try_from(*width).unwrap_or_default();
            let bounds: Bounds<'_> = Box::new(move |row| row * width..(row + 1) * width);
            (field, (list.values(), bounds))
        }
        other => return Err(Error::internal(format!("{other} is no list"))),
    };
    Ok((field, values, bounds))
}

fn binary(cells: &mut Cells<'_>, rows: std::ops::Range<usize>, element: u32, out: &mut BytesMut) {
    let has_null = rows.clone().any(|row| cells.is_null(row));
    let count = i32::try_from(rows.len()).unwrap_or(i32::MAX);
    out.put_i32(i32::from(count > 0));
    out.put_i32(i32::from(has_null));
    out.put_u32(element);
    if count > 0 {
        out.put_i32(count);
        out.put_i32(1);
    }
    for row in rows {
        if cells.is_null(row) {
            out.put_i32(-1);
        } else {
            value(out, |out| cells.write(row, out));
        }
    }
}

fn text(
    cells: &mut Cells<'_>,
    rows: std::ops::Range<usize>,
    scratch: &mut BytesMut,
    out: &mut BytesMut,
) {
    out.put_u8(b'{');
    for (index, row) in rows.enumerate() {
        if index > 0 {
            out.put_u8(b',');
        }
        if cells.is_null(row) {
            out.put_slice(b"NULL");
            continue;
        }
        scratch.clear();
        cells.write(row, scratch);
        quoted(scratch, out);
    }
    out.put_u8(b'}');
}

fn quoted(text: &[u8], out: &mut BytesMut) {
    let plain = !text.is_empty()
        && !text.eq_ignore_ascii_case(b"null")
        && !text.iter().any(|byte| b"{},\"\\ \t\n\r\x0b\x0c".contains(byte));
    if plain {
        out.put_slice(text);
        return;
    }
    out.put_u8(b'"');
    for byte in text {
        if matches!(byte, b'"' | b'\\') {
            out.put_u8(b'\\');
        }
        out.put_u8(*byte);
    }
    out.put_u8(b'"');
}
