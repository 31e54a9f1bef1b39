//! Runs the work under callgrind and reads its profiles.
#![forbid(unsafe_code)]

use super::stored::Figures;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, io, process};

/// Functions of the chain in memory whose costs are figures of their own.
const PLACES: [(&str, &str); 2] = [("uMCP", "umcp_work"), ("dMCP", "dmcp_work")];
/// The memcpy and memset of the plainest x86-64, whatever this machine has.
const PLAIN: &str = "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX2,-AVX,-ERMS,-FSRM,-SSSE3,-SSE4_2";

/// Instructions per piece of work whose name has `only` in it.
pub fn count(only: &str) -> Result<Figures, String> {
    let directory = Directory::new().map_err(|error| format!("a temporary directory: {error}"))?;
    let profiles = directory.0.join("profile");
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--quiet", "--dump-before=*profile_ends_here*"]);
    command.args(["--compress-strings=no", "--compress-pos=no", "--dump-line=no"]);
    command.arg(format!("--callgrind-out-file={}", profiles.display()));
    command.arg(env::current_exe().map_err(|error| format!("this program: {error}"))?);
    command.args(["--work", "--only", only]);
    command.env_clear().env("PATH", env::var_os("PATH").unwrap_or_default());
    let output =
        command.env("GLIBC_TUNABLES", PLAIN).output().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => "needs valgrind (Debian package: valgrind)".into(),
            _ => format!("valgrind: {error}"),
        })?;
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        return Err(format!("valgrind: {}\n{out}{err}", output.status));
    }
    let mut figures = Figures::new();
    for (number, line) in out.lines().enumerate() {
        let (name, units) = line.split_once('\t').ok_or_else(|| format!("what is {line:?}?"))?;
        let units: f64 = units.parse().map_err(|_| format!("what is {line:?}?"))?;
        // Profiles 1, 3, 5, .. are what happened before each piece.
        let path = profiles.with_extension((2 * (number + 1)).to_string());
        let profile =
            fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        add(name, units, &profile, &mut figures)?;
    }
    Ok(figures)
}

/// The figures of one piece of work: of both conversion points if there are any, else of the whole.
fn add(name: &str, units: f64, profile: &str, figures: &mut Figures) -> Result<(), String> {
    let mut one = |name: String, count: u64| {
        // One decimal: whatever differs less does not matter.
        figures.insert(name, (count as f64 / units * 10.0).round() / 10.0);
    };
    let of_places = PLACES.map(|(place, function)| (place, inclusive(profile, function)));
    if of_places.iter().all(|(_, count)| *count == 0) {
        one(name.into(), total(profile).ok_or("a profile without a total")?);
    }
    for (place, count) in of_places.into_iter().filter(|(_, count)| *count > 0) {
        one(format!("{name}, {place}"), count);
    }
    Ok(())
}

/// `summary: N`.
fn total(profile: &str) -> Option<u64> {
    profile.lines().find_map(|line| line.strip_prefix("summary: ")?.trim().parse().ok())
}

/// Of all calls to a function, all that it calls included: `cfn=NAME`, `calls=N TO`, `FROM COST`.
fn inclusive(profile: &str, function: &str) -> u64 {
    let mut lines = profile.lines();
    let mut sum = 0;
    let mut is_it = false;
    while let Some(line) = lines.next() {
        if let Some(callee) = line.strip_prefix("cfn=") {
            is_it = callee.contains(function);
        } else if line.starts_with("calls=")
            && let Some(cost) = lines.next().and_then(|line| line.split(' ').next_back())
            && is_it
        {
            sum += cost.parse::<u64>().unwrap_or(0);
        }
    }
    sum
}

/// Removed when dropped.
struct Directory(PathBuf);

impl Directory {
    fn new() -> io::Result<Directory> {
        let path = env::temp_dir().join(format!("plait-instructions-{}", process::id()));
        fs::create_dir_all(&path)?;
        Ok(Directory(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let path: &Path = &self.0;
        let _ = fs::remove_dir_all(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROFILE: &str = "events: Ir\nsummary: 1000\n\nfn=main\n0 10\ncfn=chain::umcp_work\ncalls=2 0\n0 300\n\
        cfn=other\ncalls=7 0\n0 99\n\nfn=another\n0 5\ncfn=chain::umcp_work\ncalls=1 0\n0 100\ntotals: 1000\n";

    #[test]
    fn a_function_costs_what_its_calls_cost() {
        assert_eq!(total(PROFILE), Some(1000));
        assert_eq!(inclusive(PROFILE, "umcp_work"), 400);
        assert_eq!(inclusive(PROFILE, "dmcp_work"), 0);
    }

    #[test]
    fn a_piece_of_work_has_a_figure_per_place_or_one() {
        let mut figures = Figures::new();
        add("relay", 4.0, PROFILE, &mut figures).expect("figures");
        add("table", 8.0, "summary: 100\n", &mut figures).expect("figures");
        assert_eq!(figures, Figures::from([("relay, uMCP".into(), 100.0), ("table".into(), 12.5)]));
        assert!(add("nothing", 1.0, "", &mut figures).is_err());
    }
}
