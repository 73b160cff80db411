//! Frames of Avro's `NettyTransceiver`: big-endian `int32 serial, int32 buffer count`, then for each buffer
//! `int32 length, bytes`. The buffers, put together, are the message.
//!
//! Source: `org.apache.avro.ipc.NettyTransportCodec` of Avro 1.7.

/// What a frame may cost its reader.
#[derive(Clone, Copy, Debug)]
pub struct FrameLimits {
    /// Of all buffers of a frame together.
    pub bytes: usize,
    /// Java's encoder fills buffers of 8 KiB.
    pub buffers: usize,
}

/// A whole frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Tells the answer to which request it belongs; chosen by the client.
    pub serial: i32,
    /// The message.
    pub message: &'a [u8],
    /// How many bytes of the input the frame was.
    pub length: usize,
}

/// Bytes that can't become a frame. The stream can't be read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// An HTTP server's answer.
    #[error(
        "what answers there speaks HTTP, not Avro RPC; a node's port for Avro RPC is by default the one above that for HTTP"
    )]
    Http,
    /// There is no sense in the bytes.
    #[error("these are no frames of Avro RPC: a count or a length of {0}")]
    Negative(i32),
    /// More buffers than the limit.
    #[error("a frame of {count} buffers; a frame has at most {max}")]
    TooManyBuffers {
        /// What the frame said.
        count: i32,
        /// The limit.
        max: usize,
    },
    /// More bytes than the limit.
    #[error("a frame of more than {max} bytes")]
    TooLarge {
        /// Whose frame it is.
        serial: i32,
        /// The limit.
        max: usize,
    },
}

/// Finds frames in a stream of bytes; remembers how far it has looked at one that is not whole.
#[derive(Debug)]
pub struct FrameReader {
    limits: FrameLimits,
    /// Of the frame at the front; `None` before its header is there.
    header: Option<Header>,
    /// Of the buffer that [`FrameReader::skip`] is inside of, the bytes that were not dropped yet.
    unskipped: usize,
}

#[derive(Clone, Copy, Debug)]
struct Header {
    serial: i32,
    /// Buffers in all, and those not seen whole yet.
    count: i32,
    left: i32,
    /// Bytes of the frame walked over, header included.
    walked: usize,
    /// Bytes of the buffers walked over.
    message: usize,
}

const HEADER: usize = 8;
const LENGTH: usize = 4;

impl FrameReader {
    /// A reader at the start of a stream.
    #[must_use]
    pub fn new(limits: FrameLimits) -> Self {
        Self { limits, header: None, unskipped: 0 }
    }

    /// The frame at the front of `input`; `None` while it is not whole: `input` must then be given again, with more at its
    /// end. The caller drops [`Frame::length`] bytes from the front. A message in several buffers is put together in
    /// `scratch`; one in a single buffer is borrowed from `input`.
    ///
    /// # Errors
    /// When the stream is no sequence of frames or a limit is exceeded.
    pub fn next<'a>(
        &mut self,
        input: &'a [u8],
        scratch: &'a mut Vec<u8>,
    ) -> Result<Option<Frame<'a>>, FrameError> {
        let mut header = match self.header {
            Some(header) => header,
            None => {
                let Some((serial, count)) = int(input, 0).zip(int(input, 4)) else { return Ok(None) };
                if input.starts_with(b"HTTP/1.") {
                    return Err(FrameError::Http);
                }
                if count < 0 {
                    return Err(FrameError::Negative(count));
                }
                if count as usize > self.limits.buffers {
                    return Err(FrameError::TooManyBuffers { count, max: self.limits.buffers });
                }
                Header { serial, count, left: count, walked: HEADER, message: 0 }
            }
        };
        while header.left > 0 {
            self.header = Some(header);
            let Some(length) = int(input, header.walked) else { return Ok(None) };
            let length = usize::try_from(length).map_err(|_| FrameError::Negative(length))?;
            // Both are below 2^31, so nothing overflows.
            if header.message + length > self.limits.bytes {
                return Err(FrameError::TooLarge { serial: header.serial, max: self.limits.bytes });
            }
            if input.len() < header.walked + LENGTH + length {
                return Ok(None);
            }
            header.walked += LENGTH + length;
            header.message += length;
            header.left -= 1;
        }
        self.header = None;
        let frame = &input[..header.walked];
        let message = if header.count == 1 {
            &frame[HEADER + LENGTH..]
        } else {
            gather(frame, scratch);
            scratch
        };
        Ok(Some(Frame { serial: header.serial, message, length: header.walked }))
    }

    /// Drops the frame at the front, for want of room, instead of waiting until it is whole. To be called after
    /// [`FrameReader::next`] found none, and then again with what follows instead of it, until there is a serial. Returns how
    /// many bytes the caller has to drop from the front of the input, and the frame's serial once those were its last.
    ///
    /// # Errors
    /// As [`FrameReader::next`].
    pub fn skip(&mut self, input: &[u8]) -> Result<(usize, Option<i32>), FrameError> {
        let Some(header) = &mut self.header else { return Ok((0, None)) };
        let mut at = std::mem::take(&mut header.walked);
        loop {
            let dropped = self.unskipped.min(input.len() - at);
            at += dropped;
            self.unskipped -= dropped;
            if self.unskipped > 0 {
                return Ok((at, None));
            }
            if header.left == 0 {
                let serial = header.serial;
                self.header = None;
                return Ok((at, Some(serial)));
            }
            let Some(length) = int(input, at) else { return Ok((at, None)) };
            let length = usize::try_from(length).map_err(|_| FrameError::Negative(length))?;
            if header.message + length > self.limits.bytes {
                return Err(FrameError::TooLarge { serial: header.serial, max: self.limits.bytes });
            }
            (header.message, self.unskipped) = (header.message + length, length);
            header.left -= 1;
            at += LENGTH;
        }
    }

    /// How many bytes the input must have at least before [`FrameReader::next`] can find more than it has; for making
    /// room at once. Never more than the limits allow.
    #[must_use]
    pub fn wants(&self, input: &[u8]) -> usize {
        self.header.map_or(HEADER, |header| {
            // Checked when it was walked over.
            let length = int(input, header.walked).and_then(|length| usize::try_from(length).ok());
            header.walked + LENGTH + length.unwrap_or(0)
        })
    }
}

