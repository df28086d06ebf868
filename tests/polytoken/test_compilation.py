import logging

import pytest
import torch
from torch import nn

from polytoken.compilation import compile_modules

CPU = torch.device("cpu")


def test_a_machine_without_a_compiler_keeps_the_modules_and_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def compile_nothing(function: object) -> object:
        raise RuntimeError("No working C++ compiler found\nlong advice")

    monkeypatch.setattr(torch, "compile", compile_nothing)
    module = nn.Linear(2, 2)
    with caplog.at_level(logging.WARNING):
        assert not compile_modules([module], CPU)
    assert module._compiled_call_impl is None
    assert caplog.messages == [
        "compile is on, but torch.compile does not work here, so nothing is compiled: No working C++ compiler found"
    ]


def test_modules_compile_in_place_and_keep_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.setattr(nn.Module, "compile", lambda self, **_: setattr(self, "_compiled_call_impl", self._call_impl))
    module = nn.Sequential(nn.Linear(2, 2))
    names = [*module.state_dict()]
    assert compile_modules([module, module[0]], CPU)
    assert module._compiled_call_impl is not None and module[0]._compiled_call_impl is not None
    assert [*module.state_dict()] == names
