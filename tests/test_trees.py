import jax
import numpy as np

from flaxvid import trees

TREE = {"params": {"stem": {"conv1": {"kernel": 1}, "norm1": {"scale": 2, "bias": 3}}, "head": {"bias": 4}}}


def test_flatten_and_unflatten_are_inverse():
    flat = trees.flatten(TREE)
    assert flat == {
        "params/stem/conv1/kernel": 1,
        "params/stem/norm1/scale": 2,
        "params/stem/norm1/bias": 3,
        "params/head/bias": 4,
    }
    assert trees.unflatten(flat) == TREE
    assert trees.flatten({}) == {}
    assert trees.unflatten({}) == {}


def test_split_and_merge_are_inverse():
    inside, outside = trees.split(TREE, lambda path: "norm" in path)
    assert inside == {"params": {"stem": {"norm1": {"scale": 2, "bias": 3}}}}
    assert outside == {"params": {"stem": {"conv1": {"kernel": 1}}, "head": {"bias": 4}}}
    assert trees.merge(inside, outside) == trees.merge(outside, inside) == TREE
    assert trees.split(TREE, lambda path: False) == ({}, TREE)


def test_a_later_tree_wins():
    assert trees.merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}) == {"a": {"b": 3, "c": 2}}
    assert trees.merge() == {}


def test_the_first_rule_that_matches_the_whole_path():
    rules = ((r"params/head/.*", "head"), (r".*/bias", "bias"), (r".*norm.*", "norm"))
    flat = trees.flatten(TREE)
    assert [trees.first_match(rules, path, "other") for path in flat] == ["other", "norm", "bias", "head"]
    assert trees.first_match((("bias", 1),), "params/head/bias", 0) == 0


def test_a_norm_is_read_off_the_tree():
    channels, kernel = np.ones(3), np.ones((3, 3))
    own = {
        "query_ln": {"scale": channels},
        "LayerNorm_0": {"scale": channels, "bias": channels},
        "normality": {"kernel": kernel, "bias": channels},  # a label's classifier
        "temperature": {"scale": np.ones(())},
        "normalised_conv": {"scale": channels, "kernel": kernel},
        "shifted": {"bias": channels},  # a batch norm without scale, which keeps statistics
    }
    statistics = {"shifted": {"mean": channels, "var": channels}, "queue": {"mean": channels}}
    variables = {"params": {"body": own}, "params_4f": {"stem": {"a": {"scale": channels}}}}
    variables["batch_stats_4f"] = {"body": statistics}
    assert trees.norm_modules(variables) == {"body/query_ln", "body/LayerNorm_0", "body/shifted", "stem/a"}
    shapes = jax.eval_shape(lambda: variables)
    assert trees.norm_modules(shapes) == trees.norm_modules(variables)
