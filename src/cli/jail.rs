//! The flags of `run` and `vm` that say what VM processes leave.

use clap::Args;

use super::Error;
use crate::threads::jail::{Jail, User};

/// See [`crate::threads::jail`].
#[derive(Debug, Clone, Copy, Args)]
pub struct JailArgs {
    /// User that each VM process becomes, where root starts it: auto (one that nobody else is), a name, UID or UID:GID
    #[arg(long, value_name = "auto|USER")]
    user: Option<User>,
    /// Each VM process leaves the host's files, network and users, or does not start
    #[arg(long)]
    hardened: bool,
}

impl JailArgs {
    /// What VM processes leave.
    ///
    /// # Errors
    /// When this user cannot have it.
    pub fn jail(&self) -> Result<Jail, Error> {
        match self.user {
            Some(_) if !rustix::process::geteuid().is_root() => Err(Error::Missing(
                "--user: only root can give VM processes another user; --hardened alone does without"
                    .to_owned(),
            )),
            user => Ok(Jail {
                user,
                hardened: self.hardened,
            }),
        }
    }

    /// The same as arguments of a VM process.
    pub fn to_args(self) -> Vec<String> {
        let user = self.user.map(|user| format!("--user={user}"));
        let hardened = self.hardened.then(|| "--hardened".to_owned());
        user.into_iter().chain(hardened).collect()
    }
}
