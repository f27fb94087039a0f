//! Pages: one file of HTML each, with everything in it, so that it can be sent and kept.

use minijinja::Environment;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use serde::Serialize;

/// A page that could not be drawn. This is a defect of its template.
#[derive(Debug, thiserror::Error)]
#[error("the page cannot be drawn")]
pub struct PageError(#[from] minijinja::Error);

/// How all pages look, and what sorts their tables.
#[derive(Serialize)]
struct Shared<'a, T> {
    style: &'static str,
    script: &'static str,
    version: &'static str,
    #[serde(flatten)]
    page: &'a T,
}

/// A page from its template, in which `style`, `script` and `version` stand for what all pages share.
///
/// # Errors
/// [`PageError`], which is a defect.
pub(crate) fn render(template: &str, page: &impl Serialize) -> Result<String, PageError> {
    // What ends in .html is escaped.
    let mut templates = Environment::new();
    templates.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    templates.add_template("page.html", template)?;
    let shared = Shared {
        style: include_str!("page/style.css"),
        script: include_str!("page/sort.js"),
        version: env!("CARGO_PKG_VERSION"),
        page,
    };
    Ok(templates.get_template("page.html")?.render(Serde(shared))?)
}

/// A whole number with thousands separators.
pub(crate) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
