//! KSM as a peer: switched on with stated settings, and put back as it was, whatever happens.

use std::fs;
use std::time::Duration;

use super::cpu;

const FOLDER: &str = "/sys/kernel/mm/ksm";
/// Time that ksmd sleeps between two batches, milliseconds.
pub(super) const SLEEP_MS: u64 = 20;

/// How ksmd works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Settings {
    /// Pages between two sleeps of [`SLEEP_MS`].
    pub pages_to_scan: u64,
    /// Whether pages that were often unlike others are passed over.
    pub smart_scan: bool,
}

impl Settings {
    /// For people.
    pub fn text(self) -> String {
        let Settings {
            pages_to_scan,
            smart_scan,
        } = self;
        let smart = if smart_scan { "" } else { ", no smart_scan" };
        format!("ksmd, {pages_to_scan} pages each {SLEEP_MS} ms, use_zero_pages{smart}")
    }
}

/// KSM at work for this bench. Dropping it puts every setting back.
#[derive(Debug)]
pub(super) struct Ksm {
    /// What each file said, in the order of writing; `run` first.
    saved: Vec<(&'static str, String)>,
    ksmd: i32,
}

impl Ksm {
    /// Switches KSM on.
    ///
    /// # Errors
    /// Why it cannot be had, for people.
    pub fn start(settings: Settings) -> Result<Ksm, String> {
        let run = read("run").ok_or("this kernel has no KSM")?;
        if run != "0" {
            return Err(format!("{FOLDER}/run is {run}: somebody else uses KSM"));
        }
        let ksmd = ksmd().ok_or("there is no ksmd")?;
        let mut ksm = Ksm {
            saved: vec![("run", run)],
            ksmd,
        };
        // Where there is an advisor it would change the others.
        if read("advisor_mode").is_some() {
            ksm.set("advisor_mode", "none")?;
        }
        for (name, value) in [
            ("pages_to_scan", settings.pages_to_scan.to_string()),
            ("sleep_millisecs", SLEEP_MS.to_string()),
            ("use_zero_pages", "1".to_owned()),
        ] {
            ksm.set(name, &value)?;
        }
        if read("smart_scan").is_some() {
            ksm.set("smart_scan", if settings.smart_scan { "1" } else { "0" })?;
        }
        write("run", "1")?;
        Ok(ksm)
    }

    fn set(&mut self, name: &'static str, value: &str) -> Result<(), String> {
        let old = read(name).ok_or_else(|| format!("{FOLDER}/{name} cannot be read"))?;
        self.saved.push((name, old));
        write(name, value)
    }

    /// Changes the settings of a KSM that runs.
    pub fn change(&self, settings: Settings) -> Result<(), String> {
        write("pages_to_scan", &settings.pages_to_scan.to_string())?;
        match read("smart_scan") {
            Some(_) => write("smart_scan", if settings.smart_scan { "1" } else { "0" }),
            None => Ok(()),
        }
    }

    /// CPU time that ksmd has had.
    pub fn cpu(&self) -> Duration {
        cpu::time(self.ksmd, cpu::Threads::All)
    }

    /// Pages that it saves now: those that map another's page, and those that map the zero page.
    pub fn saved_pages(&self) -> u64 {
        let number = |name| read(name).and_then(|text| text.parse::<u64>().ok());
        number("pages_sharing").unwrap_or(0) + number("ksm_zero_pages").unwrap_or(0)
    }

    /// Kernel memory for what it knows of the pages that it looks at, bytes: what it saves, less what
    /// the kernel calls its profit (Documentation/admin-guide/mm/ksm.rst). Nothing where the kernel,
    /// before Linux 6.4, does not say.
    pub fn index_bytes(&self) -> u64 {
        let profit = read("general_profit").and_then(|text| text.parse::<i128>().ok());
        let saved = i128::from(self.saved_pages()) * 4096;
        profit.map_or(0, |profit| u64::try_from(saved - profit).unwrap_or(0))
    }
}

impl Drop for Ksm {
    fn drop(&mut self) {
        // Backwards, so that `run` is last and an advisor comes back after the others.
        while let Some((name, value)) = self.saved.pop() {
            if let Err(error) = write(name, &value) {
                log::error!("{error}; it was {value}");
            }
        }
    }
}

fn read(name: &str) -> Option<String> {
    let text = fs::read_to_string(format!("{FOLDER}/{name}")).ok()?;
    // `[none] scan-time`: the one in brackets holds.
    let chosen = text
        .split_whitespace()
        .find_map(|word| word.strip_prefix('[')?.strip_suffix(']'));
    Some(chosen.unwrap_or(text.trim()).to_owned())
}

fn write(name: &str, value: &str) -> Result<(), String> {
    let path = format!("{FOLDER}/{name}");
    fs::write(&path, value).map_err(|error| format!("cannot write {value} to {path}: {error}"))
}

fn ksmd() -> Option<i32> {
    let entries = fs::read_dir("/proc").ok()?.flatten();
    let mut names = entries.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let comm = fs::read_to_string(entry.path().join("comm")).ok()?;
        Some((pid, comm))
    });
    names
        .find(|(_, comm)| comm.trim() == "ksmd")
        .map(|(pid, _)| pid)
}
