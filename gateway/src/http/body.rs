//! Reading a body: within a size, within a time, inflated on the way.
//!
//! The limit counts bytes after inflation, while they come out of the decompressor: a small
//! body that would grow beyond it is refused as soon as it does. What a handler leaves unread
//! is read to its end before the answer goes out ([`lend_body`]): a socket closed over unread
//! bytes is reset, and the client would see that instead of the answer.

use std::io::Write;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use bytes::Bytes;
use flate2::write::MultiGzDecoder;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame, SizeHint};
use kymo_kernel::{Code, Error, Result};
use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;

use crate::limits::Turns;

/// Bodies up to this size are read and parsed without waiting for a turn.
pub const SMALL_BYTES: usize = 64 * 1024;

/// How much compressed input is inflated at once: bounds what one step can produce.
const STEP_BYTES: usize = 4096;

/// A body that was read, with the turn that a large one holds until it is done with.
pub struct Content {
    /// The inflated bytes.
    pub bytes: Bytes,
    /// Held for its drop.
    pub turn: Option<OwnedSemaphorePermit>,
}

/// What a body may be.
pub struct Limits<'a> {
    /// Size after inflation.
    pub bytes: u64,
    /// Time for all of it to arrive.
    pub time: Duration,
    /// Where large bodies wait for their turn.
    pub turns: &'a Turns,
}

/// Reads a body.
///
/// # Errors
/// `too_large` beyond the limit, `invalid_input` for broken gzip, an unknown encoding or a
/// broken connection, `deadline_exceeded` when it does not arrive in time, `busy` when no
/// turn comes up.
pub async fn read(headers: &HeaderMap, body: Body, limits: &Limits<'_>) -> Result<Content> {
    let max = usize::try_from(limits.bytes).unwrap_or(usize::MAX);
    let announced = headers
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.parse::<u64>().ok());
    if announced.is_some_and(|bytes| bytes > limits.bytes) {
        return Err(too_large(max));
    }
    let mut sink = Sink::of(headers, max)?;
    let reading = drain(body, &mut sink, limits.turns);
    match tokio::time::timeout(limits.time, reading).await {
        Ok(turn) => Ok(Content { turn: turn?, bytes: sink.finish()? }),
        Err(_) => Err(Error::new(
            Code::InvalidInput,
            format!("the body did not arrive within {} s", limits.time.as_secs_f64()),
        )
        .with_hint("send it faster or in smaller parts, or raise ingest.body_timeout_ms")),
    }
}

async fn drain(
    mut body: Body,
    sink: &mut Sink,
    turns: &Turns,
) -> Result<Option<OwnedSemaphorePermit>> {
    let mut turn = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            Error::new(Code::InvalidInput, format!("the body broke off: {error}"))
        })?;
        let Ok(data) = frame.into_data() else { continue };
        sink.write(&data)?;
        if turn.is_none() && sink.len() > SMALL_BYTES {
            turn = Some(turns.take().await?);
        }
    }
    Ok(turn)
}

/// How much of a body is read only to be thrown away.
const LEFTOVER_BYTES: usize = 64 << 20;
/// How long the next piece of such a body is waited for.
const LEFTOVER_WAIT: Duration = Duration::from_millis(250);

/// A body that a handler may leave half-read.
struct Lent(Arc<Mutex<Body>>);

/// What a handler left of a body.
pub struct Leftover(Arc<Mutex<Body>>);

/// Gives a request's body to its handler without giving it away.
#[must_use]
pub fn lend_body(request: Request) -> (Request, Leftover) {
    let (parts, body) = request.into_parts();
    let body = Arc::new(Mutex::new(body));
    let lent = Body::new(Lent(Arc::clone(&body)));
    (Request::from_parts(parts, lent), Leftover(body))
}

impl hyper::body::Body for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut *self.0.lock()).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().size_hint()
    }
}

impl Leftover {
    /// Reads what is left, within a bound, and throws it away.
    pub async fn read_to_end(self) {
        let mut bytes = 0;
        while bytes < LEFTOVER_BYTES && !self.0.lock().is_end_stream() {
            let next = std::future::poll_fn(|cx| Pin::new(&mut *self.0.lock()).poll_frame(cx));
            match tokio::time::timeout(LEFTOVER_WAIT, next).await {
                Ok(Some(Ok(frame))) => bytes += frame.data_ref().map_or(0, Bytes::len),
                _ => return,
            }
        }
    }
}

enum Sink {
    Plain(Bounded),
    Gzip(Box<MultiGzDecoder<Bounded>>),
}

impl Sink {
    fn of(headers: &HeaderMap, max: usize) -> Result<Sink> {
        let bounded = Bounded { bytes: Vec::new(), max, over: false };
        let encoding = headers.get(CONTENT_ENCODING).map(|value| value.as_bytes());
        match encoding {
            None | Some(b"" | b"identity") => Ok(Sink::Plain(bounded)),
            Some(name) if name.eq_ignore_ascii_case(b"gzip") => {
                Ok(Sink::Gzip(Box::new(MultiGzDecoder::new(bounded))))
            }
            Some(name) => Err(Error::new(
                Code::Unsupported,
                format!("content encoding {:?}", String::from_utf8_lossy(name)),
            )
            .with_hint("send gzip, or no encoding")),
        }
    }

