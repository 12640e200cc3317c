"""Says what a run needs on a machine that you do not have: python scripts/plan.py --config FILE --target h100:8.

The training step is compiled for the machine, here, on a CPU. Told are the bytes of a device and whether they fit, the
arithmetic, the bytes moved and sent, bounds on a step and on a day, and the largest batch that fits: in words, then as
a line of JSON. Targets are h100:N, N GPUs of one machine, and slices such as v5e:4x4. The data are not opened;
--classes says how many there are. --list prints every field of the recipe, as in scripts/train.py.
"""

import json
import sys

from flaxvid.train.interrupt import end_when_told

if __name__ == "__main__":
    end_when_told("the same command begins anew")  # before the imports, which take seconds

from absl import app, flags

_TARGET = flags.DEFINE_string("target", "", "The machine: h100:8, v5e:4x4, ...")
_CLASSES = flags.DEFINE_integer("classes", 400, "How many classes the data have.", lower_bound=1)


def main(_argv: list[str]) -> None:
    """Plans the recipe; an error of the user's is one line, not a traceback."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    from flaxvid.train.machines import read_target
    from flaxvid.train.origin import with_network
    from flaxvid.train.plan import describe, make_plan

    try:
        recipe = with_network(flags.FLAGS.config)
        target = read_target(_TARGET.value)
        plan = make_plan(recipe, target, _CLASSES.value, lambda text: print(text, file=sys.stderr, flush=True))
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(*describe(plan, recipe), sep="\n")
    print(json.dumps(plan.as_json()))


def parse(argv: list[str]) -> list[str]:
    """Parses the flags and loads the recipe."""
    from flaxvid.train.flags import parse_recipe

    return parse_recipe(argv)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
