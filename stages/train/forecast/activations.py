"""Activation memory of a training step: a closed formula over the sizes of the network's layers.

Every adapted layer keeps its input, for the gradient of its right factor, and its product with that factor; a magnitude
per output feature keeps the output as well, one per input feature the scaled input. What blocks keep beside that was
counted operation by operation on torch's meta device, for 300 networks and settings; for published models the formula
is within 6 percent of that count. After a change to a block or an adapter, fit it again: test_train_activations.py
compares it with what autograd saves, benchmarks/bench_memory.py with the memory of real steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from stages.adapters.kind import Kind
from stages.train.forecast.network_size import BatchSize, LayerUse, NetworkSize

# W width, F inner width of a feed-forward layer, R rank.

_BEFORE_BLOCKS = (LayerUse.BLOCK_CONTEXT, LayerUse.BLOCK_FRAMES)
"""Layers of blocks that run before the first block, so that their outputs are kept with gradient checkpointing too."""
_OUTSIDE_BLOCKS = tuple(use for use in LayerUse if not use.in_block)


@dataclass(frozen=True, kw_only=True)
class ForwardPass:
    """One pass of a batch through a network with an adapter."""

    network: NetworkSize
    batch: BatchSize
    kind: Kind
    rank: int
    itemsize: int
    """Bytes of an activation's value."""

    def activation_bytes(self, *, checkpointing: bool) -> int:
        """Peak of what the forward keeps and the backward adds, without weights, adapter and optimiser.

        Args:
            checkpointing: blocks keep their input only, and are computed again in the backward.
        """
        blocks = self.network.num_trained_blocks
        kept = self._factors() + self._outside_blocks() + self._before_blocks() * blocks
        kept += self._kept_by_adapter(_OUTSIDE_BLOCKS) + self._kept_by_adapter(_BEFORE_BLOCKS)
        inside = self._inside_block() * blocks + self._kept_by_adapter([LayerUse.BLOCK_TOKENS])
        if not checkpointing:
            return kept + inside + self._feed_forward_gradient()
        inputs = self._rows(LayerUse.BLOCK_TOKENS) * self._widths[0] * self.itemsize * blocks
        return kept + inputs + inside // max(blocks, 1) + self._feed_forward_gradient() // 2

    def _rows(self, use: LayerUse) -> int:
        return self.network.num_rows(use, self.batch)

    @property
    def _widths(self) -> tuple[int, int]:
        return self.network.transformer.width, self.network.transformer.inner_width

    @property
    def _widened(self) -> int:
        """1 if norms copy activations to float32, else 0."""
        return int(self.itemsize < 4)

    def _kept_by_adapter(self, uses: Iterable[LayerUse]) -> int:
        """Inputs, scaled inputs, outputs and rank-wide products that adapted layers of these uses keep."""
        has_output, has_input = self.kind.has_output_magnitude, self.kind.has_input_magnitude
        kept = 0
        for use in uses:
            sums = self.network.adapted[use]
            features = sums.inputs * (1 + has_input) + sums.outputs * has_output + sums.count * self.rank
            kept += self._rows(use) * self.itemsize * features
        return kept

    def _factors(self) -> int:
        """Thin factors in the dtype of activations, and the products from which norms of adapted weights follow."""
        features = sum(sums.inputs + sums.outputs for sums in self.network.adapted.values())
        bytes_per_value = {(0, 0): 0, (1, 0): 5, (0, 1): 3, (1, 1): 10}[
            self.kind.has_output_magnitude, self.kind.has_input_magnitude
        ]
        return self.rank * features * (bytes_per_value + self._widened * self.itemsize)

    def _outside_blocks(self) -> int:
        W, _ = self._widths
        channels = 12 * self.network.transformer.latent_channels
        wide = sum(self._rows(use) for use in (LayerUse.FRAMES, LayerUse.CONTEXT, LayerUse.BLOCK_TOKENS)) * W
        return self._rows(LayerUse.FRAMES) * channels + wide * self.itemsize

    def _before_blocks(self) -> int:
        """Keys, values and local condition of one block, before norms."""
        (W, _), maps = self._widths, 1 + self.network.transformer.differential
        context, frames = (self._rows(use) for use in _BEFORE_BLOCKS)
        return (context * (1 + maps) + frames) * W * self.itemsize

    def _inside_block(self) -> int:
        """Modulation, norms, heads and gates of one block; 9 W per token more for a second attention map."""
        (W, F), second = self._widths, int(self.network.transformer.differential)
        token = self.itemsize * ((16 + 9 * second) * W + 3 * F) + self._widened * (16 + 2 * second) * W
        keys = W * (2 * second * self.itemsize + 4 * self._widened)
        return self._rows(LayerUse.BLOCK_TOKENS) * token + self._rows(LayerUse.BLOCK_CONTEXT) * keys

    def _feed_forward_gradient(self) -> int:
        """Working memory of the backward, largest in the gated projection, where magnitudes need float32 gradients."""
        has_output, has_input = self.kind.has_output_magnitude, self.kind.has_input_magnitude
        wide = 16 if has_output else 8 if has_input else 0
        return self._rows(LayerUse.BLOCK_TOKENS) * self._widths[1] * (2 * self.itemsize + self._widened * wide)
