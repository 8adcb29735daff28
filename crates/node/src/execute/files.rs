//! Files with holes: read without touching the holes, written so that they stay holes.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::num::NonZeroU64;
use std::os::unix::fs::FileTypeExt;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::{self, JoinHandle};

use bytes::Bytes;
use ferry_core::{Error, Result};
use ferry_image::transfer::export::RawTarget;
use ferry_image::transfer::import::{RawExtent, RawSource, ReadSource};
use rustix::fs::{Advice, OFlags, SeekFrom as Seeking, fadvise, fcntl_getfl, seek};
use rustix::io::Errno;

/// Bytes read at once: an object of the default size.
const PIECE: u64 = 4 << 20;

/// How far ahead of the reader the data of a file is announced, so that the disk reads it while a piece before it is stored. Bytes.
const AHEAD: u64 = 32 << 20;

/// Parts of an exported image that wait for the thread that writes them: together with the objects being read enough that neither
/// waits for the other, and a bound on memory.
const STEPS_MAX: usize = 8;

/// Bytes of an exported file after which the kernel is told to begin writing them to the disk, so that the sync at the end is short.
const WRITE_BACK: u64 = 8 << 20;

/// Opens a raw image for reading: by its holes where the file can tell them, else from its start to its end.
///
/// # Errors
/// Those of the operating system.
pub(super) fn raw_source(file: File) -> Result<Box<dyn RawSource + Send>> {
    let cannot = |e| Error::io("cannot read the file to import", e);
    let metadata = file.metadata().map_err(cannot)?;
    if metadata.is_file() {
        let mut file = file;
        let at = file.stream_position().map_err(cannot)?;
        if at == 0 {
            return Ok(Box::new(HoleySource {
                file,
                size: metadata.len(),
                at: 0,
                data_end: 0,
                announced: 0,
            }));
        }
        let left = metadata.len().saturating_sub(at);
        return Ok(Box::new(ReadSource::new(file, Some(left))));
    }
    if metadata.file_type().is_block_device() {
        let mut file = file;
        let size = file.seek(SeekFrom::End(0)).map_err(cannot)?;
        file.seek(SeekFrom::Start(0)).map_err(cannot)?;
        return Ok(Box::new(ReadSource::new(file, Some(size))));
    }
    Ok(Box::new(ReadSource::new(file, None)))
}

/// A regular file that knows its holes.
#[derive(Debug)]
struct HoleySource {
    file: File,
    size: u64,
    at: u64,
    /// Up to here the file holds data; what follows must be asked for.
    data_end: u64,
    /// Up to here the kernel was told that the data will be read.
    announced: u64,
}

impl HoleySource {
    /// Tells the kernel what will be read soon. Advice only: where it cannot be given, reading is slower.
    fn announce(&mut self) {
        let until = self.size.min(self.at + AHEAD);
        // In steps: a call for every piece would cost more than it saves.
        if self.announced >= until || until - self.announced.max(self.at) < AHEAD / 4 && until < self.size {
            return;
        }
        let mut from = self.announced.max(self.at);
        while from < until {
            let Ok(data) = seek(&self.file, Seeking::Data(from)) else { break };
            let Ok(hole) = seek(&self.file, Seeking::Hole(data)) else { break };
            let end = hole.min(until);
            if let Some(length) = NonZeroU64::new(end.saturating_sub(data)) {
                fadvise(&self.file, data, Some(length), Advice::WillNeed).ok();
            }
            from = end.max(data).max(from + 1);
        }
        self.announced = until;
    }

    /// Where the next data begins, at or behind `at`; the end of the file where there is none.
    fn next_data(&self) -> Result<u64> {
        match seek(&self.file, Seeking::Data(self.at)) {
            Ok(at) => Ok(at.min(self.size)),
            Err(Errno::NXIO) => Ok(self.size),
            // The file system does not know: all is data.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(self.at),
            Err(e) => Err(Error::io("cannot look for data in the file", e.into())),
        }
    }

    /// Where the data that begins at `at` ends.
    fn end_of_data(&self) -> Result<u64> {
        match seek(&self.file, Seeking::Hole(self.at)) {
            Ok(at) => Ok(at.clamp(self.at, self.size)),
            Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP) => Ok(self.size),
            Err(e) => Err(Error::io("cannot look for holes in the file", e.into())),
        }
    }
}

impl RawSource for HoleySource {
    fn size(&self) -> Option<u64> {
        Some(self.size)
    }

    fn next_extent(&mut self) -> Result<Option<RawExtent>> {
        if self.at >= self.size {
            return Ok(None);
        }
        let offset = self.at;
        if offset >= self.data_end {
            let data = self.next_data()?;
            if data > offset {
                self.at = data;
                return Ok(Some(RawExtent::Hole { offset, length: data - offset }));
            }
            self.data_end = self.end_of_data()?;
        }
        self.announce();
        let length = PIECE.min(self.data_end - offset);
        let mut data = vec![0; usize::try_from(length).expect("a piece fits memory")];
        let read = self.file.seek(SeekFrom::Start(offset)).and_then(|_| self.file.read_exact(&mut data));
        read.map_err(|e| {
            let short = e.kind() == ErrorKind::UnexpectedEof;
            let clause = if short {
                "the file became shorter while it was read"
            } else {
                "cannot read the file to import"
            };
            Error::io(clause, e).with("offset", offset)
        })?;
        self.at += length;
        Ok(Some(RawExtent::Data { offset, data: Bytes::from(data) }))
    }
}

