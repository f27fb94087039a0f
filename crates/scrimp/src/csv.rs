//! Tables for other programs.

/// A text as a cell of CSV, as RFC 4180 has it: quoted where it holds a comma, a quote or the end of a line.
pub fn cell(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}
