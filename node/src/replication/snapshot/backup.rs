//! A backup: the stream of a node's store in a file, and a data folder made from one.

use std::fs::{self, File};
use std::io::{ErrorKind, IsTerminal as _, Read, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use bitacora_program::console::{print, report, tell};
use bitacora_program::files::Output;
use futures_util::StreamExt as _;

use super::copy_file::CopyFile;
use super::fetch::{Chain, REASON_BYTES, room_for};
use super::{Header, Receiver, STORE};
use crate::data_dir::DataDir;
use crate::http_client::MemberClients;
use crate::store::{Checkpoint, Store};
use crate::{now_ms, read_text_limited};

/// How long the node may be silent.
const NODE_TIMEOUT: Duration = Duration::from_secs(30);

/// Writes the store of the node at `from`, which is asked by `clients`, to `file`, or to stdout if that is `-`. A regular file gets its name
/// when it is whole; what was begun is removed if it can't be ended.
///
/// # Errors
/// When the node gives no store or the file can't be written; the text names it.
pub async fn write(from: &reqwest::Url, clients: &MemberClients, file: &Path) -> Result<()> {
    // Before the node is asked: a copy of its store is work for it.
    let destination = Destination::open(file)?;
    let to_stdout = matches!(destination, Destination::Stdout);
    let shown = if to_stdout { "on stdout".to_owned() } else { file.display().to_string() };
    let written = copy(from, clients, destination).await;
    let (header, bytes) = written.with_context(|| format!("the backup {shown} was not written"))?;
    let told = format!("{shown}: {} in {bytes} bytes, at {}", header.identity, positions(header.next));
    if to_stdout {
        tell(told);
    } else {
        report("bitacora-node", told + "\n");
    }
    Ok(())
}

/// What takes a backup.
enum Destination {
    Stdout,
    File(Output),
}

impl Destination {
    fn open(file: &Path) -> Result<Self> {
        let shown = file.display();
        if file == Path::new("-") {
            return Self::stdout();
        }
        if let Some(data_dir) = data_dir_around(file) {
            bail!(
                "{shown} lies among the files of the data folder {}, which belong to a node alone; choose another folder",
                data_dir.display()
            );
        }
        // A FIFO's reader is waited for here.
        match tokio::task::block_in_place(|| Output::create_new(file)) {
            Ok(Output::Stdout(_)) => Self::stdout(),
            Ok(output) => Ok(Self::File(output)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(exists(file)),
            Err(error) => Err(error).with_context(|| format!("{shown} can't be written")),
        }
    }

    fn stdout() -> Result<Self> {
        if std::io::stdout().is_terminal() {
            bail!("a backup is no text for a terminal; redirect stdout, or give a file's name instead of -");
        }
        Ok(Self::Stdout)
    }

    /// The folder whose disk has to have room for all of it.
    fn folder(&self) -> Option<PathBuf> {
        match self {
            Self::File(Output::Whole(whole)) => whole.folder().map(Path::to_owned),
            _ => None,
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Stdout => Ok(print(bytes)?),
            Self::File(output) => Ok(output.write_all(bytes)?),
        }
    }
}

fn exists(file: &Path) -> anyhow::Error {
    anyhow!("{} exists; choose another file or remove it", file.display())
}

/// Copies the store of the node at `from`; its header and the bytes of it.
async fn copy(
    from: &reqwest::Url,
    clients: &MemberClients,
    mut destination: Destination,
) -> Result<(Header, u64)> {
    let url = from.join("/snapshot").with_context(|| format!("{from} is no address of a node"))?;
    let client = clients.build(|http| http.connect_timeout(NODE_TIMEOUT).read_timeout(NODE_TIMEOUT))?;
    let response = client.get(url.clone()).send().await;
    let response = response.map_err(|error| anyhow!("no answer from {url}: {}", Chain(&error)))?;
    let status = response.status();
    if !status.is_success() {
        let reason = read_text_limited(response, REASON_BYTES).await.unwrap_or_default();
        bail!("{url} answers {status}: {reason}");
    }
    let folder = destination.folder();
    let accept = |header: &Header| folder.as_deref().map_or(Ok(()), |folder| room_for(folder, header.bytes));
    // Checked on the way: a backup that can't be read is none.
    let mut check = Receiver::new(std::io::sink(), accept);
    let mut body = response.bytes_stream();
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|error| anyhow!("{url} broke off: {}", Chain(&error)))?;
        check.push(&piece).with_context(|| format!("what {url} sends can't be kept"))?;
        tokio::task::block_in_place(|| destination.write(&piece))?;
    }
    let bytes = check.written();
    let (header, _) = check.finish().with_context(|| format!("what {url} sends can't be kept"))?;
    if let Destination::File(output) = destination {
        match tokio::task::block_in_place(|| output.finish()) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                bail!("a file of this name has come to be there meanwhile; it is left as it is");
            }
            finished => finished?,
        }
    }
    Ok((header, bytes))
}