/// What the thread that writes a raw image is told.
#[derive(Debug)]
enum Step {
    Data(Bytes),
    Hole(u64),
    /// That was all.
    Finish,
}

/// A raw image being written to a file or a pipe, by a thread of its own: what follows is read meanwhile.
#[derive(Debug)]
pub(super) struct FileTarget {
    /// None once the thread was told to end.
    steps: Option<SyncSender<Step>>,
    /// None once it ended.
    writer: Option<JoinHandle<Result<()>>>,
}

impl FileTarget {
    /// Writes to `file`: with holes where it is an empty regular file that is not appended to.
    ///
    /// # Errors
    /// Those of the operating system.
    pub(super) fn new(file: File) -> Result<Self> {
        let metadata = file.metadata().map_err(cannot_write)?;
        let appends = fcntl_getfl(&file).is_ok_and(|flags| flags.contains(OFlags::APPEND));
        let sparse = metadata.is_file() && metadata.len() == 0 && !appends;
        let (steps, queue) = mpsc::sync_channel(STEPS_MAX);
        let mut writer = FileWriter { file, sparse, at: 0, sent: 0 };
        let writer = thread::Builder::new()
            .name("export".to_owned())
            .spawn(move || writer.run(&queue))
            .map_err(|e| Error::io("cannot start the thread that writes the file", e))?;
        Ok(Self { steps: Some(steps), writer: Some(writer) })
    }

    /// Ends the file: its last hole counts, and all of it is durable.
    ///
    /// # Errors
    /// Those of the operating system.
    pub(super) fn finish(mut self) -> Result<()> {
        self.tell(Step::Finish)?;
        self.end()
    }

    /// Hands a step to the thread; waits while enough are on their way.
    fn tell(&mut self, step: Step) -> Result<()> {
        let is_told = self.steps.as_ref().is_some_and(|steps| steps.send(step).is_ok());
        if is_told {
            return Ok(());
        }
        // The thread ends before it is told to only where it fails.
        self.end()?;
        Err(Error::new(ferry_core::ErrorKind::Internal, "the exported image was ended before its time"))
    }

    /// Waits until the thread has done what it was told; its error, the first time.
    fn end(&mut self) -> Result<()> {
        self.steps = None;
        self.writer.take().map_or(Ok(()), |w| w.join().expect("the writer does not panic"))
    }
}

impl Drop for FileTarget {
    fn drop(&mut self) {
        // Unfinished: whoever drops it has failed, and says why.
        self.end().ok();
    }
}

impl RawTarget for FileTarget {
    fn data(&mut self, bytes: Bytes) -> Result<()> {
        self.tell(Step::Data(bytes))
    }

    fn hole(&mut self, length: u64) -> Result<()> {
        self.tell(Step::Hole(length))
    }
}

/// The thread's side of it.
#[derive(Debug)]
struct FileWriter {
    file: File,
    /// Whether zeros are skipped over instead of written.
    sparse: bool,
    at: u64,
    /// Up to here the kernel was told to write to the disk.
    sent: u64,
}

impl FileWriter {
    /// Does what it is told until it is told no more.
    fn run(&mut self, steps: &Receiver<Step>) -> Result<()> {
        for step in steps {
            match step {
                Step::Data(bytes) => self.data(&bytes)?,
                Step::Hole(length) => self.hole(length)?,
                Step::Finish if self.sparse => {
                    let ended = self.file.set_len(self.at).and_then(|()| self.file.sync_all());
                    ended.map_err(|e| Error::io("cannot finish the exported file", e))?;
                }
                Step::Finish => {}
            }
        }
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(cannot_write)?;
        self.at += bytes.len() as u64;
        if self.sparse && self.at - self.sent >= WRITE_BACK {
            // Linux starts writing what is dirty of such a range. Advice only: where it cannot be given, the sync at the end takes longer.
            fadvise(&self.file, self.sent, NonZeroU64::new(self.at - self.sent), Advice::DontNeed).ok();
            self.sent = self.at;
        }
        Ok(())
    }

    fn hole(&mut self, length: u64) -> Result<()> {
        if self.sparse {
            self.at += length;
            return self.file.seek(SeekFrom::Start(self.at)).map(drop).map_err(cannot_write);
        }
        let block = [0; 65536];
        let mut left = length;
        while left > 0 {
            let n = usize::try_from(left).map_or(block.len(), |left| left.min(block.len()));
            self.data(&block[..n])?;
            left -= n as u64;
        }
        Ok(())
    }
}

fn cannot_write(error: io::Error) -> Error {
    Error::io("cannot write the exported image", error)
}

/// Makes what was written to a regular file durable; pipes and terminals have nothing of the kind.
///
/// # Errors
/// Those of the operating system.
pub(super) fn settle(file: &File) -> Result<()> {
    let metadata = file.metadata().map_err(|e| Error::io("cannot finish the file", e))?;
    if !metadata.is_file() {
        return Ok(());
    }
    file.sync_all().map_err(|e| Error::io("cannot finish the file", e))
}
