use proptest::prelude::*;

use super::*;
use crate::store::Store;
use crate::store::tests::copies::COPY;
use crate::store::tests::identity;
use crate::testing::damage::{damaged, damages};

fn header(bytes: u64) -> Header {
    let identity = LogIdentity { cluster: "c".into(), topic: "t".into(), topic_id: Some("1".into()) };
    Header { format: FORMAT.to_owned(), identity, next: vec![1, 2], caught_up_at: 3, bytes }
}

fn stream(header: &Header, frames: &[&[u8]]) -> Vec<u8> {
    let mut stream = header.encode();
    for frame in frames {
        stream.extend((frame.len() as u32).to_be_bytes());
        stream.extend(*frame);
    }
    let body = frames.concat();
    stream.extend(0_u32.to_be_bytes());
    stream.extend((body.len() as u64).to_be_bytes());
    stream.extend(xxhash_rust::xxh3::xxh3_128(&body).to_be_bytes());
    stream
}

fn receive(stream: &[u8], piece: usize) -> Result<(Header, Vec<u8>), StreamError> {
    let mut receiver = Receiver::new(Vec::new(), |_: &Header| Ok(()));
    stream.chunks(piece).try_for_each(|bytes| receiver.push(bytes))?;
    receiver.finish()
}

#[test]
fn a_stream_is_taken_apart_wherever_it_is_cut() {
    let frames: [&[u8]; 3] = [b"one", &[7; 5000], b"x"];
    let stream = stream(&header(5004), &frames);
    for piece in [1, 2, 3, 7, 64, 4096, stream.len()] {
        let (found, body) = receive(&stream, piece).expect("whole");
        assert_eq!((found, body), (header(5004), frames.concat()), "in pieces of {piece}");
    }
    assert_eq!(receive(&self::stream(&header(0), &[]), 5).expect("whole").1, b"");
}

#[test]
fn no_damage_goes_unnoticed() {
    let whole = stream(&header(8), &[b"four", b"more"]);
    for end in 0..whole.len() {
        assert!(receive(&whole[..end], 9).is_err(), "cut off after {end} of {} bytes", whole.len());
    }
    let head = header(8).encode().len();
    for at in (0..12).chain(head..whole.len()) {
        for bit in 0..8 {
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << bit;
            assert!(receive(&damaged, 9).is_err(), "bit {bit} of byte {at} is turned");
        }
    }
    let longer = [&whole[..], b"x"].concat();
    assert!(matches!(receive(&longer, 9), Err(StreamError::Trailing)));
    assert!(matches!(receive(&longer, longer.len()), Err(StreamError::Trailing)));
}

#[test]
fn an_unwanted_stream_is_refused_before_anything_is_written() {
    let refused = |stream: &[u8]| receive(stream, 64).expect_err("refused").to_string();
    assert_eq!(refused(b"<html><body>hello</body></html>"), "it is no snapshot of a store");
    let huge = [&MAGIC[..], &u32::MAX.to_be_bytes()].concat();
    assert!(refused(&huge).contains("4294967295 bytes"));
    let newer = stream(&Header { format: "99".into(), ..header(1) }, &[b"x"]);
    assert!(refused(&newer).contains("its format is 99"));
    let frame = [header(1).encode(), (FRAME_BYTES as u32 + 1).to_be_bytes().to_vec()].concat();
    assert!(matches!(receive(&frame, 64), Err(StreamError::Frame(_))));
    let mut written = Vec::new();
    let mut receiver = Receiver::new(&mut written, |header: &Header| Err(format!("{} bytes", header.bytes)));
    let error = receiver.push(&stream(&header(7), &[b"x"])).expect_err("refused").to_string();
    assert_eq!(error, "7 bytes");
    assert!(written.is_empty());
}

#[test]
fn an_endless_stream_is_cut_off_near_its_announced_size() {
    let frame = vec![0; FRAME_BYTES];
    let mut receiver = Receiver::new(std::io::sink(), |_: &Header| Ok(()));
    receiver.push(&header(1000).encode()).expect("a header");
    let mut endless = std::iter::repeat_with(|| {
        receiver.push(&(FRAME_BYTES as u32).to_be_bytes())?;
        receiver.push(&frame)
    });
    let error = endless.by_ref().take(1000).find_map(Result::err).expect("it is stopped");
    assert!(matches!(error, StreamError::TooLarge(1000)), "{error}");
    assert!(receiver.written() <= 1250 + ROOM_BYTES + FRAME_BYTES as u64);
}

/// Pushes a stream in pieces of so many bytes, one after the other and over again. Checks what holds of any stream.
fn receive_any(stream: &[u8], pieces: &[usize]) -> Result<(Header, Vec<u8>), StreamError> {
    let mut receiver = Receiver::new(Vec::new(), |_: &Header| Ok(()));
    let (mut rest, mut turn) = (stream, 0);
    while !rest.is_empty() {
        let (piece, left) = rest.split_at(pieces[turn % pieces.len()].min(rest.len()));
        (rest, turn) = (left, turn + 1);
        receiver.push(piece)?;
        assert!(
            receiver.unread.len() <= MAGIC.len() + 4 + MAX_HEADER_BYTES,
            "{} bytes",
            receiver.unread.len()
        );
        assert!(receiver.out.len() as u64 == receiver.written() && receiver.out.len() <= stream.len());
    }
    receiver.finish()
}

