"""The transformer against transformers' own Qwen3 and Llama, and against itself by other code paths."""

import itertools

import pytest
import torch
import torch.nn.functional as F

import model.network.attention as attention
import model.network.transformer as transformer
from model.network.attention import KVCache, Prefill, of_similar_length
from model.network.config import Config, RopeScaling
from model.network.rope import rope_frequencies
from model.network.transformer import Transformer


def peer(model: Transformer, **rope):
    """The same weights in transformers' class, loaded by name without our export. `rope`: its rope_parameters."""
    import transformers

    c = model.config
    settings = {
        "vocab_size": c.vocab_size,
        "hidden_size": c.d_model,
        "intermediate_size": c.d_ff,
        "num_hidden_layers": c.n_layer,
        "num_attention_heads": c.n_head,
        "num_key_value_heads": c.n_kv_head,
        "head_dim": c.head_dim,
        "max_position_embeddings": c.max_seq_len,
        "rms_norm_eps": c.norm_eps,
        "tie_word_embeddings": c.tie_embeddings,
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_theta} | rope,
    }
    kind = "Qwen3" if c.qk_norm else "Llama"
    theirs = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**settings))
    ours = {("" if n.startswith("lm_head") else "model.") + n: w for n, w in model.state_dict().items()}
    theirs.load_state_dict(ours)
    return theirs.eval()


@pytest.mark.parametrize("qk_norm", [True, False], ids=["qwen3", "llama"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("n_kv_head", [1, 2, 4])
def test_logits_equal_those_of_transformers(random_model, qk_norm, tied, n_kv_head):
    model = random_model(
        qk_norm=qk_norm, tie_embeddings=tied, n_head=4, n_kv_head=n_kv_head, rope_theta=5e5, norm_eps=1e-5
    )
    ids = torch.randint(0, 512, (3, 100))
    with torch.no_grad():
        exact = peer(model).double()(ids).logits
        torch.testing.assert_close(model(ids), exact.float(), atol=1e-5, rtol=1e-5)


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}  # Llama 3.1's
SCALINGS = {  # ours, and transformers' names for it
    "linear": (RopeScaling("linear", 4.0), {"factor": 4.0}),
    "llama3": (
        RopeScaling("llama3", 8.0, original_max_seq_len=32),
        LLAMA3 | {"original_max_position_embeddings": 32},
    ),
    "yarn": (
        RopeScaling("yarn", 4.0, original_max_seq_len=32),
        {"factor": 4.0, "original_max_position_embeddings": 32},
    ),
    "yarn, every field": (
        RopeScaling("yarn", 4.0, 48, beta_fast=16.0, beta_slow=2.0, attention_factor=1.3, truncate=False),
        {"factor": 4.0, "original_max_position_embeddings": 48, "beta_fast": 16.0, "beta_slow": 2.0}
        | {"attention_factor": 1.3, "truncate": False},
    ),
}


@pytest.mark.parametrize("qk_norm", [True, False], ids=["qwen3", "llama"])
@pytest.mark.parametrize("name", SCALINGS)
def test_scaled_positions_give_the_logits_of_transformers(random_model, name, qk_norm):
    ours, theirs = SCALINGS[name]
    model = random_model(qk_norm=qk_norm, rope_scaling=ours, rope_theta=5e3)
    ids = torch.randint(0, 512, (2, 128))
    with torch.no_grad():
        exact = peer(model, rope_type=ours.kind, **theirs).double()(ids).logits
        got, plain = model(ids), random_model(qk_norm=qk_norm, rope_theta=5e3)(ids)
    torch.testing.assert_close(got, exact.float(), atol=1e-5, rtol=1e-5)
    assert (got - plain).abs().max() > 0.01  # scaling makes a difference


@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize("theta", [1e4, 5e5, 1e6])
@pytest.mark.parametrize("name", SCALINGS)
def test_scaled_frequencies_equal_those_of_transformers_to_the_last_bit(name, theta, head_dim):
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    ours, theirs = SCALINGS[name]
    parameters = {"rope_type": ours.kind, "rope_theta": theta} | theirs
    config = LlamaConfig(hidden_size=head_dim * 2, num_attention_heads=2, rope_parameters=parameters)
    frequencies, amplitude = ROPE_INIT_FUNCTIONS[ours.kind](config, "cpu")
    assert torch.equal(rope_frequencies(head_dim, theta, ours), frequencies)
    assert ours.amplitude == amplitude


CUTS = [[100], [1, 40, 1, 30, 28], [50, 50], [1] * 100]  # tokens of the documents of each row


@pytest.mark.parametrize("qk_norm", [True, False], ids=["qwen3", "llama"])
@pytest.mark.parametrize("kind", ["mask", "varlen"])
def test_packed_documents_give_the_results_of_each_alone(random_model, monkeypatch, qk_norm, kind):
    """Losses and gradients; `varlen` with a stand-in for the kernel, which only a GPU has."""
    if kind == "varlen":
        monkeypatch.setattr(transformer, "has_varlen_kernel", lambda x, head_dim: True)
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_by_hand)
    packed, alone = random_model(qk_norm=qk_norm), random_model(qk_norm=qk_norm)
    ids, targets = torch.randint(0, 512, (4, 100)), torch.randint(0, 512, (4, 100))
    documents = torch.stack([torch.arange(len(cuts)).repeat_interleave(torch.tensor(cuts)) for cuts in CUTS])
    losses = packed(ids, targets=targets, documents=documents.int())
    losses.sum().backward()
    for row, cuts in enumerate(CUTS):
        parts = zip(ids[row].split(cuts), targets[row].split(cuts), losses[row].split(cuts), strict=True)
        for text, labels, got in parts:
            expected = alone(text[None], targets=labels[None])[0]
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
            expected.sum().backward()
    for (name, a), b in zip(packed.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-4, rtol=1e-4, msg=name)


