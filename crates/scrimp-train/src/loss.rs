//! Cross entropy, and how many answers are right.

use burn::tensor::Tensor;

use crate::ops;

/// Cross entropy of logits, the mean over the batch.
///
/// With smoothing `e` over `C` classes the target has `1 - e + e/C`, every other class `e/C`.
///
/// # Shapes
/// - `logits`: `[batch, classes]`
/// - `labels`: `[batch]`
///
/// # Panics
/// If there is not one label for each row, or one is no class.
///
/// # Source
/// Szegedy et al. 2016, arXiv:1512.00567, section 7; the form is that of `torch.nn.functional.cross_entropy`.
pub fn cross_entropy(logits: Tensor<2>, labels: &[u8], smoothing: f32) -> Tensor<1> {
    ops::cross_entropy(logits, labels, smoothing)
}

/// How many rows of `logits` (`[labels.len(), classes]`, row-major) have their largest value at the label. A row with
/// a NaN is wrong.
pub fn correct(logits: &[f32], labels: &[u8]) -> usize {
    let classes = logits.len() / labels.len().max(1);
    let right = |row: &[f32], label: u8| {
        let chosen = row[usize::from(label)];
        row.iter()
            .enumerate()
            .all(|(i, v)| if i < usize::from(label) { *v < chosen } else { *v <= chosen })
    };
    logits
        .chunks_exact(classes.max(1))
        .zip(labels)
        .filter(|(row, label)| right(row, **label))
        .count()
}
