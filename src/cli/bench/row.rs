//! One row: what we need, what the peer needs, and how many times better we are.

use serde_json::{Map, Value, json};

/// The note that says why a run of the peer is missing.
const FAILED: &str = "peer_failed";

/// Which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Better {
    /// Times, memory.
    Lower,
    /// Work done in a time.
    Higher,
}

/// The other side of a row.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Peer {
    /// It ran.
    Measured(Vec<f64>),
    /// It did not, for this reason.
    CouldNotRun(String),
    /// The row is absolute.
    Nobody,
}

/// A row.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    pub key: &'static str,
    pub unit: &'static str,
    pub better: Better,
    /// One figure a run; the first failure's reason if we could not run.
    pub ours: Vec<f64>,
    pub peer: Peer,
    /// Who the peer is, with its settings.
    pub peer_is: String,
    /// What else was seen.
    pub notes: Map<String, Value>,
}

/// The median of some figures, and the least and the most of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spread {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl Spread {
    /// Of these figures; `None` without any.
    pub fn of(figures: &[f64]) -> Option<Spread> {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            _ if sorted.is_empty() => return None,
            1 => sorted[middle],
            _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
        };
        Some(Spread {
            median,
            least: sorted[0],
            most: sorted[sorted.len() - 1],
        })
    }

    fn text(self) -> String {
        let Spread {
            median,
            least,
            most,
        } = self;
        match least < most {
            true => format!("{} ({}-{})", short(median), short(least), short(most)),
            false => short(median),
        }
    }
}

/// Three digits that matter.
fn short(figure: f64) -> String {
    let digits = match figure.abs() {
        figure if figure >= 100.0 => 0,
        figure if figure >= 10.0 => 1,
        figure if figure >= 1.0 => 2,
        _ => 3,
    };
    format!("{figure:.digits$}")
}

impl Row {
    /// A row without a peer.
    pub fn new(key: &'static str, unit: &'static str, better: Better, ours: Vec<f64>) -> Row {
        Row {
            key,
            unit,
            better,
            ours,
            peer: Peer::Nobody,
            peer_is: String::new(),
            notes: Map::new(),
        }
    }

    /// Sets the peer: the figures of its good runs, and why another was none.
    pub fn beside<T>(&mut self, peer: &Ran<T>, figures: impl Fn(&[T]) -> Vec<f64>) {
        let failed = peer.failed.clone();
        if peer.good.is_empty() {
            let why = failed.unwrap_or_else(|| "it was not tried".to_owned());
            self.peer = Peer::CouldNotRun(why);
            return;
        }
        self.peer = Peer::Measured(figures(&peer.good));
        if let Some(why) = failed {
            self.note(FAILED, json!(why));
        }
    }

    /// Adds what else was seen.
    pub fn note(&mut self, name: &str, value: Value) {
        self.notes.insert(name.to_owned(), value);
    }

    /// How many times better we are, by the medians; `None` without a peer that ran.
    pub fn ratio(&self) -> Option<f64> {
        let Peer::Measured(peer) = &self.peer else {
            return None;
        };
        let (ours, peer) = (Spread::of(&self.ours)?.median, Spread::of(peer)?.median);
        let ratio = match self.better {
            Better::Lower => peer / ours,
            Better::Higher => ours / peer,
        };
        ratio.is_finite().then_some(ratio)
    }

    /// As an object: `ours`, `peer`, `ratio` and their company.
    pub fn to_json(&self) -> Value {
        let mut object = Map::new();
        let mut spread = |name: &str, figures: &[f64]| {
            if let Some(spread) = Spread::of(figures) {
                object.insert(name.to_owned(), json!(spread.median));
                object.insert(format!("{name}_min"), json!(spread.least));
                object.insert(format!("{name}_max"), json!(spread.most));
            }
        };
        spread("ours", &self.ours);
        if let Peer::Measured(peer) = &self.peer {
            spread("peer", peer);
        }
        if let Some(ratio) = self.ratio() {
            object.insert("ratio".to_owned(), json!(ratio));
        }
        if let Peer::CouldNotRun(why) = &self.peer {
            object.insert("could_not_run".to_owned(), json!(why));
        }
        if self.peer != Peer::Nobody {
            object.insert("peer_is".to_owned(), json!(self.peer_is));
        }
        object.insert("unit".to_owned(), json!(self.unit));
        object.insert("runs".to_owned(), json!(self.ours.len()));
        if let Peer::Measured(peer) = &self.peer {
            object.insert("peer_runs".to_owned(), json!(peer.len()));
        }
        object.extend(self.notes.clone());
        Value::Object(object)
    }

    fn cells(&self) -> [String; 6] {
        let spread = |figures: &[f64]| Spread::of(figures).map_or("-".to_owned(), Spread::text);
        let peer = match &self.peer {
            Peer::Measured(figures) => spread(figures),
            Peer::CouldNotRun(_) => "could not run".to_owned(),
            Peer::Nobody => String::new(),
        };
        [
            self.key.to_owned(),
            self.unit.to_owned(),
            spread(&self.ours),
            peer,
            self.ratio().map_or(String::new(), short),
            self.ours.len().to_string(),
        ]
    }
}

