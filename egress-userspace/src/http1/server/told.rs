//! What an application is told.

use std::{
    future::poll_fn,
    io, mem,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{StatusCode, Version};

use super::{AHEAD, Asked, Connection, Expects, Io, outgoing::Outgoing};
use crate::{
    body::{Body as _, BodyError, ResponseBody},
    head::ResponseHead,
    http1::{Encoder, Error, Framing, response_head},
    socket,
};

impl Io {
    /// Notes how far a write has come: for a client that does not take all of it at once the kernel is to keep little.
    pub(super) fn limited<T>(&mut self, written: Poll<T>) -> Poll<T> {
        if written.is_pending() && !mem::replace(&mut self.is_limited, true) {
            socket::limit_unsent(&self.stream);
        }
        written
    }

    /// Writes what there is, after which the connection may be ended at once.
    fn poll_write(&mut self, is_last: bool, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.output.poll_write(&mut Outgoing { stream: &mut self.stream, is_last }, cx)
    }

    /// Sends interim responses on. What does not go before the response goes with that.
    pub(super) fn poll_inform(&mut self, cx: &mut Context<'_>) {
        if self.is_informing {
            self.is_informing = self.poll_write(false, cx).is_pending();
        }
    }
}

impl Connection {
    /// Passes an interim response on (RFC 9110 section 15.2), to a client that knows such.
    pub fn inform(&self, head: &ResponseHead, cx: &mut Context<'_>) {
        let io = &mut *self.io.borrow_mut();
        // What a client that does not read on has to be told of all that, is the response.
        if io.is_old || io.output.len() >= AHEAD {
            return;
        }
        if head.status == StatusCode::CONTINUE {
            io.expects = Expects::Nothing;
        }
        response_head(head, Version::HTTP_11, &[], &mut io.output.buffer());
        io.is_informing = true;
        io.poll_inform(cx);
    }

    /// Sends a response; `close` says that it is the last. Tells when its head is `gone`, and gives whether another request can follow.
    ///
    /// # Errors
    /// The response does not come to its end, or the client does not take it. That neither goes on, `stalled` can say.
    pub fn respond<'a, S: Future<Output = Duration>, G: Fn()>(
        &'a self,
        mut head: ResponseHead,
        mut body: Pin<&'a mut ResponseBody>,
        asked: Asked,
        close: bool,
        mut stalled: Pin<&'a mut S>,
        gone: G,
    ) -> impl Future<Output = Result<bool, BodyError>> + use<'a, S, G> {
        let switching = head.status == StatusCode::SWITCHING_PROTOCOLS;
        let framing = asked.framing(&mut head, &body);
        // One that is over before its request is followed by the end of the connection: what comes is still of that request.
        let is_early = matches!(framing, Framing::Length(_)) && !self.is_end();
        let keep_alive = asked.keep_alive && !close && !is_early && framing != Framing::Close;
        let more: &[_] = match (keep_alive, asked.version) {
            _ if switching => &[],
            (true, Version::HTTP_10) => &[("Connection", "keep-alive")],
            (false, Version::HTTP_11) => &[("Connection", "close")],
            _ => &[],
        };
        {
            let io = &mut *self.io.borrow_mut();
            response_head(&head, asked.version, more, &mut io.output.buffer());
            // From now on nothing but the response goes to the client.
            io.expects = Expects::Nothing;
            io.is_informing = false;
        }
        let mut ended = framing == Framing::Length(0);
        let mut encoder = Encoder::new(framing);
        let (mut broken, mut is_held) = (None, false);
        poll_fn(move |cx| {
            loop {
                while !ended && broken.is_none() && self.io.borrow().output.len() < AHEAD {
                    // It may read from this connection.
                    let Poll::Ready(frame) = body.as_mut().poll_frame(cx) else { break };
                    let output = &mut self.io.borrow_mut().output;
                    let last = frame.is_none();
                    let framed = match frame {
                        Some(frame) => frame.and_then(|frame| Ok(encoder.put(frame, output)?)),
                        None => Ok(()),
                    };
                    // Of a length nobody asks for more than that, though HTTP/2 may have yet to say that it is the end.
                    ended = framed.is_ok() && (last || body.is_end_stream() || encoder.is_complete());
                    let framed = if ended { framed.and(encoder.end(output).map_err(BodyError::from)) } else { framed };
                    // What has come goes on nevertheless.
                    broken = framed.err();
                }
                let io = &mut *self.io.borrow_mut();
                if io.output.is_empty() {
                    match broken.take() {
                        Some(error) => return Poll::Ready(Err(error)),
                        None if ended => {
                            io.input.calm();
                            return Poll::Ready(Ok(keep_alive && io.content.is_end()));
                        }
                        None => break,
                    }
                }
                // What there is waits once.
                is_held = !is_held && !ended && broken.is_none() && io.output.len() < AHEAD && body.is_coming();
                if is_held {
                    break;
                }
                let written = io.poll_write(ended && !keep_alive && !switching && broken.is_none(), cx);
                if io.limited(written).map_err(Error::from)?.is_pending() {
                    break;
                }
                gone();
            }
            // A client may not read before it has sent everything.
            if let Poll::Ready(error) = body.poll_untaken(cx) {
                return Poll::Ready(Err(error));
            }
            let error = BodyError::Stalled(ready!(stalled.as_mut().poll(cx)));
            body.break_off(&error);
            Poll::Ready(Err(error))
        })
    }
}