/// The data folder of a node among whose own files a file lies: those are removed and replaced by nodes.
fn data_dir_around(file: &Path) -> Option<PathBuf> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = folder.canonicalize().ok()?;
    let mut around = folder.ancestors().map(|folder| (folder, folder.parent()));
    around.find_map(|(folder, parent)| {
        let name = folder.file_name()?;
        let is_own = (name == STORE || name == "log") && DataDir::is_one(parent?);
        is_own.then(|| parent.map(Path::to_owned))?
    })
}

/// Makes the store of a data folder from a backup, which is stdin if `file` is `-`.
///
/// # Errors
/// When the file is no backup or the folder is not empty; the text names it, and the folder then holds no store.
pub fn restore(file: &Path, data_dir: &Path) -> Result<()> {
    let (shown, mut input) = open_backup(file)?;
    let root = data_dir.join(STORE);
    if let (Ok(file), Ok(root)) = (file.canonicalize(), root.canonicalize())
        && file.starts_with(&root)
    {
        bail!("{shown} lies in {}, which is to be restored; move it to another folder first", root.display());
    }
    let dir = DataDir::open(data_dir)?;
    if fs::read_dir(&root).is_ok_and(|mut entries| entries.next().is_some()) {
        bail!(
            "{} holds a store already; restore into an empty folder, or remove that one if it is not needed",
            root.display()
        );
    }
    match fill(&mut input, &root) {
        Ok((header, checkpoint)) => {
            let minutes = now_ms().saturating_sub(header.caught_up_at) / 60_000;
            let told = format!(
                "{} holds the store of {}, {minutes} min old, at {}\n",
                dir.path().display(),
                header.identity,
                positions(checkpoint.next.iter().map(|next| next.0))
            );
            report("bitacora-node", told);
            Ok(())
        }
        Err(error) => {
            let _ = fs::remove_dir_all(&root);
            Err(error.context(format!("the backup {shown} can't be used")))
        }
    }
}

/// A backup's name for messages, and its bytes.
fn open_backup(file: &Path) -> Result<(String, Box<dyn Read>)> {
    if file != Path::new("-") {
        let shown = file.display().to_string();
        let input = File::open(file).with_context(|| format!("the backup {shown} can't be read"))?;
        return Ok((shown, Box::new(input)));
    }
    if std::io::stdin().is_terminal() {
        bail!("stdin is a terminal; redirect it from a backup, or give a file's name instead of -");
    }
    Ok(("on stdin".to_owned(), Box::new(std::io::stdin().lock())))
}

/// Makes the store in `root` from the stream of a backup.
fn fill(input: &mut dyn Read, root: &Path) -> Result<(Header, Checkpoint)> {
    let store = Store::open(root, 0)?;
    let mut incoming = store.incoming()?;
    let out = CopyFile::create(incoming.file())?;
    let mut receiver = Receiver::new(out, |header: &Header| room_for(root, header.bytes));
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = match input.read(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            read => read?,
        };
        if read == 0 {
            break;
        }
        receiver.push(&buffer[..read])?;
    }
    let (header, out) = receiver.finish()?;
    let checkpoint = out.finish()?.open(&mut incoming, &AtomicBool::new(false))?;
    if checkpoint.identity.as_ref().is_none_or(|identity| !identity.fits(&header.identity)) {
        bail!("its header says that it is of {}, and its content is of another log", header.identity);
    }
    store.install(incoming)?;
    Ok((header, checkpoint))
}

fn positions(next: impl IntoIterator<Item = i64>) -> String {
    let positions = (0..).zip(next).map(|(partition, next): (i32, _)| format!("{partition}:{next}"));
    positions.collect::<Vec<_>>().join(" ")
}
