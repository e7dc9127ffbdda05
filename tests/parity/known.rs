//! Differences that stay: `known.txt`.
//!
//! An entry is `row: TITLE` (the row of the support matrix that gives the reason), `case: FAMILY/NAME`, and the lines
//! that differ, in order: `- ` what Linux prints, `+ ` what an emulated host prints.

use crate::compare::Line;

const TEXT: &str = include_str!("known.txt");
const MATRIX: &str = include_str!("../../docs/support-matrix.md");
const SECTION: &str = "## Known differences from Linux";

/// An entry.
#[derive(Debug)]
pub struct Known {
    row: &'static str,
    case: &'static str,
    lines: Vec<Line>,
}

impl Known {
    fn all() -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        let mut row = "";
        for line in TEXT.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            if let Some(title) = line.strip_prefix("row: ") {
                row = title;
            } else if let Some(case) = line.strip_prefix("case: ") {
                all.push(Self { row, case, lines: Vec::new() });
            } else {
                let entry = all.last_mut().expect("a case comes first");
                entry.lines.push(match line.split_at(2) {
                    ("- ", text) => Line::Linux(text.to_owned()),
                    ("+ ", text) => Line::Ours(text.to_owned()),
                    _ => panic!("known.txt: {line}"),
                });
            }
        }
        all
    }

    /// What is wrong with a case that differs so: nothing if it does not, or exactly as known.
    pub fn judge(case: &str, diff: &[Line]) -> Option<String> {
        let found: Vec<&Line> = diff.iter().filter(|line| !matches!(line, Line::Same(_))).collect();
        let known = Self::all().into_iter().find(|known| known.case == case);
        match &known {
            None if found.is_empty() => None,
            Some(known) if found == known.lines.iter().collect::<Vec<_>>() => None,
            Some(known) if found.is_empty() => Some(format!("== {case}: differs no longer; remove it from known.txt ({})\n", known.row)),
            _ => {
                let lines: Vec<String> = diff.iter().map(Line::to_string).collect();
                let but = if known.is_some() { " (otherwise than known.txt says)" } else { "" };
                Some(format!("== {case}{but}\n{}\n", lines.join("\n")))
            }
        }
    }

    /// Every entry has its row, and every row its entry.
    ///
    /// # Panics
    /// If not.
    pub fn check_documented() {
        let section = MATRIX.split_once(SECTION).expect("the section").1;
        let section = section.split("\n## ").next().unwrap_or(section);
        let rows: Vec<&str> = section.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next()).collect();
        let all = Self::all();
        for known in &all {
            assert!(rows.contains(&known.row), "no row `{}` below {SECTION} (case {})", known.row, known.case);
            assert!(!known.lines.is_empty(), "{} does not differ", known.case);
        }
        for row in rows.iter().skip(1) {
            assert!(all.iter().any(|known| known.row == *row), "no case of known.txt shows the row `{row}`");
        }
    }
}