prop_compose! {
    fn headers()(
        cluster in ".{0,10}", topic in ".{0,10}", topic_id in prop::option::of(".{0,10}"),
        next in prop::collection::vec(any::<i64>(), 0..4), caught_up_at: i64, bytes: u64,
    ) -> Header {
        Header { format: FORMAT.to_owned(), identity: LogIdentity { cluster, topic, topic_id }, next, caught_up_at, bytes }
    }
}

prop_compose! {
    fn streams(
        )(header in headers(),
        frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 0..5)) -> (Header,
        Vec<Vec<u8>>,
        Vec<u8>,
    ) {
        let parts: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
        let stream = stream(&header, &parts);
        (header, frames, stream)
    }
}

fn pieces() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(1..100_usize, 1..8)
}

proptest! {
    #[test]
    fn any_stream_that_was_sent_is_received((header, frames, stream) in streams(), pieces in pieces()) {
        prop_assert_eq!(receive_any(&stream, &pieces).expect("whole"), (header, frames.concat()));
    }

    #[test]
    fn any_bytes_are_refused_and_never_panic(bytes: Vec<u8>, begins: bool, pieces in pieces()) {
        let stream = if begins { [MAGIC, bytes.as_slice()].concat() } else { bytes };
        let error = receive_any(&stream, &pieces).expect_err("it is no snapshot");
        prop_assert!(error.to_string().starts_with("it"), "{}", error);
    }

    /// The header is not covered by the checksum: what comes of it is looked at by who takes the copy.
    #[test]
    fn damage_is_refused_or_lies_in_the_header(
        (header, frames, whole) in streams(), damages in damages(), pieces in pieces(),
    ) {
        let stream = damaged(&whole, &damages);
        if let Ok((found, body)) = receive_any(&stream, &pieces) {
            prop_assert_eq!(body, frames.concat());
            if found == header {
                // Frames may be cut elsewhere, and JSON written otherwise.
                prop_assert!(stream == whole || stream.ends_with(&whole[whole.len() - 28..]));
            }
        }
    }

    /// What follows the header is its own sentence, whatever it is about.
    #[test]
    fn a_header_is_json_of_a_bounded_size(
        json in ".{0,60}",
        frames in prop::collection::vec(any::<u8>(), 0..60),
    ) {
        let stream = [&MAGIC[..], &(json.len() as u32).to_be_bytes(), json.as_bytes(), &frames].concat();
        let error = receive_any(&stream, &[7]).expect_err("it is no header").to_string();
        prop_assert!(error.starts_with("its header can't be read: "), "{}", error);
    }
}

/// A backup with a right checksum, of that header and that content, is refused with these words.
fn refused_backup(header: &Header, content: &[u8], words: &str) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (file, data) = (dir.path().join("backup"), dir.path().join("data"));
    let frames: Vec<&[u8]> = content.chunks(FRAME_BYTES).collect();
    std::fs::write(&file, stream(header, &frames)).expect("written");
    let error = format!("{:#}", backup::restore(&file, &data).expect_err("it was restored"));
    assert!(error.contains(words) && error.contains("/backup can't be used: "), "{error}");
    assert!(!data.join("store").exists(), "nothing is left of it");
}

#[test]
fn a_backup_that_its_header_does_not_describe_is_refused() {
    let header = Header { identity: identity(), ..header(COPY.len() as u64) };
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (file, data) = (dir.path().join("backup"), dir.path().join("data"));
    let frames: Vec<&[u8]> = COPY.chunks(FRAME_BYTES).collect();
    // What the header says beside the identity is only told.
    let old = Header { caught_up_at: i64::MIN, next: vec![i64::MIN], ..header.clone() };
    std::fs::write(&file, stream(&old, &frames)).expect("written");
    backup::restore(&file, &data).expect("restored");
    let restored = Store::open(&data.join("store"), 0).expect("whole").checkpoint().expect("readable");
    assert!(restored.restored && restored.next.len() == 2, "{restored:?}");

    let other = LogIdentity { topic: "other".into(), ..identity() };
    refused_backup(&Header { identity: other, ..header.clone() }, &COPY, "its content is of another log");
    for (content, words) in [
        (&[][..], "it ends early"),
        (b"nonsense".repeat(5_000).as_slice(), "it is no file of LMDB"),
        (&COPY[..COPY.len() - 4_096], "its metadata tell of another number"),
        (&COPY[..COPY.len() - 1], "its metadata tell of another number"),
        (&[&COPY[..], &[0; 4_096]].concat(), "its metadata tell of another number"),
        (&[&COPY[..8_192], &vec![0; COPY.len() - 8_192]].concat(), "is another"),
    ] {
        refused_backup(&header, content, words);
    }
}
