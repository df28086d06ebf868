import logging
import warnings

import pytest

from commands.cli.noise import quiet


def test_adverts_are_dropped_and_everything_else_stays(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    before = logger.filters[:]
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.INFO):
        quiet()
        logger.info("💡 Tip: For seamless cloud logging …")
        logger.info("GPU available: True")
        warnings.warn("The `srun` command is available on your system but is not used.", stacklevel=1)
        warnings.warn("the loss is not finite", stacklevel=1)
    logger.filters[:] = before
    assert [record.getMessage() for record in caplog.records] == ["GPU available: True"]
    assert [str(one.message) for one in caught] == ["the loss is not finite"]
