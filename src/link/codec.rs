//! Messages to bytes and back: a version byte, then postcard.
//!
//! Both directions check the bounds of [`super::message`]: nothing that breaks one is sent, and
//! nothing that breaks one is believed. Decoding arbitrary bytes never panics.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::message::{BoundError, MESSAGE_BYTES_MAX, ToHost, ToVm, VERSION};

/// Bytes that are no message, or a message that must not be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A list or text is too long.
    #[error(transparent)]
    Bound(#[from] BoundError),
    /// The datagram is too long.
    #[error("message of {bytes} bytes, {MESSAGE_BYTES_MAX} are allowed")]
    Oversized {
        /// Its length.
        bytes: usize,
    },
    /// The peer speaks another version.
    #[error("peer speaks link version {found}, this is version {VERSION}")]
    Version {
        /// Its version byte.
        found: u8,
    },
    /// Nothing, or not the encoding of a message.
    #[error("malformed message")]
    Malformed,
}

/// A message of the link: [`ToHost`] or [`ToVm`].
pub trait Message: Serialize + DeserializeOwned {
    /// Checks the length of every list and text.
    ///
    /// # Errors
    /// The first one that is too long.
    fn check(&self) -> Result<(), BoundError>;
}

impl Message for ToHost {
    fn check(&self) -> Result<(), BoundError> {
        ToHost::check(self)
    }
}

impl Message for ToVm {
    fn check(&self) -> Result<(), BoundError> {
        ToVm::check(self)
    }
}

/// The datagram that carries `message`.
///
/// # Errors
/// When it breaks a bound.
pub fn encode<M: Message>(message: &M) -> Result<Vec<u8>, Error> {
    message.check()?;
    let bytes = postcard::to_extend(message, vec![VERSION]).map_err(|_| Error::Malformed)?;
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(Error::Oversized { bytes: bytes.len() });
    }
    Ok(bytes)
}

/// The message that `datagram` carries.
///
/// # Errors
/// When it is too long, of another version, no message, followed by further bytes, or breaks a
/// bound.
pub fn decode<M: Message>(datagram: &[u8]) -> Result<M, Error> {
    if datagram.len() > MESSAGE_BYTES_MAX {
        return Err(Error::Oversized {
            bytes: datagram.len(),
        });
    }
    let (version, body) = datagram.split_first().ok_or(Error::Malformed)?;
    if *version != VERSION {
        return Err(Error::Version { found: *version });
    }
    let (message, rest) = postcard::take_from_bytes::<M>(body).map_err(|_| Error::Malformed)?;
    if !rest.is_empty() {
        return Err(Error::Malformed);
    }
    message.check()?;
    Ok(message)
}

#[cfg(test)]
mod tests;
