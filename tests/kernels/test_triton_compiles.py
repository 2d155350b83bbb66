"""The GPU's kernels compiled for real GPUs, which takes none: what the interpreter lets pass."""

import json
import os
import subprocess
import sys

import pytest

COMPILE = """
import json, sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from scopelake.kernels import triton_tiles
from scopelake.kernels.triton_encode import Scoring, Tiles

ALIGNED = {"d_in", "x_stride", "w_stride", "row_stride"}

def build(kernel, constants, warps, stages=3, **pointers):
    names = kernel.arg_names
    kinds = {name: pointers.get(name, "i32") for name in names}
    signature = {name: "constexpr" if name in constants else kinds[name] for name in names}
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names) if name in pointers or name in ALIGNED
    }
    source = ASTSource(
        fn=kernel, signature=signature, attrs=attributes,
        constexprs={(names.index(name),): value for name, value in constants.items()},
    )
    options = {"num_warps": warps, "num_stages": stages}
    return compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32), options=options)

t, s, k = Tiles(), Scoring(), triton_tiles
shape = {"BM": t.tokens, "BN": t.features, "BK": t.inputs, "GROUP": t.group, "UPCAST": False}
of_screen = dict(x="*bf16", w="*bf16", least="*fp32", slack="*fp32", norm="*fp32", words="*i32")
screens = [
    build(k.screen_tiles, shape | {"EVEN": even}, t.warps, t.stages, **of_screen)
    for even in (True, False)
]
build(k.count_bits, {"PART": 64}, 1, words="*i32", counts="*i32")
build(k.list_features, {"PART": 64}, 1, words="*i32", starts="*i64", features="*i32")
for x in ("*bf16", "*fp16", "*fp32", "*fp64"):
    for rows in ("*bf16", "*fp32"):
        build(
            k.score_features, {"BLOCK": s.features, "DEPTH": s.products}, s.warps, x=x, rows=rows,
            bias="*fp32", starts="*i64", features="*i32", scores="*fp32",
        )
print(json.dumps({
    "shared": [one.metadata.shared for one in screens],
    "wgmma": ["wgmma" in one.asm["ptx"] for one in screens],
}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "most_shared", "has_wgmma"), [(80, 101_376, False), (90, 232_448, True)]
)
def test_every_kernel_compiles(capability, most_shared, has_wgmma, tmp_path):
    """Within the shared memory that the smallest card of a kind has (8.6 has less than 8.0)."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, str(capability)], env=environment, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert max(found["shared"]) <= most_shared
    assert found["wgmma"] == [has_wgmma] * 2
