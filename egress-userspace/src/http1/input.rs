//! What has been read from a connection and not been used.

use std::{
    io,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::BytesMut;
use tokio::io::{AsyncRead, ReadBuf};

/// Room for a read, in bytes: as heads and small contents need it, and as large ones do.
const SMALL: usize = 4 * 1024;
const LARGE: usize = 64 * 1024;

/// Bytes that have come. While there are none, there is no buffer.
#[derive(Debug)]
pub struct Input {
    /// The bytes.
    pub bytes: BytesMut,
    /// Whether more comes than a small read takes.
    is_large: bool,
}

impl Input {
    /// These bytes have come already.
    pub fn new(bytes: BytesMut) -> Self {
        let is_large = bytes.len() >= SMALL;
        Self { bytes, is_large }
    }

    /// Reads once, up to a limit; gives the number of bytes, which is 0 at the end. What does not reach the limit is as a rule all that
    /// there is, and to ask for more in vain has a client's connection watched.
    pub fn poll_fill<S: AsyncRead + Unpin>(&mut self, stream: &mut S, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let before = self.bytes.len();
        let read = if self.is_large {
            if !self.bytes.try_reclaim(LARGE) {
                // To grow would copy what has been used.
                let mut bytes = BytesMut::with_capacity(self.bytes.len() + LARGE);
                bytes.extend_from_slice(&self.bytes);
                self.bytes = bytes;
            }
            let mut buffer = ReadBuf::uninit(self.bytes.spare_capacity_mut());
            let read = Pin::new(stream).poll_read(cx, &mut buffer);
            let length = buffer.filled().len();
            // SAFETY: so many bytes beyond the length were filled.
            unsafe { self.bytes.set_len(self.bytes.len() + length) };
            // A piece keeps the room that it was read into for as long as it waits for somebody.
            self.is_large = length >= 2 * SMALL;
            read
        } else {
            // What is kept takes no more room than it needs.
            let mut room = [MaybeUninit::uninit(); SMALL];
            let mut buffer = ReadBuf::uninit(&mut room);
            let read = Pin::new(stream).poll_read(cx, &mut buffer);
            if self.bytes.is_empty() {
                self.bytes = buffer.filled().into();
            } else {
                self.bytes.extend_from_slice(buffer.filled());
            }
            self.is_large = buffer.remaining() == 0;
            read
        };
        if read.is_pending() {
            self.release();
        }
        read.map_ok(|()| self.bytes.len() - before)
    }

    /// Gives some of what has come, and then what comes.
    pub fn poll_read<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.bytes.is_empty() {
            return Pin::new(stream).poll_read(cx, buffer);
        }
        let some = self.bytes.len().min(buffer.remaining());
        buffer.put_slice(&self.bytes.split_to(some));
        self.release();
        Poll::Ready(Ok(()))
    }

    /// Lets the buffer go if nothing is in it.
    pub fn release(&mut self) {
        if self.bytes.is_empty() {
            self.bytes = BytesMut::new();
        }
    }

    /// Begins with small reads anew.
    pub fn calm(&mut self) {
        self.is_large = false;
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, task::Waker};

    use super::*;

    /// What each read gives: so many bytes, or an error. When there is no more, nothing has come yet.
    struct Scripted(VecDeque<io::Result<usize>>);

    impl AsyncRead for Scripted {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            let Some(next) = self.0.pop_front() else { return Poll::Pending };
            let length = next?;
            let some = length.min(buffer.remaining());
            buffer.put_slice(&vec![b'x'; some]);
            if some < length {
                self.0.push_front(Ok(length - some));
            }
            Poll::Ready(Ok(()))
        }
    }

    fn filled(script: Vec<io::Result<usize>>) -> Vec<Option<Result<usize, io::ErrorKind>>> {
        let (mut stream, mut input) = (Scripted(script.into()), Input::new(BytesMut::new()));
        let mut fills = Vec::new();
        loop {
            match input.poll_fill(&mut stream, &mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Ok(0)) => fills.push(Some(Ok(0))),
                Poll::Ready(read) => {
                    fills.push(Some(read.map_err(|error| error.kind())));
                    input.bytes.clear();
                    continue;
                }
                Poll::Pending => fills.push(None),
            }
            return fills;
        }
    }

    #[test]
    fn what_each_read_gives_comes_by_itself() {
        assert_eq!(filled(vec![Ok(10), Ok(20)]), [Some(Ok(10)), Some(Ok(20)), None]);
        assert_eq!(filled(vec![Ok(SMALL), Ok(10), Ok(20)]), [Some(Ok(SMALL)), Some(Ok(10)), Some(Ok(20)), None]);
        assert_eq!(filled(vec![Ok(10), Ok(0), Ok(0)]), [Some(Ok(10)), Some(Ok(0))]);
    }

    #[test]
    fn after_a_full_read_there_is_more_room() {
        assert_eq!(filled(vec![Ok(SMALL + LARGE + 1)]), [Some(Ok(SMALL)), Some(Ok(LARGE)), Some(Ok(1)), None]);
    }

    #[test]
    fn what_trickles_after_much_takes_no_more_room_than_it_needs() {
        let mut stream = Scripted([Ok(SMALL), Ok(LARGE), Ok(100), Ok(100)].into());
        let (mut input, mut cx) = (Input::new(BytesMut::new()), Context::from_waker(Waker::noop()));
        let mut pieces = Vec::new();
        while input.poll_fill(&mut stream, &mut cx).is_ready() {
            pieces.push(input.bytes.split());
        }
        assert_eq!(pieces.iter().map(BytesMut::len).collect::<Vec<_>>(), [SMALL, LARGE, 100, 100]);
        stream.0.push_back(Ok(100));
        assert!(input.poll_fill(&mut stream, &mut cx).is_ready());
        assert_eq!((input.bytes.split().len(), input.bytes.capacity()), (100, 0));
    }

    #[test]
    fn an_error_comes_after_what_was_read_before_it() {
        let reset = || Err(io::ErrorKind::ConnectionReset.into());
        assert_eq!(
            filled(vec![Ok(10), reset(), Ok(0)]),
            [Some(Ok(10)), Some(Err(io::ErrorKind::ConnectionReset)), Some(Ok(0))]
        );
    }
    #[test]
    fn whoever_goes_on_reading_gets_what_was_read_and_then_the_error() {
        let mut stream = Scripted([Ok(10), Err(io::ErrorKind::ConnectionReset.into()), Ok(0)].into());
        let (mut input, mut cx) = (Input::new(BytesMut::new()), Context::from_waker(Waker::noop()));
        assert!(matches!(input.poll_fill(&mut stream, &mut cx), Poll::Ready(Ok(10))));
        let mut room = [0; 6];
        let mut read = || {
            let mut buffer = ReadBuf::new(&mut room);
            let Poll::Ready(read) = input.poll_read(&mut stream, &mut cx, &mut buffer) else { return None };
            Some(read.map(|()| buffer.filled().len()).map_err(|error| error.kind()))
        };
        let reads = [read(), read(), read(), read()];
        assert_eq!(reads, [Some(Ok(6)), Some(Ok(4)), Some(Err(io::ErrorKind::ConnectionReset)), Some(Ok(0))]);
    }
}
