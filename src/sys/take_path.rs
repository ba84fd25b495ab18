//! Which of the two ways of taking a page out this kernel and this host allow.

use super::host_swap::HostFacts;
use super::uffd;
use crate::words::TakePath;

impl TakePath {
    /// Environment variable that forces a path: `move` or `copy`.
    pub const VARIABLE: &'static str = "TIDEMARK_TAKE";

    /// The path for a kernel with these userfaultfd features; `forced` is the value of
    /// [`TakePath::VARIABLE`], if it is set. A kernel on which moved pages may get lost is a line in
    /// the log.
    ///
    /// # Errors
    /// A forced path that does not exist, that the kernel lacks, or that loses pages here, as one
    /// line.
    pub fn choose(features: u64, forced: Option<&str>) -> Result<TakePath, String> {
        let (path, avoided) = TakePath::choose_on(HostFacts::read(), features, forced)?;
        if let Some(hazard) = avoided {
            log::warn!("pages are copied, not moved: {hazard}");
        }
        Ok(path)
    }

    /// [`TakePath::choose`] on a host of these facts, silently; with the path comes why it is not
    /// the one that the kernel offers.
    ///
    /// # Errors
    /// As [`TakePath::choose`].
    pub fn choose_on(
        host: HostFacts,
        features: u64,
        forced: Option<&str>,
    ) -> Result<(TakePath, Option<String>), String> {
        let offered = features & uffd::FEATURE_MOVE != 0;
        let hazard = host.move_hazard().filter(|_| offered);
        let refused = |why: &str| Err(format!("{}=move: {why}", TakePath::VARIABLE));
        match (forced, hazard) {
            (None, None) if offered => Ok((TakePath::Move, None)),
            (None, hazard) => Ok((TakePath::Copy, hazard)),
            (Some("copy"), _) => Ok((TakePath::Copy, None)),
            (Some("move"), _) if !offered => refused("this kernel lacks UFFDIO_MOVE"),
            (Some("move"), Some(hazard)) => refused(&hazard),
            (Some("move"), None) => Ok((TakePath::Move, None)),
            (Some(other), _) => Err(format!(
                "{}={other:?}: allowed are move and copy",
                TakePath::VARIABLE
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::host_swap::{HostSwap, Release};

    const RIGHT: HostFacts = HostFacts {
        release: Some(Release(6, 18)),
        swap: HostSwap::On,
    };
    const HAZARDOUS: HostFacts = HostFacts {
        release: Some(Release(6, 12)),
        swap: HostSwap::On,
    };
    const SWAPLESS: HostFacts = HostFacts {
        swap: HostSwap::Off,
        ..HAZARDOUS
    };

    #[test]
    fn pages_are_moved_where_that_is_offered_and_right() {
        let path = |host, features| TakePath::choose_on(host, features, None).unwrap();
        for host in [RIGHT, SWAPLESS] {
            assert_eq!(path(host, uffd::FEATURE_MOVE), (TakePath::Move, None));
            assert_eq!(path(host, 0), (TakePath::Copy, None));
        }
        let (chosen, avoided) = path(HAZARDOUS, uffd::FEATURE_MOVE);
        assert_eq!(chosen, TakePath::Copy);
        assert!(avoided.unwrap().contains("6.12"));
        // Nothing is avoided where nothing is offered.
        assert_eq!(path(HAZARDOUS, 0), (TakePath::Copy, None));
    }

    #[test]
    fn a_forced_path_is_taken_or_refused() {
        let path = |host, features, forced| TakePath::choose_on(host, features, Some(forced));
        let offered = uffd::FEATURE_MOVE;
        for host in [RIGHT, HAZARDOUS, SWAPLESS] {
            assert_eq!(path(host, offered, "copy"), Ok((TakePath::Copy, None)));
            assert!(path(host, 0, "move").unwrap_err().contains("lacks"));
            assert!(path(host, offered, "fly").unwrap_err().contains("allowed"));
        }
        assert_eq!(path(RIGHT, offered, "move"), Ok((TakePath::Move, None)));
        assert_eq!(path(SWAPLESS, offered, "move"), Ok((TakePath::Move, None)));
        let refused = path(HAZARDOUS, offered, "move").unwrap_err();
        assert!(refused.starts_with("TIDEMARK_TAKE=move: "), "{refused}");
        assert!(refused.contains("memory.swap.max"), "{refused}");
    }
}
