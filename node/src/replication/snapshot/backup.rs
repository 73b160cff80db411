//! A backup: the stream of a node's store in a file, and a data folder made from one.

use std::fs::{self, File};
use std::io::{BufWriter, Read as _, Write as _};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use futures_util::StreamExt as _;

use super::fetch::{Chain, REASON_BYTES, room_for};
use super::{Header, Receiver};
use crate::data_dir::DataDir;
use crate::store::Store;
use crate::{now_ms, read_text_limited};

/// How long the node may be silent.
const NODE_TIMEOUT: Duration = Duration::from_secs(30);

/// Writes the store of the node at `from` to `file`. What was begun is removed if it can't be ended.
///
/// # Errors
/// When the node gives no store or the file can't be written; the text names it.
pub async fn write(from: &reqwest::Url, file: &Path) -> Result<()> {
    let shown = file.display();
    if file.exists() {
        bail!("{shown} exists; choose another file or remove it");
    }
    let url = from.join("/snapshot").with_context(|| format!("{from} is no address of a node"))?;
    let client =
        reqwest::Client::builder().connect_timeout(NODE_TIMEOUT).read_timeout(NODE_TIMEOUT).build()?;
    let response = client.get(url.clone()).send().await;
    let response = response.map_err(|error| anyhow!("no answer from {url}: {}", Chain(&error)))?;
    let status = response.status();
    if !status.is_success() {
        bail!(
            "{url} answers {status}: {}",
            read_text_limited(response, REASON_BYTES).await.unwrap_or_default()
        );
    }
    // Whole under its name, or not there.
    let part = file.with_added_extension("part");
    let written = async {
        let mut out = BufWriter::with_capacity(1 << 20, File::create(&part)?);
        let folder = part.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // Checked on the way: a backup that can't be read is none.
        let mut check = Receiver::new(std::io::sink(), |header: &Header| room_for(folder, header.bytes));
        let mut body = response.bytes_stream();
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(|error| anyhow!("{url} broke off: {}", Chain(&error)))?;
            check.push(&piece).with_context(|| format!("what {url} sends can't be kept"))?;
            out.write_all(&piece)?;
        }
        let bytes = check.written();
        let (header, _) = check.finish().with_context(|| format!("what {url} sends can't be kept"))?;
        out.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
        fs::rename(&part, file)?;
        File::open(folder)?.sync_all()?;
        anyhow::Ok((header, bytes))
    };
    match written.await {
        Ok((header, bytes)) => {
            println!("{shown}: {} in {bytes} bytes, at {}", header.identity, positions(header.next));
            Ok(())
        }
        Err(error) => {
            let _ = fs::remove_file(&part);
            Err(error.context(format!("the backup {shown} was not written")))
        }
    }
}

/// Makes the store of a data folder from a backup.
///
/// # Errors
/// When the file is no backup or the folder is not empty; the text names it, and the folder then holds no store.
pub fn restore(file: &Path, data_dir: &Path) -> Result<()> {
    let shown = file.display();
    let mut input = File::open(file).with_context(|| format!("the backup {shown} can't be read"))?;
    let dir = DataDir::open(data_dir)?;
    let root = dir.path().join("store");
    if fs::read_dir(&root).is_ok_and(|mut entries| entries.next().is_some()) {
        bail!(
            "{} holds a store already; restore into an empty folder, or remove that one if it is not needed",
            root.display()
        );
    }
    let restored = (|| {
        let store = Store::open(&root, 0)?;
        let mut incoming = store.incoming()?;
        let out = BufWriter::with_capacity(1 << 20, File::create_new(incoming.file())?);
        let mut receiver = Receiver::new(out, |header: &Header| room_for(&root, header.bytes));
        let mut buffer = vec![0; 1 << 20];
        loop {
            let read = input.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            receiver.push(&buffer[..read])?;
        }
        let (header, out) = receiver.finish()?;
        out.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
        let checkpoint = incoming.open(&AtomicBool::new(false))?;
        if checkpoint.identity.as_ref().is_none_or(|identity| !identity.fits(&header.identity)) {
            bail!("its header says that it is of {}, and its content is of another log", header.identity);
        }
        store.install(incoming)?;
        anyhow::Ok((header, checkpoint))
    })();
    match restored {
        Ok((header, checkpoint)) => {
            let minutes = now_ms().saturating_sub(header.caught_up_at) / 60_000;
            println!(
                "{} holds the store of {}, {minutes} min old, at {}",
                dir.path().display(),
                header.identity,
                positions(checkpoint.next.iter().map(|next| next.0))
            );
            Ok(())
        }
        Err(error) => {
            let _ = fs::remove_dir_all(&root);
            Err(error.context(format!("the backup {shown} can't be used")))
        }
    }
}

fn positions(next: impl IntoIterator<Item = i64>) -> String {
    let positions = (0..).zip(next).map(|(partition, next): (i32, _)| format!("{partition}:{next}"));
    positions.collect::<Vec<_>>().join(" ")
}
