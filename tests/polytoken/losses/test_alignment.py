import signal
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from polytoken.losses import FeatureAlignment, TokenizerObjective, TokenizerStep
from polytoken.losses.alignment import contrastive_loss
from polytoken.losses.predictors import ClassTokenPredictor, PatchPredictor
from polytoken.specs import Decoded, Encoding
from polytoken.teachers import Teacher, TeacherFeatures
from polytoken.teachers.stand_in import SmallVisionTransformer
from tests.support.ranks import run_on_ranks
from tests.support.tokenizers import tiny_tokenizer


@pytest.fixture
def teacher(tmp_path: Path) -> Teacher:
    torch.manual_seed(0)
    network = SmallVisionTransformer(image_size=16, patch_size=8, width=16, depth=1, num_heads=2)
    network.save(tmp_path / "high.safetensors")
    return Teacher("stand_in", str(tmp_path / "high.safetensors"))


def take_step(objective: TokenizerObjective, batch: int = 3) -> tuple[torch.Tensor, dict, TokenizerStep]:
    tokenizer = tiny_tokenizer()
    objective.connect(tokenizer)
    images = torch.rand(batch, 3, 16, 16) * 2 - 1
    decoded, encoding = tokenizer(images)
    step = TokenizerStep(images, decoded, encoding, tokenizer.last_layer, 0)
    return *objective(step), step


def test_contrastive_loss_against_a_loop() -> None:
    torch.manual_seed(0)
    predictions, targets = torch.randn(4, 8, dtype=torch.float64), torch.randn(4, 8, dtype=torch.float64)
    total = 0.0
    for i in range(4):
        similarities = [
            float(predictions[i] @ targets[j] / predictions[i].norm() / targets[j].norm()) / 0.5 for j in range(4)
        ]
        total -= similarities[i] - float(torch.tensor(similarities, dtype=torch.float64).logsumexp(0))
    assert contrastive_loss(predictions, targets, 0.5, gather=False).item() == pytest.approx(total / 4, rel=1e-6)


def test_contrastive_floor_and_batch_of_one() -> None:
    """A simplex of targets, predicted exactly, reaches the floor for B = 8 and τ = 1: 1.173."""
    simplex = torch.eye(8) - 1 / 8
    assert contrastive_loss(simplex, simplex, 1.0, gather=False).item() == pytest.approx(1.173, abs=5e-4)
    with pytest.raises(ValueError, match="batch of one"):
        contrastive_loss(simplex[:1], simplex[:1], 1.0, gather=False)


def test_contrastive_loss_is_float32_under_autocast() -> None:
    torch.manual_seed(0)
    predictions, targets = torch.randn(8, 64), torch.randn(8, 64)
    expected = contrastive_loss(predictions, targets, 0.01, gather=False)
    with torch.autocast("cpu", torch.bfloat16):
        assert contrastive_loss(predictions, targets, 0.01, gather=False).item() == expected.item()


def test_contrastive_loss_does_without_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, cross_entropy = [], functional.cross_entropy

    def spy(*arguments: torch.Tensor) -> torch.Tensor:
        seen.append(torch.get_float32_matmul_precision())
        return cross_entropy(*arguments)

    monkeypatch.setattr(functional, "cross_entropy", spy)
    torch.set_float32_matmul_precision("high")
    try:
        contrastive_loss(torch.randn(8, 4), torch.randn(8, 4), 0.01, gather=False)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == ["highest"]


