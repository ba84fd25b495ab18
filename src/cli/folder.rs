//! Where host managers listen, and how the one that is meant is found.

use std::fs;
use std::path::{Path, PathBuf};

use crate::link::socket;

/// No host manager could be chosen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// None listens.
    #[error(
        "no host manager listens in {folder}; start one with `tidemark run` or `tidemark host`, or \
         name its socket with --socket or TIDEMARK_SOCKET"
    )]
    Nobody {
        /// Where sockets were looked for.
        folder: String,
    },
    /// Several listen.
    #[error("several host managers listen; choose one with --socket: {list}")]
    Several {
        /// Their sockets.
        list: String,
    },
}

/// The folder of the sockets: `$XDG_RUNTIME_DIR/tidemark`, or `/run/tidemark`.
pub fn path() -> PathBuf {
    let base = std::env::var_os("XDG_RUNTIME_DIR").filter(|base| !base.is_empty());
    base.map_or_else(|| PathBuf::from("/run"), PathBuf::from)
        .join("tidemark")
}

/// Where `tidemark host` listens unless told otherwise.
pub fn host_socket() -> PathBuf {
    path().join("host.sock")
}

/// Where `tidemark run` listens unless told otherwise.
pub fn run_socket() -> PathBuf {
    path().join(format!("run-{}.sock", std::process::id()))
}

/// The socket that is meant: the given one, `TIDEMARK_SOCKET`, or the only live one.
///
/// # Errors
/// When none or several are live.
pub fn find(given: Option<&Path>) -> Result<PathBuf, Error> {
    let variable = std::env::var_os("TIDEMARK_SOCKET").filter(|path| !path.is_empty());
    match (given, variable) {
        (Some(path), _) => Ok(path.to_owned()),
        (None, Some(path)) => Ok(path.into()),
        (None, None) => only_live(&path()),
    }
}

fn only_live(folder: &Path) -> Result<PathBuf, Error> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut live: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "sock"))
        .filter(|path| socket::connect(path).is_ok())
        .collect();
    live.sort();
    match live.len() {
        0 => Err(Error::Nobody {
            folder: folder.display().to_string(),
        }),
        1 => Ok(live.remove(0)),
        _ => {
            let names: Vec<String> = live.iter().map(|path| path.display().to_string()).collect();
            Err(Error::Several {
                list: names.join(", "),
            })
        }
    }
}
