//! Errors for people.

use std::error::Error;

/// The error and its causes on one line, from the outside in.
pub fn with_causes(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // A transparent error repeats its cause's text.
        let text = error.to_string();
        if !line.ends_with(&text) {
            line = format!("{line}: {text}");
        }
        cause = error.source();
    }
    line.trim_end().replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Outer {
        #[error("cannot open\nthe disk")]
        Own(#[source] Inner),
        #[error(transparent)]
        Passed(#[from] Inner),
    }

    #[derive(Debug, thiserror::Error)]
    #[error("no sector 7")]
    struct Inner(#[source] io::Error);

    #[test]
    fn each_cause_is_named_once() {
        let inner = || Inner(io::Error::other("bad medium"));
        assert_eq!(
            with_causes(&Outer::Own(inner())),
            "cannot open the disk: no sector 7: bad medium"
        );
        assert_eq!(
            with_causes(&Outer::Passed(inner())),
            "no sector 7: bad medium"
        );
    }
}
