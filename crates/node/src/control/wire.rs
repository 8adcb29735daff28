//! Frames on the control socket: a length, then JSON; descriptors ride with the first byte of a frame.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use ferry_core::{Error, ErrorKind, Result};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::api::{Event, Failure, Request, Response, Streams};

/// Version of the frames. Programs of different versions do not understand each other and say so.
pub(crate) const VERSION: u32 = 1;

/// Bytes of the longest frame: what a listing of very many extents takes.
const FRAME_MAX: u32 = 1 << 28;

/// Files that go with a request.
const FILES_MAX: usize = 3;

/// How long the other side may take to read or write one frame. It is a process of the same machine; one that is stopped must
/// not hold up the owner of a store.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a command asks the owner of its store.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Call {
    /// Version of the asker's frames.
    pub(crate) version: u32,
    /// The home whose configuration is meant.
    pub(crate) home: PathBuf,
    /// The command.
    pub(crate) request: Request,
    /// Which files follow as descriptors, in this order.
    pub(crate) files: FileList,
}

/// Which files there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileList {
    input: bool,
    second: bool,
    output: bool,
}

/// What the owner tells.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Tell {
    /// The command begins.
    Accepted,
    /// Something happened.
    Event(Event),
    /// The end.
    Done(Box<Response>),
    /// The other end.
    Failed(Box<Failure>),
}

/// One end of the socket.
#[derive(Debug)]
pub(crate) struct Channel(UnixStream);

impl Channel {
    /// Speaks over `stream`.
    ///
    /// # Errors
    /// Those of the operating system.
    pub(crate) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self(stream))
    }

    /// Another handle to the same end.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Limits how long a frame is waited for; without a limit, as long as it takes.
    pub(crate) fn wait_at_most_patience(&self, limited: bool) -> io::Result<()> {
        self.0.set_read_timeout(limited.then_some(PATIENCE))
    }

    /// The user of the process at the other end.
    pub(crate) fn peer_user(&self) -> io::Result<u32> {
        Ok(rustix::net::sockopt::socket_peercred(&self.0)?.uid.as_raw())
    }

    /// Says no more and hears no more; wakes whoever waits on another handle.
    pub(crate) fn hang_up(&self) {
        // A peer that has gone already has the same effect.
        self.0.shutdown(std::net::Shutdown::Both).ok();
    }

    /// Says no more: the other end takes it as the wish that the command may end.
    pub(crate) fn say_no_more(&self) {
        // As above.
        self.0.shutdown(std::net::Shutdown::Write).ok();
    }

    /// Waits until the other end says something or goes; whether it has gone.
    pub(crate) fn is_gone(&mut self) -> bool {
        !matches!(self.0.read(&mut [0]), Ok(1..))
    }

    /// Sends a frame.
    pub(crate) fn send<T: Serialize>(&mut self, message: &T) -> io::Result<()> {
        self.0.write_all(&frame(message)?)
    }

    /// Receives a frame.
    pub(crate) fn receive<T: DeserializeOwned>(&mut self) -> io::Result<T> {
        let mut length = [0; 4];
        self.0.read_exact(&mut length)?;
        self.receive_rest(u32::from_le_bytes(length))
    }

    fn receive_rest<T: DeserializeOwned>(&mut self, length: u32) -> io::Result<T> {
        if length > FRAME_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {length} bytes")));
        }
        // Grows with what really comes, whatever length was announced.
        let mut json = Vec::new();
        Read::by_ref(&mut self.0).take(u64::from(length)).read_to_end(&mut json)?;
        if json.len() < usize::try_from(length).expect("a frame fits memory") {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        serde_json::from_slice(&json).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    }

    /// Sends a call and its files.
    pub(super) fn send_call(&mut self, home: PathBuf, request: Request, streams: &Streams) -> io::Result<()> {
        let files = FileList {
            input: streams.input.is_some(),
            second: streams.second.is_some(),
            output: streams.output.is_some(),
        };
        let bytes = frame(&Call { version: VERSION, home, request, files })?;
        let given = [&streams.input, &streams.second, &streams.output];
        let given: Vec<_> = given.into_iter().flatten().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !given.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&given)) {
            return Err(io::Error::other("too many files for one call"));
        }
        let sent = sendmsg(&self.0, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
        self.0.write_all(&bytes[sent..])
    }

    /// Receives a call and its files.
    ///
    /// # Errors
    /// `Io` where the other end goes or takes too long, `Invalid` for what is not a call.
    pub(crate) fn receive_call(&mut self) -> Result<(Call, Streams)> {
        let cannot = |e: io::Error| Error::io("cannot read a command from the control socket", e);
        let mut length = [0; 4];
        let mut files = Vec::new();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let buffer = &mut [IoSliceMut::new(&mut length)];
        let received = recvmsg(&self.0, buffer, &mut ancillary, RecvFlags::CMSG_CLOEXEC);
        let read = received.map_err(|e| cannot(e.into()))?.bytes;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                files.extend(rights);
            }
        }
        self.0.read_exact(&mut length[read..]).map_err(cannot)?;
        let call: Call = self.receive_rest(u32::from_le_bytes(length)).map_err(cannot)?;
        let streams = call.files.take(files)?;
        Ok((call, streams))
    }
}