    fn write(&mut self, data: &[u8]) -> Result<()> {
        match self {
            Sink::Plain(bounded) => bounded.write_all(data).map_err(|_| too_large(bounded.max)),
            Sink::Gzip(decoder) => {
                for step in data.chunks(STEP_BYTES) {
                    if let Err(error) = decoder.write_all(step) {
                        return Err(fault(decoder.get_ref(), &error));
                    }
                }
                Ok(())
            }
        }
    }

    fn len(&self) -> usize {
        match self {
            Sink::Plain(bounded) => bounded.bytes.len(),
            Sink::Gzip(decoder) => decoder.get_ref().bytes.len(),
        }
    }

    fn finish(self) -> Result<Bytes> {
        match self {
            Sink::Plain(bounded) => Ok(bounded.bytes.into()),
            Sink::Gzip(mut decoder) => match decoder.try_finish() {
                Ok(()) => Ok(std::mem::take(&mut decoder.get_mut().bytes).into()),
                Err(error) => Err(fault(decoder.get_ref(), &error)),
            },
        }
    }
}

fn fault(sink: &Bounded, error: &std::io::Error) -> Error {
    if sink.over {
        return too_large(sink.max);
    }
    Error::new(Code::InvalidInput, format!("broken gzip: {error}"))
}

/// Takes bytes up to a number.
struct Bounded {
    bytes: Vec<u8>,
    max: usize,
    over: bool,
}

impl Write for Bounded {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        if self.bytes.len() + data.len() > self.max {
            self.over = true;
            return Err(std::io::Error::other("too large"));
        }
        self.bytes.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn too_large(max: usize) -> Error {
    Error::new(Code::TooLarge, format!("the body is larger than {max} bytes after decompression"))
        .with_hint("split it into several requests, or raise ingest.max_body_bytes")
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    async fn read_gzip(body: Vec<u8>, max: u64) -> Result<Bytes> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_ENCODING, "gzip".parse().unwrap());
        let turns = Turns::new("parsing", 1, Duration::ZERO);
        let limits = Limits { bytes: max, time: Duration::from_secs(5), turns: &turns };
        read(&headers, Body::from(body), &limits).await.map(|content| content.bytes)
    }

    #[tokio::test]
    async fn gzip_is_inflated_in_one_or_many_members() {
        let mut body = gzip(b"one ");
        body.extend(gzip(b"two"));
        assert_eq!(read_gzip(body, 100).await.unwrap(), "one two");
    }

    #[tokio::test]
    async fn a_bomb_is_refused_by_its_inflated_size() {
        let bomb = gzip(&vec![b'0'; 10 << 20]);
        assert!(bomb.len() < 20_000);
        assert_eq!(read_gzip(bomb, 1 << 20).await.unwrap_err().code(), Code::TooLarge);
    }

    #[tokio::test]
    async fn broken_gzip_is_the_clients_fault() {
        let whole = gzip(b"some text that is long enough");
        for broken in [b"not gzip".to_vec(), whole[..whole.len() - 6].to_vec()] {
            let error = read_gzip(broken, 100).await.unwrap_err();
            assert_eq!(error.code(), Code::InvalidInput, "{error}");
        }
    }

    #[tokio::test]
    async fn a_slow_body_is_given_up() {
        let turns = Turns::new("parsing", 1, Duration::ZERO);
        let limits = Limits { bytes: 10, time: Duration::from_millis(10), turns: &turns };
        let never = Body::from_stream(futures::stream::pending::<Result<Bytes>>());
        let error = read(&HeaderMap::new(), never, &limits).await.err().unwrap();
        assert!(error.message().contains("did not arrive"), "{error}");
    }

    #[tokio::test]
    async fn unknown_encodings_and_announced_giants_are_refused_unread() {
        let turns = Turns::new("parsing", 1, Duration::ZERO);
        let limits = Limits { bytes: 10, time: Duration::from_secs(5), turns: &turns };
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_ENCODING, "br".parse().unwrap());
        let error = read(&headers, Body::empty(), &limits).await.err().unwrap();
        assert_eq!(error.code(), Code::Unsupported);
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_LENGTH, "11".parse().unwrap());
        let error = read(&headers, Body::empty(), &limits).await.err().unwrap();
        assert_eq!(error.code(), Code::TooLarge);
    }

    #[test]
    fn mutated_gzip_is_inflated_as_another_decoder_does_within_the_limit() {
        let mut two = gzip(b"cpu,host=a usage=1 1\n");
        two.extend(gzip(&b"cpu,host=b usage=2 2\n".repeat(50)));
        let corpus = [gzip(b""), gzip(b"some text"), gzip(&vec![b'0'; 100_000]), two];
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_ENCODING, "gzip".parse().unwrap());
        const MAX: usize = 10_000;
        crate::fuzz::fuzz("gzip", &corpus, |body| {
            let mut sink = Sink::of(&headers, MAX).unwrap();
            let written = sink.write(body);
            assert!(sink.len() <= MAX);
            let inflated = written.and_then(|()| sink.finish());
            let mut expected = Vec::new();
            let mut other = flate2::read::MultiGzDecoder::new(body).take(MAX as u64 + 1);
            let whole = other.read_to_end(&mut expected).is_ok();
            match inflated {
                Ok(bytes) => assert!(!whole || bytes == expected),
                Err(error) if error.code() == Code::TooLarge => assert!(expected.len() > MAX),
                Err(error) => assert_eq!(error.code(), Code::InvalidInput),
            }
        });
    }
}
