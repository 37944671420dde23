//! What README.md quotes, to be compared with what is really said.

pub const README: &str = include_str!("../../README.md");

/// The block of code with this text.
pub fn block(part: &str) -> &'static str {
    let mut blocks = README.split("```\n").skip(1).step_by(2);
    blocks.find(|block| block.contains(part)).unwrap_or_else(|| panic!("no block has {part:?}"))
}

/// What a block shows behind a prompt and command, up to the next prompt.
pub fn said_to(command: &str) -> &'static str {
    let said = block(command).split(&format!("{command}\n")).nth(1).unwrap_or_default();
    let next = said.lines().find(|line| line.contains("$ ")).unwrap_or("\0");
    said.split(next).next().unwrap_or_default()
}
