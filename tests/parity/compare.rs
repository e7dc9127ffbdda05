//! What a run prints, by case, and how two of them differ.

use std::collections::BTreeMap;

/// Lines by case.
pub type Cases = BTreeMap<String, Vec<String>>;

/// Splits output at its `== case` lines.
pub fn cases(text: &str) -> Cases {
    let mut found = Cases::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("== ") {
            current = name.to_owned();
            found.insert(current.clone(), Vec::new());
        } else if let Some(lines) = found.get_mut(&current) {
            lines.push(line.to_owned());
        }
    }
    found
}

/// A line of a difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// In both.
    Same(String),
    /// Linux has it.
    Linux(String),
    /// The emulated hosts have it.
    Ours(String),
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Same(line) => write!(f, "  {line}"),
            Self::Linux(line) => write!(f, "- {line}"),
            Self::Ours(line) => write!(f, "+ {line}"),
        }
    }
}

/// How two outputs differ: by their longest common subsequence.
pub fn diff(linux: &[String], ours: &[String]) -> Vec<Line> {
    let mut common = vec![vec![0_u32; ours.len() + 1]; linux.len() + 1];
    for i in (0..linux.len()).rev() {
        for j in (0..ours.len()).rev() {
            common[i][j] = if linux[i] == ours[j] { common[i + 1][j + 1] + 1 } else { common[i + 1][j].max(common[i][j + 1]) };
        }
    }
    let (mut i, mut j, mut lines) = (0, 0, Vec::new());
    while i < linux.len() || j < ours.len() {
        if i < linux.len() && j < ours.len() && linux[i] == ours[j] {
            lines.push(Line::Same(linux[i].clone()));
            (i, j) = (i + 1, j + 1);
        } else if i < linux.len() && (j == ours.len() || common[i + 1][j] >= common[i][j + 1]) {
            lines.push(Line::Linux(linux[i].clone()));
            i += 1;
        } else {
            lines.push(Line::Ours(ours[j].clone()));
            j += 1;
        }
    }
    lines
}
