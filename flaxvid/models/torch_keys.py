"""The keys that 3-D ResNets of bottlenecks have in files of pytorchvideo, PySlowFast, Caffe2 and mmaction2.

Several families have them: Slow's, CSN, R(2+1)D of bottlenecks, X3D and SlowFast.
"""

from flaxvid.models.spec import KeyTable

NON_LOCAL = (("query", "theta"), ("key", "phi"), ("value", "g"), ("project", "out"))
"""What PySlowFast and Caffe2 call the convolutions of a non-local block."""

CAFFE2_NORM = (("scale", "s"), ("bias", "b"), ("mean", "rm"), ("var", "riv"))


def pytorchvideo_keys(pool: bool = False) -> KeyTable:
    """pytorchvideo's keys of bottlenecks. The pool behind the first stage is a block of its own and counts."""
    return (
        (r"stem/conv1/(conv|norm)", r"blocks.0.\1"),
        *(
            entry
            for stage in (1, 2, 3, 4)
            for place in (f"blocks.{stage + (pool and stage > 1)}.res_blocks",)
            for entry in (
                (rf"body/layer{stage}_(\d+)/conv_([abc])/(conv|norm)", rf"{place}.\1.branch2.\3_\2"),
                (rf"body/layer{stage}_(\d+)/downsample/(conv|norm)", rf"{place}.\1.branch1_\2"),
            )
        ),
        (r"head/classifier(_[^/]+)?", rf"blocks.{5 + pool}.proj\1"),
    )


def pyslowfast_keys(layer: str = "layer", pathway: int = 0) -> KeyTable:
    """PySlowFast's keys of the residual stages, whose blocks we call "body/<layer>1_0" and so on."""
    return tuple(
        (rf"body/{layer}{stage}_(\d+)/{ours}", rf"s{stage + 1}.pathway{pathway}_res\1.{theirs}")
        for stage in (1, 2, 3, 4)
        for ours, theirs in (
            (r"conv_([abc])/conv", r"branch2.\2"),
            (r"conv_([abc])/norm", r"branch2.\2_bn"),
            (r"se/reduce", r"branch2.se.fc1"),
            (r"se/expand", r"branch2.se.fc2"),
            (r"downsample(?:/conv)?", r"branch1"),
            (r"downsample/norm", r"branch1_bn"),
        )
    ) + tuple(
        (rf"body/{layer}{stage}_(\d+)/non_local/{ours}", rf"s{stage + 1}.pathway{pathway}_nonlocal\1.{theirs}")
        for stage in (1, 2, 3, 4)
        for ours, theirs in (*((ours, f"conv_{theirs}") for ours, theirs in NON_LOCAL), ("norm", "bn"))
    )


def mmaction2_keys(place: str = "backbone", layer: str = "layer", middle: str = "conv2") -> KeyTable:
    """mmaction2's keys of the residual stages; a convolution and its norm share a module, of which one is `middle`."""
    return tuple(
        (rf"body/{layer}(\d+)_(\d+)/{ours}/{kind}", rf"{place}.layer\1.\2.{theirs}.{short}")
        for ours, theirs in (
            ("conv_a", "conv1"),
            ("conv_mix", "conv2.0"),
            ("conv_b", middle),
            ("conv_c", "conv3"),
            ("downsample", "downsample"),
        )
        for kind, short in (("conv", "conv"), ("norm", "bn"))
    ) + mmaction2_non_local(rf"{place}.layer\1.\2", layer)


def mmaction2_non_local(block: str, layer: str = "layer") -> KeyTable:
    """mmaction2's keys of the non-local block of a block, whose max-pool makes keys and values sequences of two."""
    kinds = (("query", "theta.conv"), ("key", "phi.0.conv"), ("value", "g.0.conv"))
    kinds += (("project", "conv_out.conv"), ("norm", "conv_out.bn"))
    return tuple(
        (rf"body/{layer}(\d+)_(\d+)/non_local/{ours}", f"{block}.non_local_block.{theirs}") for ours, theirs in kinds
    )


def caffe2_entries(ours: str, conv: str, norm: str) -> KeyTable:
    """Caffe2's names of a `ConvNorm`'s variables."""
    return (
        (rf"{ours}/conv/kernel", rf"{conv}_w"),
        *((rf"{ours}/norm/{leaf}", rf"{norm}_bn_{short}") for leaf, short in CAFFE2_NORM),
    )


def caffe2_keys(layer: str = "layer", stem: str = "stem", prefix: str = "") -> KeyTable:
    """The names of stem and stages in PySlowFast's files of Caffe2; those of a fast pathway begin with "t_"."""
    blocks = [(rf"body/{layer}{stage}_(\d+)", rf"{prefix}res{stage + 1}_\1_branch") for stage in (1, 2, 3, 4)]
    return (
        *caffe2_entries(f"{stem}/conv1", f"{prefix}conv1", f"{prefix}res_conv1"),
        *(
            entry
            for ours, theirs in blocks
            for entry in (
                *caffe2_entries(rf"{ours}/conv_([abc])", rf"{theirs}2\2", rf"{theirs}2\2"),
                *caffe2_entries(rf"{ours}/downsample", rf"{theirs}1", rf"{theirs}1"),
            )
        ),
        *(
            (rf"body/{layer}{stage}_(\d+)/non_local/{ours}", rf"nonlocal_conv{stage + 1}_\1_{theirs}")
            for stage in (1, 2, 3, 4)
            for ours, theirs in (
                *((f"{ours}/kernel", f"{theirs}_w") for ours, theirs in NON_LOCAL),
                *((f"{ours}/bias", f"{theirs}_b") for ours, theirs in NON_LOCAL),
                *((f"norm/{leaf}", f"bn_{short}") for leaf, short in CAFFE2_NORM),
            )
        ),
    )


CAFFE2_HEAD = (
    (r"head/classifier(_[^/]+)?/kernel", r"pred\1_w"),
    (r"head/classifier(_[^/]+)?/bias", r"pred\1_b"),
)

PYSLOWFAST_KEYS = (
    (r"stem/conv1/conv", r"s1.pathway0_stem.conv"),
    (r"stem/conv1/norm", r"s1.pathway0_stem.bn"),
    *pyslowfast_keys(),
    (r"head/classifier(_[^/]+)?", r"head.projection\1"),
)

CAFFE2_KEYS = (*caffe2_keys(), *CAFFE2_HEAD)

MMACTION2_KEYS = (
    (r"stem/conv1/conv", r"backbone.conv1.conv"),
    (r"stem/conv1/norm", r"backbone.conv1.bn"),
    *mmaction2_keys(),
    (r"head/classifier(_[^/]+)?", r"cls_head.fc_cls\1"),
)

MMACTION2_FLAT_KEYS = (
    *(
        (f"{ours}/kernel", f"{theirs}.weight", "1 h w i o -> o i h w")
        for ours, theirs in MMACTION2_KEYS
        if ours.endswith("/conv")
    ),
    *MMACTION2_KEYS,
)
"""mmaction2's, where convolutions are 2-D and see one frame."""