/// What became of the runs of an arm.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Ran<T> {
    /// Those that were any good.
    pub good: Vec<T>,
    /// Why the first was not that was not.
    pub failed: Option<String>,
}

impl<T> Ran<T> {
    /// Sorts them.
    pub fn of(runs: Vec<Result<T, String>>) -> Ran<T> {
        let mut ran = Ran {
            good: Vec::new(),
            failed: None,
        };
        for run in runs {
            match run {
                Ok(figures) => ran.good.push(figures),
                Err(why) => {
                    ran.failed.get_or_insert(why);
                }
            }
        }
        ran
    }
}

/// The rows as a table, and a line on each peer.
pub(super) fn table(rows: &[Row]) -> Vec<String> {
    let head = ["ROW", "UNIT", "OURS", "PEER", "RATIO", "RUNS"].map(str::to_owned);
    let cells: Vec<[String; 6]> = std::iter::once(head)
        .chain(rows.iter().map(Row::cells))
        .collect();
    let width = |column: usize| cells.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..6).map(width).collect();
    let line = |row: &[String; 6]| {
        let cells = row.iter().zip(&widths);
        let padded: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        padded.join("  ").trim_end().to_owned()
    };
    let mut lines: Vec<String> = cells.iter().map(line).collect();
    for row in rows {
        match &row.peer {
            Peer::Measured(_) => {
                lines.push(format!("{}: peer: {}", row.key, row.peer_is));
                if let Some(why) = row.notes.get(FAILED).and_then(Value::as_str) {
                    lines.push(format!("{}: a run of the peer failed: {why}", row.key));
                }
            }
            Peer::CouldNotRun(why) => {
                lines.push(format!("{}: {} could not run: {why}", row.key, row.peer_is));
            }
            Peer::Nobody => {}
        }
    }
    lines.push("median (least-most); a ratio above 1: we are better".to_owned());
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(better: Better, ours: &[f64], peer: Peer) -> Row {
        Row {
            key: "key",
            unit: "us",
            better,
            ours: ours.to_vec(),
            peer,
            peer_is: "somebody".to_owned(),
            notes: Map::new(),
        }
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(Spread::of(&[]), None);
        let spread = Spread::of(&[5.0, 1.0, 3.0]).unwrap();
        assert_eq!((spread.least, spread.median, spread.most), (1.0, 3.0, 5.0));
        assert_eq!(Spread::of(&[4.0, 2.0]).unwrap().median, 3.0);
    }

    #[test]
    fn a_ratio_above_one_is_ours() {
        let peer = || Peer::Measured(vec![20.0]);
        assert_eq!(row(Better::Lower, &[10.0], peer()).ratio(), Some(2.0));
        assert_eq!(row(Better::Higher, &[10.0], peer()).ratio(), Some(0.5));
    }

    #[test]
    fn without_a_peer_there_is_no_ratio_and_no_number() {
        let object = row(Better::Lower, &[10.0], Peer::CouldNotRun("no swap".into())).to_json();
        assert_eq!(object["could_not_run"], "no swap");
        for key in ["peer", "ratio"] {
            assert!(object.get(key).is_none(), "{object}");
        }
        let object = row(Better::Lower, &[10.0], Peer::Nobody).to_json();
        assert!(object.get("ratio").is_none() && object.get("could_not_run").is_none());
        // A division by nothing is no ratio either.
        let peer = Peer::Measured(vec![1.0]);
        assert_eq!(row(Better::Lower, &[0.0], peer).ratio(), None);
    }

    #[test]
    fn a_peer_counts_if_any_of_its_runs_was_good_and_says_why_others_were_not() {
        let bad = |why: &str| Err(why.to_owned());
        let beside = |runs| {
            let mut row = row(Better::Lower, &[10.0], Peer::Nobody);
            row.beside(&Ran::of(runs), <[f64]>::to_vec);
            row
        };
        let some = beside(vec![bad("first"), Ok(1.0), bad("second"), Ok(2.0)]);
        assert_eq!(some.peer, Peer::Measured(vec![1.0, 2.0]));
        let object = some.to_json();
        assert_eq!(
            (&object["peer_failed"], &object["peer_runs"]),
            (&json!("first"), &json!(2))
        );
        assert!(
            table(&[some])
                .iter()
                .any(|line| line.ends_with("failed: first"))
        );
        let none = beside(vec![bad("first"), bad("second")]);
        assert_eq!(none.peer, Peer::CouldNotRun("first".to_owned()));
        assert!(none.to_json().get("peer_failed").is_none());
        let all = beside(vec![Ok(1.0)]);
        assert!(all.to_json().get("peer_failed").is_none());
        assert!(matches!(beside(Vec::new()).peer, Peer::CouldNotRun(_)));
    }

    #[test]
    fn a_table_names_peers_that_could_not_run() {
        let rows = [
            row(Better::Lower, &[10.0, 12.0], Peer::Measured(vec![30.0])),
            row(Better::Lower, &[], Peer::CouldNotRun("no swap".into())),
        ];
        let lines = table(&rows);
        assert!(
            lines[1].contains("11.0 (10.0-12.0)") && lines[1].contains("2.73"),
            "{lines:?}"
        );
        assert!(
            lines[4].contains("somebody could not run: no swap"),
            "{lines:?}"
        );
    }
}