def varlen_by_hand(q, k, v, begins, begins_k, longest_q, longest_k, *, window_size, enable_gqa):
    """torch.nn.attention.varlen.varlen_attn, one sequence after the other; q, k, v (tokens, heads, D)."""
    assert begins.dtype == torch.int32 and begins is begins_k and window_size == (-1, 0)
    assert begins[0] == 0 and begins[-1] == len(q) and (begins.diff() > 0).all()
    assert longest_q == longest_k and begins.diff().max() <= longest_q
    parts = [
        F.scaled_dot_product_attention(
            *(x[a:b].transpose(0, 1) for x in (q, k, v)), is_causal=True, enable_gqa=enable_gqa
        ).transpose(0, 1)
        for a, b in itertools.pairwise(begins.tolist())
    ]
    return torch.cat(parts)


def test_all_layers_share_one_mask(random_model, monkeypatch):
    made = []
    original = attention.document_mask
    monkeypatch.setattr(attention, "document_mask", lambda d: made.append(d) or original(d))
    model = random_model()
    ids = torch.randint(0, 512, (2, 20))
    model(ids)
    assert not made  # no mask for rows of one document
    model(ids, documents=torch.zeros(2, 20, dtype=torch.int32))
    assert len(made) == 1 and model.config.n_layer == 3


@pytest.mark.parametrize("cuts", [[128], [1] * 128, [40, 1, 1, 30, 56], [5, 123]])
def test_the_cache_gives_the_same_logits_for_any_division_of_the_text(random_model, cuts):
    model = random_model()
    ids = torch.randint(0, 512, (2, 128))
    cache = KVCache(model.config, rows=2, capacity=128)
    with torch.no_grad():
        parts = torch.cat([model(part, cache=cache) for part in ids.split(cuts, dim=1)], dim=1)
        torch.testing.assert_close(parts, model(ids), atol=1e-5, rtol=1e-5)


def test_rows_of_a_cache_may_differ_in_length(random_model):
    model = random_model()
    long, short = torch.randint(0, 512, (1, 60)), torch.randint(0, 512, (1, 25))
    more = torch.randint(0, 512, (2, 7))
    cache = KVCache(model.config, rows=2, capacity=128)
    padded = torch.cat((short, torch.full((1, 35), 77)), dim=1)
    with torch.no_grad():
        model.hidden(torch.cat((long, padded)), cache)
        cache.lengths = torch.tensor([60, 25])
        got = model(more, cache=cache)
        for row, start in enumerate((long, short)):
            alone = model(torch.cat((start, more[row : row + 1]), dim=1))[0, -7:]
            torch.testing.assert_close(got[row], alone, atol=1e-5, rtol=1e-5)