/// The message of the frame at the front of `input`, and how many bytes the frame has, for who only looks ahead; `None` unless it is
/// whole and has one buffer.
#[inline]
#[must_use]
pub fn peek_frame(input: &[u8]) -> Option<(&[u8], usize)> {
    let (count, length) = int(input, 4).zip(int(input, HEADER))?;
    let end = HEADER + LENGTH + usize::try_from(length).ok().filter(|_| count == 1)?;
    Some((input.get(HEADER + LENGTH..end)?, end))
}

fn int(bytes: &[u8], at: usize) -> Option<i32> {
    bytes.get(at..)?.first_chunk().map(|bytes| i32::from_be_bytes(*bytes))
}

fn gather(frame: &[u8], message: &mut Vec<u8>) {
    message.clear();
    let mut rest = &frame[HEADER..];
    while let Some(length) = int(rest, 0) {
        let end = LENGTH + length as usize;
        message.extend_from_slice(&rest[LENGTH..end]);
        rest = &rest[end..];
    }
}

/// Appends a frame of one buffer to `out`, whose content `write` appends.
#[inline]
pub fn put_frame<T>(out: &mut Vec<u8>, serial: i32, write: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    let mut head = [0; HEADER + LENGTH];
    head[..4].copy_from_slice(&serial.to_be_bytes());
    head[4..8].copy_from_slice(&1i32.to_be_bytes());
    out.extend_from_slice(&head);
    let at = out.len() - LENGTH;
    let result = write(out);
    // No message here comes near 2 GiB: frames are limited, and pages of answers too.
    let length = i32::try_from(out.len() - at - LENGTH).unwrap_or(i32::MAX);
    out[at..at + LENGTH].copy_from_slice(&length.to_be_bytes());
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: FrameLimits = FrameLimits { bytes: 1000, buffers: 20 };

    fn frame(serial: i32, buffers: &[Vec<u8>]) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(serial.to_be_bytes());
        out.extend((buffers.len() as i32).to_be_bytes());
        for buffer in buffers {
            out.extend((buffer.len() as i32).to_be_bytes());
            out.extend(buffer);
        }
        out
    }

    proptest! {
        #[test]
        fn frames_are_found_however_the_stream_is_cut(
            frames in prop::collection::vec((any::<i32>(), prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..5)), 0..5),
            step in 1usize..50,
        ) {
            let stream: Vec<u8> = frames.iter().flat_map(|(serial, buffers)| frame(*serial, buffers)).collect();
            let mut reader = FrameReader::new(LIMITS);
            let (mut start, mut end, mut found) = (0, 0, Vec::new());
            let mut scratch = Vec::new();
            loop {
                match reader.next(&stream[start..end], &mut scratch).expect("they are frames") {
                    Some(frame) => {
                        found.push((frame.serial, frame.message.to_vec()));
                        start += frame.length;
                    }
                    None if end == stream.len() => break,
                    None => {
                        prop_assert!(reader.wants(&stream[start..end]) > end - start);
                        end = (end + step).min(stream.len());
                    }
                }
            }
            prop_assert_eq!(start, stream.len());
            let expected: Vec<_> = frames.iter().map(|(serial, buffers)| (*serial, buffers.concat())).collect();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn a_skipped_frame_leaves_the_next_one(
            buffers in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 1..5),
            first in 13usize..30, step in 1usize..50,
        ) {
            let skipped = frame(7, &buffers);
            let stream = [skipped.clone(), frame(8, &[b"next".to_vec()])].concat();
            let mut reader = FrameReader::new(LIMITS);
            let (mut start, mut end, mut scratch) = (0, first.min(skipped.len() - 1), Vec::new());
            prop_assert_eq!(reader.next(&stream[..end], &mut scratch), Ok(None));
            loop {
                let (dropped, serial) = reader.skip(&stream[start..end]).expect("they are frames");
                start += dropped;
                prop_assert!(start <= skipped.len() && end - start < LENGTH || serial.is_some());
                if let Some(serial) = serial {
                    prop_assert_eq!((serial, start), (7, skipped.len()));
                    break;
                }
                end = (end + step).min(stream.len());
            }
            let next = reader.next(&stream[start..], &mut scratch).expect("a frame").expect("whole");
            prop_assert_eq!((next.serial, next.message), (8, &b"next"[..]));
        }

        #[test]
        fn any_bytes_are_frames_or_refused_within_the_limits(bytes: Vec<u8>) {
            let mut reader = FrameReader::new(LIMITS);
            let (mut rest, mut scratch) = (bytes.as_slice(), Vec::new());
            while let Ok(Some(frame)) = reader.next(rest, &mut scratch) {
                prop_assert!(frame.message.len() <= LIMITS.bytes);
                rest = &rest[frame.length..];
            }
            prop_assert!(reader.wants(rest) <= HEADER + LIMITS.bytes + LENGTH * (LIMITS.buffers + 1));
        }
    }

    #[test]
    fn limits_are_told_before_the_bytes_are_there() {
        let next =
            |bytes: &[u8]| FrameReader::new(LIMITS).next(bytes, &mut Vec::new()).map(|frame| frame.is_some());
        let header =
            |serial: i32, count: i32, length: i32| [serial, count, length].map(i32::to_be_bytes).concat();
        assert_eq!(next(b"HTTP/1.1 400 Bad Request\r\n"), Err(FrameError::Http));
        assert_eq!(next(&header(1, -1, 0)), Err(FrameError::Negative(-1)));
        assert_eq!(next(&header(1, 21, 0)), Err(FrameError::TooManyBuffers { count: 21, max: 20 }));
        assert_eq!(next(&header(1, 1, -5)), Err(FrameError::Negative(-5)));
        assert_eq!(next(&header(7, 1, 1001)), Err(FrameError::TooLarge { serial: 7, max: 1000 }));
        assert_eq!(
            next(&frame(7, &[vec![0; 600], vec![0; 401]])),
            Err(FrameError::TooLarge { serial: 7, max: 1000 })
        );
        assert_eq!(next(&header(1, 1, 1000)), Ok(false));
    }

    #[test]
    fn only_a_whole_frame_of_one_buffer_is_peeked_at() {
        let one = frame(7, &[b"message".to_vec()]);
        let followed = [&one[..], b"more"].concat();
        assert_eq!(peek_frame(&followed), Some((&b"message"[..], one.len())));
        for cut in 0..one.len() {
            assert_eq!(peek_frame(&one[..cut]), None, "{cut}");
        }
        assert_eq!(peek_frame(&frame(7, &[b"two".to_vec(), b"buffers".to_vec()])), None);
        assert_eq!(peek_frame(&[7, 1, -1].map(i32::to_be_bytes).concat()), None);
    }

    #[test]
    fn what_is_put_is_found() {
        let mut out = b"before".to_vec();
        put_frame(&mut out, -3, |out| out.extend_from_slice(b"message"));
        let found = FrameReader::new(LIMITS)
            .next(&out[6..], &mut Vec::new())
            .map(|frame| frame.map(|f| (f.serial, f.message.to_vec())));
        assert_eq!(found, Ok(Some((-3, b"message".to_vec()))));
    }
}
