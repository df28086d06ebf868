"""Scores of read words and of embedded faces, against values by hand."""

import pytest
import torch

from polytoken.errors import UserError
from polytoken.metrics.fidelity import face_scores, text_scores


def test_words_are_compared_without_case_and_spaces() -> None:
    scores = text_scores(["Found", "f ou nd", "", "fond", "founded"], ["found"] * 5)
    assert scores.accuracy == 2 / 5
    assert scores.similarity == pytest.approx((1 + 1 + 0 + 4 / 5 + 5 / 7) / 5)


def test_faces_are_compared_with_their_own_and_with_others() -> None:
    faces = torch.eye(3) * torch.tensor([[1.0], [2.0], [3.0]])  # lengths do not count
    exchanged = torch.tensor([[0.0, 5.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.6, 0.8]])
    scores = face_scores(faces, exchanged)
    assert scores.similarity == pytest.approx(0.8 / 3) and scores.identified == pytest.approx(1 / 3)
    assert scores.others == 0 and face_scores(torch.ones(3, 2), torch.ones(3, 2)).others == pytest.approx(1)
    assert face_scores(faces, faces) == (pytest.approx(1), 0, 1)
    drawn = face_scores(torch.eye(2), torch.tensor([[1.0, 0.0], [0.8, 0.6]]))  # both are nearest to the first face
    assert drawn.identified == 0.5
    with pytest.raises(UserError, match="there are 1 faces"):
        face_scores(faces[:1], faces[:1])