def test_prompts_end_to_end_fill_the_cache_as_each_does_alone(random_model):
    model, lengths = random_model(), [61, 60, 50, 23, 22, 1]
    prompts = [torch.randint(0, 512, (1, n)) for n in lengths]
    cache = KVCache(model.config, rows=8, capacity=64)
    with torch.no_grad():
        new = Prefill(cache, 1, lengths)
        hidden = model.hidden(torch.cat(prompts, dim=1), new)
        assert cache.lengths.tolist() == [0, *lengths, 0] and cache.longest == 61
        for row, (prompt, found) in enumerate(zip(prompts, hidden[0].split(lengths), strict=True), 1):
            alone = KVCache(model.config, rows=1, capacity=64)
            torch.testing.assert_close(found, model.hidden(prompt, alone)[0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(found, model.hidden(prompt)[0], atol=1e-5, rtol=1e-5)
            n = prompt.shape[1]
            torch.testing.assert_close(
                cache.both[:, :, row, :, :n], alone.both[:, :, 0, :, :n], atol=1e-5, rtol=1e-5
            )
        assert torch.equal(hidden[0, new.last[1]], hidden[0, 120])
    assert not cache.both[:, :, [0, 7]].any()
    with pytest.raises(ValueError, match="Reserve more"):
        Prefill(cache, 0, [65, 3])


def test_attention_groups_prompts_of_similar_length():
    assert of_similar_length([100, 90, 80, 79, 64, 63, 1]) == [[100, 90, 80], [79, 64], [63], [1]]
    assert of_similar_length([7] * 5) == [[7] * 5]
    lengths = torch.randint(1, 300, (200,), generator=torch.Generator().manual_seed(1)).tolist()
    groups = of_similar_length(sorted(lengths, reverse=True))
    assert sorted(itertools.chain(*groups)) == sorted(lengths)
    padded = sum(len(group) * max(group) for group in groups)
    assert padded < 1.3 * sum(lengths) < 0.8 * len(lengths) * max(lengths)


def test_attention_is_causal(random_model):
    model = random_model()
    ids = torch.randint(0, 512, (1, 50))
    changed = ids.clone()
    changed[0, 30:] = (changed[0, 30:] + 1) % 512
    with torch.no_grad():
        before, after = model(ids), model(changed)
    assert torch.equal(before[:, :30], after[:, :30])
    assert not torch.equal(before[:, 30:], after[:, 30:])


def test_a_new_model_starts_near_the_uniform_distribution_and_overfits_one_row():
    torch.manual_seed(0)
    model = Transformer(Config.from_depth(4, vocab_size=1024, max_seq_len=64))
    ids = torch.randint(0, 1024, (1, 64))
    first = model(ids[:, :-1], targets=ids[:, 1:]).mean()
    assert abs(first.item() - 6.93) < 1  # ln 1024
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        loss = model(ids[:, :-1], targets=ids[:, 1:]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5


def test_depth_alone_gives_the_known_shapes():
    demo = Config.from_depth(4, vocab_size=1024)
    assert (demo.n_layer, demo.d_model, demo.n_head, demo.n_kv_head) == (4, 128, 4, 2)
    assert 0.6e6 < Transformer(demo).num_params() - 1024 * 128 < 0.8e6
    assert Config.from_depth(12, vocab_size=50257).d_model == 768  # GPT-2
    assert Config.from_depth(20, vocab_size=65536).d_model == 1280  # nanochat's d20
    widths = [Config.from_depth(depth, vocab_size=300).d_model for depth in range(1, 33)]
    assert widths == sorted(widths)
    assert Config.from_depth(4, vocab_size=300, d_ff=256, qk_norm=False).d_ff == 256


def test_parameters_and_flops_count_each_matrix_once(random_model):
    tied, untied = random_model(), random_model(tie_embeddings=False)
    embedding = tied.embed_tokens.weight.numel()
    assert untied.num_params() - tied.num_params() == embedding
    assert untied.num_params(embedding=False) == tied.num_params() == peer(tied).num_parameters()
    c = tied.config
    matrices = embedding + c.n_layer * c.d_model * (
        c.head_dim * (2 * c.n_head + 2 * c.n_kv_head) + 3 * c.d_ff
    )
    attention = 12 * c.n_layer * c.n_head * c.head_dim * 64
    assert tied.flops_per_token(64) == pytest.approx(
        6 * matrices + attention, rel=0.01
    )  # the norms come on top


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda m: m(torch.zeros(1, 129, dtype=torch.long)), "context of 128"),
        (lambda m: m(torch.zeros(1, 9, dtype=torch.long), cache=KVCache(m.config, 1, 8)), "Reserve more"),
        (lambda m: m(torch.zeros(1, 9).long(), documents=torch.zeros(1, 8).long()), r"documents \(1, 8\)"),
        (
            lambda m: m(
                torch.zeros(1, 9).long(),
                cache=KVCache(m.config, 1, 9),
                documents=torch.zeros(1, 9).long(),
            ),
            "with no cache",
        ),
        (lambda m: RopeScaling("dynamic", 2.0), "no RoPE scaling 'dynamic'"),
        (lambda m: RopeScaling("linear", 0.5), "shorten the context"),
        (lambda m: RopeScaling("llama3", 8.0, high_freq_factor=1.0), "the ramp"),
        (lambda m: Config.from_depth(0, 512), "depth=0"),
        (lambda m: Config.from_depth(4, 512, n_kv_head=3), "n_kv_head=3"),
        (lambda m: Config.from_depth(4, 512, head_dim=15), "head_dim=15"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_with_a_message(random_model, act, words):
    with pytest.raises(ValueError, match=words):
        act(random_model())


@pytest.mark.parametrize("qk_norm", [True, False])
def test_bfloat16_stays_close_to_float32(random_model, qk_norm):
    model, half = random_model(qk_norm=qk_norm), random_model(qk_norm=qk_norm).bfloat16()
    ids = torch.randint(0, 512, (2, 64))
    with torch.no_grad():
        exact = model(ids)
        with torch.autocast("cpu", torch.bfloat16):
            autocast = model(ids)
        for logits in (autocast, half(ids)):
            assert logits.dtype == torch.float32
            assert F.cosine_similarity(logits, exact, dim=-1).min() > 0.99


def test_all_gradients_flow(random_model):
    for settings in itertools.product([True, False], repeat=2):
        model = random_model(qk_norm=settings[0], tie_embeddings=settings[1])
        model(torch.randint(0, 512, (2, 20)), targets=torch.randint(0, 512, (2, 20))).sum().backward()
        assert all(weight.grad is not None and weight.grad.any() for weight in model.parameters())
