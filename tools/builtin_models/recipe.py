"""How the built-in models are built and trained: every number that may be changed."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """How a model is built and trained."""

    name: str
    """`tiny-gpt2` or `tiny-bert`."""
    num_tokens: int
    """Tokens seen in training at most, padding included."""
    matrix_rate: float
    """Peak learning rate of Muon, for the matrices of the blocks (scaled to AdamW's step size)."""
    other_rate: float
    """Peak learning rate of AdamW, for embeddings, norms and biases."""
    warmup_steps: int = 100
    """Steps until the learning rates are at their peak."""
    seed: int = 0
    """Of the split, the weights, the order of the rows and the masks."""
    num_blocks: int = 5
    """Transformer blocks."""
    width: int = 192
    """Of the residual stream."""
    num_heads: int = 6
    """Attention heads of each block."""
    vocab_size: int = 4096
    """Tokens that the tokenizer learns, special tokens included."""
    tokens_per_step: int = 2048
    """Small steps: the optimizer's work is cheap beside the text that a larger one would use up."""
    micro_batches: int = 2
    """A step is the sum of so many batches of rows of one length, because rows of one length are all of one kind."""
    weight_decay: float = 0.1
    """Of matrices and embeddings."""
    mask_share: float = 0.3
    """Tokens to be guessed; of the masked model alone."""

    @property
    def is_causal(self) -> bool:
        """Whether the model predicts the next token."""
        return self.name == "tiny-gpt2"


RECIPES = {
    "gpt2": Recipe("tiny-gpt2", num_tokens=8_192_000, matrix_rate=4e-3, other_rate=8e-3),
    "bert": Recipe("tiny-bert", num_tokens=8_192_000, matrix_rate=3e-3, other_rate=5e-3),
}
