from flaxvid.data.mirror import mirrored_names
from flaxvid.data.motion.draw import MOTION_CLASSES


def test_labels_that_a_mirror_swaps():
    assert mirrored_names(("jump", "run", "hold upright", "leftover pie")) is None
    assert mirrored_names(("push it from left to right", "push it from right to left", "drop it")) == (1, 0, 2)
    assert mirrored_names(("turn_left", "turn_right", "TurnLeft", "TurnRight", "sit")) == (1, 0, 3, 2, 4)
    assert mirrored_names(("look left", "sit")) == (None, 1)
    assert mirrored_names(("Turning Hand Clockwise", "Turning Hand Counterclockwise")) == (1, 0)
    assert mirrored_names(("goes anti-clockwise", "goes up", "goes clockwise")) == (2, 1, 0)


def test_labels_of_motion_are_told_by_their_names():
    assert mirrored_names(MOTION_CLASSES) == (3, 4, 5, 0, 1, 2, 6, 7, 8, 9, 10, 11, 12, 13, 15, 14)
