"""The co-activation matrix of an SAE, as a batch job: how often two features fire on one token.

    python examples/coactivation.py LAKE SAE CORPUS out.npz [--workers N | --scheduler ADDRESS]

Each file of codes is one task; the matrix is the sum of what they find. It is sparse: of 16,384
features only the pairs that ever met take memory. The diagonal has each feature's own firings.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import pandas as pd
from dask.distributed import Client, LocalCluster

import scopelake


def pairs(firings: pd.DataFrame) -> pd.DataFrame:
    """Count the pairs of features that fire on the same token, BOS left out.

    Args:
        firings: codes of whole contexts, indexed by context: position, feature, kind.

    Returns:
        one, other (features, one <= other) and n (tokens).
    """
    rows = firings[firings["kind"] != "bos"].reset_index()[["context", "position", "feature"]]
    both = rows.merge(rows, on=["context", "position"], suffixes=("", "_other"))
    both = both[both["feature"] <= both["feature_other"]]
    counted = both.groupby(["feature", "feature_other"]).size().reset_index()
    counted.columns = pd.Index(["one", "other", "n"])
    return counted.astype("int64")


def coactivation(lake: scopelake.Lake, sae: str, corpus: str) -> pd.DataFrame:
    """Return how many tokens each pair of features shares: one, other, n, sorted."""
    codes = lake.codes(sae=sae, corpus=corpus, columns=["position", "feature", "kind"])
    meta = pd.DataFrame({"one": [0], "other": [0], "n": [0]}).astype("int64").iloc[:0]
    found = codes.map_partitions(pairs, meta=meta)
    counted = found.groupby(["one", "other"])["n"].sum(split_out=1).compute()
    return counted.sort_index().reset_index()


def main(argv: list[str] | None = None) -> None:
    """Write the matrix as COO arrays: one, other, n."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("lake")
    parser.add_argument("sae")
    parser.add_argument("corpus")
    parser.add_argument("output")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--scheduler", help="address of a dask scheduler; a local one by default")
    arguments = parser.parse_args(argv)
    cluster: Any = arguments.scheduler or LocalCluster(
        n_workers=arguments.workers, threads_per_worker=1, dashboard_address=None
    )
    with Client(cluster):
        found = coactivation(scopelake.open(arguments.lake), arguments.sae, arguments.corpus)
    np.savez_compressed(arguments.output, **{name: found[name].to_numpy() for name in found})
    print(f"{len(found):,} pairs of features fire on the same tokens")


if __name__ == "__main__":
    main()