def test_the_term_is_the_weighted_sum_of_its_losses(teacher: Teacher) -> None:
    term = FeatureAlignment("high", subspace=1, contrastive=2.0, patch_cosine=3.0, patch_mse=5.0)
    _, parts, step = take_step(TokenizerObjective(alignment_high=term, teachers={"high": teacher}))
    (features,) = teacher.features(step.images)
    part = step.encoding.subspaces[1]
    patches = term.patch_predictor(part)
    expected = (
        2 * contrastive_loss(term.class_predictor(part), features.cls, 1.0, gather=False)
        + 3 * (1 - functional.cosine_similarity(patches, features.patches, dim=-1)).mean()
        + 5 * functional.mse_loss(patches, functional.layer_norm(features.patches, (16,)))
    )
    assert parts["alignment_high"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_gradient_reaches_only_the_guided_subspace(teacher: Teacher) -> None:
    term = FeatureAlignment("high", subspace=1, patch_cosine=1.0)
    loss, _, step = take_step(TokenizerObjective(alignment_high=term, teachers={"high": teacher}))
    aligned = term(step)
    unguided, guided = torch.autograd.grad(aligned, step.encoding.subspaces, allow_unused=True)
    assert unguided is None
    assert guided.abs().sum() > 0


def test_a_teacher_runs_once_a_step_and_only_for_active_terms(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    features = Teacher.features
    monkeypatch.setattr(
        Teacher, "features", lambda self, images, blocks: calls.append(blocks) or features(self, images, blocks)
    )
    both = TokenizerObjective(
        alignment_mid=FeatureAlignment("high", subspace=0, patch_mse=1.0, contrastive=0),
        alignment_high=FeatureAlignment("high", subspace=1),
        terms={"shallow": FeatureAlignment("high", subspace=1, block=1)},
        teachers={"high": teacher},
    )
    take_step(both)
    assert calls == [[None, 1]]
    calls.clear()
    late = FeatureAlignment("high", subspace=1, start_step=7)
    take_step(TokenizerObjective(alignment_high=late, teachers={"high": teacher}))
    assert calls == []


def test_two_blocks_of_one_teacher_guide_one_subspace(tmp_path: Path) -> None:
    """A deep and a shallow target on one subspace come from one forward pass, each with its own features."""
    SmallVisionTransformer(image_size=16, patch_size=8, width=16, depth=3, num_heads=2).save(
        tmp_path / "vit.safetensors"
    )
    teacher = Teacher("stand_in", str(tmp_path / "vit.safetensors"))
    network = teacher._network.on(torch.device("cpu"))
    calls = []
    network.patch_embed.register_forward_hook(lambda *_: calls.append(1))
    objective = TokenizerObjective(
        terms={
            "deep": FeatureAlignment("high", subspace=1, contrastive=0.0, patch_mse=1.0),
            "shallow": FeatureAlignment("high", subspace=1, contrastive=0.0, patch_mse=1.0, block=1),
        },
        teachers={"high": teacher},
    )
    _, parts, step = take_step(objective)
    assert len(calls) == 1
    for name, block in (("deep", None), ("shallow", 1)):
        (features,) = teacher.features(step.images, [block])
        targets = functional.layer_norm(features.patches, (16,))
        predictions = objective.terms[name].patch_predictor(step.encoding.subspaces[1])
        assert parts[name].item() == pytest.approx(functional.mse_loss(predictions, targets).item(), rel=1e-5)
    assert parts["deep"].item() != parts["shallow"].item()


def test_teachers_stay_out_of_the_checkpoint(teacher: Teacher) -> None:
    objective = TokenizerObjective(alignment_high=FeatureAlignment("high", subspace=1), teachers={"high": teacher})
    objective.connect(tiny_tokenizer())
    objective.prepare(torch.device("cpu"))
    assert all("predictor" in name for name in objective.state_dict())
    network = teacher._network.on(torch.device("cpu"))
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        (
            {"alignment_high": FeatureAlignment("high", subspace=2)},
            r"teacher 'high' guides subspace 2.*has 2, counted from 0.*0 … 1",
        ),
        (
            {"alignment_high": FeatureAlignment("clip", subspace=1)},
            r"alignment_high reads teacher 'clip'.*objective.teachers has high",
        ),
        ({"alignment_high": FeatureAlignment("high", subspace=1, block=2)}, "block 2 .* it has blocks 0 to 1"),
        ({"terms": {"alignment_high": FeatureAlignment("high", subspace=1)}}, "'alignment_high', the name of another"),
        ({"terms": {"loss": FeatureAlignment("high", subspace=1)}}, "'loss', the name of another part"),
    ],
)
def test_incompatible_terms_are_rejected_when_connected(terms: dict, message: str, teacher: Teacher) -> None:
    with pytest.raises(ValueError, match=message):
        TokenizerObjective(**terms, teachers={"high": teacher}).connect(tiny_tokenizer())


