"""Layouts of attention blocks: each is proved on what the model itself computes."""

from __future__ import annotations

import math

import pytest
import torch
import transformers
from einops import rearrange
from torch import nn
from torch.nn import functional

from benchmarks.common import workload
from benchmarks.learning_rate import model as lr_model
from benchmarks.learning_rate import other_models as lr_other_models
from stableopt.commands.demo.model import GPT, ModelOptions
from stableopt.errors import ConfigError
from stableopt.layouts import (
    AttentionLayout,
    NormLayout,
    Projection,
    check_layout,
    find_attention,
    key_rows,
    logit_bound,
    query_rows,
)
from tests.layouts.models import SMALL, TOKENS, TRANSFORMERS, gpt2, opt
from tests.layouts.probe import logits_of, prove, spread


def run(model):
    return lambda: logits_of(lambda: model(TOKENS))


class TestTransformers:
    @pytest.mark.parametrize("name", TRANSFORMERS)
    @pytest.mark.parametrize("at", [0, 1])
    def test_what_is_found_is_what_the_model_computes(self, name, at):
        model = spread(TRANSFORMERS[name]()).eval()
        layouts = find_attention(model)
        assert len(layouts) == 2
        prove(model, layouts, run(model), at=at)

    def test_gpt2_is_packed_and_transposed(self):
        first, _ = find_attention(gpt2())
        assert first.key == Projection(
            weight="transformer.h.0.attn.c_attn.weight",
            start=32,
            transposed=True,
            bias="transformer.h.0.attn.c_attn.bias",
        )
        assert first.norm.gain == "transformer.h.0.ln_1.weight"
        assert first.norm.bias == "transformer.h.0.ln_1.bias"
        assert not first.rope

    def test_cross_attention_of_gpt2_is_not_mistaken(self):
        config = transformers.GPT2Config(
            n_embd=32, n_head=4, n_layer=2, vocab_size=50, add_cross_attention=True
        )
        config.bos_token_id = config.eos_token_id = 1
        found = find_attention(transformers.GPT2LMHeadModel(config))
        assert [layout.name for layout in found] == [
            "transformer.h.0.attn",
            "transformer.h.1.attn",
        ]

    def test_llama_rotates_and_shares_keys(self):
        first, _ = find_attention(TRANSFORMERS["llama"]())
        assert first.rope
        assert (first.heads, first.key_heads) == (4, 2)
        assert first.norm == NormLayout(features=32, gain="model.layers.0.input_layernorm.weight")

    def test_the_gain_of_gemma_is_one_more_than_its_weight(self):
        first, _ = find_attention(TRANSFORMERS["gemma3"]())
        assert first.norm.gain_offset == first.q_norm.gain_offset == 1.0
        assert first.q_norm.gain == "model.layers.0.self_attn.q_norm.weight"
        assert first.scale == 1 / 16  # query_pre_attn_scalar, not the head_dim

    def test_a_norm_after_the_block_is_not_one_before_it(self):
        first, second = find_attention(TRANSFORMERS["olmo2"]())
        assert first.norm is second.norm is None
        first, second = find_attention(opt(before=False))
        assert first.norm is second.norm is None

    def test_bert_is_fed_by_the_embeddings_and_then_by_the_layer_before(self):
        model = TRANSFORMERS["bert"]()
        first, second = find_attention(model)
        assert first.norm.gain == "embeddings.LayerNorm.weight"
        assert first.dropout == pytest.approx(0.1)
        assert second.norm.gain == "encoder.layer.0.output.LayerNorm.weight"
        assert second.dropout == 0.0

    def test_dropout_does_not_break_the_bound_of_bert_in_training(self):
        model = spread(TRANSFORMERS["bert"]()).train()
        first, _ = find_attention(model)
        bound = logit_bound(first, dict(model.named_parameters()))
        with torch.random.fork_rng(devices=[]):
            for seed in range(10):
                torch.manual_seed(seed)
                assert (run(model)()[0].abs().amax(1) <= bound).all()

    def test_positions_that_stretch_count(self):
        rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 64.0, "attention_factor": 3.0}
        model = spread(
            transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, rope_parameters=rope))
        ).eval()
        layouts = find_attention(model)
        assert layouts[0].scale == pytest.approx(9 / math.sqrt(8))
        prove(model, layouts, run(model))

    @pytest.mark.parametrize("multi_query", [True, False])
    def test_bigcode_packs_in_two_ways_of_which_one_is_known(self, multi_query):
        config = transformers.GPTBigCodeConfig(
            n_embd=32,
            n_head=4,
            n_layer=2,
            vocab_size=50,
            n_positions=64,
            multi_query=multi_query,
            bos_token_id=1,
            eos_token_id=2,
        )
        model = spread(transformers.GPTBigCodeForCausalLM(config)).eval()
        layouts = find_attention(model)
        if multi_query:
            assert layouts[0].key_heads == 1
            prove(model, layouts, run(model))
        else:
            assert layouts == ()

    def test_attention_without_a_scale_has_none(self):
        config = transformers.GPTNeoConfig(
            hidden_size=32,
            num_layers=1,
            num_heads=4,
            attention_types=[[["global"], 1]],
            vocab_size=50,
            max_position_embeddings=32,
            bos_token_id=1,
            eos_token_id=2,
        )
        assert find_attention(transformers.GPTNeoForCausalLM(config))[0].scale == 1.0


