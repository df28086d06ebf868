from dataclasses import replace

import pytest
import torch

from polytoken.errors import UserError
from polytoken.generators import (
    AutoregressiveGenerator,
    AutoregressiveHead,
    LinearHead,
    MultiLinearHead,
    RotaryCache,
    SubTokenNoise,
)
from polytoken.generators.heads import HeadLoss
from polytoken.sampling import CategoricalSampler, categorical
from polytoken.specs import LatentSpec, Tokens, TokenSpec
from tests.support.generators import (
    GRID,
    TRUNK,
    build_generator,
    per_code,
    random_codes,
    random_tokens,
    small_generator,
)


def test_initialisation() -> None:
    torch.manual_seed(0)
    trunk = replace(TRUNK, dim=128, num_heads=4)
    generator = build_generator(TokenSpec((64, 64), (GRID,)), 50, trunk, AutoregressiveHead(1))
    for name, parameter in generator.named_parameters():
        if name.startswith("head.outputs") or name.endswith("bias"):
            assert parameter.abs().max() == 0, name
        elif parameter.ndim == 2:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05), name
        else:
            assert torch.equal(parameter, torch.ones_like(parameter)), name


def test_one_codebook_has_no_aggregation_layer() -> None:
    assert small_generator(1, LinearHead()).aggregation is None
    assert small_generator(2, aggregation="sum").aggregation is None
    assert small_generator(2).aggregation.weight.shape == (32, 64)


def test_loss_is_the_mean_over_sub_codes() -> None:
    generator = small_generator(3)
    loss = generator.loss(*random_tokens(generator, 2))
    assert loss.total.item() == pytest.approx(per_code(loss).mean().item())
    assert loss.name == "nll" and loss.unit == "nats" and not loss.is_bound and loss.statistics == {}


def test_labels_are_dropped_in_training_only() -> None:
    generator = small_generator(1, LinearHead(), trunk=replace(TRUNK, class_dropout=0.5))
    for module in generator.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    codes, labels = random_codes(generator, 1)
    codes, labels = codes.expand(64, -1, -1), labels.expand(64)
    clean = generator.hidden(codes, labels)
    assert torch.allclose(clean, clean[:1].expand_as(clean), atol=1e-6)
    hidden = generator.train().hidden(codes, labels)
    dropped = ((hidden - clean).abs().amax((1, 2)) > 1e-4).float().mean().item()
    assert 0.25 < dropped < 0.75


def test_noise_changes_inputs_but_not_targets() -> None:
    """With noise on all sub-codes, hidden states change with the trunk's input, targets do not."""
    for where in ("trunk", "head", "both"):
        generator = small_generator(2, noise=SubTokenNoise(1.0, where=where))
        tokens, labels = random_tokens(generator, 4)
        codes, seen = tokens.codes, {}
        generator._hidden = lambda read, labels, taps, seen=seen: (
            seen.update(trunk=read) or (torch.zeros(4, 12, 32), {})
        )
        generator.head.loss = lambda hidden, targets, tables, read, seen=seen: (
            seen.update(targets=targets, head=read) or HeadLoss(torch.zeros(()), torch.zeros(2))
        )
        assert generator.train().loss(tokens, labels).statistics["noise_rate"] == 1
        assert torch.equal(seen["targets"], codes)
        assert torch.equal(seen["trunk"], codes) is (where == "head")
        assert torch.equal(seen["head"], codes) is (where == "trunk")
        assert generator.eval().loss(tokens, labels).statistics == {}
        assert torch.equal(seen["trunk"], codes)
        assert torch.equal(seen["head"], codes)


@pytest.mark.parametrize("where", ["head", "both"])
@pytest.mark.parametrize(("k", "head"), [(2, MultiLinearHead), (1, AutoregressiveHead)])
def test_noise_that_no_head_reads_is_refused(where: str, k: int, head: type) -> None:
    generator = small_generator(k, head(), noise=SubTokenNoise(0.1, where=where))
    with pytest.raises(UserError, match=f"noise.where is {where}, and {head.__name__} reads none of a position's {k}"):
        generator.check_training()
    small_generator(k, head(), noise=SubTokenNoise(0.1)).check_training()
    small_generator(2, noise=SubTokenNoise(0.1, where=where)).check_training()


