"""The memory that one training step needs in addition to weights, gradients and optimiser state.

One forward and backward pass is replayed operation by operation: what each allocates and frees follows from the shape
of the model, the precision and the settings, in the order of PyTorch's autograd on a CPU. No tensor is created and
torch is not loaded, so that `stemma plan` is quick. tests/model/test_step_memory.py compares the replay with PyTorch's
own allocations, to the byte, and fails when a change of the model (network/) is not followed here.
"""

from __future__ import annotations

import math
from collections import Counter

from model.network.config import LOGITS_AT_ONCE, Config
from model.training.train_config import TrainConfig, matrices_at_once

FP32, BF16 = 4, 2  # bytes; weights, gradients and optimiser states are float32 at every stage


def step_bytes(shape: Config, config: TrainConfig, rows: int, seq_len: int, ranks: int = 1) -> int:
    """The peak bytes of one micro-batch of `rows` rows, or of the update, without weights, gradients and moments."""
    blocks, embedding = pass_bytes(
        shape, config.half, config.activation_checkpointing, config.micro_batches > 1, rows, seq_len
    )
    return max(blocks, embedding, _muon_bytes(shape, ranks) if config.optimizer == "muon" else 0)


def pass_bytes(
    shape: Config, half: bool, checkpointing: bool, accumulating: bool, rows: int, seq_len: int
) -> tuple[int, int]:
    """Peak bytes of a forward and backward pass: until the embedding's backward pass, and in it.

    half: computed in bfloat16. checkpointing: blocks are recomputed in backward. accumulating: the gradients of an
    earlier micro-batch are there all the time; otherwise they appear during the backward pass.
    """
    replay = _Replay(shape, half, checkpointing, accumulating, rows, seq_len)
    replay.forward()
    replay.loss()
    replay.backward()
    blocks, replay.peak = replay.peak, replay.now
    replay.embedding_backward()
    gradients = 0 if accumulating else FP32 * shape.num_params()  # counted apart
    # Autograd adds the two gradients of a tied matrix in place.
    twofold = replay.embedding if shape.tie_embeddings else 0
    return blocks - gradients, replay.peak - gradients - twofold


