use super::*;

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
    stream.extend(Md5::digest(&body));
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
fn what_is_not_wanted_is_refused_before_anything_is_written() {
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
fn a_stream_that_never_ends_is_cut_off_near_the_size_that_it_announced() {
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
