"""Speed, memory and learning, measured: the command line of benches/."""

import sys

from benches.all import AllBench, everything
from benches.bigstore import BigStoreBench, bigstore
from benches.compare import CompareBench, compare
from benches.engine import EngineBench, engine
from benches.evaluation import EvaluationBench, evaluation
from benches.features import FeaturesBench, features
from benches.inspect import InspectBench, inspect
from benches.language import LanguageBench, language
from benches.loader import LoaderBench, loader
from benches.planar import PlanarBench, planar
from benches.policy import PolicyBench, policy
from benches.rollout import RolloutBench, rollout
from benches.success import SuccessBench, success

from ppt_kit.commands import cli

WAYS = {
    "engine": (engine, EngineBench), "loader": (loader, LoaderBench), "bigstore": (bigstore, BigStoreBench),
    "features": (features, FeaturesBench), "policy": (policy, PolicyBench), "planar": (planar, PlanarBench),
    "success": (success, SuccessBench), "language": (language, LanguageBench),
    "evaluation": (evaluation, EvaluationBench), "compare": (compare, CompareBench),
    "rollout": (rollout, RolloutBench), "inspect": (inspect, InspectBench), "all": (everything, AllBench),
}  # fmt: skip
USAGE = f"python scripts/bench.py {'|'.join(WAYS)} [key=value …]"
ABOUT = f"Speed and memory, side by side in one run (ratios are what to read), and learning: {USAGE}."

if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word in WAYS]
    if len(words) != 1 and not {"--help", "-h"} & set(sys.argv):
        print(f"error: say what to measure: {USAGE}", file=sys.stderr)
        sys.exit(2)
    main, schema = WAYS[words[0] if words else "engine"]
    cli.run(main, schema=schema, about=ABOUT, ignore=tuple(words))
