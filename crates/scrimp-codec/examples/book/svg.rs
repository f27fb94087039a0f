//! What pictures share: their frame, colours that can be read on light and on dark pages, and short numbers.

use std::fmt::Write;

/// The width of every picture, which is that of a page of the book.
pub const WIDTH: f64 = 750.0;

/// A picture that grows by elements.
pub struct Picture {
    title: String,
    body: String,
}

/// Where a text ends up beside its place.
#[derive(Clone, Copy)]
pub enum Anchor {
    Start,
    Middle,
    End,
}

impl Picture {
    /// A picture that is called so where it cannot be seen.
    pub fn new(title: &str) -> Self {
        Self { title: escape(title), body: String::new() }
    }

    /// Adds an element as it is written.
    pub fn add(&mut self, element: &str) {
        self.body.push_str(element);
        self.body.push('\n');
    }

    /// Adds a text of a class at a place.
    pub fn text(&mut self, x: f64, y: f64, class: &str, anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "",
            Anchor::Middle => r#" text-anchor="middle""#,
            Anchor::End => r#" text-anchor="end""#,
        };
        let (x, y, text) = (short(x), short(y), escape(text));
        self.add(&format!(r#"<text class="{class}" x="{x}" y="{y}"{anchor}>{text}</text>"#));
    }

    /// The file.
    ///
    /// A picture does not know the page's theme, so it has no background, and every colour stands out from white and
    /// from black alike.
    pub fn finish(self, height: f64) -> String {
        let (width, height) = (short(WIDTH), short(height));
        let mut file = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
             height=\"{height}\" role=\"img\">\n<title>{}</title>\n",
            self.title
        );
        file.push_str(
            "<style>\n\
             text{font:11px system-ui,sans-serif;fill:#767676}\n\
             .name{font:600 12px ui-monospace,monospace}\n\
             .group{font:600 9px system-ui,sans-serif;fill:#fff}\n\
             .tick{stroke:#2f7fc1;stroke-width:.8;fill:none}\n\
             .sub{stroke:#c96a12;stroke-width:.8;fill:none}\n\
             .density{fill:#2f7fc1;fill-opacity:.4}\n\
             .axis{stroke:#767676;stroke-width:.5;fill:none}\n\
             .grid{stroke:#767676;stroke-width:.5;stroke-opacity:.4;fill:none}\n\
             </style>\n",
        );
        file.push_str(&self.body);
        file.push_str("</svg>\n");
        file
    }
}

/// A coordinate to a tenth, without what says nothing.
pub fn short(x: f64) -> String {
    let text = format!("{x:.1}");
    text.strip_suffix(".0").map_or_else(|| text.clone(), str::to_owned)
}

/// Short lines downwards at these places, as one path. Places that look the same are drawn once.
pub fn ticks(places: impl Iterator<Item = f64>, top: f64, len: f64) -> String {
    let mut path = String::new();
    let mut last = String::new();
    for x in places.map(short) {
        if x != last {
            // Writing to a string cannot fail.
            write!(path, "M{x} {}v{}", short(top), short(len)).ok();
            last = x;
        }
    }
    path
}

/// Text between tags.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