class TestOwnModels:
    def models(self):
        yield GPT(ModelOptions(context=16, width=32, depth=2))
        yield workload.GPT(workload.Size(width=32, layers=2, heads=4))

    def test_the_zoo_is_found(self):
        for model in self.models():
            spread(model)
            layouts = find_attention(model)
            assert [layout.norm.gain for layout in layouts] == [
                f"blocks.{i}.attention_norm.weight" for i in range(2)
            ]
            assert not any(layout.rope for layout in layouts)
            for at in (0, 1):
                prove(model, layouts, run(model), at=at)

    @pytest.mark.parametrize("norm", ["pre", "post", "none"])
    @pytest.mark.parametrize("qk_norm", [False, True])
    def test_a_norm_that_feeds_the_block_only_before_it(self, norm, qk_norm):
        model = lr_model.GPT(lr_model.Shape(width=32, context=16, norm=norm, qk_norm=qk_norm))
        layouts = find_attention(spread(model))
        assert [layout.norm is not None for layout in layouts] == [norm == "pre"] * 2
        assert [layout.q_norm is not None for layout in layouts] == [qk_norm] * 2
        prove(model, layouts, lambda: self.watched(model))

    def watched(self, model):
        """The model multiplies by itself: take what it takes."""
        found = []
        original = torch.Tensor.masked_fill

        def record(tensor, mask, value):
            if value == -math.inf:
                found.append(tensor.detach().double().transpose(0, 1).flatten(1))
            return original(tensor, mask, value)

        torch.Tensor.masked_fill = record
        try:
            with torch.no_grad():
                model(TOKENS)
        finally:
            torch.Tensor.masked_fill = original
        return found


