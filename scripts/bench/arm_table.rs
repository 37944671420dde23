//! What `make bench-arm` prints: the counts, what they mean on a small core, what has changed.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::arm::{Cost, WORKS, Work};
use super::bulk::Way;
use super::children::Failable;

/// The row of a daemon with nothing to do.
pub(crate) const IDLE: &str = "idle second";
/// Machines and how a pair of them encrypts.
pub(crate) const CHACHA: &str = "aarch64, ChaCha20";
pub(crate) const AES: &str = "aarch64, AES";
pub(crate) const NARROW: &str = "armv7, ChaCha20";
const SIDES: [&str; 2] = ["client", "server"];
/// Instructions per second of a small core: a Cortex-A53 of 1.2 GHz (Raspberry Pi 3) at 0.8 per cycle.
/// OpenSSL's chacha-armv8.pl gives 4.1 to 4.7 cycles a byte for ChaCha20 there, which is more than 1
/// instruction per cycle; relaying has less to compute and more to fetch.
const CORE: f64 = 1.2e9 * 0.8;
/// What TCP carries on gigabit Ethernet, in MB/s: 1,448 of 1,538 bytes.
const WIRE: f64 = 118.0;
/// The wire's speed is met for sure at so many times of it, since the kernel has to do with the rest.
const AMPLE: f64 = 1.5;
/// An encrypted hop may take so many times the instructions of a plain one.
const GOAL: f64 = 1.1;
/// Two runs of the same program differ by less, and by less than the other in bulk, where it is a
/// matter of time how many bytes a read finds.
const NOISE: f64 = 0.05;
const BULK_NOISE: f64 = 0.15;

/// Costs of all kinds of load.
type Costs = BTreeMap<&'static str, Cost>;
/// Costs on both sides of a chain, the client's first.
type Chain = BTreeMap<&'static str, [Cost; 2]>;

/// By machine, side, and whether it is encrypted.
#[derive(Debug, Default)]
pub(crate) struct Results(BTreeMap<(&'static str, &'static str, bool), Costs>);