@pytest.mark.parametrize("guidance", [1.0, 2.0, [1.0, 3.0]])
def test_samples_do_not_depend_on_the_batch(guidance: float | list[float]) -> None:
    generator = small_generator(2)
    labels = torch.tensor([0, 1, 2, 3, 4, 0, 1])
    sampler = CategoricalSampler(guidance=guidance)
    whole = generator.generate(labels, sampler, seed=3)
    parts = [
        generator.generate(labels[start:end], sampler, seed=3, first_index=start)
        for start, end in ((0, 1), (1, 5), (5, 7))
    ]
    assert torch.equal(torch.cat(parts), whole)
    assert whole.shape == (7, 2, 12)
    assert not torch.equal(whole[0], whole[5])  # the same class, another row
    assert not torch.equal(generator.generate(labels, sampler, seed=4), whole)
    assert not generator.training


def test_samples_follow_the_distribution() -> None:
    """The first sub-code of 4,000 rows against the probabilities of the teacher-forced pass."""
    generator = small_generator(1, LinearHead())
    labels = torch.zeros(4000, dtype=torch.int64)
    codes = generator.generate(labels, CategoricalSampler(), seed=0)
    hidden = generator.hidden(codes[:1], labels[:1])[:, 0]
    expected = generator.head.outputs[0](generator.head.norm(hidden)).softmax(-1)[0]
    counts = torch.bincount(codes[:, 0, 0], minlength=11)
    chi_squared = ((counts - 4000 * expected).square() / (4000 * expected)).sum()
    assert chi_squared < 29.6  # 10 degrees of freedom, 0.1 %


def test_guidance_moves_samples_towards_the_class() -> None:
    """The log-ratio of class to null class grows with the guidance of the samples."""
    generator = small_generator(1, LinearHead())
    labels = torch.full((64,), 2)
    ratios = []
    for guidance in (0.0, 1.0, 3.0):
        codes = generator.generate(labels, CategoricalSampler(guidance=guidance), seed=0)
        conditional = generator.loss(Tokens(codes=codes), labels).total
        ratios.append((generator.loss(Tokens(codes=codes), torch.full((64,), 5)).total - conditional).item())
    assert ratios == sorted(ratios)
    assert ratios[2] > ratios[0] + 0.1


@pytest.mark.parametrize(
    ("sampler", "rows"),
    [
        (CategoricalSampler(), [3] * 12),
        (CategoricalSampler(guidance=2.0), [6] * 12),
        (CategoricalSampler(guidance=[1.0, 2.0]), [6] * 12),
        (CategoricalSampler(guidance=2.0, guidance_schedule="interval", interval=(0.25, 0.5)), [6] * 6 + [3] * 6),
    ],
)
def test_the_unconditional_half_runs_only_where_needed(sampler: CategoricalSampler, rows: list[int]) -> None:
    generator = small_generator(2)
    seen = []
    step = generator.trunk.step
    generator.trunk.step = lambda features, *rest: seen.append(len(features)) or step(features, *rest)
    generator.generate(torch.tensor([0, 1, 2]), sampler, seed=0)
    assert seen == rows


def test_each_sub_code_has_its_own_guidance_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    scales = []
    monkeypatch.setattr(categorical, "guide", lambda logits, scale: scales.append(float(scale)) or logits[:3])
    small_generator(2).generate(torch.tensor([0, 1, 2]), CategoricalSampler(guidance=[1.5, 3.0]), seed=0)
    assert scales == [1.5, 3.0] * 12


def test_sampling_disables_dropout() -> None:
    generator, labels = small_generator(2), torch.tensor([0, 1, 2])
    expected = generator.generate(labels, CategoricalSampler(guidance=2.0), seed=0)
    assert torch.equal(generator.train().generate(labels, CategoricalSampler(guidance=2.0), seed=0), expected)
    assert generator.training