class TestTorch:
    def logits(self, model, x):
        """The inputs and outputs of every MultiheadAttention, and its own formula."""
        found = []

        def look(module, args, kwargs, _):
            query, key = args[0], args[1]
            width, heads = module.embed_dim, module.num_heads
            if module.in_proj_weight is not None:
                wq, wk, _ = module.in_proj_weight.chunk(3)
            else:
                wq, wk = module.q_proj_weight, module.k_proj_weight
            bq, bk, _ = module.in_proj_bias.chunk(3)
            q, k = functional.linear(query, wq, bq), functional.linear(key, wk, bk)
            q, k = (rearrange(v, "b t (h d) -> h b t d", h=heads).double() for v in (q, k))
            logits = q @ k.mT / math.sqrt(width // heads)
            weights = module(query, key, args[2], average_attn_weights=False)[1]
            # Ours are those that the module turns into its weights.
            torch.testing.assert_close(
                logits.softmax(-1).transpose(0, 1).float(), weights, rtol=1e-3, atol=1e-4
            )
            found.append(logits.flatten(1))

        hooks = []
        for module in model.modules():
            if isinstance(module, nn.MultiheadAttention):
                hooks.append(module.register_forward_hook(self.once(look), with_kwargs=True))
        with torch.no_grad():
            model(*x)
        for hook in hooks:
            hook.remove()
        return [logits.detach() for logits in found]

    def once(self, look):
        """A hook that may call its own module."""
        busy = []

        def hook(*args):
            if not busy:
                busy.append(True)
                look(*args)
                busy.clear()

        return hook

    @pytest.mark.parametrize("norm_first", [True, False])
    @pytest.mark.parametrize("at", [0, 1])
    def test_encoder(self, norm_first, at):
        layer = nn.TransformerEncoderLayer(
            16, 4, 32, dropout=0.0, norm_first=norm_first, batch_first=True
        )
        model = spread(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
        layouts = find_attention(model)
        gains = [layout.norm and layout.norm.gain for layout in layouts]
        before = ["layers.0.norm1.weight", "layers.1.norm1.weight"]
        assert gains == (before if norm_first else [None, "layers.0.norm2.weight"])
        x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
        prove(model, layouts, lambda: self.logits(model, [x]), at=at)

    def test_decoder_and_its_cross_attention(self):
        layer = nn.TransformerDecoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
        model = spread(nn.TransformerDecoder(layer, 2))
        layouts = {layout.name: layout for layout in find_attention(model)}
        assert list(layouts) == [
            f"layers.{i}.{kind}" for i in range(2) for kind in ("self_attn", "multihead_attn")
        ]
        assert layouts["layers.1.self_attn"].norm.gain == "layers.0.norm3.weight"
        assert layouts["layers.0.multihead_attn"].norm is None
        x, memory = torch.randn(2, 2, 5, 16, generator=torch.Generator().manual_seed(0))
        for at in range(3):
            prove(model, list(layouts.values()), lambda: self.logits(model, [x, memory]), at=at)

    def test_separate_weights_of_other_dimensions(self):
        model = spread(nn.MultiheadAttention(16, 4, kdim=6, vdim=7, batch_first=True))
        layouts = find_attention(model)
        x, k, v = (
            torch.randn(2, 5, n, generator=torch.Generator().manual_seed(0)) for n in (16, 6, 7)
        )
        prove(model, layouts, lambda: self.logits(model, [x, k, v]))

    def test_a_block_of_a_user(self):
        model = spread(UserBlock())
        (layout,) = layouts = find_attention(model)
        assert (layout.norm.gain, layout.norm.centred) == ("norm.weight", True)
        x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
        prove(model, layouts, lambda: self.logits(model, [x]))

    def test_keys_that_are_parameters_are_left_out(self):
        assert find_attention(nn.MultiheadAttention(16, 4, add_bias_kv=True)) == ()


class UserBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.norm = nn.LayerNorm(16)

    def forward(self, x):
        h = self.norm(x)
        return x + self.attention(h, h, h)[0]


class RmsNorm(nn.Module):
    """The RMSNorm of timm, in its names."""

    def __init__(self, channels, eps=1e-6):
        super().__init__()
        self.normalized_shape = (channels,)
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class Attention(nn.Module):
    """The attention of timm's vision transformers, in its names."""

    def __init__(self, dim, num_heads, qkv_bias, qk_norm, norm_layer):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = self.head_dim**-0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.q_norm = norm_layer(self.head_dim) if qk_norm else nn.Identity()
        self.k_norm = norm_layer(self.head_dim) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def forward(self, x, attn_mask=None):
        batch, count, width = x.shape
        qkv = self.qkv(x).reshape(batch, count, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        x = functional.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.proj(x.transpose(1, 2).reshape(batch, count, width))


class TimmBlock(nn.Module):
    def __init__(self, dim=32, heads=4, qkv_bias=True, qk_norm=False, norm_layer=nn.LayerNorm):
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.attn = Attention(dim, heads, qkv_bias, qk_norm, norm_layer)
        self.ls1 = nn.Identity()
        self.drop_path1 = nn.Identity()

    def forward(self, x, attn_mask=None):
        return x + self.drop_path1(self.ls1(self.attn(self.norm1(x), attn_mask=attn_mask)))


class ResPostBlock(TimmBlock):
    def forward(self, x, attn_mask=None):
        return x + self.drop_path1(self.norm1(self.attn(x, attn_mask=attn_mask)))


def patches():
    return torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(3))


class TestTimm:
    @pytest.mark.parametrize("norm_layer", [nn.LayerNorm, RmsNorm])
    @pytest.mark.parametrize("qk_norm", [False, True])
    def test_blocks(self, norm_layer, qk_norm):
        model = spread(
            nn.Sequential(*(TimmBlock(norm_layer=norm_layer, qk_norm=qk_norm) for _ in "ab"))
        )
        layouts = find_attention(model)
        assert layouts[1].norm.gain == "1.norm1.weight"
        assert layouts[0].norm.centred is (norm_layer is nn.LayerNorm)
        for at in (0, 1):
            prove(model, layouts, lambda: logits_of(lambda: model(patches())), at=at)

    def test_the_same_names_after_the_attention(self):
        model = spread(ResPostBlock())
        (layout,) = layouts = find_attention(model)
        assert layout.norm is None
        prove(model, layouts, lambda: logits_of(lambda: model(patches())))


class Generic(nn.Module):
    """Attention by hand, its projections called as the case says."""

    def __init__(self, names=("q_proj", "k_proj"), heads="num_heads", kv_heads=4, **attributes):
        super().__init__()
        self.names, self.count = names, kv_heads
        setattr(self, heads, 4)
        self.ln = nn.LayerNorm(16)
        self.add_module(names[0], nn.Linear(16, 16))
        self.add_module(names[1], nn.Linear(16, 4 * kv_heads))
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        x = self.ln(x)
        query, key = self.project(x)
        q = rearrange(query, "b t (h d) -> b h t d", h=4)
        k = rearrange(key, "b t (h d) -> b h t d", h=self.count)
        return functional.scaled_dot_product_attention(q, k, k, enable_gqa=True)

    def project(self, x):
        return tuple(getattr(self, name)(x) for name in self.names)


class TestGeneric:
    @pytest.mark.parametrize(
        "names", [("q_proj", "k_proj"), ("query", "key"), ("wq", "wk"), ("to_q", "to_k")]
    )
    @pytest.mark.parametrize(
        "heads", ["num_heads", "n_heads", "n_head", "heads", "num_attention_heads"]
    )
    @pytest.mark.parametrize("kv_heads", [4, 2])
    def test_names(self, names, heads, kv_heads):
        model = spread(Generic(names, heads, kv_heads))
        layouts = find_attention(model)
        # Read through ``getattr`` nobody can tell what feeds them.
        assert layouts[0].norm is None
        x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
        prove(model, layouts, lambda: logits_of(lambda: model(x)))

    def test_the_head_count_of_a_config(self):
        model = Generic()
        model.config = transformers.PretrainedConfig(num_attention_heads=2)
        del model.num_heads
        assert find_attention(model)[0].heads == 2

    @pytest.mark.parametrize(
        "attributes",
        [
            {"logit_scale": nn.Parameter(torch.ones(4))},
            {"head_dim": 8},
            {"q_norm": nn.GroupNorm(1, 4), "k_norm": nn.GroupNorm(1, 4)},
            {"q_norm": nn.LayerNorm(4)},
        ],
    )
    def test_what_does_something_else_is_left_out(self, attributes):
        assert find_attention(Generic(**attributes)) == ()

    def test_a_weight_that_is_computed_is_left_out(self):
        model = Generic()
        nn.utils.parametrizations.weight_norm(model.q_proj)
        assert find_attention(model) == ()

    def test_modules_without_attention_are_left_out(self):
        assert find_attention(lr_other_models.Lstm()) == ()
        assert find_attention(nn.Linear(4, 12)) == ()


class TestWhatFeeds:
    """Forwards that must, and must not, be taken for a norm before the projection."""

    def find(self, forward, **attributes):
        model = type("Reader", (ReaderBase,), {"forward": forward})()
        for name, value in attributes.items():
            setattr(model, name, value)
        (layout,) = find_attention(model)
        return None if layout.norm is None else layout.norm.gain, layout.dropout

    @pytest.mark.parametrize("p", [0.0, 0.25])
    def test_dropout_between_is_known(self, p):
        def forward(self, x):
            return self.qkv(self.drop(self.norm(x)))

        assert self.find(forward, drop=nn.Dropout(p)) == ("norm.weight", p)

    def test_branches_that_agree(self):
        def forward(self, x, mask=None):
            h = self.norm(x)
            if mask is None:
                return self.qkv(h)
            return self.qkv(h.contiguous())

        assert self.find(forward)[0] == "norm.weight"

    def test_a_branch_that_cannot_be_taken(self):
        def forward(self, x):
            h = self.norm(x) if self.before else x
            return self.qkv(h)

        assert self.find(forward, before=True)[0] == "norm.weight"
        assert self.find(forward, before=False)[0] is None

    def test_what_is_uncertain_is_unknown(self):
        def branches(self, x, mask=None):
            h = self.norm(x)
            if mask is not None:
                h = x
            return self.qkv(h)

        def residual(self, x):
            h = self.norm(x)
            h = h + x
            return self.qkv(h)

        def in_place(self, x):
            h = self.norm(x)
            h.add_(x)
            return self.qkv(h)

        def augmented(self, x):
            h = self.norm(x)
            h += x
            return self.qkv(h)

        def written(self, x):
            h = self.norm(x)
            h[:, 0] = x[:, 0]
            return self.qkv(h)

        def looped(self, x):
            h = self.norm(x)
            for _ in range(2):
                h = self.qkv(h)[..., :16]
            return h

        def comprehension(self, x):
            h = self.norm(x)
            return [self.qkv(h) for h in (x, h)]

        def twice(self, x):
            return self.qkv(self.norm(x)), self.qkv(x)

        def attempted(self, x):
            try:
                return self.qkv(self.norm(x))
            except RuntimeError:
                return self.qkv(x)

        def other(self, x):
            return self.qkv(torch.cat([self.norm(x)], -1))

        def doubled(self, x):
            return self.qkv(2 * self.norm(x))

        def tuple_of(self, x):
            h, g = self.norm(x), x
            return self.qkv(g), h

        cases = (
            branches, residual, in_place, augmented, written, looped,
            comprehension, twice, attempted, other, doubled, tuple_of,
        )  # fmt: skip
        for forward in cases:
            assert self.find(forward)[0] is None, forward.__name__

    def test_source_that_is_not_there_is_unknown(self):
        space = {}
        exec("def forward(self, x):\n    return self.qkv(self.norm(x))", space)
        assert self.find(space["forward"])[0] is None

    def test_another_function_than_a_norm_is_unknown(self):
        class ScaledNorm(nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = nn.Parameter(torch.ones(16))

            def forward(self, x):
                return 3 * self.weight * x / x.norm(dim=-1, keepdim=True)

        def forward(self, x):
            return self.qkv(self.norm(x))

        assert self.find(forward, norm=ScaledNorm())[0] is None
        assert self.find(forward, norm=nn.BatchNorm1d(16))[0] is None
        assert self.find(forward, norm=nn.LayerNorm([2, 16]))[0] is None


class ReaderBase(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_heads = 4
        self.norm = nn.LayerNorm(16)
        self.qkv = nn.Linear(16, 48)


class TestWrappers:
    def test_names_are_those_of_the_bare_model(self):
        model = GPT(ModelOptions(context=16, width=32, depth=1))
        expected = find_attention(model)
        assert find_attention(torch.compile(model, backend="eager")) == expected
        assert find_attention(Wrapper(model)) == expected
        model.blocks[0].attention = torch.compile(model.blocks[0].attention, backend="eager")
        assert find_attention(model) == expected

    def test_a_model_on_no_device(self):
        with torch.device("meta"):
            model = GPT(ModelOptions(context=16, width=32, depth=1))
        (layout,) = find_attention(model)
        assert layout.norm.gain == "blocks.0.attention_norm.weight"


class Wrapper(nn.Module):
    """Named as DistributedDataParallel names what it wraps."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args):
        return self.module(*args)


class TestByHand:
    def layout(self, **changes):
        options = {
            "name": "attn",
            "query": Projection(weight="w", bias="b"),
            "key": Projection(weight="w", start=16, bias="b"),
            "heads": 4,
            "head_dim": 4,
            "norm": NormLayout(features=16, gain="g"),
        }
        return AttentionLayout(**{**options, **changes})

    def parameters(self):
        return {"w": torch.arange(48.0 * 16).view(48, 16), "b": torch.ones(48), "g": torch.ones(16)}

    def test_rows_are_views(self):
        parameters = self.parameters()
        weight, bias = query_rows(self.layout(), parameters)
        weight[1] = 0
        bias[1] = 0
        assert parameters["w"][4:8].eq(0).all()
        assert parameters["w"].eq(0).sum() == 4 * 16 + 1
        assert parameters["b"].tolist() == [1.0] * 4 + [0.0] * 4 + [1.0] * 40
        weight, _ = key_rows(self.layout(), parameters)
        assert weight[0, 0].tolist() == parameters["w"][16].tolist()

    def test_a_layout_that_fits_passes(self):
        check_layout(self.layout(), self.parameters())

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"heads": 0}, "heads=0 must be an int of at least 1"),
            ({"kv_heads": 3}, "kv_heads=3 must divide heads=4"),
            ({"scale": -1.0}, "scale=-1.0 must be a number above 0"),
            ({"dropout": 1.0}, "dropout=1.0 must be a probability below 1"),
            ({"query": Projection(weight="w", stride=2)}, "query.stride=2 must be at least"),
            ({"q_norm": NormLayout(features=4)}, "k_norm=None must both be given"),
        ],
    )
    def test_numbers_that_do_not_fit_together_are_refused(self, changes, message):
        with pytest.raises(ConfigError, match=message):
            self.layout(**changes)

    def test_names_and_rows_are_checked(self):
        with pytest.raises(ConfigError, match="weight='' must be the name of a parameter"):
            Projection(weight="")
        with pytest.raises(ConfigError, match="start=-1 must be an int of at least 0"):
            Projection(weight="w", start=-1)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"query": Projection(weight="v")}, "parameter='v' is not known"),
            ({"key": Projection(weight="w", start=40)}, "w has 48 rows, .* up to row 56"),
            ({"key": Projection(weight="w", start=8, transposed=True)}, "w has 16 rows"),
            ({"query": Projection(weight="b")}, r"b \(48,\) must be a matrix"),
            ({"norm": NormLayout(features=8, gain="g")}, "norm.features=8 must be the 16 inputs"),
            ({"norm": NormLayout(features=16, gain="b")}, "must have features=16 entries"),
            (
                {"q_norm": NormLayout(features=5), "k_norm": NormLayout(features=4)},
                "features=5 of the QK-norm must be head_dim=4",
            ),
        ],
    )
    def test_a_layout_that_does_not_fit_the_tensors_is_refused(self, changes, message):
        with pytest.raises(ConfigError, match=message):
            check_layout(self.layout(**changes), self.parameters())
