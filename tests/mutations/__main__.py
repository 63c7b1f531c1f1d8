# SPDX-License-Identifier: Apache-2.0
"""Runs the mutations on this machine's KVM: ``python3 -m tests.mutations [--dangerous] [CLAUSE-GLOB ...]``.

With --dangerous clauses that could harm an unfixed host kernel are run too. A mutation counts where the honest kernel
passes. Prints one JSON line a mutation and a last one with totals; exit status 1 if any clause did not notice, or
ended as an ERROR.
"""

from __future__ import annotations

import fnmatch
import json
import sys
from collections import Counter

from tests.mutations.check import check_all
from tests.mutations.registry import all_mutations


def main() -> int:
    """Run the mutations whose clause matches one of the arguments (default all)."""
    dangerous = "--dangerous" in sys.argv
    patterns = [word for word in sys.argv[1:] if word != "--dangerous"] or ["*"]
    chosen = [m for m in all_mutations() if any(fnmatch.fnmatchcase(m.clause, p) for p in patterns)]
    counts: Counter[str] = Counter()
    for outcome in check_all(chosen, time_scale=10.0, dangerous=dangerous):
        counts[outcome.outcome] += 1
        print(json.dumps(outcome.to_json()), flush=True)
    print(json.dumps({"totals": dict(counts)}))
    return 1 if counts["unnoticed"] or counts["error"] else 0


if __name__ == "__main__":
    sys.exit(main())