def test_dropping_the_unconditional_half_changes_no_sample() -> None:
    """An interval's samples equal those of the same scales with both halves kept to the end."""
    generator = small_generator(2)
    labels = torch.tensor([0, 1, 2])
    sampler = CategoricalSampler(guidance=3.0, guidance_schedule="interval", interval=(0.0, 0.5))
    short = generator.generate(labels, sampler, seed=0)
    object.__setattr__(sampler, "guided_steps", lambda *_: 12)
    assert torch.equal(generator.generate(labels, sampler, seed=0), short)
    assert not torch.equal(generator.generate(labels, CategoricalSampler(guidance=3.0), seed=0), short)


def test_caches_are_allocated_once_per_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    build = RotaryCache.__init__
    monkeypatch.setattr(RotaryCache, "__init__", lambda self, *args: made.append(args[0]) or build(self, *args))
    small_generator(2, AutoregressiveHead(3)).generate(torch.tensor([0]), CategoricalSampler(guidance=2.0), seed=0)
    assert made == [2, 3]  # blocks of the trunk, of the head


def test_sampling_in_bfloat16() -> None:
    generator = small_generator(2).bfloat16()
    assert generator.generate(torch.tensor([0, 1]), CategoricalSampler(guidance=2.0), seed=0).shape == (2, 2, 12)
    generator = small_generator(2)
    with torch.autocast("cpu", torch.bfloat16):
        assert generator.generate(torch.tensor([0, 1]), CategoricalSampler(guidance=2.0), seed=0).shape == (2, 2, 12)


def test_invalid_input_is_rejected() -> None:
    generator = small_generator(2)
    codes, labels = random_codes(generator, 2)
    with pytest.raises(ValueError, match=r"\(2, 2, 10\).*2 sub-codes, 12 positions on a grid of 3 × 4"):
        generator.loss(Tokens(codes=codes[:, :, :10]), labels)
    with pytest.raises(ValueError, match="2 sub-codes"):
        generator.loss(Tokens(codes=codes[:, :1]), labels)
    with pytest.raises(ValueError, match="these tokens are latents"):
        generator.loss(Tokens(latents=torch.zeros(2, 4, 3, 4)), labels)
    for bad in (5, -1):
        with pytest.raises(ValueError, match="classes 0 to 4"):
            generator.generate(torch.tensor([0, bad]), CategoricalSampler(), seed=0)
    with pytest.raises(ValueError, match="int64"):
        generator.generate(torch.tensor([0.0]), CategoricalSampler(), seed=0)
    with pytest.raises(ValueError, match="top_k has 3 values and the generator writes 2"):
        generator.generate(labels, CategoricalSampler(top_k=[1, 2, 3]), seed=0)
    with pytest.raises(ValueError, match="at least one class"):
        build_generator(TokenSpec((4,), (GRID,)), 0, TRUNK, LinearHead())
    with pytest.raises(ValueError, match="it must be concatenation or sum"):
        build_generator(TokenSpec((4, 4), (GRID,)), 5, TRUNK, MultiLinearHead(), "product")


def test_taps_are_the_outputs_of_blocks() -> None:
    generator = small_generator(2)
    tokens, labels = random_tokens(generator, 3)
    outputs = []
    for block in generator.trunk.blocks:
        block.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    loss = generator.loss(tokens, labels, taps=(1, 2))
    assert (generator.depth, generator.width, generator.hidden_grid) == (2, 32, (3, 4))
    assert [*loss.hidden] == [1, 2] and all(torch.equal(loss.hidden[i], outputs[i - 1]) for i in (1, 2))
    assert torch.equal(loss.hidden[2], generator.hidden(tokens.codes, labels))
    assert generator.loss(tokens, labels).hidden == {}
    for tap in (0, 3):
        with pytest.raises(UserError, match=rf"block {tap} is tapped and AutoregressiveGenerator has blocks 1 to 2"):
            generator.loss(tokens, labels, taps=[tap])


def test_latents_are_rejected() -> None:
    generator = AutoregressiveGenerator(TRUNK, LinearHead())
    with pytest.raises(UserError, match="this store holds latents"):
        generator.connect(LatentSpec(1, (3, 4), (0.0,), (1.0,)), 5)
