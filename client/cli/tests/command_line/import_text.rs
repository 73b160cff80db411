//! `import` of files that other programs wrote, or that are cut off: nothing is passed over in silence.

use crate::node::FakeNode;
use crate::program::{DONE, FAILED, Folder, REJECTED, Run, run_at, run_at_with};

fn import(node: &FakeNode, format: &str, content: impl AsRef<[u8]>) -> Run {
    run_at_with(node, &["import", "-", "--format", format], content.as_ref())
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

#[test]
fn csv_that_is_cut_off_in_quotes_is_rejected() {
    let (node, folder) = (FakeNode::start(), Folder::new());
    let content = "key,value\nk1,v1\nk2,\"v2\nk3,v3\nk4,v4\n";
    import(&node, "csv", content).code(REJECTED).says("the quotes that begin in line 3 are not closed");
    assert_eq!((node.value("k1").as_deref(), node.sets()), (Some("v1"), 1));
    let (file, rejects) = (folder.with("in.csv", content), folder.path("rejects"));
    run_at(&node, &["import", &file, "--rejects", &rejects]).code(REJECTED).says("1 accepted, 1 rejected");
    let told = crate::program::json_lines(&crate::program::text(&rejects));
    assert_eq!((told.len(), &told[0]["line"]), (1, &3.into()));
}

#[test]
fn csv_may_have_any_ends_of_lines() {
    for end in ["\r", "\n", "\r\n"] {
        let node = FakeNode::start();
        let content = ["key,value", "k1,v1", "k2,\"v\"", "wrong", "k3,v3"].join(end);
        import(&node, "csv", content)
            .code(REJECTED)
            .says("3 accepted, 1 rejected")
            .says("line 4 is rejected");
        assert_eq!(node.value("k3").as_deref(), Some("v3"));
    }
    let node = FakeNode::start();
    import(&node, "csv", "key,value\rk1,v1\nk2,v2\r\nk3,v3\r\r\nk4,v4")
        .code(DONE)
        .says("4 accepted, 0 rejected");
}

#[test]
fn a_byte_order_mark_is_passed_at_the_start_only() {
    let node = FakeNode::start();
    import(&node, "ndjson", "\u{feff}{\"key\":\"k1\",\"value\":\"v\"}\n").code(DONE).says("1 accepted");
    let rows: String = (0..20_000).map(|n| format!("\u{feff}k{n:05},some value or other\n")).collect();
    import(&node, "csv", "\u{feff}key,value\n".to_owned() + &rows).code(DONE).says("20000 accepted");
    let changed = (0..20_000).find(|n| node.value(&format!("\u{feff}k{n:05}")).is_none());
    assert_eq!(changed, None, "a key lost its first character");
}

#[test]
fn another_encoding_is_named() {
    let node = FakeNode::start();
    for mark in ["", "\u{feff}"] {
        let csv = utf16(&format!("{mark}key,value\nk,v\n"));
        import(&node, "csv", &csv).code(FAILED).says("UTF-16").says("iconv");
        let ndjson = utf16(&format!("{mark}{{\"key\":\"k\",\"value\":\"v\"}}\n"));
        import(&node, "ndjson", &ndjson).code(FAILED).says("UTF-16").says("iconv");
    }
    import(&node, "ndjson", b"{\"key\":\"\xfc\",\"value\":\"v\"}").code(REJECTED).says("UTF-8");
}

#[test]
fn a_json_array_is_refused_with_the_way_to_convert_it() {
    let node = FakeNode::start();
    for array in ["[{\"key\":\"k\",\"value\":\"v\"}]", "[\n  {\"key\":\"k\",\"value\":\"v\"}\n]\n"] {
        import(&node, "ndjson", array).code(FAILED).says("a JSON array").says("jq -c '.[]'");
    }
}

#[test]
fn what_is_not_understood_is_never_a_success() {
    let node = FakeNode::start();
    for (format, content) in [
        ("ndjson", &b"\0\0\0\0\0\0\0\0"[..]),
        ("ndjson", b"key,value\nk,v\n"),
        ("ndjson", b"{\"key\":\"k\",\n\"value\":\"v\"}\n"),
        ("ndjson", b"{\"key\":\"k\",\"value\":\"v"),
        ("ndjson", b"{\"key\":\"k\",\"value\":\"v\",\"ttl\":{}}"),
        ("ndjson", b"Obj\x01"),
        ("ndjson", b"\x1f\x8b\x08\0\0\0\0\0\0\x03"),
        ("ndjson", b"\x89PNG\r\n\x1a\n\0\0\0"),
        ("csv", b"\0\0\0\0\0\0\0\0"),
        ("csv", b"{\"key\":\"k\",\"value\":\"v\"}\n"),
        ("csv", b"key,value\nk\n"),
        ("csv", b"key;value\nk;v\n"),
        ("csv", b"\"key,value\nk,v\n"),
        ("csv", b"key,value\n\xff,v\n"),
        ("csv", b""),
        ("avro", b"{\"key\":\"k\",\"value\":\"v\"}\n"),
        ("avro", b"Obj\x01\0"),
        ("avro", b""),
    ] {
        let told = import(&node, format, content);
        assert!([FAILED, REJECTED].contains(&told.code), "{format} {content:?}: {told:#?}");
        for internal in ["untagged", "enum", "invalid type", "variant"] {
            assert!(!told.stderr.contains(internal), "{told:#?}");
        }
    }
    assert_eq!(node.sets(), 0);
    // Nothing is in these.
    for (format, content) in
        [("ndjson", ""), ("ndjson", "\n \n"), ("ndjson", "\u{feff}"), ("csv", "key,value")]
    {
        import(&node, format, content).code(DONE).says("0 accepted, 0 rejected");
    }
}