def _muon_bytes(shape: Config, ranks: int) -> int:
    """What Muon's largest batch of matrices takes in float32; a GPU, which computes in bfloat16, takes less."""
    weights = shape.weight_shapes().items()
    counts = Counter(size for name, size in weights if name.startswith("layers.") and len(size) == 2)
    most = 0
    for size, count in counts.items():
        share = min(-(-count // ranks), matrices_at_once(size))
        batch, gram = FP32 * share * math.prod(size), FP32 * share * min(size) ** 2
        # Newton-Schulz holds the batch, x before and after, and two products of its short side; ranks - 1: the
        # matrices of the other ranks in the batch.
        most = max(most, 3 * batch + 2 * gram + (ranks - 1) * batch)
    return most


class _Replay:
    """The bytes that are allocated now, and the most so far, while one micro-batch is computed.

    Names below: c, q, k and f are the bytes of a float32 tensor with a token's width (C), queries (H·D), keys (K·D) or
    MLP width (F) for every token; c_, q_, k_ and f_ are the same in the dtype that computes. `one`: a number a token.
    """

    def __init__(
        self, shape: Config, half: bool, checkpointing: bool, accumulating: bool, rows: int, seq_len: int
    ):
        self.now = self.peak = 0
        self.shape, self.half = shape, half
        self.checkpointing, self.accumulating = checkpointing, accumulating
        self.tokens, self.width = rows * seq_len, BF16 if half else FP32
        queries, keys = shape.n_head * shape.head_dim, shape.n_kv_head * shape.head_dim
        self.one = FP32 * self.tokens
        self.c, self.q, self.k, self.f = (self.one * n for n in (shape.d_model, queries, keys, shape.d_ff))
        self.c_, self.q_, self.k_, self.f_ = (
            n * self.width // FP32 for n in (self.c, self.q, self.k, self.f)
        )
        self.signs = FP32 * seq_len * shape.head_dim  # signed sines of rope.rotate
        self.mlp_matrix = FP32 * shape.d_model * shape.d_ff
        self.query_matrix, self.key_matrix = FP32 * shape.d_model * queries, FP32 * shape.d_model * keys
        self.gain, self.head_gain = FP32 * shape.d_model, FP32 * shape.head_dim  # of norms
        self.embedding = FP32 * shape.vocab_size * shape.d_model

    def hold(self, *sizes: int) -> None:
        """Allocate, one after the other."""
        for size in sizes:
            self.now += size
            self.peak = max(self.peak, self.now)

    def free(self, *sizes: int) -> None:
        self.now -= sum(sizes)

    def forward(self) -> None:
        """All blocks and the last norm: what they save for the backward pass."""
        self.hold(self.c)
        for _ in range(self.shape.n_layer):
            if self.half:  # autocast keeps the matrices it has cast
                self.hold((3 * self.mlp_matrix + 2 * self.query_matrix + 2 * self.key_matrix) * BF16 // FP32)
            if not self.checkpointing:
                self.hold(*self.saved_by_block())
            self.hold(self.c)
        self.hold(self.one, self.c)

    def saved_by_block(self) -> list[int]:
        """What a block saves for its backward pass."""
        shape, one = self.shape, self.one
        saved = [one, *self._norm_outputs(3), self.k_]
        for wide, narrow, heads in ((self.q, self.q_, shape.n_head), (self.k, self.k_, shape.n_kv_head)):
            saved += [wide, one * heads] if shape.qk_norm else []
            saved += [self.signs, narrow]
        saved += [self.q_, one * shape.n_head, self.c, one]  # attention, and the states after it
        return [*saved, *self._norm_outputs(2), *[self.f_] * 4]

    def _norm_outputs(self, layers: int) -> list[int]:
        """The inputs of so many linear layers behind a norm: one tensor for all, or a cast copy for each."""
        return [self.c_] * layers if self.half else [self.c]

    def loss(self) -> None:
        """Cross-entropy in chunks, with the gradients of states and head, which stay (network/loss.py)."""
        shape, half, tokens = self.shape, self.half, self.tokens
        chunk = _chunk_size(tokens, shape.vocab_size)
        of_targets = (tokens, self.one, 8 * tokens)  # mask, scale and targets
        casts = (self.c_, self.embedding * BF16 // FP32) if half else ()
        logits = self.width * min(chunk, tokens) * shape.vocab_size
        self.hold(*of_targets, *casts, self.one, self.c, logits)
        previous: tuple[int, ...] = ()
        for start in range(0, tokens, chunk):
            previous = self._loss_chunk(min(chunk, tokens - start), previous, first=start == 0)
        self.free(*previous, logits, *casts)
        self.hold(self.one, 2 * FP32)  # the losses times their weights; the loss and its gradient
        self.free(self.one, *of_targets, self.one, self.c)  # the states are no longer needed

    def _loss_chunk(self, n: int, previous: tuple[int, ...], first: bool) -> tuple[int, ...]:
        """One chunk of n tokens. Returns what is alive until the next one replaces it, as `previous` was."""
        one, vocab_size, states = FP32 * n, self.shape.vocab_size, n * self.shape.d_model
        head = self.embedding * self.width // FP32
        if self.half:
            wide = BF16 * n * vocab_size
            self.hold(one, one, 2 * wide, one, one, one, one)
            self.free(one, one)
            self.hold(one // 2, wide)
            self.free(one, one, 2 * wide, one, one // 2)  # all but the totals and `wide`
            totals: tuple[int, ...] = (one, wide)
        else:
            self.hold(one, one, one, one, one, one)
            self.free(one, one, one, one, one)
            totals = (one,)
        self.free(*previous[:-1])
        self.hold(one)
        self.free(*previous[-1:])
        self.hold(self.width * states, FP32 * states)
        self.free(self.width * states, FP32 * states)
        self.hold(FP32 * states)
        if self.half:
            self.hold(BF16 * states)
            self.free(FP32 * states)
        if first or self.half:
            self.hold(head)
        if first and self.half:
            self.hold(self.embedding)
        if self.half:
            self.free(head)
        self.free(self.width * states)
        return *totals, one

    def backward(self) -> None:
        """The last norm, and all blocks from the last to the first."""
        if not self.shape.tie_embeddings:
            self.settle_gradient(self.embedding)  # of the head
        self.norm_backward(self.c, self.one, self.gain)
        self.settle_gradient(self.gain)
        for _ in range(self.shape.n_layer):
            if self.checkpointing:
                if self.half:
                    self.hold(self.c_)  # the gradient that comes in, cast
                self.hold(*self.saved_by_block())
                if self.half:
                    self.hold(self.c)  # float32 input of the MLP
                    self.free(self.c)
            elif self.half:
                self.hold(self.c_)
            self.mlp_backward()
            self.attention_backward()

    def mlp_backward(self) -> None:
        """Down projection, SwiGLU, up and gate projections, norm; then the residual path is added."""
        f_, matrix = self.f_, self.mlp_matrix
        self.linear_backward(matrix, f_, freed=[self.c_, f_] if self.half else [f_])
        self.hold(f_, f_)
        self.free(f_, f_, f_)
        self.linear_backward(matrix, self.c_, freed=[f_, self.c_] if self.half else [f_], widen=True)
        self.hold(f_)
        self.free(f_, f_)
        self.linear_backward(matrix, self.c_, freed=[f_, *self._norm_outputs(1)], widen=True, add=True)
        self.norm_backward(self.c, self.one, self.gain)
        self.add()
        self.settle_gradient(self.gain)

    def attention_backward(self) -> None:
        """Output projection, attention, then keys, queries and values, norm; then the residual path is added."""
        shape, copies = self.shape, [self.c_] if self.half else []
        if self.half:
            self.hold(self.c_)
        self.linear_backward(self.query_matrix, self.q_, freed=copies)
        self.hold(self.q_, self.k_, self.k_)
        self.free(self.q_, self.k_, self.q_, self.k_, self.one * shape.n_head, self.q_)
        self.rotation_backward(self.k, self.k_, shape.n_kv_head)
        self.linear_backward(self.key_matrix, self.c_, freed=[self.k_, *copies], widen=True)
        self.rotation_backward(self.q, self.q_, shape.n_head)
        self.linear_backward(self.query_matrix, self.c_, freed=[self.q_, *copies], widen=True, add=True)
        freed = [self.k_, *self._norm_outputs(1)]
        self.linear_backward(self.key_matrix, self.c_, freed=freed, widen=True, add=True)
        self.norm_backward(self.c, self.one, self.gain)
        self.add()
        self.settle_gradient(self.gain)

    def rotation_backward(self, wide: int, narrow: int, heads: int) -> None:
        """rope.rotate and, before it, QK-norm; `wide` and `narrow`: bytes in float32 and as computed."""
        if self.half:
            self.hold(wide)
            self.free(narrow)
        self.hold(self.signs, wide)
        self.free(self.signs)
        if self.half:
            self.hold(narrow)
            self.free(wide)
        self.free(self.signs)
        self.hold(narrow)
        self.free(narrow)
        self.hold(wide)
        if self.half:
            self.hold(narrow)
            self.free(wide)
        self.free(wide)
        self.hold(narrow)
        self.free(narrow, narrow)
        if self.shape.qk_norm:
            if self.half:
                self.hold(wide)
                self.free(narrow)
            self.norm_backward(wide, self.one * heads, self.head_gain)
            if self.half:
                self.hold(narrow)
                self.free(wide)
            self.settle_gradient(self.head_gain)

    def norm_backward(self, x: int, rows: int, gain: int) -> None:
        """RMSNorm of x bytes; rows: bytes of a number for each of its rows. Replaces the gradient, frees x."""
        self.hold(x, gain, rows, rows, rows)
        self.free(rows, rows)
        self.hold(rows)
        self.free(rows)
        self.hold(x)
        self.free(x, rows, x, x, rows)

    def linear_backward(
        self, matrix: int, dx: int, *, freed: list[int], widen: bool = False, add: bool = False
    ) -> None:
        """A linear layer with a float32 `matrix` of so many bytes; dx: bytes of its input's gradient.

        freed: the gradient that came in and the saved input. widen: dx becomes float32. add: to the gradient that
        another layer gave the same input.
        """
        self.hold(matrix * self.width // FP32, dx)
        self.free(*freed)
        if self.half and widen:
            self.hold(self.c)
            self.free(dx)
        if add:
            self.add()
        if self.half:
            self.hold(matrix)
            self.free(matrix * BF16 // FP32)
        self.settle_gradient(matrix)

    def add(self) -> None:
        """The sum of two float32 gradients of a token's width, which are freed."""
        self.hold(self.c)
        self.free(self.c, self.c)

    def settle_gradient(self, size: int) -> None:
        """The gradient of a weight is complete: it stays, or is added to an earlier one."""
        if self.accumulating:
            self.free(size)

    def embedding_backward(self) -> None:
        """The gradient of the embedding and, where it is the head too, the sum of both."""
        self.hold(self.embedding)
        self.free(self.c)
        if self.shape.tie_embeddings:
            self.hold(self.embedding)


def _chunk_size(tokens: int, vocab_size: int) -> int:
    """Tokens whose logits loss.py computes at once."""
    most = max(1, LOGITS_AT_ONCE["cpu"] // vocab_size)
    return max(1, math.ceil(tokens / max(1, math.ceil(tokens / most))))
