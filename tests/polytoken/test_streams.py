"""Work on a second stream; without a GPU it is done at once."""

import pytest
import torch

from polytoken.streams import SideStream


def test_the_result_is_finished_when_it_is_waited_for() -> None:
    calls: list[str] = []
    tensor = torch.arange(3)

    def compute() -> torch.Tensor:
        calls.append("computed")
        return tensor + 1

    def finish(result: torch.Tensor) -> torch.Tensor:
        calls.append("finished")
        return 2 * result

    pending = SideStream().run(compute, [tensor], finish)
    assert calls == ["computed"]
    assert pending.wait().tolist() == [2, 4, 6]
    assert calls == ["computed", "finished"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_side_stream_reads_what_the_current_one_has_written() -> None:
    rows = torch.randn(2000, 2000, device="cuda")
    product = rows @ rows @ rows
    pending = SideStream().run(product.sum, [product], lambda result: result.cpu())
    torch.testing.assert_close(pending.wait(), product.sum().cpu())
