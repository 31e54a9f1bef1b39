//! The player of packet scripts.

mod host;
mod octets;
mod packet;
mod play;
mod syntax;

pub use host::Family;

/// Plays a script over one family; a failure begins with the line's number. Families that its settings leave out pass.
pub fn run(text: &str, family: Family) -> Result<(), String> {
    let mut script = syntax::parse(text)?;
    let only = script.settings.iter().position(|(key, _)| key == "family");
    match only.map(|at| script.settings.remove(at).1).as_deref() {
        Some("v4") if family != Family::V4 => return Ok(()),
        Some("v6") if family != Family::V6 => return Ok(()),
        None | Some("v4" | "v6") => {}
        Some(other) => return Err(format!("1: no address family: {other}")),
    }
    play::play(&script, family)
}
