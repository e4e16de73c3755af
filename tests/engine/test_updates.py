"""Every optimizer and clip of Paddle moves a sharded head and its backbone as Paddle alone moves them."""

import numpy as np
import pytest
from optimizer_steps import cases, expected
from ranks import run_ranks

CASES = cases()
RANKS = (1, 3)  # of three ranks, one has no rows where there are two classes


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    """Returns the final weights of all cases, by number of ranks."""
    output = tmp_path_factory.mktemp("optimizers")
    for number in RANKS:
        run_ranks("optimizer_steps.py", number, output)
    return {number: np.load(output / f"{number}.npz") for number in RANKS}


@pytest.mark.core
@pytest.mark.parametrize("name", CASES)
def test_a_step_is_paddles_on_any_number_of_ranks(name, moved):
    wanted = expected(CASES[name])
    for number, found in moved.items():
        if number > 1 and name.startswith(("Lamb", "Lars")):
            assert "use AdamW or Momentum" in str(found[f"{name}/error"])
            continue
        for part, value in enumerate(wanted):
            np.testing.assert_allclose(
                found[f"{name}/{part}"], value, rtol=1e-3, atol=2e-5, err_msg=f"{number} ranks, parameter {part}"
            )
