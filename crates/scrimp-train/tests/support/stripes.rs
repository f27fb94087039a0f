//! Small images that a network learns in no time.

use scrimp_train::data::{Images, Splits};

/// Grey images of 4x4 pixels, in which one row out of two is bright.
fn images(count: usize) -> Images {
    let pixel = |i: usize, p: usize| if p / 8 == i % 2 { 200 + (i * p % 50) } else { i * p % 90 };
    let pixels = (0..count)
        .flat_map(|i| (0..16).map(move |p| u8::try_from(pixel(i, p)).expect("it is a byte")));
    let labels = (0..count).map(|i| u8::from(i % 2 == 1));
    Images { pixels: pixels.collect(), labels: labels.collect(), channels: 1, height: 4, width: 4 }
}

/// Two classes of them, with so many for validation.
pub fn splits(validation: usize) -> Splits {
    Splits {
        train: images(50),
        validation: images(validation),
        test: images(30),
        class_names: Vec::new(),
        classes: 2,
        mean: vec![0.4],
        std: vec![0.3],
        note: "made up".into(),
    }
}
