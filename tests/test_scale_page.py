"""docs/scale.md: its tables are what `scopelake.plan` says now, and its arithmetic adds up."""

import re
import shlex
from pathlib import Path

import pytest

import scopelake
from scopelake.cli import main
from scopelake.ingest.cost_plan import lasting, scaled
from scopelake.ingest.families import LAYERS
from scopelake.store.running import PEAKS_DEPTH

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "scale.md"
SIZES = tuple(LAYERS)
EVERY_LAYER = "*_all/*_width_16k_l0_small"
WIDE = "resid_post_all/*_width_262k_l0_big"
TOKENS = 1e9


def planned(size, pattern):
    return scopelake.plan(
        TOKENS,
        model=f"google/gemma-3-{size}-it",
        saes=f"google/gemma-scope-2-{size}-it/{pattern}",
        device="h100",
    )


def dense(size):
    sites = [("resid_post", layer) for layer in range(LAYERS[size].n_layers)]
    return scopelake.plan(TOKENS, model=f"google/gemma-3-{size}-it", dense=sites, device="h100")


def stored(plan, *tables):
    return scaled(sum(plan.table(name).n_bytes for name in tables), "B")


def memory(parts):
    return scaled(sum(part.n_bytes for part in parts), "B")


def coder_row(size, plan):
    took = plan.stages
    stages = (took["forward"], took["encode"], took["write"], took["readout"] + took["finish"])
    cells = [
        size, str(len(plan.coders)),
        scaled(plan.forward_flops.value, "FLOP"), scaled(plan.encode_flops.value, "FLOP"),
        f"{plan.firings.value / plan.tokens:,.0f}",
        stored(plan, "codes", "postings"), stored(plan, "peaks", "samples"),
        f"{plan.n_objects:,}", *map(lasting, stages), lasting(plan.seconds.value),
        memory(plan.device_memory), memory(plan.host_memory),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def dense_row(size, plan):
    cells = [
        size, str(plan.layers_run), scaled(plan.forward_flops.value, "FLOP"),
        stored(plan, "dense"), f"{plan.table('dense').objects:,}",
        scaled(plan.table("dense").n_bytes / plan.table("dense").objects, "B"),
        lasting(plan.stages["forward"]), lasting(plan.stages["write"]),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("size", SIZES)
def test_the_tables_are_what_the_code_says(size):
    page = PAGE.read_text()
    for pattern in (EVERY_LAYER, WIDE):
        assert pattern in page
        assert coder_row(size, planned(size, pattern)) in page
    assert dense_row(size, dense(size)) in page


def test_the_command_that_is_shown_prints_the_row_of_its_size(capsys):
    (block,) = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert main(shlex.split(block.replace("\\\n", " "))[1:]) == 0
    printed, plan = capsys.readouterr().out, planned("4b", EVERY_LAYER)
    for shown in (
        f"{plan.n_objects:,}",
        lasting(plan.seconds.value),
        "10.8 EFLOP",
        "it fits",
    ):
        assert shown in printed


def test_what_does_not_fit_is_said():
    page = PAGE.read_text()
    for size in SIZES:
        for line in planned(size, EVERY_LAYER).misfits:
            assert line in page


def test_products_that_are_written_out_are_right():
    """Every sum, product and quotient on the page, to the digits that are shown."""
    found = re.findall(r"((?:[\d,.]+ [×/+]\s)+[\d,.]+) =\s([\d,.]*\d)", PAGE.read_text())
    assert len(found) >= 8
    for left, right in found:
        value = eval(left.replace(",", "").replace("×", "*"))  # noqa: S307
        shown = right.replace(",", "")
        digits = len(shown.replace(".", "").strip("0")) or 1
        assert value == pytest.approx(float(shown), rel=0.6 * 10 ** (1 - digits)), left


def test_the_depth_of_peaks_is_the_stores():
    assert f"{PEAKS_DEPTH} × (1 + ln(N / {PEAKS_DEPTH}))" in PAGE.read_text()
