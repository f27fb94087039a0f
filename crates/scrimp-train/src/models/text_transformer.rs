//! A small transformer that classifies text.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

use crate::layers::{
    Embedding, Gelu, GlobalAverage, Ids, Init, LayerNorm, Linear, SelfAttention, add,
};
use crate::tap::Scope;

/// Sizes of a [`TextTransformer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextTransformerOptions {
    /// Words of the vocabulary.
    pub tokens: usize,
    /// Tokens of a text at most.
    pub time: usize,
    /// Values of a row.
    pub dim: usize,
    /// Heads of attention.
    pub heads: usize,
    /// Values between the two products of a feed-forward part.
    pub hidden: usize,
    /// Encoder layers.
    pub layers: usize,
    /// Classes.
    pub classes: usize,
}

/// Token and learned position embeddings, encoder layers with the norm after each part, the mean over time, and a linear
/// classifier.
///
/// # Source
/// Vaswani et al. 2017, arXiv:1706.03762, section 3.1; GELU and learned positions as in BERT (arXiv:1810.04805).
#[derive(Module, Debug)]
pub struct TextTransformer {
    embedding: Embedding,
    /// `[1, time, dim]`
    position: Param<Tensor<3>>,
    layers: Vec<EncoderLayer>,
    pool: GlobalAverage,
    classifier: Linear,
}

#[derive(Module, Debug)]
struct EncoderLayer {
    attention: SelfAttention,
    norm1: LayerNorm,
    ffn1: Linear,
    gelu: Gelu,
    ffn2: Linear,
    norm2: LayerNorm,
}

impl EncoderLayer {
    fn new(scope: &Scope, dim: usize, heads: usize, hidden: usize, device: &Device) -> Self {
        Self {
            attention: SelfAttention::new(&scope.at("attention"), dim, heads, device),
            norm1: LayerNorm::new(&scope.at("norm1"), dim, device),
            ffn1: Linear::new(&scope.at("ffn1"), dim, hidden, device),
            gelu: Gelu::new(&scope.at("gelu")),
            ffn2: Linear::new(&scope.at("ffn2"), hidden, dim, device),
            norm2: LayerNorm::new(&scope.at("norm2"), dim, device),
        }
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let y = self.attention.forward(x.clone(), None);
        let x = self.norm1.forward(add(x, y));
        let y = self.ffn2.forward(self.gelu.forward(self.ffn1.forward(x.clone())));
        self.norm2.forward(add(x, y))
    }
}

impl TextTransformer {
    /// Builds the network.
    pub fn new(options: TextTransformerOptions, scope: &Scope, device: &Device) -> Self {
        let TextTransformerOptions { tokens, time, dim, heads, hidden, layers, classes } = options;
        let position = Init::Normal.weight([1, time, dim], &scope.init_stream("position"), device);
        let layer =
            |i: usize| EncoderLayer::new(&scope.at("layers").at(i), dim, heads, hidden, device);
        Self {
            embedding: Embedding::new(&scope.at("embedding"), tokens, dim, device),
            // Small beside the rows of tokens.
            position: Param::from_tensor((position.val() * 0.02).detach()),
            layers: (0..layers).map(layer).collect(),
            pool: GlobalAverage::new(&scope.at("pool")),
            classifier: Linear::new(&scope.at("classifier"), dim, classes, device),
        }
    }

    /// The forward pass: logits `[batch, classes]`.
    ///
    /// # Panics
    /// If a text is longer than the network has positions.
    pub fn forward(&self, ids: &Ids) -> Tensor<2> {
        let [_, time] = ids.shape;
        let position = self.position.val();
        let [_, positions, dim] = position.dims();
        assert!(time <= positions, "a text of {time} tokens, and {positions} positions");
        let x = add(self.embedding.forward(ids), position.slice([0..1, 0..time, 0..dim]));
        let x = self.layers.iter().fold(x, |x, layer| layer.forward(x));
        let [batch, ..] = x.dims();
        self.classifier.forward(self.pool.forward(x.reshape([batch, time, 1, dim])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_as_many_parameters_as_its_sizes_say() {
        let options = TextTransformerOptions {
            tokens: 50,
            time: 7,
            dim: 8,
            heads: 2,
            hidden: 16,
            layers: 2,
            classes: 3,
        };
        let scope = Scope::root(0);
        let net = TextTransformer::new(options, &scope, &Device::flex());
        let layer = 4 * (8 * 8 + 8) + 2 * 16 + (8 * 16 + 16) + (16 * 8 + 8);
        assert_eq!(net.num_params(), 50 * 8 + 7 * 8 + 2 * layer + 8 * 3 + 3);
        let ids = Ids { values: vec![1; 10].into(), shape: [2, 5] };
        assert_eq!(net.forward(&ids).dims(), [2, 3]);
        assert_eq!(scope.sites().len(), 1 + 2 * (4 + 1 + 2 + 1 + 2) + 1 + 1);
    }
}