impl FileList {
    /// Gives each descriptor its place.
    fn take(self, files: Vec<OwnedFd>) -> Result<Streams> {
        let mut files = files.into_iter().map(File::from);
        let mut next = |wanted: bool| match (wanted, wanted.then(|| files.next()).flatten()) {
            (true, None) => Err(Error::new(ErrorKind::Invalid, "a command came without its files")),
            (_, file) => Ok(file),
        };
        Ok(Streams { input: next(self.input)?, second: next(self.second)?, output: next(self.output)? })
    }
}

/// A message with its length in front.
fn frame<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message)?;
    let length = u32::try_from(bytes.len() - 4).ok().filter(|l| *l <= FRAME_MAX);
    let length = length.ok_or_else(|| io::Error::other("the answer is too long for one frame"))?;
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::{Read, Seek, Write};
    use std::os::unix::net::UnixStream;

    use super::{Channel, Tell};
    use crate::api::{Command, Request, Streams};

    fn pair() -> (Channel, Channel) {
        let (a, b) = UnixStream::pair().unwrap();
        (Channel::new(a).unwrap(), Channel::new(b).unwrap())
    }

    fn request() -> Request {
        Request { command: Command::Check { pool: None }, overrides: BTreeMap::new(), cluster: None }
    }

    #[test]
    fn a_call_arrives_with_its_files_in_their_places() {
        let (mut asker, mut owner) = pair();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"what is read").unwrap();
        file.rewind().unwrap();
        let streams = Streams { input: None, second: Some(file), output: None };
        asker.send_call("/home".into(), request(), &streams).unwrap();
        let (call, streams) = owner.receive_call().unwrap();
        assert_eq!(call.request, request());
        assert!(streams.input.is_none() && streams.output.is_none());
        let mut text = String::new();
        streams.second.unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "what is read");
    }

    #[test]
    fn a_call_without_the_files_it_names_is_refused() {
        let (mut asker, mut owner) = pair();
        let streams = Streams { input: Some(tempfile::tempfile().unwrap()), second: None, output: None };
        let mut bytes = Vec::new();
        {
            let (mut a, mut b) = pair();
            a.send_call("/home".into(), request(), &streams).unwrap();
            drop(a);
            b.0.read_to_end(&mut bytes).unwrap();
        }
        asker.0.write_all(&bytes).unwrap();
        assert!(owner.receive_call().unwrap_err().to_string().contains("without its files"));
    }

    #[test]
    fn nonsense_and_hugeness_are_refused_without_memory_for_them() {
        for bytes in [&[0xff; 8][..], &[2, 0, 0, 0, b'{', b'!'], &[0xff, 0xff, 0xff, 0x0f, b'{']] {
            let (mut asker, mut owner) = pair();
            asker.0.write_all(bytes).unwrap();
            drop(asker);
            assert!(owner.receive::<Tell>().is_err());
        }
    }
}