def test_grids_must_match_only_for_patches(tmp_path: Path) -> None:
    SmallVisionTransformer(image_size=16, patch_size=4, width=16, depth=1).save(tmp_path / "mid.safetensors")
    teachers = {"mid": Teacher("stand_in", str(tmp_path / "mid.safetensors"))}
    patches = FeatureAlignment("mid", subspace=0, patch_cosine=1.0)
    with pytest.raises(ValueError, match="4 × 4 patches and the tokens one of 2 × 2: train one of that grid, or set"):
        TokenizerObjective(alignment_mid=patches, teachers=teachers).connect(tiny_tokenizer())
    published = {"mid": Teacher("dinov2_small")}
    with pytest.raises(ValueError, match="16 × 16 patches and the tokens one of 2 × 2: set its image_size to 28, or"):
        TokenizerObjective(alignment_mid=patches, teachers=published).connect(tiny_tokenizer())
    TokenizerObjective(alignment_mid=FeatureAlignment("mid", subspace=0), teachers=teachers).connect(tiny_tokenizer())


def test_an_alignment_without_loss_is_rejected() -> None:
    with pytest.raises(ValueError, match="contrastive, patch_cosine or patch_mse"):
        FeatureAlignment("high", subspace=1, contrastive=0.0)
    with pytest.raises(ValueError, match="FeatureAlignment: patch_mse is -1.0; it must be at least 0"):
        FeatureAlignment("high", subspace=1, patch_mse=-1.0)


def test_predictors_resample_to_other_grids() -> None:
    part = torch.randn(2, 4, 3, 5)
    assert ClassTokenPredictor(4, 16, (2, 2), depth=1)(part).shape == (2, 16)
    assert PatchPredictor(4, 16)(part).shape == (2, 3, 5, 16)


def aligned(rows: slice) -> dict[str, list[float]]:
    """Loss of some of six images, and its gradients at the predictor and at their codes."""
    torch.manual_seed(0)
    term = FeatureAlignment("high", subspace=0, temperature=0.1, gather=True)
    term.class_predictor = ClassTokenPredictor(4, 16, (2, 2), depth=1)
    part, cls = torch.randn(6, 4, 2, 2)[rows].requires_grad_(), torch.randn(6, 16)[rows]
    features = {"high": TeacherFeatures(cls, torch.empty(len(cls), 2, 2, 16))}
    images = torch.empty(len(cls), 3, 16, 16)
    encoding = Encoding(None, part.detach(), subspaces=(part,))
    loss = term(TokenizerStep(images, Decoded(images), encoding, torch.nn.Parameter(torch.ones(1)), 0, features))
    loss.backward()
    gradients = torch.cat([parameter.grad.flatten() for parameter in term.parameters()])
    return {"loss": [loss.item()], "predictor": gradients.tolist(), "codes": part.grad.flatten().tolist()}


def aligned_on_rank(rank: int) -> dict[str, object]:
    signal.alarm(120)  # a deadlock fails the test
    result: dict[str, object] = {"equal": aligned(slice(0, 3) if rank == 0 else slice(3, 6))}
    for name, rows in (("unequal", (slice(0, 2), slice(2, 6))), ("one each", (slice(0, 1), slice(1, 2)))):
        try:
            result[name] = aligned(rows[rank])["loss"]
        except ValueError as error:
            result[name] = str(error)
    return result


@pytest.mark.cluster
def test_gathered_negatives_make_two_ranks_one_batch(tmp_path: Path) -> None:
    """Averaged over ranks, as DDP does, loss and gradients of 3 + 3 images are those of 6 on one rank."""
    together, ranks = aligned(slice(0, 6)), run_on_ranks(aligned_on_rank, tmp_path)
    equal = [found["equal"] for found in ranks]
    for name in ("loss", "predictor"):
        mean = torch.tensor([found[name] for found in equal]).mean(0)
        torch.testing.assert_close(mean, torch.tensor(together[name]), rtol=1e-5, atol=1e-6, msg=name)
    of_codes = torch.tensor([*equal[0]["codes"], *equal[1]["codes"]]) / 2
    torch.testing.assert_close(of_codes, torch.tensor(together["codes"]), rtol=1e-5, atol=1e-6)
    assert equal[0]["loss"] != pytest.approx(equal[1]["loss"], rel=1e-2), "ranks hold different images"
    for found in ranks:
        assert "equal batches on all ranks, got [2, 4]" in found["unequal"]
        assert "set gather to false" in found["unequal"]
    pair = aligned(slice(0, 2))["loss"]
    assert sum(found["one each"][0] for found in ranks) / 2 == pytest.approx(pair[0], rel=1e-5), "two make a contrast"
