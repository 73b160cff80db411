//! The frame reader, given a stream in pieces: it finds the same frames as in one piece, and never asks for more than its
//! limits.
#![no_main]

use bitacora_protocol::rpc::{FrameLimits, FrameReader};
use libfuzzer_sys::fuzz_target;

const LIMITS: FrameLimits = FrameLimits { bytes: 4096, buffers: 16 };

fn frames(stream: &[u8], step: usize) -> Vec<(i32, Vec<u8>)> {
    let (mut reader, mut found, mut scratch) = (FrameReader::new(LIMITS), Vec::new(), Vec::new());
    let (mut start, mut end) = (0, 0);
    loop {
        match reader.next(&stream[start..end], &mut scratch) {
            Ok(Some(frame)) => {
                assert!(frame.message.len() <= LIMITS.bytes);
                found.push((frame.serial, frame.message.to_vec()));
                start += frame.length;
            }
            Ok(None) if end == stream.len() => return found,
            Ok(None) => {
                let wants = reader.wants(&stream[start..end]);
                assert!(wants > end - start && wants <= 8 + LIMITS.bytes + 4 * (LIMITS.buffers + 1));
                end = (end + step).min(stream.len());
            }
            Err(_) => return found,
        }
    }
}

fuzz_target!(|input: (u8, Vec<u8>)| {
    let (step, stream) = input;
    assert_eq!(frames(&stream, usize::from(step) + 1), frames(&stream, usize::MAX >> 1));
});
