//! Samples, what they come to, and how they are shown.

use std::{collections::BTreeMap, fmt::Write as _, path::Path};

use serde::Serialize;

/// Everything measured in one run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    machine: Machine,
    samples: usize,
    /// By what was measured, then by who.
    measures: BTreeMap<String, BTreeMap<String, Measure>>,
    /// Who could not be measured, and why.
    absent: BTreeMap<String, String>,
    #[serde(skip)]
    order: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Machine {
    kernel: String,
    processor: String,
    processors: usize,
    load_before: String,
}

/// What some samples come to.
#[derive(Debug, Clone, Serialize)]
struct Measure {
    unit: &'static str,
    count: usize,
    p10: f64,
    p50: f64,
    p99: f64,
}

impl Report {
    pub(crate) fn new(samples: usize) -> Self {
        let first_line = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let processors = first_line("/proc/cpuinfo");
        let name = processors.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let machine = Machine {
            kernel: first_line("/proc/sys/kernel/osrelease"),
            processor: name.map_or(String::new(), |(_, name)| name.to_owned()),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            load_before: first_line("/proc/loadavg"),
        };
        Self { machine, samples, measures: BTreeMap::new(), absent: BTreeMap::new(), order: Vec::new() }
    }

    /// Takes samples of `what` for `who`.
    pub(crate) fn add(&mut self, what: &str, who: &str, unit: &'static str, mut samples: Vec<f64>) {
        if samples.is_empty() {
            return;
        }
        samples.sort_by(f64::total_cmp);
        let at = |share: f64| {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "an index within the samples"
            )]
            let index = ((samples.len() - 1) as f64 * share).round() as usize;
            samples[index]
        };
        let measure = Measure { unit, count: samples.len(), p10: at(0.10), p50: at(0.50), p99: at(0.99) };
        eprintln!("{what}, {who}: {}", measure.shown());
        if !self.order.iter().any(|known| known == what) {
            self.order.push(what.to_owned());
        }
        self.measures.entry(what.to_owned()).or_default().insert(who.to_owned(), measure);
    }

    /// Notes that `who` could not be measured.
    pub(crate) fn absent(&mut self, who: &str, why: &str) {
        eprintln!("{who}: not measured: {why}");
        self.absent.insert(who.to_owned(), why.to_owned());
    }

    /// Writes `bench.json` and `bench.txt`.
    pub(crate) fn write(&self, folder: &Path) -> anyhow::Result<()> {
        fs_err::write(folder.join("bench.json"), serde_json::to_string_pretty(self)? + "\n")?;
        fs_err::write(folder.join("bench.txt"), self.table())?;
        Ok(())
    }

    /// All measures; the ratio is to Sandhaus's own median of the same.
    pub(crate) fn table(&self) -> String {
        let Machine { kernel, processor, processors, load_before } = &self.machine;
        let mut text = format!("{processors} x {processor}, Linux {kernel}, load before: {load_before}\n");
        for what in &self.order {
            let _ = writeln!(text, "\n{what}");
            let measures = &self.measures[what];
            let own = measures.get(crate::ours::NAME).map(|measure| measure.p50);
            let mut rows: Vec<_> = measures.iter().collect();
            rows.sort_by(|(_, left), (_, right)| left.p50.total_cmp(&right.p50));
            for (who, measure) in rows {
                let ratio = own
                    .filter(|own| *own > 0.0)
                    .map_or(String::new(), |own| format!("  x{:.2}", measure.p50 / own));
                let _ = writeln!(text, "  {who:<40}{}{ratio}", measure.shown());
            }
        }
        if !self.absent.is_empty() {
            let _ = writeln!(text, "\nnot measured");
            for (who, why) in &self.absent {
                let _ = writeln!(text, "  {who}: {why}");
            }
        }
        text
    }
}

impl Measure {
    fn shown(&self) -> String {
        let Self { unit, count, p10, p50, p99 } = self;
        if *count == 1 {
            return format!("{p50:>10.2} {unit}");
        }
        format!("p50 {p50:>10.2}  p10 {p10:>10.2}  p99 {p99:>10.2} {unit}  (n={count})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_and_ratios_are_of_the_sorted_samples() {
        let mut report = Report::new(1);
        report.add("create", crate::ours::NAME, "ms", (1..=101).rev().map(f64::from).collect());
        report.add("create", "peer", "ms", vec![102.0]);
        let own = &report.measures["create"][crate::ours::NAME];
        assert_eq!((own.p10, own.p50, own.p99), (11.0, 51.0, 100.0));
        assert!(report.table().contains("x2.00"), "{}", report.table());
    }
}