/// 1234567 → 1,234,567
fn grouped(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut out = String::from(if value < 0.0 { "-" } else { "" });
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

impl Results {
    /// What the machines of a chain, client first, have shown.
    pub(crate) fn note(&mut self, machines: [&'static str; 2], is_encrypted: bool, chain: &Chain) {
        for (at, side) in SIDES.into_iter().enumerate() {
            let costs = chain.iter().map(|(label, sides)| (*label, sides[at])).collect();
            self.0.insert((machines[at], side, is_encrypted), costs);
        }
    }

    /// Those that were measured.
    fn machines(&self) -> impl Iterator<Item = &'static str> {
        let is_here = |name: &&str| self.0.keys().any(|(machine, _, _)| machine == name);
        [CHACHA, AES, NARROW].into_iter().filter(is_here)
    }

    fn cost(&self, machine: &'static str, side: &'static str, sealed: bool, label: &str) -> Cost {
        let costs = self.0.get(&(machine, side, sealed));
        costs.and_then(|costs| costs.get(label)).copied().unwrap_or_default()
    }

    /// Everything, in 80 columns.
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        let _ = self.write_counts(&mut out);
        let _ = self.write_small(&mut out);
        let _ = self.write_bulk(&mut out);
        out
    }

    fn write_counts(&self, out: &mut String) -> std::fmt::Result {
        let labels = || WORKS.iter().map(|work| work.label()).chain([IDLE]);
        writeln!(out, "Instructions in user mode, of each of two proxies in a row, per\n")?;
        for machine in self.machines() {
            writeln!(out, "{machine:19}{:>14}{:>28}", "client", "server")?;
            let head = format!("{:>10}{:>11}{:>7}", "plain", "encrypted", "ratio");
            writeln!(out, "{:19}{head}{head}", "")?;
            for label in labels() {
                write!(out, "{label:19}")?;
                for side in SIDES {
                    let [plain, sealed] = [false, true]
                        .map(|sealed| self.cost(machine, side, sealed, label).instructions);
                    let (first, second) = (grouped(plain), grouped(sealed));
                    let ratio = sealed / plain;
                    let places = if ratio < 10.0 { 2 } else { 0 };
                    write!(out, "{first:>10}{second:>11}{ratio:>7.places$}")?;
                }
                writeln!(out)?;
            }
            writeln!(out)?;
        }
        writeln!(out, "System calls, whose work in the kernel isn't counted above, per\n")?;
        writeln!(out, "{AES:19}{:>14}{:>28}", "client", "server")?;
        let head = format!("{:>10}{:>11}{:7}", "plain", "encrypted", "");
        writeln!(out, "{}", format!("{:19}{head}{head}", "").trim_end())?;
        for label in labels() {
            let mut line = format!("{label:19}");
            for side in SIDES {
                let [plain, sealed] =
                    [false, true].map(|sealed| self.cost(AES, side, sealed, label).calls);
                write!(line, "{plain:>10.1}{sealed:>11.1}{:7}", "")?;
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        writeln!(out)
    }

    /// Tokens and first bytes: encrypted beside plain.
    fn write_small(&self, out: &mut String) -> std::fmt::Result {
        writeln!(
            out,
            "Encrypted beside plain, both proxies together, on a core of {:.2} G instructions\n\
             per second. The last column: so many instructions of the kernel per system call,\n\
             which are the same in both, make the ratio {GOAL} or less.\n",
            CORE / 1e9
        )?;
        writeln!(out, "{:32}{:>8}{:>12}{:>22}", "", "ratio", "µs more", "kernel's, per call")?;
        for machine in self.machines() {
            for work in [Work::Token, Work::Chat] {
                let sum = |sealed, of: fn(Cost) -> f64| {
                    let costs = SIDES.map(|side| self.cost(machine, side, sealed, work.label()));
                    costs.into_iter().map(of).sum::<f64>()
                };
                let [plain, sealed] = [false, true].map(|sealed| sum(sealed, |c| c.instructions));
                let calls = sum(false, |c| c.calls);
                let kernel = (sealed - GOAL * plain) / (GOAL - 1.0) / calls;
                let what = format!("{machine}, {}", work.label());
                let more = (sealed - plain) / CORE * 1e6;
                let kernel = grouped(kernel.max(0.0));
                writeln!(out, "{what:32}{:>8.2}{more:>12.1}{kernel:>22}", sealed / plain)?;
            }
        }
        writeln!(out)
    }

    /// Whether such a core keeps up with the wire.
    fn write_bulk(&self, out: &mut String) -> std::fmt::Result {
        writeln!(
            out,
            "Encrypted MB/s of such a core in user mode, of which gigabit takes {WIRE:.0}; how much\n\
             of the core that is. Tight: less than a third is left for the kernel's TCP.\n"
        )?;
        writeln!(out, "{:32}{:>20}{:>20}", "", "client", "server")?;
        for machine in self.machines() {
            for (name, ways) in [
                ("down", [Way::DownByLength, Way::DownChunked]),
                ("up", [Way::UpByLength, Way::UpChunked]),
            ] {
                write!(out, "{:32}", format!("{machine}, {name}"))?;
                for side in SIDES {
                    let cost = |way: Way| {
                        self.cost(machine, side, true, Work::Bulk(way).label()).instructions
                    };
                    let speed = CORE / ways.map(cost).into_iter().fold(1.0, f64::max);
                    let verdict = match speed / WIRE {
                        ratio if ratio >= AMPLE => "met",
                        ratio if ratio >= 1.0 => "tight",
                        _ => "missed",
                    };
                    let share = format!("{:.0} %", WIRE / speed * 100.0);
                    write!(out, "{:>20}", format!("{speed:.0}, {share} {verdict}"))?;
                }
                writeln!(out)?;
            }
        }
        Ok(())
    }

    fn json(&self) -> Value {
        let mut all = Map::new();
        for ((machine, side, sealed), costs) in &self.0 {
            let sealed = if *sealed { "encrypted" } else { "plain" };
            for (label, cost) in costs {
                let key = format!("{machine}, {side}, {sealed}, {label}");
                all.insert(key, json!([cost.instructions.round(), cost.calls]));
            }
        }
        Value::Object(all)
    }

    /// Says what has changed since the last run, and keeps these counts for the next one.
    pub(crate) fn compare_and_keep(&self, file: &Path) -> Failable<()> {
        let now = self.json();
        let before = fs::read(file).ok().and_then(|old| serde_json::from_slice(&old).ok());
        let before: Value = before.unwrap_or_default();
        let mut changes = Vec::new();
        for (key, value) in now.as_object().into_iter().flatten() {
            let [old, new] = [&before[key], value].map(|pair| pair[0].as_f64());
            let (Some(old), Some(new)) = (old.filter(|old| *old > 0.0), new) else { continue };
            let noise = if key.contains("MB") { BULK_NOISE } else { NOISE };
            if !key.ends_with(IDLE) && (new / old - 1.0).abs() >= noise {
                let (from, to) = (grouped(old), grouped(new));
                changes
                    .push(format!("{key:50} {from} → {to} ({:+.1} %)", (new / old - 1.0) * 100.0));
            }
        }
        if before.is_null() {
            println!("\nThe next run says what has changed since this one.");
        } else if changes.is_empty() {
            println!("\nNo count has changed since the last run, but for noise.");
        } else {
            println!("\nChanged since the last run:\n{}", changes.join("\n"));
        }
        fs::write(file, format!("{now:#}\n"))?;
        println!("Every count: {}", file.display());
        Ok(())
    }
}
