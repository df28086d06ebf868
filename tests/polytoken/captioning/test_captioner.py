"""The captioner on small language models of random weights."""

import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from polytoken.captioning import Captioner, PretrainedLanguageModel, SmallLanguageModel
from polytoken.errors import MissingFileError, UserError

FEATURES = torch.randn(3, 5, 2, 2, generator=torch.Generator().manual_seed(0))
CAPTIONS = ["a cat", "two dogs run", "é"]


@pytest.fixture(scope="module")
def language() -> SmallLanguageModel:
    return SmallLanguageModel(width=16, depth=1, num_heads=2)


def captioner(language: SmallLanguageModel, train_language: bool = False) -> Captioner:
    torch.manual_seed(0)
    return Captioner(language, 5, train_language)


def test_the_loss_is_that_of_each_caption_alone(language: SmallLanguageModel) -> None:
    """Padding and the image's positions do not count; each caption's tokens and end do, in float64 here."""
    made = captioner(language)
    network = language.load().double()
    total, count = torch.zeros((), dtype=torch.float64), 0
    for feature, caption in zip(FEATURES, CAPTIONS, strict=True):
        tokens = torch.tensor([*caption.encode(), 256])
        with torch.no_grad():
            prefix = made.projector(feature.flatten(1).T).double()
            rows = torch.cat([prefix, network.get_input_embeddings()(tokens)])
            logits = network(inputs_embeds=rows[None]).logits[0]
        total += functional.cross_entropy(logits[len(prefix) - 1 : -1], tokens, reduction="sum")
        count += len(tokens)
    assert count == 5 + 12 + 2 + 3
    assert float(made.loss(FEATURES, CAPTIONS, 20).detach()) == pytest.approx(float(total / count), rel=1e-5)


def test_long_captions_are_cut(language: SmallLanguageModel) -> None:
    made = captioner(language)
    assert made.loss(FEATURES[:1], ["abcdef"], 3).item() != pytest.approx(made.loss(FEATURES[:1], ["abc"], 9).item())
    torch.testing.assert_close(made.loss(FEATURES[:1], ["abcdef"], 3), made.loss(FEATURES[:1], ["abcxyz"], 3))


@pytest.mark.parametrize("train_language", [False, True])
def test_what_each_stage_trains_and_saves(language: SmallLanguageModel, train_language: bool) -> None:
    made = captioner(language, train_language)
    made.loss(FEATURES, CAPTIONS, 20).backward()
    kinds = {name.split(".")[0] for name, one in made.named_parameters() if one.grad is not None}
    assert kinds == {name.split(".")[0] for name in made.state_dict()}
    assert kinds == ({"projector", "network"} if train_language else {"projector"})


def test_both_stages_start_from_the_same_language_model(language: SmallLanguageModel) -> None:
    one, other = captioner(language), captioner(language, train_language=True)
    torch.testing.assert_close(one.loss(FEATURES, CAPTIONS, 20), other.loss(FEATURES, CAPTIONS, 20), rtol=0, atol=0)
    assert one.generate(FEATURES, 4) == other.generate(FEATURES, 4)


def test_trained_captions_are_generated() -> None:
    """Each image gets its own caption, which ends where it ends; one of them is the shortest."""
    made = captioner(SmallLanguageModel(32, 1, 2), train_language=True)
    optimizer = torch.optim.Adam(made.parameters(), 1e-2)
    for _ in range(120):
        optimizer.zero_grad()
        made.loss(FEATURES, CAPTIONS, 20).backward()
        optimizer.step()
    for beams in (1, 3):
        assert made.eval().generate(FEATURES, 20, beams) == CAPTIONS
    assert made.generate(FEATURES, 3)[0] == "a c"


def test_a_language_model_of_a_folder(language: SmallLanguageModel, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = Tokenizer(models.WordLevel({"<end>": 0, "<unk>": 1, "a": 2, "cat": 3}, unk_token="<unk>"))
    vocabulary.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=vocabulary, eos_token="<end>", unk_token="<unk>").save_pretrained(tmp_path)
    language.load().save_pretrained(tmp_path)
    found = PretrainedLanguageModel(str(tmp_path))
    assert (found.width, found.end, found.encode("a cat")) == (16, 0, [2, 3]) and found.decode([2, 3, 0]) == "a cat"
    weights = zip(found.load().state_dict().values(), language.load().state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in weights)


def test_bad_input_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="language.width is 20: set a multiple of twice language.num_heads=4"):
        SmallLanguageModel(width=20, num_heads=4)
    with pytest.raises(MissingFileError, match=r"nowhere cannot be read .*by `hf download .*nowhere`") as caught:
        PretrainedLanguageModel(str(tmp_path / "nowhere"))
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"install the extra `caption`, pip install '\.\[suite,caption\]'"):
        SmallLanguageModel()
