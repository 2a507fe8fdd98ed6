//! Loops over whole columns that the server's compiler turns into straight vector code.
//!
//! The server interrupts loops that run too long; the check at each turn of a loop costs more
//! than a turn of arithmetic does. Sixteen rows a turn bring that down to a tenth (and 32 need
//! more registers than there are), and let the compiler use vector instructions, where the
//! plugin is built with `-C target-feature=+simd128`. `#[scalar]` functions over numbers are
//! called this way by themselves; the helpers here are for `#[scalar(batch)]`.
//!
//! ```
//! use kymo_udf::{map, scalar};
//!
//! /// x * factor
//! #[scalar(batch)]
//! fn scaled(xs: &[f64], factor: f64, out: &mut [f64]) {
//!     map::into::<16, _, _>(xs, out, |x| x * factor);
//! }
//! # kymo_udf::plugin! { name: "doc", scalars: [scaled] }
//! ```

/// Writes `f` of each row into `out`, `N` rows a turn. Rows beyond the shorter of the two are
/// left alone.
#[inline(always)]
pub fn into<const N: usize, A: Copy, O: Copy>(xs: &[A], out: &mut [O], f: impl Fn(A) -> O) {
    let (whole, rest) = xs.as_chunks::<N>();
    let (whole_out, rest_out) = out.as_chunks_mut::<N>();
    let turns = whole.len().min(whole_out.len());
    for (chunk, chunk_out) in whole.iter().zip(whole_out.iter_mut()) {
        for lane in 0..N {
            chunk_out[lane] = f(chunk[lane]);
        }
    }
    if turns == whole.len() && turns == whole_out.len() {
        for (x, slot) in rest.iter().zip(rest_out) {
            *slot = f(*x);
        }
        return;
    }
    let from = turns * N;
    for (x, slot) in xs[from..].iter().zip(&mut out[from..]) {
        *slot = f(*x);
    }
}

/// Writes `f` of each two rows into `out`, `N` rows a turn. All three are as long as `out`.
///
/// # Panics
/// Where `xs` or `ys` is shorter than `out`.
#[inline(always)]
pub fn into2<const N: usize, A: Copy, B: Copy, O: Copy>(
    xs: &[A],
    ys: &[B],
    out: &mut [O],
    f: impl Fn(A, B) -> O,
) {
    let (xs, ys) = (&xs[..out.len()], &ys[..out.len()]);
    let (x_chunks, x_rest) = xs.as_chunks::<N>();
    let (y_chunks, y_rest) = ys.as_chunks::<N>();
    let (out_chunks, out_rest) = out.as_chunks_mut::<N>();
    for ((x, y), slots) in x_chunks.iter().zip(y_chunks).zip(out_chunks) {
        for lane in 0..N {
            slots[lane] = f(x[lane], y[lane]);
        }
    }
    for ((x, y), slot) in x_rest.iter().zip(y_rest).zip(out_rest) {
        *slot = f(*x, *y);
    }
}

/// `f` of each row as a new column, `N` rows a turn.
#[must_use]
#[inline(always)]
pub fn map<const N: usize, A: Copy, O: Copy + Default>(xs: &[A], f: impl Fn(A) -> O) -> Vec<O> {
    rows::<N, O>(
        xs.len(),
        |row, slots| {
            let chunk: &[A; N] = match xs[row..].first_chunk() {
                Some(chunk) => chunk,
                None => unreachable!("the last whole chunk ends before the last row"),
            };
            for lane in 0..N {
                slots[lane] = f(chunk[lane]);
            }
        },
        |row| f(xs[row]),
    )
}

/// A column from a function of whole chunks and one of the rows after the last.
#[inline(always)]
#[doc(hidden)]
pub fn rows<const N: usize, O: Copy + Default>(
    rows: usize,
    chunk: impl Fn(usize, &mut [O; N]),
    one: impl Fn(usize) -> O,
) -> Vec<O> {
    let mut out = Vec::with_capacity(rows);
    let (whole, rest) = out.spare_capacity_mut()[..rows].as_chunks_mut::<N>();
    let mut row = 0;
    for places in whole {
        let mut slots = [O::default(); N];
        chunk(row, &mut slots);
        // SAFETY: N places of O are a place of [O; N].
        unsafe { places.as_mut_ptr().cast::<[O; N]>().write(slots) };
        row += N;
    }
    for place in rest {
        place.write(one(row));
        row += 1;
    }
    // SAFETY: whole chunks and rest together are the first `rows` places, all written above.
    unsafe { out.set_len(rows) };
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn chunks_and_rest_make_the_whole() {
        for rows in [0, 1, 15, 16, 17, 33] {
            let xs: Vec<i64> = (0..rows).collect();
            let twice: Vec<i64> = xs.iter().map(|x| x * 2).collect();
            let mut out = vec![0; xs.len()];
            super::into::<16, _, _>(&xs, &mut out, |x| x * 2);
            assert_eq!(out, twice);
            assert_eq!(super::map::<16, _, _>(&xs, |x| x * 2), twice);
            super::into2::<16, _, _, _>(&xs, &xs, &mut out, |x, y| x + y);
            assert_eq!(out, twice);
        }
    }

    #[test]
    fn the_shorter_side_ends_it() {
        let mut out = [0; 20];
        super::into::<16, _, _>(&[1; 18], &mut out, |x: i32| x);
        assert_eq!(out[17..], [1, 0, 0]);
        let mut out = [0; 3];
        super::into::<16, _, _>(&[1; 18], &mut out, |x: i32| x);
        assert_eq!(out, [1; 3]);
    }
}
