//! What is wrong with a file, where, and what to write instead.

use miette::{Diagnostic, LabeledSpan, NamedSource, SourceCode, SourceSpan};
use serde_saphyr::Location;
use std::fmt;
use std::sync::Arc;

/// One mistake.
#[derive(Debug, Clone)]
pub struct Problem {
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub help: Option<String>,
    /// Octets of the file that it is about.
    pub span: Option<SourceSpan>,
    /// What to say at the span.
    pub label: String,
    /// A second place that matters ("first used here").
    pub other: Option<(SourceSpan, String)>,
    source: Option<Arc<NamedSource<String>>>,
}

impl Problem {
    /// A mistake at a place.
    pub fn at(location: Location, message: impl Into<String>, label: impl Into<String>) -> Self {
        Self { message: message.into(), help: None, span: span(location), label: label.into(), other: None, source: None }
    }

    /// A mistake of the file as a whole.
    pub fn of_file(message: impl Into<String>) -> Self {
        Self { message: message.into(), help: None, span: None, label: String::new(), other: None, source: None }
    }

    /// Says what to write instead.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Points at a second place.
    pub fn and(mut self, location: Location, label: impl Into<String>) -> Self {
        self.other = span(location).map(|s| (s, label.into()));
        self
    }
}

fn span(location: Location) -> Option<SourceSpan> {
    if location == Location::UNKNOWN {
        return None;
    }
    let s = location.span();
    let offset = s.byte_offset().unwrap_or_else(|| s.offset());
    let len = s.byte_len().unwrap_or_else(|| s.len());
    Some(SourceSpan::new((offset as usize).into(), len as usize))
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Problem {}

impl Diagnostic for Problem {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|h| Box::new(h) as _)
    }
    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.source.as_deref().map(|s| s as _)
    }
    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let main = self.span.map(|s| LabeledSpan::new_primary_with_span(Some(self.label.clone()), s));
        let other = self.other.clone().map(|(s, label)| LabeledSpan::new_with_span(Some(label), s));
        Some(Box::new(main.into_iter().chain(other)))
    }
}

/// All mistakes of a file, in the file's order.
#[derive(Debug)]
pub struct Problems {
    file: String,
    /// The mistakes; at least one.
    pub problems: Vec<Problem>,
}

impl Problems {
    pub(super) fn new(file: &str, text: &str, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|p| p.span.map_or(0, |s| s.offset()));
        let source = Arc::new(NamedSource::new(file, text.to_string()).with_language("yaml"));
        for p in &mut problems {
            // A place past the end (an unclosed bracket) is shown at the end.
            if let Some(s) = p.span {
                let mut start = s.offset().min(text.len());
                while !text.is_char_boundary(start) {
                    start -= 1;
                }
                let mut end = (start + s.len()).min(text.len());
                while !text.is_char_boundary(end) {
                    end -= 1;
                }
                // A mapping's span may run over many lines: its first line says enough.
                let first_line = text[start..end].find('\n').map_or(end, |n| start + n);
                p.span = Some(SourceSpan::new(start.into(), first_line - start));
            }
            p.source = Some(source.clone());
        }
        Self { file: file.into(), problems }
    }

    /// `file:line:column: message` of each, for programs and plain terminals.
    pub fn lines(&self) -> impl Iterator<Item = String> + '_ {
        self.problems.iter().map(|p| match (p.span, &p.source) {
            (Some(span), Some(source)) => {
                let (line, column) = line_column(source.inner(), span.offset());
                format!("{}:{line}:{column}: {}", self.file, p.message)
            }
            _ => format!("{}: {}", self.file, p.message),
        })
    }
}

/// Line and column, from 1, of an octet offset.
fn line_column(text: &str, offset: usize) -> (usize, usize) {
    let before = &text[..offset.min(text.len())];
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |l| l.chars().count()) + 1;
    (line, column)
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problems.len() {
            1 => write!(f, "{} has a mistake", self.file),
            n => write!(f, "{} has {n} mistakes", self.file),
        }
    }
}

impl std::error::Error for Problems {}

impl Diagnostic for Problems {
    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn Diagnostic> + 'a>> {
        Some(Box::new(self.problems.iter().map(|p| p as &dyn Diagnostic)))
    }
}

/// The known name nearest to a mistyped one, if one is near.
pub fn nearest<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (wrong.chars().count() / 3).max(1) + 1;
    known
        .into_iter()
        .map(|k| (strsim::damerau_levenshtein(&wrong.to_lowercase(), k), k))
        .filter(|&(distance, _)| distance <= limit)
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, k)| k)
}
